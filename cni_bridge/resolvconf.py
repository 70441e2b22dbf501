"""Resolver settings from a file in the format of resolv.conf(5)."""

from __future__ import annotations

import os
import stat

from cni_bridge.cni.errors import InvalidConfig
from ipam.api import Dns

_LIMIT = 1 << 20  # characters


def read_resolv_conf(path: str) -> Dns:
    """The settings in the file; none where no path is given."""
    if not path:
        return Dns()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would have us wait for its writer
        with open(fd, errors="replace") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidConfig(f'ipam.resolvConf "{path}" is not a regular file')
            return parse_resolv_conf(file.read(_LIMIT))
    except (OSError, ValueError) as error:  # ValueError for a path that the system cannot have
        reason = getattr(error, "strerror", None) or error
        raise InvalidConfig(f'ipam.resolvConf "{path}" cannot be read: {reason}') from None


def parse_resolv_conf(text: str) -> Dns:
    """The settings in the text; what is unknown is passed over, and the last `domain` counts."""
    found: dict[str, list[str]] = {"nameserver": [], "domain": [], "search": [], "options": []}
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword in found:  # a comment's first word is none of these
            found[keyword] += values[:1] if keyword in ("nameserver", "domain") else values
    return Dns(
        nameservers=tuple(found["nameserver"]),
        domain=found["domain"][-1] if found["domain"] else "",
        search=tuple(found["search"]),
        options=tuple(found["options"]),
    )
