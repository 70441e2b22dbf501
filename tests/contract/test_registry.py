"""What every `Registry` does, whoever serves it: the database in this process, or `ipamd`."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ipam.api import Address, AnySubnet, RangeSet, Reservation, ReservedFor
from ipam.blobs import number_blob, to_number
from ipam.client import Client
from ipam.errors import AddressNotOffered, AddressTaken, IpamError, NotFound, PoolConflict, RequestRefused
from ipam.metrics import Metrics
from ipam.ranges import build_range
from ipam.registry import PAGE, Event, Happened, Moved, Origin, Place, State, Turn, Weight
from ipam.remote import RemoteRegistry
from ipam.server import Server
from tests.support.calls import owner, range_sets
from tests.support.node import ANY, Node, node_on, wanted

PATIENCE = 30
POOL = range_sets(["10.88.0.0/29"])  # of which .2 to .6 are handed out
DUAL_STACK = range_sets(["10.88.0.0/29"], ["fd00:88::/64"])
MAPPED = "00000000000000000000FFFF"  # before the four bytes of an IPv4 address
POD = Reservation(kind=ReservedFor.NAME, value="default/web")


@contextmanager
def local(_: Node, __: Path) -> Iterator[None]:
    yield


@contextmanager
def remote(node: Node, directory: Path) -> Iterator[None]:
    path, stop = directory / "ipamd.sock", asyncio.Event()

    async def start(listener: socket.socket) -> asyncio.Task[None]:
        rules = {"allowed": lambda *_: True, "max_clients": 8, "request_timeout": PATIENCE}
        server = Server(node.ipam, node.registry, Metrics(node.registry), **rules)
        return asyncio.create_task(server.serve(listener, stop))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        serving = node.run(start(listener))
        node.registry = RemoteRegistry(Client(path, patience=PATIENCE))
        yield
        stop.set()
        node.run(asyncio.wait_for(serving, PATIENCE))


@pytest.fixture(params=[local, remote])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node, whose registry is the one to be tested."""
    with node_on(tmp_path / "state", cooldown=60) as made, request.param(made, tmp_path):
        yield made


def refused(kind: type[IpamError], call: Callable[[], object]) -> str:
    """The message of the failure, which is of exactly that kind."""
    with pytest.raises(IpamError) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


def adopt(node: Node, *moved: str, last: tuple[str, ...] = (), sets: tuple[RangeSet, ...] = POOL) -> None:
    """Adopt leases, as "CONTAINER ADDRESS"."""
    leases = tuple(Moved(owner=owner(name), address=ip_address(at)) for name, at in map(str.split, moved))
    node.run(node.registry.adopt(wanted("", sets=sets), leases, tuple(map(ip_address, last))))


def take_back(node: Node, container: str, address: str) -> None:
    node.run(node.registry.take_back(owner(container), ip_address(address)))


def forget(node: Node, network: str = "net1") -> None:
    node.run(node.registry.forget(network))


def told(events: list[Event]) -> list[str]:
    return [f"{each.happened} {each.address} {each.container_id or each.reservation}" for each in events]


def test_nothing_is_known_of_a_new_node(node: Node) -> None:
    assert (node.pools(), node.entries(), node.events(), node.findings()) == ([], {}, [], [])


def test_pools_and_how_full_they_are(node: Node) -> None:
    for name in "abc":
        node.add(name, sets=DUAL_STACK)
    node.delete("a")
    node.reserve("10.88.0.5", ReservedFor.NOBODY)
    node.add(owner("a", "net0"), sets=ANY)
    default, four, six = node.pools()
    assert [(each.pool.network, each.pool.origin) for each in (default, four, six)] == [
        ("net0", Origin.DEFAULT),
        ("net1", Origin.CONFIGURED),
        ("net1", Origin.CONFIGURED),
    ]
    assert default.pool.reason.startswith("first of 10.168.0.0/13 in /24")
    assert (four.pool.subnet, four.pool.ranges) == (ip_network("10.88.0.0/29"), DUAL_STACK[0].ranges)
    assert (four.capacity, four.leased, four.cooling, four.reserved, four.free) == (5, 2, 1, 1, 1)
    assert four.turns == (Turn(position=0, last=ip_address("10.88.0.4")),)
    assert six.free == 2**64 - 2 - 3  # more than 64 bits hold
    assert node.pools("net1") == [four, six]
    assert node.pools("net2") == []
    node.clock.seconds += 60
    assert node.pools("net1")[0].free == 2


