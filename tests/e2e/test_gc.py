"""GC removes all that is left of attachments that are not valid any more, of this network only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import serve_ipam
from tests.support.chain import CniDir
from tests.support.confs import DUAL_STACK, bridge_conf, with_result
from tests.support.host import BIN, Answer, Host, Json
from tests.support.ipamd import wait_until

OTHER = {"type": "cni-ipam", "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]]}


def collect(host: Host, conf: Json, *valid: str, key: str = "cni.dev/valid-attachments") -> Answer:
    """GC that keeps the `eth0` of these containers."""
    return host.plugin("GC", {**conf, key: [{"containerID": each, "ifname": "eth0"} for each in valid]})


def holdings(host: Host) -> Counter[tuple[str, str]]:
    """How much there is of each kind: links, leases, records, and rules by the network they serve."""
    rules = host.nft_elements() + host.iptables_rules()
    return Counter(
        [
            *(("link", link["master"]) for link in host.links().values() if "master" in link),
            *(("lease", lease["network"]) for lease in host.leases()),
            *(("record", Path(each).parent.name) for each in host.files("/run/cni-bridge/attachments")),
            *(("rule", network) for network in ("net1", "net2") for rule in rules if f" {network}/" in rule),
        ]
    )


def of_network(found: Counter[tuple[str, str]], network: str, bridge: str) -> Counter[tuple[str, str]]:
    return Counter({key: number for key, number in found.items() if key[1] in (network, bridge)})


def test_gc_keeps_the_valid_and_the_other_network(host: Host, ipam_path: str, backend: str) -> None:
    serve_ipam(host, ipam_path)
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend, macspoofchk=True)
    other = {**conf, "name": "net2", "bridge": "cni1", "ipam": OTHER}
    results = {}
    for name in ("a", "b"):
        host.add_netns(name)
        results[name] = host.plugin("ADD", conf, name).result
        results[name, "net2"] = host.plugin("ADD", other, name, ifname="eth1").result
    before = holdings(host)
    host.run("ip", "netns", "del", "a")
    collect(host, conf, "b").succeeded()
    after = holdings(host)
    ours = of_network(before, "net1", "cni0")
    assert of_network(after, "net1", "cni0") == Counter({each: number // 2 for each, number in ours.items()})
    assert {each: after[each] for each in (("lease", "net2"), ("record", "net2"), ("rule", "net2"))} == {
        each: before[each] for each in (("lease", "net2"), ("record", "net2"), ("rule", "net2"))
    }
    host.plugin("CHECK", with_result(conf, results["b"]), "b").succeeded()
    host.plugin("CHECK", with_result(other, results["b", "net2"]), "b", ifname="eth1").succeeded()
    for each in (conf, other):
        collect(host, each, key="cni.dev/attachments").succeeded()  # what libcni called it before 1.3
    assert list(host.links("b")) == ["lo"]
    host.assert_nothing_left()


@pytest.mark.parametrize("container_id", ["a", "c"], ids=["other container", "other interface"])
def test_an_attachment_is_valid_by_container_and_interface(host: Host, container_id: str) -> None:
    conf = bridge_conf()
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    ifname = "eth1" if container_id == "a" else "eth0"
    valid = [{"containerID": container_id, "ifname": ifname}]
    host.plugin("GC", {**conf, "cni.dev/valid-attachments": valid}).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("none", [None, []], ids=["null", "empty"])
def test_none_is_valid(host: Host, none: list[Json] | None) -> None:
    conf = bridge_conf()
    host.plugin("GC", {**conf, "cni.dev/valid-attachments": none}).succeeded()
    assert "cni0" not in host.links(), "GC on a host without attachments makes nothing"
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    host.plugin("GC", {**conf, "cni.dev/valid-attachments": none}).succeeded()
    assert list(host.links("a")) == ["lo"]
    host.assert_nothing_left()


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        pytest.param({}, 7, id="no key"),
        pytest.param({"cni.dev/valid-attachments": "all"}, 6, id="no list"),
        pytest.param({"cni.dev/valid-attachments": [{"containerID": "a"}]}, 7, id="no ifname"),
        pytest.param({"cni.dev/valid-attachments": [None]}, 6, id="null member"),
    ],
)
@pytest.mark.parametrize("plugin", ["cni-bridge", "cni-ipam"])
def test_gc_that_does_not_say_what_is_valid_removes_nothing(host: Host, plugin: str, broken: Json, code: int) -> None:
    conf = bridge_conf()
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a").result
    answer = host.plugin("GC", {**conf, **broken}, plugin=plugin)
    assert answer.code == code
    assert "cni.dev/valid-attachments" in answer.error["msg"]
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()


def test_gc_of_an_older_version_is_refused(host: Host) -> None:
    assert collect(host, bridge_conf("1.0.0")).code == 1


def test_strays_without_a_record_are_collected(host: Host, ipam_path: str, backend: str) -> None:
    serve_ipam(host, ipam_path)
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend, macspoofchk=True)
    for name in ("a", "b"):
        host.add_netns(name)
        host.plugin("ADD", conf, name).succeeded()
    other = bridge_conf(name="net2", bridge="cni1", ipam=OTHER, ipMasqBackend=backend)
    host.plugin("ADD", other, "b", ifname="eth1").succeeded()
    host.shell("rm -r /run/cni-bridge/attachments")
    collect(host, conf, "b").succeeded()
    assert [lease["container_id"] for lease in host.leases() if lease["network"] == "net1"] == [
        "b",
        "b",
    ]
    assert list(host.links("a")) == ["lo"]
    host.ping("10.88.0.1", "b")
    host.ping("10.99.0.1", "b")
    for each in (conf, other):
        collect(host, each).succeeded()
    host.assert_nothing_left()


LOGGING_IPAM = r"""
echo "$CNI_COMMAND $CNI_CONTAINERID" >> /run/ipam.log
case $CNI_COMMAND in
ADD) echo "{\"cniVersion\": \"1.1.0\", \"ips\": [{\"address\": \"10.88.0.$((0x$CNI_CONTAINERID))/24\"}]}" ;;
DEL) test ! -e "/run/fails.$CNI_CONTAINERID" || { echo '{"code": 11, "msg": "later"}'; exit 1; } ;;
GC) cat > /run/gc.json ;;
esac
"""


DELEGATING = bridge_conf(ipam={"type": "logging-ipam"})


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Where a runtime finds an IPAM that writes down how it is called; it gives container `b` 10.88.0.11 and so on."""
    plugins = CniDir(tmp_path)
    plugins.script("logging-ipam", LOGGING_IPAM)
    return plugins.env


