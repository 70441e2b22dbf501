"""Every key of the bridge configuration, by what the kernel then does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import serve_ipam
from tests.support import attaching
from tests.support.attaching import attach, detach, host_veth, unchanged
from tests.support.confs import DUAL_STACK, IPV4, add_outside, bridge_conf, with_result
from tests.support.host import BIN, REFERENCE, Host, Json

SCRIPTS = Path(attaching.__file__).parent
IPV6 = {"type": "cni-ipam", "subnet": "fd00:88::/64", "routes": [{"dst": "::/0"}]}
FOUR_RANGES = {
    "type": "cni-ipam",
    "ranges": [[{"subnet": each}] for each in ("10.88.0.0/24", "10.89.0.0/24", "fd00:88::/64", "fd00:89::/64")],
}


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def hold_lock(host: Host, path: str) -> subprocess.Popen[bytes]:
    """A process that holds the lock on this file or directory."""
    script = "echo held; exec sleep infinity"
    holder: subprocess.Popen[bytes] = host.start("flock", "--no-fork", path, "sh", "-c", script, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


def port_flags(host: Host, result: Json) -> Json:
    flags: Json = host.links()[host_veth(result)]["linkinfo"]["info_slave_data"]
    return flags


def with_routes(*routes: Json) -> Json:
    return {"ipam": {**DUAL_STACK, "routes": list(routes)}}


# The bridge


@pytest.mark.every_way
def test_bridge_is_made_once_and_outlives_its_ports(host: Host) -> None:
    conf = bridge_conf(bridge="br-test")
    attach(host, conf, "a")
    made = host.links()["br-test"]
    attach(host, conf, "b")
    detach(host, conf, "a", "b")
    attach(host, conf, "c")
    kept = host.links()["br-test"]
    assert made["linkinfo"]["info_kind"] == "bridge"
    assert "UP" in made["flags"]
    assert (kept["ifindex"], kept["address"]) == (made["ifindex"], made["address"])
    assert made["address"] not in {link["address"] for name, link in host.links().items() if name.startswith("veth")}


def test_existing_bridge_is_adopted_and_brought_up(host: Host) -> None:
    host.shell("ip link add cni0 address 02:00:00:00:00:01 type bridge")
    before = host.links()["cni0"]
    result = attach(host, bridge_conf())
    after = host.links()["cni0"]
    assert (after["ifindex"], after["address"]) == (before["ifindex"], "02:00:00:00:00:01")
    assert "UP" in after["flags"]
    assert result["interfaces"][0] == {"name": "cni0", "mac": "02:00:00:00:00:01"}
    assert host.links()[host_veth(result)]["master"] == "cni0"


def test_bridge_that_lost_its_mac_with_its_last_port_gets_a_gateway(host: Host) -> None:
    """A bridge whose address nobody set has its ports', and 00:00:00:00:00:00 once they are gone."""
    host.shell("ip link add cni0 type bridge")
    without_addresses = bridge_conf(name="l2", ipam=None)
    attach(host, without_addresses)
    detach(host, without_addresses)
    assert host.links()["cni0"]["address"] == "00:00:00:00:00:00"
    result = attach(host, bridge_conf(), "b")
    address = host.links()["cni0"]["address"]
    assert address == result["interfaces"][0]["mac"] != "00:00:00:00:00:00"
    host.ping("10.88.0.1", "b")
    attach(host, bridge_conf(), "c")
    host.plugin("DEL", bridge_conf(), "b").succeeded()
    assert host.links()["cni0"]["address"] == address


@pytest.mark.parametrize("backed_by", ["the configuration", "the default route"])
def test_mtu_of_all_three_links(host: Host, backed_by: str) -> None:
    if backed_by == "the default route":
        add_outside(host)
        host.shell("ip link set uplink mtu 1400; ip route del default")  # the IPv6 one is left
    conf = bridge_conf(mtu=1400 if backed_by == "the configuration" else None)
    result = attach(host, conf)
    assert [host.links()[name]["mtu"] for name in ("cni0", host_veth(result))] == [1400, 1400]
    assert host.links("a")["eth0"]["mtu"] == 1400
    assert [each.get("mtu") for each in result["interfaces"]] == [None, 1400, 1400]
    detach(host, conf)
    attach(host, conf, "b")
    assert host.links()["cni0"]["mtu"] == 1400


