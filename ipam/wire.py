"""The protocol between an IPAM client and `ipamd`: frames, greeting, requests and answers. Pure.

A frame is a 4-byte big-endian length and that many bytes of JSON. The daemon greets first; a client sends nothing
before, so a connection to a socket that nobody serves costs a short wait and nothing else. Then the client sends
one request at a time and the daemon answers each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ipam.api import Interface, Lease, Owner, Wanted
from ipam.codec import Json, decode, encode
from ipam.errors import IpamError, RequestRefused, by_name

PROTOCOL = 1
GREETING_PATIENCE = 0.3  # seconds until a silent daemon counts as absent
HEADER_SIZE = 4
FRAME_LIMIT = 4 << 20  # bytes; the largest message is a GC list, here of some 25 000 attachments

GREETING: Json = {"service": "cni-bridge-ipam", "protocol": PROTOCOL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocate:
    """`Ipam.allocate`."""

    wanted: Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """`Ipam.release`."""

    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """`Ipam.held`."""

    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`Ipam.check`."""

    wanted: Wanted
    addresses: tuple[Interface, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """`Ipam.collect`."""

    network: str
    keep: frozenset[Owner]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`Ipam.status`."""

    wanted: Wanted


Request = Allocate | Release | Held | Check | Collect | Status
_REQUESTS: dict[str, type[Request]] = {
    each.__name__: each for each in (Allocate, Release, Held, Check, Collect, Status)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a request; `leases` is empty but for `Allocate` and `Held`."""

    leases: tuple[Lease, ...] = ()


def pack(message: Json) -> bytes:
    """A frame of the message; `RequestRefused` if it is too large to send."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > FRAME_LIMIT:
        raise RequestRefused(f"a message of {len(body)} bytes exceeds the limit of {FRAME_LIMIT} bytes")
    return len(body).to_bytes(HEADER_SIZE, "big") + body


def body_size(header: bytes) -> int:
    """The size of the body that follows the header."""
    size = int.from_bytes(header, "big")
    if size > FRAME_LIMIT:
        raise RequestRefused(f"a frame of {size} bytes exceeds the limit of {FRAME_LIMIT} bytes")
    return size


def unpack(body: bytes) -> Json:
    """The message in a frame's body."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RequestRefused("a frame does not hold JSON") from None


def is_greeting(message: Json) -> bool:
    """Whether the message is the greeting of a daemon that speaks this protocol."""
    return isinstance(message, dict) and all(message.get(key) == value for key, value in GREETING.items())


def render_request(request: Request) -> Json:
    """The request as a message."""
    return {type(request).__name__: encode(request)}


def parse_request(message: Json) -> Request:
    """The request in a message."""
    if not isinstance(message, dict) or len(message) != 1:
        raise RequestRefused("a request is an object with one key, the operation")
    ((operation, arguments),) = message.items()
    if operation not in _REQUESTS:
        raise RequestRefused(f"unknown operation {str(operation)[:40]!r}; known are {', '.join(_REQUESTS)}")
    try:
        return decode(_REQUESTS[operation], arguments)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"malformed request: {error}") from None


def render_answer(leases: tuple[Lease, ...]) -> Json:
    """The answer to a request that succeeded."""
    return {"ok": encode(Answer(leases=leases))}


def render_failure(error: IpamError) -> Json:
    """The answer to a request that failed."""
    return {"error": {"kind": type(error).__name__, "message": str(error)}}


def parse_answer(message: Json) -> Answer:
    """The answer in a message; raises the failure it carries."""
    if isinstance(message, dict) and isinstance(failure := message.get("error"), dict):
        raise by_name(str(failure.get("kind")))(str(failure.get("message")))
    try:
        return decode(Answer, message["ok"])
    except (ValueError, TypeError, KeyError) as error:
        raise RequestRefused(f"malformed answer: {error}") from None
