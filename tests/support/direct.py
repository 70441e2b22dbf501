"""Calls of a host's `cni-bridged` by this process: many at once, and such as no client makes."""

from __future__ import annotations

import json
import os
import socket
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from tests.support.bridged import SOCKET
from tests.support.host import BIN, Answer, Host, Json

_PATIENCE = 40  # seconds: longer than a request may take


class Direct:
    """A connection on which the daemon has greeted."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(_PATIENCE)
        self.socket.connect(f"/proc/{host.holder.pid}/root{SOCKET}")
        assert self.socket.recv(8).startswith(b"cnib\1")

    def __enter__(self) -> Direct:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send these bytes, with these descriptors."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        sent = self.socket.sendmsg([frame], rights)
        if sent < len(frame):  # else the daemon may have answered and left already
            self.socket.sendall(frame[sent:])

    def call(self, command: str, conf: Json, container: str, env: Mapping[str, str] | None = None) -> None:
        """Send a call as the client does in the host's namespaces."""
        root = f"/proc/{self._host.holder.pid}"
        paths = (f"{root}/ns/net", f"{root}/root/run/netns/{container}")
        descriptors = [os.open(each, os.O_RDONLY) for each in paths if os.path.exists(each)]  # noqa: PTH110
        try:
            self.send(frame(command, conf, container, env), descriptors)
        finally:
            for each in descriptors:
                os.close(each)

    def answer(self) -> Answer:
        """The reply."""
        out, err, status = struct.unpack("!IIB", self._exactly(9))
        return Answer(status, self._exactly(out).decode(), self._exactly(err).decode())

    def is_closed(self) -> bool:
        """Whether the daemon ends the connection without a reply."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self.socket.recv(size - len(found))
            assert more, "it ends without a reply"
            found += more
        return found


def frame(command: str, conf: Json, container: str, env: Mapping[str, str] | None = None) -> bytes:
    """A request as bytes."""
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": f"/run/netns/{container}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(BIN),
        **(env or {}),
    }
    texts = ["cni-bridge", *(f"{key}={value}" for key, value in environ.items()), "", ""]
    body = "\0".join(texts).encode() + json.dumps(conf).encode()
    return len(body).to_bytes(4, "big") + body


def at_once(host: Host, command: str, conf: Json, containers: Iterable[str]) -> list[Answer]:
    """The answers to calls for these containers, all sent before the first is received."""
    connections = {each: Direct(host) for each in containers}
    for container, each in connections.items():
        each.call(command, conf, container)
    answers = []
    for each in connections.values():
        with each:
            answers.append(each.answer())
    return answers
