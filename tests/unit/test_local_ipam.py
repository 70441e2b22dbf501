"""The `Ipam` in this process, on a database of its own."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipam.api import Address, Allocation, Dns, Owner, RangeSet, Route, Wanted
from ipam.errors import AddressNotOffered, AddressTaken, IpamError, LeaseMissing, PoolExhausted
from ipam.local import LocalIpam
from ipam.store import from_blob
from tests.support.calls import OWNER, owner, range_sets

T = TypeVar("T")

SETS = range_sets(["10.0.0.0/29"], ["fd00::/125"])  # five and six addresses beside the gateways
POOLS = tuple(
    {ip_address(f"{start}{number}") for number in range(2, end)} for start, end in (("10.0.0.", 7), ("fd00::", 8))
)


def wanted(of: Owner, *requested: str, sets: tuple[RangeSet, ...] = SETS) -> Wanted:
    return Wanted(owner=of, range_sets=sets, requested=tuple(map(ip_address, requested)))


def addresses(given: Allocation) -> list[str]:
    return [str(each.address.ip) for each in given.leases]


def taken_runs(database: Path, network: str = "net1") -> list[tuple[int, int]]:
    """The runs that the database keeps, read behind the program's back."""
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute("SELECT first, last FROM taken WHERE network = ? ORDER BY first", (network,))
        return [(int(from_blob(first)), int(from_blob(last))) for first, last in rows]
    finally:
        connection.close()


def merged(held: set[Address]) -> list[tuple[int, int]]:
    """The addresses as runs, IPv4 first as the database sorts them."""
    runs: list[tuple[int, int]] = []
    for each in sorted(held, key=lambda address: (address.version, int(address))):
        if runs and runs[-1][1] + 1 == int(each):
            runs[-1] = (runs[-1][0], int(each))
        else:
            runs.append((int(each), int(each)))
    return runs


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "ipam.db"


def on(database: Path, story: Callable[[LocalIpam], Awaitable[T]]) -> T:
    """What the story, told with an open `LocalIpam`, returns."""

    async def run() -> T:
        ipam = await LocalIpam.open(database, patience=10)
        try:
            return await story(ipam)
        finally:
            await ipam.close()

    return asyncio.run(run())