@pytest.mark.parametrize(
    ("conf", "speaks"),
    [
        pytest.param(bridge_conf(), False, id="IPv4 only"),
        pytest.param(bridge_conf(mtu=1000), False, id="IPv4 only, too small for IPv6"),
        pytest.param(bridge_conf(ipam=DUAL_STACK), True, id="both families"),
        pytest.param(bridge_conf(ipam=None, isGateway=None, ipMasq=None), True, id="layer 2 only"),
        pytest.param(bridge_conf(type="bridge"), True, id="as the reference"),
    ],
)
def test_only_who_may_need_ipv6_speaks_it(host: Host, conf: Json, speaks: bool) -> None:
    result = attach(host, conf)
    script = "until ip -6 addr show dev eth0 | grep -q 'scope link'; do sleep 0.1; done"
    host.shell(f'timeout 5 sh -c "{script}"' if speaks else "sleep 1; ! ip -6 addr show | grep 'scope link'", "a")
    assert host.shell(f"ip -6 addr show dev {host_veth(result)}") == "", "a bridge's port"
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    if conf.get("isGateway"):
        host.ping("10.88.0.1", "a")
    detach(host, conf)


def test_mtu_of_an_existing_bridge_is_raised(host: Host) -> None:
    host.shell("ip link add cni0 mtu 1400 type bridge")
    attach(host, bridge_conf(mtu=9000))
    assert host.links()["cni0"]["mtu"] == 9000
    assert host.links("a")["eth0"]["mtu"] == 9000


def test_promisc_mode(host: Host) -> None:
    attach(host, bridge_conf(promiscMode=True))
    assert "PROMISC" in host.links()["cni0"]["flags"]


@pytest.mark.parametrize(
    "keys", [{"vlan": 100}, {"vlan": 100, "isGateway": False}, {"vlanTrunk": [{"id": 7}]}], ids=str
)
@pytest.mark.parametrize("existing", [False, True], ids=["new bridge", "existing bridge"])
def test_vlan_names_the_kernel_feature_that_is_missing(host: Host, keys: Json, existing: bool) -> None:
    if host.shell("ip link add probe type bridge vlan_filtering 1 && ip link del probe && echo there", check=False):
        pytest.skip("this kernel has bridge VLAN filtering")
    if existing:
        host.shell("ip link add cni0 type bridge; ip link set cni0 up")
    host.add_netns("a")
    with unchanged(host, "a"):
        error = host.plugin("ADD", bridge_conf(**keys), "a").error
    assert error["code"] == 2
    assert "VLAN filtering" in error["msg"]
    host.assert_nothing_left()


# The gateway


@pytest.mark.parametrize(
    ("ipam", "gateways", "forwarding"),
    [
        (IPV4, ["10.88.0.1/24"], ("1", "0")),
        (IPV6, ["fd00:88::1/64"], ("0", "1")),
        (DUAL_STACK, ["10.88.0.1/24", "fd00:88::1/64"], ("1", "1")),
        (FOUR_RANGES, ["10.88.0.1/24", "10.89.0.1/24", "fd00:88::1/64", "fd00:89::1/64"], ("1", "1")),
        ({**IPV4, "gateway": "10.88.0.254"}, ["10.88.0.254/24"], ("1", "0")),
    ],
    ids=["v4", "v6", "dual", "two ranges a family", "configured"],
)
def test_gateway(host: Host, ipam: Json, gateways: list[str], forwarding: tuple[str, str]) -> None:
    settings = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    for setting in settings:
        host.sysctl(setting, "0")
    conf = bridge_conf(ipam=ipam)
    result = attach(host, conf)
    assert sorted(host.addresses("cni0")) == sorted(gateways)
    assert [each["gateway"] for each in result["ips"]] == [each.split("/")[0] for each in gateways]
    assert sorted(each["address"] for each in result["ips"]) == sorted(host.addresses("eth0", "a"))
    assert tuple(map(host.sysctl, settings)) == forwarding
    for each in result["ips"]:
        host.ping(each["gateway"], "a")
    detach(host, conf)
    assert sorted(host.addresses("cni0")) == sorted(gateways)


def test_no_gateway_unless_configured(host: Host) -> None:
    host.sysctl("net.ipv4.ip_forward", "0")
    conf = bridge_conf(isGateway=None, ipMasq=None, ipam={**IPV4, "routes": []})
    attach(host, conf, "a")
    attach(host, conf, "b")
    assert host.addresses("cni0") == []
    assert host.sysctl("net.ipv4.ip_forward") == "0"
    assert [each["dst"] for each in host.routes("a")] == ["10.88.0.0/24"]
    host.ping("10.88.0.3", "a")
    detach(host, conf, "a", "b")


