"""Ranges and range sets: defaults of every subnet size, and every contradiction."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ipam.api import AnySubnet, Range, RangeSet
from ipam.errors import BadRanges
from ipam.ranges import build_range, never_handed_out, overlap, parse_subnet, require_apart
from tests.support.calls import range_sets


def made(
    subnet: str,
    start: str = "",
    end: str = "",
    gateway: str = "",
    *,
    exclude: tuple[str, ...] = (),
    first_may_be_claimed: bool = False,
) -> Range:
    ends = {"start": start, "end": end, "gateway": gateway}
    given = {key: ip_address(text) for key, text in ends.items() if text}
    excluded = tuple(map(ip_network, exclude))
    return build_range(ip_network(subnet), **given, exclude=excluded, first_may_be_claimed=first_may_be_claimed)


def refused(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(BadRanges) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("subnet", "first", "last", "gateway", "withheld"),
    [
        ("10.88.0.0/16", "10.88.0.1", "10.88.255.254", "10.88.0.1", ["10.88.0.0", "10.88.255.255"]),
        ("10.88.0.0/24", "10.88.0.1", "10.88.0.254", "10.88.0.1", ["10.88.0.0", "10.88.0.255"]),
        ("10.88.0.4/30", "10.88.0.5", "10.88.0.6", "10.88.0.5", ["10.88.0.4", "10.88.0.7"]),
        ("10.88.0.4/31", "10.88.0.4", "10.88.0.5", "10.88.0.4", []),
        ("10.88.0.4/32", "10.88.0.4", "10.88.0.4", None, []),
        ("0.0.0.0/0", "0.0.0.1", "255.255.255.254", "0.0.0.1", ["0.0.0.0", "255.255.255.255"]),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1", ["fd00::"]),
        ("fd00::4/126", "fd00::5", "fd00::7", "fd00::5", ["fd00::4"]),
        ("fd00::4/127", "fd00::4", "fd00::5", "fd00::4", []),
        ("fd00::4/128", "fd00::4", "fd00::4", None, []),
    ],
)
def test_defaults(subnet: str, first: str, last: str, gateway: str | None, withheld: list[str]) -> None:
    assert made(subnet) == Range(
        subnet=ip_network(subnet),
        first=ip_address(first),
        last=ip_address(last),
        gateway=ip_address(gateway) if gateway else None,
    )
    assert never_handed_out(ip_network(subnet)) == set(map(ip_address, withheld))


def test_given_ends_and_gateway() -> None:
    each = made("10.88.0.0/24", "10.88.0.10", "10.88.0.20", "10.88.0.254")
    assert (str(each), each.gateway) == ("10.88.0.10-10.88.0.20", ip_address("10.88.0.254"))


@pytest.mark.parametrize(("start", "end"), [("10.88.0.0", "10.88.0.255"), ("10.88.0.7", "10.88.0.7")])
def test_ends_may_be_any_address_of_the_subnet(start: str, end: str) -> None:
    assert str(made("10.88.0.0/24", start, end)) == f"{start}-{end}"


def test_a_gateway_may_lie_outside_the_subnet() -> None:
    assert made("10.88.0.0/24", gateway="10.99.0.1").gateway == ip_address("10.99.0.1")


@pytest.mark.parametrize(
    ("start", "gateway", "claimable", "expected"),
    [
        ("10.88.0.1", "", True, None),
        ("10.88.0.1", "", False, "10.88.0.1"),
        ("10.88.0.2", "", True, "10.88.0.1"),
        ("", "", True, "10.88.0.1"),
        ("10.88.0.1", "10.88.0.1", True, "10.88.0.1"),
    ],
)
def test_who_gets_the_first_host_address(start: str, gateway: str, claimable: bool, expected: str | None) -> None:
    each = made("10.88.0.0/24", start, gateway=gateway, first_may_be_claimed=claimable)
    assert each.gateway == (ip_address(expected) if expected else None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("10.88.0.0/24", "10.89.0.1"), "rangeStart 10.89.0.1 is not in subnet 10.88.0.0/24"),
        (("10.88.0.0/24", "", "10.87.255.255"), "rangeEnd 10.87.255.255 is not in subnet 10.88.0.0/24"),
        (("10.88.0.0/24", "10.88.0.9", "10.88.0.8"), "rangeStart 10.88.0.9 is above rangeEnd 10.88.0.8"),
        (("10.88.0.0/24", "", "10.88.0.0"), "rangeStart 10.88.0.1 is above rangeEnd 10.88.0.0"),
        (("10.88.0.0/24", "fd00::1"), "rangeStart fd00::1 is not of the family of subnet 10.88.0.0/24"),
        (("fd00::/64", "", "10.88.0.1"), "rangeEnd 10.88.0.1 is not of the family of subnet fd00::/64"),
        (("fd00::/64", "", "", "10.88.0.1"), "gateway 10.88.0.1 is not of the family of subnet fd00::/64"),
    ],
)
def test_bad_ranges(args: tuple[str, ...], message: str) -> None:
    assert message in refused(made, *args)


@pytest.mark.parametrize(
    ("subnet", "exclude"),
    [
        ("10.88.0.0/24", ("10.88.0.9",)),
        ("10.88.0.0/24", ("10.88.0.0/26", "10.88.0.8/30", "10.88.0.255")),
        ("10.88.0.0/24", ("10.88.0.0/16",)),
        ("fd00::/64", ("fd00::8:0/112",)),
    ],
    ids=["an address", "overlapping subnets", "a larger subnet", "IPv6"],
)
def test_what_overlaps_the_subnet_may_be_excluded(subnet: str, exclude: tuple[str, ...]) -> None:
    each = made(subnet, exclude=exclude)
    assert each.exclude == tuple(map(ip_network, exclude))
    assert str(each) == str(made(subnet)), "the ends stay"


@pytest.mark.parametrize(
    ("subnet", "exclude"),
    [
        ("10.88.0.0/24", "10.89.0.1"),
        ("10.88.0.0/24", "fd00::1"),
        ("fd00::/64", "fd00:0:0:1::/64"),
        ("::/96", "0.0.0.1"),
    ],
)
def test_what_lies_elsewhere_cannot_be_excluded(subnet: str, exclude: str) -> None:
    message = refused(lambda: made(subnet, exclude=("10.88.0.9",) * (subnet == "10.88.0.0/24") + (exclude,)))
    assert message == f"exclude {ip_network(exclude)} is not in subnet {subnet}"


@pytest.mark.parametrize("text", ["10.88.0.0/16", "10.88.0.4/30", "10.88.0.7/32", "fd00::/64", "FD00:0::/64"])
def test_subnets(text: str) -> None:
    assert parse_subnet(text) == ip_network(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.88.0.0", "has no prefix length"),
        ("", "has no prefix length"),
        ("10.88.0.0/33", "is not an IPv4 or IPv6 subnet"),
        ("10.88.0.0/-1", "is not an IPv4 or IPv6 subnet"),
        ("10.88.0/24", "is not an IPv4 or IPv6 subnet"),
        ("/24", "is not an IPv4 or IPv6 subnet"),
        ("nonsense/24", "is not an IPv4 or IPv6 subnet"),
        ("fd00::/129", "is not an IPv4 or IPv6 subnet"),
        ("10.88.0.0/24/8", "is not an IPv4 or IPv6 subnet"),
        ("10.88.0.0/255.255.255.0", "is not an IPv4 or IPv6 subnet"),
        ("10.88.0.0/0.0.0.255", "is not an IPv4 or IPv6 subnet"),
        ("10.88.3.4/16", "has host bits set. For a subnet mask of length 16 the network address is 10.88.0.0"),
        ("fd00::1/64", "has host bits set. For a subnet mask of length 64 the network address is fd00::"),
        ("fe80::%eth0/64", "fe80::%eth0/64"),
    ],
)
def test_bad_subnets(text: str, message: str) -> None:
    refusal = refused(parse_subnet, text)
    assert f'subnet "{text}"' in refusal
    assert message in refusal


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("10.88.0.0/24",), ("10.88.0.0/24",), True),
        (("10.88.0.0/24",), ("10.88.1.0/24",), False),
        (("10.88.0.0/16",), ("10.88.7.0/24",), True),
        (("10.88.0.0/24", "10.88.0.1", "10.88.0.9"), ("10.88.0.0/24", "10.88.0.10", "10.88.0.20"), False),
        (("10.88.0.0/24", "10.88.0.1", "10.88.0.10"), ("10.88.0.0/24", "10.88.0.10", "10.88.0.20"), True),
        (("10.88.0.0/24", "10.88.0.5", "10.88.0.6"), ("10.88.0.0/24", "10.88.0.1", "10.88.0.20"), True),
        (("::/96",), ("0.0.0.0/0",), False),  # the same integers in another family
    ],
)
def test_overlap(one: tuple[str, ...], other: tuple[str, ...], expected: bool) -> None:
    assert overlap(made(*one), made(*other)) is expected
    assert overlap(made(*other), made(*one)) is expected


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([["10.88.0.0/24", "fd00::/64"]], "range set 0 mixes IPv4 and IPv6"),
        ([["10.88.0.0/24", "10.88.0.0/25"]], "range set 0: ranges 10.88.0.1-10.88.0.254 and 10.88.0.1-10.88.0.126"),
        ([["fd00::/64"], ["10.88.0.0/24"], ["10.0.0.0/8"]], "range set 1 overlaps with range set 2"),
    ],
)
def test_sets_that_contradict_themselves(sets: list[list[str]], message: str) -> None:
    assert message in refused(range_sets, *sets)


def test_sets() -> None:
    assert require_apart(()) == ()
    sets = require_apart(
        (
            RangeSet(ranges=(made("10.88.0.0/30"), made("10.88.1.0/30"))),
            RangeSet(ranges=(made("fd00::/126"),)),
            RangeSet(any_subnet=AnySubnet(family=6)),
        )
    )
    assert [each.family for each in sets] == [4, 6, 6]
    assert str(sets[0]) == "10.88.0.1-10.88.0.2,10.88.1.1-10.88.1.2"
    assert sets[0].range_of(ip_address("10.88.1.2")) == made("10.88.1.0/30")
    assert sets[0].range_of(ip_address("10.88.1.3")) is None
    assert sets[0].range_of(ip_address("fd00::1")) is None


@pytest.mark.parametrize(
    ("wish", "text"),
    [(AnySubnet(family=4), "any IPv4 subnet"), (AnySubnet(family=6, prefixlen=80), "any IPv6 subnet of length 80")],
)
def test_any_subnet_has_no_addresses_yet(wish: AnySubnet, text: str) -> None:
    offer = RangeSet(any_subnet=wish)
    assert (str(offer), offer.range_of(ip_address("10.88.0.1"))) == (text, None)


@pytest.mark.parametrize(
    "keys", [{}, {"ranges": (made("10.88.0.0/30"),), "any_subnet": AnySubnet(family=4)}], ids=["neither", "both"]
)
def test_a_set_has_ranges_or_the_wish_for_a_subnet(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ranges, or else the wish for a subnet"):
        RangeSet(**keys)


def test_a_range_is_of_one_family() -> None:
    with pytest.raises(ValueError, match=r"range fd00::1-fd00::2 is not of the family of subnet 10.88.0.0/30"):
        Range(subnet=ip_network("10.88.0.0/30"), first=ip_address("fd00::1"), last=ip_address("fd00::2"))
