"""Netlink messages as bytes, so that asking costs little more than the kernel's answer (netlink(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from cni_bridge import trace
from cni_bridge.cni.errors import KernelRefused
from ipam import effects

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x10  # what was listed changed meanwhile
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NESTED = 0x8000  # NLA_F_NESTED
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
HEADER_SIZE = _HEADER.size
_INT = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_BUFFER = 1 << 18  # bytes; the kernel fills at most 32 KiB of a dump at a time
_ATTEMPTS = 50  # at a listing that others change


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def parse_attributes(payload: bytes) -> dict[int, bytes]:
    """The attributes of a payload by their kind; the last of several."""
    found, position, end = {}, 0, len(payload) - 3
    while position < end:
        length, kind = _ATTRIBUTE.unpack_from(payload, position)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = payload[position + 4 : position + length]
        position += length + (-length % 4)
    return found


def iterate_attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a payload, each with its kind, in order."""
    position = 0
    while position + 4 <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, position)
        if length < 4:
            return
        yield kind & _TYPE_MASK, payload[position + 4 : position + length]
        position += length + (-length % 4)


class TransactionRefused(Exception):
    """The kernel made none of the changes, for it refused one: at that position, -1 for the whole."""

    def __init__(self, reason: str, position: int, number: int) -> None:
        super().__init__(reason)
        self.position = position
        self.errno = number


class NetlinkSocket:
    """A socket of one netlink protocol, in the network namespace that the calling thread is in when it is made."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._sequence = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            with suppress(OSError):  # kernels before 4.20 have not all of them; they say less, and more is listed
                self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, kind: int, flags: int, payload: bytes, *, what: str) -> list[bytes]:
        """The payloads of the answers; `flags`: a dump, or an ACK. `KernelRefused` names `what` and the reason."""
        trace.count("messages")
        try:
            effects.ask(what)
            for _ in range(_ATTEMPTS):
                self._sequence = self._sequence % 0xFFFFFFFF + 1
                header = _HEADER.pack(_HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, self._sequence, 0)
                self._socket.send(header + payload)
                answers = self._answers()
                if answers is not None:
                    return answers
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        except OSError as error:
            raise KernelRefused(f"the kernel refused to {what}: {error.strerror}", errno=error.errno or 0) from None

    def transact(self, subsystem: int, messages: Sequence[tuple[int, int, bytes]], *, what: str) -> None:
        """Make all of these changes, one at least, or none; each is a type, flags and a payload.

        See linux/netfilter/nfnetlink.h. `TransactionRefused` tells which of them the kernel refused.
        """
        trace.count("messages")
        frame = bytes([0, 0]) + subsystem.to_bytes(2, "big")  # struct nfgenmsg
        first = self._sequence % 0xFFFF0000 + 1
        last = len(messages) - 1
        numbered = [
            (_BATCH_BEGIN, 0, frame),
            *(
                (kind, flags | (NLM_F_ACK if number == last else 0), each)
                for number, (kind, flags, each) in enumerate(messages)
            ),
            (_BATCH_END, 0, frame),
        ]
        self._sequence = first + len(numbered) - 1
        try:
            effects.ask(what)
            self._socket.send(
                b"".join(
                    _HEADER.pack(_HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, first + number, 0) + payload
                    for number, (kind, flags, payload) in enumerate(numbered)
                )
            )
            self._require_success(first, last)
        except OSError as error:
            raise KernelRefused(f"the kernel refused to {what}: {error.strerror}", errno=error.errno or 0) from None

    def _require_success(self, first: int, last: int) -> None:
        """Read that the last message is acknowledged; a refusal is told with the message's position.

        The kernel has said all when it takes the transaction, so nothing is waited for.
        """
        while True:
            data, position = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT), 0
            while position + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
                payload = data[position + _HEADER.size : position + length]
                position += length + (-length % 4)
                if kind != _NLMSG_ERROR or sequence < first:
                    continue
                number = -_INT.unpack_from(payload)[0]
                if number:
                    raise TransactionRefused(_reason(number, flags, payload), sequence - first - 1, number)
                if sequence == first + last + 1:
                    return

    def _answers(self) -> list[bytes] | None:
        """The payloads of one answer; None if it was interrupted by a change."""
        found: list[bytes] = []
        interrupted = False
        while True:
            data, position = self._socket.recv(_BUFFER), 0
            while position + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
                payload = data[position + _HEADER.size : position + length]
                position += length + (-length % 4)
                if sequence != self._sequence:  # left over from a request that was given up
                    continue
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_DONE:
                    return None if interrupted else found
                if kind == _NLMSG_ERROR:
                    number = -_INT.unpack_from(payload)[0]
                    if number == errno.EINTR:
                        return None
                    if number:
                        raise OSError(number, _reason(number, flags, payload))
                    return found
                found.append(payload)


def _reason(number: int, flags: int, payload: bytes) -> str:
    """The error in words, with what the kernel says of it where it says more."""
    reason = os.strerror(number).lower()
    if flags & _NLM_F_ACK_TLVS:
        start = _INT.size + (_HEADER.size if flags & _NLM_F_CAPPED else _HEADER.unpack_from(payload, _INT.size)[0])
        said = parse_attributes(payload[start:]).get(_NLMSGERR_ATTR_MSG, b"")
        return f"{reason} ({said.rstrip(bytes(1)).decode(errors='replace')})" if said else reason
    return reason


def ask(protocol: int, kind: int, flags: int, payload: bytes, *, what: str) -> list[bytes]:
    """The same with a socket of its own, for questions that are seldom asked."""
    try:
        asking = NetlinkSocket(protocol)
    except OSError as error:
        raise KernelRefused(f"the kernel refused to {what}: {error.strerror}", errno=error.errno or 0) from None
    try:
        return asking.ask(kind, flags, payload, what=what)
    finally:
        asking.close()
