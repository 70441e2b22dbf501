"""The audit of a host: what differs between the store, the namespaces and the attachments, and how it is put right."""

from __future__ import annotations

import base64
import json

import pytest

from tests.conftest import serve_ipam
from tests.support.attaching import attach
from tests.support.confs import bridge_conf, with_result
from tests.support.ctl import DATABASE, STATE, audit, ctl_json, found, sql
from tests.support.host import REFERENCE, Host, Json
from tests.support.ipamd import ONLY_THROUGH_IPAMD, outside_path, start_ipamd

CONF = bridge_conf()
THEIRS = bridge_conf(
    "1.0.0", name="net2", type="bridge", bridge="cni1", ipMasq=None, ipam={"type": "cni-ipam", "subnet": "10.99.0.0/29"}
)
RESULTS = "/var/lib/cni/results"


def holders(host: Host) -> dict[str, str]:
    return {each["address"]: f"{each['network']}/{each['container_id']}" for each in ctl_json(host, "leases")}


def given(host: Host, conf: Json, container: str) -> str:
    """The address that `cni-ipam` gives."""
    result = host.plugin("ADD", conf, container, plugin="cni-ipam", netns="/run/netns/none").result
    return str(result["ips"][0]["address"])


def use(host: Host, name: str, address: str) -> None:
    """Have an address in a namespace that no plugin knows of."""
    host.add_netns(name)
    host.shell(f"ip link add eth0 type veth peer name eth1; ip address add {address} dev eth0", netns=name)


def cache(host: Host, conf: Json, container: str, result: Json) -> None:
    """Keep the result as libcni does for the runtimes."""
    plugin = {key: value for key, value in conf.items() if key not in ("name", "cniVersion")}
    of_all = {key: conf[key] for key in ("name", "cniVersion")}
    kept = {
        "kind": "cniCacheV1",
        "containerId": container,
        "config": base64.b64encode(json.dumps({**of_all, "plugins": [plugin]}).encode()).decode(),
        "ifName": "eth0",
        "networkName": conf["name"],
        "result": result,
    }
    outside_path(host, RESULTS).mkdir(exist_ok=True)
    outside_path(host, f"{RESULTS}/{conf['name']}-{container}-eth0").write_text(json.dumps(kept))


def add_theirs(host: Host, container: str) -> Json:
    """Attach a container by the reference's bridge with `cni-ipam`, as a runtime does."""
    host.add_netns(container)
    result = host.plugin("ADD", THEIRS, container, plugin=REFERENCE / "bridge").result
    cache(host, THEIRS, container, result)
    return result


