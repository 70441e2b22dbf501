"""The messages between a plugin's client and `cni-bridged` as bytes (docs/daemon.md). Pure.

The daemon greets first, and a client sends nothing before: with socket activation a connection succeeds even while
nobody serves. Then one request and its reply, and the connection ends.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

MAGIC = b"cnib"
PROTOCOL = 1
DECLINED = 255  # the status that says: run it yourself, nothing was done
BODY_LIMIT = 24 << 20  # bytes; more than the most that may be on standard input, with any environment

GREETING_PATIENCE = 0.3  # seconds until a silent daemon counts as absent

HEADER = struct.Struct("!I")
_GREETING = struct.Struct("!4sBxH")
_REPLY = struct.Struct("!IIB")
GREETING_SIZE = _GREETING.size


class BadFrame(Exception):
    """Bytes that are no request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a plugin as its caller made it: the name called as, the environment, standard input."""

    name: str
    environ: Mapping[str, str]
    stdin: bytes


def render_greeting(patience: int) -> bytes:
    """What the daemon sends first; `patience`: seconds that the client is to wait for the reply."""
    return _GREETING.pack(MAGIC, PROTOCOL, min(patience, 0xFFFF))


def is_greeting(data: bytes) -> bool:
    """Whether these bytes are what the daemon sends first."""
    return len(data) == GREETING_SIZE and _GREETING.unpack(data)[:2] == (MAGIC, PROTOCOL)


def parse_call(body: bytes) -> Call:
    """The call in the body of a request: texts that end with NUL, the last of them empty, then standard input."""
    end = 0 if body.startswith(b"\0") else body.find(b"\0\0")
    if end < 0:
        raise BadFrame("the environment does not end")
    name, *variables = body[:end].decode(errors="surrogateescape").split("\0")
    pairs = (each.partition("=") for each in reversed(variables))  # of a variable given twice the first one counts
    return Call(name=name, environ={key: value for key, _, value in pairs}, stdin=body[end + 2 :])


def render_reply(status: int, stdout: str, stderr: str) -> bytes:
    """The reply: the exit status, and what the plugin is to print."""
    out, err = stdout.encode(errors="surrogateescape"), stderr.encode(errors="surrogateescape")
    return _REPLY.pack(len(out), len(err), status) + out + err
