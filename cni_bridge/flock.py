"""Locks a file that other programs lock too, without waiting: whoever waits has others to serve (flock(2))."""

from __future__ import annotations

import fcntl
import os

from cni_bridge.cni.errors import LockBusy


def lock(fd: int, operation: int, *, path: str) -> None:
    """Lock the open file of that path, `operation` being LOCK_SH or LOCK_EX; `LockBusy` while another has it."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockBusy(path, operation) from None


def is_free(path: str, operation: int) -> bool:
    """Whether the lock could be had now; one that cannot be looked at is for who locks it to complain of."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        lock(fd, operation, path=path)
    except LockBusy:
        return False
    finally:
        os.close(fd)
    return True
