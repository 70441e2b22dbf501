"""Network namespaces: opened so that nothing else can be taken for one, and entered by one thread for a while."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cni_bridge.cni.errors import InvalidNetns
from ipam.api import NetnsRef

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Netns:
    """An open network namespace; it lives at least as long as `fd` is open."""

    fd: int
    ref: NetnsRef


@contextmanager
def opened(path: str, passed: int | None = None) -> Iterator[Netns]:
    """The namespace at the path, open; `InvalidNetns` if something else is there, or nothing.

    `passed` is a descriptor of it, if whoever knows the path has opened it: another process may see other files.
    """
    shown = f"CNI_NETNS is {path}"
    fd = os.dup(passed) if passed is not None else _open(path, shown)
    try:
        try:
            kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            raise InvalidNetns(f'"{path}" is not a network namespace', shown)
        status = os.fstat(fd)
        yield Netns(fd=fd, ref=NetnsRef(path=path, device=status.st_dev, inode=status.st_ino))
    finally:
        os.close(fd)


def _open(path: str, shown: str) -> int:
    """A descriptor of the file at the path, if it is a plain file.

    The first open has `O_PATH`, which neither waits for a FIFO's writer nor wakes a device; only what turned out to
    be a plain file is opened in earnest, by its descriptor, so that it cannot be exchanged in between.
    """
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidNetns(f'cannot open network namespace "{path}": {reason}', shown) from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InvalidNetns(f'"{path}" is not a network namespace', shown)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidNetns(f'cannot open network namespace "{path}": {error.strerror}', shown) from None
    finally:
        os.close(handle)


def own() -> NetnsRef:
    """The namespace that this thread is in."""
    status = os.stat(_OWN)  # noqa: PTH116 - each request looks
    return NetnsRef(path=_OWN, device=status.st_dev, inode=status.st_ino)


@contextmanager
def entered(netns: Netns) -> Iterator[None]:
    """Be in the namespace; only this thread is, and it must do nothing else meanwhile."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns.fd)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        reason = os.strerror(number).lower()
        if number == errno.EPERM:
            reason += "; the plugin needs CAP_SYS_ADMIN"
        raise InvalidNetns(f"cannot enter the network namespace: {reason}")
