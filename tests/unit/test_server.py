"""The server with an IPAM or with clients that misbehave: what they are told, and that it serves on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from ipam import connection, wire
from ipam.api import Lease, Owner
from ipam.client import receive
from ipam.codec import Json
from ipam.metrics import Metrics
from ipam.registry import PAGE, Entry, Event, Place, PoolUse
from ipam.server import Server
from tests.support.calls import OWNER

T = TypeVar("T")
Ask = Callable[[wire.Request], Awaitable[Json]]


class Odd:
    """An `Ipam` and a `Registry` that fail, wait, and say too much."""

    def __init__(self) -> None:
        self.limits: list[int] = []

    async def release(self, _: Owner) -> None:
        raise ValueError("odd")

    async def held(self, _: Owner) -> tuple[Lease, ...]:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def collect(self, *_: object) -> None:
        pass

    async def pools(self, _: str | None = None) -> tuple[PoolUse, ...]:
        return ()

    async def entries(self, network: str | None, *, after: Place | None, limit: int) -> tuple[Entry, ...]:
        self.limits.append(limit)
        return ()

    async def history(self, *, limit: int, **_: object) -> tuple[Event, ...]:
        self.limits.append(limit)
        return ()


class Talkative(Metrics):
    """Says more than fits into a frame."""

    async def render(self) -> str:
        return "x" * wire.FRAME_LIMIT


class Long(Metrics):
    """Says as much as fits into a frame, nearly."""

    async def render(self) -> str:
        return "x" * (wire.FRAME_LIMIT - 100)


@asynccontextmanager
async def served(directory: Path, odd: Odd, kind: type[Metrics] = Metrics) -> AsyncIterator[Path]:
    """The socket of a server, that ends by itself when its clients are gone."""
    path, stop = directory / "socket", asyncio.Event()
    rules = {"allowed": lambda *_: True, "max_clients": 3, "request_timeout": 0.05}
    server = Server(odd, odd, kind(odd), **rules)  # type: ignore[arg-type]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        serving = asyncio.create_task(server.serve(listener, stop))
        try:
            yield path
        finally:
            stop.set()
            await asyncio.wait_for(serving, 5)


@asynccontextmanager
async def greeted(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of a client that was greeted."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        assert wire.is_greeting(await receive(reader))
        yield reader, writer
    finally:
        writer.close()


def frame(request: wire.Request) -> bytes:
    return wire.pack(wire.render_request(request))


def told(directory: Path, story: Callable[[Ask], Awaitable[T]], odd: Odd, *, kind: type[Metrics] = Metrics) -> T:
    """What the story tells, that asks on one connection."""

    async def run() -> T:
        async with served(directory, odd, kind) as path, greeted(path) as (reader, writer):

            async def ask(request: wire.Request) -> Json:
                writer.write(frame(request))
                return await receive(reader)

            return await story(ask)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (wire.Release(owner=OWNER), "IpamError", "internal failure: ValueError: odd"),
        (wire.Held(owner=OWNER), "StoreBusy", "no answer within 0.05 s; try again"),
    ],
    ids=["fails", "takes too long"],
)
def test_a_request_that_goes_wrong_is_answered_and_counted_and_the_next_one_served(
    tmp_path: Path, request_: wire.Request, kind: str, message: str
) -> None:
    async def story(ask: Ask) -> str:
        assert await ask(request_) == {"error": {"kind": kind, "message": message}}
        assert "ok" in await ask(wire.Collect(network="net1", keep=frozenset()))
        return str((await ask(wire.Metrics()))["ok"]["text"])

    counted = told(tmp_path, story, Odd())
    operation = type(request_).__name__
    assert f'ipam_requests_total{{operation="{operation}",outcome="{kind}"}} 1.0\n' in counted
    assert 'ipam_requests_total{operation="Collect",outcome="ok"} 1.0\n' in counted


def test_an_answer_that_does_not_fit_into_a_frame_is_refused_in_words(tmp_path: Path) -> None:
    async def story(ask: Ask) -> Json:
        return (await ask(wire.Metrics()))["error"]

    said = told(tmp_path, story, Odd(), kind=Talkative)
    assert said["kind"] == "RequestRefused"
    assert "exceeds the limit" in said["message"]


@pytest.mark.parametrize("limit", [0, 1, PAGE, PAGE + 1, 2**70, -1])
def test_a_page_is_bounded_whatever_is_asked(tmp_path: Path, limit: int) -> None:
    async def story(ask: Ask) -> list[Json]:
        return [await ask(wire.ListEntries(limit=limit)), await ask(wire.History(limit=limit))]

    odd = Odd()
    answers = told(tmp_path, story, odd)
    assert all("ok" in each or each["error"]["kind"] == "RequestRefused" for each in answers), answers
    assert all(0 <= each <= PAGE for each in odd.limits), "SQLite takes a negative limit for none"


WAITS, FAILS, WORKS = wire.Held(owner=OWNER), wire.Release(owner=OWNER), wire.Collect(network="net1", keep=frozenset())
TOO_LONG = "no answer within 0.05 s; try again"


def outcome(answer: Json) -> str:
    """What an answer says, in short."""
    return "ok" if "ok" in answer else str(answer["error"]["message"])


def test_requests_that_come_together_are_answered_in_their_order(tmp_path: Path) -> None:
    async def run() -> list[str]:
        async with served(tmp_path, Odd()) as path, greeted(path) as (reader, writer):
            writer.write(frame(WAITS) + frame(FAILS) + frame(WORKS))
            return [outcome(await receive(reader)) for _ in range(3)]

    assert asyncio.run(run()) == [TOO_LONG, "internal failure: ValueError: odd", "ok"]


def test_a_client_that_sends_no_more_gets_its_answer_and_is_left(tmp_path: Path) -> None:
    async def run() -> tuple[str, bytes]:
        async with served(tmp_path, Odd()) as path, greeted(path) as (reader, writer):
            writer.write(frame(WAITS))
            writer.write_eof()
            return outcome(await receive(reader)), await reader.read()

    assert asyncio.run(run()) == (TOO_LONG, b"")


def test_a_request_may_come_byte_by_byte(tmp_path: Path) -> None:
    async def run() -> str:
        async with served(tmp_path, Odd()) as path, greeted(path) as (reader, writer):
            for each in frame(WORKS):
                writer.write(bytes([each]))
                await asyncio.sleep(0.001)
            return outcome(await receive(reader))

    assert asyncio.run(run()) == "ok"


def test_who_waits_for_an_answer_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_PATIENCE", 0.01)

    async def story(ask: Ask) -> str:
        return outcome(await ask(WAITS))

    assert told(tmp_path, story, Odd()) == TOO_LONG


@pytest.mark.parametrize(
    "asked", [b"", frame(WORKS)[:5], frame(wire.Metrics())], ids=["silent", "slow", "reads nothing"]
)
def test_a_client_that_does_nothing_is_dropped_while_another_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bytes
) -> None:
    monkeypatch.setattr(connection, "IDLE_PATIENCE", 0.2)

    async def run() -> bytes:
        async with served(tmp_path, Odd(), Long) as path, greeted(path) as (reader, writer):
            with socket.socket(socket.AF_UNIX) as idle:
                idle.connect(str(path))
                idle.sendall(asked)
                for _ in range(20):
                    writer.write(frame(WORKS))
                    assert outcome(await receive(reader)) == "ok"
                    await asyncio.sleep(0.03)
                idle.settimeout(1)
                return everything(idle)

    received = asyncio.run(run())
    assert received.startswith(wire.pack(wire.GREETING))
    assert len(received) < wire.FRAME_LIMIT - 100


def everything(client: socket.socket) -> bytes:
    """What the client gets until the connection ends."""
    received = b""
    with suppress(ConnectionResetError):
        while more := client.recv(1 << 20):
            received += more
    return received


@pytest.mark.parametrize("leaves", [False, True], ids=["reads on", "leaves"])
def test_a_client_that_reads_later_than_it_asks_makes_the_server_wait(tmp_path: Path, leaves: bool) -> None:
    """Else its answers would fill the memory."""

    class Counting(Long):
        asked = 0

        async def render(self) -> str:
            Counting.asked += 1
            return await super().render()

    async def run() -> None:
        async with served(tmp_path, Odd(), Counting) as path, greeted(path) as (reader, writer):
            writer.write(frame(wire.Metrics()) * 20)
            await asyncio.sleep(0.5)
            assert Counting.asked < 10
            if not leaves:
                assert [outcome(await receive(reader)) for _ in range(20)] == ["ok"] * 20

    asyncio.run(run())
