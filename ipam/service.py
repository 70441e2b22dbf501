"""The IPAM service within a process: its lock, its database, who may ask on its socket. `ipamd` is nothing else."""

from __future__ import annotations

import asyncio
import fcntl
import grp
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from prometheus_client import start_http_server

from ipam import files, filesystem
from ipam.errors import IpamError
from ipam.host import Host
from ipam.local import LocalIpam
from ipam.local_registry import LocalRegistry
from ipam.metrics import Metrics
from ipam.server import Server
from ipam.settings import BadSettings, Settings, load
from ipam.store import Store

log = logging.getLogger(__name__)

_RECONCILE_INTERVAL = 60.0  # seconds


class CannotStart(Exception):
    """The daemon cannot serve; the message says why."""


class Service:
    """The one process that serves the addresses of a state directory."""

    def __init__(self, store: Store, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.ipam = LocalIpam(store, settings, host)
        self._store = store
        self._registry = LocalRegistry(store, settings, host)
        self.metrics = Metrics(self._registry)
        self._server = Server(self.ipam, self._registry, self.metrics, **_rules(settings))
        self._waiting: list[asyncio.Task[None]] = []  # the loop itself keeps no task alive

    def reload(self) -> None:
        """Read the settings again, and take those that may change while we run."""
        try:
            self.take(load(os.environ))
        except (BadSettings, CannotStart) as error:
            log.error("the settings stay as they were: %s", error)

    def take(self, new: Settings) -> None:
        """Go by these settings from now on, but for those that need a restart."""
        rules = _rules(new)
        for name in ("state_dir", "run_dir"):
            if getattr(new, name) != getattr(self.settings, name):
                log.warning("%s is %s until the next start", name, getattr(self.settings, name))
        if new.ipamd.metrics_port != self.settings.ipamd.metrics_port:
            log.warning("ipamd.metrics_port is %d until the next start", self.settings.ipamd.metrics_port)
        logging.getLogger().setLevel(new.log_level.upper())
        self.settings = self.ipam.settings = self._registry.settings = new
        self._server.configure(**rules)
        self._waiting.append(asyncio.create_task(self._store.wait_for_others(new.patience)))
        log.info("the settings were read again")

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Answer on the socket and look after leases of what is gone, until `stop` is set; then drain."""
        reconciling = asyncio.create_task(_reconcile(self.ipam))
        try:
            await self._server.serve(listener, stop)
        finally:
            reconciling.cancel()


@asynccontextmanager
async def opened(settings: Settings, host: Host) -> AsyncIterator[Service]:
    """The service, alone on its state directory; `CannotStart` if another process is."""
    try:
        _require_local_disk(settings.state_dir)
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"cannot use {settings.state_dir}: {error.strerror}") from None
    lock = hold(settings.state_dir / "ipamd.lock")
    try:
        store = await Store.open(settings.database, patience=settings.patience, check=True)
        try:
            service = Service(store, settings, host)
            with _metrics_port(service.metrics, settings.ipamd.metrics_port):
                yield service
        finally:
            await store.close()
    finally:
        os.close(lock)


async def _reconcile(ipam: LocalIpam) -> None:
    """Look after leases whose namespaces are gone, for as long as the daemon runs."""
    while True:
        try:
            await ipam.reconcile()
        except IpamError as error:
            log.warning("looking for leases of what is gone: %s", error)
        await asyncio.sleep(_RECONCILE_INTERVAL)


@contextmanager
def _metrics_port(metrics: Metrics, port: int) -> Iterator[None]:
    """Serve the metrics by HTTP on the loopback address, unless the port is 0."""
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=metrics.collected)
    except OSError as error:
        raise CannotStart(f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Rules(TypedDict):
    allowed: Callable[[int, set[int]], bool]
    max_clients: int
    request_timeout: float


def _rules(settings: Settings) -> _Rules:
    """What the server goes by, as the settings say."""
    return _Rules(
        allowed=_peer_check(settings),
        max_clients=settings.ipamd.max_clients,
        request_timeout=settings.request_timeout,
    )


def _require_local_disk(directory: Path) -> None:
    """Refuse a network file system: locks there may not exclude other hosts, and SQLite then loses data."""
    kind = filesystem.kind_of(directory)
    if kind in filesystem.NETWORK:
        raise CannotStart(f"{directory} is on a network file system ({kind}); set state_dir to a local disk")


def _peer_check(settings: Settings) -> Callable[[int, set[int]], bool]:
    """Whether a peer with this user and groups may ask: root, the daemon's own user, and the group in the settings."""
    own = os.getuid()
    try:
        group = grp.getgrnam(settings.ipamd.group).gr_gid if settings.ipamd.group else None
    except KeyError:
        raise CannotStart(f'ipamd.group "{settings.ipamd.group}" in the settings is no group of this host') from None
    return lambda uid, groups: uid in (0, own) or group in groups


def hold(path: Path) -> int:
    """Hold the lock of the one daemon on this state directory, until the descriptor is closed."""
    try:
        try:
            fd = files.create(path)
        except FileExistsError:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise CannotStart(f"cannot open {path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
        os.close(fd)
        raise CannotStart(f"another daemon (process {holder}) serves the addresses in {path.parent}") from None
    with suppress(OSError):  # on a full disk nobody reads who holds it, and it is held all the same
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def listen(path: Path) -> socket.socket:
    """A listening socket at the path; one that is left there from a dead daemon is replaced, for the lock is ours."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o666)  # who may ask is decided by the peer's credentials, and answered in words
        listener.listen(1024)
        return listener
    except OSError as error:
        raise CannotStart(f"cannot listen on {path}: {error.strerror}") from None
