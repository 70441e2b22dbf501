"""Waits for a file's lock no longer than allowed (flock(2))."""

from __future__ import annotations

import fcntl
import time

from cni_bridge.cni.errors import CniError, Code

_LONGEST_PAUSE = 0.01  # seconds


def acquire(fd: int, operation: int, *, patience: float, what: str) -> None:
    """Lock the open file, `operation` being LOCK_SH or LOCK_EX; code 11, naming `what`, after `patience` seconds."""
    deadline = time.monotonic() + patience
    pause = 0.0002
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise CniError(
                    Code.TRY_AGAIN_LATER, f"{what} was held by another program for {patience:g} s; try again"
                ) from None
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
