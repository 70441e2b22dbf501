"""Where the operator's command gets its answers: the daemon if one greets, else the lease database itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click

from cni_bridge.ipam_host import KernelHost
from ipam.client import Client
from ipam.errors import IpamError
from ipam.local_registry import LocalRegistry
from ipam.registry import Entry, Place, Registry
from ipam.remote import RemoteRegistry
from ipam.settings import Settings
from ipam.store import Store

T = TypeVar("T")


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Registry]:
    """The registry of this host."""
    client = Client(settings.ipamd_socket, patience=settings.request_timeout)
    if settings.ipamd_socket.exists() and await client.is_served():
        yield RemoteRegistry(client)
        return
    store = await Store.open(settings.database, patience=settings.patience)
    try:
        yield LocalRegistry(store, settings, KernelHost())
    finally:
        await store.close()


def ask(settings: Settings, question: Callable[[Registry], Awaitable[T]], *, but: type[IpamError] | None = None) -> T:
    """What the question, put to the registry of this host, is answered; a failure, but that one, ends the command."""

    async def work() -> T:
        async with opened(settings) as registry:
            return await question(registry)

    return finish(work(), but=but)


def finish(work: Coroutine[Any, Any, T], *, but: type[IpamError] | None = None) -> T:
    """What the work returns; a failure, but that one, ends the command."""
    try:
        return asyncio.run(work)
    except IpamError as error:
        if but is not None and isinstance(error, but):
            raise
        raise click.ClickException(str(error)) from None


async def all_entries(registry: Registry, network: str | None = None) -> list[Entry]:
    """What is known of all addresses, of one network or of all."""
    found: list[Entry] = []
    after: Place | None = None
    while page := await registry.entries(network, after=after):
        found += page
        after = Place(network=page[-1].network, address=page[-1].address)
    return found
