"""Ends connections that the kernel tracks to ports whose meaning has changed (nfnetlink, ctnetlink).

A flow of UDP or SCTP keeps the translation, or the lack of one, that its first packet met; TCP begins anew.
"""

from __future__ import annotations

import errno
import socket
import struct

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.cni.ports import Protocol
from cni_bridge.netlink_messages import NLM_F_ACK, NLM_F_DUMP, ask, attribute, nested, parse_attributes
from ipam import effects

_NETLINK_NETFILTER = 12
_CT_GET, _CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE
_CTA_TUPLE_ORIG, _CTA_ID, _CTA_ZONE, _CTA_FILTER = 1, 12, 18, 25
_CTA_TUPLE_PROTO = 2
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_CTA_FILTER_ORIG_FLAGS, _CTA_FILTER_REPLY_FLAGS = 1, 2
_F_PROTO_NUM, _F_PROTO_DST_PORT = 1 << 3, 1 << 5  # of the tuple's parts, those that the kernel compares
NUMBER = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: socket.IPPROTO_SCTP}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def end_connections(family: int, protocol: Protocol, first: int, last: int) -> int:
    """End what is tracked to these ports, as the first packet named them; how many there were.

    The kernel looks for one port itself; for more it is asked for all of the protocol.
    """
    header = struct.pack("=BBH", _FAMILY[family], 0, 0)
    parts = [attribute(_CTA_PROTO_NUM, bytes([NUMBER[protocol]]))]
    flags = _F_PROTO_NUM
    if first == last:
        parts.append(attribute(_CTA_PROTO_DST_PORT, struct.pack("!H", first)))
        flags |= _F_PROTO_DST_PORT
    question = header + nested(_CTA_TUPLE_ORIG, nested(_CTA_TUPLE_PROTO, *parts))
    question += nested(
        _CTA_FILTER,
        attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)),
        attribute(_CTA_FILTER_REPLY_FLAGS, struct.pack("=I", 0)),
    )
    ended = 0
    for answer in _ask_if_tracking(question):
        entry = parse_attributes(answer[4:])
        if first <= _port(entry[_CTA_TUPLE_ORIG], protocol) <= last and _end(header, entry):
            ended += 1
    return ended


def _ask_if_tracking(question: bytes) -> list[bytes]:
    """The entries; none where the kernel tracks nothing, for which nfnetlink has these errors."""
    try:
        return ask(_NETLINK_NETFILTER, _CT_GET, NLM_F_DUMP, question, what="list tracked connections")
    except KernelRefused as error:
        if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EINVAL):
            return []
        raise


def _port(tuple_: bytes, protocol: Protocol) -> int:
    """The destination port of a tuple; 0 if it is of another protocol."""
    proto = parse_attributes(parse_attributes(tuple_)[_CTA_TUPLE_PROTO])
    if proto[_CTA_PROTO_NUM] != bytes([NUMBER[protocol]]):
        return 0
    return int.from_bytes(proto.get(_CTA_PROTO_DST_PORT, b""), "big")


def _end(header: bytes, entry: dict[int, bytes]) -> bool:
    known = [attribute(kind, entry[kind]) for kind in (_CTA_ID, _CTA_ZONE) if kind in entry]
    message = header + nested(_CTA_TUPLE_ORIG, entry[_CTA_TUPLE_ORIG]) + b"".join(known)
    effects.change("end a tracked connection")
    try:
        ask(_NETLINK_NETFILTER, _CT_DELETE, NLM_F_ACK, message, what="end a tracked connection")
    except KernelRefused as error:
        if error.errno != errno.ENOENT:
            raise
        return False  # it has ended by itself
    return True