def within(first: int, last: int) -> RangeSet:
    """A range of 10.88.0.0/24."""
    ends = {"start": ip_address(f"10.88.0.{first}"), "end": ip_address(f"10.88.0.{last}")}
    return RangeSet(ranges=(build_range(ip_network("10.88.0.0/24"), **ends),))


TURNS = {
    "in order of address": (DUAL_STACK, [(0, "10.88.0.2")], [(1, "fd00:88::2")]),
    "in another order": (DUAL_STACK[::-1], [(1, "10.88.0.2")], [(0, "fd00:88::2")]),
    "a higher subnet before a lower": (
        range_sets(["10.89.0.0/29"], ["10.88.0.0/29"]),
        [(1, "10.88.0.2")],
        [(0, "10.89.0.2")],
    ),
    "two sets in a subnet": ((within(10, 19), within(30, 39)), [(0, "10.88.0.10"), (1, "10.88.0.30")]),
    "two sets in a subnet, the higher before": (
        (within(30, 39), within(10, 19)),
        [(0, "10.88.0.30"), (1, "10.88.0.10")],
    ),
    "a set of two subnets": (range_sets(["10.89.0.0/29", "10.88.0.0/29"]), [], [(0, "10.89.0.2")]),
    "passed by the runtime": (
        (replace(POOL[0], runtime=True), *range_sets(["10.89.0.0/29"])),
        [(None, "10.88.0.2")],
        [(0, "10.89.0.2")],
    ),
    "left open": ((RangeSet(any_subnet=AnySubnet(family=4)), *POOL), [(1, "10.88.0.2")], [(0, "10.168.0.2")]),
}


@pytest.mark.parametrize(("sets", "turns"), [(sets, turns) for sets, *turns in TURNS.values()], ids=TURNS.keys())
def test_turns_are_told_where_the_sets_begin_by_their_positions(
    node: Node, sets: tuple[RangeSet, ...], turns: list[list[tuple[int | None, str]]]
) -> None:
    node.add("a", sets=sets)
    told = [sorted(((each.position, str(each.last)) for each in use.turns), key=str) for use in node.pools()]
    assert told == turns


def test_a_set_that_has_given_no_address_in_turn_has_no_turn(node: Node) -> None:
    node.status(sets=DUAL_STACK)
    node.add("a", "10.88.0.5", sets=DUAL_STACK)
    assert [each.turns for each in node.pools()] == [(), (Turn(position=1, last=ip_address("fd00:88::2")),)]


def test_a_set_that_is_no_longer_configured_has_no_position(node: Node) -> None:
    node.add("a", sets=(within(10, 19), within(30, 39)))
    node.add("b", sets=(within(30, 39),))
    assert [each.turns for each in node.pools()] == [(Turn(position=0, last=ip_address("10.88.0.31")),)]


def test_entries_tell_all_of_an_address(node: Node) -> None:
    node.add("a", sets=POOL, name="default/web", mac="02:00:00:00:00:01")
    node.add("b", sets=POOL)
    node.delete("b")
    node.reserve("10.88.0.2", POD.kind, POD.value)
    node.reserve("10.88.0.6", ReservedFor.NOBODY)
    leased, cooling, kept = node.entries().values()
    assert leased.lease is not None
    assert (leased.lease.owner, leased.lease.name, leased.lease.mac) == (
        owner("a"),
        "default/web",
        "02:00:00:00:00:01",
    )
    assert (leased.reservation, leased.drawn_from) == (POD, ip_address("10.88.0.1"))
    assert (cooling.lease, cooling.released) == (None, node.clock())
    assert (kept.lease, kept.released, kept.reservation) == (None, None, Reservation(kind=ReservedFor.NOBODY))
    assert list(node.states().values()) == [State.LEASED, State.COOLING, State.RESERVED]


