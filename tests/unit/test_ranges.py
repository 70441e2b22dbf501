"""Ranges and range sets: defaults of every subnet size, and every contradiction."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from ipam.api import Range
from ipam.errors import BadRanges
from ipam.ranges import build_range, build_sets, never_handed_out, overlap, parse_subnet
from tests.support.calls import range_sets


def made(
    subnet: str, start: str = "", end: str = "", gateway: str = "", *, first_may_be_claimed: bool = False
) -> Range:
    ends = {"start": start, "end": end, "gateway": gateway}
    given = {key: ip_address(text) for key, text in ends.items() if text}
    return build_range(ip_network(subnet), **given, first_may_be_claimed=first_may_be_claimed)


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
    assert never_handed_out(ip_network(subnet)) == {int(ip_address(each)) for each in withheld}


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
        ([["10.88.0.0/24"], []], "range set 1 is empty"),
        ([["10.88.0.0/24", "fd00::/64"]], "range set 0 mixes IPv4 and IPv6"),
        ([["10.88.0.0/24", "10.88.0.0/25"]], "range set 0: ranges 10.88.0.1-10.88.0.254 and 10.88.0.1-10.88.0.126"),
        ([["fd00::/64"], ["10.88.0.0/24"], ["10.0.0.0/8"]], "range set 1 overlaps with range set 2"),
    ],
)
def test_sets_that_contradict_themselves(sets: list[list[str]], message: str) -> None:
    assert message in refused(range_sets, *sets)


def test_sets() -> None:
    assert build_sets([]) == ()
    first, second = build_sets([[made("10.88.0.0/30"), made("10.88.1.0/30")], [made("fd00::/126")]])
    assert (first.family, second.family) == (4, 6)
    assert str(first) == "10.88.0.1-10.88.0.2,10.88.1.1-10.88.1.2"
    assert first.range_of(ip_address("10.88.1.2")) == made("10.88.1.0/30")
    assert first.range_of(ip_address("10.88.1.3")) is None
    assert first.range_of(ip_address("fd00::1")) is None
