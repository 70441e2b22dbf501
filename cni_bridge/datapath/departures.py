"""Hears which links of the host are gone, of the kernel's own news (rtnetlink(7), RTNLGRP_LINK)."""

from __future__ import annotations

import errno
import socket
import struct
from array import array
from collections.abc import Iterator

from cni_bridge.datapath.messages import parse_link_index
from cni_bridge.netlink_messages import HEADER_SIZE

_NETLINK_ROUTE = 0
_RTM_DELLINK = 17
_LINKS = 1  # RTNLGRP_LINK as a bit of the address
_SO_ATTACH_FILTER = 26
_BUFFER = 1 << 16  # bytes; a message of one link has two or three thousand

# Classic BPF (linux/filter.h): what concerns a link as such and says that it is gone passes, all else stays unread. The
# kernel takes halves as big endian, so the type is written as it lies in the message.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_HALF, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06
_TYPE_AT, _FAMILY_AT = 4, 16  # nlmsg_type of struct nlmsghdr, ifi_family of struct ifinfomsg after it
_PROGRAM = (
    (_LOAD_HALF, 0, 0, _TYPE_AT),
    (_IF_EQUAL, 0, 3, int.from_bytes(struct.pack("=H", _RTM_DELLINK), "big")),
    (_LOAD_BYTE, 0, 0, _FAMILY_AT),
    (_IF_EQUAL, 0, 1, socket.AF_UNSPEC),  # a bridge says with AF_BRIDGE that a port left it
    (_RETURN, 0, 0, 0xFFFFFFFF),
    (_RETURN, 0, 0, 0),
)


class Departures:
    """A socket in the network namespace of the calling thread; whoever waits for news reads when there is any.

    The kernel says that a link is gone when nobody can find it any more, and frees it long after: see `LinkDeleter`.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_ROUTE
        )
        try:
            program = array("B", b"".join(_INSTRUCTION.pack(*each) for each in _PROGRAM))
            pointer = struct.pack("@HP", len(_PROGRAM), program.buffer_info()[0])  # struct sock_fprog
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
            self._socket.bind((0, _LINKS))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, which is readable when there is news."""
        return self._socket.fileno()

    def indexes(self) -> Iterator[int]:
        """The links that went since the last time, without waiting. Some may be missing if they were very many."""
        while True:
            try:
                message = self._socket.recv(_BUFFER)
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # not all of it fit
                    continue
                return
            yield parse_link_index(message[HEADER_SIZE:])
