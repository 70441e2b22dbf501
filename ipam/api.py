"""The vocabulary of address management: who owns, what is wanted, what was given, and who can give it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Protocol

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

ANY_LINK = "*"  # in place of a link's name


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Owner:
    """One attachment: the key of its leases, its lock, its record and its firewall rules (CNI SPEC, section 2)."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetnsRef:
    """A network namespace: the path the runtime gave, and the device and inode that tell it from another one."""

    path: str
    device: int
    inode: int

    def same_as(self, other: NetnsRef) -> bool:
        """Whether both are one namespace, by whatever paths."""
        return (self.device, self.inode) == (other.device, other.inode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A run of addresses of one subnet, first and last included, to hand out; never the gateway or what is excluded."""

    subnet: Network
    first: Address
    last: Address
    gateway: Address | None = None
    exclude: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        if {self.first.version, self.last.version} != {self.subnet.version}:
            raise ValueError(f"range {self.first}-{self.last} is not of the family of subnet {self.subnet}")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def holds(self, address: Address) -> bool:
        """Whether the address lies between first and last."""
        return address.version == self.subnet.version and int(self.first) <= int(address) <= int(self.last)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnySubnet:
    """A subnet that the IPAM is to choose from its default pools; without a prefix length also its size."""

    family: int
    prefixlen: int | None = None

    def __str__(self) -> str:
        return f"any IPv{self.family} subnet" + (f" of length {self.prefixlen}" if self.prefixlen is not None else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSet:
    """Ranges of one family that serve as one pool: an attachment gets one address of each set.

    A set has either ranges or the wish for a subnet. `runtime`: a runtime passed it for one attachment, it is no part
    of the network's configuration.
    """

    ranges: tuple[Range, ...] = ()
    any_subnet: AnySubnet | None = None
    runtime: bool = False

    def __post_init__(self) -> None:
        if bool(self.ranges) == (self.any_subnet is not None):
            raise ValueError("a range set has ranges, or else the wish for a subnet")

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.any_subnet.family if self.any_subnet is not None else self.ranges[0].subnet.version

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges)) or str(self.any_subnet)

    def range_of(self, address: Address) -> Range | None:
        """The range of this set that holds the address."""
        return next((each for each in self.ranges if each.holds(address)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of the result (CNI SPEC, section 5); None leaves the choice to the kernel."""

    dst: Network
    gw: Address | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """Resolver settings of the result (CNI SPEC, section 5)."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one attachment asks for: an address of every range set, the requested ones where they fit.

    `sticky` is a key whose address stays reserved for it after release. `name` (`NAMESPACE/POD`, or a container's),
    `mac` and `netns` are kept with the lease, and an address that is reserved for this name or MAC goes to it.
    `links` are the network's own links (or `ANY_LINK`), whose addresses contradict no subnet of it. `routes` and `dns`
    are configured next to the ranges and come back with the allocation unchanged.
    """

    owner: Owner
    range_sets: tuple[RangeSet, ...] = ()
    requested: tuple[Address, ...] = ()
    sticky: str = ""
    name: str = ""
    mac: str = ""
    netns: NetnsRef | None = None
    links: tuple[str, ...] = ()
    allow_overlap: bool = False
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)


class ReservedFor(StrEnum):
    """Who an address is reserved for."""

    NAME = "name"  # a pod (NAMESPACE/POD or POD) or container of that name
    MAC = "mac"
    STICKY = "sticky"  # whoever asks with that key
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Keeps an address from everybody but the one it is for; `value` is empty for nobody."""

    kind: ReservedFor
    value: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.value}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """An address held by its owner; `since` is the wall clock, for people, and `boot_id` the boot it was given in."""

    owner: Owner
    address: Interface
    gateway: Address | None
    since: datetime
    boot_id: str = ""
    name: str = ""
    mac: str = ""
    netns: NetnsRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The answer to a `Wanted`: its leases in the order of the range sets, and what goes with them."""

    leases: tuple[Lease, ...]
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)


class Ipam(Protocol):
    """Owns addresses. All calls may be repeated, and but for `collect` are all or nothing; failures are `IpamError`."""

    async def allocate(self, wanted: Wanted) -> Allocation:
        """Give the owner its addresses; a repeat gives the same ones."""

    async def release(self, owner: Owner) -> None:
        """Take back all that the owner holds; nothing held is success."""

    async def held(self, owner: Owner) -> tuple[Lease, ...]:
        """What the owner holds; empty if this IPAM cannot say."""

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        """Fail with `LeaseMissing` unless the owner holds these addresses."""

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """Take back what owners of this network hold that are not in `keep`; what was done stays done if it fails."""

    async def status(self, wanted: Wanted) -> None:
        """Fail with the reason why `allocate` for a new owner could not be served now."""
