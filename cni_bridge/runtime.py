"""What the operations of the plugin work with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from cni_bridge.chained_state import Chained
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import Request
from cni_bridge.datapath.host import Datapath
from cni_bridge.datapath.links import Links
from cni_bridge.firewall.api import Firewall
from cni_bridge.locks import SharedLock
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from ipam.api import Ipam, Owner

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class IpamSource(Protocol):
    """The IPAM that a configuration names, found but not opened."""

    @property
    def own(self) -> bool:
        """Whether it is this project's, so that the configuration's `ipam` section is for us to read."""

    @property
    def executes(self) -> bool:
        """Whether it is another program, which is run for each question."""

    def open(self) -> AbstractAsyncContextManager[Ipam]:
        """Open it for one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the verbs work with; `wiring` makes it."""

    records: Records[Attachment]
    chained: Mapping[str, Records[Chained]]  # by the plugin's name
    datapath: Datapath
    links: Links
    firewalls: Mapping[Backend, Firewall]
    find_ipam: Callable[[Request, str], IpamSource]  # by the request and its ipam.type
    locked: Callable[[Owner], AbstractAsyncContextManager[None]]  # one request at a time for one owner
    is_busy: Callable[[Owner], bool]  # whether a request for the owner runs
    sweep_locks: Callable[[str], None]  # remove what processes that were killed left of a network's locks
    rules_lock: SharedLock  # shared to apply rules, alone to take a network's away
    ports_lock: SharedLock  # alone, from the look who has a port until it is taken
    delete_links: Callable[[Sequence[str]], Awaitable[None]]  # those of the host; gone already is success
    kernel_thread: Executor  # one thread talks to the kernel, and only it enters namespaces

    async def on_host(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in the kernel thread, to its end: what it has begun cannot be left half done."""
        work = partial(copy_context().run, partial(function, *args, **kwargs))  # for its trace and its log
        future = asyncio.get_running_loop().run_in_executor(self.kernel_thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if (error := future.exception()) is not None:
                log.info("what was begun failed after the request's end: %s", error)
            raise

    @property
    def publishers(self) -> tuple[Records[Any], ...]:
        """The records of whatever may publish ports."""
        return (self.records, self.chained[Plugin.PORTMAP])

    @property
    def all_records(self) -> tuple[Records[Any], ...]:
        """The records of the interface plugin and of all chained ones."""
        return (self.records, *self.chained.values())

    def is_attached_to(self, network: str) -> bool:
        """Whether somebody is, by the records."""
        return not all(each.is_empty(network) for each in self.all_records)

    async def default_backend(self) -> Backend:
        """The firewall for attachments whose configuration names none: nftables where it works."""
        return await self.on_host(self.best_backend)

    def best_backend(self) -> Backend:
        """The same, in the kernel thread."""
        reason = self.firewalls[Backend.NFTABLES].unusable()
        if reason:
            log.info("using iptables, for nftables does not work here: %s", reason)
        return Backend.IPTABLES if reason else Backend.NFTABLES

    @asynccontextmanager
    async def ipam(self, request: Request, ipam_type: str) -> AsyncIterator[Ipam | None]:
        """The IPAM of that type, open; None for a network without addresses."""
        if not ipam_type:
            yield None
            return
        async with self.find_ipam(request, ipam_type).open() as ipam:
            yield ipam