def calls(host: Host) -> list[str]:
    """What the delegated IPAM was asked since the last look."""
    said = host.shell("cat /run/ipam.log; rm /run/ipam.log").splitlines()
    return [each.strip() for each in said]


@pytest.mark.every_way
def test_delegated_ipam_releases_what_is_stale(host: Host, env: dict[str, str]) -> None:
    for name in ("a", "b", "c"):
        host.add_netns(name)
        host.plugin("ADD", DELEGATING, name, env=env).succeeded()
    calls(host)
    valid = [{"containerID": "c", "ifname": "eth0"}]
    host.plugin("GC", {**DELEGATING, "cni.dev/valid-attachments": valid}, env=env).succeeded()
    assert calls(host) == ["DEL a", "DEL b", "GC"]
    assert json.loads(host.shell("cat /run/gc.json"))["cni.dev/valid-attachments"] == valid
    host.plugin("DEL", DELEGATING, "c", env=env).succeeded()
    host.assert_nothing_left()


@pytest.mark.every_way
def test_gc_goes_on_after_a_failure(host: Host, env: dict[str, str]) -> None:
    none_valid = {**DELEGATING, "cni.dev/valid-attachments": []}
    for name in ("a", "b"):
        host.add_netns(name)
        host.plugin("ADD", DELEGATING, name, env=env).succeeded()
    calls(host)
    host.shell("touch /run/fails.a")
    answer = host.plugin("GC", none_valid, env=env)
    assert (answer.code, "later" in answer.error["msg"]) == (11, True)
    assert calls(host) == ["DEL a", "DEL b", "GC"]
    assert list(host.links("a")) == list(host.links("b")) == ["lo"]
    host.shell("rm /run/fails.a")
    host.plugin("GC", none_valid, env=env).succeeded()
    assert calls(host) == ["DEL a", "GC"], "what could not be released is tried again"
    host.assert_nothing_left()


