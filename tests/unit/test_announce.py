"""The frames that announce an address, byte by byte."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from cni_bridge.datapath.announce import build_frame

MAC = "02:00:5e:10:00:01"
SOURCE = bytes.fromhex("02005e100001")


def ones_complement_sum(data: bytes) -> int:
    """The sum of RFC 1071 over the data, checksum included: 0xffff if that is right."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for position in range(0, len(data), 2):
        total += data[position] << 8 | data[position + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_ipv4_is_announced_by_a_broadcast_arp_request_for_itself() -> None:
    frame = build_frame(MAC, ip_address("10.88.0.2"))
    assert frame == (
        b"\xff" * 6 + SOURCE + b"\x08\x06"  # Ethernet: broadcast, ARP
        b"\x00\x01\x08\x00\x06\x04\x00\x01"  # Ethernet and IPv4 addresses, request
        + SOURCE + bytes([10, 88, 0, 2]) + bytes(6) + bytes([10, 88, 0, 2])
    )  # fmt: skip


@pytest.mark.parametrize("text", ["fd00:88::2", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::1"])
def test_ipv6_is_announced_by_an_advertisement_to_all_nodes(text: str) -> None:
    address = ip_address(text)
    all_nodes = ip_address("ff02::1").packed
    frame = build_frame(MAC, address)
    ethernet, ip, icmp = frame[:14], frame[14:54], frame[54:]
    assert ethernet == bytes.fromhex("333300000001") + SOURCE + b"\x86\xdd"
    version_class_flow, length, next_header, hop_limit = struct.unpack("!IHBB", ip[:8])
    assert (version_class_flow, length, next_header, hop_limit) == (0x60000000, len(icmp), 58, 255)
    assert (ip[8:24], ip[24:40]) == (address.packed, all_nodes)
    assert icmp[:2] == b"\x88\x00"  # neighbour advertisement
    assert icmp[4:8] == b"\x20\x00\x00\x00"  # unsolicited, not a router's, overriding
    assert icmp[8:24] == address.packed
    assert icmp[24:] == b"\x02\x01" + SOURCE  # target link-layer address, one unit of eight bytes
    pseudo_header = ip[8:40] + len(icmp).to_bytes(4, "big") + b"\0\0\0" + bytes([58])
    assert ones_complement_sum(pseudo_header + icmp) == 0xFFFF
