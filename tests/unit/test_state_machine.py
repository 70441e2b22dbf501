"""Random lives of a few addresses, on the database and on plain dicts, which agree after every step."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import aiosqlite
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipam.allocator import Run, merged
from ipam.api import Address, Allocation, NetnsRef, Network, Owner, Range, RangeSet, Reservation, ReservedFor, Wanted
from ipam.blobs import to_number
from ipam.clock import Moment
from ipam.errors import AddressNotOffered, AddressTaken, IpamError, NotFound, PoolConflict, PoolExhausted
from ipam.ranges import build_range
from ipam.registry import Entry, Happened, State
from tests.support.calls import owner, range_sets, taken_runs
from tests.support.node import Node, netns

COOLDOWN = GRACE = 60


def _sets(subnet: str, *more: RangeSet, **changes: object) -> tuple[RangeSet, ...]:
    return (RangeSet(ranges=(build_range(ip_network(subnet), **changes),)), *more)  # type: ignore[arg-type]


(V6,) = range_sets(["fd00::/125"])
CONFIGURATIONS = {
    "plain": _sets("10.0.0.0/29", V6),
    "narrow": _sets("10.0.0.0/29", V6, end=ip_address("10.0.0.4")),
    "excluding": _sets("10.0.0.0/29", V6, exclude=(ip_network("10.0.0.4/31"),)),
    "other gateway": _sets("10.0.0.0/29", V6, gateway=ip_address("10.0.0.6")),
    "wide": _sets("10.0.0.0/28", V6),
    "elsewhere": _sets("10.1.0.0/29", V6),
    "two ranges": range_sets(["10.0.0.0/29", "10.1.0.0/30"], ["fd00::/125"]),
    "IPv4 alone": _sets("10.0.0.0/29"),
}
ADDRESSES = [*ip_network("10.0.0.0/29"), *map(ip_address, ("10.0.0.9", "10.1.0.2", "fd00::1", "fd00::2", "fd00::3"))]
CONTAINERS = "abcdefgh"
KEYS = ("", "", "key 1", "key 2")
NEW = Owner(network="net1", container_id="", ifname="")  # who asks for the status


@dataclass(slots=True, kw_only=True)
class Lent:
    """A lease as the model keeps it."""

    owner: Owner
    boot_id: str
    netns: NetnsRef | None
    subnet: Network
    gateway: Address | None


@dataclass(slots=True, kw_only=True)
class Model:
    """What is to be true of the network's addresses."""

    leases: dict[Address, Lent] = field(default_factory=dict)
    released: dict[Address, Moment] = field(default_factory=dict)
    reserved: dict[Address, Reservation] = field(default_factory=dict)
    suspect: dict[Address, Moment] = field(default_factory=dict)
    sets: tuple[RangeSet, ...] = ()

    # What is known

    def ranges(self) -> list[Range]:
        return [each for offer in self.sets for each in offer.ranges]

    def held(self, of: Owner) -> list[Address]:
        return [address for address, lent in self.leases.items() if lent.owner == of]

    def view(self, now: Moment) -> dict[Address, object]:
        """What the database has to say of each address that is not free."""
        return {
            each: (
                lent and (lent.owner, lent.boot_id, lent.netns, lent.subnet, lent.gateway),
                self.reserved.get(each),
                self.suspect.get(each),
                self.state(each, now),
            )
            for each in {*self.leases, *self.released, *self.reserved}
            for lent in [self.leases.get(each)]
            if self.state(each, now) is not None
        }

    def state(self, address: Address, now: Moment) -> State | None:
        if address in self.leases:
            return State.LEASED
        if address in self.reserved:
            return State.RESERVED
        if address in self.released and now.since(self.released[address]) < COOLDOWN:
            return State.COOLING
        return None

    # What is expected

    def outcome(
        self, ask: Wanted, now: Moment, gone: Callable[[Address], bool]
    ) -> type[IpamError] | list[set[Address]]:
        """The failure, or the addresses that each set may give."""
        if self.sets and self.sets != ask.range_sets and self._conflicts(ask, now):
            return PoolConflict
        asked: dict[int, Address] = {}
        for address in ask.requested:
            position = next((i for i, offer in enumerate(ask.range_sets) if offer.range_of(address)), None)
            if position is None or address not in usable(ask.range_sets[position]):
                return AddressNotOffered
            asked[position] = address
        choices = []
        for position, offer in enumerate(ask.range_sets):
            choice = self._choice(ask, offer, asked.get(position), now, gone)
            if not isinstance(choice, set):
                return choice
            choices.append(choice)
        return choices

    def _conflicts(self, ask: Wanted, now: Moment) -> bool:
        new = [each for offer in ask.range_sets for each in offer.ranges]
        live = [each for each, lent in self.leases.items() if lent.boot_id == now.boot_id and lent.owner != ask.owner]
        outside = [
            each
            for each in live
            if any(each in old.subnet for old in self.ranges() if old.subnet not in {one.subnet for one in new})
            and not any(each in one.subnet for one in new)
        ]
        moved = {each.gateway for each in new} - {each.gateway for each in self.ranges()}
        return bool(outside or moved.intersection(live))

    def _choice(
        self, ask: Wanted, offer: RangeSet, asked: Address | None, now: Moment, gone: Callable[[Address], bool]
    ) -> type[IpamError] | set[Address]:
        inside = usable(offer)
        mine = {each for each in self.held(ask.owner) if each in inside and asked in (None, each)}
        if mine:
            return mine
        if asked is not None:
            return {asked} if self._claimable(asked, ask, gone) else AddressTaken
        reserved = {each for each in inside if self.reserved.get(each) in reservations_of(ask)}
        if reserved:
            return {each for each in reserved if self._claimable(each, ask, gone)} or AddressTaken
        free = {each for each in inside if self.state(each, now) is None}
        if free:
            return free
        cooling = {each for each in inside if self.state(each, now) == State.COOLING}
        if cooling:
            longest = max(now.since(self.released[each]) for each in cooling)
            return {each for each in cooling if now.since(self.released[each]) == longest}
        return {each for each in inside if each in self.leases and each not in self.reserved and gone(each)} or (
            PoolExhausted
        )

    def _claimable(self, address: Address, ask: Wanted, gone: Callable[[Address], bool]) -> bool:
        lent = self.leases.get(address)
        if lent is not None and lent.owner != ask.owner and not gone(address):
            return False
        return address not in self.reserved or self.reserved[address] in reservations_of(ask)

    # What happens

    def give(self, ask: Wanted, addresses: list[Address], now: Moment) -> None:
        for each in self.held(ask.owner):
            if each not in addresses:
                self.end(each, now)
        for offer, each in zip(ask.range_sets, addresses, strict=True):
            range_ = offer.range_of(each)
            assert range_ is not None
            self.released.pop(each, None)
            self.suspect.pop(each, None)
            self.leases[each] = Lent(
                owner=ask.owner,
                boot_id=now.boot_id,
                netns=ask.netns,
                subnet=range_.subnet,
                gateway=range_.gateway,
            )
            if ask.sticky:
                self.reserved.setdefault(each, Reservation(kind=ReservedFor.STICKY, value=ask.sticky))
        self.sets = ask.range_sets

    def end(self, address: Address, now: Moment) -> None:
        del self.leases[address]
        self.suspect.pop(address, None)
        self.released[address] = now

    def release(self, of: Owner, now: Moment) -> None:
        for each in self.held(of):
            self.end(each, now)

    def reconcile(self, now: Moment, gone: Callable[[Address], bool]) -> None:
        for each in list(self.leases):
            if not gone(each):
                self.suspect.pop(each, None)
            elif each not in self.suspect:
                self.suspect[each] = now
            elif now.since(self.suspect[each]) >= GRACE:
                self.end(each, now)


