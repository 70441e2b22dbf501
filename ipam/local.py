"""The `Ipam` in this process: allocation, release and collection on the lease database."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ipam.allocator import next_free, withheld
from ipam.api import Address, Allocation, Interface, Lease, Owner, RangeSet, Wanted
from ipam.errors import AddressNotOffered, LeaseMissing, PoolExhausted
from ipam.store import Store, Transaction


class LocalIpam:
    """Owns addresses on one lease database, which other processes may use at the same time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._one_at_a_time = asyncio.Lock()  # one connection has one transaction

    @classmethod
    async def open(cls, database: Path, *, patience: float) -> LocalIpam:
        """Open or create the database; `patience`: seconds to wait for other writers."""
        return cls(await Store.open(database, patience=patience))

    async def close(self) -> None:
        """Close the database."""
        await self._store.close()

    async def allocate(self, wanted: Wanted) -> Allocation:
        """See `Ipam.allocate`. Addresses held from an earlier call are kept where they still fit."""
        requested = _assign(wanted)
        async with self._one_at_a_time, self._store.transaction() as txn:
            held = await txn.leases_of(wanted.owner)
            keep = {
                position: lease
                for position, offer in enumerate(wanted.range_sets)
                for lease in held
                if _still_fits(lease, offer) and requested.get(position, lease.address.ip) == lease.address.ip
            }
            for lease in held:
                if lease not in keep.values():
                    await txn.delete(lease)
            if keep:
                await txn.confirm(wanted.owner)
            leases = [
                keep.get(position) or await _lease_one(txn, wanted.owner, offer, requested.get(position))
                for position, offer in enumerate(wanted.range_sets)
            ]
        return Allocation(leases=tuple(leases), routes=wanted.routes, dns=wanted.dns)

    async def release(self, owner: Owner) -> None:
        """See `Ipam.release`."""
        async with self._one_at_a_time, self._store.transaction() as txn:
            for lease in await txn.leases_of(owner):
                await txn.delete(lease)

    async def held(self, owner: Owner) -> tuple[Lease, ...]:
        """See `Ipam.held`."""
        async with self._one_at_a_time, self._store.transaction(reading=True) as txn:
            return tuple(await txn.leases_of(owner))

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        """See `Ipam.check`."""
        held = {lease.address for lease in await self.held(wanted.owner)}
        missing = [str(each) for each in addresses if each not in held]
        if missing or not held:
            raise LeaseMissing(f"no lease of {wanted.owner} for {', '.join(missing) or 'any address'}")

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Ipam.collect`."""
        async with self._one_at_a_time, self._store.transaction() as txn:
            for owner in await txn.owners(network):
                if owner not in keep:
                    for lease in await txn.leases_of(owner):
                        await txn.delete(lease)

    async def status(self, wanted: Wanted) -> None:
        """See `Ipam.status`. It writes, so that a store that cannot be written is found too."""
        async with self._one_at_a_time, self._store.transaction() as txn:
            await txn.touch()
            for offer in wanted.range_sets:
                await _search(txn, wanted.owner.network, offer)

    async def leases(self, network: str | None = None) -> list[Lease]:
        """All leases, or those of one network, in order of network and address."""
        async with self._one_at_a_time:
            return await self._store.leases(network)


def _assign(wanted: Wanted) -> dict[int, Address]:
    """Which requested address each range set serves, at most one each; all must be served."""
    assigned: dict[int, Address] = {}
    for address in dict.fromkeys(wanted.requested):
        for position, offer in enumerate(wanted.range_sets):
            each = offer.range_of(address)
            if each is None or position in assigned:
                continue
            if int(address) in withheld(each):
                what = "the gateway" if address == each.gateway else "never handed out"
                raise AddressNotOffered(f"requested address {address} is {what} in subnet {each.subnet}")
            assigned[position] = address
            break
        else:
            offers = "; ".join(map(str, wanted.range_sets)) or "none"
            raise AddressNotOffered(f"requested address {address} fits no range set that is still open ({offers})")
    return assigned


def _still_fits(lease: Lease, offer: RangeSet) -> bool:
    """Whether the range set, as it is configured now, would give the lease as it is."""
    each = offer.range_of(lease.address.ip)
    if each is None or int(lease.address.ip) in withheld(each):
        return False
    return (lease.address.network, lease.gateway) == (each.subnet, each.gateway)


async def _lease_one(txn: Transaction, owner: Owner, offer: RangeSet, requested: Address | None) -> Lease:
    for each in offer.ranges:
        await txn.record_range(owner.network, each)
    address = requested or await _search(txn, owner.network, offer)
    await txn.delete_of_earlier_boots(owner.network, address)
    offered = offer.range_of(address)
    assert offered is not None, "an address comes from a range of its set"
    lease = await txn.insert(owner, address, offered)
    if requested is None:
        await txn.move_cursor(owner.network, offer.ranges[0].first, address)
    return lease


async def _search(txn: Transaction, network: str, offer: RangeSet) -> Address:
    """The next free address of the set, else one leased in an earlier boot; `PoolExhausted` if there is none."""
    search = next_free(offer, await txn.cursor(network, offer.ranges[0].first))
    try:
        look_at = next(search)
        while True:
            look_at = search.send(await txn.extent_at(network, look_at))
    except StopIteration as end:
        found: Address | None = end.value
    if found is None:
        found = await txn.first_of_earlier_boots(network, offer)
    if found is None:
        raise PoolExhausted(
            f'no address is free in range set {offer} of network "{network}"; '
            "widen the ranges or remove what no longer lives"
        )
    return found
