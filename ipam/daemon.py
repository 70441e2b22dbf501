"""`ipamd`: the IPAM service as a process. Listens on its socket, or on one that systemd passes."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import grp
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from ipam import files
from ipam.errors import IpamError
from ipam.local import LocalIpam
from ipam.server import Server
from ipam.settings import BadSettings, Settings, load

log = logging.getLogger("ipamd")

FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


class CannotStart(Exception):
    """The daemon cannot serve; the message says why."""


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 after a clean stop, 1 when it cannot start."""
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
        asyncio.run(_serve(settings))
    except (CannotStart, BadSettings, IpamError) as error:
        print(f"ipamd: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    ipam = await LocalIpam.open(settings.database, patience=settings.patience)
    try:
        allowed = _peer_check(settings)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = Server(
            ipam,
            allowed=allowed,
            max_clients=settings.ipamd.max_clients,
            request_timeout=settings.request_timeout,
        )
        passed = passed_socket()
        lock = _hold(settings.state_dir / "ipamd.lock")
        listener = passed or _listen(settings.ipamd_socket)
        try:
            notify("READY=1")
            await server.serve(listener, stop)
            notify("STOPPING=1")
        finally:
            if passed is None:
                settings.ipamd_socket.unlink(missing_ok=True)
            os.close(lock)
    finally:
        await ipam.close()


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
