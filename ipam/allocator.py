"""Decides which address is next: the first free one after the last handed out. Pure: whoever drives it looks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ipam.api import Address, Range, RangeSet
from ipam.ranges import never_handed_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A run of taken addresses, as integers, both ends included; neighbouring extents are merged."""

    first: int
    last: int


def withheld(each: Range) -> frozenset[int]:
    """Addresses of the range's subnet that no container gets: its gateway, its own and its broadcast address."""
    gateway = {int(each.gateway)} if each.gateway is not None else set()
    return never_handed_out(each.subnet) | gateway


def next_free(offer: RangeSet, cursor: Address | None) -> Generator[Address, Extent | None, Address | None]:
    """Search the set for a free address, beginning behind `cursor`, each address once.

    Yields an address to look at and expects the extent that covers it, or None if it is free. Returns the
    address found, or None when the set is full. The number of looks grows with the number of ranges, not of leases.
    """
    for each, low, high in _segments(offer, cursor):
        keep_out = withheld(each)
        make = type(each.first)
        position = low
        while position <= high:
            if position in keep_out:
                position += 1
                continue
            taken = yield make(position)
            if taken is None:
                return make(position)
            position = taken.last + 1
    return None


def _segments(offer: RangeSet, cursor: Address | None) -> Iterator[tuple[Range, int, int]]:
    """The set's addresses as runs in search order: behind the cursor, the other ranges in turn, up to the cursor."""
    bounds = [(each, int(each.first), int(each.last)) for each in offer.ranges]
    at = next((i for i, each in enumerate(offer.ranges) if cursor is not None and each.holds(cursor)), None)
    if at is None or cursor is None:
        yield from bounds
        return
    each, low, high = bounds[at]
    yield each, int(cursor) + 1, high
    yield from bounds[at + 1 :]
    yield from bounds[:at]
    yield each, low, int(cursor)
