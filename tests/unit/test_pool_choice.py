"""Which subnet a network gets from the default pools, and what a subnet collides with."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.api import ANY_LINK, AnySubnet, Network
from ipam.errors import PoolExhausted
from ipam.pools import Choice, Obstacle, choose, in_the_way, obstacles, overlapping
from ipam.registry import Origin, Pool
from ipam.settings import DefaultPool, Settings
from tests.support.node import surroundings

ANY4, ANY6 = AnySubnet(family=4), AnySubnet(family=6)


def default_pools(*texts: str) -> tuple[DefaultPool, ...]:
    """Default pools as they are printed: "10.0.0.0/16 in /24"."""
    pairs = (each.split(" in /") for each in texts)
    return tuple(DefaultPool(base=ip_network(base), size=int(size)) for base, size in pairs)


SMALL = default_pools("10.0.0.0/22 in /24")  # .0 to .3
SMALL6 = default_pools("fd12:3456:789a::/48 in /64")


def pool(subnet: str, network: str = "other") -> Pool:
    return Pool(
        network=network,
        subnet=ip_network(subnet),
        ranges=(),
        origin=Origin.CONFIGURED,
        reason="",
        shared=False,
        since=datetime(2026, 1, 1, tzinfo=UTC),
    )


def used(*subnets: str) -> list[Obstacle]:
    return [Obstacle(subnet=ip_network(each), what=f"route {each} on tun0") for each in subnets]


def chosen(
    *around: str, wish: AnySubnet = ANY4, of: tuple[DefaultPool, ...] = SMALL, pools: tuple[str, ...] = ()
) -> Choice:
    return choose(wish, of, [pool(each) for each in pools], used(*around))


def seen(
    *addresses: str,
    routes: tuple[str, ...] = (),
    nameservers: tuple[str, ...] = (),
    links: tuple[str, ...] = (),
    gateways: tuple[str, ...] = (),
) -> list[str]:
    """What is in the way on a host like this, in words."""
    around = surroundings(*addresses, routes=routes, nameservers=nameservers)
    return [each.what for each in obstacles(around, links, map(ip_network, gateways))]


def test_addresses_routes_and_nameservers_are_in_the_way() -> None:
    found = obstacles(
        surroundings("eth0 192.0.2.7/24", routes=("tun0 10.8.0.0/16",), nameservers=("10.9.0.53", "fd00::53")), ()
    )
    assert found == [
        Obstacle(subnet=ip_network("192.0.2.0/24"), what="address 192.0.2.7/24 of eth0", on_link=True),
        Obstacle(subnet=ip_network("10.8.0.0/16"), what="route 10.8.0.0/16 on tun0"),
        Obstacle(subnet=ip_network("10.9.0.53/32"), what="nameserver 10.9.0.53"),
        Obstacle(subnet=ip_network("fd00::53/128"), what="nameserver fd00::53"),
    ]


def test_what_is_on_the_networks_own_links_is_not_in_the_way() -> None:
    addresses, routes = ("br0 10.1.0.1/24", "br0.7 10.2.0.1/24", "eth0 10.3.0.1/24"), ("br0 10.4.0.0/16",)
    assert seen(*addresses, routes=routes, links=("br0",)) == [
        "address 10.2.0.1/24 of br0.7",
        "address 10.3.0.1/24 of eth0",
    ]
    assert seen(*addresses, routes=routes, links=("br0", "br0.7")) == ["address 10.3.0.1/24 of eth0"]


def test_a_network_on_any_link_is_only_kept_from_nameservers() -> None:
    around = surroundings("eth0 10.3.0.1/24", routes=("tun0 10.8.0.0/16",), nameservers=("10.9.0.53",))
    assert [each.what for each in obstacles(around, (ANY_LINK,))] == ["nameserver 10.9.0.53"]


def test_a_networks_own_gateway_is_not_in_the_way_wherever_it_is() -> None:
    addresses, routes = ("elsewhere 10.1.0.1/24", "eth0 10.1.1.1/24"), ("elsewhere 10.1.0.1/32",)
    assert seen(*addresses, routes=routes, gateways=("10.1.0.1/32",)) == ["address 10.1.1.1/24 of eth0"]


def test_the_route_that_goes_with_an_address_is_named_once() -> None:
    assert seen("eth0 10.3.0.1/24", routes=("eth0 10.3.0.0/24",)) == ["address 10.3.0.1/24 of eth0"]


@pytest.mark.parametrize(
    ("routes", "count"),
    [
        (["0.0.0.0/0"], 0),
        (["0.0.0.0/1", "128.0.0.0/1"], 0),
        (["0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"], 0),
        (["10.0.0.0/7"], 0),
        (["10.0.0.0/8"], 1),
        (["100.64.0.0/10", "172.16.0.0/12"], 2),
        (["::/0", "2000::/3", "::/1", "8000::/1"], 0),
        (["fd00::/8"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_route_shorter_than_8_bits_is_a_default_route_in_parts(routes: list[str], count: int) -> None:
    """OpenVPN's redirect-gateway def1 covers everything by two halves: nothing would be clear of them."""
    assert len(seen(routes=tuple(f"tun0 {each}" for each in routes))) == count


