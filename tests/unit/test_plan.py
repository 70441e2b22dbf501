"""From a configuration, an owner and its addresses to the desired state of the attachment."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_bridge.cni.errors import Code
from cni_bridge.cni.netconf import Backend, NetConf, parse_netconf
from cni_bridge.cni.ports import Protocol
from cni_bridge.cni.result import InterfaceEntry
from cni_bridge.plan import Attachment, Made, build_result, plan, plan_links
from cni_bridge.policy import (
    LinkPolicy,
    Masquerade,
    OpenPorts,
    Policy,
    Publication,
    Shield,
    SpoofCheck,
    publications_of,
    publishing,
)
from cni_bridge.tag import container_mac, host_ifname, host_mac, owner_tag
from ipam.api import Address, Allocation, Dns, Lease, NetnsRef, Route
from tests.support.calls import OWNER, refusal, request

NETNS = NetnsRef(path="/run/netns/c1", device=4, inode=4026532000)
DEFAULT4, DEFAULT6 = Route(dst=ip_network("0.0.0.0/0")), Route(dst=ip_network("::/0"))
MADE = Made(
    bridge_mac="02:00:00:00:00:01", gateway_mac="02:00:00:00:00:02", container_mac="02:00:00:00:00:03", ready=True
)


def conf(**keys: object) -> NetConf:
    return parse_netconf(request(**{"ipam": {"type": "cni-ipam"}, **keys}))


def allocation(*leases: str, routes: tuple[Route, ...] = (), dns: Dns | None = None) -> Allocation:
    """Leases written as `ADDRESS/LENGTH` or `ADDRESS/LENGTH via GATEWAY`."""
    made = []
    for text in leases:
        address, _, gateway = text.partition(" via ")
        made.append(
            Lease(
                owner=OWNER,
                address=ip_interface(address),
                gateway=ip_address(gateway) if gateway else None,
                since=datetime.fromtimestamp(0, UTC),
            )
        )
    return Allocation(leases=tuple(made), routes=routes, dns=dns or Dns())


def attach(
    conf: NetConf,
    given: Allocation,
    *,
    configured: frozenset[Address] | None = None,
    backend: Backend = Backend.NFTABLES,
) -> Attachment:
    return plan(
        conf,
        OWNER,
        NETNS,
        plan_links(conf, OWNER, backend=backend, uplink_mtu=1450),
        given,
        request="digest",
        own_ipam=True,
        configured_gateways=configured,
        backend=backend,
    )


def routes(attachment: Attachment) -> list[str]:
    """The container's routes as `DST` or `DST via GATEWAY`."""
    return [f"{each.dst} via {each.gw}" if each.gw else str(each.dst) for each in attachment.container.routes]


def gateways(attachment: Attachment) -> list[str]:
    return [str(each) for each in attachment.gateway.addresses] if attachment.gateway is not None else []


DUAL = allocation("10.88.0.2/24 via 10.88.0.1", "fd00:88::2/64 via fd00:88::1", routes=(DEFAULT4, DEFAULT6))


def test_names_follow_from_the_owner() -> None:
    made = attach(conf(bridge="br1"), DUAL)
    assert (made.owner, made.netns, made.bridge.name, made.ipam_type) == (OWNER, NETNS, "br1", "cni-ipam")
    assert (made.port.name, made.port.alias, made.port.mac) == (host_ifname(OWNER), owner_tag(OWNER), host_mac(OWNER))
    assert (made.container.ifname, made.container.mac) == ("eth0", container_mac(OWNER))
    assert made.container.addresses == (ip_interface("10.88.0.2/24"), ip_interface("fd00:88::2/64"))


def test_flags_reach_the_links() -> None:
    plain = attach(conf(), DUAL)
    assert (plain.port.hairpin, plain.port.isolated, plain.bridge.promisc) == (False, False, False)
    assert (plain.container.up, plain.container.dad, plain.bridge.vlan_filtering) == (True, False, False)
    made = attach(conf(hairpinMode=True, portIsolation=True, enabledad=True, vlan=7, preserveDefaultVlan=True), DUAL)
    assert (made.port.hairpin, made.port.isolated, made.container.dad) == (True, True, True)
    assert (made.port.vlan, made.port.preserve_default_vlan, made.bridge.vlan_filtering) == (7, True, True)
    trunk = attach(conf(promiscMode=True, vlanTrunk=[{"minID": 2, "maxID": 3}]), DUAL)
    assert (trunk.bridge.promisc, trunk.port.vlan_trunk, trunk.bridge.vlan_filtering) == (True, (2, 3), True)
    down = attach(conf(ipam=None, disableContainerInterface=True), allocation())
    assert down.container.up is False


