"""Which processes of the host listen at which ports (sock_diag(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.cni.ports import Protocol
from cni_bridge.datapath.conntrack import NUMBER
from cni_bridge.netlink_messages import NLM_F_DUMP, ask
from ipam.api import Address

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_LISTENING = {
    Protocol.TCP: 1 << 10,
    Protocol.SCTP: 1 << 10,
    Protocol.UDP: 1 << 7,
}  # TCP_LISTEN; TCP_CLOSE is unconnected
_ADDRESS_SIZE = {socket.AF_INET: 4, socket.AF_INET6: 16}
_MAPPED = b"\0" * 10 + b"\xff" * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket that listens; `address` None stands for every address of its family, and IPv6 for IPv4 too."""

    protocol: Protocol
    family: int
    address: Address | None
    port: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Who has a socket open."""

    pid: int
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"process {self.pid} ({Path(self.command[0]).name if self.command else '?'})"


def listeners(protocols: Iterable[Protocol]) -> Iterator[Listener]:
    """The sockets of these protocols that listen, in the network namespace of the calling thread."""
    for protocol in protocols:
        for family, number in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
            # struct inet_diag_req_v2: family, protocol, extensions, padding, states, and no socket in particular
            question = struct.pack("=BBBBI48x", family, NUMBER[protocol], 0, 0, _LISTENING[protocol])
            for answer in _ask_if_there(question):
                yield _listener(protocol, family, number, answer)


def _ask_if_there(question: bytes) -> list[bytes]:
    """The sockets; none where the kernel has no such protocol."""
    try:
        return ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, question, what="list sockets")
    except KernelRefused as error:
        if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT):
            return []
        raise


def _listener(protocol: Protocol, family: int, number: int, answer: bytes) -> Listener:
    # struct inet_diag_msg: 4 bytes, source and destination port, source address; the inode is the last of 5 words
    (port,) = struct.unpack_from("!H", answer, 4)
    packed = answer[8 : 8 + _ADDRESS_SIZE[socket.AddressFamily(family)]]
    (inode,) = struct.unpack_from("=I", answer, 68)
    if packed.startswith(_MAPPED) and len(packed) == 16:
        packed, number = packed[12:], 4
    address = ip_address(packed)
    return Listener(
        protocol=protocol, family=number, address=None if address.is_unspecified else address, port=port, inode=inode
    )


def holders(inode: int) -> Iterator[Process]:
    """The processes that have the socket open: a look into all of /proc, for when there is a conflict."""
    wanted = f"socket:[{inode}]"
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(each.readlink()) == wanted for each in (directory / "fd").iterdir()):
                command = (directory / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                yield Process(pid=int(directory.name), command=tuple(each.decode(errors="replace") for each in command))
        except OSError:  # it has ended meanwhile
            continue


def ancestors(process: int | None) -> set[int]:
    """The process, this one unless it is told, and those that started it."""
    found, pid = set(), process or os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found
