"""The protocol between an IPAM client and `ipamd`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from ipam.api import AnySubnet, Dns, Lease, NetnsRef, RangeSet, Reservation, ReservedFor, Wanted
from ipam.clock import Moment
from ipam.errors import IpamError, RequestRefused, StoreFull
from ipam.ranges import build_range
from ipam.registry import Entry, Event, Finding, Happened, Moved, Origin, Place, Pool, PoolUse, Weight
from ipam.wire import (
    FRAME_LIMIT,
    GREETING,
    HEADER_SIZE,
    Adopt,
    Allocate,
    Answer,
    Check,
    Collect,
    Done,
    Entries,
    Events,
    Findings,
    Forget,
    Held,
    History,
    Leases,
    ListEntries,
    ListPools,
    Mend,
    Metrics,
    Pools,
    Release,
    Request,
    Reserve,
    Status,
    TakeBack,
    Text,
    Unreserve,
    Verify,
    body_size,
    is_greeting,
    pack,
    parse_answer,
    parse_request,
    render_answer,
    render_failure,
    render_request,
    unpack,
)
from tests.support.calls import OWNER, owner, range_sets

WANTED = Wanted(
    owner=OWNER,
    range_sets=(*range_sets(["10.0.0.0/24"], ["fd00::/64"]), RangeSet(any_subnet=AnySubnet(family=4), runtime=True)),
    requested=(ip_address("fd00::5"),),
    sticky="db",
    name="shop/web-0",
    mac="02:00:00:00:00:01",
    netns=NetnsRef(path="/run/netns/c1", device=4, inode=7),
    links=("cni0",),
    allow_overlap=True,
    dns=Dns(nameservers=("10.0.0.1",)),
)
LEASE = Lease(
    owner=OWNER,
    address=ip_interface("10.0.0.2/24"),
    gateway=ip_address("10.0.0.1"),
    since=datetime(2026, 1, 2, tzinfo=UTC),
    netns=NetnsRef(path="/run/netns/c1", device=4, inode=7),
)
ADDRESS = ip_address("10.0.0.2")
FOR_MAC = Reservation(kind=ReservedFor.MAC, value="02:00:00:00:00:01")
ENTRY = Entry(
    network="net1",
    address=ADDRESS,
    lease=LEASE,
    released=Moment(boot_id="a", seconds=60.25),
    reservation=FOR_MAC,
    suspect=Moment(boot_id="b", seconds=1.0),
    drawn_from=ip_address("10.0.0.1"),
)
POOL = Pool(
    network="net1",
    subnet=ip_network("10.0.0.0/24"),
    ranges=(build_range(ip_network("10.0.0.0/24")),),
    origin=Origin.DEFAULT,
    reason="first of all",
    shared=False,
    since=datetime(2026, 1, 2, tzinfo=UTC),
)
EVENT = Event(
    number=7,
    at=datetime(2026, 1, 2, tzinfo=UTC),
    happened=Happened.RESERVED,
    network="net1",
    address=ADDRESS,
    reservation=FOR_MAC,
)


def over_the_wire(message: object) -> object:
    """The message as the other side reads it."""
    frame = pack(message)
    size = body_size(frame[:HEADER_SIZE])
    assert len(frame) == HEADER_SIZE + size
    return unpack(frame[HEADER_SIZE:])


@pytest.mark.parametrize(
    "request_",
    [
        Allocate(wanted=WANTED),
        Allocate(wanted=Wanted(owner=OWNER)),
        Release(owner=OWNER),
        Held(owner=OWNER),
        Check(wanted=WANTED, addresses=(ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64"))),
        Collect(network="net1", keep=frozenset({OWNER, owner("c2")})),
        Collect(network="net1", keep=frozenset()),
        Status(wanted=WANTED),
        ListPools(),
        ListPools(network="net1"),
        ListEntries(),
        ListEntries(network="net1", after=Place(network="net1", address=ADDRESS), limit=5),
        History(),
        History(network="net1", address=ADDRESS, container="c1", before=7, limit=5),
        Reserve(network="net1", address=ADDRESS, reservation=FOR_MAC),
        Unreserve(network="net1", address=ADDRESS),
        TakeBack(owner=OWNER, address=ADDRESS),
        Forget(network="net1"),
        Adopt(wanted=WANTED, moved=(Moved(owner=OWNER, address=ADDRESS),), last=(ADDRESS, ip_address("fd00::9"))),
        Verify(),
        Mend(),
        Metrics(),
    ],
    ids=lambda each: type(each).__name__,
)
def test_requests(request_: Request) -> None:
    assert parse_request(over_the_wire(render_request(request_))) == request_


@pytest.mark.parametrize(
    "answer",
    [
        Done(),
        Leases(),
        Leases(leases=(LEASE,)),
        Pools(pools=(PoolUse(pool=POOL, capacity=1 << 64, leased=3, cooling=2, reserved=1),)),
        Entries(entries=(ENTRY, Entry(network="net1", address=ip_address("fd00::1"), reservation=FOR_MAC))),
        Events(events=(EVENT,)),
        Findings(findings=(Finding(weight=Weight.ERROR, what="x", mendable=True),)),
        Text(text="# HELP x\nx 1\n"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_answers(answer: Answer) -> None:
    assert parse_answer(type(answer), over_the_wire(render_answer(answer))) == answer


def test_an_answer_to_another_question_is_refused() -> None:
    with pytest.raises(RequestRefused, match="malformed answer"):
        parse_answer(Pools, over_the_wire(render_answer(Leases(leases=(LEASE,)))))


@pytest.mark.parametrize("kind", [IpamError, *IpamError.__subclasses__(), StoreFull], ids=lambda kind: kind.__name__)
def test_failures_arrive_as_they_were_raised(kind: type[IpamError]) -> None:
    with pytest.raises(IpamError) as caught:
        parse_answer(Done, over_the_wire(render_failure(kind('no "address" is free\n'))))
    assert type(caught.value) is kind
    assert str(caught.value) == 'no "address" is free\n'


def test_a_failure_of_an_unknown_kind_is_still_one() -> None:
    with pytest.raises(IpamError, match="the reason"):
        parse_answer(Done, {"error": {"kind": "FromTheFuture", "message": "the reason"}})


def test_a_message_up_to_the_limit_is_sent() -> None:
    body = "x" * (FRAME_LIMIT - 2)
    assert over_the_wire(body) == body
    with pytest.raises(RequestRefused, match=f"exceeds the limit of {FRAME_LIMIT} bytes"):
        pack(body + "x")


@pytest.mark.parametrize("size", [FRAME_LIMIT + 1, 0xFFFFFFFF])
def test_a_frame_over_the_limit_is_refused_by_its_header(size: int) -> None:
    with pytest.raises(RequestRefused, match=f"a frame of {size} bytes exceeds the limit"):
        body_size(size.to_bytes(HEADER_SIZE, "big"))


def test_collecting_among_ten_thousand_attachments_fits() -> None:
    keep = frozenset(owner(f"{number:064x}") for number in range(10_000))
    assert parse_request(over_the_wire(render_request(Collect(network="net1", keep=keep)))) == Collect(
        network="net1", keep=keep
    )


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"\0" * 8, b"[" * 100_000, b"GET / HTTP/1.1"])
def test_a_frame_without_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestRefused):
        unpack(body)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (None, "one key"),
        ([], "one key"),
        ("Release", "one key"),
        ({}, "one key"),
        ({"Release": {}, "Status": {}}, "one key"),
        ({"Explode": {}}, "unknown operation 'Explode'"),
        ({"Leases": {}}, "unknown operation 'Leases'"),
        ({"Release": None}, "malformed request: Release is not an object"),
        ({"Release": {}}, "malformed request"),
        ({"Release": {"owner": {"network": "n", "container_id": "c"}}}, "malformed request"),
        ({"Collect": {"network": "net1"}}, "malformed request"),
        ({"Verify": {"network": "net1"}}, "malformed request: Verify has unknown keys ['network']"),
        ({"Allocate": {"wanted": {"owner": {}, "range_sets": [{"ranges": []}]}}}, "malformed request"),
        ({"Collect": {"network": "net1", "keep": {}}}, "malformed request: Collect.keep is not a list"),
        ({"Allocate": {"wanted": {"owner": 5}}}, "malformed request: Allocate.wanted.owner is not an object"),
    ],
)
def test_garbage_for_a_request_is_refused(message: object, said: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_request(message)
    assert said in str(caught.value)


@pytest.mark.parametrize("message", [None, [], "ok", 5, {}, {"ok": 5}, {"ok": {"leases": [5]}}, {"error": "text"}])
def test_garbage_for_an_answer_is_refused(message: object) -> None:
    with pytest.raises(RequestRefused, match="malformed answer"):
        parse_answer(Leases, message)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (json.loads(json.dumps(GREETING)), True),
        ({**GREETING, "version": "0.2.0"}, True),
        ({**GREETING, "protocol": 1}, False),
        ({**GREETING, "protocol": 3}, False),
        ({**GREETING, "service": "other"}, False),
        ({}, False),
        ([], False),
        (None, False),
    ],
)
def test_greeting(message: object, expected: bool) -> None:
    assert is_greeting(message) is expected
