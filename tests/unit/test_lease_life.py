"""The life of an address: given, at rest after its release, reserved, remembered, and suspect after a reboot.

Issue numbers are those of other address managers, whose behaviour must not be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ipam.api import NetnsRef, RangeSet, ReservedFor
from ipam.errors import AddressNotOffered, AddressTaken, NotFound, PoolExhausted
from ipam.host import ToldHost
from ipam.local import LocalIpam
from ipam.ranges import build_range
from ipam.registry import Moved, State
from tests.support.calls import owner, range_sets
from tests.support.node import Node, changed, netns, node_on, wanted

SETS = range_sets(["10.0.0.0/29"])  # .2 to .6
BOTH = range_sets(["10.0.0.0/29"], ["fd00::/125"])  # ::2 to ::7
ONE_EACH = range_sets(["10.0.0.0/30"], ["fd00::/127"])
ALL = [f"10.0.0.{last}" for last in range(2, 7)]
MAC = "02:00:00:00:00:07"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with node_on(tmp_path, cooldown=60, suspect_grace=60) as made:
        yield made


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def fill(node: Node, names: str = "abcde", sets: tuple[RangeSet, ...] = SETS) -> None:
    """Give each of these containers an address, and a namespace of its own."""
    for name in names:
        node.add(name, sets=sets, netns=netns(name))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.levelno >= logging.WARNING]


# Rest


def test_a_released_address_is_not_given_while_another_is_free(node: Node) -> None:
    """whereabouts #288, Calico #6968: connections to the last owner reach the next one."""
    given = []
    for number in range(5):
        given += node.add(f"c{number}", sets=SETS)
        node.delete(f"c{number}")
    assert given == ALL


def test_an_address_at_rest_is_not_counted_as_free(node: Node) -> None:
    """AWS ipamd #1700, #2896: what cools down was counted as available."""
    fill(node, "abc")
    node.delete("a", "b")
    assert node.counts() == (1, 2, 0, 2)
    node.clock.seconds += 59
    assert node.counts() == (1, 2, 0, 2)
    node.clock.seconds += 1
    assert node.counts() == (1, 0, 0, 4)
    assert node.findings() == []


