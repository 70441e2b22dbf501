"""Decides which address is next: the first free one after the last handed out. Pure: whoever drives it looks.

Addresses are numbers here (`ipam.blobs.to_number`); runs include their first number and exclude `next`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from ipam.api import Address, Range, RangeSet
from ipam.blobs import from_number, to_number
from ipam.ranges import never_handed_out


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Run:
    """Neighbouring addresses, from the first to the one before `next`; two runs of taken ones never touch."""

    first: int
    next: int


@lru_cache(maxsize=1024)
def withheld(each: Range) -> tuple[Run, ...]:
    """Addresses that no container gets: the subnet's own and broadcast address, the gateway, what is excluded."""
    alone = [*never_handed_out(each.subnet), *([each.gateway] if each.gateway is not None else [])]
    runs = [Run(first=to_number(address), next=to_number(address) + 1) for address in alone]
    for network in each.exclude:
        runs.append(Run(first=to_number(network.network_address), next=to_number(network.broadcast_address) + 1))
    return merged(runs)


def merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The runs in order, joined where they touch or overlap."""
    joined: list[Run] = []
    for each in sorted(runs):
        if joined and each.first <= joined[-1].next:
            joined[-1] = Run(first=joined[-1].first, next=max(joined[-1].next, each.next))
        else:
            joined.append(each)
    return tuple(joined)


@lru_cache(maxsize=1024)
def usable(each: Range) -> tuple[Run, ...]:
    """The runs of addresses that the range can hand out."""
    runs: list[Run] = []
    position, end = to_number(each.first), to_number(each.last) + 1
    for gap in withheld(each):
        if position < min(gap.first, end):
            runs.append(Run(first=position, next=min(gap.first, end)))
        position = max(position, gap.next)
    if position < end:
        runs.append(Run(first=position, next=end))
    return tuple(runs)


def next_free(offer: RangeSet, cursor: Address | None) -> Generator[int, Run | None, Address | None]:
    """Search the set for a free address, beginning behind `cursor`, each address once.

    Yields the number of an address to look at and expects the run of taken addresses that covers it, or None if it is
    free. Returns the address found, or None when the set is full. The number of looks grows with the number of
    ranges and of what they withhold, not with that of leases.
    """
    for run in _in_search_order(offer, cursor):
        position = run.first
        while position < run.next:
            taken = yield position
            if taken is None:
                return from_number(position)
            position = taken.next
    return None


def _in_search_order(offer: RangeSet, cursor: Address | None) -> Iterator[Run]:
    """What the set can hand out: first what lies behind the cursor, then the other ranges in turn, then up to it."""
    ranges = offer.ranges
    at = next((i for i, each in enumerate(ranges) if cursor is not None and each.holds(cursor)), None)
    if at is None or cursor is None:
        for each in ranges:
            yield from usable(each)
        return
    turn = to_number(cursor) + 1
    for run in usable(ranges[at]):
        if run.next > turn:
            yield Run(first=max(run.first, turn), next=run.next)
    for each in (*ranges[at + 1 :], *ranges[:at]):
        yield from usable(each)
    for run in usable(ranges[at]):
        if run.first < turn:
            yield Run(first=run.first, next=min(run.next, turn))