@pytest.mark.parametrize(
    "routes",
    [[], [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}], [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}]],
    ids=["none from ipam", "without gateway from ipam", "with gateway from ipam"],
)
def test_default_gateway_gives_one_default_route_a_family(host: Host, routes: list[Json]) -> None:
    conf = bridge_conf(isGateway=None, isDefaultGateway=True, ipam={**DUAL_STACK, "routes": routes})
    result = attach(host, conf)
    assert sorted(each["dst"] for each in result["routes"]) == ["0.0.0.0/0", "::/0"]
    for family, gateway in ((4, "10.88.0.1"), (6, "fd00:88::1")):
        defaults = [each for each in host.routes("a", family) if each["dst"] == "default"]
        assert [(each["gateway"], each["dev"]) for each in defaults] == [(gateway, "eth0")]
    detach(host, conf)


@pytest.mark.parametrize(
    ("ipam", "other"),
    [(IPV4, "10.88.0.9/24"), (IPV4, "10.88.0.1/16"), (IPV6, "fd00:88::9/64")],
    ids=["v4", "v4, other prefix length", "v6"],
)
def test_force_address_replaces_an_overlapping_one(host: Host, ipam: Json, other: str) -> None:
    host.shell(
        f"ip link add cni0 address 02:00:00:00:00:01 type bridge; ip link set cni0 up; ip address add {other} dev cni0"
    )
    host.add_netns("a")
    with unchanged(host, "a"):
        error = host.plugin("ADD", bridge_conf(ipam=ipam), "a").error
    assert error["code"] == 103
    assert other in error["msg"]
    assert "forceAddress" in error["details"]
    result = host.plugin("ADD", bridge_conf(ipam=ipam, forceAddress=True), "a").result
    assert [address.split("/")[0] for address in host.addresses("cni0")] == [result["ips"][0]["gateway"]]
    assert other not in host.addresses("cni0")


def test_force_address_of_many_at_once(host: Host) -> None:
    host.shell("ip link add cni0 type bridge; ip link set cni0 up; ip address add 10.88.0.254/24 dev cni0")
    names = [f"c{number}" for number in range(8)]
    for name in names:
        host.add_netns(name)
    conf = bridge_conf(forceAddress=True)
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: host.plugin("ADD", conf, name), names))
    assert len({answer.result["ips"][0]["address"] for answer in answers}) == len(names)
    assert host.addresses("cni0") == ["10.88.0.1/24"]
    for name in names:
        host.ping("10.88.0.1", name)
    detach(host, conf, *names)


def test_addresses_that_do_not_overlap_coexist(host: Host) -> None:
    host.shell("ip link add cni0 type bridge; ip address add 10.99.0.1/24 dev cni0")
    attach(host, bridge_conf(forceAddress=True))
    assert sorted(host.addresses("cni0")) == ["10.88.0.1/24", "10.99.0.1/24"]


# The port


def test_hairpin_mode(host: Host) -> None:
    assert port_flags(host, attach(host, bridge_conf(), "a"))["hairpin"] is False
    assert port_flags(host, attach(host, bridge_conf(hairpinMode=True), "b"))["hairpin"] is True


def test_isolated_ports_reach_only_the_gateway(either_host: Host) -> None:
    host = either_host
    conf = bridge_conf(portIsolation=True, ipam=DUAL_STACK)
    for name in ("a", "b"):
        assert port_flags(host, attach(host, conf, name))["isolated"] is True
    attach(host, bridge_conf(ipam=DUAL_STACK), "c")
    for neighbour in ("10.88.0.3", "fd00:88::3"):
        host.ping(neighbour, "a", reached=False)
    for other in ("10.88.0.1", "fd00:88::1", "10.88.0.4", "fd00:88::4"):
        host.ping(other, "a")
    detach(host, conf, "a", "b", "c")


def test_mac_spoof_check_drops_other_source_addresses(either_host: Host) -> None:
    host = either_host
    conf = bridge_conf(macspoofchk=True)
    mac = attach(host, conf)["interfaces"][2]["mac"]
    host.ping("10.88.0.1", "a")
    host.shell("ip link set eth0 address 02:66:66:66:66:66", netns="a")
    host.ping("10.88.0.1", "a", reached=False)
    host.shell(f"ip link set eth0 address {mac}", netns="a")
    host.ping("10.88.0.1", "a")
    detach(host, conf)


