"""Puts the parts together: the only place that chooses which implementation serves a request."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

from cni_bridge import own_ipam
from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import Request
from cni_bridge.datapath.host import Datapath
from cni_bridge.datapath.links import Links
from cni_bridge.datapath.sockets import Sockets
from cni_bridge.firewall.iptables import IptablesFirewall
from cni_bridge.firewall.nftables import NftablesFirewall
from cni_bridge.ipam_exec import ExecIpam, find_executable
from cni_bridge.ipam_host import KernelHost
from cni_bridge.locks import owner_locked, rules_locked
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from cni_bridge.runtime import IpamSource, Runtime
from cni_bridge.static_ipam import StaticIpam
from ipam.api import Ipam
from ipam.settings import Settings

_CHAINED = (Plugin.PORTMAP, Plugin.FIREWALL, Plugin.BANDWIDTH, Plugin.TUNING)
_XTABLES_PATIENCE = 10.0  # seconds; what waits in the kernel thread keeps other requests waiting


class OwnIpam:
    """This project's IPAM."""

    own = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def open(self) -> AbstractAsyncContextManager[Ipam]:
        """See `IpamSource.open`."""
        return own_ipam.opened(self._settings, KernelHost())


class ForeignIpam:
    """An IPAM that reads the `ipam` section itself, such as another plugin's executable."""

    own = False

    def __init__(self, ipam: Ipam) -> None:
        self._ipam = ipam

    def open(self) -> AbstractAsyncContextManager[Ipam]:
        """See `IpamSource.open`."""
        return self._opened()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Ipam]:
        yield self._ipam


def find_ipam(settings: Settings, request: Request, ipam_type: str) -> IpamSource:
    """The IPAM of that type."""
    if ipam_type == Plugin.CNI_IPAM:
        return OwnIpam(settings)
    executable = find_executable(ipam_type, request.path)
    if executable.resolve() not in _own_executables():
        return ForeignIpam(ExecIpam(executable, request))
    if ipam_type == Plugin.HOST_LOCAL:
        return OwnIpam(settings)
    if ipam_type == Plugin.STATIC:
        return ForeignIpam(StaticIpam(request))
    raise InvalidConfig(f'ipam.type "{ipam_type}" is no IPAM plugin: it leads to {executable.resolve()}')


@contextmanager
def runtime(settings: Settings) -> Iterator[Runtime]:
    """What the verbs need, made for this node's settings."""
    locks = settings.run_dir / "locks"
    records = settings.run_dir / "attachments"
    for directory in (locks, records, *(settings.run_dir / "chained" / name for name in _CHAINED)):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    sockets = Sockets()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel") as kernel_thread:
        try:
            yield Runtime(
                records=Records(records, Attachment),
                chained={name: Records(settings.run_dir / "chained" / name, Chained) for name in _CHAINED},
                datapath=Datapath(sockets, locks, patience=settings.patience),
                links=Links(sockets),
                firewalls={
                    Backend.NFTABLES: NftablesFirewall(),
                    Backend.IPTABLES: IptablesFirewall(patience=min(_XTABLES_PATIENCE, settings.patience)),
                },
                find_ipam=lambda request, ipam_type: find_ipam(settings, request, ipam_type),
                locked=lambda owner: owner_locked(locks, owner, patience=settings.patience),
                rules_locked=lambda alone: rules_locked(records, alone=alone, patience=settings.patience),
                kernel_thread=kernel_thread,
            )
        finally:
            kernel_thread.submit(sockets.close).result()


def _own_executables() -> frozenset[Path]:
    """Where this project's plugins are installed: beside the one that runs."""
    directory = Path(os.path.realpath(sys.argv[0])).parent
    return frozenset((directory / name).resolve() for name in (Plugin.CNI_BRIDGE, Plugin.CNI_IPAM))
