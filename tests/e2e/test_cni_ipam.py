"""`cni-ipam` as an interface plugin calls it: it gives what Debian's `host-local` gives and does what that lacks."""

from __future__ import annotations

import json

import pytest

from tests.conftest import serve_ipam
from tests.support.confs import VERSIONS, with_result
from tests.support.host import REFERENCE, Answer, Host, Json

HOST_LOCAL = REFERENCE / "host-local"
STATE = "/var/lib/cni-bridge"
RANGES = [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]
TWO_ADDRESSES = {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.11"}


def conf_of(ipam: Json, version: str = "1.1.0", **keys: object) -> Json:
    return {"cniVersion": version, "name": "net1", "type": "bridge", "ipam": {"type": "host-local", **ipam}, **keys}


def call(host: Host, command: str, conf: Json | str, container: str = "", args: str = "", **kwargs: object) -> Answer:
    return host.plugin(command, conf, container, plugin="cni-ipam", env={"CNI_ARGS": args}, **kwargs)  # type: ignore[arg-type]


def addresses(answer: Answer) -> list[str]:
    return [each["address"] for each in answer.result["ips"]]


SAME = {
    "flat subnet": {"subnet": "10.88.0.0/24"},
    "flat IPv6 subnet": {"subnet": "fd00:88::/64"},
    "ends of the range": {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.11"},
    "one address": {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.10"},
    "gateway within the range": {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "gateway": "10.88.0.10"},
    "gateway outside of the subnet": {"subnet": "10.88.0.0/24", "gateway": "192.0.2.1"},
    "range starts at the default gateway": {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.1"},
    "smallest subnets": {"ranges": [[{"subnet": "10.88.0.0/30"}, {"subnet": "10.88.0.4/30"}]]},
    "one set of two subnets": {"ranges": [[{**TWO_ADDRESSES, "rangeStart": "10.88.0.11"}, {"subnet": "10.89.0.0/24"}]]},
    "dual stack": {"ranges": RANGES},
    "flat subnet beside sets": {"subnet": "10.90.0.0/24", "ranges": RANGES},
    "three sets": {"ranges": [*RANGES, [{"subnet": "10.91.0.0/16", "rangeStart": "10.91.7.7"}]]},
    "routes": {
        "ranges": RANGES,
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "192.0.2.0/24", "gw": "10.88.0.7"},
            {"dst": "::/0", "gw": "fd00:88::7"},
        ],
    },
    "resolvConf": {"subnet": "10.88.0.0/24", "resolvConf": "/etc/cni/resolv.conf"},
    "missing resolvConf": {"subnet": "10.88.0.0/24", "resolvConf": "/etc/cni/none"},
}

REFUSED = {
    "no ranges": {},
    "empty range set": {"ranges": [[]]},
    "host bits": {"subnet": "10.88.0.9/24"},
    "no prefix length": {"subnet": "10.88.0.0"},
    "end outside of the subnet": {"subnet": "10.88.0.0/24", "rangeEnd": "10.99.0.9"},
    "end before start": {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.8"},
    "overlapping ranges": {"ranges": [[{"subnet": "10.88.0.0/24"}, {"subnet": "10.88.0.0/25"}]]},
    "overlapping sets": {"ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "10.88.0.0/16"}]]},
    "mixed families": {"ranges": [[*RANGES[0], *RANGES[1]]]},
    "missing resolvConf": {"subnet": "10.88.0.0/24", "resolvConf": "/etc/cni/none"},
    "not an object": {"ranges": ["10.88.0.0/24"]},
}

RESOLV_CONF = """\
# a comment
; another
nameserver 10.88.0.1
nameserver fd00:88::1
domain first.example
domain example.com
search a.example b.example
options ndots:5 rotate
sortlist 10.0.0.0
"""


def assert_same_as_host_local(host: Host, conf: Json, *containers: str, args: str = "") -> None:
    for container in containers:
        theirs = host.plugin("ADD", conf, container, plugin=HOST_LOCAL, env={"CNI_ARGS": args})
        ours = call(host, "ADD", conf, container, args)
        assert ours.status == theirs.status, f"{container}: {ours.stdout} {theirs.stdout}"
        if theirs.status == 0:
            # Debian's writes an empty `dns` in every version, later ones and ours only where the version asks for it.
            assert {"dns": {}, **ours.result} == {"dns": {}, **theirs.result}, container


@pytest.mark.parametrize("ipam", SAME.values(), ids=SAME.keys())
def test_same_result_as_host_local(host: Host, ipam: Json) -> None:
    host.run("tee", "/etc/cni/resolv.conf", stdin=RESOLV_CONF.encode())
    conf = conf_of(ipam, "1.0.0")
    assert_same_as_host_local(host, conf, "a", "b")
    for plugin in (HOST_LOCAL, "cni-ipam"):
        host.plugin("DEL", conf, "a", plugin=plugin).succeeded()
    assert_same_as_host_local(host, conf, "c")  # which shows where each begins to search


@pytest.mark.parametrize("version", VERSIONS[:-1])  # Debian's knows no 1.1.0
def test_same_result_in_every_version(host: Host, version: str) -> None:
    host.run("tee", "/etc/cni/resolv.conf", stdin=RESOLV_CONF.encode())
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "2001:db8::/32", "gw": "fd00:88::7"}]
    ipam = {"ranges": RANGES, "routes": routes, "resolvConf": "/etc/cni/resolv.conf"}
    assert_same_as_host_local(host, conf_of(ipam, version), "a")


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        ("IP=10.88.0.77", {}),
        ("IP=10.88.0.77/16;IgnoreUnknown=1;K8S_POD_NAME=x", {}),
        ("", {"args": {"cni": {"ips": ["10.88.0.77", "fd00:88::77/64"]}}}),
        ("", {"runtimeConfig": {"ips": ["fd00:88::77"]}}),
        ("IP=10.88.0.77", {"args": {"cni": {"ips": ["fd00:88::77"]}}}),
        ("IP=10.88.0.77", {"runtimeConfig": {"ips": ["fd00:88::77"]}}),
        ("IP=10.88.0.77", {"runtimeConfig": {"ips": ["10.88.0.78"]}}),
        ("IP=10.88.0.1", {}),
        ("IP=10.99.0.9", {}),
        ("", {"runtimeConfig": {"ipRanges": [[{"subnet": "10.99.0.0/24"}]], "ips": ["10.99.0.9", "10.88.0.9"]}}),
    ],
    ids=[
        "CNI_ARGS",
        "CNI_ARGS with a prefix length",
        "args of both families",
        "runtimeConfig",
        "CNI_ARGS and args",
        "CNI_ARGS and runtimeConfig",
        "two for one set",
        "gateway",
        "in no range",
        "ranges of the runtime",
    ],
)
def test_same_answer_to_requested_addresses(host: Host, args: str, keys: Json) -> None:
    assert_same_as_host_local(host, conf_of({"ranges": RANGES}, "1.0.0", **keys), "a", args=args)


