"""What the operations of the plugin work with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from cni_bridge import waiting
from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import LockBusy
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import Request
from cni_bridge.datapath.host import Datapath
from cni_bridge.datapath.links import Links
from cni_bridge.firewall.api import Firewall
from cni_bridge.flock import is_free
from cni_bridge.locks import SharedLock
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from ipam.api import Ipam, Owner

log = logging.getLogger(__name__)

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02  # seconds

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
    patience: float  # seconds to wait for a lock that another program holds
    kernel_thread: Executor  # one thread talks to the kernel, and only it enters namespaces

    async def on_host(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in the kernel thread, to its end: what it has begun cannot be left half done.

        The thread waits for nobody. While another program holds a lock that the function needs, it is run again now
        and then, from its beginning.
        """
        return await self._patiently(partial(self._in_kernel_thread, partial(function, *args, **kwargs)))

    def leave_to_host(self, function: Callable[[], object]) -> None:
        """Have the kernel thread run the function, which does not fail, when it comes to it; nobody waits."""
        self.kernel_thread.submit(copy_context().run, function)

    async def with_rules(self, change: Callable[[], T], *, alone: bool = False, ports: bool = False) -> T:
        """The same while nobody takes a network's rules away, or, if `alone`, changes any.

        With `ports`, nobody else takes a port between its look and its rules either. Whoever waits holds none of this.
        """
        return await self._patiently(partial(self._with_rules, change, alone, ports))

    async def _with_rules(self, change: Callable[[], T], alone: bool, ports: bool) -> T:
        async with self.ports_lock.held(alone=True) if ports else nullcontext(), self.rules_lock.held(alone=alone):
            return await self._in_kernel_thread(change)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What the attempt gives, made again while another program holds a lock, for `patience` seconds.

        A request that has waited for a lock in vain does not wait for it again: it has other work to do.
        """
        deadline, pause = 0.0, _SHORTEST_PAUSE
        while True:
            try:
                return await attempt()
            except LockBusy as error:
                deadline = deadline or time.monotonic() + self.patience  # what came before was no waiting
                if error.path in waiting.in_vain() or time.monotonic() > deadline:
                    waiting.in_vain().add(error.path)
                    raise
                path, operation = error.path, error.operation
            while not is_free(path, operation) and time.monotonic() < deadline:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _in_kernel_thread(self, function: Callable[[], T]) -> T:
        work = partial(copy_context().run, function)  # for its trace and its log
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
