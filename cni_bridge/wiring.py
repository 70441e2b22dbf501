"""Puts the parts together: the only place that chooses which implementation serves a request."""

from __future__ import annotations

import filecmp
import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path

from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import CniError, Code, InvalidConfig
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import Request
from cni_bridge.datapath.deletion import LinkDeleter
from cni_bridge.datapath.host import Datapath
from cni_bridge.datapath.links import Links
from cni_bridge.datapath.sockets import Sockets
from cni_bridge.firewall.iptables import IptablesFirewall
from cni_bridge.firewall.nftables import NftablesFirewall
from cni_bridge.ipam_exec import ExecIpam, find_executable
from cni_bridge.ipam_host import KernelHost
from cni_bridge.locks import OwnerLocks, SharedLock
from cni_bridge.own_ipam import opened as open_own_ipam
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from cni_bridge.runtime import IpamSource, Runtime
from cni_bridge.static_ipam import StaticIpam
from ipam import effects
from ipam.api import Ipam
from ipam.settings import Settings

_CHAINED = (Plugin.PORTMAP, Plugin.FIREWALL, Plugin.BANDWIDTH, Plugin.TUNING)
_SHARE_FOR_LOCKS = 0.75  # of a request's time, for one that other programs hold: forty may come at once


class OwnIpam:
    """This project's IPAM."""

    own = True
    executes = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def open(self) -> AbstractAsyncContextManager[Ipam]:
        """See `IpamSource.open`."""
        return open_own_ipam(self._settings, KernelHost())


class ForeignIpam:
    """An IPAM that reads the `ipam` section itself, such as another plugin's executable."""

    own = False

    def __init__(self, ipam: Ipam, *, executes: bool) -> None:
        self.executes = executes
        self._ipam = ipam

    def open(self) -> AbstractAsyncContextManager[Ipam]:
        """See `IpamSource.open`."""
        return self._opened()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Ipam]:
        yield self._ipam


def find_ipam(own: IpamSource, request: Request, ipam_type: str) -> IpamSource:
    """The IPAM of that type; `own` is this project's."""
    if ipam_type == Plugin.CNI_IPAM:
        return own
    executable = find_executable(ipam_type, request.path, request.caller_root)
    if not _is_own(executable):
        return ForeignIpam(ExecIpam(executable, request), executes=True)
    if ipam_type == Plugin.HOST_LOCAL:
        return own
    if ipam_type == Plugin.STATIC:
        return ForeignIpam(StaticIpam(request), executes=False)
    raise InvalidConfig(f'ipam.type "{ipam_type}" is no IPAM plugin: it leads to {executable.resolve()}')


def make_directories(run_dir: Path) -> None:
    """Make what is missing of the directories in `run_dir`, which somebody may have removed while a daemon ran."""
    for name in ("locks", "attachments", *(f"chained/{each}" for each in _CHAINED)):
        directory = f"{run_dir}/{name}"
        if not os.path.isdir(directory):  # noqa: PTH112 - each request looks, and they are there
            try:
                effects.change("make a directory")
                Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise CniError(Code.IO_FAILURE, f"cannot make {directory}: {error.strerror}") from None


@contextmanager
def runtime(settings: Settings, own_ipam: IpamSource | None = None) -> Iterator[Runtime]:
    """What the verbs need, made for this node's settings; `own_ipam` if this project's IPAM is open already."""
    locks = settings.run_dir / "locks"
    records = settings.run_dir / "attachments"
    make_directories(settings.run_dir)
    own = own_ipam or OwnIpam(settings)
    sockets = Sockets()
    nftables = NftablesFirewall()
    owner_locks = OwnerLocks(locks, patience=settings.patience)
    with (
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel") as kernel_thread,
        LinkDeleter() as deleter,
    ):
        try:
            yield Runtime(
                records=Records(records, Attachment),
                chained={name: Records(settings.run_dir / "chained" / name, Chained) for name in _CHAINED},
                datapath=Datapath(sockets, locks),
                links=Links(sockets),
                firewalls={
                    Backend.NFTABLES: nftables,
                    Backend.IPTABLES: IptablesFirewall(),
                },
                find_ipam=lambda request, ipam_type: find_ipam(own, request, ipam_type),
                locked=owner_locks.held,
                is_busy=owner_locks.is_held,
                sweep_locks=owner_locks.sweep,
                rules_lock=SharedLock(records, "the rules of a network are", patience=settings.patience),
                ports_lock=SharedLock(records.with_name("chained"), "host ports are", patience=settings.patience),
                delete_links=deleter.delete,
                kernel_thread=kernel_thread,
                patience=_SHARE_FOR_LOCKS * settings.request_timeout,
            )
        finally:
            kernel_thread.submit(sockets.close).result()
            kernel_thread.submit(nftables.close).result()


def _is_own(executable: Path) -> bool:
    """Whether it is one of this project's plugins, which are beside the program that runs, or a copy of one."""
    directory = Path(os.path.realpath(sys.argv[0])).parent
    status = executable.stat()
    ours = (directory / name for name in (Plugin.CNI_BRIDGE, Plugin.CNI_IPAM))
    return any(each.exists() and _same(executable, status.st_mtime_ns, each) for each in ours)


@lru_cache(maxsize=64)
def _same(one: Path, changed: int, other: Path) -> bool:
    """Whether the files are one, or hold the same; asked again when the first one has `changed`."""
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
