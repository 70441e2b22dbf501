"""Builds and validates ranges and range sets, with the defaults of the reference `host-local`. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Network, ip_address, ip_network
from itertools import combinations

from ipam.api import Address, Network, Range, RangeSet
from ipam.errors import BadRanges

_KEPT = 1024  # of what configurations ask for: every request brings the same again
_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291, 2.5.5.2


@lru_cache(_KEPT)
def parse_subnet(text: str) -> Network:
    """A subnet in CIDR notation without host bits."""
    if "/" not in text:
        raise BadRanges(f'subnet "{text}" has no prefix length; write it as ADDRESS/LENGTH')
    try:
        if "%" in text or not text.partition("/")[2].isdecimal():  # a zone, or a netmask
            raise ValueError(text)
        subnet = ip_network(text, strict=False)
    except ValueError:
        raise BadRanges(f'subnet "{text}" is not an IPv4 or IPv6 subnet in CIDR notation') from None
    if str(subnet.network_address) != str(ip_address(text.split("/")[0])):
        raise BadRanges(
            f'subnet "{text}" has host bits set. For a subnet mask of length {subnet.prefixlen} '
            f"the network address is {subnet.network_address}"
        )
    return subnet


def never_handed_out(subnet: Network) -> frozenset[Address]:
    """The subnet's own address and, in IPv4, its broadcast address (RFC 919; RFC 3021 and 6164 exempt /31 and /127)."""
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return frozenset()
    own: set[Address] = {subnet.network_address}
    return frozenset(own | {subnet.broadcast_address} if subnet.version == 4 else own)


@lru_cache(_KEPT)
def build_range(
    subnet: Network,
    *,
    start: Address | None = None,
    end: Address | None = None,
    gateway: Address | None = None,
    exclude: tuple[Network, ...] = (),
    first_may_be_claimed: bool = False,
) -> Range:
    """A range with what is not given filled in: from the second address, to the last but the broadcast address.

    The gateway is the subnet's first host address; with `first_may_be_claimed`, a range that is configured to start
    there has it for containers instead.
    """
    if subnet.version == 6 and subnet.overlaps(_MAPPED):
        raise BadRanges(f"subnet {subnet} holds IPv4-mapped addresses; write it as an IPv4 subnet")
    base, top = int(subnet.network_address), int(subnet.broadcast_address)
    narrow = subnet.prefixlen >= subnet.max_prefixlen - 1
    make = type(subnet.network_address)
    lowest = make(base if narrow else base + 1)
    highest = make(top if narrow or subnet.version == 6 else top - 1)
    for name, address in (("rangeStart", start), ("rangeEnd", end), ("gateway", gateway)):
        if address is not None and address.version != subnet.version:
            raise BadRanges(f"{name} {address} is not of the family of subnet {subnet}")
    for name, address in (("rangeStart", start), ("rangeEnd", end)):
        if address is not None and address not in subnet:
            raise BadRanges(f"{name} {address} is not in subnet {subnet}")
    first, last = start or lowest, end or highest
    if int(first) > int(last):
        raise BadRanges(f"rangeStart {first} is above rangeEnd {last} in subnet {subnet}")
    for each in exclude:
        if each.version != subnet.version or not each.overlaps(subnet):
            raise BadRanges(f"exclude {each} is not in subnet {subnet}")
    claimed = first_may_be_claimed and start == lowest
    if gateway is None and not claimed and subnet.prefixlen < subnet.max_prefixlen:
        gateway = lowest
    return Range(subnet=subnet, first=first, last=last, gateway=gateway, exclude=exclude)


def overlap(one: Range, other: Range) -> bool:
    """Whether two ranges share an address."""
    return (
        one.subnet.version == other.subnet.version
        and int(one.first) <= int(other.last)
        and int(other.first) <= int(one.last)
    )


def require_apart(sets: tuple[RangeSet, ...]) -> tuple[RangeSet, ...]:
    """The range sets, if their ranges do not contradict each other; positions in messages count from 0."""
    for position, offer in enumerate(sets):
        if len({each.subnet.version for each in offer.ranges}) > 1:
            raise BadRanges(f"range set {position} mixes IPv4 and IPv6; give each family a set of its own")
        for one, other in combinations(offer.ranges, 2):
            if overlap(one, other):
                raise BadRanges(f"range set {position}: ranges {one} and {other} overlap")
    for (i, left), (j, right) in combinations(enumerate(sets), 2):
        for one in left.ranges:
            for other in right.ranges:
                if overlap(one, other):
                    raise BadRanges(f"range set {i} overlaps with range set {j}: {one} and {other}")
    return sets
