"""The next free address, against a model that walks through every address."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.allocator import Extent, next_free, withheld
from ipam.api import Address, RangeSet
from ipam.ranges import build_range
from tests.support.calls import range_sets

SUBNETS = ("10.0.0.0/28", "10.0.0.16/29", "10.0.0.24/30", "10.0.0.28/31", "10.0.0.30/32")
SUBNETS6 = ("fd00::/124", "fd00::10/125", "fd00::18/126", "fd00::1c/127", "fd00::1e/128")

few = settings(max_examples=100, deadline=None, database=None)


def search(offer: RangeSet, cursor: Address | None, taken: set[int]) -> tuple[Address | None, list[Address]]:
    """What was found, and the addresses that were looked at for it."""
    looks: list[Address] = []
    searching = next_free(offer, cursor)
    try:
        look_at = next(searching)
        while True:
            looks.append(look_at)
            look_at = searching.send(extent(taken, int(look_at)))
    except StopIteration as found:
        return found.value, looks


def extent(taken: set[int], number: int) -> Extent | None:
    """The run of taken addresses around the number."""
    if number not in taken:
        return None
    first = last = number
    while first - 1 in taken:
        first -= 1
    while last + 1 in taken:
        last += 1
    return Extent(first=first, last=last)


def in_search_order(offer: RangeSet, cursor: Address | None) -> list[Address]:
    """Every address of the set, beginning behind the cursor."""
    everything = [
        type(each.first)(number) for each in offer.ranges for number in range(int(each.first), int(each.last) + 1)
    ]
    behind = everything.index(cursor) + 1 if cursor in everything else 0
    return everything[behind:] + everything[:behind]


@st.composite
def offers(draw: st.DrawFn) -> RangeSet:
    """A set of one or more ranges of small subnets, some cut short, some with another gateway."""
    subnets = draw(st.lists(st.sampled_from(draw(st.sampled_from([SUBNETS, SUBNETS6]))), min_size=1, unique=True))
    ranges = []
    for subnet in map(ip_network, subnets):
        inside: list[Address] = list(subnet)
        any_address = st.sampled_from(inside)
        ends = draw(st.none() | st.tuples(any_address, any_address).map(lambda pair: sorted(pair, key=int)))
        start, end = ends or (None, None)
        ranges.append(build_range(subnet, start=start, end=end, gateway=draw(st.none() | any_address)))
    return RangeSet(ranges=tuple(ranges))


@st.composite
def searches(draw: st.DrawFn) -> tuple[RangeSet, Address | None, set[int]]:
    """A set, a cursor in it or elsewhere, and what is taken; often all but a few addresses."""
    offer = draw(offers())
    inside = in_search_order(offer, None)
    elsewhere = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    cursor = draw(st.none() | st.sampled_from(inside) | st.sampled_from(elsewhere))
    around = {int(each) + step for each in inside for step in (-1, 0, 1)}
    taken = draw(st.sets(st.sampled_from(sorted(around))))
    return offer, cursor, draw(st.sampled_from([taken, around - taken]))


@given(searches())
@few
def test_the_first_free_one_behind_the_cursor_is_found(case: tuple[RangeSet, Address | None, set[int]]) -> None:
    offer, cursor, taken = case
    kept_back = {number for each in offer.ranges for number in withheld(each)}
    free = (each for each in in_search_order(offer, cursor) if int(each) not in taken | kept_back)
    found, _ = search(offer, cursor, taken)
    assert found == next(free, None)


@given(searches())
@few
def test_each_run_is_looked_at_once(case: tuple[RangeSet, Address | None, set[int]]) -> None:
    offer, cursor, taken = case
    _, looks = search(offer, cursor, taken)
    assert len(set(looks)) == len(looks)
    runs = {extent(taken, int(each)) for each in looks}
    assert len(looks) <= len(runs) + len(offer.ranges) + 1 + sum(len(withheld(each)) for each in offer.ranges)


def test_withheld_are_the_gateway_and_the_subnets_own() -> None:
    (offer,) = range_sets(["10.0.0.0/29"])
    assert withheld(offer.ranges[0]) == {int(ip_address(f"10.0.0.{last}")) for last in (0, 1, 7)}
    (offer,) = range_sets(["fd00::4/126"])
    assert withheld(offer.ranges[0]) == {int(ip_address("fd00::4")), int(ip_address("fd00::5"))}


def handed_out(offer: RangeSet) -> Iterator[str]:
    """What the set gives one after the other until it is full."""
    taken: set[int] = set()
    cursor: Address | None = None
    while (found := search(offer, cursor, taken)[0]) is not None:
        taken.add(int(found))
        cursor = found
        yield str(found)


def test_a_set_gives_range_after_range() -> None:
    (offer,) = range_sets(["10.0.0.8/29", "10.0.0.0/30", "10.0.0.30/32"])
    assert list(handed_out(offer)) == [*(f"10.0.0.{last}" for last in range(10, 15)), "10.0.0.2", "10.0.0.30"]


def test_a_full_64_takes_few_looks() -> None:
    (offer,) = range_sets(["fd00::/64"])
    first, last = int(offer.ranges[0].first), int(offer.ranges[0].last)
    searching = next_free(offer, ip_address("fd00::8000:0:0:0"))
    looks = 0
    try:
        next(searching)
        while True:
            looks += 1
            searching.send(Extent(first=first, last=last))
    except StopIteration as found:
        assert found.value is None
    assert looks <= 3