# The container's interface


@pytest.mark.parametrize("enabled", [False, True])
def test_addresses_are_usable_at_return(host: Host, enabled: bool) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, enabledad=enabled)
    attach(host, conf)
    tentative = host.shell("ip -6 address show dev eth0 tentative", netns="a")
    assert "fd00:88::2" not in tentative
    assert host.shell("cat /proc/sys/net/ipv6/conf/eth0/accept_dad", netns="a").strip() == ("1" if enabled else "0")
    host.ping("fd00:88::1", "a")


def test_duplicate_address_is_detected(host: Host) -> None:
    without_addresses = bridge_conf(name="l2", ipam=None)
    attach(host, without_addresses, "squatter")
    host.shell("ip link set eth0 up; ip address add fd00:88::2/64 dev eth0 nodad", netns="squatter")
    conf = bridge_conf(ipam=DUAL_STACK, enabledad=True)
    host.add_netns("a")
    error = host.plugin("ADD", conf, "a").error
    assert error["code"] == 105
    assert "fd00:88::2" in error["msg"]
    assert host.links("a").keys() == {"lo"}
    detach(host, without_addresses, "squatter")


def test_disabled_container_interface_stays_down(host: Host) -> None:
    conf = bridge_conf(disableContainerInterface=True, ipam=None)
    result = attach(host, conf)
    assert "UP" not in host.links("a")["eth0"]["flags"]
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    detach(host, conf)


@pytest.mark.parametrize(
    ("keys", "cni_args", "expected"),
    [
        ({}, "MAC=02:00:00:00:00:0A", "02:00:00:00:00:0a"),
        ({"args": {"cni": {"mac": "02:00:00:00:00:0b"}}}, "MAC=02:00:00:00:00:0a", "02:00:00:00:00:0b"),
        (
            {"runtimeConfig": {"mac": "02:00:00:00:00:0c"}, "args": {"cni": {"mac": "02:00:00:00:00:0b"}}},
            "MAC=02:00:00:00:00:0a",
            "02:00:00:00:00:0c",
        ),
    ],
    ids=["CNI_ARGS", "args.cni", "runtimeConfig"],
)
def test_mac_as_requested(host: Host, keys: Json, cni_args: str, expected: str) -> None:
    result = attach(host, bridge_conf(**keys), env={"CNI_ARGS": cni_args})
    assert host.links("a")["eth0"]["address"] == expected
    assert result["interfaces"][2]["mac"] == expected
    host.ping("10.88.0.1", "a")


