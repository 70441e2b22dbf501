"""Opens this project's IPAM: the daemon where one greets, else the database itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ipam.api import Ipam
from ipam.remote import RemoteIpam
from ipam.settings import Settings


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Ipam]:
    """The IPAM for one request; which one serves makes no difference to what is stored."""
    remote = RemoteIpam(settings.ipamd_socket, patience=settings.request_timeout)
    if settings.ipamd_socket.exists() and await remote.greets():
        try:
            yield remote
        finally:
            remote.close()
        return
    from ipam.local import LocalIpam  # SQLite is needed here only

    local = await LocalIpam.open(settings.database, patience=settings.patience)
    try:
        yield local
    finally:
        await local.close()