@pytest.mark.parametrize("ipam", REFUSED.values(), ids=REFUSED.keys())
def test_refuses_what_host_local_refuses(host: Host, ipam: Json) -> None:
    conf = conf_of(ipam, "1.0.0")
    assert host.plugin("ADD", conf, "a", plugin=HOST_LOCAL).status == 1
    assert call(host, "ADD", conf, "a").code in (6, 7)
    assert host.leases() == []


def test_a_repeat_gives_the_same_result(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    first = call(host, "ADD", conf, "a").result
    call(host, "ADD", conf, "b").succeeded()
    assert call(host, "ADD", conf, "a").result == first
    assert len(host.leases()) == 4
    for _ in range(2):
        for name in ("a", "b"):
            call(host, "DEL", with_result(conf, first), name).succeeded()
    host.assert_nothing_left()


def test_exhausted_taken_and_free_again(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of(TWO_ADDRESSES)
    call(host, "STATUS", conf).succeeded()
    for name in ("a", "b"):
        call(host, "ADD", conf, name).succeeded()
    exhausted = call(host, "ADD", conf, "c").error
    assert (exhausted["code"], "10.88.0.10-10.88.0.11" in exhausted["msg"]) == (101, True)
    assert call(host, "STATUS", conf).code == 50
    taken = call(host, "ADD", conf, "c", "IP=10.88.0.10").error
    assert (taken["code"], "10.88.0.10" in taken["msg"], "container a " in taken["msg"]) == (102, True, True)
    assert [each["owner"]["container_id"] for each in host.leases()] == ["a", "b"]
    call(host, "DEL", conf, "b").succeeded()
    assert addresses(call(host, "ADD", conf, "c")) == ["10.88.0.11/24"]


def test_check_compares_with_the_result(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    result = call(host, "ADD", conf, "a").result
    call(host, "CHECK", with_result(conf, result), "a").succeeded()
    call(host, "CHECK", conf, "a").succeeded()
    by_another_plugin = {**result, "ips": [*result["ips"], {"address": "192.0.2.1/24"}]}
    call(host, "CHECK", with_result(conf, by_another_plugin), "a").succeeded()
    differing = json.loads(json.dumps(result).replace("fd00:88::2", "fd00:88::9"))
    assert call(host, "CHECK", with_result(conf, differing), "a").code == 100
    assert call(host, "CHECK", with_result(conf, result), "b").code == 100
    call(host, "DEL", conf, "a").succeeded()
    assert call(host, "CHECK", with_result(conf, result), "a").code == 100


def test_gc_keeps_what_is_valid_and_other_networks(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    other = {**conf, "name": "net2"}
    for name in ("a", "b"):
        call(host, "ADD", conf, name).succeeded()
    call(host, "ADD", conf, "a", ifname="eth1").succeeded()
    call(host, "ADD", other, "b").succeeded()
    assert call(host, "GC", conf).code == 7
    assert len(host.leases()) == 8
    key, valid = "cni.dev/valid-attachments", [{"containerID": "a", "ifname": "eth0"}]
    call(host, "GC", {**conf, key: valid}).succeeded()
    assert {
        (each["owner"]["network"], each["owner"]["container_id"], each["owner"]["ifname"]) for each in host.leases()
    } == {
        ("net1", "a", "eth0"),
        ("net2", "b", "eth0"),
    }
    call(host, "GC", {**conf, "cni.dev/attachments": None}).succeeded()
    call(host, "GC", {**other, key: []}).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("ipam", [*REFUSED.values(), None], ids=[*REFUSED.keys(), "no ipam section"])
def test_del_with_a_configuration_that_has_become_invalid(host: Host, ipam: Json | None) -> None:
    call(host, "ADD", conf_of({"ranges": RANGES}), "a").succeeded()
    conf = conf_of(ipam or {})
    call(host, "DEL", conf if ipam is not None else {**conf, "ipam": None}, "a").succeeded()
    host.assert_nothing_left()


def test_a_read_only_state_directory_is_one_error_and_loses_nothing(host: Host) -> None:
    conf = conf_of({"ranges": RANGES})
    result = call(host, "ADD", conf, "a").result
    host.shell(f"mount -o remount,ro {STATE}")
    for command, container, code in (("ADD", "b", 5), ("DEL", "a", 5), ("STATUS", "", 50)):
        assert_refused_for_the_state_directory(call(host, command, conf, container), command, code)
    call(host, "CHECK", with_result(conf, result), "a").succeeded()
    host.shell(f"mount -o remount,rw {STATE}")
    assert_works_again(host, conf, result)


def assert_refused_for_the_state_directory(answer: Answer, command: str, code: int) -> None:
    assert answer.status == 1, f"{command}: {answer.stdout}"
    assert (answer.code, STATE in answer.error["msg"]) == (code, True), f"{command}: {answer.stdout}"


def assert_works_again(host: Host, conf: Json, result: Json) -> None:
    """With what container `a` was given still its own."""
    assert [each["owner"]["container_id"] for each in host.leases()] == ["a", "a"]
    assert call(host, "ADD", conf, "a").result == result
    call(host, "ADD", conf, "b").succeeded()
    for name in ("a", "b"):
        call(host, "DEL", conf, name).succeeded()
    host.assert_nothing_left()


def fill(host: Host) -> None:
    host.shell(f"cat /dev/zero > {STATE}/filled", check=False)


def test_a_full_state_directory_is_one_error_and_loses_nothing(host: Host, ipam_path: str) -> None:
    host.shell(f"mount -t tmpfs -o size=128k,mode=755 tmpfs {STATE}")
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    result = call(host, "ADD", conf, "a").result
    fill(host)
    for command, container, code in (("ADD", "b", 11), ("DEL", "a", 11), ("STATUS", "", 50)):
        assert_refused_for_the_state_directory(call(host, command, conf, container), command, code)
    call(host, "CHECK", with_result(conf, result), "a").succeeded()
    host.shell(f"rm {STATE}/filled")
    assert_works_again(host, conf, result)


def test_a_state_directory_that_is_full_from_the_start(host: Host) -> None:
    host.shell(f"mount -t tmpfs -o size=16k,mode=755 tmpfs {STATE}")
    fill(host)
    conf = conf_of({"ranges": RANGES})
    assert call(host, "ADD", conf, "a").code == 11
    host.shell(f"mount -o remount,size=128k {STATE}")
    assert addresses(call(host, "ADD", conf, "a")) == ["10.88.0.2/24", "fd00:88::2/64"]


@pytest.mark.parametrize(
    "script",
    [
        "head -c 8192 /dev/urandom > ipam.db",
        "echo garbage > ipam.db",
        """python3 -c 'import sqlite3; sqlite3.connect("ipam.db").execute("create table other (x)")'""",
    ],
    ids=["damaged", "no database", "of another program"],
)
def test_what_is_no_database_of_ours_is_code_108_and_is_left_as_it_is(host: Host, script: str) -> None:
    host.shell(f"cd {STATE}; {script}")
    before = host.shell(f"sha1sum {STATE}/ipam.db")
    conf = conf_of({"ranges": RANGES})
    for command in ("ADD", "DEL"):
        error = call(host, command, conf, "a").error
        assert (error["code"], f"{STATE}/ipam.db" in error["msg"]) == (108, True), error
    assert call(host, "STATUS", conf).code == 50
    assert host.shell(f"sha1sum {STATE}/ipam.db") == before


def test_a_state_path_that_is_no_directory_is_code_5(host: Host) -> None:
    host.shell("touch /run/file")
    conf = conf_of({"ranges": RANGES})
    variables = {"CNI_BRIDGE_STATE_DIR": "/run/file"}
    error = host.plugin("ADD", conf, "a", plugin="cni-ipam", env=variables).error
    assert (error["code"], "/run/file" in error["msg"]) == (5, True), error