def test_route_attributes_are_applied(host: Host) -> None:
    routes = [
        {"dst": "10.1.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 50},
        {"dst": "10.2.0.0/16", "table": 100},
        {"dst": "10.3.0.0/16", "scope": 253},
        {"dst": "10.4.0.0/16", "gw": "10.88.0.7"},
        {"dst": "fd01::/64", "mtu": 1300, "priority": 60, "table": 100},
    ]
    conf = bridge_conf(ipam={**DUAL_STACK, "routes": routes})
    result = attach(host, conf)
    assert result["routes"] == routes
    main = {each["dst"]: each for each in host.routes("a")}
    assert main["10.1.0.0/16"]["metrics"] == [{"mtu": 1300, "advmss": 1200}]
    assert (main["10.1.0.0/16"]["metric"], main["10.1.0.0/16"]["gateway"]) == (50, "10.88.0.1")
    assert "10.2.0.0/16" not in main
    assert main["10.3.0.0/16"]["scope"] == "link"
    assert "gateway" not in main["10.3.0.0/16"]
    assert main["10.4.0.0/16"]["gateway"] == "10.88.0.7"
    (in_table,) = host.routes("a", table="100")
    assert (in_table["dst"], in_table["gateway"]) == ("10.2.0.0/16", "10.88.0.1")
    (ipv6,) = host.routes("a", 6, table="100")
    assert (ipv6["dst"], ipv6["gateway"], ipv6["metric"], ipv6["metrics"]) == (
        "fd01::/64",
        "fd00:88::1",
        60,
        [{"mtu": 1300}],
    )
    detach(host, conf)


def test_without_ipam_the_bridge_carries_whatever_the_containers_choose(either_host: Host) -> None:
    host = either_host
    conf = bridge_conf(ipam=None)
    for number, name in enumerate(("a", "b"), start=1):
        result = attach(host, conf, name)
        assert "ips" not in result
        assert "UP" in host.links(name)["eth0"]["flags"]
        host.shell(f"ip address add 192.0.2.{number}/24 dev eth0", netns=name)
    host.ping("192.0.2.2", "a")
    assert host.addresses("cni0") == []
    detach(host, conf, "a", "b")


# Neighbours


def test_new_addresses_are_announced(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK)
    attach(host, conf, "neighbour")
    words = (sys.executable, "-IS", SCRIPTS / "listen.py", "eth0")
    listener = host.start(*words, netns="neighbour", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert listener.stdout.readline() == b"ready\n"
    mac = attach(host, conf)["interfaces"][2]["mac"]
    missing = {f"arp 10.88.0.3 {mac}", f"na fd00:88::3 {mac}"}
    for line in listener.stdout:
        missing.discard(line.decode().strip())
        if not missing:
            break
    assert not missing


def test_neighbours_reach_a_reused_address_at_once(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, args={"cni": {"ips": ["10.88.0.9", "fd00:88::9"]}})
    attach(host, bridge_conf(ipam=DUAL_STACK), "neighbour")
    attach(host, conf, "first")
    for address in ("10.88.0.9", "fd00:88::9"):
        host.ping(address, "neighbour")
    host.plugin("DEL", conf, "first").succeeded()
    second = attach(host, conf, "second")["interfaces"][2]["mac"]
    known = host.shell("ip neigh show dev eth0 to 10.88.0.9; ip neigh show dev eth0 to fd00:88::9", netns="neighbour")
    assert known.count(f"lladdr {second}") == 2
    for address in ("10.88.0.9", "fd00:88::9"):
        host.ping(address, "neighbour")
    detach(host, conf, "neighbour", "second")


# Repeats and failures


def test_repeated_add_gives_the_same_result_and_changes_nothing(host: Host, ipam_path: str, backend: str) -> None:
    serve_ipam(host, ipam_path)
    routes: list[Json] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.2.0.0/16", "table": 100}]
    conf = bridge_conf(
        **with_routes(*routes), ipMasqBackend=backend, macspoofchk=True, portIsolation=True, hairpinMode=True, mtu=1400
    )
    result = attach(host, conf)
    with unchanged(host, "a"):
        assert host.plugin("ADD", conf, "a").result == result
    detach(host, conf)


@pytest.mark.every_way
def test_repeated_add_keeps_what_others_changed_inside(host: Host) -> None:
    conf = bridge_conf("1.0.0", ipam=DUAL_STACK)
    first = attach(host, conf)
    host.shell("ip address add 192.0.2.7/24 dev eth0", netns="a")
    tuning = {"cniVersion": "1.0.0", "name": "net1", "type": "tuning", "mac": "02:00:00:00:00:0a"}
    host.plugin("ADD", with_result(tuning, first), "a", plugin=REFERENCE / "tuning").succeeded()
    result = host.plugin("ADD", conf, "a").result
    assert result["interfaces"][2]["mac"] == host.links("a")["eth0"]["address"] == "02:00:00:00:00:0a"
    assert sorted(host.addresses("eth0", "a")) == ["10.88.0.2/24", "192.0.2.7/24", "fd00:88::2/64"]
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    detach(host, conf)


@pytest.mark.every_way
def test_repeated_add_that_fails_keeps_the_attachment_of_the_first(host: Host, backend: str) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend)
    result = attach(host, conf)
    host.shell("ip address del 10.88.0.1/24 dev cni0; ip address add 10.88.0.254/24 dev cni0")
    with unchanged(host, "a"):
        assert host.plugin("ADD", conf, "a").code == 103
    host.shell("ip address del 10.88.0.254/24 dev cni0; ip address add 10.88.0.1/24 dev cni0")
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    host.ping("10.88.0.1", "a")
    detach(host, conf)


def test_repeated_add_that_waits_in_vain_for_iptables_keeps_the_attachment(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend="iptables")
    result = attach(host, conf)
    host.shell("echo 'request_timeout: 2' > /etc/cni-bridge/config.yaml")
    holder = hold_lock(host, "/run/xtables.lock")
    with unchanged(host, "a"):
        assert host.plugin("ADD", conf, "a").code == 11
    holder.kill()
    holder.wait()
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    detach(host, conf)


def test_del_keeps_the_address_as_long_as_the_rules_cannot_be_removed(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend="iptables")
    attach(host, conf)
    held, rules = host.leases(), host.iptables_rules()
    host.shell("echo 'request_timeout: 2' > /etc/cni-bridge/config.yaml")
    holder = hold_lock(host, "/run/xtables.lock")
    assert host.plugin("DEL", conf, "a").code == 11
    assert list(host.links("a")) == ["lo"]
    assert (host.leases(), host.iptables_rules()) == (held, rules)
    holder.kill()
    holder.wait()
    detach(host, conf)


@pytest.mark.parametrize("keys", [{}, {"ipMasqBackend": "iptables"}, {"ipMasq": False}, {"bridge": "cni1"}], ids=str)
def test_failed_add_that_asks_for_something_else_leaves_nothing(host: Host, keys: Json) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend="nftables")
    attach(host, conf)
    other = bridge_conf(**{**conf, **keys, **with_routes({"dst": "10.1.0.0/16", "gw": "203.0.113.1"})})
    assert host.plugin("ADD", other, "a").code == 105
    assert list(host.links("a")) == ["lo"]
    host.assert_nothing_left()
    host.plugin("ADD", conf, "a").succeeded()
    host.ping("10.88.0.1", "a")
    detach(host, conf)


