"""Keeps each network's subnets as pools: chooses those that a configuration leaves open, refuses what collides."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv6Network, ip_network
from secrets import token_bytes

from ipam.allocator import Run
from ipam.api import Address, AnySubnet, Lease, Network, Range, RangeSet, Wanted
from ipam.blobs import to_number
from ipam.codec import decode, encode
from ipam.errors import PoolConflict
from ipam.host import Surroundings
from ipam.pools import Obstacle, choose, in_the_way, obstacles, overlapping
from ipam.ranges import build_range
from ipam.registry import Origin, Pool
from ipam.settings import DefaultPool
from ipam.transaction import Transaction

_NAMED_AT_MOST = 10  # leases in one message


@lru_cache(maxsize=256)
def configuration_text(range_sets: tuple[RangeSet, ...], allow_overlap: bool) -> str:
    """What is kept of a network's configuration, to see whether it has changed."""
    configured = [encode(each) for each in range_sets if not each.runtime]
    return json.dumps({"range_sets": configured, "allow_overlap": allow_overlap}, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something to log, at this level, once what it tells of is durable."""

    level: int
    text: str


def resolve(range_sets: Sequence[RangeSet], pools: Iterable[Pool]) -> tuple[RangeSet, ...] | None:
    """The sets with the pools that were chosen for those that left it open; None if some range has no pool yet."""
    pools = list(pools)
    known = {each for pool in pools for each in pool.ranges}
    if any(each not in known for offer in range_sets for each in offer.ranges):
        return None
    chosen = [each for each in pools if each.origin == Origin.DEFAULT]
    chosen.sort(key=lambda pool: int(pool.subnet.network_address))  # the same for every request
    resolved = dict(enumerate(range_sets))
    for position, wish in _wishes(range_sets):
        pool = next((each for each in chosen if _is_wished(each, wish)), None)
        if pool is None:
            return None
        chosen.remove(pool)
        resolved[position] = RangeSet(ranges=pool.ranges, runtime=range_sets[position].runtime)
    return tuple(resolved[position] for position in range(len(range_sets)))


def set_positions(configuration: str, pools: Iterable[Pool]) -> dict[Address, int]:
    """Which range set of the tracked configuration begins at which address, counted from 0."""
    sets = tuple(decode(RangeSet, each) for each in json.loads(configuration)["range_sets"])
    return {each.ranges[0].first: position for position, each in enumerate(resolve(sets, pools) or ())}


def _wishes(range_sets: Sequence[RangeSet]) -> list[tuple[int, AnySubnet]]:
    """The wishes for a subnet by their positions; those of a size first, for the others take any."""
    wishes = [(i, each.any_subnet) for i, each in enumerate(range_sets) if each.any_subnet is not None]
    return sorted(wishes, key=lambda wish: wish[1].prefixlen is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """Tracks what a network wants within one transaction, on a host with these surroundings."""

    txn: Transaction
    default_pools: Sequence[DefaultPool]
    around: Surroundings
    boot_id: str
    notes: list[Note]

    def track(self, wanted: Wanted, configuration: str | None) -> tuple[RangeSet, ...]:
        """Keep the configuration and its pools; the range sets, with a subnet for those that left it open.

        `configuration`: the one that was tracked. `PoolConflict` names what collides.
        """
        network, text = wanted.owner.network, configuration_text(wanted.range_sets, wanted.allow_overlap)
        pools = self.txn.pools()
        own = [each for each in pools if each.network == network]
        others = [each for each in pools if each.network != network]
        gateways = _gateways(each for pool in own for each in pool.ranges)
        # A link that has the gateway alone, as each of ptp's has, serves this network already.
        new = _gateways(each for offer in wanted.range_sets for each in offer.ranges)
        hindering = [each for each in obstacles(self.around, wanted.links, gateways) if each.subnet not in new]
        planned = _planned(wanted, own)
        for _, wish in _wishes(wanted.range_sets):
            planned.append(
                _kept(own, planned, wish) or self._chosen(network, wish, [*others, *own, *planned], hindering)
            )
        known = {(each.subnet, each.shared) for each in own}
        for pool in planned:
            if (pool.subnet, pool.shared) not in known and pool.origin != Origin.DEFAULT:
                self._require_apart(pool, others, hindering)
        self._require_no_live_gateway(wanted, own, planned)
        if configuration is not None and configuration != text:
            self._require_leases_fit(wanted, own, planned)
            for pool in _going(own, planned):
                self.txn.drop_pool(pool)
        for pool in planned:
            self.txn.put_pool(pool)
        self.txn.track(network, text, _now())
        sets = resolve(wanted.range_sets, planned)
        assert sets is not None, "each range and each wish has its pool now"
        return sets

    def _chosen(self, network: str, wish: AnySubnet, pools: Sequence[Pool], hindering: Sequence[Obstacle]) -> Pool:
        choice = choose(wish, self._default_pools(), pools, hindering)
        text = f'network "{network}" gets subnet {choice.subnet}: {choice.reason}'
        self.notes.append(Note(level=logging.WARNING if choice.overlaps else logging.INFO, text=text))
        return Pool(
            network=network,
            subnet=choice.subnet,
            ranges=(build_range(choice.subnet),),
            origin=Origin.DEFAULT,
            reason=choice.reason,
            shared=False,
            since=_now(),
        )

    def _default_pools(self) -> list[DefaultPool]:
        """The default pools; with a /48 of this host's own for IPv6 if the settings name none (RFC 4193)."""
        pools = list(self.default_pools)
        if not any(each.base.version == 6 for each in pools):
            prefix = self.txn.fact("ula")
            if prefix is None:
                prefix = str(IPv6Network((b"\xfd" + token_bytes(5) + bytes(10), 48)))
                self.txn.put_fact("ula", prefix)
            pools.append(DefaultPool(base=IPv6Network(prefix), size=64))
        return pools

    def _require_apart(self, pool: Pool, others: Iterable[Pool], hindering: Sequence[Obstacle]) -> None:
        """Refuse a subnet that others use, unless its configuration allows it; routes are only worth a warning."""
        hits = in_the_way(pool.subnet, hindering)
        pools = overlapping(pool.subnet, others)
        for each in hits:
            if not each.on_link:
                text = f'subnet {pool.subnet} of network "{pool.network}" overlaps {each.what}'
                self.notes.append(Note(level=logging.WARNING, text=text))
        if pool.shared:
            return
        if pools:
            other = pools[0]
            raise PoolConflict(
                f'subnet {pool.subnet} of network "{pool.network}" overlaps {other.subnet} of network '
                f'"{other.network}"; choose another, set "allowOverlap", or, if that network is no longer used, '
                f'run "cni-bridgectl forget {other.network}"'
            )
        for each in hits:
            if each.on_link:
                raise PoolConflict(
                    f'subnet {pool.subnet} of network "{pool.network}" overlaps {each.subnet}, where this host has '
                    f'{each.what}; choose another or set "allowOverlap"'
                )

    def _require_leases_fit(self, wanted: Wanted, own: Sequence[Pool], planned: Sequence[Pool]) -> None:
        """Refuse a change that takes the subnet of live leases of others away."""
        network, subnets = wanted.owner.network, {each.subnet for each in planned}
        going = _going(own, planned)
        outside = [
            lease
            for pool in going
            for lease in self._live(wanted, pool.subnet)
            if not any(lease.address.ip in subnet for subnet in subnets if subnet.version == lease.address.version)
        ]
        if outside:
            gone = ", ".join(str(each.subnet) for each in going)
            raise PoolConflict(
                f'the configuration of network "{network}" no longer holds {gone}, where there are leases: '
                f"{_named(outside)}; remove these containers first, or keep the subnet"
            )

    def _require_no_live_gateway(self, wanted: Wanted, own: Sequence[Pool], planned: Sequence[Pool]) -> None:
        """Refuse a new gateway that is an address of a container."""
        network = wanted.owner.network
        gateways = {each.gateway for pool in planned for each in pool.ranges if each.gateway is not None}
        for gateway in gateways - {each.gateway for pool in own for each in pool.ranges}:
            holders = self._live(wanted, ip_network(gateway))
            if holders:
                raise PoolConflict(
                    f'gateway {gateway} of network "{network}" is an address of {_named(holders)}; '
                    "remove this container first, or choose another gateway"
                )

    def _live(self, wanted: Wanted, subnet: Network) -> list[Lease]:
        """Leases in the subnet, but for the asker's own and those of earlier boots."""
        run = Run(first=to_number(subnet.network_address), next=to_number(subnet.broadcast_address) + 1)
        leases = self.txn.leases_within(wanted.owner.network, run)
        return [each for each in leases if each.owner != wanted.owner and each.boot_id == self.boot_id]


def _gateways(ranges: Iterable[Range]) -> set[Network]:
    return {ip_network(each.gateway) for each in ranges if each.gateway is not None}


def _going(own: Iterable[Pool], planned: Iterable[Pool]) -> list[Pool]:
    """The pools that the configuration no longer has; those that a runtime passed are no part of it."""
    subnets = {each.subnet for each in planned}
    return [each for each in own if each.subnet not in subnets and each.origin != Origin.RUNTIME]


def _is_wished(pool: Pool, wish: AnySubnet) -> bool:
    return pool.subnet.version == wish.family and wish.prefixlen in (None, pool.subnet.prefixlen)


def _kept(own: Iterable[Pool], planned: Iterable[Pool], wish: AnySubnet) -> Pool | None:
    """The pool that was chosen for this wish before."""
    used = {each.subnet for each in planned}
    chosen = (each for each in own if each.origin == Origin.DEFAULT and each.subnet not in used)
    return next((each for each in chosen if _is_wished(each, wish)), None)


def _planned(wanted: Wanted, own: Iterable[Pool]) -> list[Pool]:
    """A pool for each subnet that is named, with the ranges of it; those that a runtime passed earlier stay known."""
    earlier = {each.subnet: each.ranges for each in own if each.origin == Origin.RUNTIME}
    planned: dict[Network, Pool] = {}
    for offer in wanted.range_sets:
        for each in offer.ranges:
            before = planned.get(each.subnet)
            ranges = before.ranges if before is not None else earlier.get(each.subnet, ()) if offer.runtime else ()
            planned[each.subnet] = Pool(
                network=wanted.owner.network,
                subnet=each.subnet,
                ranges=tuple(dict.fromkeys((*ranges, each))),
                origin=Origin.RUNTIME if offer.runtime else Origin.CONFIGURED,
                reason="passed by the runtime" if offer.runtime else "named in the configuration",
                shared=wanted.allow_overlap,
                since=_now(),
            )
    return list(planned.values())


def _named(leases: Sequence[Lease]) -> str:
    named = ", ".join(f"{each.address.ip} ({each.owner})" for each in leases[:_NAMED_AT_MOST])
    return named + (f" and {len(leases) - _NAMED_AT_MOST} more" if len(leases) > _NAMED_AT_MOST else "")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
