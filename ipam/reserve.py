"""Room on the disk held in reserve, so that addresses can be given back when the file system is full."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from ipam import effects, files
from ipam.errors import StoreFull, StoreUnavailable

SIZE = 512 << 10  # bytes: the journal of a transaction and some pages of history, many times over
_LEAST = 64 << 10  # bytes that an allocation may need
_VALID = 0.02  # seconds that a look is good for: those who ask at once share it, and the commit tells the rest


class Reserve:
    """A file that takes up room until it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked = 0.0

    def ensure(self) -> None:
        """Hold the room; `StoreFull` if there is none left to hold, or none beside it."""
        if time.monotonic() - self._looked < _VALID:
            return
        try:
            if self._path.stat().st_size == SIZE:
                self._require_room()
                self._looked = time.monotonic()
                return
            effects.change("remove what was to be the reserve")
            self._path.unlink()  # what was interrupted while it was made
        except FileNotFoundError:
            pass
        try:
            effects.change("hold room in reserve")
            fd = files.create(self._path)
        except FileExistsError:  # somebody else has just made it
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(self._full()) from None
            raise StoreUnavailable(f"{self._path}: {error.strerror}; check its directory") from None
        try:
            effects.change("fill the reserve")
            os.posix_fallocate(fd, 0, SIZE)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(self._full()) from None
            raise StoreUnavailable(f"{self._path}: {error.strerror}; check its directory") from None
        finally:
            os.close(fd)

    def _require_room(self) -> None:
        room = os.statvfs(self._path.parent)
        blocks = room.f_bfree if os.geteuid() == 0 else room.f_bavail
        if blocks * room.f_frsize < _LEAST:
            raise StoreFull(self._full())

    def spend(self) -> bool:
        """Give the room free; whether there was any."""
        self._looked = 0.0
        try:
            effects.change("spend the room in reserve")
            self._path.unlink()
        except OSError:
            return False
        return True

    def _full(self) -> str:
        return (
            f"no room for {self._path}, which is held in reserve for releases, so no address is given; "
            "free space on its file system"
        )
