"""The `Registry` in this process: what operators look up and change on the lease database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from ipam.allocator import Run, merged, usable, withheld
from ipam.api import Address, Lease, Owner, RangeSet, Reservation, ReservedFor, Wanted
from ipam.blobs import to_number, with_prefix
from ipam.clock import Moment
from ipam.clock import now as this_moment
from ipam.errors import AddressNotOffered, AddressTaken, NotFound, PoolConflict, RequestRefused
from ipam.host import Host, Surroundings
from ipam.registry import PAGE, Entry, Event, Finding, Moved, Place, Pool, PoolUse, Turn, Weight
from ipam.settings import Settings
from ipam.store import Store
from ipam.tracking import Tracker, configuration_text, set_positions
from ipam.transaction import Transaction
from ipam.verification import verify_apart, verify_page


class LocalRegistry:
    """Looks after the addresses of one lease database."""

    def __init__(
        self, store: Store, settings: Settings, host: Host, *, clock: Callable[[], Moment] = this_moment
    ) -> None:
        self._store = store
        self._host = host
        self._clock = clock
        self.settings = settings  # may be replaced at any time

    async def pools(self, network: str | None = None) -> tuple[PoolUse, ...]:
        """See `Registry.pools`."""
        return await self._store.read(partial(self._pools, network))

    async def entries(
        self, network: str | None = None, *, after: Place | None = None, limit: int = PAGE
    ) -> tuple[Entry, ...]:
        """See `Registry.entries`."""
        return tuple(await self._store.read(lambda txn: txn.entries(network, after, limit)))

    async def history(
        self,
        *,
        network: str = "",
        address: Address | None = None,
        container: str = "",
        before: int | None = None,
        limit: int = PAGE,
    ) -> tuple[Event, ...]:
        """See `Registry.history`."""
        return tuple(await self._store.read(lambda txn: txn.history(network, address, container, before, limit)))

    async def reserve(self, network: str, address: Address, reservation: Reservation) -> None:
        """See `Registry.reserve`."""

        if not reservation.value and reservation.kind != ReservedFor.NOBODY:
            raise RequestRefused(f"a reservation for a {reservation.kind} names it")

        def job(txn: Transaction) -> None:
            pools = txn.pools(network)
            within = [each for each in pools if address.version == each.subnet.version and address in each.subnet]
            if not within:
                known = ", ".join(str(each.subnet) for each in pools) or "none"
                raise AddressNotOffered(f'address {address} is in no pool of network "{network}" ({known})')
            number = to_number(address)
            if any(run.first <= number < run.next for pool in within for each in pool.ranges for run in withheld(each)):
                raise AddressNotOffered(f'address {address} of network "{network}" is never handed out')
            known_entry = txn.entry(network, address)
            if known_entry is not None and known_entry.reservation not in (None, reservation):
                raise AddressTaken(
                    f'address {address} of network "{network}" is reserved for {known_entry.reservation}'
                )
            entry = known_entry or Entry(network=network, address=address)
            txn.put([replace(entry, reservation=reservation)])

        await self._store.write(job)

    async def unreserve(self, network: str, address: Address) -> None:
        """See `Registry.unreserve`."""

        def job(txn: Transaction) -> None:
            entry = txn.entry(network, address)
            if entry is None or entry.reservation is None:
                raise NotFound(f'address {address} of network "{network}" is not reserved')
            if entry.lease is None and entry.released is None:
                txn.drop(entry)
            else:
                txn.put([replace(entry, reservation=None)])

        await self._store.free(job)

    async def take_back(self, owner: Owner, address: Address) -> None:
        """See `Registry.take_back`."""

        def job(txn: Transaction) -> None:
            if not txn.release_address(owner, address, self._clock()):
                raise NotFound(f"{owner} does not hold {address}")

        await self._store.free(job)

    async def forget(self, network: str) -> None:
        """See `Registry.forget`."""

        def job(txn: Transaction) -> None:
            if txn.configuration(network) is None and not txn.pools(network):
                raise NotFound(f'network "{network}" has no pool')
            after, in_use = None, 0
            while page := txn.entries(network, after):
                in_use += sum(each.lease is not None or each.reservation is not None for each in page)
                after = Place(network=network, address=page[-1].address)
            if in_use:
                raise PoolConflict(f'network "{network}" has {in_use} leases and reservations; end them first')
            txn.forget(network)

        await self._store.free(job)

    async def adopt(self, wanted: Wanted, moved: tuple[Moved, ...], last: tuple[Address, ...]) -> None:
        """See `Registry.adopt`."""
        around = await asyncio.to_thread(self._host.surroundings)
        await self._store.write(partial(self._adopt, wanted, moved, last, around))

    async def verify(self) -> tuple[Finding, ...]:
        """See `Registry.verify`."""
        damage = await self._store.read(Transaction.integrity)
        found = [Finding(weight=Weight.ERROR, what=f"the database file: {each}", mendable=True) for each in damage]
        for network in await self._store.read(Transaction.networks_of_anything):
            start: int | None = 0
            while start is not None:  # some addresses at a time: others write meanwhile
                some, start = await self._store.read(partial(verify_page, network, start))
                found += some
        return (*found, *await self._store.read(self._verify_pools))

    async def mend(self) -> None:
        """See `Registry.mend`."""
        await self._store.write(lambda txn: txn.rebuild_runs())

    def _pools(self, network: str | None, txn: Transaction) -> tuple[PoolUse, ...]:
        return tuple(self._use(txn, each) for each in txn.pools(network))

    def _use(self, txn: Transaction, pool: Pool) -> PoolUse:
        runs = _usable(pool)
        counts = [txn.count(pool.network, run, self._clock(), self.settings.addresses.cooldown) for run in runs]
        leased, cooling, reserved = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
        capacity = sum(run.next - run.first for run in runs)
        return PoolUse(
            pool=pool,
            capacity=capacity,
            leased=leased,
            cooling=cooling,
            reserved=reserved,
            turns=tuple(self._turns(txn, pool)),
        )

    def _turns(self, txn: Transaction, pool: Pool) -> list[Turn]:
        """Where the range sets stand that begin in the pool."""
        cursors = {first: address for _, first, address in txn.cursors(pool.network)}
        configuration = txn.configuration(pool.network)
        positions = set_positions(configuration, txn.pools(pool.network)) if configuration is not None else {}
        firsts = [each.first for each in pool.ranges if each.first in cursors]
        return [Turn(position=positions.get(first), last=cursors[first]) for first in firsts]

    def _adopt(
        self,
        wanted: Wanted,
        moved: tuple[Moved, ...],
        last: tuple[Address, ...],
        around: Surroundings,
        txn: Transaction,
    ) -> None:
        network, now = wanted.owner.network, self._clock()
        with txn.savepoint():
            configuration = txn.configuration(network)
            sets = wanted.range_sets or tuple(RangeSet(ranges=each.ranges) for each in txn.pools(network))
            if wanted.range_sets and configuration != configuration_text(wanted.range_sets, wanted.allow_overlap):
                tracker = Tracker(
                    txn=txn,
                    default_pools=self.settings.default_pools,
                    around=around,
                    boot_id=now.boot_id,
                    notes=[],
                )
                sets = tracker.track(wanted, configuration)
            entries = []
            _require_one_owner_each(network, moved)
            for each in moved:
                known = txn.entry(network, each.address)
                if known is not None and known.lease is not None:
                    if each.owner not in (known.lease.owner, replace(known.lease.owner, ifname="")):
                        raise AddressTaken(f"{each.address} of {each.owner} is held by {known.lease.owner} here")
                    continue
                entries.append(_moved_entry(each, sets, now, known))
            txn.put(entries)
            for address in last:
                for offer in sets:
                    if offer.range_of(address) is not None:
                        txn.set_cursor(network, offer.ranges[0].first, address)

    def _verify_pools(self, txn: Transaction) -> list[Finding]:
        pools = txn.pools()
        return [*[each for pool in pools for each in self._verify_pool(txn, pool)], *verify_apart(pools)]

    def _verify_pool(self, txn: Transaction, pool: Pool) -> list[Finding]:
        """Whether what is free by the runs is what is left by the states: leased, cooling, reserved, or rested."""
        use = self._use(txn, pool)
        rested = sum(txn.count_rests(pool.network, run) for run in _usable(pool)) - use.cooling
        taken = [txn.count_taken(pool.network, run) for run in _usable(pool)]
        untaken = use.capacity - sum(taken)
        if use.free == untaken + rested:
            return []
        what = (
            f'pool {pool.subnet} of network "{pool.network}" has {use.capacity} addresses: {use.leased} leased, '
            f"{use.cooling} cooling, {use.reserved} reserved and {untaken + rested} free, which is not their sum"
        )
        return [Finding(weight=Weight.ERROR, what=what, mendable=True)]


def _usable(pool: Pool) -> tuple[Run, ...]:
    return merged(run for each in pool.ranges for run in usable(each))


def _require_one_owner_each(network: str, moved: Iterable[Moved]) -> None:
    """Refuse leases of another network, and an address that is to have two owners."""
    owners: dict[Address, Owner] = {}
    for each in moved:
        if each.owner.network != network:
            raise RequestRefused(f'{each.address} of {each.owner} cannot be adopted by network "{network}"')
        if owners.setdefault(each.address, each.owner) != each.owner:
            raise RequestRefused(f"{each.address} is to be adopted for {owners[each.address]} and for {each.owner}")


def _moved_entry(moved: Moved, sets: Iterable[RangeSet], now: Moment, known: Entry | None) -> Entry:
    """A lease as this IPAM would have given it; an address of no range has neither subnet nor gateway."""
    each = next((each for offer in sets if (each := offer.range_of(moved.address)) is not None), None)
    prefix = each.subnet.prefixlen if each is not None else moved.address.max_prefixlen
    return Entry(
        network=moved.owner.network,
        address=moved.address,
        lease=Lease(
            owner=moved.owner,
            address=with_prefix(moved.address, prefix),
            gateway=each.gateway if each is not None else None,
            since=datetime.now(UTC).replace(microsecond=0),
            boot_id=now.boot_id,
        ),
        reservation=known.reservation if known is not None else None,
    )
