"""The engine that stays warm: one runtime, one open database, for all requests of `cni-bridged`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext

from cni_bridge import own_ipam, wiring
from cni_bridge.cni.netconf import parse_ipam_type
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import Request
from cni_bridge.ipam_host import KernelHost
from cni_bridge.runtime import Runtime
from cni_bridge.teardown import lenient
from ipam.api import Ipam
from ipam.service import Service
from ipam.settings import BadSettings, Settings, load, settings_file

log = logging.getLogger(__name__)

_IPAM_PLUGINS = (Plugin.CNI_IPAM, Plugin.HOST_LOCAL, Plugin.STATIC)


class SharedIpam:
    """The IPAM that the daemon serves itself, as an `IpamSource`."""

    own = True
    executes = False

    def __init__(self, service: Service) -> None:
        self._service = service

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ipam]:
        """See `IpamSource.open`."""
        yield self._service.ipam


class WarmEngine:
    """An `Engine` for many requests; `service` if the daemon owns the database, else the IPAM is asked for each."""

    def __init__(self, settings: Settings, service: Service | None, runtime: Runtime, *, traced: bool) -> None:
        self.settings = settings
        self._traced = traced
        self._path = str(settings_file(os.environ))
        self._file = _state_of(self._path)
        self._service = service
        self._runtime = runtime
        self._turns = asyncio.Semaphore(settings.bridged.max_requests)

    @property
    def request_timeout(self) -> int:
        """See `Engine.request_timeout`."""
        return self.settings.request_timeout

    @property
    def traced(self) -> bool:
        """See `Engine.traced`."""
        return self._traced or self.settings.trace

    def follow_settings(self) -> bool:
        """Read the settings again if their file was changed; whether they can be served by without a restart."""
        state = _state_of(self._path)
        if state == self._file:
            return True
        try:
            new = load(os.environ)
        except BadSettings as error:
            log.error("the settings cannot be used, and stay as they were: %s", error)
            return False
        if (new.state_dir, new.run_dir, new.bridged) != (
            self.settings.state_dir,
            self.settings.run_dir,
            self.settings.bridged,
        ):
            log.error("state_dir, run_dir and bridged need a restart")
            return False
        if self._service is not None:
            self._service.take(new)
        self.settings, self._file = new, state
        return True

    def serves(self, request: Request) -> bool:
        """See `Engine.serves`. A caller that sees other files runs IPAM plugins that are not ours itself."""
        ipam_type = lenient(parse_ipam_type, request) if request.caller_root else ""
        return not ipam_type or not self._runtime.find_ipam(request, ipam_type).executes

    def turn(self, plugin: Plugin) -> AbstractAsyncContextManager[object]:
        """See `Engine.turn`. An IPAM plugin has its turn at once: somebody who has one may be waiting for it."""
        return nullcontext() if plugin in _IPAM_PLUGINS else self._turns

    @contextmanager
    def runtime(self) -> Iterator[Runtime]:
        """See `Engine.runtime`."""
        wiring.make_directories(self.settings.run_dir)
        yield self._runtime

    def ipam(self) -> AbstractAsyncContextManager[Ipam]:
        """See `Engine.ipam`."""
        if self._service is not None:
            return SharedIpam(self._service).open()
        return own_ipam.opened(self.settings, KernelHost())

    async def warm_up(self) -> None:
        """Import, connect and compile what the first request would otherwise wait for; fails as it would."""
        from cni_bridge import ipam_plugin, static_ipam, verbs  # noqa: F401
        from cni_bridge.chained import served  # noqa: F401

        await self._runtime.default_backend()
        await self._runtime.on_host(self._runtime.datapath.uplink_mtu)

    async def is_alive(self) -> bool:
        """Whether the thread that all requests need answers."""
        return await self._runtime.on_host(lambda: True)


@contextmanager
def opened(settings: Settings, service: Service | None, *, traced: bool) -> Iterator[WarmEngine]:
    """The engine, until the block ends."""
    with wiring.runtime(settings, own_ipam=SharedIpam(service) if service is not None else None) as runtime:
        yield WarmEngine(settings, service, runtime, traced=traced)


def _state_of(path: str) -> tuple[int, int, int] | None:
    """What tells whether the file was changed; None if it is not there, or cannot be looked at."""
    try:
        status = os.stat(path)  # noqa: PTH116 - each request looks
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