def test_the_requested_mac_is_the_containers() -> None:
    made = attach(conf(runtimeConfig={"mac": "02:00:00:00:00:0C"}, macspoofchk=True), DUAL)
    assert made.container.mac == "02:00:00:00:00:0c"
    assert made.policies[0].spoof_check == SpoofCheck(port=made.port.name, mac="02:00:00:00:00:0c")


@pytest.mark.parametrize(("keys", "mtu", "configured"), [({}, 1450, False), ({"mtu": 1400}, 1400, True)])
def test_the_mtu_is_the_uplinks_unless_configured(keys: dict[str, object], mtu: int, configured: bool) -> None:
    made = attach(conf(**keys), DUAL)
    assert (made.bridge.mtu, made.port.mtu, made.container.mtu) == (mtu, mtu, mtu)
    assert made.bridge.mtu_configured is configured


def test_a_link_without_addresses() -> None:
    made = attach(conf(ipam=None, isDefaultGateway=True, ipMasq=True), allocation())
    assert (made.gateway, made.container.addresses, made.container.routes) == (None, (), ())
    assert made.policies == (Policy(backend=Backend.NFTABLES, owner=OWNER, link=replace(LINK, isolated=True)),)
    assert attach(conf(ipam=None), allocation()).policies == ()


def test_gateway_addresses_are_on_the_bridge_only_where_this_host_is_the_gateway() -> None:
    assert attach(conf(), DUAL).gateway is None
    made = attach(conf(isGateway=True, forceAddress=True), DUAL)
    assert gateways(made) == ["10.88.0.1/24", "fd00:88::1/64"]
    assert made.gateway is not None
    assert (made.gateway.link, made.gateway.vlan, made.gateway.force) == ("cni0", 0, True)


def test_a_gateway_that_ipam_does_not_name_is_the_subnets_first_host() -> None:
    given = allocation("10.88.0.2/24", "fd00:88::2/64")
    made = attach(conf(isGateway=True), given)
    assert gateways(made) == ["10.88.0.1/24", "fd00:88::1/64"]
    result = build_result(conf(isGateway=True), made, MADE, "/run/netns/c1")
    assert [str(each.gateway) for each in result.ips] == ["10.88.0.1", "fd00:88::1"]


def test_several_ranges_of_one_family_have_a_gateway_each_and_none_twice() -> None:
    given = allocation(
        "10.88.0.2/24 via 10.88.0.1", "10.89.0.2/24 via 10.89.0.1", "10.88.0.200/24 via 10.88.0.1", routes=(DEFAULT4,)
    )
    made = attach(conf(isGateway=True), given)
    assert gateways(made) == ["10.88.0.1/24", "10.89.0.1/24"]
    assert routes(made) == ["0.0.0.0/0 via 10.88.0.1"]
    result = build_result(conf(isGateway=True), made, MADE, "/run/netns/c1")
    assert [str(each.gateway) for each in result.ips] == ["10.88.0.1", "10.89.0.1", "10.88.0.1"]


def test_the_gateway_of_an_access_vlan_has_a_link_of_its_own() -> None:
    made = attach(conf(isGateway=True, vlan=7, ipMasq=True), DUAL)
    assert made.gateway is not None
    assert (made.gateway.link, made.gateway.vlan) == ("cni0.7", 7)
    assert {each.local_links for each in made.policies[0].masquerade} == {("cni0", "cni0.7")}


