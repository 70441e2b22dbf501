"""DELs that clients could not deliver while no daemon was there, on hosts where nothing else can serve them."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from cni_bridge.frames import BODY_LIMIT, BadFrame, Call, parse_call
from ipam import effects

log = logging.getLogger(__name__)


class Undelivered:
    """The requests that were kept in the directory, one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tried: set[str] = set()

    async def replay(self, serve: Callable[[Call], Awaitable[bool]]) -> None:
        """Do what was kept; what fails stays, for the operator to see, and is tried again at the next start."""
        for name in self._names():
            self._tried.add(name)
            path = self._directory / name
            try:
                call = parse_call(_read(path))
            except (OSError, BadFrame) as error:
                log.warning("%s cannot be read and is left alone: %s", path, error)
                continue
            if call.environ.get("CNI_COMMAND") != "DEL":
                log.warning("%s is no DEL and is left alone", path)
                continue
            log.info("doing a DEL that was kept: %s", name)
            if await serve(call):
                with suppress(OSError):
                    effects.change("remove a kept request")
                    path.unlink()
                self._tried.discard(name)

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 - each request looks here, and mostly there is nothing
        except FileNotFoundError:
            return []
        return sorted(each for each in names if not each.startswith(".") and each not in self._tried)


def _read(path: Path) -> bytes:
    """What the file holds, if it is a plain one of this user's: nobody else tells root what to do."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise BadFrame("it is not a plain file of this user")
        return file.read(BODY_LIMIT)
