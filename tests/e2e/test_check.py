"""CHECK passes after every kind of ADD, and names whatever has gone since without changing anything."""

from __future__ import annotations

import pytest

from tests.conftest import serve_ipam
from tests.support.attaching import attach, detach, host_veth, unchanged
from tests.support.confs import DUAL_STACK, IPV4, bridge_conf, with_result
from tests.support.host import REFERENCE, Host, Json

ROUTES = [*({"dst": each} for each in ("0.0.0.0/0", "::/0")), {"dst": "10.2.0.0/16", "table": 100}]
EVERYTHING: Json = {
    "ipam": {**DUAL_STACK, "routes": ROUTES},
    "hairpinMode": True,
    "portIsolation": True,
    "macspoofchk": True,
    "mtu": 1400,
}


def fails(host: Host, conf: Json, result: Json, *words: str) -> None:
    """CHECK reports these words, with code 100, and changes nothing."""
    with unchanged(host, "a"):
        error = host.plugin("CHECK", with_result(conf, result), "a").error
    said = f"{error['msg']}\n{error.get('details', '')}"
    assert error["code"] == 100, said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"ipam": DUAL_STACK},
        {"ipam": None},
        {"ipam": None, "disableContainerInterface": True},
        {"isGateway": None, "isDefaultGateway": True, "ipam": DUAL_STACK},
        {"isGateway": None, "ipMasq": None},
        {"ipam": {"type": "cni-ipam", "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "10.89.0.0/24"}]]}},
        {"ipam": {"type": "static", "addresses": [{"address": "10.88.0.7/24"}]}, "cniVersion": "1.0.0"},
        {"ipam": DUAL_STACK, "enabledad": True},
        {"promiscMode": True},
        {"mtu": 9000, "cniVersion": "0.4.0"},
        EVERYTHING,
    ],
    ids=str,
)
def test_passes_after_add(host: Host, keys: Json) -> None:
    conf = bridge_conf(**{"version": keys.get("cniVersion", "1.1.0"), **keys})
    result = attach(host, conf)
    with unchanged(host, "a"):
        assert host.plugin("CHECK", with_result(conf, result), "a").succeeded().stdout == ""
    detach(host, with_result(conf, result))


def test_passes_with_either_firewall_and_ipam(host: Host, ipam_path: str, backend: str) -> None:
    serve_ipam(host, ipam_path)
    conf = bridge_conf(ipMasqBackend=backend, **EVERYTHING)
    results = {name: attach(host, conf, name) for name in ("a", "b")}
    host.plugin("DEL", conf, "b").succeeded()
    host.plugin("CHECK", with_result(conf, results["a"]), "a").succeeded()


@pytest.mark.every_way
def test_passes_by_another_path_to_the_namespace(host: Host) -> None:
    conf = bridge_conf()
    result = attach(host, conf)
    host.shell("ln -s netns /run/alias")
    host.plugin("CHECK", with_result(conf, result), "a", netns="/run/alias/a").succeeded()


def test_passes_on_a_bridge_that_others_made_promiscuous(host: Host) -> None:
    conf = bridge_conf()
    result = attach(host, conf)
    host.shell("ip link set cni0 promisc on")
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()


def test_passes_behind_a_plugin_that_changed_mtu_and_mac(host: Host) -> None:
    conf = bridge_conf("1.0.0")
    tuning = {"cniVersion": "1.0.0", "name": "net1", "type": "tuning", "mtu": 1300, "mac": "02:00:00:00:00:0a"}
    first = attach(host, conf)
    last = host.plugin("ADD", with_result(tuning, first), "a", plugin=REFERENCE / "tuning").result
    assert (host.links("a")["eth0"]["mtu"], host.links("a")["eth0"]["address"]) == (1300, "02:00:00:00:00:0a")
    host.plugin("CHECK", with_result(conf, last), "a").succeeded()
    host.plugin("CHECK", with_result(tuning, last), "a", plugin=REFERENCE / "tuning").succeeded()
    host.plugin("DEL", with_result(tuning, last), "a", plugin=REFERENCE / "tuning").succeeded()
    detach(host, with_result(conf, last))


