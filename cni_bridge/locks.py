"""One request at a time for one owner, whichever process serves it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cni_bridge.cni.errors import CniError, Code
from cni_bridge.files import file_name
from ipam.api import Owner

_LONGEST_PAUSE = 0.02  # seconds


@asynccontextmanager
async def owner_locked(directory: Path, owner: Owner, *, patience: float) -> AsyncIterator[None]:
    """Hold the owner's lock; code 11 after `patience` seconds. The kernel ends it with its process."""
    path = directory / file_name(str(owner).replace("/", ":"))
    deadline = time.monotonic() + patience
    pause = 0.001
    while (fd := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise CniError(
                Code.TRY_AGAIN_LATER, f"another request for {owner} still runs after {patience:g} s; try again"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock ends: whoever waits for it then finds another file, and starts anew
        os.close(fd)


@asynccontextmanager
async def rules_locked(directory: Path, *, alone: bool, patience: float) -> AsyncIterator[None]:
    """Hold the lock of what networks share in the firewall, which is one on the directory of records.

    It is shared to apply rules, and held `alone` to take a network's away.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline, pause = time.monotonic() + patience, 0.001
    try:
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    said = f"rules of a network are being changed by another request after {patience:g} s; try again"
                    raise CniError(Code.TRY_AGAIN_LATER, said) from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        yield
    finally:
        os.close(fd)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None while somebody else does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    os.close(fd)
    return None
