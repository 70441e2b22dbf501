"""The `Ipam` and the `Registry` of the daemon `ipamd`."""

from __future__ import annotations

from ipam import wire
from ipam.api import Address, Allocation, Interface, Lease, Owner, Reservation, Wanted
from ipam.client import Client
from ipam.registry import PAGE, Entry, Event, Finding, Moved, Place, PoolUse


class RemoteIpam:
    """What the daemon's `Ipam` answers."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def allocate(self, wanted: Wanted) -> Allocation:
        """See `Ipam.allocate`."""
        answer = await self._client.ask(wire.Leases, wire.Allocate(wanted=wanted))
        return Allocation(leases=answer.leases, routes=wanted.routes, dns=wanted.dns)

    async def release(self, owner: Owner) -> None:
        """See `Ipam.release`."""
        await self._client.ask(wire.Done, wire.Release(owner=owner))

    async def held(self, owner: Owner) -> tuple[Lease, ...]:
        """See `Ipam.held`."""
        return (await self._client.ask(wire.Leases, wire.Held(owner=owner))).leases

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        """See `Ipam.check`."""
        await self._client.ask(wire.Done, wire.Check(wanted=wanted, addresses=addresses))

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Ipam.collect`."""
        await self._client.ask(wire.Done, wire.Collect(network=network, keep=keep))

    async def status(self, wanted: Wanted) -> None:
        """See `Ipam.status`."""
        await self._client.ask(wire.Done, wire.Status(wanted=wanted))


class RemoteRegistry:
    """What the daemon's `Registry` answers."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def pools(self, network: str | None = None) -> tuple[PoolUse, ...]:
        """See `Registry.pools`."""
        return (await self._client.ask(wire.Pools, wire.ListPools(network=network))).pools

    async def entries(
        self, network: str | None = None, *, after: Place | None = None, limit: int = PAGE
    ) -> tuple[Entry, ...]:
        """See `Registry.entries`."""
        return (
            await self._client.ask(wire.Entries, wire.ListEntries(network=network, after=after, limit=limit))
        ).entries

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
        request = wire.History(network=network, address=address, container=container, before=before, limit=limit)
        return (await self._client.ask(wire.Events, request)).events

    async def reserve(self, network: str, address: Address, reservation: Reservation) -> None:
        """See `Registry.reserve`."""
        await self._client.ask(wire.Done, wire.Reserve(network=network, address=address, reservation=reservation))

    async def unreserve(self, network: str, address: Address) -> None:
        """See `Registry.unreserve`."""
        await self._client.ask(wire.Done, wire.Unreserve(network=network, address=address))

    async def take_back(self, owner: Owner, address: Address) -> None:
        """See `Registry.take_back`."""
        await self._client.ask(wire.Done, wire.TakeBack(owner=owner, address=address))

    async def forget(self, network: str) -> None:
        """See `Registry.forget`."""
        await self._client.ask(wire.Done, wire.Forget(network=network))

    async def adopt(self, wanted: Wanted, moved: tuple[Moved, ...], last: tuple[Address, ...]) -> None:
        """See `Registry.adopt`."""
        await self._client.ask(wire.Done, wire.Adopt(wanted=wanted, moved=moved, last=last))

    async def verify(self) -> tuple[Finding, ...]:
        """See `Registry.verify`."""
        return (await self._client.ask(wire.Findings, wire.Verify())).findings

    async def mend(self) -> None:
        """See `Registry.mend`."""
        await self._client.ask(wire.Done, wire.Mend())
