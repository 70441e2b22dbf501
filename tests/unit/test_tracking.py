"""Networks and their pools: chosen, kept, changed, refused and forgotten."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ipam.api import ANY_LINK, AnySubnet, RangeSet, ReservedFor
from ipam.errors import IpamError, NotFound, PoolConflict, PoolExhausted
from ipam.local import LocalIpam
from ipam.ranges import build_range
from ipam.registry import Origin
from ipam.settings import DefaultPool, Settings
from tests.support.calls import owner, range_sets
from tests.support.node import ANY, ANY6, Node, changed, node_on, wanted

SETS = range_sets(["10.0.0.0/24"])
WIDE, SMALL, ELSEWHERE = (range_sets([each]) for each in ("10.0.0.0/23", "10.0.0.0/29", "10.1.0.0/24"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with node_on(tmp_path) as made:
        yield made


def sized(prefixlen: int, family: int = 4) -> tuple[RangeSet, ...]:
    return (RangeSet(any_subnet=AnySubnet(family=family, prefixlen=prefixlen)),)


def from_runtime(subnet: str) -> tuple[RangeSet, ...]:
    return (RangeSet(ranges=range_sets([subnet])[0].ranges, runtime=True),)


def refused(node: Node, of: str, sets: tuple[RangeSet, ...], network: str = "net1", **more: Any) -> str:
    """The reason why the owner gets no address, after which nothing is different; STATUS names it too."""
    before = node.dump()
    with pytest.raises(PoolConflict) as caught:
        node.add(owner(of, network), sets=sets, **more)
    with pytest.raises(PoolConflict) as told:
        node.status(sets=sets, network=network, **more)
    assert str(told.value) == str(caught.value)
    assert node.dump() == before
    return str(caught.value)


# Subnets that a configuration leaves open


def test_a_network_without_a_subnet_gets_the_first_that_is_clear(node: Node) -> None:
    node.around("eth0 10.168.0.9/24", routes=("tun0 0.0.0.0/1", "tun0 10.168.1.0/24"), nameservers=("10.168.2.53",))
    assert node.add("c1", sets=ANY) == ["10.168.3.2"]
    (use,) = node.pools()
    assert (str(use.pool.subnet), use.pool.origin, use.capacity) == ("10.168.3.0/24", Origin.DEFAULT, 253)
    assert use.pool.reason == (
        "first of 10.168.0.0/13 in /24 that is clear of 0 pools, 1 addresses, 1 routes, 1 nameservers"
    )


def test_the_chosen_subnet_is_kept(node: Node) -> None:
    """It does not move with what appears on the host, nor when nobody is in the network."""
    assert node.add("c1", sets=ANY) == ["10.168.0.2"]
    node.around("br0 10.168.0.1/24", "eth0 10.168.0.200/32", routes=("tun0 10.168.0.0/16",))
    assert node.add("c2", sets=ANY) == ["10.168.0.3"]
    node.delete("c1", "c2")
    node.clock.seconds += 1000
    node.reopen()
    assert node.add("c3", sets=ANY) == ["10.168.0.4"]
    node.clock.reboot()
    assert node.add("c4", sets=ANY) == ["10.168.0.5"]
    assert node.subnets() == ["10.168.0.0/24"]


def test_each_network_gets_a_subnet_of_its_own(node: Node) -> None:
    given = [node.add(owner("c", f"net{number}"), sets=ANY)[0] for number in range(4)]
    assert given == ["10.168.0.2", "10.168.1.2", "10.168.2.2", "10.168.3.2"]
    assert node.findings() == []


def test_networks_that_begin_in_two_processes_at_once_get_different_subnets(node: Node) -> None:
    async def begin() -> set[str]:
        other = await LocalIpam.open(node.settings, node.host)
        try:
            asks = [wanted(owner("c", f"net{number}"), sets=ANY) for number in range(8)]
            both = (node.ipam, other)
            given = await asyncio.gather(*(both[i % 2].allocate(ask) for i, ask in enumerate(asks)))
            return {str(each.leases[0].address.network) for each in given}
        finally:
            await other.close()

    assert node.run(begin()) == {f"10.168.{number}.0/24" for number in range(8)}
    assert node.findings() == []


def test_a_subnet_that_a_configuration_names_is_not_given_to_others(node: Node) -> None:
    node.add(owner("c", "named"), sets=range_sets(["10.168.0.0/23"]))
    assert node.add("c", sets=ANY) == ["10.168.2.2"]


def test_an_ipv6_prefix_is_drawn_once_for_the_host(node: Node) -> None:
    """RFC 4193, 3.2: 40 random bits behind fd00::/8, then 16 bits of subnets of 64."""
    node.add(owner("c", "a"), sets=ANY6)
    node.reopen()
    for network in "bc":
        node.add(owner("c", network), sets=ANY6)
    drawn = [each.pool.subnet for each in node.pools()]
    prefix = drawn[0].supernet(new_prefix=48)
    assert isinstance(prefix, IPv6Network)
    assert prefix.subnet_of(IPv6Network("fd00::/8"))
    assert drawn == [IPv6Network((int(prefix.network_address) + (number << 64), 64)) for number in range(3)]


def test_hosts_draw_different_ipv6_prefixes(tmp_path: Path) -> None:
    drawn = set()
    for name in "abc":
        with node_on(tmp_path / name) as node:
            drawn.add(str(IPv6Network((node.add("c", sets=ANY6)[0], 48), strict=False)))
    assert len(drawn) == 3


def test_a_configured_ipv6_pool_is_used_instead(node: Node) -> None:
    pools = (DefaultPool(base=ip_network("fd12:3456:789a::/48"), size=64),)
    node.reopen(Settings(state_dir=node.settings.state_dir, default_pools=pools))
    assert node.add("c", sets=ANY6) == ["fd12:3456:789a::2"]
    with pytest.raises(PoolExhausted, match="no default pool has room for any IPv4 subnet"):
        node.add(owner("c", "net2"), sets=ANY)


def test_only_the_size_of_a_subnet_may_be_named(node: Node) -> None:
    assert node.add("c1", sets=sized(28)) == ["10.168.0.2"]
    assert node.subnets() == ["10.168.0.0/28"]
    assert node.add("c2", sets=sized(28)) == ["10.168.0.3"]
    assert node.add(owner("c1", "net2"), sets=sized(28)) == ["10.168.0.18"]
    assert node.add(owner("c1", "net3"), sets=sized(16)) == ["10.169.0.2"]
    with pytest.raises(PoolExhausted, match="no default pool has room for any IPv4 subnet of length 12"):
        node.add(owner("c1", "net4"), sets=sized(12))


def test_two_subnets_of_a_network_are_different_ones_and_keep_their_order(node: Node) -> None:
    both = (*ANY, *ANY6, *sized(26))
    first, second = node.add("c1", sets=both), node.add("c2", sets=both)
    assert [first[0], first[2]] == ["10.168.1.2", "10.168.0.2"]  # the one of a size is chosen first
    assert [second[0], second[2]] == ["10.168.1.3", "10.168.0.3"]
    assert node.add("c1", sets=both) == first


def test_a_smaller_subnet_in_front_of_a_larger_one_is_not_taken_for_it(node: Node) -> None:
    """The /24 is wished first and lies behind the /26, for which there was room before it."""
    both = (*ANY, *sized(26))
    node.around("eth0 10.168.0.1/25")
    assert node.add("c1", sets=both) == ["10.168.1.2", "10.168.0.130"]
    assert node.add("c2", sets=both) == ["10.168.1.3", "10.168.0.131"]
    assert node.subnets() == ["10.168.0.128/26", "10.168.1.0/24"]


def test_a_subnet_that_overlaps_the_host_is_the_last_resort_and_said(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(
        state_dir=node.settings.state_dir, default_pools=(DefaultPool(base=ip_network("10.5.0.0/23"), size=24),)
    )
    node.reopen(settings)
    node.around(routes=("tun0 10.5.0.0/24", "tun0 10.5.1.0/25"))
    assert node.add("c1", sets=ANY) == ["10.5.1.2"]
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert record.message == (
        'network "net1" gets subnet 10.5.1.0/24: nothing is clear, it overlaps least: route 10.5.1.0/25 on tun0'
    )
    (use,) = node.pools()
    assert "overlaps least: route 10.5.1.0/25 on tun0" in use.pool.reason


def test_networks_that_use_all_default_pools_leave_none(node: Node) -> None:
    settings = Settings(
        state_dir=node.settings.state_dir, default_pools=(DefaultPool(base=ip_network("10.5.0.0/23"), size=24),)
    )
    node.reopen(settings)
    for network in ("net1", "net2"):
        node.add(owner("c", network), sets=ANY)
    for call in (lambda: node.add(owner("c", "net3"), sets=ANY), lambda: node.status(sets=ANY, network="net3")):
        with pytest.raises(PoolExhausted, match=r"use all of the default pools \(10.5.0.0/23 in /24\)"):
            call()
    node.delete(owner("c", "net1"))
    node.run(node.registry.forget("net1"))
    assert node.add(owner("c", "net3"), sets=ANY) == ["10.5.0.2"]


# Subnets that collide


def test_a_subnet_of_another_network_is_refused(node: Node) -> None:
    node.add(owner("c", "first"), sets=SETS)
    for sets in (SETS, WIDE, SMALL):
        assert refused(node, "c", sets) == (
            f'subnet {sets[0].ranges[0].subnet} of network "net1" overlaps 10.0.0.0/24 of network "first"; '
            'choose another, set "allowOverlap", or, if that network is no longer used, '
            'run "cni-bridgectl forget first"'
        )
    assert node.add("c", sets=ELSEWHERE) == ["10.1.0.2"]


def test_a_subnet_that_was_chosen_for_another_network_is_refused(node: Node) -> None:
    node.add(owner("c", "first"), sets=ANY)
    assert '10.168.0.0/24 of network "first"' in refused(node, "c", range_sets(["10.168.0.0/16"]))


def test_a_subnet_that_moves_onto_another_network_is_refused(node: Node) -> None:
    node.add(owner("c", "first"), sets=ELSEWHERE)
    assert node.add("c", sets=SETS) == ["10.0.0.2"]
    node.delete("c")
    assert '10.1.0.0/24 of network "first"' in refused(node, "c", ELSEWHERE)


def test_an_overlap_may_be_allowed(node: Node) -> None:
    node.add(owner("c", "first"), sets=SETS)
    assert node.add("c", sets=SETS, allow_overlap=True) == ["10.0.0.2"]
    assert node.findings() == []
    assert [each.pool.shared for each in node.pools()] == [False, True]


def test_an_overlap_that_is_no_longer_allowed_is_refused(node: Node) -> None:
    """Otherwise two networks would share a subnet of which neither says that it may be shared."""
    node.add(owner("c", "first"), sets=SETS)
    node.add("c", sets=SETS, allow_overlap=True)
    assert 'overlaps 10.0.0.0/24 of network "first"' in refused(node, "c2", SETS)
    assert node.findings() == []


def test_an_address_of_another_link_is_refused(node: Node) -> None:
    node.around("eth0 10.0.0.77/16")
    assert refused(node, "c", SETS, links=("br0",)) == (
        'subnet 10.0.0.0/24 of network "net1" overlaps 10.0.0.0/16, where this host has address 10.0.0.77/16 of eth0; '
        'choose another or set "allowOverlap"'
    )
    assert node.add("c", sets=SETS, links=("br0",), allow_overlap=True) == ["10.0.0.2"]


@pytest.mark.parametrize("links", [("br0",), ("br1", "br0"), (ANY_LINK,)], ids=str)
def test_an_address_of_the_networks_own_link_is_welcome(node: Node, links: tuple[str, ...]) -> None:
    node.around("br0 10.0.0.1/24", routes=("br0 10.0.0.0/24",))
    assert node.add("c", sets=SETS, links=links) == ["10.0.0.2"]


def test_an_address_that_appears_later_does_not_stop_a_network(node: Node) -> None:
    """Calico #12257 and its like: what is in use is not taken away by what is newly found on the host."""
    node.add("c1", sets=SETS)
    node.around("eth0 10.0.0.77/24")
    assert node.add("c2", sets=SETS) == ["10.0.0.3"]
    assert node.add("c3", sets=changed(SETS, first=ip_address("10.0.0.9"))) == ["10.0.0.9"]