@pytest.mark.parametrize(
    ("configured", "added", "installed"),
    [
        pytest.param(
            (),
            ["0.0.0.0/0 via 10.88.0.1", "::/0 via fd00:88::1"],
            ["0.0.0.0/0 via 10.88.0.1", "::/0 via fd00:88::1"],
            id="none",
        ),
        pytest.param(
            (DEFAULT4, DEFAULT6), [], ["0.0.0.0/0 via 10.88.0.1", "::/0 via fd00:88::1"], id="without gateway"
        ),
        pytest.param(
            (Route(dst=DEFAULT4.dst, gw=ip_address("10.88.0.9")),),
            ["::/0 via fd00:88::1"],
            ["0.0.0.0/0 via 10.88.0.9", "::/0 via fd00:88::1"],
            id="with another gateway",
        ),
        pytest.param(
            (Route(dst=ip_network("10.9.0.0/16")),),
            ["0.0.0.0/0 via 10.88.0.1", "::/0 via fd00:88::1"],
            ["10.9.0.0/16 via 10.88.0.1", "0.0.0.0/0 via 10.88.0.1", "::/0 via fd00:88::1"],
            id="another destination",
        ),
    ],
)
def test_is_default_gateway_adds_one_default_route_a_family(
    configured: tuple[Route, ...], added: list[str], installed: list[str]
) -> None:
    given = allocation("10.88.0.2/24 via 10.88.0.1", "fd00:88::2/64 via fd00:88::1", routes=configured)
    settings = conf(isDefaultGateway=True)
    made = attach(settings, given, configured=frozenset())
    assert routes(made) == installed
    result = build_result(settings, made, MADE, "/run/netns/c1")
    assert result.routes[: len(configured)] == configured
    assert [f"{each.dst} via {each.gw}" for each in result.routes[len(configured) :]] == added


def test_is_default_gateway_adds_nothing_for_a_family_without_address() -> None:
    assert routes(attach(conf(isDefaultGateway=True), allocation("10.88.0.2/24"))) == ["0.0.0.0/0 via 10.88.0.1"]


SUBNET_ROUTE = Route(dst=ip_network("10.9.0.0/16"))


NOBODYS: frozenset[Address] = frozenset({ip_address("10.88.0.9")})
CONFIGURED: frozenset[Address] = NOBODYS | {ip_address("10.88.0.1")}


@pytest.mark.parametrize(
    ("keys", "gateways", "route", "installed"),
    [
        pytest.param({}, NOBODYS, SUBNET_ROUTE, "10.9.0.0/16", id="nobody's gateway gets no route"),
        pytest.param({}, NOBODYS, DEFAULT4, "0.0.0.0/0 via 10.88.0.1", id="but the default route"),
        pytest.param(
            {}, CONFIGURED, SUBNET_ROUTE, "10.9.0.0/16 via 10.88.0.1", id="a configured gateway is somebody's"
        ),
        pytest.param({}, None, SUBNET_ROUTE, "10.9.0.0/16 via 10.88.0.1", id="so is all that another ipam answers"),
        pytest.param({"isGateway": True}, NOBODYS, SUBNET_ROUTE, "10.9.0.0/16 via 10.88.0.1", id="this host is one"),
        pytest.param(
            {"isGateway": True},
            NOBODYS,
            Route(dst=SUBNET_ROUTE.dst, scope=253),
            "10.9.0.0/16",
            id="a route of link scope has no gateway",
        ),
        pytest.param(
            {"isGateway": True},
            NOBODYS,
            Route(dst=SUBNET_ROUTE.dst, gw=ip_address("10.88.0.7")),
            "10.9.0.0/16 via 10.88.0.7",
            id="its own gateway stays",
        ),
    ],
)
def test_a_route_without_gateway(
    keys: dict[str, object], gateways: frozenset[Address] | None, route: Route, installed: str
) -> None:
    given = allocation("10.88.0.2/24 via 10.88.0.1", routes=(route,))
    assert routes(attach(conf(**keys), given, configured=gateways)) == [installed]


def test_a_route_of_a_family_without_gateway_is_on_link() -> None:
    given = allocation("10.88.0.2/24 via 10.88.0.1", routes=(DEFAULT6,))
    assert routes(attach(conf(isGateway=True), given)) == ["::/0"]


def test_a_route_keeps_all_its_attributes() -> None:
    route = Route(
        dst=SUBNET_ROUTE.dst, gw=ip_address("10.88.0.7"), mtu=1300, advmss=1260, priority=5, table=100, scope=0
    )
    assert attach(conf(), allocation("10.88.0.2/24", routes=(route,))).container.routes == (route,)


@pytest.mark.parametrize("keys", [{}, {"ipMasqBackend": "iptables"}])
def test_masquerade_covers_every_address(keys: dict[str, object]) -> None:
    made = attach(conf(ipMasq=True, **keys), DUAL)
    assert made.policies == (
        Policy(
            backend=Backend.IPTABLES if keys else Backend.NFTABLES,
            owner=OWNER,
            masquerade=(
                Masquerade(address=ip_address("10.88.0.2"), local_links=("cni0",)),
                Masquerade(address=ip_address("fd00:88::2"), local_links=("cni0",)),
            ),
        ),
    )


def test_masquerade_takes_the_hosts_backend_where_none_is_configured() -> None:
    assert attach(conf(ipMasq=True), DUAL, backend=Backend.IPTABLES).policies[0].backend is Backend.IPTABLES


