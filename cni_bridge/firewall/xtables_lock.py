"""The lock that every writer of legacy iptables tables holds: iptables(8), kube-proxy and this program."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cni_bridge.cni.errors import CniError, Code

_POLL = 0.01  # seconds


@contextmanager
def xtables_lock(patience: float) -> Iterator[None]:
    """Hold the lock; code 11 after `patience` seconds. The kernel gives no table its own lock: whoever reads,
    changes and commits without this one undoes what another has committed meanwhile."""
    path = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CniError(
                        Code.TRY_AGAIN_LATER, f"{path} was held by another program for {patience:g} s; try again"
                    ) from None
                time.sleep(_POLL)
        yield
    finally:
        os.close(fd)
