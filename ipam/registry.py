"""The vocabulary of whoever looks after the addresses: what is known of each, of pools and of the past."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from ipam.api import Address, Lease, Network, Owner, Range, Reservation, Wanted
from ipam.clock import Moment

PAGE = 1000  # entries or events that are asked for at once


class State(StrEnum):
    """What keeps an address from being free."""

    LEASED = "leased"
    COOLING = "cooling"
    RESERVED = "reserved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """All that is known of one address of a network. It has a lease, or was released, or is reserved, or both.

    `drawn_from`: the first address of the range set that it was taken from in turn; None if it was asked for.
    `suspect`: when the lease's namespace was first found gone.
    """

    network: str
    address: Address
    lease: Lease | None = None
    released: Moment | None = None
    reservation: Reservation | None = None
    suspect: Moment | None = None
    drawn_from: Address | None = None

    def state(self, now: Moment, cooldown: float) -> State | None:
        """What keeps the address from being free; None if nothing does any more."""
        if self.lease is not None:
            return State.LEASED
        if self.reservation is not None:
            return State.RESERVED
        if self.released is not None and now.since(self.released) < cooldown:
            return State.COOLING
        return None


class Origin(StrEnum):
    """Where a pool comes from."""

    CONFIGURED = "configured"
    RUNTIME = "runtime"  # passed with one attachment's request
    DEFAULT = "default"  # chosen from the default pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A subnet that a network uses, and the ranges of it that are handed out.

    `shared`: the configuration allows it to overlap others. `reason`: why this subnet was chosen.
    """

    network: str
    subnet: Network
    ranges: tuple[Range, ...]
    origin: Origin
    reason: str
    shared: bool
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where a range set stands: the address that it gave last.

    `position`: which of the network's configured sets it is, counted from 0; None if it is none of them (any more).
    """

    position: int | None
    last: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """How full a pool is: `capacity` = `leased` + `cooling` + `reserved` + `free`, in addresses.

    `turns`: those of the range sets that begin here and have given an address.
    """

    pool: Pool
    capacity: int
    leased: int
    cooling: int
    reserved: int
    turns: tuple[Turn, ...] = ()

    @property
    def free(self) -> int:
        """Addresses that the next request may get."""
        return self.capacity - self.leased - self.cooling - self.reserved


class Happened(StrEnum):
    """What an event says of an address."""

    LEASED = "leased"
    RELEASED = "released"
    RESERVED = "reserved"
    UNRESERVED = "unreserved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of one address; `at` is the wall clock, numbers go up with time."""

    number: int
    at: datetime
    happened: Happened
    network: str
    address: Address
    container_id: str = ""
    ifname: str = ""
    name: str = ""
    mac: str = ""
    reservation: Reservation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An address of a network, as the place where a page of entries ended."""

    network: str
    address: Address


class Weight(StrEnum):
    """How bad it is what an audit found."""

    ERROR = "error"  # it can lead to an address with two owners, or to lost ones
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be, in words; `mendable`: `Registry.mend` puts it right."""

    weight: Weight
    what: str
    mendable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A lease that comes from another IPAM: who has which address."""

    owner: Owner
    address: Address


class Registry(Protocol):
    """The operator's side of an `Ipam`; failures are `ipam.errors.IpamError`."""

    async def pools(self, network: str | None = None) -> tuple[PoolUse, ...]:
        """The pools of one network, or all, in order of network and subnet."""

    async def entries(
        self, network: str | None = None, *, after: Place | None = None, limit: int = PAGE
    ) -> tuple[Entry, ...]:
        """What is known of the addresses behind `after`, in order of network and address."""

    async def history(
        self,
        *,
        network: str = "",
        address: Address | None = None,
        container: str = "",
        before: int | None = None,
        limit: int = PAGE,
    ) -> tuple[Event, ...]:
        """The newest events that match all that is given and are older than number `before`, newest first."""

    async def reserve(self, network: str, address: Address, reservation: Reservation) -> None:
        """Keep an address of a pool for somebody; a lease that it has stays, and nobody else gets it afterwards."""

    async def unreserve(self, network: str, address: Address) -> None:
        """End the address's reservation; its lease stays. `NotFound` if there is none."""

    async def take_back(self, owner: Owner, address: Address) -> None:
        """End this owner's lease of this address; `NotFound` if it is not the holder (any more)."""

    async def forget(self, network: str) -> None:
        """Remove the network's pools; `PoolConflict` while it has leases or reservations."""

    async def adopt(self, wanted: Wanted, moved: tuple[Moved, ...], last: tuple[Address, ...]) -> None:
        """Lease addresses that another IPAM gave, in a network that is configured as `wanted` says.

        Without range sets the network stays as it is tracked. `last`: the addresses that its range sets gave last. All
        or nothing; leases that are here already are kept.
        """

    async def verify(self) -> tuple[Finding, ...]:
        """Compare the store with itself."""

    async def mend(self) -> None:
        """Make what can be derived from the addresses anew: runs and indexes."""