def test_add_that_asks_for_another_address_gives_the_old_one_up(host: Host, ipam_path: str, backend: str) -> None:
    serve_ipam(host, ipam_path)
    conf = bridge_conf(ipMasqBackend=backend)
    attach(host, conf)
    moved = host.plugin("ADD", conf, "a", env={"CNI_ARGS": "IP=10.88.0.9"}).result
    assert [each["address"] for each in moved["ips"]] == ["10.88.0.9/24"]
    assert [each["address"] for each in host.leases()] == ["10.88.0.9/24"]
    attach(host, conf, "b", env={"CNI_ARGS": "IP=10.88.0.2"})
    assert host.addresses("eth0", "a") == ["10.88.0.9/24"]
    assert host.addresses("eth0", "b") == ["10.88.0.2/24"]
    rules = " ".join(host.nft_elements() if backend == "nftables" else host.iptables_rules())
    assert all(each in rules for each in ("10.88.0.9", "10.88.0.2"))
    host.ping("10.88.0.2", "a")
    host.plugin("CHECK", with_result(conf, moved), "a", env={"CNI_ARGS": "IP=10.88.0.9"}).succeeded()
    detach(host, conf, "a", "b")


def test_add_that_asks_for_an_address_of_another_container_has_none_afterwards(host: Host) -> None:
    conf = bridge_conf()
    attach(host, conf, "a")
    attach(host, conf, "b")
    assert host.plugin("ADD", conf, "a", env={"CNI_ARGS": "IP=10.88.0.3"}).code == 102
    assert list(host.links("a")) == ["lo"]
    assert [each["address"] for each in host.leases()] == ["10.88.0.3/24"]
    attach(host, conf, "c", env={"CNI_ARGS": "IP=10.88.0.2"})
    assert (host.addresses("eth0", "b"), host.addresses("eth0", "c")) == (["10.88.0.3/24"], ["10.88.0.2/24"])
    detach(host, conf, "a", "b", "c")


@pytest.mark.every_way
def test_add_that_asks_for_another_bridge_takes_its_address_along(host: Host, backend: str) -> None:
    conf = bridge_conf(ipMasqBackend=backend, isGateway=None)
    first, other = attach(host, conf), {**conf, "bridge": "cni1"}
    moved = host.plugin("ADD", other, "a").result
    assert moved["ips"] == first["ips"]
    assert host.links()[host_veth(moved)]["master"] == "cni1"
    assert [each for each in host.links() if each.startswith("veth")] == [host_veth(moved)]
    host.add_netns("b")
    assert host.plugin("ADD", conf, "b", env={"CNI_ARGS": "IP=10.88.0.2"}).code == 102
    assert host.addresses("eth0", "a") == ["10.88.0.2/24"]
    host.plugin("CHECK", with_result(other, moved), "a").succeeded()
    detach(host, other)