@pytest.mark.every_way
def test_gc_goes_on_after_a_record_that_cannot_be_read(host: Host) -> None:
    conf = bridge_conf(ipMasqBackend="nftables")
    for name in ("a", "b", "c"):
        host.add_netns(name)
        result = host.plugin("ADD", conf, name).result
    host.shell("echo '{' > /run/cni-bridge/attachments/net1/a:eth0.json")
    collect(host, conf, "c")
    assert [lease["container_id"] for lease in host.leases()] == ["c"]
    assert list(host.links("a")) == list(host.links("b")) == ["lo"]
    assert not any(f"/{name}/eth0" in each for each in host.nft_elements() for name in "ab")
    host.plugin("CHECK", with_result(conf, result), "c").succeeded()
    assert host.files("/run/cni-bridge/attachments") == ["/run/cni-bridge/attachments/net1/c:eth0.json"]


def test_gc_loads_no_iptables_where_nobody_uses_it(host: Host) -> None:
    conf = bridge_conf(ipMasqBackend="nftables", ipam=DUAL_STACK, macspoofchk=True)
    host.add_netns("a")
    collect(host, conf).succeeded()
    host.plugin("ADD", conf, "a").succeeded()
    collect(host, conf).succeeded()
    assert host.shell("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names", check=False) == ""
    host.assert_nothing_left()


@contextmanager
def xtables_locked(host: Host) -> Iterator[None]:
    """Another program changes legacy iptables for a long time."""
    program = host.start("flock", "--no-fork", "/run/xtables.lock", "sleep", "infinity")
    try:
        wait_until(
            lambda: host.run("flock", "--nonblock", "/run/xtables.lock", "true", check=False).returncode != 0,
            "flock does not take the lock",
        )
        yield
    finally:
        program.kill()
        program.wait(10)


@pytest.mark.parametrize("loaded", ["", "filter", "nat"])
@pytest.mark.parametrize("verb", ["GC", "DEL"])
def test_the_xtables_lock_is_nothing_to_a_network_of_nftables(host: Host, verb: str, loaded: str) -> None:
    conf = bridge_conf(ipMasqBackend="nftables", ipam=DUAL_STACK, macspoofchk=True)
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    host.shell("rm -r /run/cni-bridge/attachments/net1")
    if loaded:
        host.shell(f"iptables-legacy -t {loaded} -S")
    with xtables_locked(host):
        answer = collect(host, conf) if verb == "GC" else host.plugin("DEL", conf, "a")
    answer.succeeded()
    host.assert_nothing_left()


def test_gc_that_cannot_have_the_xtables_lock_collects_all_else(host: Host) -> None:
    host.shell("echo 'request_timeout: 8' > /etc/cni-bridge/config.yaml")
    conf = bridge_conf(ipMasqBackend="iptables", ipam=DUAL_STACK, macspoofchk=True)
    for name in ("a", "b"):
        host.add_netns(name)
        host.plugin("ADD", conf, name).succeeded()
    with xtables_locked(host):
        error = collect(host, conf).error
    assert (error["code"], "/run/xtables.lock" in str(error)) == (11, True)
    assert list(host.links("a")) == list(host.links("b")) == ["lo"]
    assert not any("/eth0" in each for each in host.nft_elements())
    assert {each["container_id"] for each in host.leases()} == {"a", "b"}, "as long as there are rules"
    collect(host, conf).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("network", ["x.json", "x..json", "1.new"])
def test_a_network_named_like_a_file(host: Host, network: str) -> None:
    conf, other = bridge_conf(name=network, ipam=DUAL_STACK), bridge_conf(name="x", bridge="cni1", ipam=OTHER)
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    host.plugin("ADD", other, "a", ifname="eth1").succeeded()
    for selected in (["--network", network], []):
        shown = json.loads(host.run(BIN / "cni-bridgectl", "attachments", "--json", *selected).stdout)
        networks = [each["owner"]["network"] for each in shown]
        assert sorted(networks) == ([network] if selected else sorted([network, "x"]))
    collect(host, conf, "a").succeeded()
    assert len(host.files("/run/cni-bridge/attachments")) == 2
    collect(host, conf).succeeded()
    assert list(host.links("a")) == ["lo", "eth1"]
    collect(host, other).succeeded()
    host.assert_nothing_left()