def test_entries_come_in_pages(node: Node) -> None:
    for network in ("net1", "net2"):
        for name in "abc":
            node.add(owner(name, network), sets=DUAL_STACK, allow_overlap=True)
    expected = [
        (network, f"{subnet}{number}")
        for network in ("net1", "net2")
        for subnet in ("10.88.0.", "fd00:88::")
        for number in (2, 3, 4)
    ]

    def pages(network: str | None) -> list[list[tuple[str, str]]]:
        found, after = [], None
        while page := node.run(node.registry.entries(network, after=after, limit=4)):
            found.append([(each.network, str(each.address)) for each in page])
            after = Place(network=page[-1].network, address=page[-1].address)
        return found

    assert pages(None) == [expected[:4], expected[4:8], expected[8:]]
    assert pages("net2") == [expected[6:10], expected[10:]]
    assert pages("net3") == []
    behind = Place(network="net1", address=ip_address("10.88.0.99"))  # where no entry is
    assert node.run(node.registry.entries(after=behind))[0].address == ip_address("fd00:88::2")


def test_history_says_what_happened_to_whom(node: Node) -> None:
    node.add("a", sets=POOL, name="default/web", mac="02:00:00:00:00:01")
    node.reserve("10.88.0.2", POD.kind, POD.value)
    node.delete("a")
    node.unreserve("10.88.0.2")
    events = node.events()
    assert [each.happened for each in events] == [
        Happened.LEASED,
        Happened.RESERVED,
        Happened.RELEASED,
        Happened.UNRESERVED,
    ]
    assert {(each.network, each.address) for each in events} == {("net1", ip_address("10.88.0.2"))}
    assert {(each.container_id, each.ifname, each.name, each.mac) for each in events[:3]} == {
        ("a", "eth0", "default/web", "02:00:00:00:00:01")
    }
    assert [each.reservation for each in events] == [None, POD, POD, POD]
    assert [each.number for each in events] == [1, 2, 3, 4]


def test_history_by_network_address_and_container(node: Node) -> None:
    for network in ("net1", "net2"):
        for name in "ab":
            node.add(owner(name, network), sets=POOL, allow_overlap=True)
    node.delete("a")
    first, second = "10.88.0.2", "10.88.0.3"
    assert told(node.events(network="net1")) == [f"leased {first} a", f"leased {second} b", f"released {first} a"]
    assert told(node.events(container="b")) == [f"leased {second} b"] * 2
    assert told(node.events(address=ip_address(second))) == [f"leased {second} b"] * 2
    assert told(node.events(network="net1", address=ip_address(first), container="a")) == [
        f"leased {first} a",
        f"released {first} a",
    ]
    assert node.events(network="net1", container="c") == []


def test_history_comes_in_pages_newest_first(node: Node) -> None:
    for name in "abcde":
        node.add(name, sets=POOL)
    node.add(owner("x", "net2"), sets=range_sets(["10.89.0.0/29"]))
    seen, before = [], None
    while page := node.run(node.registry.history(network="net1", before=before, limit=2)):
        seen.append([each.container_id for each in page])
        before = page[-1].number
    assert seen == [["e", "d"], ["c", "b"], ["a"]]
    for before in (0, 1):
        assert node.run(node.registry.history(before=before)) == ()


def test_a_reserved_address_goes_to_whom_it_is_for_and_to_nobody_else(node: Node) -> None:
    node.add("a", sets=POOL)
    node.reserve("10.88.0.3", POD.kind, POD.value)
    node.reserve("10.88.0.3", POD.kind, POD.value)  # may be repeated
    assert node.add("b", sets=POOL) == ["10.88.0.4"]
    refused(AddressTaken, lambda: node.add("c", "10.88.0.3", sets=POOL))
    assert node.add("c", sets=POOL, name="default/web") == ["10.88.0.3"]
    node.delete("c")
    assert node.states()["10.88.0.3"] == State.RESERVED
    node.unreserve("10.88.0.3")
    assert node.states()["10.88.0.3"] == State.COOLING
    node.reserve("10.88.0.2", ReservedFor.NOBODY)
    assert node.holders()["10.88.0.2"] == "a"
    node.unreserve("10.88.0.2")
    assert node.holders()["10.88.0.2"] == "a"
    assert node.findings() == []


