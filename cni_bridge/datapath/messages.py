"""The kernel's netlink messages as links, addresses and routes of this project. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from ipam.api import Interface, Network, Route

IFF_UP = 0x1
IFF_PROMISC = 0x100
IFF_ALLMULTI = 0x200
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
NO_NSID = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What the kernel says of a link; `port_state`, `hairpin` and `isolated` are those of a bridge port."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    promisc: bool
    master: int
    alias: str
    peer: int  # IFLA_LINK: the index of a veth's other end, in that end's namespace
    peer_nsid: int  # IFLA_LINK_NETNSID: the number that this namespace has for that one; NO_NSID for itself
    vlan_filtering: bool
    default_vlan: int  # IFLA_BR_VLAN_DEFAULT_PVID: the VLAN that a new port of this bridge is in
    port_state: int
    hairpin: bool
    isolated: bool
    allmulti: bool
    tx_queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressState:
    """An address of a link."""

    address: Interface
    tentative: bool
    dad_failed: bool


def parse_link(message: Any) -> Link:
    port = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
    bridge = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    kind = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
    return Link(
        index=message["index"],
        name=message.get("IFLA_IFNAME"),
        kind=kind,
        mac=(message.get("IFLA_ADDRESS") or "").lower(),
        mtu=message.get("IFLA_MTU") or 0,
        up=bool(message["flags"] & IFF_UP),
        promisc=bool(message["flags"] & IFF_PROMISC),
        master=message.get("IFLA_MASTER") or 0,
        alias=message.get("IFLA_IFALIAS") or "",
        peer=message.get("IFLA_LINK") or 0,
        peer_nsid=nsid if (nsid := message.get("IFLA_LINK_NETNSID")) is not None else NO_NSID,
        vlan_filtering=kind == "bridge" and bool(bridge.get("IFLA_BR_VLAN_FILTERING")),
        default_vlan=(bridge.get("IFLA_BR_VLAN_DEFAULT_PVID") or 1) if kind == "bridge" else 0,
        port_state=_port(port, "IFLA_BRPORT_STATE"),
        hairpin=bool(_port(port, "IFLA_BRPORT_MODE")),
        isolated=bool(_port(port, "IFLA_BRPORT_ISOLATED")),
        allmulti=bool(message["flags"] & IFF_ALLMULTI),
        tx_queue=message.get("IFLA_TXQLEN") or 0,
    )


def _port(data: Any, name: str) -> int:
    return int(data.get(name) or 0) if data is not None and hasattr(data, "get") else 0


def parse_address(message: Any) -> AddressState:
    flags = message.get("IFA_FLAGS") or message["flags"]
    local = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
    return AddressState(
        address=ip_interface(f"{local}/{message['prefixlen']}"),
        tentative=bool(flags & IFA_F_TENTATIVE),
        dad_failed=bool(flags & IFA_F_DADFAILED),
    )


def parse_destination(message: Any) -> Network:
    destination = message.get("RTA_DST")
    if not destination:
        return ip_network({2: "0.0.0.0/0", 10: "::/0"}[message["family"]])
    return ip_network(f"{destination}/{message['dst_len']}")


def parse_routes(message: Any, index: int) -> Iterator[Route]:
    """The routes in a message that lead over the link: one, or those of its next hops."""
    dst = parse_destination(message)
    metrics = message.get("RTA_METRICS")
    hops = message.get("RTA_MULTIPATH") or [message]
    for hop in hops:
        oif = hop["oif"] if hop is not message else message.get("RTA_OIF")
        if oif == index:
            gateway = hop.get("RTA_GATEWAY")
            yield Route(
                dst=dst,
                gw=ip_address(gateway) if gateway else None,
                mtu=metrics.get("RTAX_MTU") if metrics is not None else None,
                advmss=metrics.get("RTAX_ADVMSS") if metrics is not None else None,
                priority=message.get("RTA_PRIORITY"),
                table=message.get("RTA_TABLE") or message["table"],
                scope=message["scope"],
            )
