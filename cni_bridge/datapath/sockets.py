"""The netlink sockets of the one thread that talks to the kernel: the host's, and those inside of containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cni_bridge.datapath import netns
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.datapath.netns import Netns


class Sockets:
    """Opens the host's socket in the thread that uses it, when it is first needed."""

    def __init__(self) -> None:
        self._host: Netlink | None = None

    @property
    def host(self) -> Netlink:
        """The socket of the host's namespace."""
        if self._host is None:
            self._host = Netlink()
        return self._host

    def close(self) -> None:
        """Close the host's socket; in the thread that used it."""
        if self._host is not None:
            self._host.close()
            self._host = None

    @contextmanager
    def inside(self, target: Netns) -> Iterator[Netlink]:
        """A socket in the container's namespace, for the block."""
        with netns.entered(target):
            inside = Netlink()
        try:
            yield inside
        finally:
            inside.close()