def is_withheld(address: Address, each: Range) -> bool:
    """Whether no container gets the address of this subnet."""
    never = {each.gateway, each.subnet.network_address}
    if address.version == 4:
        never.add(each.subnet.broadcast_address)
    return address in never or any(address in excluded for excluded in each.exclude)


def usable(offer: RangeSet) -> set[Address]:
    """What the set hands out, by looking at every address."""
    return {
        address
        for each in offer.ranges
        for number in range(int(each.first), int(each.last) + 1)
        for address in [type(each.first)(number)]
        if not is_withheld(address, each)
    }


def reservations_of(ask: Wanted) -> list[Reservation]:
    """The reservations that are for who asks."""
    return [
        Reservation(kind=kind, value=value)
        for kind, value in (
            (ReservedFor.NAME, ask.name),
            (ReservedFor.NAME, ask.name.rpartition("/")[2]),
            (ReservedFor.STICKY, ask.sticky),
        )
        if value
    ]


@contextmanager
def at_statement(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Act before the statement of that number, counted from 0, is handed to SQLite; its thread is idle then."""
    statements = count()

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **more: object) -> object:
            if next(statements) == number:
                act()
            return call(*args, **more)

        return wrapped

    names = ("execute", "executemany", "execute_fetchall")
    calls: dict[str, Any] = {each: watched(getattr(aiosqlite.Connection, each)) for each in names}
    with mock.patch.multiple(aiosqlite.Connection, **calls):
        yield


containers = st.sampled_from(CONTAINERS).map(owner)
keys = st.sampled_from(KEYS)
addresses = st.sampled_from(ADDRESSES)
moments = st.integers(min_value=0, max_value=14)  # statements of one request
reservations = st.one_of(
    st.sampled_from(CONTAINERS).map(lambda each: Reservation(kind=ReservedFor.NAME, value=each)),
    st.sampled_from(KEYS[2:]).map(lambda each: Reservation(kind=ReservedFor.STICKY, value=each)),
    st.just(Reservation(kind=ReservedFor.NOBODY)),
)


class AddressMachine(RuleBasedStateMachine):
    """One network with up to two sets of five or six addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.number = count()
        self.root = mock.patch.object(os, "geteuid", return_value=0)  # who ends leases of earlier boots
        self.root.start()
        self.model = Model()
        self.wished = CONFIGURATIONS["plain"]
        self.node = Node(self._new_directory(), cooldown=COOLDOWN, suspect_grace=GRACE)

    def _new_directory(self) -> Path:
        made = Path(self.directory.name) / str(next(self.number))
        made.mkdir()
        return made

    def teardown(self) -> None:
        self.node.close()
        self.root.stop()
        self.directory.cleanup()

    # What is asked

    @property
    def now(self) -> Moment:
        return self.node.clock()

    def gone(self, address: Address) -> bool:
        lent = self.model.leases[address]
        return lent.boot_id != self.now.boot_id and (lent.netns is None or lent.netns in self.node.host.gone)

    def ask(self, of: Owner, *requested: Address, sticky: str = "", sets: tuple[RangeSet, ...] | None = None) -> Wanted:
        return Wanted(
            owner=of,
            range_sets=self.wished if sets is None else sets,
            requested=requested,
            sticky=sticky,
            name=f"default/{of.container_id}" if of.container_id else "",
            netns=netns(of.container_id, inode=self.node.clock.boot),
        )

    def settle(self, ask: Wanted, answer: Allocation | BaseException) -> None:
        """The answer is one that the model allows; afterwards it is true of the model too."""
        expected = self.model.outcome(ask, self.now, self.gone)
        if isinstance(answer, BaseException):
            assert type(answer) is expected, f"{answer!r} instead of {expected}"
            return
        assert isinstance(expected, list), f"{answer} instead of {expected}"
        given = [each.address.ip for each in answer.leases]
        assert all(each in allowed for each, allowed in zip(given, expected, strict=True)), f"{given} not {expected}"
        self.model.give(ask, given, self.now)

    def allocate(self, ask: Wanted) -> None:
        (answer,) = self.run(self.node.ipam.allocate(ask))
        self.settle(ask, answer)

    def run(self, *calls: Awaitable[Any]) -> list[Any]:
        """What the calls return or raise that are made at the same time."""

        async def together() -> list[Any]:
            return await asyncio.gather(*calls, return_exceptions=True)

        return self.node.run(together())

    # What happens

    @initialize(name=st.sampled_from(sorted(CONFIGURATIONS)), of=containers)
    def begin(self, name: str, of: Owner) -> None:
        self.wished = CONFIGURATIONS[name]
        self.allocate(self.ask(of))

    @rule(of=containers, sticky=keys)
    def add(self, of: Owner, sticky: str) -> None:
        self.allocate(self.ask(of, sticky=sticky))

    @rule(sticky=keys)
    def add_another(self, sticky: str) -> None:
        """A container that has nothing yet."""
        others = (owner(each) for each in CONTAINERS if not self.model.held(owner(each)))
        self.allocate(self.ask(next(others, NEW), sticky=sticky))

    @rule(of=containers, requested=addresses, sticky=keys)
    def add_with_an_address(self, of: Owner, requested: Address, sticky: str) -> None:
        self.allocate(self.ask(of, requested, sticky=sticky))

    @precondition(lambda self: self.model.sets == self.wished)
    @rule(of=st.lists(containers, min_size=2, max_size=6), releasing=st.booleans())
    def add_at_once(self, of: list[Owner], releasing: bool) -> None:
        """They share a transaction, and are served in their order."""
        asks = [self.ask(each) for each in of]
        calls: list[Awaitable[Any]] = [self.node.ipam.allocate(each) for each in asks]
        if releasing:
            calls.insert(1, self.node.ipam.release(of[0]))
        answers = self.run(*calls)
        for position, ask in enumerate(asks):
            self.settle(ask, answers.pop(0))
            if releasing and position == 0:
                assert answers.pop(0) is None
                self.model.release(of[0], self.now)

    @rule(of=containers)
    def delete(self, of: Owner) -> None:
        self.node.delete(of)
        self.model.release(of, self.now)

    @rule(of=containers, address=addresses)
    def take_back(self, of: Owner, address: Address) -> None:
        (answer,) = self.run(self.node.registry.take_back(of, address))
        assert isinstance(answer, NotFound) == (address not in self.model.held(of))
        if answer is None:
            self.model.end(address, self.now)

    @rule(name=st.sampled_from(sorted(CONFIGURATIONS)), of=containers)
    def reconfigure(self, name: str, of: Owner) -> None:
        self.allocate(self.ask(of, sets=CONFIGURATIONS[name]))
        self.wished = self.model.sets

    @rule(address=addresses, reservation=reservations)
    def reserve(self, address: Address, reservation: Reservation) -> None:
        (answer,) = self.run(self.node.registry.reserve("net1", address, reservation))
        around = [each for each in self.model.ranges() if address in each.subnet]
        if not around or any(is_withheld(address, each) for each in around):
            assert isinstance(answer, AddressNotOffered)
        elif self.model.reserved.get(address, reservation) != reservation:
            assert isinstance(answer, AddressTaken)
        else:
            assert answer is None
            self.model.reserved[address] = reservation

    @rule(address=addresses)
    def unreserve(self, address: Address) -> None:
        (answer,) = self.run(self.node.registry.unreserve("net1", address))
        assert isinstance(answer, NotFound) == (address not in self.model.reserved)
        self.model.reserved.pop(address, None)

    @rule(keep=st.frozensets(containers))
    def collect(self, keep: frozenset[Owner]) -> None:
        assert self.run(self.node.ipam.collect("net1", keep)) == [None]
        for each in {lent.owner for lent in self.model.leases.values()} - keep:
            self.model.release(each, self.now)
        self.model.reconcile(self.now, self.gone)

    @rule(passed=st.sampled_from([0, GRACE - 1, GRACE]))
    def reconcile(self, passed: int) -> None:
        """Two looks, with some time in between."""
        for seconds in (0, passed):
            self.node.clock.seconds += seconds
            assert self.run(self.node.ipam.reconcile()) == [None]
            self.model.reconcile(self.now, self.gone)

    @rule()
    def forget(self) -> None:
        (answer,) = self.run(self.node.registry.forget("net1"))
        if self.model.leases or self.model.reserved:
            assert isinstance(answer, PoolConflict)
        else:
            assert isinstance(answer, NotFound) == (not self.model.sets)
            self.model = Model()

    @rule(name=st.sampled_from(sorted(CONFIGURATIONS)))
    def status(self, name: str) -> None:
        before = self.node.dump()
        ask = self.ask(NEW, sets=CONFIGURATIONS[name])
        (answer,) = self.run(self.node.ipam.status(ask))
        expected = self.model.outcome(ask, self.now, self.gone)
        assert type(answer) is expected if isinstance(expected, type) else answer is None
        assert self.node.dump() == before

    @rule(passed=st.sampled_from([1, 20, COOLDOWN - 1, COOLDOWN]))
    def wait(self, passed: int) -> None:
        self.node.clock.seconds += passed

    @rule(of=containers)
    def vanish(self, of: Owner) -> None:
        """The namespace goes; before a reboot that says nothing of the lease."""
        leases = (self.model.leases[each] for each in self.model.held(of))
        self.node.host.gone |= {each.netns for each in leases if each.netns is not None}

    @rule(old=st.sampled_from([0, 30, 100]), survivors=st.frozensets(containers, max_size=3))
    def reboot(self, old: int, survivors: frozenset[Owner]) -> None:
        """The boot is so many seconds old when the first one looks; most namespaces are not there any more."""
        for each in {lent.owner for lent in self.model.leases.values()} - survivors:
            self.vanish(each)
        # A rest that is over but still remembered counts from the new boot again, for nothing else is known of it then.
        remembered = {each.address for each in self.node.entries().values()}
        self.model.released = {each: then for each, then in self.model.released.items() if each in remembered}
        self.node.clock.reboot()
        self.node.clock.seconds = old

    @rule()
    def reopen(self) -> None:
        self.node.reopen()

    @rule(of=containers, sticky=keys, moment=moments)
    def crash(self, of: Owner, sticky: str, moment: int) -> None:
        """Power is lost in the middle of a request: what the disk held then is all that there is."""
        ask = self.ask(of, sticky=sticky)
        self._crash(self.node.ipam.allocate(ask), moment, partial(self.settle, ask))

    @rule(of=containers, moment=moments)
    def crash_in_release(self, of: Owner, moment: int) -> None:
        self._crash(self.node.ipam.release(of), moment, lambda _: self.model.release(of, self.now))

    def _crash(self, call: Awaitable[Any], moment: int, settle: Callable[[Any], None]) -> None:
        disk, copied = self._new_directory(), False

        def copy() -> None:
            nonlocal copied
            shutil.copytree(self.node.settings.state_dir, disk, dirs_exist_ok=True)
            copied = True

        with at_statement(moment, copy):
            (answer,) = self.run(call)
        if copied:
            self.node.reopen(replace(self.node.settings, state_dir=disk))
        else:
            settle(answer)

    @rule(of=containers, sticky=keys, moment=moments)
    def abandon(self, of: Owner, sticky: str, moment: int) -> None:
        """Who asks goes away in the middle of its request: it was served, or it was not."""
        ask = self.ask(of, sticky=sticky)

        async def cancelled() -> Allocation | BaseException:
            task = asyncio.ensure_future(self.node.ipam.allocate(ask))
            with at_statement(moment, task.cancel):
                return (await asyncio.gather(task, return_exceptions=True))[0]

        answer = self.node.run(cancelled())
        self.node.reopen()
        if not isinstance(answer, asyncio.CancelledError):
            self.settle(ask, answer)
            return
        if self._view(self.node.entries().values()) == self.model.view(self.now):
            return
        held = self.node.run(self.node.ipam.held(of))
        leases = [
            next(each for each in held if offer.range_of(each.address.ip) is not None) for offer in ask.range_sets
        ]
        self.settle(ask, Allocation(leases=tuple(leases)))

    # What is true after each step

    def _view(self, entries: Iterable[Entry]) -> dict[Address, object]:
        return {
            each.address: (
                each.lease
                and (
                    each.lease.owner,
                    each.lease.boot_id,
                    each.lease.netns,
                    each.lease.address.network,
                    each.lease.gateway,
                ),
                each.reservation,
                each.suspect,
                each.state(self.now, COOLDOWN),
            )
            for each in entries
            if each.state(self.now, COOLDOWN) is not None
        }

    @invariant()
    def all_agree(self) -> None:
        entries = list(self.node.entries().values())
        assert self._view(entries) == self.model.view(self.now)
        subnets = {each.subnet for each in self.model.ranges()}
        outside = [
            f"{address} of {lent.owner} is in no pool of its network"
            for address, lent in sorted(self.model.leases.items(), key=lambda each: to_number(each[0]))
            if not any(address in each for each in subnets)
        ]
        assert self.node.findings() == outside
        self._pools_agree()
        self._history_agrees()
        numbers = (to_number(each.address) for each in entries)
        assert taken_runs(self.node.settings.database) == merged(Run(first=each, next=each + 1) for each in numbers)

    def _pools_agree(self) -> None:
        uses = {each.pool.subnet: each for each in self.node.pools("net1")}
        assert uses.keys() == {each.subnet for each in self.model.ranges()}
        for subnet, use in uses.items():
            ranges = tuple(each for each in self.model.ranges() if each.subnet == subnet)
            states = [self.model.state(each, self.now) for each in usable(RangeSet(ranges=ranges))]
            assert use.capacity == len(states) == use.leased + use.cooling + use.reserved + use.free
            assert (use.leased, use.cooling, use.reserved, use.free) == tuple(map(states.count, [*State, None]))

    def _history_agrees(self) -> None:
        """The history, played from its beginning, never gives an address to two owners, and ends where we are."""
        held: dict[Address, Owner] = {}
        reserved: dict[Address, Reservation] = {}
        for each in self.node.events(network="net1", limit=100_000):
            of = Owner(network=each.network, container_id=each.container_id, ifname=each.ifname)
            if each.happened == Happened.LEASED:
                assert held.setdefault(each.address, of) == of
            elif each.happened == Happened.RELEASED:
                assert held.pop(each.address) == of
            elif each.happened == Happened.RESERVED:
                assert each.reservation is not None
                reserved[each.address] = each.reservation
            else:
                assert reserved.pop(each.address) == each.reservation
        assert held == {address: lent.owner for address, lent in self.model.leases.items()}
        assert reserved == self.model.reserved


TestAddresses = AddressMachine.TestCase
TestAddresses.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # to find a shorter story takes longer than a test may
    suppress_health_check=[HealthCheck.too_slow],
)
