"""What a range can hand out and which address is next, against a model that walks through every address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.allocator import Run, merged, next_free, usable, withheld
from ipam.api import Address, Network, Range, RangeSet
from ipam.blobs import from_number, to_number
from ipam.ranges import build_range
from tests.support.calls import range_sets

SUBNETS = ("10.0.0.0/28", "10.0.0.16/29", "10.0.0.24/30", "10.0.0.28/31", "10.0.0.30/32")
SUBNETS6 = ("fd00::/124", "fd00::10/125", "fd00::18/126", "fd00::1c/127", "fd00::1e/128")

few = settings(max_examples=100, deadline=None, database=None)


def search(offer: RangeSet, cursor: Address | None, taken: set[int]) -> tuple[Address | None, list[int]]:
    """What was found, and the addresses that were looked at for it."""
    looks: list[int] = []
    searching = next_free(offer, cursor)
    try:
        look_at = next(searching)
        while True:
            looks.append(look_at)
            look_at = searching.send(run_of(taken, look_at))
    except StopIteration as found:
        return found.value, looks


def run_of(taken: set[int], number: int) -> Run | None:
    """The run of taken addresses around the number."""
    if number not in taken:
        return None
    first = following = number
    while first - 1 in taken:
        first -= 1
    while following in taken:
        following += 1
    return Run(first=first, next=following)


def numbers(runs: Iterable[Run]) -> list[int]:
    return [number for each in runs for number in range(each.first, each.next)]


def kept_back(each: Range, address: Address) -> bool:
    """Whether nobody gets this address of the range's subnet."""
    subnet = each.subnet
    is_own = address == subnet.network_address or (subnet.version == 4 and address == subnet.broadcast_address)
    return (
        (is_own and subnet.num_addresses > 2)
        or address == each.gateway
        or any(address in excluded for excluded in each.exclude)
    )


def in_search_order(offer: RangeSet, cursor: Address | None) -> list[Address]:
    """Every address of the set, beginning behind the cursor."""
    everything = [address for each in offer.ranges for address in each.subnet if each.holds(address)]
    behind = everything.index(cursor) + 1 if cursor in everything else 0
    return everything[behind:] + everything[:behind]


@st.composite
def excluded(draw: st.DrawFn, subnet: Network) -> Network:
    """An address or a subnet that overlaps this one, sometimes all of it."""
    address = draw(st.sampled_from(list(subnet)))
    return ip_network((address, draw(st.integers(subnet.prefixlen - 1, subnet.max_prefixlen))), strict=False)


@st.composite
def ranges(draw: st.DrawFn, subnet: Network) -> Range:
    """A range of the subnet, perhaps cut short, with another gateway or none, or with parts excluded."""
    any_address = st.sampled_from(list(subnet))
    ends = draw(st.none() | st.tuples(any_address, any_address).map(lambda pair: sorted(pair, key=int)))
    start, end = ends or (None, None)
    return build_range(
        subnet,
        start=start,
        end=end,
        gateway=draw(st.none() | any_address | st.just(subnet.broadcast_address + 1)),
        exclude=tuple(draw(st.lists(excluded(subnet), max_size=3))),
        first_may_be_claimed=draw(st.booleans()),
    )


@st.composite
def offers(draw: st.DrawFn) -> RangeSet:
    """A set of one or more ranges of small subnets."""
    subnets = draw(st.lists(st.sampled_from(draw(st.sampled_from([SUBNETS, SUBNETS6]))), min_size=1, unique=True))
    return RangeSet(ranges=tuple(draw(ranges(ip_network(each))) for each in subnets))


@st.composite
def searches(draw: st.DrawFn) -> tuple[RangeSet, Address | None, set[int]]:
    """A set, a cursor in it or elsewhere, and what is taken; often all but a few addresses."""
    offer = draw(offers())
    inside = in_search_order(offer, None)
    elsewhere = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    cursor = draw(st.none() | st.sampled_from(inside) | st.sampled_from(elsewhere))
    around = {to_number(each) + step for each in inside for step in (-1, 0, 1)}
    taken = draw(st.sets(st.sampled_from(sorted(around))))
    return offer, cursor, draw(st.sampled_from([taken, around - taken]))


