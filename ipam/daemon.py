"""`ipamd`: the IPAM service as a process. Listens on its socket, or on one that systemd passes."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import grp
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

log = logging.getLogger("ipamd")

_RECONCILE_INTERVAL = 60.0  # seconds
FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


class CannotStart(Exception):
    """The daemon cannot serve; the message says why."""


def main(host: Host) -> int:
    """Serve on this host. Run until SIGTERM or SIGINT; 0 after a clean stop, 1 when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="ipamd",
        description="Serves leases of cni-bridge's address database on a Unix socket. "
        "Settings: /etc/cni-bridge/config.yaml, or the file named by CNI_BRIDGE_CONFIG.",
    )
    parser.parse_args()
    try:
        settings = load(os.environ)
        logging.basicConfig(
            stream=sys.stderr, level=settings.log_level.upper(), format="%(name)s: %(levelname)s: %(message)s"
        )
        gc.freeze()  # the modules stay: there is no garbage to look for among them
        asyncio.run(_serve(settings, host))
    except (CannotStart, BadSettings, IpamError) as error:
        print(f"ipamd: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings, host: Host) -> None:
    try:
        _require_local_disk(settings.state_dir)
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"cannot use {settings.state_dir}: {error.strerror}") from None
    lock = _hold(settings.state_dir / "ipamd.lock")
    try:
        store = await Store.open(settings.database, patience=settings.patience, check=True)
        try:
            await _serve_store(store, settings, host)
        finally:
            await store.close()
    finally:
        os.close(lock)


async def _serve_store(store: Store, settings: Settings, host: Host) -> None:
    ipam, registry = LocalIpam(store, settings, host), LocalRegistry(store, settings, host)
    metrics = Metrics(registry)
    server = Server(ipam, registry, metrics, **_rules(settings))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Task[None]] = []  # the loop itself keeps no task alive

    def reload() -> None:
        """Take the settings that may change while we run; the others need a restart."""
        nonlocal settings
        try:
            new = load(os.environ)
            rules = _rules(new)
        except (BadSettings, CannotStart) as error:
            log.error("the settings stay as they were: %s", error)
            return
        for name in ("state_dir", "run_dir"):
            if getattr(new, name) != getattr(settings, name):
                log.warning("%s is %s until the next start", name, getattr(settings, name))
        if new.ipamd.metrics_port != settings.ipamd.metrics_port:
            log.warning("ipamd.metrics_port is %d until the next start", settings.ipamd.metrics_port)
        logging.getLogger().setLevel(new.log_level.upper())
        ipam.settings = registry.settings = new
        server.configure(**rules)
        waiting.append(loop.create_task(store.wait_for_others(new.patience)))
        log.info("the settings were read again")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    passed = passed_socket()
    listener = passed or _listen(settings.ipamd_socket)
    reconciling = asyncio.create_task(_reconcile(ipam))
    try:
        with _metrics_port(metrics, settings.ipamd.metrics_port):
            notify("READY=1")
            await server.serve(listener, stop)
        notify("STOPPING=1")
    finally:
        reconciling.cancel()
        if passed is None:
            settings.ipamd_socket.unlink(missing_ok=True)


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


def _hold(path: Path) -> int:
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
        raise CannotStart(f"another ipamd (process {holder}) serves {path.parent}") from None
    with suppress(OSError):  # on a full disk nobody reads who holds it, and it is held all the same
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _listen(path: Path) -> socket.socket:
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


def passed_socket() -> socket.socket | None:
    """The listening socket that systemd passed to this process, if it did (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS", "0") == "0":
        return None
    listener = socket.socket(fileno=FIRST_PASSED_FD)
    listener.set_inheritable(False)
    return listener


def notify(state: str) -> None:
    """Tell the service manager, if there is one that wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(state.encode())
        except OSError as error:
            log.warning("cannot notify %s: %s", address, error.strerror)
