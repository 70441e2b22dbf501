"""What a daemon and its service manager tell each other: sockets that are passed, readiness, signs of life."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)

FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


def passed_sockets() -> list[socket.socket]:
    """The listening sockets that the service manager passed to this process (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    found = [socket.socket(fileno=FIRST_PASSED_FD + each) for each in range(int(os.environ.get("LISTEN_FDS", "0")))]
    for each in found:
        each.set_inheritable(False)
    return found


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


def watchdog_interval() -> float | None:
    """Seconds between signs of life, half of what the service manager waits for one; None if it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6 if (microseconds := os.environ.get("WATCHDOG_USEC")) else None
