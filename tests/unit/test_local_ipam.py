"""The `Ipam` in this process, on a database of its own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipam.allocator import Run, merged
from ipam.api import Address, Allocation, AnySubnet, Dns, Owner, RangeSet, Route, Wanted
from ipam.blobs import to_number
from ipam.clock import Moment, now
from ipam.errors import AddressNotOffered, AddressTaken, IpamError, LeaseMissing, PoolConflict, PoolExhausted
from ipam.host import ToldHost
from ipam.local import LocalIpam
from ipam.settings import AddressSettings, Settings
from tests.support.calls import OWNER, Clock, behind, entries, leases, owner, range_sets, taken_runs

T = TypeVar("T")

SETS = range_sets(["10.0.0.0/29"], ["fd00::/125"])  # five and six addresses beside the gateways
POOLS = tuple(
    {ip_address(f"{start}{number}") for number in range(2, end)} for start, end in (("10.0.0.", 7), ("fd00::", 8))
)


def wanted(of: Owner, *requested: str, sets: tuple[RangeSet, ...] = SETS, shared: bool = False) -> Wanted:
    """`shared`: the network's subnets may be those of others too."""
    return Wanted(owner=of, range_sets=sets, requested=tuple(map(ip_address, requested)), allow_overlap=shared)


def addresses(given: Allocation) -> list[str]:
    return [str(each.address.ip) for each in given.leases]


def runs_of(*some: Address | str) -> tuple[Run, ...]:
    """The addresses as runs."""
    numbers = [to_number(ip_address(each)) for each in some]
    return merged(Run(first=each, next=each + 1) for each in numbers)