INSIDE = "nsenter --net=/run/netns/a"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("ip link set VETH mtu 1300", ["VETH", "mtu 1300", "1400"]),
        ("bridge link set dev VETH hairpin off", ["VETH", "hairpin"]),
        ("bridge link set dev VETH isolated off", ["VETH", "isolation"]),
        ("ip link set VETH down", ["VETH is down"]),
        ("ip link set VETH address 02:66:66:66:66:66", ["VETH", "02:66:66:66:66:66"]),
        ("ip link set cni0 address 02:66:66:66:66:66", ["cni0", "02:66:66:66:66:66"]),
        ("ip link set VETH nomaster", ["VETH", "cni0"]),
        ("ip link add other type bridge; ip link set VETH master other", ["VETH", "cni0"]),
        ("ip link del VETH", ["VETH is gone", "eth0"]),
        ("ip link set cni0 down", ["cni0 is down"]),
        ("ip link del cni0", ["cni0"]),
        ("ip address del 10.88.0.1/24 dev cni0", ["gateway", "10.88.0.1/24"]),
        ("ip address del fd00:88::1/64 dev cni0", ["gateway", "fd00:88::1/64"]),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", ["forwarding", "net.ipv4.ip_forward"]),
        ("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding", ["forwarding", "net.ipv6.conf.all.forwarding"]),
        (f"{INSIDE} ip link set eth0 down", ["eth0 is down"]),
        (f"{INSIDE} ip link set eth0 address 02:66:66:66:66:66", ["eth0", "02:66:66:66:66:66"]),
        (f"{INSIDE} ip link set eth0 down; {INSIDE} ip link set eth0 name eth9", ["eth0 is gone"]),
        (f"{INSIDE} ip address del 10.88.0.2/24 dev eth0", ["10.88.0.2/24", "eth0"]),
        (f"{INSIDE} ip address del fd00:88::2/64 dev eth0", ["fd00:88::2/64", "eth0"]),
        (f"{INSIDE} ip route del default", ["0.0.0.0/0", "10.88.0.1"]),
        (f"{INSIDE} ip route replace default via 10.88.0.9", ["0.0.0.0/0", "10.88.0.1"]),
        (f"{INSIDE} ip -6 route del default", ["::/0", "fd00:88::1"]),
        (f"{INSIDE} ip route del 10.2.0.0/16 table 100", ["10.2.0.0/16"]),
    ],
    ids=lambda value: value.replace(INSIDE, "inside") if isinstance(value, str) else "",
)
def test_names_what_has_gone(host: Host, spoil: str, words: list[str]) -> None:
    conf = bridge_conf(**EVERYTHING)
    result = attach(host, conf)
    host.shell(spoil.replace("VETH", host_veth(result)))
    fails(host, conf, result, *(word.replace("VETH", host_veth(result)) for word in words))
    detach(host, with_result(conf, result))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("nft delete element inet cni_bridge masquerade4 '{ 10.88.0.2 }'", ["masquerade4", "10.88.0.2"]),
        ("nft delete element inet cni_bridge local6 '{ fd00:88::2 . \"cni0\" }'", ["local6", "fd00:88::2"]),
        ("nft flush chain inet cni_bridge postrouting", ["nftables rule", "leaves its network"]),
        ("nft flush table inet cni_bridge", ["nftables rule", "leaves its network"]),
        (
            "nft flush chain inet cni_bridge postrouting; nft delete chain inet cni_bridge postrouting",
            ["nftables rule"],
        ),
        ("nft delete table inet cni_bridge", ["masquerade4", "10.88.0.2", "fd00:88::2"]),
        ("nft delete table bridge cni_bridge", ["mac_checked"]),
        ("nft flush set bridge cni_bridge mac_allowed", ["mac_allowed"]),
        ("nft flush ruleset", ["masquerade4", "mac_checked"]),
    ],
)
def test_names_missing_nftables_rules(host: Host, spoil: str, words: list[str]) -> None:
    conf = bridge_conf(ipMasqBackend="nftables", **EVERYTHING)
    result = attach(host, conf)
    host.shell(spoil)
    fails(host, conf, result, "nftables", *words)
    detach(host, with_result(conf, result))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("iptables-legacy -t nat -D POSTROUTING 1", ["POSTROUTING", "CNI-BRIDGE", "IPv4"]),
        ("ip6tables-legacy -t nat -D POSTROUTING 1", ["POSTROUTING", "CNI-BRIDGE", "IPv6"]),
        ("iptables-legacy -t nat -D CNI-BRIDGE 4", ["MASQUERADE", "10.88.0.2"]),
        ("ip6tables-legacy -t nat -D CNI-BRIDGE 3", ["RETURN", "fd00:88::2"]),
        ("iptables-legacy -t nat -F", ["POSTROUTING", "10.88.0.2"]),
        ("iptables-legacy -t nat -F; iptables-legacy -t nat -X CNI-BRIDGE", ["chain CNI-BRIDGE", "IPv4"]),
    ],
)
def test_names_missing_iptables_rules(host: Host, spoil: str, words: list[str]) -> None:
    conf = bridge_conf(ipMasqBackend="iptables", **EVERYTHING)
    result = attach(host, conf)
    host.shell(spoil)
    fails(host, conf, result, "iptables", *words)
    detach(host, with_result(conf, result))


