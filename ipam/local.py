"""The `Ipam` in this process: allocation, release and collection on the lease database."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from ipam import suspicion
from ipam.api import Allocation, Interface, Lease, Owner, RangeSet, Wanted
from ipam.clock import Moment
from ipam.clock import now as this_moment
from ipam.errors import LeaseMissing
from ipam.giving import Giver
from ipam.host import Host, Surroundings
from ipam.registry import Entry, Place
from ipam.settings import Settings
from ipam.store import Store
from ipam.tracking import Note, Tracker, configuration_text, resolve
from ipam.transaction import Transaction

log = logging.getLogger(__name__)

_RESTS_ENDED_AT_ONCE = 64
_HOUSEKEEPING_INTERVAL = 1.0  # seconds
_HOUSEKEEPING_ROWS = 512
_OWNERS_AT_ONCE = 32  # that one transaction releases: its journal must fit into the room held in reserve


class LocalIpam:
    """Owns addresses on one lease database, which other processes may use at the same time."""

    def __init__(
        self, store: Store, settings: Settings, host: Host, *, clock: Callable[[], Moment] = this_moment
    ) -> None:
        self._store = store
        self._host = host
        self._clock = clock
        self.settings = settings  # may be replaced at any time
        self._kept_house = 0.0

    @classmethod
    async def open(cls, settings: Settings, host: Host, *, clock: Callable[[], Moment] = this_moment) -> LocalIpam:
        """Open or create the database that the settings name."""
        return cls(await Store.open(settings.database, patience=settings.patience), settings, host, clock=clock)

    async def close(self) -> None:
        """Finish what is being written and close the database."""
        await self._store.close()

    async def allocate(self, wanted: Wanted) -> Allocation:
        """See `Ipam.allocate`. Addresses held from an earlier call are kept where they still fit."""
        around: Surroundings | None = None
        while True:
            notes: list[Note] = []
            leases = await self._store.write(partial(self._allocate_and_keep_house, wanted, around, notes))
            if leases is not None:
                for note in notes:
                    log.log(note.level, note.text)
                return Allocation(leases=leases, routes=wanted.routes, dns=wanted.dns)
            around = await asyncio.to_thread(self._host.surroundings)

    async def release(self, owner: Owner) -> None:
        """See `Ipam.release`."""

        def job(txn: Transaction) -> None:
            txn.release(owner, self._clock())
            self._keep_house(txn, owner.network)

        await self._store.free(job)

    async def held(self, owner: Owner) -> tuple[Lease, ...]:
        """See `Ipam.held`."""
        return tuple(await self._store.read(lambda txn: txn.held(owner)))

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        """See `Ipam.check`."""
        held = {lease.address for lease in await self.held(wanted.owner)}
        missing = [str(each) for each in addresses if each not in held]
        if missing or not held:
            raise LeaseMissing(f"no lease of {wanted.owner} for {', '.join(missing) or 'any address'}")

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Ipam.collect`."""
        without_ifname = {replace(each, ifname="") for each in keep}  # leases that were moved in may name none
        owners = await self._store.read(lambda txn: txn.owners(network))
        gone = [each for each in owners if each not in keep and each not in without_ifname]
        for start in range(0, len(gone), _OWNERS_AT_ONCE):
            some = gone[start : start + _OWNERS_AT_ONCE]
            await self._store.free(partial(self._release_all, some))
        await self.reconcile(network)

    async def status(self, wanted: Wanted) -> None:
        """See `Ipam.status`. It rehearses an allocation and writes nothing new, but so that a store that cannot be
        written is found too."""

        def job(txn: Transaction) -> None:
            txn.touch()
            with txn.rehearsal():
                self._allocate(wanted, around, [], txn)

        around = await asyncio.to_thread(self._host.surroundings) if await self._is_news(wanted) else None
        await self._store.write(job)

    async def reconcile(self, network: str | None = None) -> None:
        """Look at the leases of earlier boots: mark those whose namespace is gone, end those marked long enough ago.

        Only root ends leases: another user may not see what lives.
        """
        after: Place | None = None
        while page := await self._store.read(partial(Transaction.entries, network=network, after=after)):
            after = Place(network=page[-1].network, address=page[-1].address)
            verdict = suspicion.judge(page, self._clock(), self._host, self.settings.addresses.suspect_grace)
            if verdict.ended and os.geteuid() == 0:
                for lease in await self._store.free(partial(self._end, verdict.ended)):
                    log.warning(
                        "%s of %s is released: it is of an earlier boot and its namespace is gone",
                        lease.address.ip,
                        lease.owner,
                    )
            if verdict.suspect or verdict.cleared:
                await self._store.free(partial(self._mark, verdict))

    def _end(self, entries: Sequence[Entry], txn: Transaction) -> list[Lease]:
        """End these leases, but for those that have changed since they were looked at; those that were ended."""
        return [
            lease
            for each in entries
            if (lease := each.lease) is not None
            and txn.entry(each.network, each.address) == each
            and txn.release_address(lease.owner, each.address, self._clock())
        ]

    def _mark(self, verdict: suspicion.Verdict, txn: Transaction) -> None:
        txn.mark_suspect(verdict.suspect, self._clock())
        txn.mark_suspect(verdict.cleared, None)

    async def _is_news(self, wanted: Wanted) -> bool:
        def job(txn: Transaction) -> bool:
            return self._tracked(txn, wanted, txn.configuration(wanted.owner.network)) is None

        return await self._store.read(job)

    def _release_all(self, owners: Sequence[Owner], txn: Transaction) -> None:
        txn.release_all(owners, self._clock())

    def _allocate_and_keep_house(
        self, wanted: Wanted, around: Surroundings | None, notes: list[Note], txn: Transaction
    ) -> tuple[Lease, ...] | None:
        notes.clear()  # those of a transaction that was undone and is tried again
        leases = self._allocate(wanted, around, notes, txn)
        if leases is not None:
            self._keep_house(txn, wanted.owner.network)
        return leases

    def _allocate(
        self, wanted: Wanted, around: Surroundings | None, notes: list[Note], txn: Transaction
    ) -> tuple[Lease, ...] | None:
        """The owner's leases; None if the network is not tracked as it is now and the surroundings must be known.

        `notes` gets what is to be logged once it is durable.
        """
        opening = txn.opening(wanted)
        giver = Giver(
            txn=txn,
            wanted=wanted,
            opening=opening,
            host=self._host,
            now=self._clock(),
            cooldown=self.settings.addresses.cooldown,
            notes=notes,
        )
        sets = self._tracked(txn, wanted, opening.configuration)
        if sets is not None:
            return giver.give(sets)
        if around is None:
            return None
        tracker = Tracker(
            txn=txn,
            default_pools=self.settings.default_pools,
            around=around,
            boot_id=self._clock().boot_id,
            notes=notes,
        )
        with txn.savepoint():
            sets = tracker.track(wanted, opening.configuration)
            return giver.give(sets)

    def _tracked(self, txn: Transaction, wanted: Wanted, configuration: str | None) -> tuple[RangeSet, ...] | None:
        """The range sets, if the network's pools are tracked as it is configured now."""
        if not wanted.range_sets:
            return ()
        if configuration != configuration_text(wanted.range_sets, wanted.allow_overlap):
            return None
        if not any(each.runtime or each.any_subnet is not None for each in wanted.range_sets):
            return wanted.range_sets
        return resolve(wanted.range_sets, txn.pools(wanted.owner.network))

    def _keep_house(self, txn: Transaction, network: str) -> None:
        """End rests that are over and shorten the history, now and then: neither may grow for ever."""
        if time.monotonic() - self._kept_house < _HOUSEKEEPING_INTERVAL:
            return
        self._kept_house = time.monotonic()
        rules = self.settings.addresses
        txn.end_rests(network, self._clock(), rules.cooldown, _HOUSEKEEPING_ROWS)
        oldest = datetime.now(UTC) - timedelta(days=rules.history_days)
        txn.shorten_history(rules.history_rows, oldest, _HOUSEKEEPING_ROWS)
