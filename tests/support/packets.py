"""Builds frames by hand, as no socket would send them."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

SCTP = 132
_SYN = 0x02
_BROADCAST = "ff:ff:ff:ff:ff:ff"


def ethernet(src: str, dst: str, kind: int, payload: bytes) -> bytes:
    """A frame between two MAC addresses."""
    return bytes.fromhex(dst.replace(":", "") + src.replace(":", "")) + struct.pack("!H", kind) + payload


def arp(src: str, sender: str, target: str) -> bytes:
    """A broadcast ARP question for `target`, as if from `sender` (RFC 826)."""
    mac = bytes.fromhex(src.replace(":", ""))
    addresses = (ip_address(sender).packed, bytes(6), ip_address(target).packed)
    return ethernet(src, _BROADCAST, 0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + b"".join(addresses))


def ip(macs: tuple[str, str], ends: tuple[str, str], protocol: int, payload: bytes) -> bytes:
    """A frame with an IP packet; both pairs are source and destination. Checksums of UDP and TCP are put in."""
    src, dst = (ip_address(each).packed for each in ends)
    at = {socket.IPPROTO_UDP: 6, socket.IPPROTO_TCP: 16}.get(protocol)
    if at is not None:
        pseudo = src + dst + struct.pack("!II", len(payload), protocol)
        payload = payload[:at] + struct.pack("!H", _checksum(pseudo + payload)) + payload[at + 2 :]
    if len(src) == 16:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return ethernet(*macs, 0x86DD, header + src + dst + payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + src + dst
    return ethernet(*macs, 0x0800, header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + payload)


def udp(macs: tuple[str, str], ends: tuple[str, str], port: int, text: bytes) -> bytes:
    """A frame with a UDP datagram to this port."""
    return ip(macs, ends, socket.IPPROTO_UDP, struct.pack("!HHHH", 5000, port, 8 + len(text), 0) + text)


def tcp_syn(macs: tuple[str, str], ends: tuple[str, str], port: int) -> bytes:
    """A frame that begins a TCP connection to this port."""
    return ip(macs, ends, socket.IPPROTO_TCP, struct.pack("!HHIIBBHHH", 5000, port, 1, 0, 0x50, _SYN, 1024, 0, 0))


def sctp_init(macs: tuple[str, str], ends: tuple[str, str], port: int) -> bytes:
    """A frame that begins an SCTP association with this port (RFC 9260, section 3.3.2)."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)
    packet = struct.pack("!HHII", 5000, port, 0, 0) + chunk
    return ip(macs, ends, SCTP, packet[:8] + sctp_checksum(packet) + packet[12:])


def sctp_checksum(packet: bytes) -> bytes:
    """The checksum of an SCTP packet, whatever is in its place now (RFC 9260, appendix A: CRC32c)."""
    crc = 0xFFFFFFFF
    for byte in packet[:8] + bytes(4) + packet[12:]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def transport(frame: bytes) -> tuple[int, bytes]:
    """The transport protocol and its packet; 0 and nothing if it is no IP packet."""
    if frame[12:14] == b"\x08\x00":
        return frame[23], frame[14 + (frame[14] & 15) * 4 : 14 + struct.unpack_from("!H", frame, 16)[0]]
    if frame[12:14] == b"\x86\xdd":
        return frame[20], frame[54:]
    return 0, b""


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