def test_what_cannot_be_reserved_is_refused_in_words(node: Node) -> None:
    node.add("a", sets=POOL)
    node.reserve("10.88.0.3", POD.kind, POD.value)
    before = node.entries()

    def reserve(address: str, network: str = "net1") -> None:
        node.reserve(address, ReservedFor.MAC, "02:00:00:00:00:01", network)

    assert "default/web" in refused(AddressTaken, lambda: reserve("10.88.0.3"))
    assert "10.88.0.0/29" in refused(AddressNotOffered, lambda: reserve("10.88.0.8"))
    for never in ("10.88.0.0", "10.88.0.1", "10.88.0.7"):
        assert never in refused(AddressNotOffered, lambda never=never: reserve(never))
    assert "net2" in refused(AddressNotOffered, lambda: reserve("10.88.0.3", "net2"))
    assert "fd00::1" in refused(AddressNotOffered, lambda: reserve("fd00::1"))
    for nothing in ("10.88.0.2", "10.88.0.5"):
        assert nothing in refused(NotFound, lambda nothing=nothing: node.unreserve(nothing))
    assert node.entries() == before


def test_take_back_ends_one_lease_of_its_holder(node: Node) -> None:
    node.add("a", sets=DUAL_STACK)
    for container, address in (("b", "10.88.0.2"), ("a", "10.88.0.3")):
        assert container in refused(NotFound, lambda c=container, a=address: take_back(node, c, a))
    take_back(node, "a", "10.88.0.2")
    assert node.states() == {"10.88.0.2": State.COOLING, "fd00:88::2": State.LEASED}
    refused(NotFound, lambda: take_back(node, "a", "10.88.0.2"))
    assert told(node.events(address=ip_address("10.88.0.2")))[-1] == "released 10.88.0.2 a"


def test_a_network_in_use_is_not_forgotten(node: Node) -> None:
    node.add("a", sets=POOL)
    node.reserve("10.88.0.3", ReservedFor.NOBODY)
    assert "2 leases and reservations" in refused(PoolConflict, lambda: forget(node))
    node.delete("a")
    assert "1 leases and reservations" in refused(PoolConflict, lambda: forget(node))
    node.unreserve("10.88.0.3")
    forget(node)
    assert (node.pools(), node.entries(), node.findings()) == ([], {}, [])
    assert told(node.events())[0] == "leased 10.88.0.2 a"  # the past stays
    assert "net1" in refused(NotFound, lambda: forget(node))
    assert node.add(owner("b", "net2"), sets=POOL) == ["10.88.0.2"]


def test_leases_of_another_ipam_are_adopted_and_their_turn_goes_on(node: Node) -> None:
    adopt(node, "a 10.88.0.2", "b 10.88.0.4", last=("10.88.0.4",))
    assert node.holders() == {"10.88.0.2": "a", "10.88.0.4": "b"}
    assert node.subnets("net1") == ["10.88.0.0/29"]
    lease = node.entries()["10.88.0.2"].lease
    assert lease is not None
    assert (str(lease.address), str(lease.gateway), lease.boot_id) == ("10.88.0.2/29", "10.88.0.1", "boot 1")
    assert node.add("c", sets=POOL) == ["10.88.0.5"]
    assert node.add("a", sets=POOL) == ["10.88.0.2"]  # a repeat is known
    adopt(node, "a 10.88.0.2", "d 10.88.0.6")  # may be repeated
    node.reserve("10.88.0.3", POD.kind, POD.value)
    adopt(node, "e 10.88.0.3", sets=())  # as the network is tracked
    assert node.entries()["10.88.0.3"].reservation == POD
    assert node.holders() == {f"10.88.0.{number}": name for number, name in zip(range(2, 7), "aebcd", strict=True)}
    assert node.findings() == []