def test_what_differs_is_told_and_repaired(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    env = ONLY_THROUGH_IPAMD if ipam_path == "ipamd" else {}
    results = {name: attach(host, CONF, name) for name in "abc"}
    assert "nothing differs" in audit(host, env=env).stdout
    host.run("ip", "netns", "del", "a")
    sql(host, "DELETE FROM addresses WHERE container_id = 'b'")
    sql(host, "DELETE FROM taken")
    use(host, "x", "10.88.0.9/24")
    use(host, "y", "192.0.2.9/24")
    rows = ctl_json(host, "leases")
    problems = found(host, env=env)
    by_what = {each["what"]: (each["weight"], each["repair"]) for each in problems}
    assert by_what["10.88.0.2 of net1/a/eth0 is leased, and its namespace /run/netns/a is gone"] == (
        "warning",
        "release 10.88.0.2 of net1/a/eth0",
    )
    assert by_what["10.88.0.3 is in use on eth0 in /run/netns/b and has no lease"] == (
        "error",
        "lease 10.88.0.3 to net1/b/eth0, who has it",
    )
    weight, repair = by_what["10.88.0.9 is in use on eth0 in /run/netns/x and has no lease"]
    assert (weight, "reserve 10.88.0.9 of network net1 for nobody" in repair) == ("error", True)
    assert [each for each in problems if "not marked as taken" in each["what"]]
    assert "192.0.2.9" not in str(problems)
    assert "Repair this?" in audit(host, "--repair", stdin="n\n", status=1, env=env).stderr
    assert ctl_json(host, "leases") == rows

    said = audit(host, "--repair", "--yes", env=env)
    assert all(each["what"] in said.stdout for each in problems)
    assert f"{len(problems)} of {len(problems)} are repaired" in said.stderr
    assert "nothing differs" in audit(host, env=env).stdout
    assert holders(host) == {"10.88.0.3/24": "net1/b", "10.88.0.4/24": "net1/c"}
    assert [each for each in ctl_json(host, "leases") if each["container_id"] == "c"] == rows[-1:], "c was not touched"
    (kept,) = ctl_json(host, "leases", "--state", "reserved")
    assert (kept["address"], kept["reserved_for"]) == ("10.88.0.9", "nobody")
    for name in "bc":
        host.plugin("CHECK", with_result(CONF, results[name]), name).succeeded()
        host.ping("10.88.0.1", name)
        assert attach_again(host, name) == results[name]
    assert host.plugin("ADD", CONF, "d", plugin="cni-ipam", env={"CNI_ARGS": "IP=10.88.0.9"}).code == 102
    for name in "abc":
        host.plugin("DEL", CONF, name).succeeded()
    assert holders(host) == {}


def attach_again(host: Host, name: str) -> Json:
    return host.plugin("ADD", CONF, name).result


def test_what_only_the_operator_can_judge_is_told_and_left_alone(host: Host) -> None:
    attach(host, CONF)
    host.shell("ip address del 10.88.0.2/24 dev eth0", netns="a")
    for words in ([], ["--repair", "--yes"]):
        (problem,) = found(host, *words)
        assert problem == {
            "weight": "warning",
            "what": "10.88.0.2 of net1/a/eth0 is leased, and no link in /run/netns/a has it",
            "repair": "",
        }
    assert holders(host) == {"10.88.0.2/24": "net1/a"}


DAMAGES = {
    "pages overwritten": f"dd if=/dev/urandom of={DATABASE} bs=4096 seek=5 count=3 conv=notrunc",
    "truncated": f"truncate -s 20480 {DATABASE}",
    "garbage": f"echo garbage > {DATABASE}",
}


@pytest.mark.oneshot("the database is replaced behind a daemon's back")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_database_is_left_as_it_is_until_it_is_made_anew(host: Host, damage: str) -> None:
    results = {name: attach(host, CONF, name) for name in "ab"}
    theirs = {name: add_theirs(host, name) for name in "cd"}
    attach(host, CONF, "e")
    host.run("ip", "netns", "del", "d")
    held = holders(host)
    outside_path(host, f"{RESULTS}/net1-x-eth0").write_text("{")
    host.shell(damage)
    before = outside_path(host, DATABASE).read_bytes()
    for command in ("ADD", "STATUS"):
        answer = host.plugin(command, CONF, "f", plugin="cni-ipam")
        assert (answer.code, DATABASE in answer.error["msg"]) == (108 if command == "ADD" else 50, True)
    said = audit(host, status=1).stderr
    assert f"{DATABASE} is damaged" in said and "audit --repair" in said
    said = audit(host, "--repair", stdin="n\n", status=1).stderr
    assert f"{DATABASE} is moved aside" in said and "with 4 leases?" in said
    assert outside_path(host, DATABASE).read_bytes() == before

    audit(host, "--repair", "--yes")
    (aside,) = outside_path(host, STATE).glob("ipam.db.damaged-*[0-9]")
    assert aside.read_bytes() == before
    assert holders(host) == {address: of for address, of in held.items() if of != "net2/d"}
    audit(host)
    assert [given(host, CONF, name) for name in "fg"] == ["10.88.0.5/24", "10.88.0.6/24"]
    assert given(host, THEIRS, "f") == "10.99.0.3/29"
    for name, result in results.items():
        host.plugin("CHECK", with_result(CONF, result), name).succeeded()
        assert attach_again(host, name) == result
    host.plugin("DEL", with_result(THEIRS, theirs["c"]), "c", plugin=REFERENCE / "bridge").succeeded()
    for name in "abe":
        host.plugin("DEL", CONF, name).succeeded()
    assert set(holders(host).values()) == {"net1/f", "net1/g", "net2/f"}


def test_a_database_that_lacks_rows_in_an_index_is_made_anew(host: Host) -> None:
    attach(host, CONF)
    ((statement,),) = sql(host, "SELECT sql FROM sqlite_schema WHERE name = 'addresses_by_owner'")
    sql(host, "DROP INDEX addresses_by_owner")
    sql(host, f"{statement} AND 0")
    outside_path(host, "/run/sql").write_text(
        f"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = '{statement}' WHERE name = 'addresses_by_owner';"
    )
    host.shell(f'python3 -c \'import sqlite3; sqlite3.connect("{DATABASE}").executescript(open("/run/sql").read())\'')
    done = audit(host, status=1)
    assert "index addresses_by_owner" in done.stdout + done.stderr
    audit(host, "--repair", "--yes")
    assert attach_again(host, "a")["ips"][0]["address"] == "10.88.0.2/24"
    host.plugin("DEL", CONF, "a").succeeded()
    host.assert_nothing_left()


def test_a_stale_result_takes_no_address_from_who_lives(host: Host) -> None:
    result = add_theirs(host, "lives")
    mac = next(each["mac"] for each in result["interfaces"] if each["name"] == "eth0")
    stale = json.dumps(result).replace("/run/netns/lives", "/run/netns/zombie").replace(mac, "02:00:00:00:00:07")
    cache(host, THEIRS, "zombie", json.loads(stale))
    daemon = start_ipamd(host)
    host.shell(DAMAGES["garbage"])
    before = outside_path(host, DATABASE).read_bytes()
    assert f"{DATABASE} is damaged" in audit(host, status=1, env=ONLY_THROUGH_IPAMD).stderr
    assert "ipamd runs; stop it first" in audit(host, "--repair", "--yes", status=1).stderr
    assert outside_path(host, DATABASE).read_bytes() == before
    daemon.stop()
    audit(host, "--repair", "--yes")
    assert holders(host) == {"10.99.0.2/29": "net2/lives"}


@pytest.mark.oneshot("the database is replaced behind a daemon's back")
def test_a_record_says_more_than_a_result(host: Host) -> None:
    host.add_netns("a")
    pod = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=space;K8S_POD_NAME=pod"}
    cache(host, CONF, "a", host.plugin("ADD", CONF, "a", env=pod).result)
    before = ctl_json(host, "leases")
    host.shell(DAMAGES["garbage"])
    audit(host, "--repair", "--yes")
    assert ctl_json(host, "leases") == before


@pytest.mark.oneshot("the database is replaced behind a daemon's back")
def test_a_database_that_was_lost_is_filled_again(host: Host) -> None:
    results = {name: attach(host, CONF, name) for name in "ab"}
    held = holders(host)
    host.shell(f"rm {STATE}/*")
    audit(host, "--repair", "--yes")
    assert sorted(holders(host).values()) == sorted(held.values())
    assert given(host, CONF, "c") == "10.88.0.4/24"
    for name, result in results.items():
        assert attach_again(host, name) == result
    assert holders(host) == held | {"10.88.0.4/24": "net1/c"}