def held_by(database: Path, network: str = "net1") -> list[str]:
    """Who holds what in the network, each as `CONTAINER ADDRESS`."""
    return [f"{each.owner.container_id} {each.address.ip}" for each in leases(database, network)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "ipam.db"


def on(
    database: Path,
    story: Callable[[LocalIpam], Awaitable[T]],
    *,
    clock: Callable[[], Moment] = now,
    cooldown: int = 60,
) -> T:
    """What the story, told with an open `LocalIpam`, returns."""
    settings = Settings(state_dir=database.parent, addresses=AddressSettings(cooldown=cooldown))

    async def run() -> T:
        ipam = await LocalIpam.open(settings, ToldHost(), clock=clock)
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
        assert tuple(leases(database)) == given.leases
        assert leases(database, "net2") == []

    on(database, story)


def test_a_repeat_gives_the_same_addresses(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        first = await ipam.allocate(wanted(OWNER))
        await ipam.allocate(wanted(owner("c2")))
        assert await ipam.allocate(wanted(OWNER)) == first
        assert len(leases(database)) == 4

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
        assert held_by(database) == ["c1 fd00::2"]

    on(database, story)
    assert taken_runs(database) == runs_of(*(each.address for each in entries(database)))


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
        before = leases(database)
        for of in (OWNER, owner("new")):
            with pytest.raises(kind) as caught:
                await ipam.allocate(wanted(of, *requested))
            assert message in str(caught.value)
        assert leases(database) == before

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
        before = leases(database)
        for call in (ipam.allocate, ipam.status):
            with pytest.raises(PoolExhausted, match=r'range set 10.0.0.1-10.0.0.6 of network "net1"'):
                await call(wanted(owner("f")))
        assert leases(database) == before  # the IPv6 set still has one, which nobody got
        assert await ipam.allocate(wanted(owner("a")))
        await ipam.release(owner("c"))
        await ipam.status(wanted(owner("f")))
        assert addresses(await ipam.allocate(wanted(owner("f")))) == ["10.0.0.4", "fd00::7"]

    on(database, story)


def test_status_leaves_no_trace(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.status(wanted(OWNER))
        assert leases(database) == []
        assert addresses(await ipam.allocate(wanted(OWNER))) == ["10.0.0.2", "fd00::2"]

    on(database, story)


def test_release_is_for_one_attachment_and_may_be_repeated(database: Path) -> None:
    others = [owner("c1", ifname="eth1"), owner("c2"), owner("c1", network="net2")]

    async def story(ipam: LocalIpam) -> None:
        for each in (OWNER, *others):
            await ipam.allocate(wanted(each, shared=True))
        for _ in range(2):
            await ipam.release(OWNER)
            assert {each.owner for each in (*leases(database), *leases(database, "net2"))} == set(others)

    on(database, story)


def test_collect_keeps_what_is_valid_and_other_networks(database: Path) -> None:
    everyone = [OWNER, owner("c1", ifname="eth1"), owner("c2"), owner("c1", network="net2")]

    async def story(ipam: LocalIpam) -> None:
        for each in everyone:
            await ipam.allocate(wanted(each, shared=True))
        await ipam.collect("net1", frozenset({OWNER, owner("never seen")}))
        assert {each.owner for each in leases(database)} == {OWNER}
        await ipam.collect("net1", frozenset())
        assert leases(database) == []
        assert {each.owner for each in leases(database, "net2")} == {everyone[3]}

    on(database, story)
    assert taken_runs(database) == runs_of(*(each.address for each in entries(database)))


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


def test_networks_that_allow_it_use_the_same_subnet(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        for network in ("net1", "net2"):
            given = await ipam.allocate(wanted(owner("c1", network=network), shared=network == "net2"))
            assert addresses(given) == ["10.0.0.2", "fd00::2"]

    on(database, story)


@pytest.mark.parametrize("subnet", ["10.0.0.0/29", "10.0.0.4/30", "10.0.0.0/8"])
def test_a_subnet_of_another_network_is_refused(database: Path, subnet: str) -> None:
    theirs = wanted(owner("c1", network="net2"), sets=range_sets([subnet]))

    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(OWNER, sets=SETS[:1]))
        for call in (ipam.allocate, ipam.status):
            with pytest.raises(
                PoolConflict, match=rf'{subnet} of network "net2" overlaps 10.0.0.0/29 of network "net1"'
            ):
                await call(theirs)
        assert leases(database, "net2") == []

    on(database, story)


def test_a_subnet_in_which_others_have_leases_cannot_be_left(database: Path) -> None:
    moved = range_sets(["10.1.0.0/29"], ["fd00::/125"])

    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(owner("other")))
        for call in (ipam.allocate, ipam.status):
            with pytest.raises(
                PoolConflict, match=r"10.0.0.0/29, where there are leases: 10.0.0.2 \(net1/other/eth0\)"
            ):
                await call(wanted(OWNER, sets=moved))
        assert held_by(database) == ["other 10.0.0.2", "other fd00::2"]
        assert addresses(await ipam.allocate(wanted(OWNER))) == ["10.0.0.3", "fd00::3"], "as it was configured"
        await ipam.release(owner("other"))
        assert addresses(await ipam.allocate(wanted(OWNER, sets=moved))) == ["10.1.0.2", "fd00::3"]

    on(database, story)


def test_a_network_without_a_subnet_keeps_the_one_it_gets(database: Path) -> None:
    any_subnet = (RangeSet(any_subnet=AnySubnet(family=4)),)

    async def story(ipam: LocalIpam) -> list[str]:
        given = [await ipam.allocate(wanted(owner(name), sets=any_subnet)) for name in "ab"]
        await ipam.release(owner("a"))
        await ipam.release(owner("b"))
        given.append(await ipam.allocate(wanted(owner("c"), sets=any_subnet)))
        given.append(await ipam.allocate(wanted(owner("a", network="net2"), sets=any_subnet)))
        return [str(each.leases[0].address) for each in given]

    assert on(database, story) == ["10.168.0.2/24", "10.168.0.3/24", "10.168.0.4/24", "10.168.1.2/24"]


def test_a_released_address_rests_while_another_is_free(database: Path) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> list[str]:
        await ipam.allocate(wanted(owner("a"), sets=SETS[:1]))
        await ipam.allocate(wanted(owner("b"), "10.0.0.3", sets=SETS[:1]))
        await ipam.release(owner("b"))
        clock.seconds += 59
        return [addresses(await ipam.allocate(wanted(owner(name), sets=SETS[:1])))[0] for name in "cdef"]

    assert on(database, story, clock=clock) == ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.3"]


@pytest.mark.parametrize(
    ("wait", "given"),
    [(59, ["10.0.0.5", "10.0.0.2"]), (60, ["10.0.0.5", "10.0.0.2"]), (70, ["10.0.0.2", "10.0.0.5"])],
    ids=["none has rested", "one has rested", "both have rested"],
)
def test_of_those_at_rest_the_longest_is_given_and_afterwards_in_turn(
    database: Path, wait: int, given: list[str]
) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> list[str]:
        for name in "abcde":
            await ipam.allocate(wanted(owner(name), sets=SETS[:1]))
        await ipam.release(owner("d"))  # 10.0.0.5
        clock.seconds += 10
        await ipam.release(owner("a"))  # 10.0.0.2
        clock.seconds += wait - 10
        return [addresses(await ipam.allocate(wanted(owner(name), sets=SETS[:1])))[0] for name in "xy"]

    assert on(database, story, clock=clock) == given


def test_a_requested_address_need_not_rest(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(OWNER, "10.0.0.4"))
        await ipam.release(OWNER)
        assert addresses(await ipam.allocate(wanted(owner("c2"), "10.0.0.4")))[0] == "10.0.0.4"

    on(database, story)
    assert held_by(database)[0] == "c2 10.0.0.4"


def test_two_on_one_file_never_give_an_address_twice(database: Path) -> None:
    sets = range_sets(["10.0.0.0/26"], ["fd00::/64"])

    async def run() -> list[str]:
        both = [await LocalIpam.open(Settings(state_dir=database.parent), ToldHost()) for _ in range(2)]
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
    assert taken_runs(database) == runs_of(*given)


def test_a_cancelled_request_leaves_the_database_usable(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        for steps in range(0, 60, 3):
            task = asyncio.ensure_future(ipam.allocate(wanted(OWNER)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await ipam.release(owner("nobody"))  # behind whatever is still being written
            assert len(leases(database)) in (0, 2)
            assert taken_runs(database) == runs_of(*(each.address for each in entries(database)))
            await ipam.release(OWNER)
            assert leases(database) == []

    on(database, story)


def dump(database: Path) -> list[str]:
    """All that the database holds."""
    with behind(database) as connection:
        return list(connection.iterdump())


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
            assert tuple(leases(database)) == given.leases

    on(database, story)
    assert taken_runs(database) == runs_of("10.0.0.3")


def test_an_owner_alone_in_a_full_pool_gets_its_address_with_the_changed_gateway(database: Path) -> None:
    only = {"first": ip_address("10.0.0.4"), "last": ip_address("10.0.0.4")}

    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(OWNER, sets=changed_range(**only)))
        given = await ipam.allocate(wanted(OWNER, sets=changed_range(**only, gateway=None)))
        assert [(str(each.address), each.gateway) for each in given.leases] == [("10.0.0.4/29", None)]

    on(database, story)
    assert held_by(database) == ["c1 10.0.0.4"]


def test_an_address_that_another_holds_cannot_become_the_gateway(database: Path) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(owner("other"), "10.0.0.6", sets=SETS[:1]))
        with pytest.raises(PoolConflict, match=r"gateway 10.0.0.6 .* is an address of 10.0.0.6 \(net1/other/eth0\)"):
            await ipam.allocate(wanted(OWNER, sets=changed_range(gateway=ip_address("10.0.0.6"))))

    on(database, story)
    assert held_by(database) == ["other 10.0.0.6"]


@pytest.mark.parametrize(
    ("changes", "replaced_by"),
    [
        ({"gateway": ip_address("10.0.0.2")}, "10.0.0.3/29"),
        ({"first": ip_address("10.0.0.4")}, "10.0.0.4/29"),
        ({"subnet": ip_network("10.0.0.2/31"), "last": ip_address("10.0.0.3"), "gateway": None}, "10.0.0.2/31"),
        ({"subnet": ip_network("10.0.0.0/28"), "gateway": None}, "10.0.0.2/28"),
    ],
    ids=["it is the gateway", "outside of the range", "smaller subnet", "larger subnet"],
)
def test_a_lease_that_does_not_fit_any_more_is_replaced(
    database: Path, changes: dict[str, object], replaced_by: str
) -> None:
    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(OWNER, sets=SETS[:1]))
        sets = changed_range(**{"first": ip_address("10.0.0.2"), **changes})
        given = await ipam.allocate(wanted(OWNER, sets=sets))
        assert [str(each.address) for each in given.leases] == [replaced_by]
        assert tuple(leases(database)) == given.leases

    on(database, story)


def test_a_lease_that_is_never_handed_out_now_is_replaced(database: Path) -> None:
    async def story(ipam: LocalIpam) -> list[str]:
        await ipam.allocate(wanted(OWNER, "10.0.0.3", sets=SETS[:1]))
        smaller = range_sets(["10.0.0.0/30"])[0].ranges[0]
        whole = (RangeSet(ranges=(replace(smaller, last=ip_address("10.0.0.3")),)),)
        return addresses(await ipam.allocate(wanted(OWNER, sets=whole)))

    assert on(database, story) == ["10.0.0.2"], "10.0.0.3 is the broadcast address of 10.0.0.0/30"


def test_a_requested_address_of_an_earlier_boot_is_given(database: Path) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> None:
        await ipam.allocate(wanted(owner("before"), "10.0.0.4"))
        with pytest.raises(AddressTaken):
            await ipam.allocate(wanted(OWNER, "10.0.0.4"))
        clock.reboot()
        assert addresses(await ipam.allocate(wanted(OWNER, "10.0.0.4"))) == ["10.0.0.4", "fd00::3"]
        assert [str(each.address.ip) for each in await ipam.held(owner("before"))] == ["fd00::2"]
        with pytest.raises(AddressTaken, match="c1"):
            await ipam.allocate(wanted(owner("before"), "10.0.0.4"))

    on(database, story, clock=clock)
    assert taken_runs(database) == runs_of("10.0.0.4", "fd00::2", "fd00::3")


def test_a_full_pool_reuses_addresses_of_an_earlier_boot(database: Path) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> None:
        for name in "abcde":
            await ipam.allocate(wanted(owner(name), sets=SETS[:1]))
        clock.reboot()
        await ipam.allocate(wanted(owner("c"), sets=SETS[:1]))  # c lives on
        for number, name in enumerate("vwxy", 1):
            before = dump(database)
            await ipam.status(wanted(owner(name), sets=SETS[:1]))
            assert dump(database) == before
            await ipam.allocate(wanted(owner(name), sets=SETS[:1]))
            held = {each.owner.container_id for each in leases(database)}
            assert len(held & set("abde")) == 4 - number, "one at a time"
        assert held == set("cvwxy")
        for call in (ipam.allocate, ipam.status):
            with pytest.raises(PoolExhausted):
                await call(wanted(owner("z"), sets=SETS[:1]))
        assert {each.owner.container_id for each in leases(database)} == held

    on(database, story, clock=clock)
    assert taken_runs(database) == runs_of(*POOLS[0])


def test_free_addresses_are_given_before_those_of_an_earlier_boot(database: Path) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> list[str]:
        await ipam.allocate(wanted(owner("before"), sets=SETS[:1]))
        clock.reboot()
        given = [await ipam.allocate(wanted(owner(name), sets=SETS[:1])) for name in "abcde"]
        return [address for each in given for address in addresses(each)]

    assert on(database, story, clock=clock) == [f"10.0.0.{last}" for last in (3, 4, 5, 6, 2)]


def test_addresses_at_rest_are_given_before_leases_of_an_earlier_boot(database: Path) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> list[str]:
        for name in "abcde":
            await ipam.allocate(wanted(owner(name), sets=SETS[:1]))
        clock.reboot()
        await ipam.release(owner("d"))
        return [addresses(await ipam.allocate(wanted(owner(name), sets=SETS[:1])))[0] for name in "xy"]

    assert on(database, story, clock=clock) == ["10.0.0.5", "10.0.0.2"]


def test_only_the_networks_own_pool_is_reused(database: Path) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> None:
        for name in "abcde":
            await ipam.allocate(wanted(owner(name, network="net2"), sets=SETS[:1]))
        clock.reboot()
        for name in "abcde":
            await ipam.allocate(wanted(owner(name), sets=SETS[:1], shared=True))
        with pytest.raises(PoolExhausted):
            await ipam.allocate(wanted(owner("f"), sets=SETS[:1], shared=True))
        assert len(leases(database, "net2")) == 5

    on(database, story, clock=clock)


def test_a_repeat_after_a_reboot_keeps_the_address_and_confirms_it(database: Path) -> None:
    clock = Clock()

    async def story(ipam: LocalIpam) -> None:
        first = await ipam.allocate(wanted(OWNER))
        clock.reboot()
        again = await ipam.allocate(wanted(OWNER))
        assert addresses(again) == addresses(first)
        assert {each.boot_id for each in leases(database)} == {"boot 2"}
        with pytest.raises(AddressTaken):
            await ipam.allocate(wanted(owner("c2"), addresses(first)[0]))

    on(database, story, clock=clock)


owners = st.sampled_from([owner(name) for name in "abcdefg"])


class LeaseMachine(RuleBasedStateMachine):
    """Random operations on the database and on a dict, which agree after each."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.settings = Settings(state_dir=Path(self.directory.name))
        self.loop = asyncio.Runner()
        self.ipam = self.loop.run(LocalIpam.open(self.settings, ToldHost()))
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
        self.ipam = self.loop.run(LocalIpam.open(self.settings, ToldHost()))

    @invariant()
    def leases_agree(self) -> None:
        known = entries(self.settings.database)
        found = [(each.lease.owner, each.address) for each in known if each.lease is not None]
        assert set(found) == {(each, address) for each, held in self.held.items() for address in held}
        assert taken_runs(self.settings.database) == runs_of(*(each.address for each in known))


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = hypothesis_settings(max_examples=20, stateful_step_count=30, deadline=None, database=None)