def test_the_spoof_check_is_in_nftables_whatever_masquerades() -> None:
    made = attach(conf(ipMasq=True, ipMasqBackend="iptables", macspoofchk=True), DUAL)
    assert [each.backend for each in made.policies] == [Backend.IPTABLES, Backend.NFTABLES]
    assert made.policies[1].spoof_check == SpoofCheck(port=host_ifname(OWNER), mac=container_mac(OWNER))


def published(*mappings: tuple[int, int] | tuple[int, int, str] | tuple[int, int, str, str]) -> dict[str, object]:
    """The runtime's wish for mappings of host port, container port, address of the host and protocol."""
    keys = ("hostPort", "containerPort", "hostIP", "protocol")
    return {"runtimeConfig": {"portMappings": [dict(zip(keys, each, strict=False)) for each in mappings]}}


def rules(attachment: Attachment) -> Policy:
    """The last policy, which has all but the masquerading."""
    return attachment.policies[-1]


FOUR, SIX = ip_address("10.88.0.2"), ip_address("fd00:88::2")


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ((8080, 80), [(None, FOUR), (None, SIX)]),
        ((8080, 80, "0.0.0.0"), [(None, FOUR)]),
        ((8080, 80, "::"), [(None, SIX)]),
        ((8080, 80, "127.0.0.1"), [(ip_address("127.0.0.1"), FOUR)]),
        ((8080, 80, "2001:db8::1"), [(ip_address("2001:db8::1"), SIX)]),
    ],
)
def test_ports_are_published_for_each_family_that_they_are_meant_for(
    mapping: tuple[int, int], expected: list[tuple[Address | None, Address]]
) -> None:
    made = attach(conf(isGateway=True, ipMasq=True, **published(mapping)), DUAL)
    assert publications_of(made.policies) == rules(made).publications
    assert publications_of(made.policies) == tuple(
        Publication(protocol=Protocol.TCP, host_ip=host_ip, host_port=8080, address=address, container_port=80)
        for host_ip, address in expected
    )


def test_ports_lead_to_the_first_address_of_a_family_and_keep_what_is_asked_of_them() -> None:
    given = allocation("10.88.0.2/24", "10.89.0.2/24")
    wish = published((53, 54, "", "udp"), (54, 55, "", "udp"))
    made = attach(conf(isGateway=True, snat=False, masqAll=True, **wish), given)
    assert publications_of(made.policies) == (
        Publication(
            protocol=Protocol.UDP,
            host_ip=None,
            host_port=53,
            address=FOUR,
            container_port=54,
            count=2,
            snat=False,
            masquerade_all=True,
        ),
    )


def test_a_port_for_a_family_without_address_is_refused_once_the_addresses_are_known() -> None:
    settings = conf(isGateway=True, **published((8080, 80, "::1")))
    assert publications_of(attach(settings, allocation()).policies) == ()
    error = refusal(attach, settings, allocation("10.88.0.2/24"))
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith("runtimeConfig.portMappings: [::1]:8080/tcp is for a family of which there is no")


@pytest.mark.parametrize(
    ("keys", "shielded"),
    [
        ({"ipMasq": True}, True),
        ({"ipMasq": True, "gatewayMode": "nat"}, True),
        ({"ipMasq": False, "gatewayMode": "nat"}, True),
        ({"ipMasq": False}, False),
        ({"ipMasq": True, "allowDirectRouting": True}, False),
        ({"ipMasq": True, "gatewayMode": "nat-unprotected"}, False),
        ({"ipMasq": True, "internal": True}, False),  # nothing comes in anyway
        ({"ipMasq": True, "isGateway": False}, False),
        ({"ipMasq": True, "type": "bridge"}, False),
        ({"ipMasq": True, "type": "bridge", "gatewayMode": "nat"}, True),
    ],
)
def test_who_is_shielded(keys: dict[str, object], shielded: bool) -> None:
    made = attach(conf(**{"isGateway": True, **keys}), DUAL)
    shields = tuple(each for policy in made.policies for each in policy.shields)
    assert shields == ((Shield(address=FOUR), Shield(address=SIX)) if shielded else ())