def test_names_a_missing_lease(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = bridge_conf()
    result = attach(host, conf)
    host.plugin("DEL", conf, "a", plugin="cni-ipam").succeeded()
    fails(host, conf, result, "lease", "10.88.0.2")


def test_names_a_missing_record(host: Host) -> None:
    conf = bridge_conf()
    result = attach(host, conf)
    host.shell("rm -r /run/cni-bridge/attachments")
    fails(host, conf, result, "not attached", "record")


def test_does_not_know_a_container_without_record_and_lease(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = bridge_conf()
    result = attach(host, conf)
    host.plugin("DEL", conf, "a").succeeded()
    with unchanged(host, "a"):
        error = host.plugin("CHECK", with_result(conf, result), "a").error
    assert error["code"] == 3
    assert "not attached" in error["msg"]


def test_names_a_bridge_that_is_not_promiscuous_any_more(host: Host) -> None:
    conf = bridge_conf(promiscMode=True)
    result = attach(host, conf)
    host.shell("ip link set cni0 promisc off")
    fails(host, conf, result, "cni0", "promisc")


@pytest.mark.every_way
def test_names_another_namespace(host: Host) -> None:
    conf = bridge_conf()
    result = attach(host, conf)
    error = host.plugin("CHECK", with_result(conf, result), "a", netns=host.add_netns("b")).error
    assert error["code"] == 100
    assert "namespace" in error["msg"]


@pytest.mark.every_way
def test_reports_every_difference_at_once(host: Host) -> None:
    conf = bridge_conf(**EVERYTHING)
    result = attach(host, conf)
    veth = host_veth(result)
    host.shell(f"ip link set {veth} mtu 1300; {INSIDE} ip route del default; nft delete table inet cni_bridge")
    fails(host, conf, result, "mtu 1300", "0.0.0.0/0", "masquerade4")


def test_needs_the_previous_result(host: Host) -> None:
    attach(host, bridge_conf())
    error = host.plugin("CHECK", bridge_conf(), "a").error
    assert error["code"] == 7
    assert "prevResult" in error["msg"]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1"])
def test_is_refused_in_versions_without_it(host: Host, version: str) -> None:
    error = host.plugin("CHECK", bridge_conf(version, ipam=IPV4), "a").error
    assert (error["code"], error["msg"]) == (1, "config version does not allow CHECK")