def test_rest_is_cut_short_for_the_last_address_only_and_said(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    fill(node)
    for name in "cab":
        node.delete(name)
        node.clock.seconds += 5
    assert node.counts() == (2, 3, 0, 0)
    assert [node.add(name, sets=SETS) for name in "xyz"] == [["10.0.0.4"], ["10.0.0.2"], ["10.0.0.3"]]
    assert warnings(caplog) == [
        f'network "net1" has no other address: 10.0.0.{last} is given before its rest is over' for last in (4, 2, 3)
    ]
    with pytest.raises(PoolExhausted):
        node.add("w", sets=SETS)


def test_what_a_shared_transaction_undid_is_said_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    fill(node)
    node.delete("c")

    def mishap(_: object) -> None:
        raise ValueError("so that each job is run again alone")

    async def both() -> None:
        allocating = node.ipam.allocate(wanted("x", sets=SETS))
        _, failure = await asyncio.gather(allocating, node.store.write(mishap), return_exceptions=True)
        assert isinstance(failure, ValueError)

    node.run(both())
    assert node.holders()["10.0.0.4"] == "x"
    assert warnings(caplog) == ['network "net1" has no other address: 10.0.0.4 is given before its rest is over']


def test_the_longest_rest_is_found_across_ranges_and_reboots(node: Node) -> None:
    sets = range_sets(["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"])
    fill(node, "abc", sets)
    node.delete("b")
    node.clock.reboot()
    node.delete("c")
    node.clock.seconds += 20
    node.delete("a")
    assert [node.add(name, sets=sets)[0] for name in "xyz"] == ["10.0.1.2", "10.0.2.2", "10.0.0.2"]


def test_nothing_is_said_when_the_rest_is_over(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    fill(node)
    node.delete("c")
    node.clock.seconds += 60
    assert node.add("x", sets=SETS) == ["10.0.0.4"]
    assert warnings(caplog) == []


def test_rest_survives_a_restart(node: Node) -> None:
    """AWS ipamd #1127: the cool-down was lost when the daemon restarted."""
    fill(node, "abcd")
    node.delete("d")
    node.reopen()
    assert node.states()["10.0.0.5"] == State.COOLING
    assert [node.add(name, sets=SETS)[0] for name in "xy"] == ["10.0.0.6", "10.0.0.5"]


@pytest.mark.parametrize(("seconds", "state"), [(0, State.COOLING), (59, State.COOLING), (60, None), (61, None)])
def test_after_a_reboot_the_rest_is_over_when_the_boot_is_old_enough(
    node: Node, seconds: float, state: State | None
) -> None:
    node.add("a", sets=SETS)
    node.delete("a")
    node.clock.reboot()
    node.clock.seconds = seconds
    assert node.states() == {"10.0.0.2": state}
    assert node.counts() == ((0, 1, 0, 4) if state else (0, 0, 0, 5))


@pytest.mark.parametrize("years", [-30, 30])
def test_the_wall_clock_does_not_matter(node: Node, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    class Jumped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2026 + years, 1, 1, tzinfo=UTC)

    fill(node)
    node.delete("a")
    monkeypatch.setattr("ipam.local.datetime", Jumped)
    assert node.states()["10.0.0.2"] == State.COOLING
    node.clock.seconds += 60
    assert node.states()["10.0.0.2"] is None
    assert node.add("x", sets=SETS) == ["10.0.0.2"]


def test_a_rest_that_is_changed_counts_from_the_release(node: Node) -> None:
    fill(node)
    node.delete("a", "b")
    node.clock.seconds += 30
    node.reopen(replace(node.settings, addresses=replace(node.settings.addresses, cooldown=20)))
    assert node.counts() == (3, 0, 0, 2)
    node.reopen(replace(node.settings, addresses=replace(node.settings.addresses, cooldown=31)))
    assert node.counts() == (3, 2, 0, 0)


def test_without_a_rest_the_address_used_last_is_still_the_last_to_come_back(node: Node) -> None:
    node.reopen(replace(node.settings, addresses=replace(node.settings.addresses, cooldown=0)))
    given = []
    for number in range(7):
        given += node.add(f"c{number}", sets=SETS)
        node.delete(f"c{number}")
    assert given == [*ALL, *ALL[:2]]


def test_the_next_address_is_behind_the_last_one_given(node: Node) -> None:
    """Lowest-first, as whereabouts does it, gives what was released last. The place survives a restart."""
    fill(node, "abc")
    node.delete("a", "b")
    node.clock.seconds += 100
    node.reopen()
    assert [node.add(name, sets=SETS)[0] for name in "xyz"] == ["10.0.0.5", "10.0.0.6", "10.0.0.2"]


def test_an_address_that_was_asked_for_does_not_move_the_turn(node: Node) -> None:
    assert node.add("a", sets=SETS) == ["10.0.0.2"]
    assert node.add("b", "10.0.0.5", sets=SETS) == ["10.0.0.5"]
    assert node.add("c", sets=SETS) == ["10.0.0.3"]


def test_an_address_at_rest_may_be_asked_for(node: Node) -> None:
    node.add("a", sets=SETS)
    node.delete("a")
    assert node.add("b", "10.0.0.2", sets=SETS) == ["10.0.0.2"]


def test_rests_that_end_together_serve_every_set_of_a_request(node: Node) -> None:
    """The search in the first set ends the rest of addresses of the second one too."""
    assert node.add("a", sets=ONE_EACH) == ["10.0.0.2", "fd00::1"]
    node.delete("a")
    node.clock.seconds += 60
    assert node.add("b", sets=ONE_EACH) == ["10.0.0.2", "fd00::1"]


def test_a_full_24_gives_each_address_once_and_then_says_so(node: Node) -> None:
    """Cilium #15881, #47910: "range is full" while there are addresses."""
    sets = range_sets(["10.0.0.0/24"])
    given = [node.add(f"c{number}", sets=sets)[0] for number in range(253)]
    assert len(set(given)) == 253
    for call in (lambda: node.add("more", sets=sets), lambda: node.status(sets=sets)):
        with pytest.raises(
            PoolExhausted, match=r'no address is free in range set 10.0.0.1-10.0.0.254 of network "net1"'
        ):
            call()
    assert node.findings() == []


# Who holds what


def test_a_repeat_in_a_full_pool_gives_the_same_address(node: Node) -> None:
    """whereabouts #291, host-local: after a restart with a full pool, who had a reservation got an error."""
    fill(node)
    node.reopen()
    assert node.add("c", sets=SETS) == ["10.0.0.4"]
    node.clock.reboot()
    assert node.add("c", sets=SETS) == ["10.0.0.4"]


def test_an_address_is_given_anew_to_its_owner_with_a_changed_gateway(node: Node) -> None:
    fill(node)
    moved = changed(SETS, gateway=None, first=ip_address("10.0.0.2"))
    assert node.add("c", "10.0.0.4", sets=moved) == ["10.0.0.4"]
    assert node.add("d", sets=moved) == ["10.0.0.5"], "the pool is full, and the owner need not go away"
    assert {address: node.lease(address).gateway for address in ("10.0.0.4", "10.0.0.5")} == {
        "10.0.0.4": None,
        "10.0.0.5": None,
    }
    assert node.findings() == []


def test_a_failed_request_keeps_what_was_held(node: Node) -> None:
    node.add("a", sets=SETS)
    node.add("b", sets=SETS)
    before = node.dump()
    with pytest.raises(AddressTaken, match=r"address 10.0.0.3 of network \"net1\" is held by container b \(eth0\)"):
        node.add("a", "10.0.0.3", sets=SETS)
    assert node.dump() == before


def test_a_release_takes_back_every_address_even_if_the_first_is_gone(node: Node) -> None:
    """whereabouts: a DEL with several ranges ended at the first that had no entry, and the others leaked."""
    node.add("a", sets=BOTH)
    node.run(node.registry.take_back(owner("a"), ip_address("10.0.0.2")))
    assert list(node.holders()) == ["fd00::2"]
    node.delete("a")
    assert node.holders() == {}
    assert node.states() == {"10.0.0.2": State.COOLING, "fd00::2": State.COOLING}


def test_only_the_holder_loses_an_address_that_is_taken_back(node: Node) -> None:
    """Calico's rule: a release names whose lease it ends; the address may have a new owner since it was looked at."""
    node.add("a", sets=SETS)
    node.delete("a")
    node.add("b", "10.0.0.2", sets=SETS)
    for wrong in (owner("a"), owner("b", ifname="eth1"), owner("b", network="net2")):
        with pytest.raises(NotFound, match=r"does not hold 10.0.0.2"):
            node.run(node.registry.take_back(wrong, ip_address("10.0.0.2")))
    assert node.holders() == {"10.0.0.2": "b"}


def test_a_pod_that_is_made_anew_keeps_its_new_address_when_the_old_one_is_collected(node: Node) -> None:
    """whereabouts #176: the reconciler freed the new address of a pod of the same name, which then had two owners."""
    node.add("old", sets=SETS, name="default/db-0", mac=MAC)
    node.add("new", sets=SETS, name="default/db-0", mac=MAC)
    node.run(node.ipam.collect("net1", frozenset({owner("new")})))
    assert node.holders() == {"10.0.0.3": "new"}
    node.delete("old")
    assert node.holders() == {"10.0.0.3": "new"}


def test_a_lease_keeps_who_it_is_for(node: Node) -> None:
    here = netns("a", inode=77)
    node.add("a", sets=SETS, name="default/web", mac=MAC, netns=here)
    node.reopen()
    lease = node.lease("10.0.0.2")
    assert (lease.owner, str(lease.address), lease.gateway) == (owner("a"), "10.0.0.2/29", ip_address("10.0.0.1"))
    assert (lease.name, lease.mac, lease.netns, lease.boot_id) == ("default/web", MAC, here, "boot 1")
    assert abs(datetime.now(UTC) - lease.since) < timedelta(minutes=5)


def test_a_repeat_refreshes_all_but_the_age_of_a_lease(node: Node) -> None:
    node.add("a", sets=SETS, name="default/web", mac=MAC, netns=netns("a"))
    before = node.lease("10.0.0.2")
    node.clock.reboot()
    node.add("a", sets=SETS, name="default/web-2", netns=netns("b"))
    after = node.lease("10.0.0.2")
    assert (after.name, after.mac, after.netns, after.boot_id) == ("default/web-2", "", netns("b"), "boot 2")
    assert after.since == before.since


def test_a_crash_in_the_middle_of_a_write_loses_no_address(node: Node, tmp_path: Path) -> None:
    """host-local #498: a crash between making a file and writing it leaves an empty file, and the address is lost."""
    node.add("a", sets=SETS)
    crashed = tmp_path / "crashed"
    with closing(sqlite3.connect(node.settings.database, isolation_level=None)) as other:
        other.execute("PRAGMA cache_size = 1")  # pages are written before the commit, so there is something to undo
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE ballast (x)")
        other.executemany("INSERT INTO ballast VALUES (randomblob(4000))", [()] * 50)
        other.execute("UPDATE addresses SET container_id = 'nobody'")
        shutil.copytree(node.settings.state_dir, crashed, ignore=shutil.ignore_patterns("crashed"))
        other.execute("ROLLBACK")
    assert (crashed / "ipam.db-journal").stat().st_size > 0
    with node_on(crashed) as recovered:
        assert recovered.holders() == {"10.0.0.2": "a"}
        assert recovered.findings() == []
        assert recovered.add("b", sets=SETS) == ["10.0.0.3"]


@pytest.mark.parametrize("name", ["ipam.db", "ipam.reserve"])
def test_an_empty_file_is_made_anew(tmp_path: Path, name: str) -> None:
    """host-local #498, for the files that there are here."""
    (tmp_path / name).touch()
    with node_on(tmp_path) as node:
        assert node.add("a", sets=SETS) == ["10.0.0.2"]


# A key whose address waits for it


def test_a_sticky_address_comes_back_to_its_key_and_to_nobody_else(node: Node) -> None:
    assert node.add("a", sets=BOTH, sticky="db") == ["10.0.0.2", "fd00::2"]
    node.delete("a")
    assert node.states() == {"10.0.0.2": State.RESERVED, "fd00::2": State.RESERVED}
    node.clock.seconds += 10_000
    node.clock.reboot()
    node.reopen()
    fill(node, "bcde")
    with pytest.raises(PoolExhausted):
        node.add("f", sets=SETS)
    assert node.add("again", sets=BOTH, sticky="db") == ["10.0.0.2", "fd00::2"]
    assert node.findings() == []


def test_a_sticky_address_is_refused_to_others_by_name_too(node: Node) -> None:
    node.add("a", sets=SETS, sticky="db")
    node.delete("a")
    for sticky in ("", "other"):
        with pytest.raises(AddressTaken, match=r"address 10.0.0.2 .* is reserved for sticky db"):
            node.add("b", "10.0.0.2", sets=SETS, sticky=sticky)
    assert node.add("b", "10.0.0.2", sets=SETS, sticky="db") == ["10.0.0.2"]


def test_unreserving_ends_stickiness(node: Node) -> None:
    node.add("a", sets=SETS, sticky="db")
    node.unreserve("10.0.0.2")
    assert node.holders() == {"10.0.0.2": "a"}, "the lease stays"
    node.delete("a")
    assert node.states() == {"10.0.0.2": State.COOLING}
    assert node.add("b", sets=SETS, sticky="db") == ["10.0.0.3"]
    node.delete("b")
    node.unreserve("10.0.0.3")
    assert node.states()["10.0.0.3"] == State.COOLING, "it was released, and rests"


def test_a_key_that_another_live_container_holds_is_refused_by_that_ones_name(node: Node) -> None:
    node.add("a", sets=SETS, sticky="db")
    with pytest.raises(AddressTaken, match=r"10.0.0.2 of network \"net1\" is held by container a \(eth0\)"):
        node.add("b", sets=SETS, sticky="db")
    node.clock.reboot()
    assert node.add("b", sets=SETS, sticky="db") == ["10.0.0.2"], "of an earlier boot, and without a namespace"


def test_a_key_is_of_one_network(node: Node) -> None:
    node.add("a", sets=SETS, sticky="db")
    assert node.add(owner("a", "net2"), sets=range_sets(["10.1.0.0/29"]), sticky="db") == ["10.1.0.2"]
    node.add(owner("b", "net2"), sets=range_sets(["10.1.0.0/29"]))


def test_a_container_may_become_sticky_later(node: Node) -> None:
    node.add("a", sets=SETS)
    node.add("a", sets=SETS, sticky="db")
    node.delete("a")
    assert node.add("b", sets=SETS, sticky="db") == ["10.0.0.2"]


def test_a_sticky_address_outlives_a_wider_subnet(node: Node) -> None:
    node.add("a", sets=SETS, sticky="db")
    wide = range_sets(["10.0.0.0/28"])
    assert node.add("a", sets=wide, sticky="db") == ["10.0.0.2"]
    node.delete("a")
    assert node.add("b", sets=wide, sticky="db") == ["10.0.0.2"]


# Reservations


@pytest.mark.parametrize(
    ("kind", "value", "asks"),
    [
        (ReservedFor.NAME, "default/web", {"name": "default/web"}),
        (ReservedFor.NAME, "web", {"name": "default/web"}),
        (ReservedFor.NAME, "web", {"name": "web"}),
        (ReservedFor.MAC, MAC, {"mac": MAC}),
        (ReservedFor.STICKY, "db", {"sticky": "db"}),
    ],
)
def test_a_reserved_address_goes_to_whom_it_is_for(
    node: Node, kind: ReservedFor, value: str, asks: dict[str, str]
) -> None:
    node.add("first", sets=SETS)
    node.reserve("10.0.0.5", kind, value)
    assert node.counts() == (1, 0, 1, 3)
    others = [node.add(name, sets=SETS, name="default/other", mac="02:00:00:00:00:08")[0] for name in "xyz"]
    assert others == ["10.0.0.3", "10.0.0.4", "10.0.0.6"]
    with pytest.raises(PoolExhausted):
        node.add("w", sets=SETS, name="other/web-2", sticky="other")
    assert node.add("it", sets=SETS, **asks) == ["10.0.0.5"]
    node.delete("it")
    assert node.states()["10.0.0.5"] == State.RESERVED
    assert node.add("again", sets=SETS, **asks) == ["10.0.0.5"]
    assert node.findings() == []


def test_a_name_in_another_namespace_is_another_name(node: Node) -> None:
    node.add("first", sets=SETS)
    node.reserve("10.0.0.5", ReservedFor.NAME, "default/web")
    for name in ("other/web", "web", "default"):
        with pytest.raises(AddressTaken, match=r"10.0.0.5 .* is reserved for name default/web"):
            node.add("x", "10.0.0.5", sets=SETS, name=name)


def test_an_address_that_is_reserved_for_nobody_is_given_to_nobody(node: Node) -> None:
    node.add("first", sets=SETS)
    node.reserve("10.0.0.3", ReservedFor.NOBODY)
    with pytest.raises(AddressTaken, match=r"10.0.0.3 .* is reserved for nobody$"):
        node.add("x", "10.0.0.3", sets=SETS, name="default/web", mac=MAC, sticky="db")
    given = [node.add(name, sets=SETS, name=name, mac=MAC)[0] for name in "abc"]
    assert given == ["10.0.0.4", "10.0.0.5", "10.0.0.6"]
    node.unreserve("10.0.0.3")
    assert node.add("x", sets=SETS) == ["10.0.0.3"]


def test_a_free_one_of_several_reserved_addresses_is_given(node: Node) -> None:
    node.add("first", sets=SETS)
    for last in (4, 5):
        node.reserve(f"10.0.0.{last}", ReservedFor.NAME, "web")
    given = [node.add(name, sets=SETS, name="default/web")[0] for name in "ab"]
    assert sorted(given) == ["10.0.0.4", "10.0.0.5"]


def test_a_reservation_that_is_made_while_the_address_is_leased_counts_afterwards(node: Node) -> None:
    node.add("a", sets=SETS)
    node.reserve("10.0.0.2", ReservedFor.NAME, "web")
    assert node.add("a", sets=SETS) == ["10.0.0.2"], "the lease stays"
    node.delete("a")
    node.clock.seconds += 1000
    fill(node, "bcde")
    with pytest.raises(PoolExhausted):
        node.add("f", sets=SETS)
    assert node.add("f", sets=SETS, name="default/web") == ["10.0.0.2"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.1", r'address 10.0.0.1 of network "net1" is never handed out'),
        ("10.0.0.0", r"is never handed out"),
        ("10.0.0.7", r"is never handed out"),
        ("10.0.0.8", r'address 10.0.0.8 is in no pool of network "net1" \(10.0.0.0/29\)'),
        ("fd00::2", r"fd00::2 is in no pool"),
        ("10.0.0.4", r"is never handed out"),
    ],
    ids=["gateway", "subnet", "broadcast", "outside", "other family", "excluded"],
)
def test_what_nobody_can_get_cannot_be_reserved(node: Node, address: str, reason: str) -> None:
    node.add("a", sets=changed(SETS, exclude=(ip_network("10.0.0.4/31"),)))
    before = node.dump()
    with pytest.raises(AddressNotOffered, match=reason):
        node.reserve(address, ReservedFor.NAME, "web")
    assert node.dump() == before
    with pytest.raises(AddressNotOffered, match=r"in no pool of network \"net2\" \(none\)"):
        node.reserve("10.0.0.3", ReservedFor.NAME, "web", network="net2")


def test_a_reservation_is_not_taken_over_by_another(node: Node) -> None:
    node.add("a", sets=SETS)
    node.reserve("10.0.0.5", ReservedFor.NAME, "web")
    node.reserve("10.0.0.5", ReservedFor.NAME, "web")
    before = node.dump()
    for kind, value in ((ReservedFor.NAME, "other"), (ReservedFor.STICKY, "web"), (ReservedFor.NOBODY, "")):
        with pytest.raises(AddressTaken, match=r"10.0.0.5 .* is reserved for name web"):
            node.reserve("10.0.0.5", kind, value)
    assert node.dump() == before


def test_only_a_reservation_can_be_ended(node: Node) -> None:
    node.add("a", sets=SETS)
    for address in ("10.0.0.2", "10.0.0.3"):
        with pytest.raises(NotFound, match=f'address {address} of network "net1" is not reserved'):
            node.unreserve(address)
    node.reserve("10.0.0.3", ReservedFor.NOBODY)
    node.unreserve("10.0.0.3")
    assert list(node.entries()) == ["10.0.0.2"], "nothing is known of an address that was only reserved"


def test_an_address_that_becomes_excluded_is_not_given_though_it_is_reserved(node: Node) -> None:
    node.add("a", sets=SETS)
    node.reserve("10.0.0.5", ReservedFor.NAME, "web")
    excluding = changed(SETS, exclude=(ip_network("10.0.0.5/32"),))
    assert node.add("b", sets=excluding, name="default/web") == ["10.0.0.3"]


def test_a_reservation_outside_of_the_asked_ranges_is_passed_over(node: Node) -> None:
    node.add("a", sets=range_sets(["10.0.0.0/29", "10.0.1.0/29"]))
    node.reserve("10.0.1.5", ReservedFor.NAME, "web")
    assert node.add("b", sets=changed(SETS), name="web") == ["10.0.0.3"]


# What is excluded, and the smallest subnets


def test_excluded_addresses_are_given_in_no_way(node: Node) -> None:
    """whereabouts: gateways had to be excluded by hand, and an excluded block hid what was behind it."""
    excluding = changed(SETS, exclude=(ip_network("10.0.0.2/32"), ip_network("10.0.0.4/31")))
    assert [node.add(name, sets=excluding)[0] for name in "ab"] == ["10.0.0.3", "10.0.0.6"]
    assert node.counts() == (2, 0, 0, 0)
    for address in ("10.0.0.2", "10.0.0.4", "10.0.0.5"):
        with pytest.raises(AddressNotOffered, match=f"requested address {address} is never handed out"):
            node.add("c", address, sets=excluding)
    with pytest.raises(PoolExhausted):
        node.add("c", sets=excluding)
    assert node.findings() == []


def test_a_lease_stays_when_its_address_becomes_excluded(node: Node) -> None:
    fill(node, "ab")
    excluding = changed(SETS, exclude=(ip_network("10.0.0.2/31"),))
    assert node.add("c", sets=excluding) == ["10.0.0.4"]
    assert node.holders() == {"10.0.0.2": "a", "10.0.0.3": "b", "10.0.0.4": "c"}
    assert node.counts() == (1, 0, 0, 2)
    assert node.findings() == []


@pytest.mark.parametrize(
    ("subnet", "given"),
    [
        ("10.0.0.4/31", ["10.0.0.5"]),
        ("10.0.0.5/32", ["10.0.0.5"]),
        ("fd00::4/127", ["fd00::5"]),
        ("fd00::5/128", ["fd00::5"]),
        ("10.0.0.0/30", ["10.0.0.2"]),
        ("fd00::/126", ["fd00::2", "fd00::3"]),
    ],
)
def test_the_smallest_subnets_are_used_in_full(node: Node, subnet: str, given: list[str]) -> None:
    sets = range_sets([subnet])
    assert [node.add(str(number), sets=sets)[0] for number in range(len(given))] == given
    with pytest.raises(PoolExhausted):
        node.add("more", sets=sets)
    assert node.counts() == (len(given), 0, 0, 0)
    node.delete("0")
    assert node.add("again", sets=sets) == given[:1]
    assert node.findings() == []


def test_a_31_without_a_gateway_has_two_addresses(node: Node) -> None:
    each = replace(build_range(ip_network("10.0.0.4/31")), gateway=None)
    sets = (RangeSet(ranges=(each,)),)
    assert [node.add(name, sets=sets)[0] for name in "ab"] == ["10.0.0.4", "10.0.0.5"]


def test_the_ends_of_the_address_space_are_addresses_as_others(node: Node) -> None:
    sets = range_sets(["255.255.255.252/30"], ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"])
    assert node.add("a", sets=sets) == ["255.255.255.254", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
    assert node.findings() == []
    with pytest.raises(PoolExhausted):
        node.add("b", sets=sets)


# Leases that were moved in


def moved_in(node: Node, ifname: str = "", address: str = "10.0.0.4", last: str = "10.0.0.4") -> None:
    lease = Moved(owner=owner("c1", ifname=ifname), address=ip_address(address))
    node.run(node.registry.adopt(wanted("c1", sets=SETS), (lease,), (ip_address(last),)))


def test_a_lease_that_names_no_interface_is_found_and_kept(node: Node) -> None:
    moved_in(node)
    (held,) = node.run(node.ipam.held(owner("c1")))
    assert (str(held.address), held.gateway, held.boot_id) == ("10.0.0.4/29", ip_address("10.0.0.1"), "boot 1")
    assert node.add("c1", sets=SETS) == ["10.0.0.4"]
    assert node.lease("10.0.0.4").owner == owner("c1"), "now it names one"
    assert node.add("c2", sets=SETS) == ["10.0.0.5"], "the turn goes on behind what was given last"
    assert node.findings() == []


def test_a_lease_that_names_no_interface_is_released(node: Node) -> None:
    moved_in(node)
    node.delete("c2")
    assert node.holders() == {"10.0.0.4": "c1"}
    node.delete("c1")
    assert node.states() == {"10.0.0.4": State.COOLING}


@pytest.mark.parametrize(("keep", "left"), [({"c1"}, {"10.0.0.4": "c1"}), ({"c2"}, {}), (set(), {})])
def test_a_lease_that_names_no_interface_is_collected(node: Node, keep: set[str], left: dict[str, str]) -> None:
    moved_in(node)
    node.run(node.ipam.collect("net1", frozenset(map(owner, keep))))
    assert node.holders() == left


def test_moving_in_again_changes_nothing(node: Node) -> None:
    moved_in(node, "eth0")
    before = node.dump()
    moved_in(node, "eth0")
    assert node.dump() == before


def test_an_address_that_another_holds_here_is_not_moved_in(node: Node) -> None:
    node.add("here", "10.0.0.4", sets=SETS)
    before = node.dump()
    with pytest.raises(AddressTaken, match=r"10.0.0.4 of net1/c1/eth0 is held by net1/here/eth0 here"):
        moved_in(node, "eth0")
    assert node.dump() == before


# History


def told(node: Node, **asked: object) -> list[tuple[str, str, str]]:
    """The history in short: what happened to which address, and whose it was."""
    return [
        (each.happened, str(each.address), each.container_id or str(each.reservation)) for each in node.events(**asked)
    ]


def test_the_history_tells_what_happened_to_whom_in_order(node: Node) -> None:
    node.add("a", sets=SETS, name="default/web", mac=MAC)
    node.add("a", sets=SETS, name="default/web", mac=MAC)
    node.reserve("10.0.0.2", ReservedFor.NAME, "web")
    node.delete("a")
    node.delete("a")
    node.unreserve("10.0.0.2")
    assert told(node) == [
        ("leased", "10.0.0.2", "a"),
        ("reserved", "10.0.0.2", "a"),
        ("released", "10.0.0.2", "a"),
        ("unreserved", "10.0.0.2", "name web"),
    ]
    events = node.events()
    assert [each.number for each in events] == sorted({each.number for each in events})
    assert (events[0].ifname, events[0].name, events[0].mac) == ("eth0", "default/web", MAC)
    assert (events[2].ifname, events[2].name, events[2].mac) == ("eth0", "default/web", MAC)
    assert all(abs(datetime.now(UTC) - each.at) < timedelta(minutes=5) for each in events)


def test_a_lease_that_is_taken_over_ends_before_the_next_begins(node: Node) -> None:
    node.add("a", "10.0.0.2", sets=SETS)
    node.clock.reboot()
    node.add("b", "10.0.0.2", sets=SETS)
    assert told(node) == [("leased", "10.0.0.2", "a"), ("released", "10.0.0.2", "a"), ("leased", "10.0.0.2", "b")]


def test_a_sticky_lease_is_leased_and_reserved(node: Node) -> None:
    node.add("a", sets=SETS, sticky="db")
    assert sorted(told(node)) == [("leased", "10.0.0.2", "a"), ("reserved", "10.0.0.2", "a")]


def test_the_history_of_one_address_container_or_network(node: Node) -> None:
    node.add("a", sets=BOTH)
    node.add("b", sets=BOTH)
    node.add(owner("a", "net2"), sets=range_sets(["10.1.0.0/29"]))
    assert told(node, address=ip_address("fd00::3")) == [("leased", "fd00::3", "b")]
    assert [each[1] for each in told(node, container="a")] == ["10.0.0.2", "fd00::2", "10.1.0.2"]
    assert [each[1] for each in told(node, container="a", network="net1")] == ["10.0.0.2", "fd00::2"]


def test_the_history_is_read_page_by_page_newest_first(node: Node) -> None:
    fill(node)
    pages, before = [], None
    while page := node.run(node.registry.history(before=before, limit=2)):
        pages.append([str(each.address) for each in page])
        before = page[-1].number
    assert pages == [["10.0.0.6", "10.0.0.5"], ["10.0.0.4", "10.0.0.3"], ["10.0.0.2"]]


@pytest.fixture
def kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Housekeeping with every change."""
    monkeypatch.setattr("ipam.local._HOUSEKEEPING_INTERVAL", 0.0)


@pytest.mark.usefixtures("kept_at_once")
def test_the_history_is_bounded_in_rows(tmp_path: Path) -> None:
    with node_on(tmp_path, history_rows=10) as node:
        for number in range(20):
            node.add(f"c{number}", sets=SETS)
            node.delete(f"c{number}")
        assert [each.number for each in node.events()] == list(range(31, 41))


@pytest.mark.usefixtures("kept_at_once")
def test_the_history_is_bounded_in_days(tmp_path: Path) -> None:
    with node_on(tmp_path, history_days=30) as node:
        for name in "abc":
            node.add(name, sets=SETS)
        with closing(sqlite3.connect(node.settings.database)) as other, other:
            for number, days in ((1, 31), (2, 29)):
                at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
                other.execute("UPDATE events SET at = ? WHERE number = ?", (at, number))
        node.add("d", sets=SETS)
        assert [each.number for each in node.events()] == [2, 3, 4]


@pytest.mark.usefixtures("kept_at_once")
def test_what_has_rested_does_not_stay_in_the_database(node: Node) -> None:
    for number in range(30):
        node.add(f"c{number}", sets=range_sets(["10.0.0.0/24"]))
        node.delete(f"c{number}")
        node.clock.seconds += 10
    assert len(node.entries()) <= 7


# After a reboot


def look(node: Node) -> None:
    node.run(node.ipam.reconcile())


def suspects(node: Node) -> list[str]:
    return [address for address, each in node.entries().items() if each.suspect is not None]


@pytest.mark.usefixtures("root")
def test_a_lease_of_an_earlier_boot_ends_at_the_second_look(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """host-local #252, #332, #697: after a reboot addresses were lost for ever. Calico frees on two observations."""
    fill(node, "ab")
    node.clock.reboot()
    node.host.gone = {netns("a"), netns("b")}
    look(node)
    assert suspects(node) == ["10.0.0.2", "10.0.0.3"]
    node.clock.seconds += 59
    look(node)
    assert node.holders() == {"10.0.0.2": "a", "10.0.0.3": "b"}
    node.clock.seconds += 1
    look(node)
    assert node.holders() == {}
    assert node.states() == {"10.0.0.2": State.COOLING, "10.0.0.3": State.COOLING}
    assert suspects(node) == []
    assert warnings(caplog) == [
        f"10.0.0.{last} of net1/{name}/eth0 is released: it is of an earlier boot and its namespace is gone"
        for last, name in ((2, "a"), (3, "b"))
    ]


@pytest.mark.usefixtures("root")
def test_the_grace_begins_anew_with_a_namespace_that_is_seen(node: Node) -> None:
    fill(node, "a")
    node.clock.reboot()
    node.host.gone = {netns("a")}
    look(node)
    node.host.gone = set()
    node.clock.seconds += 1000
    look(node)
    assert suspects(node) == []
    node.host.gone = {netns("a")}
    look(node)
    node.clock.seconds += 59
    look(node)
    assert node.holders() == {"10.0.0.2": "a"}


@pytest.mark.usefixtures("root")
def test_a_lease_whose_namespace_lives_is_never_ended(node: Node) -> None:
    """Calico #5044, AWS ipamd #3019: live addresses were freed by what the collector did not know."""
    fill(node)
    for _ in range(3):
        node.clock.reboot()
        for _ in range(3):
            node.clock.seconds += 1000
            look(node)
    assert len(node.holders()) == 5
    assert suspects(node) == []
    with pytest.raises(PoolExhausted):
        node.add("x", sets=SETS)
    with pytest.raises(AddressTaken, match="is held by container a"):
        node.add("x", "10.0.0.2", sets=SETS)


@pytest.mark.usefixtures("root")
def test_a_lease_of_this_boot_is_the_runtimes_business(node: Node) -> None:
    """A path that is gone is no proof of anything: the runtime may be about to call DEL, or keep the sandbox."""
    fill(node)
    node.host.gone = {netns(name) for name in "abcde"}
    for _ in range(3):
        node.clock.seconds += 1000
        look(node)
    assert len(node.holders()) == 5
    assert suspects(node) == []
    with pytest.raises(PoolExhausted):
        node.add("x", sets=SETS)


@pytest.mark.usefixtures("root")
def test_a_lease_without_a_namespace_ends_too(node: Node) -> None:
    node.add("a", sets=SETS)
    node.clock.reboot()
    look(node)
    node.clock.seconds += 60
    look(node)
    assert node.holders() == {}


@pytest.mark.usefixtures("root")
def test_a_repeat_clears_suspicion(node: Node) -> None:
    fill(node, "a")
    node.clock.reboot()
    node.host.gone = {netns("a")}
    look(node)
    node.add("a", sets=SETS, netns=netns("a", inode=2))
    assert suspects(node) == []
    node.clock.seconds += 1000
    look(node)
    assert node.holders() == {"10.0.0.2": "a"}


@pytest.mark.usefixtures("root")
def test_a_lease_that_is_confirmed_while_it_is_looked_at_is_not_ended(node: Node) -> None:
    """whereabouts #207, Calico's sequence numbers: what was read is not what is there when it is acted upon.

    Podman starts a container after a reboot under its old id: the same owner, and an address that is in use again.
    """

    class Restarting(ToldHost):
        """While a namespace is looked at for the first time, another process adds its container again."""

        looked = False

        def lives(self, netns: NetnsRef) -> bool | None:
            if not self.looked:
                self.looked = True
                with ThreadPoolExecutor() as another:
                    another.submit(asyncio.run, restart()).result()
            return False

    async def restart() -> None:
        other = await LocalIpam.open(node.settings, ToldHost(), clock=node.clock)
        await other.allocate(wanted("a", sets=SETS, netns=netns("a", inode=2)))
        await other.close()

    fill(node, "a")
    node.clock.reboot()
    node.host.gone = {netns("a")}
    look(node)
    node.clock.seconds += 60
    node.host = Restarting()
    node.reopen()
    look(node)
    assert node.lease("10.0.0.2").netns == netns("a", inode=2)


def test_who_is_not_root_only_marks(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(node, "a")
    node.clock.reboot()
    node.host.gone = {netns("a")}
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    for _ in range(3):
        look(node)
        node.clock.seconds += 1000
    assert node.holders() == {"10.0.0.2": "a"}
    assert suspects(node) == ["10.0.0.2"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    look(node)
    assert node.holders() == {}


@pytest.mark.usefixtures("root")
def test_only_the_network_that_is_collected_is_looked_at(node: Node) -> None:
    node.add("a", sets=SETS)
    node.add(owner("a", "net2"), sets=range_sets(["10.1.0.0/29"]))
    node.clock.reboot()
    node.run(node.ipam.collect("net1", frozenset({owner("a")})))
    assert suspects(node) == ["10.0.0.2"]
    assert node.entries("net2")["10.1.0.2"].suspect is None


def test_a_full_pool_takes_what_a_reboot_ended(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    fill(node)
    node.clock.reboot()
    node.host.gone = {netns("d")}
    node.status(sets=SETS)
    assert node.add("x", sets=SETS) == ["10.0.0.5"]
    assert "10.0.0.5 of net1/d/eth0 is of an earlier boot and given anew" in warnings(caplog)
    with pytest.raises(PoolExhausted):
        node.add("y", sets=SETS)
    assert node.findings() == []


def test_what_rests_is_given_before_what_a_reboot_ended(node: Node) -> None:
    fill(node)
    node.delete("e")
    node.clock.reboot()
    node.host.gone = {netns(name) for name in "abcd"}
    assert node.add("x", sets=SETS) == ["10.0.0.6"]


def test_many_living_leases_of_an_earlier_boot_do_not_hide_one_that_is_gone(node: Node) -> None:
    sets = range_sets(["10.0.0.0/26"])
    for number in range(61):
        node.add(f"c{number}", sets=sets, netns=netns(f"c{number}"))
    node.clock.reboot()
    node.host.gone = {netns("c60")}
    assert node.add("x", sets=sets) == ["10.0.0.62"]


def test_status_does_not_say_that_it_gave_an_address(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    fill(node)
    node.delete("a")
    node.status(sets=SETS)
    assert warnings(caplog) == []