@given(searches())
@few
def test_the_first_free_one_behind_the_cursor_is_found(case: tuple[RangeSet, Address | None, set[int]]) -> None:
    offer, cursor, taken = case
    free = (
        each
        for each in in_search_order(offer, cursor)
        if to_number(each) not in taken and not any(each in one.subnet and kept_back(one, each) for one in offer.ranges)
    )
    found, _ = search(offer, cursor, taken)
    assert found == next(free, None)


@given(searches())
@few
def test_each_run_is_looked_at_once(case: tuple[RangeSet, Address | None, set[int]]) -> None:
    offer, cursor, taken = case
    _, looks = search(offer, cursor, taken)
    assert len(set(looks)) == len(looks)
    runs = {run_of(taken, each) for each in looks}
    parts = sum(len(usable(each)) for each in offer.ranges) + 1  # the cursor divides one of them
    assert len(looks) <= len(runs) + parts


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5))))
@few
def test_merged_runs_cover_the_same_and_never_touch(some: list[tuple[int, int]]) -> None:
    runs = [Run(first=first, next=first + size) for first, size in some]
    joined = merged(runs)
    assert numbers(joined) == sorted(set(numbers(runs)))
    assert all(one.next < other.first for one, other in pairwise(joined))


@given(offers())
@few
def test_usable_is_what_is_not_kept_back(offer: RangeSet) -> None:
    for each in offer.ranges:
        runs = usable(each)
        given_out = [address for address in each.subnet if each.holds(address) and not kept_back(each, address)]
        assert list(map(from_number, numbers(runs))) == given_out
        assert merged(runs) == runs


@given(offers())
@few
def test_withheld_is_what_is_kept_back(offer: RangeSet) -> None:
    for each in offer.ranges:
        runs = withheld(each)
        kept = [address for address in each.subnet if kept_back(each, address)]
        assert [address for address in map(from_number, numbers(runs)) if address in each.subnet] == kept
        assert merged(runs) == runs


def test_withheld_are_the_gateway_the_subnets_own_and_what_is_excluded() -> None:
    def texts(each: Range) -> list[str]:
        return [str(from_number(number)) for number in numbers(withheld(each))]

    (offer,) = range_sets(["10.0.0.0/29"])
    assert texts(offer.ranges[0]) == ["10.0.0.0", "10.0.0.1", "10.0.0.7"]
    (offer,) = range_sets(["fd00::4/126"])
    assert texts(offer.ranges[0]) == ["fd00::4", "fd00::5"]
    subnet, exclude = ip_network("10.0.0.0/29"), (ip_network("10.0.0.4/31"), ip_network("10.0.0.3/32"))
    assert texts(build_range(subnet, exclude=exclude)) == [f"10.0.0.{last}" for last in (0, 1, 3, 4, 5, 7)]


def handed_out(offer: RangeSet) -> Iterator[str]:
    """What the set gives one after the other until it is full."""
    taken: set[int] = set()
    cursor: Address | None = None
    while (found := search(offer, cursor, taken)[0]) is not None:
        taken.add(to_number(found))
        cursor = found
        yield str(found)


def test_a_set_gives_range_after_range() -> None:
    (offer,) = range_sets(["10.0.0.8/29", "10.0.0.0/30", "10.0.0.30/32"])
    assert list(handed_out(offer)) == [*(f"10.0.0.{last}" for last in range(10, 15)), "10.0.0.2", "10.0.0.30"]


def test_a_range_of_which_all_is_excluded_gives_nothing() -> None:
    nothing, rest = (
        build_range(ip_network("10.0.0.0/29"), exclude=(ip_network("10.0.0.0/8"),)),
        ip_network("10.1.0.0/30"),
    )
    assert list(handed_out(RangeSet(ranges=(nothing, build_range(rest))))) == ["10.1.0.2"]


def test_a_full_64_takes_few_looks() -> None:
    (offer,) = range_sets(["fd00::/64"])
    whole = Run(first=to_number(offer.ranges[0].first), next=to_number(offer.ranges[0].last) + 1)
    searching = next_free(offer, ip_address("fd00::8000:0:0:0"))
    looks = 0
    try:
        next(searching)
        while True:
            looks += 1
            searching.send(whole)
    except StopIteration as found:
        assert found.value is None
    assert looks <= 3
