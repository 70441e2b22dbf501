"""rtnetlink messages: what is asked for is in them, byte for byte as iproute2 has it, and any bytes are read safely."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_bridge.datapath import messages
from cni_bridge.netlink_messages import parse_attributes
from ipam.api import Route


def test_a_link_by_name_with_all_that_can_be_said() -> None:
    made = messages.link_request(
        name="veth0", flags=1, mask=1, mac="02:00:00:00:00:01", mtu=1400, master=7, alias="x", tx_queue=0, group=9
    )
    assert struct.unpack_from("=BxHiII", made) == (0, 0, 0, 1, 1)
    assert parse_attributes(made[16:]) == {
        3: b"veth0\0",
        1: bytes.fromhex("020000000001"),
        20: b"x",
        4: struct.pack("=I", 1400),
        10: struct.pack("=I", 7),
        13: bytes(4),
        27: struct.pack("=I", 9),
    }


def test_what_is_not_given_is_not_said() -> None:
    assert messages.link_request(index=5) == struct.pack("=BxHiII", 0, 0, 5, 0, 0)


def test_a_veth_holds_its_other_end() -> None:
    peer = messages.link_request(name="eth0", namespace=12)
    info = parse_attributes(messages.veth_info(peer))[18]
    data = parse_attributes(parse_attributes(info)[2])
    assert parse_attributes(info)[1] == b"veth"
    assert data == {1: peer}


@pytest.mark.parametrize(
    ("text", "has_broadcast"),
    [("10.0.0.2/24", True), ("10.0.0.2/31", False), ("10.0.0.2/32", False), ("fd00::2/64", False)],
)
def test_an_address_goes_there_and_back(text: str, has_broadcast: bool) -> None:
    made = messages.address_request(3, ip_interface(text), flags=2)
    index, state = messages.parse_address(made)
    assert (index, state.address) == (3, ip_interface(text))
    assert (4 in parse_attributes(made[8:])) == has_broadcast


ROUTES = [
    Route(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.0.0.1")),
    Route(dst=ip_network("::/0"), gw=ip_address("fd00::1")),
    Route(dst=ip_network("10.9.0.0/16"), gw=ip_address("10.0.0.1"), mtu=1400, advmss=1360, priority=5, table=1000),
    Route(dst=ip_network("fd00:9::/64"), priority=0xFFFFFFFF, table=0xFFFFFFF0, scope=0),
]


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_goes_there_and_back(route: Route) -> None:
    (found,) = messages.parse_routes(messages.route_request(route, 3))
    expected = {"table": 254, "scope": 0}
    for name in ("dst", "gw", "mtu", "advmss", "priority", "table", "scope"):
        wanted = getattr(route, name)
        assert getattr(found.route, name) == (expected.get(name) if wanted is None else wanted), name
    assert found.link == 3


def test_a_route_without_a_gateway_is_on_the_link_in_ipv4() -> None:
    (found,) = messages.parse_routes(messages.route_request(Route(dst=ip_network("10.9.0.0/16")), 3))
    assert found.route.scope == 253


@given(st.binary(max_size=200))
@pytest.mark.parametrize(
    ("parse", "header"), [(messages.parse_link, 16), (messages.parse_routes, 12)], ids=["link", "route"]
)
def test_attributes_of_any_content_are_read_safely(parse: object, header: int, data: bytes) -> None:
    assert callable(parse)
    try:
        found = parse(bytes(header) + data)
        list(found) if header == 12 else None
    except ValueError:  # an address of a wrong size
        return