def test_one_address_of_each_set_with_what_belongs_to_it(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        route, dns = Route(dst=ip_network("0.0.0.0/0")), Dns(domain="a.test")
        given = await ipam.allocate(Wanted(owner=OWNER, range_sets=SETS, routes=(route,), dns=dns))
        assert [(str(each.address), str(each.gateway)) for each in given.leases] == [
            ("10.0.0.2/29", "10.0.0.1"),
            ("fd00::2/125", "fd00::1"),
        ]
        assert {each.owner for each in given.leases} == {OWNER}
        assert (given.routes, given.dns) == ((route,), dns)
        assert tuple(await ipam.leases()) == given.leases
        assert await ipam.leases("net2") == []

    on(database, story)


def test_a_repeat_gives_the_same_addresses(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        first = await ipam.allocate(wanted(OWNER))
        await ipam.allocate(wanted(owner("c2")))
        assert await ipam.allocate(wanted(OWNER)) == first
        assert len(await ipam.leases()) == 4

    on(database, story)
    assert addresses(on(database, lambda ipam: ipam.allocate(wanted(OWNER)))) == ["10.0.0.2", "fd00::2"]


def test_addresses_go_round_before_one_comes_back(database: Path) -> None:
    async def story(ipam: LocalIpam) -> list[str]:
        given = []
        for _ in range(7):
            given += addresses(await ipam.allocate(wanted(OWNER, sets=SETS[:1])))
            await ipam.release(OWNER)
        return given

    assert on(database, story) == [f"10.0.0.{last}" for last in (2, 3, 4, 5, 6, 2, 3)]


def test_a_changed_configuration_keeps_what_still_fits(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(OWNER))
        moved = range_sets(["10.1.0.0/29"], ["fd00::/125"])
        assert addresses(await ipam.allocate(wanted(OWNER, sets=moved))) == ["10.1.0.2", "fd00::2"]
        assert addresses(await ipam.allocate(wanted(OWNER, sets=moved[1:]))) == ["fd00::2"]
        assert [str(each.address.ip) for each in await ipam.leases()] == ["fd00::2"]

    on(database, story)
    assert taken_runs(database) == merged({ip_address("fd00::2")})


def test_requested_addresses_are_given_wherever_they_fit(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        assert addresses(await ipam.allocate(wanted(owner("a"), "fd00::5"))) == ["10.0.0.2", "fd00::5"]
        assert addresses(await ipam.allocate(wanted(owner("b"), "fd00::6", "10.0.0.6"))) == ["10.0.0.6", "fd00::6"]
        assert addresses(await ipam.allocate(wanted(owner("b"), "10.0.0.6", "10.0.0.6"))) == ["10.0.0.6", "fd00::6"]
        assert addresses(await ipam.allocate(wanted(owner("b"), "10.0.0.5"))) == ["10.0.0.5", "fd00::6"]
        assert addresses(await ipam.allocate(wanted(owner("c")))) == ["10.0.0.3", "fd00::2"]

    on(database, story)


@pytest.mark.parametrize(
    ("requested", "kind", "message"),
    [
        (["10.0.0.6"], AddressTaken, 'address 10.0.0.6 of network "net1" is held by container other (eth0)'),
        (["10.0.0.3", "fd00::6"], AddressTaken, "fd00::6"),
        (["10.0.0.1"], AddressNotOffered, "requested address 10.0.0.1 is the gateway in subnet 10.0.0.0/29"),
        (["192.0.2.1"], AddressNotOffered, "requested address 192.0.2.1 fits no range set"),
        (["10.0.0.8"], AddressNotOffered, "requested address 10.0.0.8 fits no range set"),
        (["10.0.0.3", "10.0.0.4"], AddressNotOffered, "requested address 10.0.0.4 fits no range set"),
        (["fd00::"], AddressNotOffered, "requested address fd00:: "),
    ],
)
def test_a_requested_address_that_cannot_be_given_changes_nothing(
    database: Path, requested: list[str], kind: type[IpamError], message: str
) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(owner("other"), "10.0.0.6", "fd00::6"))
        await ipam.allocate(wanted(OWNER))
        before = await ipam.leases()
        for of in (OWNER, owner("new")):
            with pytest.raises(kind) as caught:
                await ipam.allocate(wanted(of, *requested))
            assert message in str(caught.value)
        assert await ipam.leases() == before

    on(database, story)


def test_the_subnets_own_and_broadcast_addresses_are_never_given(database: Path) -> None:
    (offer,) = range_sets(["10.0.0.0/30"])
    whole = RangeSet(
        ranges=tuple(
            type(each)(subnet=each.subnet, first=ip_address("10.0.0.0"), last=ip_address("10.0.0.3"), gateway=None)
            for each in offer.ranges
        )
    )

    async def story(ipam: LocalIpam) -> None:
        given = [addresses(await ipam.allocate(wanted(owner(each), sets=(whole,))))[0] for each in "ab"]
        assert given == ["10.0.0.1", "10.0.0.2"]
        for request in ("10.0.0.0", "10.0.0.3"):
            with pytest.raises(AddressNotOffered, match="never handed out"):
                await ipam.allocate(wanted(owner("c"), request, sets=(whole,)))

    on(database, story)


def test_exhaustion_takes_nothing_and_ends_with_a_release(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        for name in "abcde":
            await ipam.status(wanted(owner("next")))
            await ipam.allocate(wanted(owner(name)))
        before = await ipam.leases()
        for call in (ipam.allocate, ipam.status):
            with pytest.raises(PoolExhausted, match=r'range set 10.0.0.1-10.0.0.6 of network "net1"'):
                await call(wanted(owner("f")))
        assert await ipam.leases() == before  # the IPv6 set still has one, which nobody got
        assert await ipam.allocate(wanted(owner("a")))
        await ipam.release(owner("c"))
        await ipam.status(wanted(owner("f")))
        assert addresses(await ipam.allocate(wanted(owner("f")))) == ["10.0.0.4", "fd00::7"]

    on(database, story)


def test_status_leaves_no_trace(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.status(wanted(OWNER))
        assert await ipam.leases() == []
        assert addresses(await ipam.allocate(wanted(OWNER))) == ["10.0.0.2", "fd00::2"]

    on(database, story)


def test_release_is_for_one_attachment_and_may_be_repeated(database: Path) -> None:
    others = [owner("c1", ifname="eth1"), owner("c2"), owner("c1", network="net2")]

    async def story(ipam: LocalIpam) -> None:
        for each in (OWNER, *others):
            await ipam.allocate(wanted(each))
        for _ in range(2):
            await ipam.release(OWNER)
            assert {each.owner for each in await ipam.leases()} == set(others)

    on(database, story)


def test_collect_keeps_what_is_valid_and_other_networks(database: Path) -> None:
    everyone = [OWNER, owner("c1", ifname="eth1"), owner("c2"), owner("c1", network="net2")]

    async def story(ipam: LocalIpam) -> None:
        for each in everyone:
            await ipam.allocate(wanted(each))
        await ipam.collect("net1", frozenset({OWNER, owner("never seen")}))
        assert {each.owner for each in await ipam.leases()} == {OWNER, everyone[3]}
        await ipam.collect("net1", frozenset())
        assert {each.owner for each in await ipam.leases()} == {everyone[3]}

    on(database, story)
    assert taken_runs(database) == []


def test_check(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        with pytest.raises(LeaseMissing, match="no lease of net1/c1/eth0 for any address"):
            await ipam.check(wanted(OWNER), ())
        given = await ipam.allocate(wanted(OWNER))
        await ipam.check(wanted(OWNER), tuple(each.address for each in given.leases))
        await ipam.check(wanted(OWNER), ())
        with pytest.raises(LeaseMissing, match=r"10.0.0.9/29"):
            await ipam.check(wanted(OWNER), (given.leases[0].address, ip_interface("10.0.0.9/29")))
        with pytest.raises(LeaseMissing):
            await ipam.check(wanted(owner("c2")), (given.leases[0].address,))

    on(database, story)


def test_networks_have_pools_of_their_own(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        for network in ("net1", "net2"):
            assert addresses(await ipam.allocate(wanted(owner("c1", network=network)))) == ["10.0.0.2", "fd00::2"]

    on(database, story)


def test_two_on_one_file_never_give_an_address_twice(database: Path) -> None:
    sets = range_sets(["10.0.0.0/26"], ["fd00::/64"])

    async def run() -> list[str]:
        both = [await LocalIpam.open(database, patience=10) for _ in range(2)]
        try:
            given = await asyncio.gather(
                *(both[number % 2].allocate(wanted(owner(f"c{number}"), sets=sets)) for number in range(40))
            )
            return [address for each in given for address in addresses(each)]
        finally:
            for each in both:
                await each.close()

    given = asyncio.run(run())
    assert len(set(given)) == 80
    assert taken_runs(database) == merged(set(map(ip_address, given)))


def test_a_cancelled_request_leaves_the_database_usable(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        for steps in range(0, 60, 3):
            task = asyncio.ensure_future(ipam.allocate(wanted(OWNER)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            held = await ipam.leases()
            assert len(held) in (0, 2)
            assert taken_runs(database) == merged({each.address.ip for each in held})
            await ipam.release(OWNER)

    on(database, story)


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A call of it is a reboot, as the database sees it."""
    boots = count(1)

    def call() -> None:
        this = f"boot {next(boots)}"
        monkeypatch.setattr("ipam.store.boot_id", lambda: this)

    return call


def dump(database: Path) -> list[str]:
    """All that the database holds."""
    connection = sqlite3.connect(database)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def changed_range(**changes: object) -> tuple[RangeSet, ...]:
    """The IPv4 set with another gateway, ends or subnet."""
    (each,) = SETS[0].ranges
    return (RangeSet(ranges=(replace(each, **changes),)),)  # type: ignore[arg-type]  # whatever the test changes


def test_a_lease_is_given_anew_with_a_changed_gateway(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(OWNER, "10.0.0.3", sets=SETS[:1]))
        for gateway in (ip_address("10.0.0.6"), None):
            sets = changed_range(gateway=gateway)
            given = await ipam.allocate(wanted(OWNER, "10.0.0.3", sets=sets))
            assert [(str(each.address), each.gateway) for each in given.leases] == [("10.0.0.3/29", gateway)]
            assert await ipam.allocate(wanted(OWNER, sets=sets)) == given
            assert tuple(await ipam.leases()) == given.leases

    on(database, story)
    assert taken_runs(database) == merged({ip_address("10.0.0.3")})


@pytest.mark.parametrize(
    ("changes", "now"),
    [
        ({"gateway": ip_address("10.0.0.2")}, "10.0.0.3/29"),
        ({"first": ip_address("10.0.0.4")}, "10.0.0.4/29"),
        ({"subnet": ip_network("10.0.0.2/31"), "last": ip_address("10.0.0.3"), "gateway": None}, "10.0.0.2/31"),
        ({"subnet": ip_network("10.0.0.0/28"), "gateway": None}, "10.0.0.2/28"),
    ],
    ids=["it is the gateway", "outside of the range", "smaller subnet", "larger subnet"],
)
def test_a_lease_that_does_not_fit_any_more_is_replaced(database: Path, changes: dict[str, object], now: str) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(OWNER, sets=SETS[:1]))
        sets = changed_range(**{"first": ip_address("10.0.0.2"), **changes})
        given = await ipam.allocate(wanted(OWNER, sets=sets))
        assert [str(each.address) for each in given.leases] == [now]
        assert tuple(await ipam.leases()) == given.leases

    on(database, story)


def test_a_lease_that_is_never_handed_out_now_is_replaced(database: Path) -> None:
    async def story(ipam: LocalIpam) -> list[str]:
        await ipam.allocate(wanted(OWNER, "10.0.0.3", sets=SETS[:1]))
        smaller = range_sets(["10.0.0.0/30"])[0].ranges[0]
        whole = (RangeSet(ranges=(replace(smaller, last=ip_address("10.0.0.3")),)),)
        return addresses(await ipam.allocate(wanted(OWNER, sets=whole)))

    assert on(database, story) == ["10.0.0.2"], "10.0.0.3 is the broadcast address of 10.0.0.0/30"


def test_a_requested_address_of_an_earlier_boot_is_given(database: Path, reboot: Callable[[], None]) -> None:
    async def story(ipam: LocalIpam) -> None:
        reboot()
        await ipam.allocate(wanted(owner("before"), "10.0.0.4"))
        with pytest.raises(AddressTaken):
            await ipam.allocate(wanted(OWNER, "10.0.0.4"))
        reboot()
        assert addresses(await ipam.allocate(wanted(OWNER, "10.0.0.4"))) == ["10.0.0.4", "fd00::3"]
        assert [str(each.address.ip) for each in await ipam.held(owner("before"))] == ["fd00::2"]
        with pytest.raises(AddressTaken, match="c1"):
            await ipam.allocate(wanted(owner("before"), "10.0.0.4"))

    on(database, story)
    assert taken_runs(database) == merged(set(map(ip_address, ("10.0.0.4", "fd00::2", "fd00::3"))))


def test_a_full_pool_reuses_addresses_of_an_earlier_boot(database: Path, reboot: Callable[[], None]) -> None:
    async def story(ipam: LocalIpam) -> None:
        reboot()
        for name in "abcde":
            await ipam.allocate(wanted(owner(name), sets=SETS[:1]))
        reboot()
        await ipam.allocate(wanted(owner("c"), sets=SETS[:1]))  # c lives on
        for number, name in enumerate("vwxy", 1):
            before = dump(database)
            await ipam.status(wanted(owner(name), sets=SETS[:1]))
            assert dump(database) == before
            await ipam.allocate(wanted(owner(name), sets=SETS[:1]))
            held = {each.owner.container_id for each in await ipam.leases()}
            assert len(held & set("abde")) == 4 - number, "one at a time"
        assert held == set("cvwxy")
        for call in (ipam.allocate, ipam.status):
            with pytest.raises(PoolExhausted):
                await call(wanted(owner("z"), sets=SETS[:1]))
        assert {each.owner.container_id for each in await ipam.leases()} == held

    on(database, story)
    assert taken_runs(database) == merged(POOLS[0])


def test_free_addresses_are_given_before_those_of_an_earlier_boot(database: Path, reboot: Callable[[], None]) -> None:
    async def story(ipam: LocalIpam) -> list[str]:
        reboot()
        await ipam.allocate(wanted(owner("before"), sets=SETS[:1]))
        reboot()
        given = [await ipam.allocate(wanted(owner(name), sets=SETS[:1])) for name in "abcde"]
        return [address for each in given for address in addresses(each)]

    assert on(database, story) == [f"10.0.0.{last}" for last in (3, 4, 5, 6, 2)]


def test_only_the_networks_own_pool_is_reused(database: Path, reboot: Callable[[], None]) -> None:
    async def story(ipam: LocalIpam) -> None:
        reboot()
        for name in "abcde":
            await ipam.allocate(wanted(owner(name, network="net2"), sets=SETS[:1]))
        reboot()
        for name in "abcde":
            await ipam.allocate(wanted(owner(name), sets=SETS[:1]))
        with pytest.raises(PoolExhausted):
            await ipam.allocate(wanted(owner("f"), sets=SETS[:1]))
        assert len(await ipam.leases("net2")) == 5

    on(database, story)


def test_a_repeat_after_a_reboot_keeps_the_address_and_confirms_it(database: Path, reboot: Callable[[], None]) -> None:
    async def story(ipam: LocalIpam) -> None:
        reboot()
        first = await ipam.allocate(wanted(OWNER))
        reboot()
        again = await ipam.allocate(wanted(OWNER))
        assert addresses(again) == addresses(first)
        assert {each.boot_id for each in await ipam.leases()} == {"boot 2"}
        with pytest.raises(AddressTaken):
            await ipam.allocate(wanted(owner("c2"), addresses(first)[0]))

    on(database, story)


owners = st.sampled_from([owner(name) for name in "abcdefg"])


class LeaseMachine(RuleBasedStateMachine):
    """Random operations on the database and on a dict, which agree after each."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.database = Path(self.directory.name) / "ipam.db"
        self.loop = asyncio.Runner()
        self.ipam = self.loop.run(LocalIpam.open(self.database, patience=10))
        self.held: dict[Owner, tuple[Address, ...]] = {}

    def teardown(self) -> None:
        self.loop.run(self.ipam.close())
        self.loop.close()
        self.directory.cleanup()

    def free(self) -> list[set[Address]]:
        taken = {address for each in self.held.values() for address in each}
        return [pool - taken for pool in POOLS]

    @rule(of=owners)
    def allocate(self, of: Owner) -> None:
        try:
            given = self.loop.run(self.ipam.allocate(wanted(of)))
        except PoolExhausted:
            assert of not in self.held
            assert not all(self.free())
            return
        found = tuple(each.address.ip for each in given.leases)
        if of in self.held:
            assert found == self.held[of]
        else:
            assert all(address in free for address, free in zip(found, self.free(), strict=True))
        self.held[of] = found

    @rule(of=owners, requested=st.sampled_from(sorted(POOLS[0], key=int)))
    def request(self, of: Owner, requested: Address) -> None:
        holder = next((each for each, held in self.held.items() if requested in held), None)
        try:
            given = self.loop.run(self.ipam.allocate(wanted(of, str(requested))))
        except AddressTaken:
            assert holder not in (None, of)
            return
        except PoolExhausted:
            assert of not in self.held
            assert not self.free()[1]
            return
        assert holder in (None, of)
        found = tuple(each.address.ip for each in given.leases)
        assert found[0] == requested
        if of in self.held:
            assert found[1] == self.held[of][1]
        else:
            assert found[1] in self.free()[1]
        self.held[of] = found

    @rule(of=owners)
    def release(self, of: Owner) -> None:
        self.loop.run(self.ipam.release(of))
        self.held.pop(of, None)

    @rule(keep=st.frozensets(owners))
    def collect(self, keep: frozenset[Owner]) -> None:
        self.loop.run(self.ipam.collect("net1", keep))
        self.held = {each: held for each, held in self.held.items() if each in keep}

    @rule()
    def reopen(self) -> None:
        self.loop.run(self.ipam.close())
        self.ipam = self.loop.run(LocalIpam.open(self.database, patience=10))

    @invariant()
    def leases_agree(self) -> None:
        leases = self.loop.run(self.ipam.leases())
        expected = {(each, address) for each, held in self.held.items() for address in held}
        assert {(each.owner, each.address.ip) for each in leases} == expected
        assert len(leases) == len(expected)
        assert taken_runs(self.database) == merged({address for _, address in expected})


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=20, stateful_step_count=30, deadline=None, database=None)
