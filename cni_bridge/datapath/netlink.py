"""The kernel's links, addresses and routes, in the vocabulary of this project: the only module that imports pyroute2.

A `Netlink` belongs to the network namespace in which its thread was when it was opened (rtnetlink(7)).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.datapath.messages import (
    IFF_ALLMULTI,
    IFF_PROMISC,
    NO_NSID,
    AddressState,
    Link,
    parse_address,
    parse_destination,
    parse_link,
    parse_routes,
)
from ipam.api import Address, Interface, Network, Route

IFA_F_NODAD = 0x02
BR_STATE_DISABLED = 0
_UNSIGNED_NO_NSID = 0xFFFFFFFF  # NETNSA_NSID_NOT_ASSIGNED
BRIDGE_VLAN_INFO_PVID = 2
BRIDGE_VLAN_INFO_UNTAGGED = 4
_RTN_LOCAL = 2
RT_TABLE_LOCAL = 255  # rtnetlink(7)
_AF = {4: 2, 6: 10}


class Netlink:
    """A netlink socket of one network namespace."""

    def __init__(self) -> None:
        self._ip = IPRoute()
        self._namespace = Path("/proc/thread-self/ns/net").stat()

    def close(self) -> None:
        """Close the socket."""
        self._ip.close()

    def link(self, name: str) -> Link | None:
        """The link of that name."""
        return self._get(ifname=name)

    def link_at(self, index: int) -> Link | None:
        """The link with that index."""
        return self._get(index=index)

    def nsid(self, fd: int) -> int:
        """The number that this socket's namespace has for the one of that descriptor; `NO_NSID` if it has none."""
        with _refusals("look up a namespace"):
            number = self._ip.get_netnsid(fd=fd)["nsid"]
        return NO_NSID if number == _UNSIGNED_NO_NSID else int(number)

    def leads_to(self, link: Link, inside: Netlink, fd: int, ifname: str) -> bool:
        """Whether the veth's other end is the interface of that name in the namespace of `inside` and `fd`.

        Indexes alone do not tell: every namespace counts its own.
        """
        peer = inside.link(ifname)
        if link.kind != "veth" or peer is None or (link.peer, peer.peer) != (peer.index, link.index):
            return False
        if link.peer_nsid == NO_NSID:  # the other end is in this namespace
            return os.path.samestat(os.fstat(fd), self._namespace)
        return link.peer_nsid == self.nsid(fd)

    def links(self) -> list[Link]:
        """Every link: for what is done now and then, never for one attachment."""
        with _refusals("list links"):
            return [parse_link(each) for each in self._ip.get_links()]

    def add_bridge(self, name: str, *, mac: str, mtu: int) -> None:
        """Make a bridge with a MAC address that does not change with its ports, and bring it up."""
        with _refusals(f"make bridge {name}"):
            self._ip.link("add", ifname=name, kind="bridge", address=mac, state="up", **_given(mtu=mtu))

    def add_veth(
        self, name: str, *, mac: str, mtu: int, master: int, peer: str, peer_mac: str, peer_netns: int | None
    ) -> None:
        """Make a veth pair in one message: this end a port of the bridge, up, the peer where it belongs.

        `peer_netns` is a descriptor of the peer's namespace, None for this one. The kernel chooses a MAC that is empty.
        """
        inside = {"ifname": peer, **_given(address=peer_mac, mtu=mtu)}
        if peer_netns is not None:
            inside["net_ns_fd"] = peer_netns
        with _refusals(f"make veth {name} with peer {peer}"):
            self._ip.link(
                "add",
                ifname=name,
                kind="veth",
                master=master,
                state="up",
                peer=inside,
                **_given(address=mac, mtu=mtu),
            )

    def set_alias(self, name: str, alias: str) -> None:
        """Set the link's alias, which `ip -d link` shows."""
        with _refusals(f"set the alias of {name}"):
            self._ip.link("set", ifname=name, ifalias=alias)

    def set_link(self, index: int, **changes: Any) -> None:
        """Change attributes of the link: state, mtu, address, master."""
        with _refusals(f"change link {index} to {changes}"):
            self._ip.link("set", index=index, **changes)

    def set_promisc(self, link: Link, *, on: bool) -> None:
        """Put the link into promiscuous mode, or out of it."""
        with _refusals(f"set promiscuous mode of {link.name}"):
            self._ip.link("set", index=link.index, flags=IFF_PROMISC if on else 0, mask=IFF_PROMISC)

    def set_allmulti(self, link: Link, *, on: bool) -> None:
        """Have the link take all multicast frames, or not."""
        with _refusals(f"set allmulti of {link.name}"):
            self._ip.link("set", index=link.index, flags=IFF_ALLMULTI if on else 0, mask=IFF_ALLMULTI)

    def add_ifb(self, name: str, *, mtu: int, alias: str) -> None:
        """Make an intermediate functional block, up."""
        with _refusals(f"make ifb {name}"):
            self._ip.link("add", ifname=name, kind="ifb", mtu=mtu, state="up")
        self.set_alias(name, alias)

    def change_tc(self, what: str, command: str, *args: Any, **values: Any) -> None:
        """Change queueing disciplines or filters; `what` is for messages, the rest pyroute2's `IPRoute.tc`."""
        with _refusals(what):
            self._ip.tc(command, *args, **values)

    def qdiscs(self, index: int) -> list[Any]:
        """The link's queueing disciplines, as pyroute2's messages."""
        with _refusals(f"list queueing disciplines of link {index}"):
            return list(self._ip.get_qdiscs(index=index))

    def filters(self, index: int, parent: int) -> list[Any]:
        """The filters of the link's discipline with that handle, as pyroute2's messages."""
        with _refusals(f"list filters of link {index}"):
            return list(self._ip.get_filters(index=index, parent=parent))

    def set_vlan_filtering(self, link: Link) -> None:
        """Turn the bridge's VLAN filtering on."""
        with _refusals(f"turn on VLAN filtering of {link.name}"):
            self._ip.link("set", index=link.index, kind="bridge", br_vlan_filtering=1)

    def set_port(self, index: int, *, hairpin: bool, isolated: bool) -> None:
        """Set the flags of a bridge port."""
        with _refusals(f"set the flags of bridge port {index}"):
            self._ip.brport("set", index=index, mode=int(hairpin), isolated=int(isolated))

    def add_vlan(self, index: int, vlan: int, *, native: bool) -> None:
        """Let the port carry the VLAN; `native`: untagged, and where untagged frames go."""
        flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED if native else 0
        with _refusals(f"add VLAN {vlan} to bridge port {index}"):
            self._ip.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": flags})

    def delete_vlan(self, index: int, vlan: int) -> None:
        """Take the VLAN off the port; off already is success."""
        try:
            with _refusals(f"take VLAN {vlan} off bridge port {index}"):
                self._ip.vlan_filter("del", index=index, vlan_info={"vid": vlan})
        except KernelRefused as error:
            if error.errno != errno.ENOENT:
                raise

    def delete_link(self, name: str) -> bool:
        """Delete the link; False if it is not there."""
        try:
            with _refusals(f"delete link {name}"):
                self._ip.link("del", ifname=name)
        except KernelRefused as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def addresses(self, index: int) -> list[AddressState]:
        """The addresses of the link."""
        with _refusals(f"list addresses of link {index}"):
            return [parse_address(each) for each in self._ip.get_addr(index=index)]

    def all_addresses(self) -> list[tuple[int, Interface]]:
        """Every address of every link, with the link's index."""
        with _refusals("list addresses"):
            return [(each["index"], parse_address(each).address) for each in self._ip.get_addr()]

    def all_routes(self) -> list[tuple[int, Network]]:
        """Every route's destination in every table but the local one, with a link's index for each next hop; or 0."""
        with _refusals("list routes"):
            messages = [each for family in (2, 10) for each in self._ip.get_routes(family=family)]
        return [
            (index, parse_destination(each))
            for each in messages
            if (each.get("RTA_TABLE") or each["table"]) != RT_TABLE_LOCAL
            for index in {hop["oif"] for hop in each.get("RTA_MULTIPATH") or ()} or {each.get("RTA_OIF") or 0}
        ]

    def add_address(self, index: int, address: Interface, *, dad: bool) -> bool:
        """Add the address; False if the link has it already. Without `dad` an IPv6 address is usable at once."""
        flags = {"flags": IFA_F_NODAD} if address.version == 6 and not dad else {}
        broadcast = {"broadcast": str(address.network.broadcast_address)} if _has_broadcast(address) else {}
        return self._unless_there(
            f"add address {address} to link {index}",
            lambda: self._ip.addr(
                "add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags, **broadcast
            ),
        )

    def delete_address(self, index: int, address: Interface) -> None:
        """Remove the address; removed already is success."""
        try:
            with _refusals(f"remove address {address} from link {index}"):
                self._ip.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        except KernelRefused as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise

    def append_route(self, index: int, route: Route) -> bool:
        """Add the route over the link, beside others to the same destination; False if it is there already."""
        scope = route.scope
        if scope is None and route.gw is None and route.dst.version == 4:
            scope = 253  # RT_SCOPE_LINK: the destination is on the link itself
        metrics = _given(mtu=route.mtu or 0, advmss=route.advmss or 0)
        values: dict[str, Any] = {
            "family": _AF[route.dst.version],
            "dst": str(route.dst),
            "oif": index,
            **({"gateway": str(route.gw)} if route.gw is not None else {}),
            **({"metrics": metrics} if metrics else {}),
            **({"priority": route.priority} if route.priority is not None else {}),
            **({"table": route.table} if route.table is not None else {}),
            **({"scope": scope} if scope is not None else {}),
        }
        via = f" via {route.gw}" if route.gw is not None else ""
        return self._unless_there(f"add route {route.dst}{via}", lambda: self._ip.route("append", **values))

    def add_local_route(self, index: int, address: Address) -> bool:
        """Have the host take packets for the address that come in by the link; False if it does already."""
        values = {"dst": f"{address}/{address.max_prefixlen}", "oif": index, "type": _RTN_LOCAL}
        return self._unless_there(
            f"add a local route to {address} on link {index}",
            lambda: self._ip.route("add", family=_AF[address.version], table=RT_TABLE_LOCAL, **values),
        )

    def delete_local_route(self, index: int, address: Address) -> None:
        """Undo `add_local_route`; undone already is success."""
        try:
            with _refusals(f"delete the local route to {address} on link {index}"):
                self._ip.route(
                    "del",
                    family=_AF[address.version],
                    table=RT_TABLE_LOCAL,
                    dst=f"{address}/{address.max_prefixlen}",
                    oif=index,
                    type=_RTN_LOCAL,
                )
        except KernelRefused as error:
            if error.errno != errno.ESRCH:
                raise

    def routes(self, index: int) -> list[Route]:
        """The routes over the link in every table but the local one."""
        with _refusals(f"list routes over link {index}"):
            found = [
                route
                for family in (2, 10)
                for each in self._ip.get_routes(family=family)
                for route in parse_routes(each, index)
            ]
        return [each for each in found if each.table != RT_TABLE_LOCAL]

    def has_ra_route(self, index: int) -> bool:
        """Whether a router advertisement gave the link a route."""
        with _refusals(f"list routes over link {index}"):
            return any(
                each["proto"] == 9 and each.get("RTA_OIF") == index  # RTPROT_RA
                for each in self._ip.get_routes(family=10)
            )

    def route_link(self, destination: Address) -> Link | None:
        """The link over which the kernel would send to the destination; nothing is sent."""
        return self._route_link(destination, lambda route: True)

    def neighbour_link(self, destination: Address) -> Link | None:
        """The link on which the destination is itself, no router being between; None if it is not on any."""
        return self._route_link(destination, lambda route: not route.get("RTA_GATEWAY"))

    def _route_link(self, destination: Address, which: Callable[[Any], bool]) -> Link | None:
        try:
            with _refusals(f"look up the route to {destination}"):
                found = list(self._ip.route("get", dst=str(destination), family=_AF[destination.version]))
        except KernelRefused:
            return None
        index = next((each.get("RTA_OIF") for each in found if which(each)), None)
        return self.link_at(index) if index is not None else None

    def _get(self, **selector: Any) -> Link | None:
        try:
            with _refusals(f"read link {selector}"):
                return next((parse_link(each) for each in self._ip.link("get", **selector)), None)
        except KernelRefused as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def _unless_there(self, purpose: str, change: Callable[[], object]) -> bool:
        try:
            with _refusals(purpose):
                change()
        except KernelRefused as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True


@contextmanager
def _refusals(purpose: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        reason = os.strerror(error.code).lower()
        raise KernelRefused(f"the kernel refused to {purpose}: {reason}", errno=error.code) from None


def _given(**values: int | str) -> dict[str, int | str]:
    """The values that are neither 0 nor empty."""
    return {key: value for key, value in values.items() if value}


def _has_broadcast(address: Interface) -> bool:
    return address.version == 4 and address.network.prefixlen < 31
