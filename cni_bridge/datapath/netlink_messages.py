"""Netlink messages as bytes, for subsystems that are asked a single question (netlink(7)). Pure, but for `ask`."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from cni_bridge.cni.errors import KernelRefused

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NESTED = 0x8000  # NLA_F_NESTED
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK
_HEADER = struct.Struct("=IHHII")
_BUFFER = 1 << 18  # bytes; the kernel fills at most 32 KiB of a dump at a time


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def parse_attributes(payload: bytes) -> dict[int, bytes]:
    """The attributes of a payload by their kind."""
    found, position = {}, 0
    while position + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, position)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = payload[position + 4 : position + length]
        position += length + (-length % 4)
    return found


def ask(protocol: int, kind: int, flags: int, payload: bytes, *, what: str) -> Iterator[bytes]:
    """The payloads of the answers, in the network namespace of the calling thread.

    `KernelRefused` names `what`; a kernel without the subsystem (ENOENT, EPROTONOSUPPORT) has nothing to answer.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
            sock.bind((0, 0))
            sock.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, 1, 0) + payload)
            yield from _answers(sock, what)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EPROTONOSUPPORT):
            raise KernelRefused(f"cannot {what}: {error.strerror}", errno=error.errno or 0) from None


def _answers(sock: socket.socket, what: str) -> Iterator[bytes]:
    while True:
        data, position = sock.recv(_BUFFER), 0
        while position + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, position)
            payload = data[position + _HEADER.size : position + length]
            position += length + (-length % 4)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", payload)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                return
            yield payload