def test_adopting_is_all_or_nothing(node: Node) -> None:
    node.add("a", sets=POOL)
    taken = refused(AddressTaken, lambda: adopt(node, "b 10.88.0.3", "c 10.88.0.2", last=("10.88.0.5",)))
    assert "net1/c/eth0" in taken and "net1/a/eth0" in taken
    assert node.holders() == {"10.88.0.2": "a"}
    assert node.add("d", sets=POOL) == ["10.88.0.3"]
    elsewhere = range_sets(["10.99.0.0/29"])
    assert "10.88.0.0/29" in refused(PoolConflict, lambda: adopt(node, "x 10.99.0.2", sets=elsewhere))
    assert node.subnets() == ["10.88.0.0/29"]
    assert node.holders() == {"10.88.0.2": "a", "10.88.0.3": "d"}


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        (
            [("a", "net1", "10.88.0.2"), ("b", "net2", "10.88.0.3")],
            '10.88.0.3 of net2/b/eth0 cannot be adopted by network "net1"',
        ),
        (
            [("a", "net1", "10.88.0.2"), ("b", "net1", "10.88.0.3"), ("c", "net1", "10.88.0.2")],
            "10.88.0.2 is to be adopted for net1/a/eth0 and for net1/c/eth0",
        ),
    ],
    ids=["of another network", "for two owners"],
)
@pytest.mark.parametrize("known", [False, True], ids=["a new network", "a known network"])
def test_leases_that_contradict_themselves_are_not_adopted(
    node: Node, known: bool, moved: list[tuple[str, str, str]], words: str
) -> None:
    if known:
        node.add("x", "10.88.0.6", sets=POOL)
    before = node.dump()
    leases = tuple(Moved(owner=owner(name, network), address=ip_address(address)) for name, network, address in moved)
    sets = range_sets(["10.88.0.0/28"])
    said = refused(
        RequestRefused,
        lambda: node.run(node.registry.adopt(wanted("", sets=sets), leases, (ip_address("10.88.0.5"),))),
    )
    assert said == words
    assert node.dump() == before


def test_a_lease_may_be_named_twice(node: Node) -> None:
    adopt(node, "a 10.88.0.2", "a 10.88.0.2")
    assert node.holders() == {"10.88.0.2": "a"}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("DELETE FROM taken", "10.88.0.2 to 10.88.0.3 is in use and not marked as taken"),
        ("UPDATE taken SET next = (SELECT address FROM addresses LIMIT 1 OFFSET 1)", "10.88.0.2 to 10.88.0.3"),
        (
            f"INSERT INTO taken SELECT network, x'{MAPPED}0A580005', x'{MAPPED}0A580006' FROM taken",
            "10.88.0.5 to 10.88.0.5 is marked as taken and not in use",
        ),
    ],
    ids=["gone", "too short", "too much"],
)
def test_verify_names_what_does_not_fit_and_mend_repairs_it(node: Node, damage: str, named: str) -> None:
    for name in "ab":
        node.add(name, sets=POOL)
    assert node.findings() == []
    before = node.entries()
    with closing(sqlite3.connect(node.settings.database)) as connection, connection:
        connection.execute(damage)
    findings = node.run(node.registry.verify())
    assert any(named in each.what and "net1" in each.what for each in findings), findings
    assert any("which is not their sum" in each.what for each in findings), findings
    assert {(each.weight, each.mendable) for each in findings} == {(Weight.ERROR, True)}
    node.run(node.registry.mend())
    assert node.findings() == []
    assert node.entries() == before
    assert node.add("c", sets=POOL) == ["10.88.0.4"]


RUNS = ((5, 14), (16, PAGE + 99), (PAGE + 101, PAGE + 110))  # first and last address, as numbers in the subnet
BOUNDARY = PAGE + 5  # in the second run: the last address of the first page, for one before it is free


def at(number: int) -> Address:
    return ip_network("10.88.0.0/20")[number]


def blob(number: int) -> bytes:
    return number_blob(to_number(at(number)))


def span(first: int, last: int, fault: str) -> str:
    return f'network "net1": {at(first)} to {at(last)} is {fault}'


@pytest.fixture
def full(node: Node) -> Node:
    """A network of more than a page of addresses."""
    numbers = [number for first, last in RUNS for number in range(first, last + 1)]
    adopt(node, *(f"c{number} {at(number)}" for number in numbers), sets=range_sets(["10.88.0.0/20"]))
    assert node.run(node.registry.entries(limit=PAGE))[-1].address == at(BOUNDARY)
    return node


def damage(node: Node, statement: str, *numbers: int) -> list[str]:
    """What is found after the statement, whose values are the blobs of these addresses."""
    with closing(sqlite3.connect(node.settings.database)) as connection, connection:
        changed = connection.execute(statement, [blob(each) for each in numbers]).rowcount
        assert changed == 1
    return node.findings()


REMOVE = "DELETE FROM taken WHERE first = ?"
BEGIN = "UPDATE taken SET first = ? WHERE first = ?"
END = "UPDATE taken SET next = ? WHERE first = ?"
NOT_MARKED, NOT_IN_USE = "in use and not marked as taken", "marked as taken and not in use"


def test_runs_that_span_pages_are_no_fault(full: Node) -> None:
    assert full.findings() == []


