"""The protocol between an IPAM client and `ipamd`: frames, greeting, requests and answers. Pure.

A frame is a 4-byte big-endian length and that many bytes of JSON. The daemon greets first; a client sends nothing
before, so a connection to a socket that nobody serves costs a short wait and nothing else. Then the client sends
one request at a time and the daemon answers each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeVar, get_args

from ipam.api import Address, Interface, Lease, Owner, Reservation, Wanted
from ipam.codec import Json, decode, encode
from ipam.errors import IpamError, RequestRefused, by_name
from ipam.registry import PAGE, Entry, Event, Finding, Moved, Place, PoolUse

T = TypeVar("T")

PROTOCOL = 2
GREETING_PATIENCE = 0.3  # seconds until a silent daemon counts as absent
HEADER_SIZE = 4
FRAME_LIMIT = 4 << 20  # bytes; the largest message is a GC list, here of some 25 000 attachments

GREETING: Json = {"service": "cni-bridge-ipam", "protocol": PROTOCOL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The answer to a request that has none but its success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """The answer to `Allocate` and `Held`."""

    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The answer to `ListPools`."""

    pools: tuple[PoolUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The answer to `ListEntries`."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The answer to `History`."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The answer to `Verify`."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The answer to `Metrics`."""

    text: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPools:
    """`Registry.pools`."""

    network: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListEntries:
    """`Registry.entries`; `limit` is at most `PAGE`."""

    network: str | None = None
    after: Place | None = None
    limit: int = PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """`Registry.history`; `limit` is at most `PAGE`."""

    network: str = ""
    address: Address | None = None
    container: str = ""
    before: int | None = None
    limit: int = PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """`Registry.reserve`."""

    network: str
    address: Address
    reservation: Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreserve:
    """`Registry.unreserve`."""

    network: str
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeBack:
    """`Registry.take_back`."""

    owner: Owner
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """`Registry.forget`."""

    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """`Registry.adopt`."""

    wanted: Wanted
    moved: tuple[Moved, ...]
    last: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """`Registry.verify`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """`Registry.mend`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The daemon's metrics in the Prometheus text format."""


Request = (
    Allocate
    | Release
    | Held
    | Check
    | Collect
    | Status
    | ListPools
    | ListEntries
    | History
    | Reserve
    | Unreserve
    | TakeBack
    | Forget
    | Adopt
    | Verify
    | Mend
    | Metrics
)
Answer = Done | Leases | Pools | Entries | Events | Findings | Text
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_REQUESTS: dict[str, type[Request]] = {each.__name__: each for each in get_args(Request)}


def pack(message: Json) -> bytes:
    """A frame of the message; `RequestRefused` if it is too large to send."""
    body = _ENCODER.encode(message).encode()
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


def render_answer(answer: Answer) -> Json:
    """The answer to a request that succeeded."""
    return {"ok": encode(answer)}


def render_failure(error: IpamError) -> Json:
    """The answer to a request that failed."""
    return {"error": {"kind": type(error).__name__, "message": str(error)}}


def parse_answer(kind: type[T], message: Json) -> T:
    """The answer of that kind in a message; raises the failure it carries."""
    if isinstance(message, dict) and isinstance(failure := message.get("error"), dict):
        raise by_name(str(failure.get("kind")))(str(failure.get("message")))
    try:
        return decode(kind, message["ok"])
    except (ValueError, TypeError, KeyError) as error:
        raise RequestRefused(f"malformed answer: {error}") from None
