"""The `Ipam` in this process: allocation, release and collection on the lease database."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_interface

from ipam import suspicion
from ipam.allocator import next_free, usable, withheld
from ipam.api import Address, Allocation, Interface, Lease, Owner, RangeSet, Reservation, ReservedFor, Wanted
from ipam.blobs import to_number
from ipam.clock import Moment
from ipam.clock import now as this_moment
from ipam.errors import AddressNotOffered, AddressTaken, LeaseMissing, PoolExhausted
from ipam.host import Host, Surroundings
from ipam.registry import Entry, Place
from ipam.settings import Settings
from ipam.store import Store
from ipam.tracking import Note, Tracker, configuration_text, resolve
from ipam.transaction import Cursor, Opening, Transaction

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
            leases = await self._store.write(partial(self._allocate, wanted, around, notes))
            if leases is not None:
                for note in notes:
                    log.log(note.level, note.text)
                return Allocation(leases=leases, routes=wanted.routes, dns=wanted.dns)
            around = await asyncio.to_thread(self._host.surroundings)

    async def release(self, owner: Owner) -> None:
        """See `Ipam.release`."""

        async def job(txn: Transaction) -> None:
            await txn.release(owner, self._clock())
            await self._keep_house(txn, owner.network)

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

        async def job(txn: Transaction) -> None:
            await txn.touch()
            async with txn.rehearsal():
                await self._allocate(wanted, around, [], txn)

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
                await self._store.free(partial(self._end, verdict.ended))
            if verdict.suspect or verdict.cleared:
                await self._store.free(partial(self._mark, verdict))

    async def _end(self, entries: Sequence[Entry], txn: Transaction) -> None:
        for entry in entries:
            if entry.lease is None or await txn.entry(entry.network, entry.address) != entry:
                continue  # it has changed since it was looked at
            if await txn.release_address(entry.lease.owner, entry.address, self._clock()):
                log.warning(
                    "%s of %s is released: it is of an earlier boot and its namespace is gone",
                    entry.address,
                    entry.lease.owner,
                )

    async def _mark(self, verdict: suspicion.Verdict, txn: Transaction) -> None:
        await txn.mark_suspect(verdict.suspect, self._clock())
        await txn.mark_suspect(verdict.cleared, None)

    async def _is_news(self, wanted: Wanted) -> bool:
        async def job(txn: Transaction) -> bool:
            return await self._tracked(txn, wanted, await txn.configuration(wanted.owner.network)) is None

        return await self._store.read(job)

    async def _release_all(self, owners: Sequence[Owner], txn: Transaction) -> None:
        await txn.release_all(owners, self._clock())

    async def _allocate(
        self, wanted: Wanted, around: Surroundings | None, notes: list[Note], txn: Transaction
    ) -> tuple[Lease, ...] | None:
        """The owner's leases; None if the network is not tracked as it is now and the surroundings must be known.

        `notes` gets what is to be logged once it is durable.
        """
        opening = await txn.opening(wanted)
        sets = await self._tracked(txn, wanted, opening.configuration)
        if sets is not None:
            return await self._give(txn, wanted, sets, opening, notes)
        if around is None:
            return None
        tracker = Tracker(
            txn=txn,
            default_pools=self.settings.default_pools,
            around=around,
            boot_id=self._clock().boot_id,
            notes=notes,
        )
        async with txn.savepoint():
            sets = await tracker.track(wanted, opening.configuration)
            return await self._give(txn, wanted, sets, opening, notes)

    async def _tracked(
        self, txn: Transaction, wanted: Wanted, configuration: str | None
    ) -> tuple[RangeSet, ...] | None:
        """The range sets, if the network's pools are tracked as it is configured now."""
        if not wanted.range_sets:
            return ()
        if configuration != configuration_text(wanted.range_sets, wanted.allow_overlap):
            return None
        if not any(each.runtime or each.any_subnet is not None for each in wanted.range_sets):
            return wanted.range_sets
        return resolve(wanted.range_sets, await txn.pools(wanted.owner.network))

    async def _give(
        self, txn: Transaction, wanted: Wanted, sets: tuple[RangeSet, ...], opening: Opening, notes: list[Note]
    ) -> tuple[Lease, ...]:
        """Lease an address of each set. Nothing is changed before all of them are found."""
        now, network = self._clock(), wanted.owner.network
        requested = _assign(wanted.requested, sets)
        kept: list[Entry] = []
        given: list[Entry] = []
        for position, offer in enumerate(sets):
            address = requested.get(position)
            known = next((each for each in opening.held if _is_offered(each, offer, address)), None)
            if known is not None:
                kept.append(known)
                address = known.address
            elif address is None:
                address = self._reserved_for_it(opening.reserved, offer, now)
            drawn = address is None
            if address is None:
                address = await self._search(txn, network, offer, opening, now, notes)
            elif known is None:
                known = await self._claimable(await txn.entry(network, address), wanted, now)
            given.append(self._entry(wanted, offer, address, known, now, drawn=drawn))
        for entry in opening.held:
            if entry not in kept and entry.lease is not None:
                await txn.release_address(entry.lease.owner, entry.address, now)
        changed = [each for each in given if each not in opening.held]
        if changed:
            await txn.put(changed)
            await self._keep_house(txn, network)
        return tuple(each.lease for each in given if each.lease is not None)

    def _entry(
        self, wanted: Wanted, offer: RangeSet, address: Address, known: Entry | None, now: Moment, *, drawn: bool
    ) -> Entry:
        """What is to be kept of the address: the lease, and a reservation that it had or gets by a sticky key."""
        each = offer.range_of(address)
        assert each is not None, "an address comes from a range of its set"
        former = known.lease if known is not None and known.lease is not None else None
        mine = former is not None and former.owner.container_id == wanted.owner.container_id
        reservation = known.reservation if known is not None else None
        if wanted.sticky and reservation is None:
            reservation = Reservation(kind=ReservedFor.STICKY, value=wanted.sticky)
        first = offer.ranges[0].first
        return Entry(
            network=wanted.owner.network,
            address=address,
            lease=Lease(
                owner=wanted.owner,
                address=ip_interface((address, each.subnet.prefixlen)),
                gateway=each.gateway,
                since=former.since if former is not None and mine else datetime.now(UTC).replace(microsecond=0),
                boot_id=now.boot_id,
                name=wanted.name,
                mac=wanted.mac,
                netns=wanted.netns,
            ),
            reservation=reservation,
            drawn_from=known.drawn_from if known is not None and mine else first if drawn else None,
        )

    async def _claimable(self, known: Entry | None, wanted: Wanted, now: Moment) -> Entry | None:
        """What is known of an address that is asked for by name; `AddressTaken` unless the owner may have it."""
        if known is None:
            return None
        what = f'address {known.address} of network "{known.network}"'
        if known.lease is not None and not suspicion.is_gone(known, now, self._host):
            holder = known.lease.owner
            raise AddressTaken(f"{what} is held by container {holder.container_id} ({holder.ifname})")
        if known.reservation is not None and known.reservation not in _reservations_of(wanted):
            raise AddressTaken(f"{what} is reserved for {known.reservation}")
        return known

    def _reserved_for_it(self, reserved: Iterable[Entry], offer: RangeSet, now: Moment) -> Address | None:
        """The address of the set that is reserved for who asks; one that somebody holds only if there is no other."""
        offered = [each for each in reserved if _is_offered(each, offer, None)]
        free = (each for each in offered if each.lease is None or suspicion.is_gone(each, now, self._host))
        return next((each.address for each in (*free, *offered)), None)

    async def _search(
        self, txn: Transaction, network: str, offer: RangeSet, opening: Opening, now: Moment, notes: list[Note]
    ) -> Address:
        """The next address of the set that is free, or else that of the longest rest, or of a lease that has gone."""
        cursor = opening.cursors.get(offer.ranges[0].first)
        found = await _next_free(txn, network, offer, cursor)
        while found is None and await txn.end_rests(
            network, now, self.settings.addresses.cooldown, _RESTS_ENDED_AT_ONCE
        ):
            for known in opening.cursors.values():
                known.run = None  # it may have become shorter
            found = await _next_free(txn, network, offer, cursor)
        if found is not None:
            return found
        runs = [run for each in offer.ranges for run in usable(each)]
        resting = [each for run in runs if (each := await txn.longest_at_rest(network, run, now.boot_id)) is not None]
        if resting:
            longest = max(resting, key=lambda each: now.since(each.released) if each.released is not None else 0)
            text = f'network "{network}" has no other address: {longest.address} is given before its rest is over'
            notes.append(Note(level=logging.WARNING, text=text))
            return longest.address
        for run in runs:
            async for entry in txn.of_earlier_boots(network, run, now.boot_id):
                if suspicion.is_gone(entry, now, self._host):
                    assert entry.lease is not None
                    text = f"{entry.address} of {entry.lease.owner} is of an earlier boot and given anew"
                    notes.append(Note(level=logging.WARNING, text=text))
                    return entry.address
        raise PoolExhausted(
            f'no address is free in range set {offer} of network "{network}"; '
            "widen the ranges or remove what no longer lives"
        )

    async def _keep_house(self, txn: Transaction, network: str) -> None:
        """End rests that are over and shorten the history, now and then: neither may grow for ever."""
        if time.monotonic() - self._kept_house < _HOUSEKEEPING_INTERVAL:
            return
        self._kept_house = time.monotonic()
        rules = self.settings.addresses
        await txn.end_rests(network, self._clock(), rules.cooldown, _HOUSEKEEPING_ROWS)
        oldest = datetime.now(UTC) - timedelta(days=rules.history_days)
        await txn.shorten_history(rules.history_rows, oldest, _HOUSEKEEPING_ROWS)