@pytest.mark.parametrize(
    ("statement", "numbers", "spans"),
    [
        (REMOVE, [5], [span(5, 14, NOT_MARKED)]),
        (REMOVE, [16], [span(16, BOUNDARY, NOT_MARKED), span(BOUNDARY + 1, PAGE + 99, NOT_MARKED)]),
        (REMOVE, [PAGE + 101], [span(PAGE + 101, PAGE + 110, NOT_MARKED)]),
        (END, [16, 5], [span(5, 14, NOT_MARKED), span(5, 15, NOT_IN_USE)]),
        (BEGIN, [15, 16], [span(16, BOUNDARY, NOT_MARKED), span(15, BOUNDARY, NOT_IN_USE)]),
        (END, [BOUNDARY + 1, 16], [span(BOUNDARY + 1, PAGE + 99, NOT_MARKED)]),
        (
            END,
            [BOUNDARY, 16],
            [
                span(16, BOUNDARY, NOT_MARKED),
                span(16, BOUNDARY - 1, NOT_IN_USE),
                span(BOUNDARY + 1, PAGE + 99, NOT_MARKED),
            ],
        ),
        (
            END,
            [PAGE + 101, 16],
            [span(BOUNDARY + 1, PAGE + 99, NOT_MARKED), span(BOUNDARY + 1, PAGE + 100, NOT_IN_USE)],
        ),
        (
            BEGIN,
            [PAGE + 100, PAGE + 101],
            [span(PAGE + 101, PAGE + 110, NOT_MARKED), span(PAGE + 100, PAGE + 110, NOT_IN_USE)],
        ),
        (
            END,
            [PAGE + 200, PAGE + 101],
            [span(PAGE + 101, PAGE + 110, NOT_MARKED), span(PAGE + 101, PAGE + 199, NOT_IN_USE)],
        ),
    ],
    ids=[
        "missing before the boundary",
        "missing across it",
        "missing behind it",
        "too long before it",
        "beginning too early before it",
        "ending at it",
        "ending before it",
        "too long behind it",
        "beginning too early behind it",
        "too long at the end",
    ],
)
def test_verify_names_what_does_not_fit_on_each_side_of_a_page_boundary(
    full: Node, statement: str, numbers: list[int], spans: list[str]
) -> None:
    found = damage(full, statement, *numbers)
    assert sorted(each for each in found if " to " in each) == sorted(spans)
    assert sum("which is not their sum" in each for each in found) == 1
    full.run(full.registry.mend())
    assert full.findings() == []


@pytest.mark.parametrize("cut", [BOUNDARY, BOUNDARY + 1, BOUNDARY + 2])
def test_verify_finds_a_run_that_is_in_two_parts(full: Node, cut: int) -> None:
    """The allocator takes what follows a run for free."""
    with closing(sqlite3.connect(full.settings.database)) as connection, connection:
        connection.execute("INSERT INTO taken VALUES ('net1', ?, ?)", [blob(cut), blob(PAGE + 100)])
    assert damage(full, END, cut, 16) != []
    full.run(full.registry.mend())
    assert full.findings() == []


def test_a_lease_in_no_pool_is_found_on_every_page(full: Node) -> None:
    with closing(sqlite3.connect(full.settings.database)) as connection, connection:
        connection.execute("DELETE FROM pools")
    found = full.findings()
    assert len(found) == sum(last - first + 1 for first, last in RUNS) > PAGE
    assert {each.split(" is ")[1] for each in found} == {"in no pool of its network"}


def test_verify_names_pools_that_overlap_and_leases_without_one(node: Node) -> None:
    node.add("a", sets=POOL)
    node.add(owner("b", "net2"), sets=range_sets(["10.89.0.0/29"]))
    with closing(sqlite3.connect(node.settings.database)) as connection, connection:
        connection.execute("DELETE FROM pools WHERE network = 'net2'")
        connection.execute(
            "INSERT INTO pools SELECT 'net3', subnet, first, last, ranges, origin, reason, shared, since FROM pools"
        )
    outside, overlap = sorted(node.run(node.registry.verify()), key=lambda each: each.weight, reverse=True)
    assert (outside.weight, "10.89.0.2 of net2/b/eth0" in outside.what) == (Weight.WARNING, True)
    assert overlap.weight == Weight.ERROR
    assert "net1" in overlap.what and "net3" in overlap.what
    assert not outside.mendable and not overlap.mendable
