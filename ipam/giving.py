"""Gives an owner the addresses that it asks for: those it holds, has reserved, names, or else the next free ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ipam import suspicion
from ipam.address_statements import Cursor, Opening
from ipam.allocator import next_free, usable, withheld
from ipam.api import Address, Lease, RangeSet, Reservation, ReservedFor, Wanted
from ipam.blobs import to_number, with_prefix
from ipam.clock import Moment
from ipam.errors import AddressNotOffered, AddressTaken, PoolExhausted
from ipam.host import Host
from ipam.registry import Entry
from ipam.tracking import Note
from ipam.transaction import Transaction

_RESTS_ENDED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Giver:
    """Serves one request within one transaction; `opening` is what is known of the owner and its network.

    `cooldown`: seconds that a released address rests; `notes` gets what is to be logged once it is durable.
    """

    txn: Transaction
    wanted: Wanted
    opening: Opening
    host: Host
    now: Moment
    cooldown: float
    notes: list[Note]

    def give(self, sets: tuple[RangeSet, ...]) -> tuple[Lease, ...]:
        """Lease an address of each set. Nothing is changed before all of them are found."""
        requested = _assign(self.wanted.requested, sets)
        kept: list[Entry] = []
        given: list[Entry] = []
        for position, offer in enumerate(sets):
            address = requested.get(position)
            known = next((each for each in self.opening.held if _is_offered(each, offer, address)), None)
            if known is not None:
                kept.append(known)
                address = known.address
            elif address is None:
                address = self._reserved_for_it(offer)
            drawn = address is None
            if address is None:
                address = self._search(offer)
            elif known is None:
                known = self._claimable(self.txn.entry(self._network, address))
            given.append(self._entry(offer, address, known, drawn=drawn))
        for entry in self.opening.held:
            if entry not in kept and entry.lease is not None:
                self.txn.release_address(entry.lease.owner, entry.address, self.now)
        changed = [each for each in given if each not in self.opening.held]
        if changed:
            self.txn.put(changed)
        return tuple(each.lease for each in given if each.lease is not None)

    @property
    def _network(self) -> str:
        return self.wanted.owner.network

    def _entry(self, offer: RangeSet, address: Address, known: Entry | None, *, drawn: bool) -> Entry:
        """What is to be kept of the address: the lease, and a reservation that it had or gets by a sticky key."""
        each = offer.range_of(address)
        assert each is not None, "an address comes from a range of its set"
        former = known.lease if known is not None and known.lease is not None else None
        mine = former is not None and former.owner.container_id == self.wanted.owner.container_id
        reservation = known.reservation if known is not None else None
        if self.wanted.sticky and reservation is None:
            reservation = Reservation(kind=ReservedFor.STICKY, value=self.wanted.sticky)
        first = offer.ranges[0].first
        return Entry(
            network=self.wanted.owner.network,
            address=address,
            lease=Lease(
                owner=self.wanted.owner,
                address=with_prefix(address, each.subnet.prefixlen),
                gateway=each.gateway,
                since=former.since if former is not None and mine else datetime.now(UTC).replace(microsecond=0),
                boot_id=self.now.boot_id,
                name=self.wanted.name,
                mac=self.wanted.mac,
                netns=self.wanted.netns,
            ),
            reservation=reservation,
            drawn_from=known.drawn_from if known is not None and mine else first if drawn else None,
        )

    def _claimable(self, known: Entry | None) -> Entry | None:
        """What is known of an address that is asked for by name; `AddressTaken` unless the owner may have it."""
        if known is None:
            return None
        what = f'address {known.address} of network "{known.network}"'
        if known.lease is not None and not suspicion.is_gone(known, self.now, self.host):
            holder = known.lease.owner
            raise AddressTaken(f"{what} is held by container {holder.container_id} ({holder.ifname})")
        if known.reservation is not None and known.reservation not in _reservations_of(self.wanted):
            raise AddressTaken(f"{what} is reserved for {known.reservation}")
        return known

    def _reserved_for_it(self, offer: RangeSet) -> Address | None:
        """The address of the set that is reserved for who asks; one that another holds only if there is no other.

        What another interface of the same container holds is not meant: this one gets any.
        """
        offered = [
            each
            for each in self.opening.reserved
            if _is_offered(each, offer, None)
            and (each.lease is None or each.lease.owner.container_id != self.wanted.owner.container_id)
        ]
        free = (each for each in offered if each.lease is None or suspicion.is_gone(each, self.now, self.host))
        return next((each.address for each in (*free, *offered)), None)

    def _search(self, offer: RangeSet) -> Address:
        """The next address of the set that is free, or else that of the longest rest, or of a lease that has gone."""
        cursor = self.opening.cursors.get(offer.ranges[0].first)
        found = self._next_free(offer, cursor)
        while found is None and self.txn.end_rests(self._network, self.now, self.cooldown, _RESTS_ENDED_AT_ONCE):
            for known in self.opening.cursors.values():
                known.run = None  # it may have become shorter
            found = self._next_free(offer, cursor)
        if found is not None:
            return found
        runs = [run for each in offer.ranges for run in usable(each)]
        resting = [
            each for run in runs if (each := self.txn.longest_at_rest(self._network, run, self.now.boot_id)) is not None
        ]
        if resting:
            longest = max(resting, key=lambda each: self.now.since(each.released) if each.released is not None else 0)
            text = f'network "{self._network}" has no other address: {longest.address} is given before its rest is over'
            self.notes.append(Note(level=logging.WARNING, text=text))
            return longest.address
        for run in runs:
            for entry in self.txn.of_earlier_boots(self._network, run, self.now.boot_id):
                if suspicion.is_gone(entry, self.now, self.host):
                    assert entry.lease is not None
                    text = f"{entry.address} of {entry.lease.owner} is of an earlier boot and given anew"
                    self.notes.append(Note(level=logging.WARNING, text=text))
                    return entry.address
        raise PoolExhausted(
            f'no address is free in range set {offer} of network "{self._network}"; '
            "widen the ranges or remove what no longer lives"
        )

    def _next_free(self, offer: RangeSet, cursor: Cursor | None) -> Address | None:
        """The first address behind the cursor that is not taken; the run around the cursor is known already."""
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
                    number = search.send(self.txn.run_at(self._network, number))
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
