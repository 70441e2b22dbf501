"""Who has to wait for whom, whichever process serves them: requests of one owner, and changes of what all share."""

from __future__ import annotations

import asyncio
import fcntl
import glob
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from cni_bridge import waiting
from cni_bridge.cni.errors import CniError, Code
from cni_bridge.files import file_name
from ipam import effects
from ipam.api import Owner

_LONGEST_PAUSE = 0.02  # seconds


class OwnerLocks:
    """A lock for each owner, as files in a directory; code 11 after `patience` seconds.

    Requests of one process have it in the order in which they came. The kernel ends it with its process.
    """

    def __init__(self, directory: Path, *, patience: float) -> None:
        self._directory = directory
        self._patience = patience
        self._queues: WeakValueDictionary[Owner, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def held(self, owner: Owner) -> AsyncIterator[None]:
        """Hold the owner's lock."""
        path = self._path(owner)
        queue = self._queues.setdefault(owner, asyncio.Lock())
        deadline = time.monotonic() + self._patience
        pause = 0.001
        async with _queued(queue, self._patience, f"another request for {owner}"):
            while (fd := _try_lock(path)) is None:
                if time.monotonic() > deadline:
                    raise _still_held(f"another request for {owner}", self._patience)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            try:
                waiting.require()
                yield
            finally:
                with suppress(OSError):
                    effects.change("remove a lock's file")
                    path.unlink()  # before the lock ends: whoever waits for it then finds another file, and starts anew
                os.close(fd)

    def is_held(self, owner: Owner) -> bool:
        """Whether a request for the owner runs."""
        try:
            fd = os.open(self._path(owner), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _path(self, owner: Owner) -> Path:
        return self._directory / file_name(str(owner).replace("/", ":"))

    def sweep(self, network: str) -> None:
        """Remove the files of the network's locks that nobody holds: of processes that were killed."""
        for path in self._directory.glob(f"{glob.escape(network)}:*"):
            if (fd := _try_lock(path)) is not None:
                effects.change("remove a lock's file")
                path.unlink(missing_ok=True)
                os.close(fd)


@asynccontextmanager
async def _queued(queue: asyncio.Lock, patience: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(patience):
            await queue.acquire()
    except TimeoutError:
        raise _still_held(what, patience) from None
    try:
        yield
    finally:
        queue.release()


def _still_held(what: str, patience: float) -> CniError:
    return CniError(Code.TRY_AGAIN_LATER, f"{what} still runs after {patience:g} s; try again")


class SharedLock:
    """A lock on a directory, `what` in messages: held by many at once, or by one alone, within `patience` seconds.

    Who wants to be alone does not wait for those who come later: they queue, at least those of this process.
    """

    def __init__(self, directory: Path, what: str, *, patience: float) -> None:
        self._directory = directory
        self._what = what
        self._patience = patience
        self._queue = asyncio.Lock()
        self._waiting = 0

    @asynccontextmanager
    async def held(self, *, alone: bool) -> AsyncIterator[None]:
        """Hold the lock; code 11 if it takes too long. The kernel ends it with its process."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            operation = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            alone_here = not self._waiting and not self._queue.locked()
            if alone_here and _flock_now(fd, operation):  # nobody is waited for, so no time is kept
                await self._queue.acquire()
            else:
                await self._wait(fd, operation)
            if not alone:
                self._queue.release()
            try:
                yield
            finally:
                if alone:
                    self._queue.release()
        finally:
            os.close(fd)

    async def _wait(self, fd: int, operation: int) -> None:
        """Hold the queue and the lock, within the patience."""
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._queue.acquire()
                try:
                    await _flock(fd, operation)
                except BaseException:
                    self._queue.release()
                    raise
        except TimeoutError:
            said = f"{self._what} still held by another request after {self._patience:g} s; try again"
            raise CniError(Code.TRY_AGAIN_LATER, said) from None
        finally:
            self._waiting -= 1


async def _flock(fd: int, operation: int) -> None:
    pause = 0.001
    while not _flock_now(fd, operation):
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _flock_now(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None while somebody else does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    os.close(fd)
    return None
