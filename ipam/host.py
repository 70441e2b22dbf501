"""What address management must know of the host it runs on, as an interface: this package knows no netlink."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ipam.api import Address, Interface, NetnsRef, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkAddress:
    """An address of one of the host's links."""

    link: str
    address: Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoute:
    """A route of the host, of any table; `link` is empty if it has none."""

    dst: Network
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is in use around the pools: a subnet that overlaps it would cut the host off from something."""

    addresses: tuple[LinkAddress, ...] = ()
    routes: tuple[HostRoute, ...] = ()
    nameservers: tuple[Address, ...] = ()


class Host(Protocol):
    """The host as address management sees it. Both calls only look, and may be made from any thread."""

    def surroundings(self) -> Surroundings:
        """Addresses, routes and nameservers of the host."""

    def lives(self, netns: NetnsRef) -> bool | None:
        """Whether the namespace is still at its path; None if this process cannot tell."""


@dataclass(slots=True, kw_only=True)
class ToldHost:
    """A host that is as it was told to be, for tests and for processes that need to know nothing of theirs.

    A namespace lives unless it was said to be gone; with `blind`, nothing can be told of namespaces.
    """

    around: Surroundings = field(default_factory=Surroundings)
    gone: set[NetnsRef] = field(default_factory=set)
    blind: bool = False

    def surroundings(self) -> Surroundings:
        """See `Host.surroundings`."""
        return self.around

    def lives(self, netns: NetnsRef) -> bool | None:
        """See `Host.lives`."""
        return None if self.blind else netns not in self.gone
