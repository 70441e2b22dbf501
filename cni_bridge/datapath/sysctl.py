"""Kernel settings of the network namespace that the calling thread is in (Documentation/networking/ip-sysctl.rst).

Names are written with slashes, because link names may contain dots.
"""

from __future__ import annotations

import os
from pathlib import Path

from cni_bridge.cni.errors import KernelRefused
from ipam import effects

_ROOT = Path("/proc/sys/net")
_LONGEST = 4096  # bytes of a value


def read(name: str) -> str:
    """The value; empty if this kernel does not have the setting."""
    try:
        fd = os.open(f"{_ROOT}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _LONGEST).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def write(name: str, value: str) -> None:
    """Set the value where it differs."""
    if read(name) == value:
        return
    try:
        effects.change(f"set {name}")
        (_ROOT / name).write_text(value)
    except OSError as error:
        shown = "net." + name.replace("/", ".")
        raise KernelRefused(f"cannot set {shown} to {value}: {error.strerror}", errno=error.errno or 0) from None


def write_if_there(name: str, value: str) -> None:
    """Set the value, unless this kernel does not have the setting (IPv6 may be compiled out or disabled)."""
    if (_ROOT / name).exists():
        write(name, value)


def link_names(family: str) -> list[str]:
    """The links that have settings of the family, `ipv4` or `ipv6`."""
    try:
        return sorted(each.name for each in (_ROOT / family / "conf").iterdir() if each.name not in ("all", "default"))
    except OSError:
        return []
