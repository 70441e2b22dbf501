"""Locks a file that other programs lock too, without waiting: whoever waits has others to serve (flock(2))."""

from __future__ import annotations

import fcntl

from cni_bridge.cni.errors import LockBusy


def lock(fd: int, operation: int, *, what: str) -> None:
    """Lock the open file, `operation` being LOCK_SH or LOCK_EX; `LockBusy`, naming `what`, while another has it."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockBusy(what) from None
