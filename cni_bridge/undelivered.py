"""DELs that clients could not deliver while no daemon was there, on hosts where nothing else can serve them."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cni_bridge.frames import BODY_LIMIT, BadFrame, Call, parse_call
from ipam import effects

log = logging.getLogger(__name__)

_Place = tuple[str, str, str]  # network, container, interface


class Undelivered:
    """The requests that were kept in the directory, one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tried: dict[str, _Place | None] = {}  # what failed, or is no request, by the file's name

    async def replay(self, serve: Callable[[Call], Awaitable[str]]) -> None:
        """Do what was kept; `serve` gives the reason if it fails. That stays, and is tried again at the next start."""
        for name in self._names():
            self._tried[name] = None
            path = self._directory / name
            try:
                call = parse_call(_read(path))
            except (OSError, BadFrame) as error:
                log.warning("%s cannot be read and is left alone: %s", path, error)
                continue
            if call.environ.get("CNI_COMMAND") != "DEL":
                log.warning("%s is no DEL and is left alone", path)
                continue
            self._tried[name] = _place(call.environ, call.stdin)
            if reason := await serve(call):
                log.warning("the DEL that was kept as %s failed and stays: %s", path, reason)
            else:
                self._remove(name)

    def forget(self, environ: Mapping[str, str], stdin: bytes) -> None:
        """Drop what failed for this attachment: a request for it has been served since, and may have made it anew."""
        place = _place(environ, stdin) if self._tried else None
        for name in [each for each, tried in self._tried.items() if tried is not None and tried == place]:
            self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            effects.change("remove a kept request")
            (self._directory / name).unlink()
        self._tried.pop(name, None)

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 - each request looks here, and mostly there is nothing
        except OSError:  # it is not there, or is no directory
            return []
        return sorted(each for each in names if not each.startswith(".") and each not in self._tried)


def _place(environ: Mapping[str, str], stdin: bytes) -> _Place | None:
    try:
        network = str(json.loads(stdin)["name"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return network, environ.get("CNI_CONTAINERID", ""), environ.get("CNI_IFNAME", "")


def _read(path: Path) -> bytes:
    """What the file holds, if it is a plain one of this user's: nobody else tells root what to do."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise BadFrame("it is not a plain file of this user")
        return file.read(BODY_LIMIT)
