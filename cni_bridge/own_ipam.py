"""This project's IPAM for one request: the daemon where one greets, else the database itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from ipam.api import Allocation, Interface, Ipam, Lease, Owner, Wanted
from ipam.client import Client
from ipam.errors import ServiceUnavailable
from ipam.host import Host
from ipam.remote import RemoteIpam
from ipam.settings import Settings

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
        self._remote: RemoteIpam | None = None
        if settings.ipamd_socket.exists():
            self._remote = RemoteIpam(Client(settings.ipamd_socket, patience=settings.request_timeout))
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
        """See `Ipam.collect`."""
        await self._ask(lambda ipam: ipam.collect(network, keep))

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