def test_what_is_routed_is_open_at_its_own_ports_and_uses_none_of_the_hosts() -> None:
    made = attach(conf(isGateway=True, gatewayMode="routed", **published((8080, 80), (53, 53, "", "udp"))), DUAL)
    opened = (OpenPorts(protocol=Protocol.TCP, port=80), OpenPorts(protocol=Protocol.UDP, port=53))
    assert rules(made).shields == tuple(Shield(address=each, routed=True, opened=opened) for each in (FOUR, SIX))
    assert publications_of(made.policies) == ()


LINK = LinkPolicy(link="cni0", isolated=False, internal=False, icc=True)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, replace(LINK, isolated=True)),
        ({"isolated": False}, LINK),  # it may have been another
        ({"isGateway": False}, None),
        ({"isGateway": False, "isolated": True}, None),
        ({"isGateway": False, **published((80, 80))}, replace(LINK, isolated=True)),
        ({"type": "bridge"}, None),
        ({"type": "bridge", "isolated": True}, replace(LINK, isolated=True)),
        ({"type": "bridge", "gatewayMode": "nat"}, LINK),
        ({"type": "bridge", **published((80, 80))}, LINK),
        ({"isolated": False, **published((80, 80))}, LINK),
        ({"isolated": False, "internal": True}, replace(LINK, internal=True)),
        ({"isolated": False, "icc": False}, replace(LINK, icc=False)),
        ({"isolated": False, "trustedInterfaces": ["eth1"]}, replace(LINK, trusted=("eth1",))),
        ({"isolated": False, "icc": False, "vlan": 7}, replace(LINK, link="cni0.7", icc=False)),
    ],
)
def test_what_holds_for_the_link(keys: dict[str, object], expected: LinkPolicy | None) -> None:
    made = attach(conf(**{"isGateway": True, **keys}), DUAL)
    assert (rules(made).link if made.policies else None) == expected


def test_one_backend_has_one_policy_and_a_host_without_nftables_has_all_but_spoof_checks_in_iptables() -> None:
    settings = conf(isGateway=True, ipMasq=True, macspoofchk=True, **published((80, 80)))
    [everything] = attach(settings, DUAL).policies
    assert everything.backend == Backend.NFTABLES
    assert everything.masquerade and everything.shields and everything.publications and everything.spoof_check
    filtered, checked = attach(settings, DUAL, backend=Backend.IPTABLES).policies
    assert filtered == replace(everything, backend=Backend.IPTABLES, spoof_check=None)
    assert checked == Policy(backend=Backend.NFTABLES, owner=OWNER, spoof_check=everything.spoof_check)


def test_an_internal_network_has_no_default_route_and_masquerades_nothing() -> None:
    given = allocation("10.88.0.2/24 via 10.88.0.1", routes=(DEFAULT4, SUBNET_ROUTE))
    settings = conf(isDefaultGateway=True, ipMasq=True, internal=True)
    made = attach(settings, given)
    assert routes(made) == ["10.9.0.0/16 via 10.88.0.1"]
    assert build_result(settings, made, MADE, "").routes == (SUBNET_ROUTE,)
    assert gateways(made) == ["10.88.0.1/24"]
    assert not any(each.masquerade for each in made.policies)
    assert rules(made).link == replace(LINK, isolated=True, internal=True)


@pytest.mark.parametrize(
    ("keys", "hairpin"), [({"hairpinMode": True}, True), ({"icc": False}, False), (published((80, 80)), True)]
)
def test_published_ports_need_hairpin(keys: dict[str, object], hairpin: bool) -> None:
    assert attach(conf(isGateway=True, **keys), DUAL).port.hairpin == hairpin


@pytest.mark.parametrize(
    ("keys", "backend", "isolated", "apart"),
    [
        ({}, Backend.NFTABLES, False, ""),
        ({"icc": False}, Backend.NFTABLES, False, host_ifname(OWNER)),
        ({"icc": False}, Backend.IPTABLES, True, ""),
        ({"icc": False, "ipMasq": True, "ipMasqBackend": "iptables"}, Backend.NFTABLES, False, host_ifname(OWNER)),
        ({"icc": False, "isGateway": False}, Backend.NFTABLES, False, host_ifname(OWNER)),
        ({"portIsolation": True}, Backend.NFTABLES, True, ""),
        ({"portIsolation": True, "icc": False}, Backend.NFTABLES, True, host_ifname(OWNER)),
    ],
)
def test_icc_is_kept_from_ports_by_nftables_or_by_the_bridge(
    keys: dict[str, object], backend: Backend, isolated: bool, apart: str
) -> None:
    made = attach(conf(**{"isGateway": True, **keys}), DUAL, backend=backend)
    assert made.port.isolated == isolated
    assert {each.apart for each in made.policies if each.backend == Backend.NFTABLES} | {""} == {apart, ""}


