"""The server with an IPAM that misbehaves: what its clients are told, and that it serves on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from ipam import wire
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


def told(directory: Path, story: Callable[[Ask], Awaitable[T]], odd: Odd, *, kind: type[Metrics] = Metrics) -> T:
    """What the story tells, that asks on one connection."""

    async def run() -> T:
        stop = asyncio.Event()
        rules = {"allowed": lambda *_: True, "max_clients": 1, "request_timeout": 0.05}
        server = Server(odd, odd, kind(odd), **rules)  # type: ignore[arg-type]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "socket"))
            listener.listen()
            serving = asyncio.create_task(server.serve(listener, stop))
            reader, writer = await asyncio.open_unix_connection(directory / "socket")
            assert wire.is_greeting(await receive(reader))

            async def ask(request: wire.Request) -> Json:
                writer.write(wire.pack(wire.render_request(request)))
                return await receive(reader)

            try:
                return await story(ask)
            finally:
                writer.close()
                stop.set()
                await serving

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