def test_a_route_is_worth_a_warning(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.around(routes=("tun0 10.0.0.0/8", "eth0 0.0.0.0/0"), nameservers=("10.0.0.53",))
    assert node.add("c", sets=SETS) == ["10.0.0.2"]
    assert [each.message for each in caplog.records] == [
        'subnet 10.0.0.0/24 of network "net1" overlaps route 10.0.0.0/8 on tun0',
        'subnet 10.0.0.0/24 of network "net1" overlaps nameserver 10.0.0.53',
    ]
    caplog.clear()
    node.add("c2", sets=SETS)
    assert caplog.records == []


# Configurations that change


def test_widening_keeps_leases(node: Node) -> None:
    node.add("c1", sets=SETS)
    assert node.add("c2", sets=WIDE) == ["10.0.0.3"]
    assert node.holders() == {"10.0.0.2": "c1", "10.0.0.3": "c2"}
    assert node.subnets() == ["10.0.0.0/23"]
    assert node.findings() == []


def test_who_asks_again_after_widening_keeps_its_address(node: Node) -> None:
    node.add("c1", sets=SETS)
    assert node.add("c1", sets=WIDE) == ["10.0.0.2"]
    assert str(node.lease("10.0.0.2").address) == "10.0.0.2/23"


@pytest.mark.parametrize(
    ("sets", "outside"),
    [(SMALL, "10.0.0.20 (net1/c2/eth0)"), (ELSEWHERE, "10.0.0.2 (net1/c1/eth0), 10.0.0.20 (net1/c2/eth0)")],
    ids=["smaller", "moved"],
)
def test_a_change_that_leaves_live_leases_outside_is_refused(
    node: Node, sets: tuple[RangeSet, ...], outside: str
) -> None:
    node.add("c1", sets=SETS)
    node.add("c2", "10.0.0.20", sets=SETS)
    assert refused(node, "c3", sets) == (
        'the configuration of network "net1" no longer holds 10.0.0.0/24, where there are leases: '
        f"{outside}; remove these containers first, or keep the subnet"
    )
    node.delete("c1", "c2")
    assert node.add("c3", sets=sets)
    assert node.subnets() == [str(sets[0].ranges[0].subnet)]


def test_only_ten_of_many_leases_outside_are_named(node: Node) -> None:
    for number in range(12):
        node.add(f"c{number}", sets=SETS)
    assert "10.0.0.11 (net1/c9/eth0) and 2 more; remove" in refused(node, "new", ELSEWHERE)


def test_the_askers_own_lease_does_not_hold_a_change_up(node: Node) -> None:
    node.add("c1", sets=SETS)
    assert node.add("c1", sets=ELSEWHERE) == ["10.1.0.2"]
    assert node.holders() == {"10.1.0.2": "c1"}
    assert node.findings() == []


def test_leases_of_an_earlier_boot_do_not_hold_a_change_up(node: Node) -> None:
    node.add("c1", sets=SETS)
    node.clock.reboot()
    assert node.add("c2", sets=ELSEWHERE) == ["10.1.0.2"]
    assert node.subnets() == ["10.1.0.0/24"]
    assert node.findings() == ["10.0.0.2 of net1/c1/eth0 is in no pool of its network"]
    node.delete("c1")
    assert node.findings() == []


def test_a_subnet_that_holds_no_lease_may_go(node: Node) -> None:
    two = range_sets(["10.0.0.0/24", "10.1.0.0/24"])
    node.add("c1", sets=two)
    assert node.subnets() == ["10.0.0.0/24", "10.1.0.0/24"]
    node.add("c2", sets=SETS)
    assert node.subnets() == ["10.0.0.0/24"]
    assert node.add(owner("c", "net2"), sets=ELSEWHERE) == ["10.1.0.2"]


def test_a_narrowed_range_keeps_leases_of_its_subnet(node: Node) -> None:
    node.add("c1", sets=SETS)
    narrowed = changed(SETS, first=ip_address("10.0.0.100"))
    assert node.add("c2", sets=narrowed) == ["10.0.0.100"]
    assert node.holders() == {"10.0.0.2": "c1", "10.0.0.100": "c2"}


def test_a_gateway_that_moves_onto_a_live_lease_is_refused(node: Node) -> None:
    node.add("c1", sets=SETS)
    moved = changed(SETS, gateway=ip_address("10.0.0.2"))
    assert refused(node, "c2", moved) == (
        'gateway 10.0.0.2 of network "net1" is an address of 10.0.0.2 (net1/c1/eth0); '
        "remove this container first, or choose another gateway"
    )
    assert node.add("c1", sets=moved) == ["10.0.0.3"]
    assert node.holders() == {"10.0.0.3": "c1"}


def test_the_old_gateways_address_is_handed_out(node: Node) -> None:
    moved = changed(SMALL, gateway=ip_address("10.0.0.6"))
    node.add("c1", "10.0.0.2", sets=SMALL)
    given = [node.add(name, sets=moved)[0] for name in ("c2", "c3", "c4", "c5")]
    assert sorted(given) == ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"]


def test_a_gateway_is_not_given_because_it_was_reserved_before_it_moved_there(node: Node) -> None:
    node.add("c1", sets=SETS)
    node.reserve("10.0.0.9", ReservedFor.NAME, "web")
    moved = changed(SETS, gateway=ip_address("10.0.0.9"))
    assert node.add("c2", sets=moved, name="default/web") == ["10.0.0.3"]


def test_a_named_subnet_may_replace_the_chosen_one(node: Node) -> None:
    node.add("c1", sets=ANY)
    assert node.add("c2", sets=range_sets(["10.168.0.0/24"])) == ["10.168.0.3"]
    (use,) = node.pools()
    assert (use.pool.origin, use.pool.reason) == (Origin.CONFIGURED, "named in the configuration")
    assert "where there are leases: 10.168.0.2" in refused(node, "c3", SETS)


def test_a_named_subnet_that_is_left_open_again_goes_once_it_is_empty(node: Node) -> None:
    node.add("c1", sets=SETS)
    assert "no longer holds 10.0.0.0/24" in refused(node, "c2", ANY)
    node.delete("c1")
    assert node.add("c2", sets=ANY) == ["10.168.0.2"]
    assert node.subnets() == ["10.168.0.0/24"]


# Ranges that a runtime passes


def test_runtime_ranges_are_no_change_of_the_configuration(node: Node) -> None:
    node.add("c1", sets=SETS)
    for number, subnet in enumerate(("10.7.0.0/24", "10.8.0.0/24", "10.9.0.0/24")):
        both = (*from_runtime(subnet), *SETS)
        assert node.add(f"r{number}", sets=both) == [subnet.replace("0/24", "2"), f"10.0.0.{3 + number}"]
    assert node.add("c2", sets=SETS) == ["10.0.0.6"]
    assert [(str(each.pool.subnet), each.pool.origin) for each in node.pools()] == [
        ("10.0.0.0/24", Origin.CONFIGURED),
        ("10.7.0.0/24", Origin.RUNTIME),
        ("10.8.0.0/24", Origin.RUNTIME),
        ("10.9.0.0/24", Origin.RUNTIME),
    ]
    node.add("c3", sets=WIDE)
    assert len(node.subnets()) == 4, "a change of the configuration leaves the runtime's subnets"


def test_runtime_ranges_may_not_overlap_another_network(node: Node) -> None:
    node.add(owner("c", "first"), sets=ELSEWHERE)
    assert '10.1.0.0/24 of network "first"' in refused(node, "c", (*from_runtime("10.1.0.0/25"), *SETS))


def test_a_runtimes_gateway_may_not_be_a_live_lease(node: Node) -> None:
    """Otherwise one container's address is the way out of another."""
    mine = changed(SMALL, last=ip_address("10.0.0.3"))
    node.add("c1", sets=mine)
    each = build_range(ip_network("10.0.0.0/29"), start=ip_address("10.0.0.4"), gateway=ip_address("10.0.0.2"))
    sets = (RangeSet(ranges=(each,), runtime=True), *mine)
    assert "gateway 10.0.0.2 of network" in refused(node, "c2", sets)


def test_every_range_that_a_runtime_passes_counts_as_capacity(node: Node) -> None:
    def part(start: str, end: str) -> tuple[RangeSet, ...]:
        each = build_range(ip_network("10.7.0.0/24"), start=ip_address(start), end=ip_address(end))
        return (RangeSet(ranges=(each,), runtime=True), *SETS)

    node.add("c1", sets=part("10.7.0.10", "10.7.0.11"))
    node.add("c2", sets=part("10.7.0.20", "10.7.0.22"))
    (use,) = (each for each in node.pools() if each.pool.origin == Origin.RUNTIME)
    assert (use.capacity, use.leased) == (5, 2)


# STATUS


@pytest.mark.parametrize("sets", [SETS, ANY, ANY6, (*ANY, *sized(26)), (*from_runtime("10.7.0.0/24"), *SETS)])
def test_the_status_of_a_new_network_changes_nothing(node: Node, sets: tuple[RangeSet, ...]) -> None:
    node.add(owner("c", "other"), sets=ELSEWHERE)
    before = node.dump()
    node.status(sets=sets)
    assert node.dump() == before


def test_the_status_of_a_changed_network_changes_nothing(node: Node) -> None:
    node.add("c1", sets=SETS)
    before = node.dump()
    node.status(sets=WIDE)
    assert node.dump() == before
    refused(node, "c2", ELSEWHERE)


def test_status_says_nothing_of_what_did_not_happen(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    node.status(sets=ANY)
    assert [each.message for each in caplog.records if "gets subnet" in each.message] == []


# Networks that are forgotten


def test_an_unknown_network_cannot_be_forgotten(node: Node) -> None:
    with pytest.raises(NotFound, match='network "net1" has no pool'):
        node.run(node.registry.forget("net1"))


@pytest.mark.parametrize("how", ["leased", "reserved", "sticky"])
def test_a_network_in_use_is_not_forgotten(node: Node, how: str) -> None:
    node.add("c1", sets=SETS, sticky="key" if how == "sticky" else "")
    if how == "reserved":
        node.reserve("10.0.0.9", ReservedFor.NOBODY)
    if how != "leased":
        node.delete("c1")
    before = node.dump()
    with pytest.raises(PoolConflict, match='network "net1" has 1 leases and reservations; end them first'):
        node.run(node.registry.forget("net1"))
    assert node.dump() == before


def test_the_subnet_of_a_forgotten_network_is_free_for_others(node: Node) -> None:
    node.add("c1", sets=SETS)
    node.add("c2", sets=SETS)
    node.delete("c1", "c2")
    assert '10.0.0.0/24 of network "net1"' in refused(node, "c", SETS, network="net2")
    node.run(node.registry.forget("net1"))
    assert node.pools() == []
    assert node.entries() == {}
    assert node.add(owner("c", "net2"), sets=SETS) == ["10.0.0.2"], "what was at rest belonged to the other network"
    assert [each.happened for each in node.events(network="net1")] == ["leased", "leased", "released", "released"]
    assert node.findings() == []


def test_a_forgotten_network_may_come_back_elsewhere(node: Node) -> None:
    node.add("c1", sets=SETS)
    node.delete("c1")
    node.run(node.registry.forget("net1"))
    assert node.add("c1", sets=ELSEWHERE) == ["10.1.0.2"]


def test_what_cannot_be_served_leaves_no_network_behind(node: Node) -> None:
    """whereabouts #712: a failure in the second set leaves the first one's address and pool."""
    both = range_sets(["10.0.0.0/24"], ["fd00::/127"])
    node.add(owner("c", "other"), sets=range_sets(["fd00::/64"]))
    before = node.dump()
    for call in (lambda: node.add("c1", sets=both), lambda: node.add("c1", "10.0.0.9", "10.0.0.10", sets=both)):
        with pytest.raises(IpamError):
            call()
        assert node.dump() == before


def test_an_overlap_is_found_whatever_lies_between(node: Node) -> None:
    """A pool of the same network, nested in the wide one, must not hide what else lies in that."""
    wide = build_range(ip_network("10.0.0.0/16"), end=ip_address("10.0.0.9"))
    inside = build_range(ip_network("10.0.1.0/24"))
    node.add("c", sets=(RangeSet(ranges=(wide, inside)),))
    node.add(owner("c", "other"), sets=range_sets(["10.0.9.0/24"]), allow_overlap=True)
    with closing(sqlite3.connect(node.settings.database)) as behind, behind:
        behind.execute("UPDATE pools SET shared = 0")
    assert node.findings() == ['10.0.0.0/16 of network "net1" overlaps 10.0.9.0/24 of network "other"']