@pytest.mark.parametrize(
    ("keys", "mac", "addresses"),
    [
        ({"macspoofchk": True}, container_mac(OWNER), None),
        ({"ipspoofchk": True}, "", (FOUR, SIX)),
        ({"macspoofchk": True, "ipspoofchk": True}, container_mac(OWNER), (FOUR, SIX)),
    ],
)
def test_what_a_spoof_check_allows(keys: dict[str, object], mac: str, addresses: tuple[Address, ...] | None) -> None:
    made = attach(conf(**keys), DUAL)
    assert rules(made).spoof_check == SpoofCheck(port=host_ifname(OWNER), mac=mac, addresses=addresses)


def test_publications_are_replaced_where_they_are_and_the_rest_stays() -> None:
    wish = published((80, 80), (443, 443))
    policies = attach(conf(isGateway=True, ipMasq=True, ipMasqBackend="iptables", **wish), DUAL).policies
    served = publications_of(policies)[:1]
    changed = publishing(policies, served)
    assert publications_of(changed) == served
    assert changed[0] == policies[0]
    assert publishing(changed, publications_of(policies)) == policies


def test_dns_of_the_runtime_is_in_the_result() -> None:
    settings = conf(dns={"nameservers": ["10.0.0.54"]}, runtimeConfig={"dns": {"servers": ["10.0.0.55"]}})
    given = allocation("10.88.0.2/24", dns=Dns(nameservers=("10.0.0.53",)))
    assert build_result(settings, attach(settings, given), MADE, "").dns == Dns(nameservers=("10.0.0.55",))


def test_the_result_names_the_three_links() -> None:
    settings = conf(isGateway=True)
    made = attach(settings, DUAL)
    result = build_result(settings, made, MADE, "/proc/self/../7/ns/net")
    assert result.interfaces == (
        InterfaceEntry(name="cni0", mac="02:00:00:00:00:01"),
        InterfaceEntry(name=made.port.name, mac=made.port.mac, mtu=1450),
        InterfaceEntry(name="eth0", mac="02:00:00:00:00:03", mtu=1450, sandbox="/proc/self/../7/ns/net"),
    )
    assert {each.interface for each in result.ips} == {2}
    assert result.routes == DUAL.routes


@pytest.mark.parametrize(("configured", "expected"), [({}, "10.0.0.53"), ({"nameservers": ["10.0.0.54"]}, "10.0.0.54")])
def test_configured_dns_replaces_that_of_ipam(configured: object, expected: str) -> None:
    settings = conf(dns=configured)
    given = allocation("10.88.0.2/24", dns=Dns(nameservers=("10.0.0.53",), domain="a.test"))
    result = build_result(settings, attach(settings, given), MADE, "")
    assert result.dns.nameservers == (expected,)
    assert result.dns.domain == ("" if configured else "a.test")


def test_the_gateway_link_of_an_access_vlan_is_named_last() -> None:
    settings = conf(isGateway=True, vlan=5)
    result = build_result(settings, attach(settings, DUAL), MADE, "/run/netns/c1")
    assert result.interfaces[3] == InterfaceEntry(name="cni0.5", mac="02:00:00:00:00:02")


@pytest.mark.parametrize("address", ["10.9.0.5/32", "255.255.255.255/32", "fd00::5/128"])
def test_a_gateway_needs_room_or_a_name(address: str) -> None:
    assert attach(conf(), allocation(address)).gateway is None
    error = refusal(attach, conf(isGateway=True), allocation(address))
    assert error.code == Code.INVALID_CONFIG
    assert address in error.msg


def test_a_previous_result_is_passed_on_before_ours() -> None:
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
    }
    settings = conf(prevResult=previous)
    result = build_result(settings, attach(settings, DUAL), MADE, "/run/netns/c1")
    assert [each.name for each in result.interfaces] == ["lo", "cni0", host_ifname(OWNER), "eth0"]
    assert [each.interface for each in result.ips] == [0, 3, 3]


def test_a_namespace_is_the_same_by_whatever_path() -> None:
    assert NETNS.same_as(NetnsRef(path="/proc/7/ns/net", device=4, inode=4026532000))
    assert not NETNS.same_as(NetnsRef(path="/run/netns/c1", device=4, inode=4026532001))
    assert not NETNS.same_as(NetnsRef(path="/run/netns/c1", device=5, inode=4026532000))
