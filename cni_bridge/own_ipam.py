"""This project's IPAM for one request: the daemon where one greets, else the database itself."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from ipam.api import Allocation, Interface, Ipam, Lease, Owner, Wanted
from ipam.client import Client
from ipam.clock import now
from ipam.errors import NotFound, ServiceUnavailable
from ipam.host import Host
from ipam.registry import Place, Registry
from ipam.remote import RemoteIpam, RemoteRegistry
from ipam.settings import Settings
from ipam.suspicion import judge

T = TypeVar("T")


@asynccontextmanager
async def opened(settings: Settings, host: Host) -> AsyncIterator[Ipam]:
    """The IPAM on this host; which one serves makes no difference to what is stored."""
    ipam = EitherIpam(settings, host)
    try:
        yield ipam
    finally:
        await ipam.close()


class EitherIpam:
    """Asks the daemon as long as it greets, and from then on the database: nothing was handed over to it then."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self._settings = settings
        self._host = host
        self._client = Client(settings.ipamd_socket, patience=settings.request_timeout)
        self._remote = RemoteIpam(self._client) if settings.ipamd_socket.exists() else None
        self._local: Ipam | None = None
        self._close_local: Callable[[], Awaitable[None]] | None = None

    async def close(self) -> None:
        """Close the database, if it was opened."""
        if self._close_local is not None:
            await self._close_local()

    async def allocate(self, wanted: Wanted) -> Allocation:
        """See `Ipam.allocate`."""
        return await self._ask(lambda ipam: ipam.allocate(wanted))

    async def release(self, owner: Owner) -> None:
        """See `Ipam.release`."""
        await self._ask(lambda ipam: ipam.release(owner))

    async def held(self, owner: Owner) -> tuple[Lease, ...]:
        """See `Ipam.held`."""
        return await self._ask(lambda ipam: ipam.held(owner))

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        """See `Ipam.check`."""
        await self._ask(lambda ipam: ipam.check(wanted, addresses))

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Ipam.collect`. Where the daemon may only mark leases of earlier boots, a root process ends them."""
        await self._ask(lambda ipam: ipam.collect(network, keep))
        if self._remote is not None and os.geteuid() == 0:
            await end_marked(RemoteRegistry(self._client), network, self._host, self._settings.addresses.suspect_grace)

    async def status(self, wanted: Wanted) -> None:
        """See `Ipam.status`."""
        await self._ask(lambda ipam: ipam.status(wanted))

    async def _ask(self, question: Callable[[Ipam], Awaitable[T]]) -> T:
        if self._remote is not None:
            try:
                return await question(self._remote)
            except ServiceUnavailable:
                self._remote = None
        return await question(await self._database())

    async def _database(self) -> Ipam:
        if self._local is None:
            from ipam.local import LocalIpam  # SQLite is needed here only

            local = await LocalIpam.open(self._settings, self._host)
            self._local, self._close_local = local, local.close
        return self._local


async def end_marked(registry: Registry, network: str, host: Host, grace: float) -> None:
    """End the network's leases of earlier boots that were marked as suspect `grace` seconds ago and are gone still."""
    after: Place | None = None
    while page := await registry.entries(network, after=after):
        after = Place(network=network, address=page[-1].address)
        for entry in judge(page, now(), host, grace).ended:
            assert entry.lease is not None, "it is leases that are suspect"
            with suppress(NotFound):  # it has ended meanwhile
                await registry.take_back(entry.lease.owner, entry.address)
