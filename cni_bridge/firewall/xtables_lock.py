"""The lock that every writer of legacy iptables tables holds: iptables(8), kube-proxy and this program."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cni_bridge.flock import lock


@contextmanager
def xtables_lock() -> Iterator[None]:
    """Hold the lock; `LockBusy` while another program does. The kernel gives no table its own lock: whoever reads,
    changes and commits without this one undoes what another has committed meanwhile."""
    path = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock(fd, fcntl.LOCK_EX, path=path)
        yield
    finally:
        os.close(fd)
