"""The messages of rtnetlink(7) as links, addresses and routes of this project, and back. Pure."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_interface, ip_network

from cni_bridge.netlink_messages import attribute, nested, parse_attributes
from ipam.api import Address, Interface, Route

IFF_UP = 0x1
IFF_PROMISC = 0x100
IFF_ALLMULTI = 0x200
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
NO_NSID = -1
RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255
RTN_UNICAST = 1
RTN_LOCAL = 2

_RT_SCOPE_LINK = 253
_RTPROT_STATIC = 4
RTPROT_RA = 9

_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg
_IFADDR = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_HOP = struct.Struct("=HBBi")  # struct rtnexthop
_U32 = struct.Struct("=I")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_TXQLEN, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_LINK_NETNSID = 13, 18, 20, 27, 28, 37
_WITHOUT_STATISTICS = attribute(29, struct.pack("=I", 1 << 3))  # IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_IFLA_AF_SPEC, _INET_CONF, _INET6_ADDR_GEN_MODE = 26, 1, 8
_IN6_ADDR_GEN_MODE_NONE = 1
IPV4_DEVCONF_ARP_NOTIFY, IPV4_DEVCONF_ROUTE_LOCALNET = 22, 26
_BRPORT_STATE, _BRPORT_MODE, _BRPORT_ISOLATED = 1, 4, 33
_BR_VLAN_FILTERING, _BR_NF_CALL_IPTABLES, _BR_NF_CALL_IP6TABLES, _BR_VLAN_DEFAULT_PVID = 7, 36, 37, 39
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 8, 9, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_NETNSA_NSID, _NETNSA_FD = 1, 3
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSION: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_INTERFACES_KEPT = 1024  # bridges are asked for theirs with each attachment
_EVERYWHERE = {socket.AF_INET: ip_network("0.0.0.0/0"), socket.AF_INET6: ip_network("::/0")}


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
    nf_call: bool  # IFLA_BR_NF_CALL_IPTABLES and _IP6TABLES: what it bridges passes the hooks of iptables
    default_vlan: int  # IFLA_BR_VLAN_DEFAULT_PVID: the VLAN that a new port of this bridge is in
    port_state: int
    hairpin: bool
    isolated: bool
    allmulti: bool
    tx_queue: int
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressState:
    """An address of a link."""

    address: Interface
    tentative: bool
    dad_failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteState:
    """A route, by one of its next hops, and the link over which that is; `protocol` tells who made it."""

    route: Route
    link: int
    protocol: int


def link_request(
    *,
    index: int = 0,
    name: str = "",
    flags: int = 0,
    mask: int = 0,
    mac: str = "",
    mtu: int = 0,
    master: int | None = None,
    alias: str = "",
    tx_queue: int | None = None,
    group: int | None = None,
    namespace: int | None = None,
    info: bytes = b"",
) -> bytes:
    """A message about a link, found by index or name: what it is to be, as far as it is given.

    `flags` are set where `mask` has bits; `namespace` is a descriptor; `info` an attribute made by a function below.
    """
    parts = [_IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, mask)]
    if name:
        parts.append(attribute(_IFLA_IFNAME, name.encode() + b"\0"))
    if mac:
        parts.append(attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))))
    if alias:
        parts.append(attribute(_IFLA_IFALIAS, alias.encode()))
    numbers = {
        _IFLA_MTU: mtu or None,
        _IFLA_MASTER: master,
        _IFLA_TXQLEN: tx_queue,
        _IFLA_GROUP: group,
        _IFLA_NET_NS_FD: namespace,
    }
    parts += [attribute(kind, _U32.pack(number)) for kind, number in numbers.items() if number is not None]
    return b"".join([*parts, info])


def link_question(*, index: int = 0, name: str = "", master: int | None = None) -> bytes:
    """A message that asks for a link, or lists those with that master."""
    named = attribute(_IFLA_IFNAME, name.encode() + b"\0") if name else b""
    below = attribute(_IFLA_MASTER, _U32.pack(master)) if master is not None else b""
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + named + below + _WITHOUT_STATISTICS


def kind_info(kind: str) -> bytes:
    """The attribute that makes a link one of that kind."""
    return nested(_IFLA_LINKINFO, attribute(_INFO_KIND, kind.encode()))


def veth_info(peer: bytes) -> bytes:
    """The attribute that makes a link a veth; `peer` is its other end, as `link_request` gives it."""
    data = nested(_INFO_DATA, nested(_VETH_INFO_PEER, peer))
    return nested(_IFLA_LINKINFO, attribute(_INFO_KIND, b"veth"), data)


@lru_cache
def port_info(*, hairpin: bool, isolated: bool) -> bytes:
    """The attribute with the flags of a bridge port."""
    flags = (attribute(_BRPORT_MODE, bytes([hairpin])), attribute(_BRPORT_ISOLATED, bytes([isolated])))
    return nested(_IFLA_LINKINFO, attribute(_INFO_SLAVE_KIND, b"bridge"), nested(_INFO_SLAVE_DATA, *flags))


def bridge_info(*, vlan_filtering: bool | None = None, nf_call: bool | None = None) -> bytes:
    """The attribute with what a bridge is to be set to; None leaves it as it is."""
    wanted = {
        _BR_VLAN_FILTERING: vlan_filtering,
        _BR_NF_CALL_IPTABLES: nf_call,
        _BR_NF_CALL_IP6TABLES: nf_call,
    }
    data = nested(_INFO_DATA, *(attribute(kind, bytes([on])) for kind, on in wanted.items() if on is not None))
    return nested(_IFLA_LINKINFO, attribute(_INFO_KIND, b"bridge"), data)


def family_settings(ipv4: Mapping[int, int], *, link_local: bool = True) -> bytes:
    """The attribute with a link's settings of IPv4, which are net.ipv4.conf.LINK.… too (linux/ip.h), and of IPv6.

    Not `link_local`: it makes no IPv6 address of its own, and says nothing by IPv6.
    """
    conf = nested(_INET_CONF, *(attribute(setting, _U32.pack(value)) for setting, value in ipv4.items()))
    families = [nested(socket.AF_INET, conf)] if ipv4 else []
    if not link_local:
        families.append(nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))))
    return nested(_IFLA_AF_SPEC, *families)


def parse_link_index(payload: bytes) -> int:
    """The index of the link in a message."""
    index: int = _IFINFO.unpack_from(payload)[2]
    return index


def parse_link(payload: bytes) -> Link:
    """The link in a message."""
    _, _, index, flags, _ = _IFINFO.unpack_from(payload)
    values = parse_attributes(payload[_IFINFO.size :])
    info = parse_attributes(values.get(_IFLA_LINKINFO, b""))
    kind = _text(info.get(_INFO_KIND, b""))
    is_port = _text(info.get(_INFO_SLAVE_KIND, b"")) == "bridge"
    port = parse_attributes(info.get(_INFO_SLAVE_DATA, b"")) if is_port else {}
    bridge = parse_attributes(info.get(_INFO_DATA, b"")) if kind == "bridge" else {}
    return Link(
        index=index,
        name=_text(values.get(_IFLA_IFNAME, b"")),
        kind=kind,
        mac=values.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(values.get(_IFLA_MTU, b"")),
        up=bool(flags & IFF_UP),
        promisc=bool(flags & IFF_PROMISC),
        master=_number(values.get(_IFLA_MASTER, b"")),
        alias=_text(values.get(_IFLA_IFALIAS, b"")),
        peer=_number(values.get(_IFLA_LINK, b"")),
        peer_nsid=_signed(values[_IFLA_LINK_NETNSID]) if _IFLA_LINK_NETNSID in values else NO_NSID,
        vlan_filtering=bool(_number(bridge.get(_BR_VLAN_FILTERING, b""))),
        nf_call=all(_number(bridge.get(kind, b"")) for kind in (_BR_NF_CALL_IPTABLES, _BR_NF_CALL_IP6TABLES)),
        default_vlan=(_number(bridge.get(_BR_VLAN_DEFAULT_PVID, b"")) or 1) if kind == "bridge" else 0,
        port_state=_number(port.get(_BRPORT_STATE, b"")),
        hairpin=bool(_number(port.get(_BRPORT_MODE, b""))),
        isolated=bool(_number(port.get(_BRPORT_ISOLATED, b""))),
        allmulti=bool(flags & IFF_ALLMULTI),
        tx_queue=_number(values.get(_IFLA_TXQLEN, b"")),
        group=_number(values.get(_IFLA_GROUP, b"")),
    )


def address_request(index: int, address: Interface | None = None, *, flags: int = 0) -> bytes:
    """A message about an address of a link, or about all of them."""
    if address is None:
        return _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, index)
    packed = address.ip.packed
    parts = [
        _IFADDR.pack(_FAMILY[address.version], address.network.prefixlen, flags, 0, index),
        attribute(_IFA_LOCAL, packed),
        attribute(_IFA_ADDRESS, packed),
    ]
    if address.version == 4 and address.network.prefixlen < 31:
        parts.append(attribute(_IFA_BROADCAST, address.network.broadcast_address.packed))
    return b"".join(parts)


def parse_address(payload: bytes) -> tuple[int, AddressState]:
    """The index of the link in a message, and its address."""
    _, length, flags, _, index = _IFADDR.unpack_from(payload)
    values = parse_attributes(payload[_IFADDR.size :])
    flags = _number(values[_IFA_FLAGS]) if _IFA_FLAGS in values else flags
    return index, AddressState(
        address=_interface(values.get(_IFA_LOCAL) or values[_IFA_ADDRESS], length),
        tentative=bool(flags & IFA_F_TENTATIVE),
        dad_failed=bool(flags & IFA_F_DADFAILED),
    )


@lru_cache(_INTERFACES_KEPT)
def _interface(packed: bytes, length: int) -> Interface:
    return ip_interface((ip_address(packed), length))


def route_request(route: Route, link: int, *, kind: int = RTN_UNICAST) -> bytes:
    """A message about a route over the link; what it leaves open is as `ip route` has it."""
    scope = route.scope
    if scope is None:
        # In IPv4 a destination without a gateway is on the link itself.
        scope = _RT_SCOPE_LINK if route.gw is None and route.dst.version == 4 and kind == RTN_UNICAST else 0
    table = route.table if route.table is not None else RT_TABLE_MAIN
    header = (_FAMILY[route.dst.version], route.dst.prefixlen, 0, 0, min(table, 0xFF), _RTPROT_STATIC, scope, kind, 0)
    parts = [_ROUTE.pack(*header)]
    if route.dst.prefixlen:
        parts.append(attribute(_RTA_DST, route.dst.network_address.packed))
    if route.gw is not None:
        parts.append(attribute(_RTA_GATEWAY, route.gw.packed))
    metrics = {_RTAX_MTU: route.mtu, _RTAX_ADVMSS: route.advmss}
    given = [attribute(each, _U32.pack(number)) for each, number in metrics.items() if number]
    if given:
        parts.append(nested(_RTA_METRICS, *given))
    numbers = {_RTA_OIF: link, _RTA_TABLE: table, _RTA_PRIORITY: route.priority}
    parts += [attribute(each, _U32.pack(number)) for each, number in numbers.items() if number is not None]
    return b"".join(parts)


def routes_request(family: int, link: int | None = None) -> bytes:
    """A message that lists the routes of a family, 4 or 6; only those over the link, where the kernel can tell."""
    header = _ROUTE.pack(_FAMILY[family], 0, 0, 0, 0, 0, 0, 0, 0)
    return header + (attribute(_RTA_OIF, _U32.pack(link)) if link is not None else b"")


def lookup_request(destination: Address) -> bytes:
    """A message that asks which route a destination takes."""
    header = (_FAMILY[destination.version], destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    return _ROUTE.pack(*header) + attribute(_RTA_DST, destination.packed)


def parse_routes(payload: bytes) -> Iterator[RouteState]:
    """The route in a message, once for each of its next hops."""
    family, length, _, _, table, protocol, scope, _, _ = _ROUTE.unpack_from(payload)
    if family not in _VERSION:
        return
    values = parse_attributes(payload[_ROUTE.size :])
    dst = ip_network((values[_RTA_DST], length)) if _RTA_DST in values else _EVERYWHERE[family]
    metrics = parse_attributes(values.get(_RTA_METRICS, b""))
    only = [(_number(values.get(_RTA_OIF, b"")), values)]
    for link, hop in _hops(values[_RTA_MULTIPATH]) if _RTA_MULTIPATH in values else only:
        gateway = hop.get(_RTA_GATEWAY)
        yield RouteState(
            route=Route(
                dst=dst,
                gw=ip_address(gateway) if gateway else None,
                mtu=_number(metrics[_RTAX_MTU]) if _RTAX_MTU in metrics else None,
                advmss=_number(metrics[_RTAX_ADVMSS]) if _RTAX_ADVMSS in metrics else None,
                priority=_number(values[_RTA_PRIORITY]) if _RTA_PRIORITY in values else None,
                table=_number(values.get(_RTA_TABLE, b"")) or table,
                scope=scope,
            ),
            link=link,
            protocol=protocol,
        )


def _hops(packed: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    position = 0
    while position + _HOP.size <= len(packed):
        length, _, _, link = _HOP.unpack_from(packed, position)
        yield link, parse_attributes(packed[position + _HOP.size : position + length])
        position += max(length + (-length % 4), _HOP.size)


def namespace_request(fd: int) -> bytes:
    """A message that asks for the number of a namespace."""
    return bytes(4) + attribute(_NETNSA_FD, _U32.pack(fd))


def parse_namespace(payload: bytes) -> int:
    """The number of a namespace; `NO_NSID` if it has none."""
    return _signed(parse_attributes(payload[4:]).get(_NETNSA_NSID, b"\xff"))


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _signed(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder, signed=True)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
