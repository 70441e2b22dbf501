"""Subnets of networks on a real host: chosen clear of its routes, addresses and nameservers, or refused."""

from __future__ import annotations

import json

import pytest

from tests.conftest import serve_ipam
from tests.support.confs import bridge_conf
from tests.support.host import BIN, Host, Json


def pools(host: Host) -> list[Json]:
    found: list[Json] = json.loads(host.run(BIN / "cni-bridgectl", "pools", "--json").stdout)
    return found


def add_link(host: Host, name: str, address: str) -> None:
    host.shell(
        f"ip link add {name} type veth peer name {name}p; ip address add {address} dev {name}; ip link set {name} up"
    )


def test_a_network_without_a_subnet_is_clear_of_the_host(host: Host, ipam_path: str) -> None:
    """moby #46615: what a VPN has routes to, in any table, is not for containers; its halves of 0/0 do not count."""
    add_link(host, "uplink", "10.168.0.9/24")
    host.shell(
        "ip link set uplinkp up; ip route add 0.0.0.0/1 dev uplink; ip route add 128.0.0.0/1 dev uplink; "
        "ip route add 10.168.1.0/24 via 10.168.0.1; ip route add 10.168.2.0/23 dev uplink table 1234; "
        "ip route add blackhole 10.168.4.0/24; echo 'nameserver 10.168.5.53' > /etc/resolv.conf"
    )
    serve_ipam(host, ipam_path)
    conf = bridge_conf(ipam={"type": "cni-ipam", "ranges": [[{"subnet": "0.0.0.0/24"}], [{"subnet": "::/64"}]]})
    for name in ("a", "b"):
        host.add_netns(name)
    first, second = (host.plugin("ADD", conf, name).result["ips"] for name in ("a", "b"))
    assert first[0]["address"] == "10.168.6.2/24"
    assert first[1]["address"].startswith("fd")
    assert second[0]["address"] == "10.168.6.3/24"
    host.ping(second[0]["address"].split("/")[0], "a")
    host.ping(second[1]["address"].split("/")[0], "a")
    chosen, ula = pools(host)
    assert (chosen["subnet"], chosen["origin"], chosen["leased"]) == ("10.168.6.0/24", "default", 2)
    assert "clear of" in chosen["reason"]
    for name in ("a", "b"):
        host.plugin("DEL", conf, name).succeeded()
    assert [each["subnet"] for each in pools(host)] == ["10.168.6.0/24", ula["subnet"]]
    host.assert_nothing_left()


def test_a_subnet_that_is_in_use_is_refused_with_both_sides_named(host: Host, ipam_path: str) -> None:
    add_link(host, "lan", "192.0.2.77/24")
    serve_ipam(host, ipam_path)
    for name in ("a", "b"):
        host.add_netns(name)
    taken = bridge_conf(ipam={"type": "cni-ipam", "subnet": "192.0.2.0/25"})
    refused = host.plugin("ADD", taken, "a")
    assert refused.code == 104
    assert "192.0.2.0/25" in refused.error["msg"] and "192.0.2.77/24 of lan" in refused.error["msg"]
    assert host.plugin("STATUS", taken).code == 50
    shared = bridge_conf(ipam={"type": "cni-ipam", "subnet": "192.0.2.0/25", "allowOverlap": True})
    host.plugin("ADD", shared, "a").succeeded()
    other = bridge_conf(name="net2", bridge="cni1", ipam={"type": "cni-ipam", "subnet": "192.0.2.64/26"})
    refused = host.plugin("ADD", other, "b")
    assert refused.code == 104
    assert '192.0.2.64/26 of network "net2" overlaps 192.0.2.0/25 of network "net1"' in refused.error["msg"]
    assert list(host.links("b")) == ["lo"]
    host.plugin("DEL", shared, "a").succeeded()
    host.assert_nothing_left()


def test_a_changed_subnet_waits_for_the_containers_of_the_old_one(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    for name in ("a", "b"):
        host.add_netns(name)
    old = bridge_conf(ipam={"type": "cni-ipam", "subnet": "10.88.0.0/24"})
    wider = bridge_conf(ipam={"type": "cni-ipam", "subnet": "10.88.0.0/16"}, forceAddress=True)
    moved = bridge_conf(ipam={"type": "cni-ipam", "subnet": "10.99.0.0/24"})
    host.plugin("ADD", old, "a").succeeded()
    refused = host.plugin("ADD", moved, "b")
    assert refused.code == 104
    assert "10.88.0.2 (net1/a/eth0)" in refused.error["msg"]
    assert host.plugin("ADD", wider, "b").result["ips"][0]["address"] == "10.88.0.3/16"
    for name in ("a", "b"):
        host.plugin("DEL", wider, name).succeeded()
    assert host.plugin("ADD", moved, "b").result["ips"][0]["address"] == "10.99.0.2/24"
    host.plugin("DEL", moved, "b").succeeded()
    assert [each["subnet"] for each in pools(host)] == ["10.99.0.0/24"]
    host.assert_nothing_left()


@pytest.mark.parametrize("source", ["args", "CNI_ARGS"])
def test_a_sticky_container_gets_its_address_back(host: Host, source: str) -> None:
    conf = bridge_conf(**({"args": {"cni": {"sticky": "db-0"}}} if source == "args" else {}))
    args = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=db-0"}
    if source == "CNI_ARGS":
        args["CNI_ARGS"] += ";STICKY=db-0"
    for name in ("a", "b", "c"):
        host.add_netns(name)
    address = host.plugin("ADD", conf, "a", env=args).result["ips"][0]["address"]
    (lease,) = host.leases()
    assert (lease["name"], lease["reserved_for"]) == ("prod/db-0", "sticky db-0")
    assert lease["netns"]["path"] == "/run/netns/a"
    assert lease["mac"] == host.links("a")["eth0"]["address"]
    host.plugin("DEL", conf, "a").succeeded()
    host.plugin("ADD", bridge_conf(), "b").succeeded()
    assert host.plugin("ADD", conf, "c", env=args).result["ips"][0]["address"] == address
    for name in ("b", "c"):
        host.plugin("DEL", conf, name).succeeded()
    host.assert_nothing_left()
