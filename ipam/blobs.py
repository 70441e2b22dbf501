"""Addresses as numbers and as the blobs of the database: 128 bits that sort as addresses do.

IPv4 addresses are mapped ones (RFC 4291, 2.5.5.2), so one table serves both families. SQLite's integers have 63 bits.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from ipam.api import Address, Interface

_MAPPED_PREFIX = b"\0" * 10 + b"\xff" * 2
_MAPPED = 0xFFFF << 32
_PAST_THE_LAST = b"\xff" * 16 + b"\0"  # sorts behind every address


def to_number(address: Address) -> int:
    """The address as a number of 128 bits."""
    return int(address) if isinstance(address, IPv6Address) else _MAPPED + int(address)


def from_number(number: int) -> Address:
    """The address of that number."""
    return IPv4Address(number - _MAPPED) if number >> 32 == 0xFFFF else IPv6Address(number)


def to_blob(address: Address) -> bytes:
    """The address as the database stores it."""
    return address.packed if isinstance(address, IPv6Address) else _MAPPED_PREFIX + address.packed


def from_blob(blob: bytes) -> Address:
    """The address that the database stores as this blob."""
    return IPv4Address(blob[12:]) if blob.startswith(_MAPPED_PREFIX) else IPv6Address(blob)


def with_prefix(address: Address, length: int) -> Interface:
    """The address with that prefix length; `ip_interface` would write it out and parse it, twice."""
    kind = IPv6Interface if isinstance(address, IPv6Address) else IPv4Interface
    return kind((int(address), length))


def number_blob(number: int) -> bytes:
    """The number of an address, or the one behind the last, as the database stores it."""
    return number.to_bytes(16, "big") if number < 1 << 128 else _PAST_THE_LAST


def blob_number(blob: bytes) -> int:
    """The number that the database stores as this blob."""
    return int.from_bytes(blob, "big") if len(blob) == 16 else 1 << 128
