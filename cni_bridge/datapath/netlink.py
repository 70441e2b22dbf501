"""Asks the kernel for links, addresses and routes, and changes them (rtnetlink(7)); the only module of pyroute2.

What each attachment needs is said in messages of our own (`messages`): pyroute2 takes longer to import than an
attachment, and longer for a message than the kernel. The rest, queueing disciplines and VLANs, is pyroute2's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

from cni_bridge import trace
from cni_bridge.cni.errors import KernelRefused
from cni_bridge.datapath import messages
from cni_bridge.datapath.messages import (
    IFA_F_NODAD,
    IFF_ALLMULTI,
    IFF_PROMISC,
    IFF_UP,
    IPV4_DEVCONF_ARP_NOTIFY,
    IPV4_DEVCONF_ROUTE_LOCALNET,
    NO_NSID,
    RT_TABLE_LOCAL,
    RTN_LOCAL,
    RTPROT_RA,
    AddressState,
    Link,
    RouteState,
    address_request,
    link_question,
    link_request,
)
from cni_bridge.netlink_messages import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NetlinkSocket,
)
from ipam import effects
from ipam.api import Address, Interface, Network, Route

BR_STATE_DISABLED = 0
BRIDGE_VLAN_INFO_PVID = 2
BRIDGE_VLAN_INFO_UNTAGGED = 4
_NETLINK_ROUTE = 0
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_GETNSID = 90
_GET = 2
_MAKE = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
_SILENT = messages.family_settings({}, link_local=False)
_NOTIFYING = messages.family_settings({IPV4_DEVCONF_ARP_NOTIFY: 1})
_NOTIFYING_AND_SILENT = messages.family_settings({IPV4_DEVCONF_ARP_NOTIFY: 1}, link_local=False)


class Netlink:
    """A netlink socket of one network namespace."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(_NETLINK_ROUTE)
        self._namespace = os.stat("/proc/thread-self/ns/net")  # noqa: PTH116 - each attachment opens one
        self._pyroute2: Any = None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        if self._pyroute2 is not None:
            self._pyroute2.close()

    def link(self, name: str) -> Link | None:
        """The link of that name."""
        return self._get(link_question(name=name), f"read link {name}")

    def link_at(self, index: int) -> Link | None:
        """The link with that index."""
        return self._get(link_question(index=index), f"read link {index}")

    def nsid(self, fd: int) -> int:
        """The number that this socket's namespace has for the one of that descriptor; `NO_NSID` if it has none."""
        answers = self._ask(_RTM_GETNSID, NLM_F_ACK, messages.namespace_request(fd), "look up a namespace")
        return messages.parse_namespace(answers[0])

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
        return [
            messages.parse_link(each) for each in self._ask(_RTM_GETLINK, NLM_F_DUMP, link_question(), "list links")
        ]

    def ports(self, bridge: Link) -> list[Link]:
        """The ports of the bridge."""
        question = link_question(master=bridge.index)
        answers = self._ask(_RTM_GETLINK, NLM_F_DUMP, question, f"list the ports of {bridge.name}")
        return [link for each in answers if (link := messages.parse_link(each)).master == bridge.index]

    def add_bridge(self, name: str, *, mac: str, mtu: int) -> None:
        """Make a bridge with a MAC address that does not change with its ports, and bring it up."""
        wanted = link_request(name=name, flags=IFF_UP, mask=IFF_UP, mac=mac, mtu=mtu, info=messages.kind_info("bridge"))
        self._ask(_RTM_NEWLINK, _MAKE, wanted, f"make bridge {name}")

    def add_veth(
        self,
        name: str,
        *,
        mac: str,
        mtu: int,
        master: int,
        peer: str,
        peer_mac: str,
        peer_netns: int | None,
    ) -> None:
        """Make a veth pair in one message: this end a port of the bridge, up, the peer where it belongs.

        `peer_netns` is a descriptor of the peer's namespace, None for this one. The kernel chooses a MAC that is empty.
        """
        inside = link_request(name=peer, mac=peer_mac, mtu=mtu, namespace=peer_netns)
        info = messages.veth_info(inside)
        wanted = link_request(name=name, flags=IFF_UP, mask=IFF_UP, mac=mac, mtu=mtu, master=master, info=info)
        self._ask(_RTM_NEWLINK, _MAKE, wanted, f"make veth {name} with peer {peer}")

    def set_up_port(self, name: str, *, alias: str, hairpin: bool, isolated: bool) -> None:
        """Give a bridge port its alias, which `ip -d link` shows, and its flags; it needs no IPv6 address."""
        info = messages.port_info(hairpin=hairpin, isolated=isolated)

        def work(settings: bytes) -> None:
            wanted = link_request(name=name, alias=alias, info=info + settings)
            self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"set up bridge port {name}")

        self._if_it_has_ipv6(work, _SILENT, b"")

    def set_alias(self, name: str, alias: str) -> None:
        """Set the link's alias, which `ip -d link` shows."""
        self._ask(_RTM_NEWLINK, NLM_F_ACK, link_request(name=name, alias=alias), f"set the alias of {name}")

    def set_up(self, index: int, *, up: bool = True) -> None:
        """Bring the link up, or down."""
        wanted = link_request(index=index, flags=IFF_UP if up else 0, mask=IFF_UP)
        self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"bring link {index} {'up' if up else 'down'}")

    def set_down(self, name: str) -> bool:
        """Bring the link down; False if there is none."""
        wanted = link_request(name=name, mask=IFF_UP)
        what = f"bring {name} down"
        return self._unless(errno.ENODEV, lambda: self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, what))

    def set_arp_notify(self, index: int, *, up: bool, link_local: bool) -> None:
        """Have the link announce its IPv4 addresses when it comes up or its MAC address is set; bring it `up` too.

        Not `link_local`: it makes no IPv6 address of its own.
        """
        flag = IFF_UP if up else 0

        def work(settings: bytes) -> None:
            request = link_request(index=index, flags=flag, mask=flag, info=settings)
            what = f"set arp_notify of link {index}{' and bring it up' if up else ''}"
            self._ask(_RTM_NEWLINK, NLM_F_ACK, request, what)

        self._if_it_has_ipv6(work, _NOTIFYING if link_local else _NOTIFYING_AND_SILENT, _NOTIFYING)

    def _if_it_has_ipv6(self, work: Callable[[bytes], None], with_ipv6: bytes, without: bytes) -> None:
        """Set what is `with_ipv6`, or what is `without`: a link of less than 1,280 bytes has none, or the kernel."""
        try:
            work(with_ipv6)
        except KernelRefused as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
            work(without)

    def set_route_localnet(self, name: str, *, on: bool) -> bool:
        """Let packets from and to loopback addresses pass the link, or not; False if there is no such link."""
        wanted = link_request(name=name, info=messages.family_settings({IPV4_DEVCONF_ROUTE_LOCALNET: int(on)}))
        what = f"set route_localnet of {name} to {int(on)}"
        return self._unless(errno.ENODEV, lambda: self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, what))

    def set_link(
        self,
        index: int,
        *,
        mac: str = "",
        mtu: int = 0,
        master: int | None = None,
        tx_queue: int | None = None,
        group: int | None = None,
    ) -> None:
        """Change attributes of the link: those that are given."""
        wanted = link_request(index=index, mac=mac, mtu=mtu, master=master, tx_queue=tx_queue, group=group)
        given = {"mac": mac or None, "mtu": mtu or None, "master": master, "txqueuelen": tx_queue, "group": group}
        words = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"change link {index} to {words}")

    def set_promisc(self, link: Link, *, on: bool) -> None:
        """Put the link into promiscuous mode, or out of it."""
        wanted = link_request(index=link.index, flags=IFF_PROMISC if on else 0, mask=IFF_PROMISC)
        self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"set promiscuous mode of {link.name}")

    def set_allmulti(self, link: Link, *, on: bool) -> None:
        """Have the link take all multicast frames, or not."""
        wanted = link_request(index=link.index, flags=IFF_ALLMULTI if on else 0, mask=IFF_ALLMULTI)
        self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"set allmulti of {link.name}")

    def add_ifb(self, name: str, *, mtu: int) -> None:
        """Make an intermediate functional block, up."""
        wanted = link_request(name=name, flags=IFF_UP, mask=IFF_UP, mtu=mtu, info=messages.kind_info("ifb"))
        self._ask(_RTM_NEWLINK, _MAKE, wanted, f"make ifb {name}")

    def change_tc(self, what: str, command: str, *args: Any, **values: Any) -> None:
        """Change queueing disciplines or filters; `what` is for messages, the rest pyroute2's `IPRoute.tc`."""
        with _refusals(what):
            effects.change(what)
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
        wanted = link_request(index=link.index, info=messages.bridge_info(vlan_filtering=True))
        self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"turn on VLAN filtering of {link.name}")

    def set_nf_call(self, link: Link, *, on: bool) -> None:
        """Have what the bridge forwards pass the hooks of iptables whatever the namespace's setting is, or by that."""
        wanted = link_request(index=link.index, info=messages.bridge_info(nf_call=on))
        self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"set nf_call_iptables of {link.name} to {int(on)}")

    def set_port(self, index: int, *, hairpin: bool, isolated: bool) -> None:
        """Set the flags of a bridge port."""
        wanted = link_request(index=index, info=messages.port_info(hairpin=hairpin, isolated=isolated))
        self._ask(_RTM_NEWLINK, NLM_F_ACK, wanted, f"set the flags of bridge port {index}")

    def add_vlan(self, index: int, vlan: int, *, native: bool) -> None:
        """Let the port carry the VLAN; `native`: untagged, and where untagged frames go."""
        flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED if native else 0
        with _refusals(f"add VLAN {vlan} to bridge port {index}"):
            effects.change("add a VLAN")
            self._ip.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": flags})

    def delete_vlan(self, index: int, vlan: int) -> None:
        """Take the VLAN off the port; off already is success."""
        try:
            with _refusals(f"take VLAN {vlan} off bridge port {index}"):
                effects.change("take a VLAN off")
                self._ip.vlan_filter("del", index=index, vlan_info={"vid": vlan})
        except KernelRefused as error:
            if error.errno != errno.ENOENT:
                raise

    def delete_link(self, name: str) -> bool:
        """Delete the link; False if it is not there."""
        return self._unless(
            errno.ENODEV, lambda: self._ask(_RTM_DELLINK, NLM_F_ACK, link_request(name=name), f"delete link {name}")
        )

    def delete_this(self, link: Link) -> bool:
        """Delete the link, and none that has its name by now; False if it is not there."""
        wanted, what = link_request(index=link.index), f"delete link {link.name}"
        return self._unless(errno.ENODEV, lambda: self._ask(_RTM_DELLINK, NLM_F_ACK, wanted, what))

    def delete_group(self, group: int) -> None:
        """Delete every link of the group; none of them, if one cannot be deleted."""
        self._ask(_RTM_DELLINK, NLM_F_ACK, link_request(group=group), f"delete the links of group {group}")

    def addresses(self, index: int) -> list[AddressState]:
        """The addresses of the link."""
        answers = self._ask(_RTM_GETADDR, NLM_F_DUMP, address_request(index), f"list addresses of link {index}")
        return [state for link, state in map(messages.parse_address, answers) if link == index]

    def all_addresses(self) -> list[tuple[int, Interface]]:
        """Every address of every link, with the link's index."""
        trace.count("listings")
        answers = self._ask(_RTM_GETADDR, NLM_F_DUMP, address_request(0), "list addresses")
        return [(link, state.address) for link, state in map(messages.parse_address, answers)]

    def all_routes(self) -> list[tuple[int, Network]]:
        """Every route's destination in every table but the local one, with a link's index for each next hop; or 0."""
        found = (each for family in (4, 6) for each in self._routes(family))
        return list(dict.fromkeys((each.link, each.route.dst) for each in found if each.route.table != RT_TABLE_LOCAL))

    def add_address(self, index: int, address: Interface, *, dad: bool) -> bool:
        """Add the address; False if the link has it already. Without `dad` an IPv6 address is usable at once."""
        flags = IFA_F_NODAD if address.version == 6 and not dad else 0
        wanted = address_request(index, address, flags=flags)
        what = f"add address {address} to link {index}"
        return self._unless(errno.EEXIST, lambda: self._ask(_RTM_NEWADDR, _MAKE, wanted, what))

    def delete_address(self, index: int, address: Interface) -> None:
        """Remove the address; removed already is success."""
        unwanted, what = address_request(index, address), f"remove address {address} from link {index}"
        self._unless(errno.EADDRNOTAVAIL, lambda: self._ask(_RTM_DELADDR, NLM_F_ACK, unwanted, what))

    def append_route(self, index: int, route: Route) -> bool:
        """Add the route over the link, beside others to the same destination; False if it is there already."""
        via = f" via {route.gw}" if route.gw is not None else ""
        wanted, what = messages.route_request(route, index), f"add route {route.dst}{via}"
        flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND
        return self._unless(errno.EEXIST, lambda: self._ask(_RTM_NEWROUTE, flags, wanted, what))

    def add_local_route(self, index: int, address: Address) -> bool:
        """Have the host take packets for the address that come in by the link; False if it does already."""
        wanted = messages.route_request(_local(address), index, kind=RTN_LOCAL)
        what = f"add a local route to {address} on link {index}"
        return self._unless(errno.EEXIST, lambda: self._ask(_RTM_NEWROUTE, _MAKE, wanted, what))

    def delete_local_route(self, index: int, address: Address) -> None:
        """Undo `add_local_route`; undone already is success."""
        unwanted = messages.route_request(_local(address), index, kind=RTN_LOCAL)
        what = f"delete the local route to {address} on link {index}"
        self._unless(errno.ESRCH, lambda: self._ask(_RTM_DELROUTE, NLM_F_ACK, unwanted, what))

    def routes(self, index: int) -> list[Route]:
        """The routes over the link in every table but the local one."""
        found = (each for family in (4, 6) for each in self._routes(family, index))
        return [each.route for each in found if each.link == index and each.route.table != RT_TABLE_LOCAL]

    def has_ra_route(self, index: int) -> bool:
        """Whether a router advertisement gave the link a route."""
        return any(each.protocol == RTPROT_RA and each.link == index for each in self._routes(6, index))

    def route_link(self, destination: Address) -> Link | None:
        """The link over which the kernel would send to the destination; nothing is sent."""
        return self._route_link(destination, lambda route: True)

    def neighbour_link(self, destination: Address) -> Link | None:
        """The link on which the destination is itself, no router being between; None if it is not on any."""
        return self._route_link(destination, lambda route: route.gw is None)

    def _route_link(self, destination: Address, which: Callable[[Route], bool]) -> Link | None:
        question, what = messages.lookup_request(destination), f"look up the route to {destination}"
        try:
            answers = self._ask(_RTM_GETROUTE, NLM_F_ACK, question, what)
        except KernelRefused:
            return None
        found = (each for answer in answers for each in messages.parse_routes(answer))
        index = next((each.link for each in found if which(each.route)), 0)
        return self.link_at(index) if index else None

    def _routes(self, family: int, link: int | None = None) -> list[RouteState]:
        if link is None:
            trace.count("listings")
        question = messages.routes_request(family, link)
        try:
            answers = self._ask(_RTM_GETROUTE, NLM_F_DUMP, question, "list routes")
        except KernelRefused as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # a kernel without IPv6
                return []
            raise
        return [each for answer in answers for each in messages.parse_routes(answer)]

    def _get(self, question: bytes, what: str) -> Link | None:
        try:
            answers = self._ask(_RTM_GETLINK, NLM_F_ACK, question, what)
        except KernelRefused as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return messages.parse_link(answers[0])

    def _unless(self, number: int, change: Callable[[], object]) -> bool:
        """Make the change; False if the kernel refuses with that error number."""
        try:
            change()
        except KernelRefused as error:
            if error.errno == number:
                return False
            raise
        return True

    def _ask(self, kind: int, flags: int, payload: bytes, what: str) -> list[bytes]:
        if kind % 4 != _GET:  # rtnetlink(7) numbers its messages so: new, delete, get, set
            effects.change(what)
        return self._socket.ask(kind, flags, payload, what=what)

    @property
    def _ip(self) -> Any:
        """pyroute2's socket of this thread's namespace, which has to be this socket's."""
        if self._pyroute2 is None:
            from pyroute2 import IPRoute  # takes 100 ms, and few attachments need it

            self._pyroute2 = IPRoute()
        return self._pyroute2


def _local(address: Address) -> Route:
    return Route(dst=ip_network(address), table=RT_TABLE_LOCAL)


@contextmanager
def _refusals(purpose: str) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        reason = os.strerror(error.code).lower()
        raise KernelRefused(f"the kernel refused to {purpose}: {reason}", errno=error.code) from None
