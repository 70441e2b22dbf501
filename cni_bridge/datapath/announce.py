"""Tells the neighbours of a new address: unsolicited ARP (RFC 5227, section 3) and neighbour advertisements.

Without it, whoever talked to the address's former holder goes on sending to the old MAC address for a while.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from ipam.api import Address

_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_MAC = bytes.fromhex("333300000001")  # RFC 2464, section 7


def announce(ifname: str, mac: str, addresses: Iterable[Address]) -> None:
    """Send one frame for each address from the link, which is in the calling thread's network namespace."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((ifname, 0))
        for address in addresses:
            sock.send(build_frame(mac, address))


def build_frame(mac: str, address: Address) -> bytes:
    """The Ethernet frame that announces the address."""
    source = bytes.fromhex(mac.replace(":", ""))
    return _arp(source, address) if isinstance(address, IPv4Address) else _advertisement(source, address)


def _arp(source: bytes, address: IPv4Address) -> bytes:
    """An ARP request for one's own address (RFC 826)."""
    header = struct.pack("!6s6sH", _BROADCAST, source, 0x0806)
    request = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, source, address.packed, bytes(6), address.packed)
    return header + request


def _advertisement(source: bytes, address: IPv6Address) -> bytes:
    """An unsolicited advertisement to all nodes, overriding what they know (RFC 4861, sections 4.4 and 7.2.6)."""
    override = 0x20000000
    option = struct.pack("!BB6s", 2, 1, source)  # target link-layer address
    body = struct.pack("!I16s", override, address.packed) + option
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!II", len(body) + 4, socket.IPPROTO_ICMPV6)
    message = struct.pack("!BBH", 136, 0, 0) + body
    checked = struct.pack("!BBH", 136, 0, _checksum(pseudo + message)) + body
    ip = struct.pack("!IHBB", 6 << 28, len(checked), socket.IPPROTO_ICMPV6, 255) + address.packed + _ALL_NODES.packed
    return struct.pack("!6s6sH", _ALL_NODES_MAC, source, 0x86DD) + ip + checked


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