async def _next_free(txn: Transaction, network: str, offer: RangeSet, cursor: Cursor | None) -> Address | None:
    """The first address behind the cursor that is not taken. The run around the cursor is known from the opening."""
    known = cursor.run if cursor is not None else None
    search = next_free(offer, cursor.address if cursor is not None else None)
    try:
        number = next(search)
        while True:
            if known is not None and known.first <= number < known.next:
                number = search.send(known)
            elif known is not None and number == known.next:
                number = search.send(None)  # runs are merged: what follows one is free
            else:
                number = search.send(await txn.run_at(network, number))
    except StopIteration as end:
        found: Address | None = end.value
        return found


def _assign(requested: Iterable[Address], sets: Sequence[RangeSet]) -> dict[int, Address]:
    """Which requested address each range set serves, at most one each; all must be served."""
    assigned: dict[int, Address] = {}
    for address in dict.fromkeys(requested):
        for position, offer in enumerate(sets):
            each = offer.range_of(address)
            if each is None or position in assigned:
                continue
            number = to_number(address)
            if any(run.first <= number < run.next for run in withheld(each)):
                what = "the gateway" if address == each.gateway else "never handed out"
                raise AddressNotOffered(f"requested address {address} is {what} in subnet {each.subnet}")
            assigned[position] = address
            break
        else:
            offers = "; ".join(map(str, sets)) or "none"
            raise AddressNotOffered(f"requested address {address} fits no range set that is still open ({offers})")
    return assigned


def _is_offered(entry: Entry, offer: RangeSet, requested: Address | None) -> bool:
    """Whether the range set, as it is configured now, would give the address; its prefix may have changed."""
    each = offer.range_of(entry.address)
    if each is None or requested not in (None, entry.address):
        return False
    number = to_number(entry.address)
    return not any(run.first <= number < run.next for run in withheld(each))


def _reservations_of(wanted: Wanted) -> list[Reservation]:
    """The reservations that are for who asks."""
    values = {
        ReservedFor.STICKY: {wanted.sticky},
        ReservedFor.MAC: {wanted.mac},
        ReservedFor.NAME: {wanted.name, wanted.name.rpartition("/")[2]},
    }
    return [Reservation(kind=kind, value=value) for kind, some in values.items() for value in some if value]