def test_add_that_asks_for_another_mtu_and_mac_gives_them(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, macspoofchk=True, mtu=1500)
    attach(host, conf)
    other = {**conf, "mtu": 1400, "runtimeConfig": {"mac": "02:00:00:00:00:0a"}}
    result = host.plugin("ADD", other, "a").result
    assert [each.get("mtu") for each in result["interfaces"]] == [None, 1400, 1400]
    inner, outer = host.links("a")["eth0"], host.links()[host_veth(result)]
    assert (inner["mtu"], outer["mtu"]) == (1400, 1400)
    assert inner["address"] == result["interfaces"][2]["mac"] == "02:00:00:00:00:0a"
    host.plugin("CHECK", with_result(other, result), "a").succeeded()
    host.ping("10.88.0.1", "a")
    detach(host, other)


@pytest.mark.every_way
def test_add_for_an_owner_in_another_namespace_moves_it(host: Host, backend: str) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend)
    paths = [host.add_netns("old"), host.add_netns("new")]
    first, second = (host.plugin("ADD", conf, "a", netns=path).result for path in paths)
    assert second["ips"] == first["ips"]
    assert host.links("old").keys() == {"lo"}
    assert [each for each in host.links() if each.startswith("veth")] == [host_veth(second)]
    host.ping("10.88.0.1", "new")
    host.ping("fd00:88::1", "new")
    host.plugin("CHECK", with_result(conf, second), "a", netns=paths[1]).succeeded()
    host.plugin("DEL", conf, "a", netns=paths[1]).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize(
    ("keys", "spoil", "code", "word"),
    [
        (with_routes({"dst": "10.1.0.0/16", "gw": "203.0.113.1"}), "", 105, "203.0.113.1"),
        (with_routes({"dst": "fd01::/64", "gw": "fd02::1"}), "", 105, "fd02::1"),
        (with_routes({"dst": "10.1.0.0/16", "table": -1}), "", 7, "table"),
        (with_routes({"dst": "10.1.0.0/16", "gw": "10.88.0.7", "scope": 254}), "", 105, "10.1.0.0/16"),
        ({"ipam": DUAL_STACK, "mtu": 1000}, "", 7, "mtu 1000"),
        ({"ipam": DUAL_STACK}, "ip netns exec a ip link add eth0 type veth peer name p", 103, "eth0"),
        (
            {"ipam": DUAL_STACK},
            "nft add table inet cni_bridge; nft add chain inet cni_bridge masquerade4; "
            "nft 'add map inet cni_bridge masquerade4 { type ipv4_addr : verdict; }'",
            106,
            "nftables",
        ),
    ],
    ids=["gateway", "IPv6 gateway", "table", "scope", "mtu too small for IPv6", "interface taken", "rules refused"],
)
@pytest.mark.parametrize("shared", [False, True], ids=["bridge of its own", "shared bridge"])
def test_failed_add_leaves_nothing(host: Host, keys: Json, spoil: str, code: int, word: str, shared: bool) -> None:
    subnet = {"type": "cni-ipam", "subnet": "10.99.0.0/24"}
    other = bridge_conf(name="other", type="bridge", ipMasq=None, ipam=subnet)  # makes no rules
    if shared:
        attach(host, other, "other")
    host.add_netns("a")
    if spoil:
        host.shell(spoil)
    with unchanged(host, "a"):
        error = host.plugin("ADD", bridge_conf(**keys), "a").error
    assert error["code"] == code
    assert word in error["msg"]
    if shared:
        detach(host, other, "other")


@pytest.mark.parametrize("state", ["up", "down"])
@pytest.mark.parametrize("other", ["10.88.0.9/24", "fd00:88::9/64"])
def test_failed_add_gives_a_bridge_back_as_it_was(host: Host, state: str, other: str) -> None:
    host.shell(
        "ip link add cni0 address 02:00:00:00:00:01 mtu 1400 type bridge; "
        "echo 1 > /proc/sys/net/ipv6/conf/cni0/keep_addr_on_down; "
        f"ip link set cni0 {state}; ip address add {other} dev cni0"
    )
    host.add_netns("a")
    conf = bridge_conf(
        **with_routes({"dst": "10.1.0.0/16", "gw": "203.0.113.1"}), forceAddress=True, promiscMode=True, mtu=9000
    )
    with unchanged(host, "a"):
        assert host.plugin("ADD", conf, "a").code == 105
    assert host.addresses("cni0") == [other]
    host.assert_nothing_left()


