"""DEL and GC need nothing but the owner, touch nothing of others, and undo an ADD that was killed half way."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from itertools import cycle

import pytest

from tests.support.confs import DUAL_STACK, bridge_conf, with_result
from tests.support.host import BIN, REFERENCE, Host, Json


def everything(conf: Json, result: Json) -> Json:
    return with_result(conf, result)


def no_result(conf: Json, _: Json) -> Json:
    return conf


def no_ipam(conf: Json, _: Json) -> Json:
    return {key: value for key, value in conf.items() if key != "ipam"}


def other_backend(conf: Json, _: Json) -> Json:
    others = {"nftables": "iptables", "iptables": "nftables"}
    return {**conf, "ipMasqBackend": others[conf["ipMasqBackend"]]}


def nothing_but_the_name(conf: Json, _: Json) -> Json:
    return {key: conf[key] for key in ("cniVersion", "name", "type")}


@pytest.mark.parametrize(
    ("netns", "sent"),
    [
        ("there", everything),
        ("there", no_result),
        ("gone", everything),
        ("empty", no_result),
        ("empty", no_ipam),
        ("gone", other_backend),
        ("empty", nothing_but_the_name),
    ],
)
def test_del_needs_the_owner_only(host: Host, backend: str, netns: str, sent: Callable[[Json, Json], Json]) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend, macspoofchk=True)
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a").result
    if netns == "gone":
        host.run("ip", "netns", "del", "a")
    path = "" if netns == "empty" else "/run/netns/a"
    for _ in ("first", "again"):
        host.plugin("DEL", sent(conf, result), "a", netns=path).succeeded()
        host.assert_nothing_left()


HOST_LOCAL = {"type": "host-local", "subnet": "10.88.0.0/24"}
CHECKED = {"macspoofchk": True, "capabilities": {"mac": True}, "runtimeConfig": {"mac": "02:00:00:00:00:99"}}


@pytest.mark.parametrize("netns", ["there", "gone", "empty"])
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"ipam": None, "isGateway": False, "ipMasq": False, "macspoofchk": True}, id="L2 only"),
        # the newest version that every host-local knows
        pytest.param({"cniVersion": "1.0.0", "ipam": HOST_LOCAL}, id="host-local"),
        pytest.param(CHECKED, id="requested MAC"),
        pytest.param({"ipam": DUAL_STACK, "macspoofchk": True}, id="dual stack"),
    ],
)
def test_del_without_a_record_takes_the_rules(host: Host, backend: str, keys: Json, netns: str) -> None:
    conf = bridge_conf(ipMasqBackend=backend, **keys)
    for name in ("a", "b"):
        host.add_netns(name)
        result = host.plugin("ADD", conf, name).result
    host.shell("rm /run/cni-bridge/attachments/net1/a:eth0.json")
    if netns == "gone":
        # a process keeps the links of a namespace that has no name any more
        keeper = host.start("sh", "-c", "echo ready; exec sleep infinity", netns="a", stdout=subprocess.PIPE)
        assert keeper.stdout.readline() == b"ready\n"
        host.run("ip", "netns", "del", "a")
    host.plugin("DEL", conf, "a", netns="" if netns == "empty" else "/run/netns/a").succeeded()
    rules = host.nft_elements() + host.iptables_rules()
    assert rules != []
    assert not any("/a/eth0" in each for each in rules)
    host.plugin("CHECK", with_result(conf, result), "b").succeeded()
    host.plugin("DEL", conf, "b").succeeded()
    host.assert_nothing_left()


@pytest.mark.every_way
def test_del_without_a_record_loads_no_iptables(host: Host) -> None:
    conf = bridge_conf(ipMasqBackend="nftables", macspoofchk=True)
    host.add_netns("a")
    for forgotten in (False, True):
        host.plugin("ADD", conf, "a").succeeded()
        if forgotten:
            host.shell("rm -r /run/cni-bridge/attachments/net1")
        for _ in ("first", "again"):
            host.plugin("DEL", conf, "a").succeeded()
            assert host.shell("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names", check=False) == ""
    host.assert_nothing_left()


@pytest.mark.parametrize("conf", [bridge_conf(), bridge_conf(ipam=None), bridge_conf(bridge="lo")])
def test_del_of_what_was_never_added(host: Host, conf: Json) -> None:
    host.add_netns("a")
    for netns in ("/run/netns/a", "/run/netns/gone", ""):
        host.plugin("DEL", conf, "a", netns=netns).succeeded()
    assert list(host.links()) == ["lo"], "DEL makes nothing"
    host.assert_nothing_left()


@pytest.mark.every_way
def test_interfaces_of_one_container_are_independent(host: Host, backend: str) -> None:
    conf = bridge_conf(ipMasqBackend=backend)
    host.add_netns("a")
    results = {each: host.plugin("ADD", conf, "a", ifname=each).result for each in ("eth0", "eth1")}
    assert [each["ips"][0]["address"] for each in results.values()] == ["10.88.0.2/24", "10.88.0.3/24"]
    host.plugin("DEL", conf, "a").succeeded()
    assert list(host.links("a")) == ["lo", "eth1"]
    host.plugin("CHECK", with_result(conf, results["eth1"]), "a", ifname="eth1").succeeded()
    host.plugin("DEL", conf, "a", ifname="eth1").succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("netns", ["/run/netns/a", ""])
def test_networks_of_one_container_are_independent(host: Host, backend: str, netns: str) -> None:
    conf = bridge_conf(ipMasqBackend=backend)
    other = {**conf, "name": "net2", "bridge": "cni1", "ipam": {"type": "cni-ipam", "subnet": "10.99.0.0/24"}}
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    result = host.plugin("ADD", other, "a", ifname="eth1").result
    host.plugin("DEL", conf, "a", netns=netns).succeeded()
    host.plugin("CHECK", with_result(other, result), "a", ifname="eth1").succeeded()
    host.plugin("DEL", other, "a", netns=netns, ifname="eth1").succeeded()
    host.assert_nothing_left()


def reference_conf(name: str, bridge: str, subnet: str) -> Json:
    ipam = {"type": "host-local", "subnet": subnet}
    return {
        "cniVersion": "1.0.0",
        "name": name,
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipam": ipam,
    }


@pytest.mark.every_way
def test_attachments_of_the_reference_are_taken_over(host: Host) -> None:
    conf, other = reference_conf("net1", "cni0", "10.88.0.0/24"), reference_conf("net2", "cni1", "10.99.0.0/24")
    host.add_netns("a")
    host.plugin("ADD", conf, "a", plugin=REFERENCE / "bridge").succeeded()
    host.plugin("ADD", other, "a", ifname="eth1", plugin=REFERENCE / "bridge").succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    assert list(host.links("a")) == ["lo", "eth1"]
    assert host.files("/var/lib/cni/networks/net1/10.*") == []
    host.plugin("DEL", conf, "a", ifname="eth1").succeeded()
    assert list(host.links("a")) == ["lo", "eth1"], "eth1 is a port of another network's bridge"
    host.plugin("DEL", other, "a", ifname="eth1").succeeded()
    assert list(host.links("a")) == ["lo"]
    host.assert_nothing_left()


@pytest.mark.every_way
def test_del_leaves_the_link_of_another_owner_alone(host: Host) -> None:
    conf = bridge_conf()
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a").result
    host.plugin("DEL", conf, "stranger", netns="/run/netns/a").succeeded()
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()


def test_del_leaves_the_hosts_own_links_alone(host: Host) -> None:
    host.shell("ip link add cni0 type bridge; ip link add eth0 type veth peer name port master cni0")
    host.plugin("DEL", bridge_conf(), "a", netns="/proc/self/ns/net").succeeded()
    assert {"eth0", "port", "cni0"} <= host.links().keys()


def test_del_leaves_a_link_that_only_shares_its_index_alone(host: Host) -> None:
    for name in ("a", "elsewhere"):
        host.add_netns(name)
    host.shell(
        # The container's link leads to another namespace, where its peer's index is that of a port here.
        "ip link add cni0 type bridge; ip link add port index 77 master cni0 type veth peer name behind;"
        "ip -n elsewhere link add peer index 77 type veth peer name eth0 netns a"
    )
    host.plugin("DEL", bridge_conf(), "a").succeeded()
    assert "port" in host.links()
    assert "eth0" in host.links("a")


def killed_add(host: Host, conf: Json, seconds: float) -> None:
    """An ADD whose process is killed after that time; a process that it started itself lives on."""
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "a",
        "CNI_NETNS": "/run/netns/a",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(BIN),
    }
    words = ("timeout", "--foreground", "--signal=KILL", f"{seconds:.3f}", BIN / "cni-bridge")
    host.run(*words, stdin=json.dumps(conf).encode(), env=environment, check=False)


def retry(host: Host, conf: Json) -> None:
    result = host.plugin("ADD", conf, "a").result
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    host.plugin("DEL", conf, "a").succeeded()


def delete(host: Host, conf: Json) -> None:
    host.plugin("DEL", conf, "a", netns="").succeeded()


def collect(host: Host, conf: Json) -> None:
    host.plugin("GC", {**conf, "cni.dev/valid-attachments": []}).succeeded()


def test_nothing_is_left_of_an_add_that_was_killed(host: Host, backend: str) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend, macspoofchk=True)
    host.add_netns("a")
    started = time.monotonic()
    host.plugin("ADD", conf, "a").succeeded()
    whole = time.monotonic() - started
    host.plugin("DEL", conf, "a").succeeded()
    moments = range(4, 13)  # of twelve; before, the interpreter starts and imports
    for moment, then in zip(moments, cycle((retry, delete, collect)), strict=False):
        killed_add(host, conf, whole * moment / 12)
        then(host, conf)
        assert list(host.links("a")) == ["lo"], f"killed after {moment}/12 of its time"
        host.assert_nothing_left()
