"""What users of the reference plugins reported as defects does not happen here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, with_result
from tests.support.host import Host, Json

ONE_ADDRESS = {"type": "cni-ipam", "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.9"}
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.fixture
def rebooted(host: Host, tmp_path: Path) -> Iterator[Host]:
    """A host that kept its state directory over a reboot, which came while container `a` had the only address."""
    host.environment["CNI_BRIDGE_STATE_DIR"] = str(tmp_path)
    host.add_netns("a")
    host.plugin("ADD", bridge_conf(ipam=ONE_ADDRESS), "a").succeeded()
    host.stop_daemon()
    after = Host(environment=dict(host.environment))
    after.shell(f"echo 11111111-2222-3333-4444-555555555555 > /run/boot_id; mount --bind /run/boot_id {BOOT_ID}")
    yield after
    after.close()


def test_container_comes_back_after_a_reboot(rebooted: Host) -> None:
    rebooted.add_netns("a")
    conf = bridge_conf(ipam=ONE_ADDRESS)
    assert rebooted.plugin("ADD", conf, "a").result["ips"][0]["address"] == "10.88.0.9/24"
    rebooted.plugin("DEL", conf, "a").succeeded()
    rebooted.assert_nothing_left()


def test_leases_from_before_a_reboot_block_nobody(rebooted: Host) -> None:
    rebooted.add_netns("b")
    conf = bridge_conf(ipam=ONE_ADDRESS)
    assert rebooted.plugin("ADD", conf, "b").result["ips"][0]["address"] == "10.88.0.9/24"
    rebooted.plugin("DEL", conf, "b").succeeded()
    rebooted.assert_nothing_left()


def test_full_disk_costs_no_address(host: Host) -> None:
    host.add_netns("a")
    conf = bridge_conf(ipam=ONE_ADDRESS)
    host.plugin("ADD", conf, "a").succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    host.shell(
        "mount -o remount,size=1m /var/lib/cni-bridge; dd if=/dev/zero of=/var/lib/cni-bridge/filler", check=False
    )
    refused = host.plugin("ADD", conf, "a")
    assert "/var/lib/cni-bridge" in refused.error["msg"]
    assert list(host.links("a")) == ["lo"]
    host.run("rm", "/var/lib/cni-bridge/filler")
    assert host.plugin("ADD", conf, "a").result["ips"][0]["address"] == "10.88.0.9/24"
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


def test_rules_do_not_grow_with_containers(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend="nftables", macspoofchk=True)
    numbers = []
    for name in ("a", "b", "c"):
        host.add_netns(name)
        host.plugin("ADD", conf, name).succeeded()
        ruleset = json.loads(host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
        numbers.append(sum("rule" in each or "chain" in each for each in ruleset))
    assert len(set(numbers)) == 1


def test_ipv6_is_usable_at_once(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK)
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    for netns, link in (("a", "eth0"), ("", "cni0")):
        assert "tentative" not in host.shell(f"ip -6 address show dev {link}", netns=netns), link
    host.ping("fd00:88::1", "a")


def test_bridge_that_lost_its_last_port_still_takes_a_gateway(host: Host) -> None:
    host.add_netns("a")
    layer2 = bridge_conf(ipam=None, isGateway=False)
    host.shell("ip link add cni0 type bridge")  # with a MAC address that follows its ports
    host.plugin("ADD", layer2, "a").succeeded()
    host.plugin("DEL", layer2, "a").succeeded()
    host.plugin("ADD", bridge_conf(), "a").succeeded()
    host.ping("10.88.0.1", "a")
    mac = host.links()["cni0"]["address"]
    host.plugin("DEL", bridge_conf(), "a").succeeded()
    assert host.links()["cni0"]["address"] == mac != "00:00:00:00:00:00"


def test_bridge_serves_several_ipv4_subnets(host: Host) -> None:
    ipam = {"type": "cni-ipam", "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "10.89.0.0/24"}]]}
    conf = bridge_conf(ipam=ipam)
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a").result
    assert host.addresses("cni0") == ["10.88.0.1/24", "10.89.0.1/24"]
    for address in ("10.88.0.1", "10.89.0.1"):
        host.ping(address, "a")
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()


def test_mtu_follows_the_uplink_and_raises_the_bridge(host: Host) -> None:
    add_outside(host)
    host.shell("ip link set uplink mtu 1400")
    conf = bridge_conf()
    for name in ("a", "b"):
        host.add_netns(name)
    result = host.plugin("ADD", conf, "a").result
    veth = result["interfaces"][1]["name"]
    assert [host.links()[each]["mtu"] for each in ("cni0", veth)] + [host.links("a")["eth0"]["mtu"]] == [1400] * 3
    assert [each.get("mtu") for each in result["interfaces"][1:]] == [1400, 1400]
    host.plugin("ADD", {**conf, "mtu": 9000}, "b").succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    assert host.links()["cni0"]["mtu"] == 9000


def test_churn_of_links_disturbs_nobody(host: Host) -> None:
    churn = "while :; do ip link add churn0 type veth peer name churn1; ip link del churn0; done"
    pairs = "".join(f"link add old{number} type veth peer name new{number}\n" for number in range(200))
    host.run("ip", "-batch", "-", stdin=pairs.encode())
    host.start("sh", "-c", churn)
    conf = bridge_conf(ipam=DUAL_STACK)
    host.add_netns("a")
    for _ in range(5):
        result = host.plugin("ADD", conf, "a").result
        host.plugin("CHECK", with_result(conf, result), "a").succeeded()
        host.plugin("STATUS", conf).succeeded()
        host.plugin("GC", {**conf, "cni.dev/valid-attachments": []}).succeeded()
        assert list(host.links("a")) == ["lo"]


def routes_of(host: Host, conf: Json, **selection: str) -> list[Json]:
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a").result
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    return host.routes("a", **selection)


def test_route_metrics_are_applied(host: Host) -> None:
    route = {"dst": "10.200.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 77, "table": 100}
    conf = bridge_conf(ipam={"type": "cni-ipam", "subnet": "10.88.0.0/24", "routes": [route]})
    (found,) = routes_of(host, conf, table="100")
    assert (found["dst"], found["metric"], found["metrics"]) == ("10.200.0.0/16", 77, [{"mtu": 1300, "advmss": 1200}])


def test_first_address_is_a_containers_where_there_is_no_gateway(host: Host) -> None:
    ipam = {"type": "cni-ipam", "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.1"}
    conf = bridge_conf(isGateway=False, ipMasq=False, ipam=ipam)
    assert [each["dst"] for each in routes_of(host, conf)] == ["10.88.0.0/24"]
    assert host.addresses("eth0", "a") == ["10.88.0.1/24"]
    assert host.addresses("cni0") == []


def test_no_route_to_a_gateway_that_nobody_has(host: Host) -> None:
    ipam = {"type": "cni-ipam", "subnet": "10.88.0.0/24", "routes": [{"dst": "10.200.0.0/16"}]}
    found = routes_of(host, bridge_conf(isGateway=False, ipMasq=False, ipam=ipam))
    assert {each["dst"]: each.get("gateway") for each in found} == {"10.88.0.0/24": None, "10.200.0.0/16": None}


@pytest.mark.parametrize(
    "routes",
    [
        pytest.param([{"dst": "10.200.0.0/16", "gw": "10.88.0.254"}], id="another router"),
        pytest.param([{"dst": "10.88.1.0/24"}, {"dst": "10.200.0.0/16", "gw": "10.88.0.1"}], id="another subnet"),
        pytest.param(
            [{"dst": "169.254.1.1/32", "scope": 253}, {"dst": "10.200.0.0/16", "gw": "169.254.1.1"}],
            id="router outside of the subnet",
        ),
        pytest.param(
            [{"dst": "10.200.0.0/16", "gw": "10.88.0.253"}, {"dst": "10.200.0.0/16", "gw": "10.88.0.254"}],
            id="two routers to one destination",
        ),
    ],
)
def test_routes_of_every_shape(host: Host, routes: list[Json]) -> None:
    ipam = {"type": "cni-ipam", "subnet": "10.88.0.0/24", "routes": routes}
    found = {each["dst"] for each in routes_of(host, bridge_conf(ipam=ipam))}
    assert found == {"10.88.0.0/24", *(each["dst"].removesuffix("/32") for each in routes)}


def test_check_of_a_network_without_addresses(host: Host) -> None:
    conf = bridge_conf(ipam=None, isGateway=False)
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a").result
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    host.plugin("DEL", with_result(conf, result), "a").succeeded()
    host.assert_nothing_left()


def test_default_gateway_beside_a_default_route_of_ipam(host: Host) -> None:
    found = routes_of(host, bridge_conf(isDefaultGateway=True))
    assert [each.get("gateway") for each in found if each["dst"] == "default"] == ["10.88.0.1"]


def test_the_hosts_own_namespace_is_refused_in_one_document(host: Host) -> None:
    before = host.links()
    answer = host.plugin("ADD", bridge_conf(), "a", netns="/proc/self/ns/net")
    assert answer.code == 8
    assert host.links().keys() == before.keys()
    host.assert_nothing_left()