def test_failed_add_without_room_for_a_gateway_leaves_nothing(host: Host) -> None:
    conf = bridge_conf("1.0.0", ipam={"type": "static", "addresses": [{"address": "10.88.0.7/32"}]})
    host.add_netns("a")
    with unchanged(host, "a"):
        error = host.plugin("ADD", conf, "a").error
    assert error["code"] == 7
    assert "10.88.0.7/32" in error["msg"]
    host.assert_nothing_left()


def test_add_does_not_wait_forever_for_the_lock_of_the_bridges(host: Host) -> None:
    host.shell("mkdir -p /run/cni-bridge/locks; echo 'request_timeout: 5' > /etc/cni-bridge/config.yaml")
    holder = hold_lock(host, "/run/cni-bridge/locks")
    host.add_netns("a")
    with unchanged(host, "a"):
        answer = host.plugin("ADD", bridge_conf(ipam=DUAL_STACK), "a", timeout=10)
    assert answer.code == 11
    assert "/run/cni-bridge/locks" in answer.error["msg"]
    host.assert_nothing_left()
    holder.kill()
    holder.wait()
    host.plugin("ADD", bridge_conf(ipam=DUAL_STACK), "a").succeeded()
    detach(host, bridge_conf(ipam=DUAL_STACK))


@pytest.mark.every_way
def test_record_names_what_was_changed_on_the_host(host: Host) -> None:
    def changed(name: str) -> list[str]:
        shown = json.loads(host.run(BIN / "cni-bridgectl", "attachments", "--json").stdout)
        return next(each["changed"] for each in shown if each["owner"]["container_id"] == name)

    for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        host.sysctl(setting, "0")
    conf = bridge_conf(ipam=DUAL_STACK)
    made = {
        "made bridge cni0",
        *(f"turned on {each}" for each in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")),
    }
    attach(host, conf, "a")
    assert set(changed("a")) >= {*made, "added address 10.88.0.1/24", "added address fd00:88::1/64"}
    attach(host, conf, "b")
    assert changed("b") == []
    before = changed("a")
    host.plugin("ADD", conf, "a").succeeded()
    assert changed("a") == before
    detach(host, conf, "a", "b")


def test_record_names_an_address_that_was_replaced(host: Host) -> None:
    host.shell("ip link add cni0 type bridge; ip link set cni0 up; ip address add 10.88.0.9/24 dev cni0")
    attach(host, bridge_conf(forceAddress=True, mtu=9000, promiscMode=True))
    (shown,) = json.loads(host.run(BIN / "cni-bridgectl", "attachments", "--json").stdout)
    assert {"removed address 10.88.0.9/24", "added address 10.88.0.1/24", "set cni0 promiscuous"} <= set(
        shown["changed"]
    )
    assert any("MTU of cni0 from 1500 to 9000" in each for each in shown["changed"])
    detach(host, bridge_conf())


# The host's own routes


def test_host_keeps_the_route_that_a_router_advertised(host: Host) -> None:
    host.sysctl("net.ipv6.conf.all.forwarding", "0")
    host.add_netns("router")
    host.shell("ip link add uplink type veth peer name eth0 netns router; ip link set uplink up")
    host.sysctl("net.ipv6.conf.uplink.accept_ra", "1")
    host.shell("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up", netns="router")
    wait_until(lambda: host.shell("ip -6 route show dev eth0", netns="router"), "the router has no IPv6 address")
    advertise = (sys.executable, "-IS", SCRIPTS / "advertise.py", "eth0")

    def learns_default_route() -> bool:
        host.run(*advertise, netns="router")
        return bool(default_routes())

    def default_routes() -> list[tuple[str, str]]:
        return [(each["dev"], each["protocol"]) for each in host.routes(family=6) if each["dst"] == "default"]

    wait_until(learns_default_route, "the host learns no route")
    host.add_netns("a")
    answer = host.plugin("ADD", bridge_conf(ipam=DUAL_STACK), "a").succeeded()
    assert host.sysctl("net.ipv6.conf.all.forwarding") == "1"
    assert default_routes() == [("uplink", "ra")]
    assert host.sysctl("net.ipv6.conf.uplink.accept_ra") == "2"
    assert "accept_ra" in answer.stderr
    assert "uplink" in answer.stderr
    host.shell("ip -6 route del default")
    wait_until(learns_default_route, "the host does not learn a route any more")