def test_what_every_host_has_is_not_in_the_way() -> None:
    addresses = ("lo 127.0.0.1/8", "lo ::1/128", "eth0 fe80::1/64", "eth0 169.254.7.7/16")
    routes = ("lo 127.0.0.0/8", "eth0 fe80::/64", "eth0 ff00::/8", "eth0 169.254.169.254/32")
    assert seen(*addresses, routes=routes, nameservers=("127.0.0.53", "fe80::1")) == []


def test_families_are_not_in_each_others_way() -> None:
    assert in_the_way(ip_network("10.0.0.0/24"), used("::/0", "fd00::/8")) == []
    assert overlapping(ip_network("::/0"), [pool("0.0.0.0/0")]) == []


@pytest.mark.parametrize(
    ("around", "expected"),
    [
        ([], "10.0.0.0/24"),
        (["10.0.0.0/24"], "10.0.1.0/24"),
        (["10.0.0.200/32"], "10.0.1.0/24"),
        (["10.0.1.0/24"], "10.0.0.0/24"),
        (["10.0.0.0/23"], "10.0.2.0/24"),
        (["10.0.0.128/25", "10.0.1.0/30", "10.0.2.0/24"], "10.0.3.0/24"),
        (["10.0.0.0/24", "10.0.0.0/23", "10.0.0.7/32"], "10.0.2.0/24"),
        (["9.0.0.0/8", "10.0.4.0/22", "fd00::/8"], "10.0.0.0/24"),
    ],
)
def test_the_first_clear_block_is_chosen(around: list[str], expected: str) -> None:
    choice = chosen(*around)
    assert (str(choice.subnet), choice.overlaps) == (expected, "")


def test_pools_of_networks_are_passed_over_as_the_host_is() -> None:
    assert str(chosen("10.0.1.0/24", pools=("10.0.0.64/26",)).subnet) == "10.0.2.0/24"


def test_one_large_obstacle_does_not_hide_what_is_behind_it() -> None:
    assert str(chosen("10.0.0.0/9", of=default_pools("10.0.0.0/8 in /30")).subnet) == "10.128.0.0/30"
    assert str(chosen("fd12:3456:789a::/49", wish=ANY6, of=SMALL6).subnet) == "fd12:3456:789a:8000::/64"


def test_later_pools_are_used_when_the_first_is_full() -> None:
    both = default_pools("10.0.0.0/24 in /24", "10.1.0.0/24 in /25")
    assert str(chosen("10.0.0.0/24", of=both).subnet) == "10.1.0.0/25"


def test_the_reason_says_what_the_subnet_is_clear_of() -> None:
    around = obstacles(
        surroundings("eth0 192.0.2.7/24", "eth1 10.0.0.1/24", routes=("tun0 10.8.0.0/16",), nameservers=("10.9.0.53",)),
        (),
    )
    assert choose(ANY4, SMALL, [pool("10.0.1.0/24")], around).reason == (
        "first of 10.0.0.0/22 in /24 that is clear of 1 pools, 2 addresses, 1 routes, 1 nameservers"
    )


@pytest.mark.parametrize(
    ("wish", "around", "expected"),
    [
        (AnySubnet(family=4, prefixlen=26), ["10.0.0.0/26"], "10.0.0.64/26"),
        (AnySubnet(family=4, prefixlen=23), ["10.0.1.255/32"], "10.0.2.0/23"),
        (AnySubnet(family=4, prefixlen=22), [], "10.0.0.0/22"),
        (AnySubnet(family=6), ["fd12:3456:789a::/64"], "fd12:3456:789a:1::/64"),
        (AnySubnet(family=6, prefixlen=56), ["fd12:3456:789a::1/128"], "fd12:3456:789a:100::/56"),
        (AnySubnet(family=6, prefixlen=120), ["fd12:3456:789a::/120"], "fd12:3456:789a::100/120"),
    ],
    ids=lambda value: str(value) if isinstance(value, AnySubnet) else "",
)
def test_a_wish_may_name_the_size(wish: AnySubnet, around: list[str], expected: str) -> None:
    assert str(chosen(*around, wish=wish, of=(*SMALL, *SMALL6)).subnet) == expected


