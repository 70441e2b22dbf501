"""One node's address management in this process, on a host and a clock that the test tells; asked without `await`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, TypeVar

from ipam.api import AnySubnet, Lease, NetnsRef, Owner, RangeSet, Reservation, ReservedFor, Wanted
from ipam.host import HostRoute, LinkAddress, Surroundings, ToldHost
from ipam.local import LocalIpam
from ipam.local_registry import LocalRegistry
from ipam.registry import Entry, Event, PoolUse, State
from ipam.settings import AddressSettings, Settings
from ipam.store import Store
from tests.support.calls import Clock, behind, owner

T = TypeVar("T")

ANY = (RangeSet(any_subnet=AnySubnet(family=4)),)
ANY6 = (RangeSet(any_subnet=AnySubnet(family=6)),)


class Node:
    """Both sides of the lease database in a directory, as one process has them open."""

    def __init__(self, directory: Path, **rules: int) -> None:
        self.settings = Settings(state_dir=directory, addresses=AddressSettings(**rules))
        self.host = ToldHost()
        self.clock = Clock()
        self._runner = asyncio.Runner()
        self._open()

    def _open(self) -> None:
        self.store = self.run(Store.open(self.settings.database, patience=self.settings.patience))
        self.ipam = LocalIpam(self.store, self.settings, self.host, clock=self.clock)
        self.registry = LocalRegistry(self.store, self.settings, self.host, clock=self.clock)

    def reopen(self, settings: Settings | None = None) -> None:
        """Close the database and open it as a new process would."""
        self.run(self.ipam.close())
        self.settings = settings or self.settings
        self._open()

    def close(self) -> None:
        """Close the database for good."""
        self.run(self.ipam.close())
        self._runner.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """What the call returns."""
        return self._runner.run(call)

    def add(self, of: str | Owner, *requested: str, sets: tuple[RangeSet, ...], **more: Any) -> list[str]:
        """The addresses that the owner, or this container of `net1`, is given."""
        given = self.run(self.ipam.allocate(wanted(of, *requested, sets=sets, **more)))
        return [str(each.address.ip) for each in given.leases]

    def delete(self, *of: str | Owner) -> None:
        """Release what they hold, one after another."""
        for each in of:
            self.run(self.ipam.release(owner_of(each)))

    def status(self, *, sets: tuple[RangeSet, ...], network: str = "net1", **more: Any) -> None:
        """Ask whether a new owner could be served."""
        self.run(self.ipam.status(wanted(owner("", network, ""), sets=sets, **more)))

    def reserve(self, address: str, kind: ReservedFor, value: str = "", network: str = "net1") -> None:
        """Reserve the address."""
        self.run(self.registry.reserve(network, ip_address(address), Reservation(kind=kind, value=value)))

    def unreserve(self, address: str, network: str = "net1") -> None:
        """End the address's reservation."""
        self.run(self.registry.unreserve(network, ip_address(address)))

    def pools(self, network: str | None = None) -> list[PoolUse]:
        """The pools and how full they are."""
        return list(self.run(self.registry.pools(network)))

    def subnets(self, network: str | None = None) -> list[str]:
        """The subnets of the pools."""
        return [str(each.pool.subnet) for each in self.pools(network)]

    def counts(self, network: str = "net1") -> tuple[int, int, int, int]:
        """How many addresses of the network's only pool are leased, cooling, reserved and free."""
        (use,) = self.pools(network)
        assert use.capacity == use.leased + use.cooling + use.reserved + use.free
        return use.leased, use.cooling, use.reserved, use.free

    def entries(self, network: str = "net1") -> dict[str, Entry]:
        """What is known of the network's addresses."""
        return {str(each.address): each for each in self.run(self.registry.entries(network))}

    def lease(self, address: str, network: str = "net1") -> Lease:
        """The lease of the address."""
        lease = self.entries(network)[address].lease
        assert lease is not None
        return lease

    def states(self, network: str = "net1") -> dict[str, State | None]:
        """What keeps the addresses of the network from being free now."""
        cooldown = self.settings.addresses.cooldown
        return {address: each.state(self.clock(), cooldown) for address, each in self.entries(network).items()}

    def holders(self, network: str = "net1") -> dict[str, str]:
        """Which container holds which address."""
        found = self.entries(network).items()
        return {address: each.lease.owner.container_id for address, each in found if each.lease is not None}

    def events(self, **asked: Any) -> list[Event]:
        """The history, oldest first."""
        return list(reversed(self.run(self.registry.history(**asked))))

    def findings(self) -> list[str]:
        """What the database contradicts itself in."""
        return [each.what for each in self.run(self.registry.verify())]

    def dump(self) -> list[str]:
        """All that the database holds."""
        with behind(self.settings.database) as connection:
            return list(connection.iterdump())

    def around(self, *addresses: str, routes: tuple[str, ...] = (), nameservers: tuple[str, ...] = ()) -> None:
        """Have the host around these: addresses as "LINK ADDRESS/LENGTH", routes as "LINK SUBNET"."""
        self.host.around = surroundings(*addresses, routes=routes, nameservers=nameservers)


@contextmanager
def node_on(directory: Path, **rules: int) -> Iterator[Node]:
    """A node that is closed at the end."""
    node = Node(directory, **rules)
    try:
        yield node
    finally:
        node.close()


def owner_of(of: str | Owner) -> Owner:
    """The owner, or the one that this container of `net1` is."""
    return of if isinstance(of, Owner) else owner(of)


def wanted(of: str | Owner, *requested: str, sets: tuple[RangeSet, ...], **more: Any) -> Wanted:
    """What the owner, or this container of `net1`, asks for."""
    return Wanted(owner=owner_of(of), range_sets=sets, requested=tuple(map(ip_address, requested)), **more)


def netns(name: str, inode: int = 1) -> NetnsRef:
    """A network namespace."""
    return NetnsRef(path=f"/run/netns/{name}", device=4, inode=inode)


def changed(sets: tuple[RangeSet, ...], **changes: object) -> tuple[RangeSet, ...]:
    """The only range of the only set, with these changes."""
    ((each,),) = (offer.ranges for offer in sets)
    return (RangeSet(ranges=(replace(each, **changes),)),)  # type: ignore[arg-type]  # whatever the test changes


def surroundings(*addresses: str, routes: tuple[str, ...] = (), nameservers: tuple[str, ...] = ()) -> Surroundings:
    """Surroundings in words: addresses as "LINK ADDRESS/LENGTH", routes as "LINK SUBNET"."""
    return Surroundings(
        addresses=tuple(
            LinkAddress(link=link, address=ip_interface(address)) for link, address in map(str.split, addresses)
        ),
        routes=tuple(HostRoute(dst=ip_network(dst), link=link) for link, dst in map(str.split, routes)),
        nameservers=tuple(map(ip_address, nameservers)),
    )
