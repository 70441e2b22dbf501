"""Netlink messages as bytes, for questions whose answer must not cost more than the question (netlink(7))."""

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
_NLM_F_DUMP_INTR = 0x10  # what was listed changed meanwhile
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NESTED = 0x8000  # NLA_F_NESTED
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK
_HEADER = struct.Struct("=IHHII")
_BUFFER = 1 << 18  # bytes; the kernel fills at most 32 KiB of a dump at a time
_ATTEMPTS = 50  # at a listing that others change


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def parse_attributes(payload: bytes) -> dict[int, bytes]:
    """The attributes of a payload by their kind; the last of several."""
    return dict(iterate_attributes(payload))


def iterate_attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a payload, each with its kind, in order."""
    position = 0
    while position + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, position)
        if length < 4:
            return
        yield kind & _TYPE_MASK, payload[position + 4 : position + length]
        position += length + (-length % 4)


def ask(protocol: int, kind: int, flags: int, payload: bytes, *, what: str) -> list[bytes]:
    """The payloads of the answers, in the network namespace of the calling thread; `flags`: a dump, or an ACK.

    `KernelRefused` names `what`, with the kernel's error number.
    """
    message = _HEADER.pack(_HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, 1, 0) + payload
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
            sock.bind((0, 0))
            for _ in range(_ATTEMPTS):
                sock.send(message)
                answers = _answers(sock)
                if answers is not None:
                    return answers
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))
    except OSError as error:
        raise KernelRefused(f"cannot {what}: {error.strerror}", errno=error.errno or 0) from None


def _answers(sock: socket.socket) -> list[bytes] | None:
    """The payloads of one answer; None if it was interrupted by a change."""
    found: list[bytes] = []
    interrupted = False
    while True:
        data, position = sock.recv(_BUFFER), 0
        while position + _HEADER.size <= len(data):
            length, kind, flags, *_ = _HEADER.unpack_from(data, position)
            payload = data[position + _HEADER.size : position + length]
            position += length + (-length % 4)
            interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            if kind == _NLMSG_DONE:
                return None if interrupted else found
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", payload)[0]
                if number == errno.EINTR:
                    return None
                if number:
                    raise OSError(number, os.strerror(number))
                return found
            found.append(payload)
