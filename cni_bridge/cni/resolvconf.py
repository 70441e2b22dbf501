"""Resolver settings from a file in the format of resolv.conf(5)."""

from __future__ import annotations

from cni_bridge.cni.errors import InvalidConfig
from ipam.api import Dns


def read_resolv_conf(path: str) -> Dns:
    """The settings in the file."""
    try:
        with open(path, errors="replace") as file:
            return parse_resolv_conf(file.read(1 << 20))
    except OSError as error:
        raise InvalidConfig(f'ipam.resolvConf "{path}" cannot be read: {error.strerror}') from None


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