def test_a_base_that_is_smaller_than_the_wish_is_not_used() -> None:
    wish = AnySubnet(family=4, prefixlen=20)
    assert str(chosen(wish=wish, of=(*SMALL, *default_pools("10.16.0.0/16 in /24"))).subnet) == "10.16.0.0/20"
    with pytest.raises(PoolExhausted, match="no default pool has room for any IPv4 subnet of length 20"):
        chosen(wish=wish)
    with pytest.raises(PoolExhausted, match="no default pool has room for any IPv6 subnet; set default_pools"):
        chosen(wish=ANY6)


def test_where_nothing_is_clear_the_host_is_overlapped_least() -> None:
    around = ("10.0.0.0/24", "10.0.1.0/25", "10.0.2.0/30", "10.0.2.128/32", "10.0.3.0/24")
    choice = chosen(*around)
    assert str(choice.subnet) == "10.0.2.0/24"
    assert choice.overlaps == "route 10.0.2.0/30 on tun0, route 10.0.2.128/32 on tun0"
    assert choice.reason == f"nothing is clear, it overlaps least: {choice.overlaps}"


def test_another_networks_pool_is_never_overlapped_however_small() -> None:
    choice = chosen("10.0.0.0/8", pools=("10.0.0.0/23", "10.0.3.255/32"))
    assert (str(choice.subnet), choice.overlaps) == ("10.0.2.0/24", "route 10.0.0.0/8 on tun0")


def test_pools_that_use_everything_are_said_so() -> None:
    with pytest.raises(PoolExhausted, match=r"use all of the default pools \(10.0.0.0/22 in /24\); forget one"):
        chosen("10.0.1.0/30", pools=("10.0.0.0/24", "10.0.1.0/24", "10.0.2.7/32", "10.0.3.0/25"))


def test_a_48_gives_65536_subnets_without_looking_at_each() -> None:
    """Neighbouring pools are passed over one by one, a hole in front of many is found at once."""
    pools = tuple(f"fd12:3456:789a:{number:x}::/64" for number in range(300) if number != 7)
    assert str(chosen(wish=ANY6, of=SMALL6, pools=pools).subnet) == "fd12:3456:789a:7::/64"


def test_the_default_pools_are_clear_of_what_others_take() -> None:
    """Docker (172.17.0.0/16 and on), Podman (10.88.0.0/13), Kubernetes distributions (10.42, 10.96, 10.244)."""
    taken = ["172.16.0.0/12", "192.168.0.0/17", "10.88.0.0/13", "10.42.0.0/15", "10.96.0.0/12", "10.244.0.0/16"]
    for each in Settings().default_pools:
        assert in_the_way(each.base, used(*taken)) == []


BASE = ip_network("10.0.0.0/24")


@st.composite
def subnets_near(draw: st.DrawFn) -> Network:
    """A subnet in the base or around it."""
    length = draw(st.integers(min_value=22, max_value=32))
    return ip_network(
        (int(BASE.network_address) + draw(st.integers(min_value=-64, max_value=320)), length), strict=False
    )


@given(
    around=st.lists(subnets_near(), max_size=12),
    pools=st.lists(subnets_near(), max_size=4),
    size=st.sampled_from([26, 28, 30]),
)
@settings(max_examples=300, deadline=None, database=None)
def test_the_choice_is_that_of_brute_force(around: list[Network], pools: list[Network], size: int) -> None:
    hard = [pool(str(each)) for each in pools]
    soft = used(*map(str, around))
    allowed = [each for each in BASE.subnets(new_prefix=size) if not any(each.overlaps(other) for other in pools)]
    cost = {
        each: sum(min(each.num_addresses, other.num_addresses) for other in around if other.overlaps(each))
        for each in allowed
    }
    try:
        choice = choose(AnySubnet(family=4, prefixlen=size), [DefaultPool(base=BASE, size=28)], hard, soft)
    except PoolExhausted:
        assert not allowed
        return
    least = min(cost.values())
    assert cost[choice.subnet] == least
    assert bool(choice.overlaps) == bool(least)
    if not least:
        assert choice.subnet == next(each for each in allowed if not cost[each])
