"""Effects of a failed request are taken back, the last first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from cni_bridge.undo import Undo


class Effects:
    """Writes down which undo ran."""

    def __init__(self) -> None:
        self.undone: list[str] = []

    def undo(self, name: str, error: Exception | None = None) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            self.undone.append(name)
            if error is not None:
                raise error

        return run


@pytest.fixture
def effects() -> Effects:
    return Effects()


def test_success_drops_them(effects: Effects) -> None:
    async def request() -> None:
        async with Undo() as undo:
            undo.push(effects.undo("link"))

    asyncio.run(request())
    assert effects.undone == []


@pytest.mark.parametrize("error", [ValueError("refused"), asyncio.CancelledError(), KeyboardInterrupt()])
def test_failure_runs_them_backwards_and_goes_on(effects: Effects, error: BaseException) -> None:
    async def request() -> None:
        async with Undo() as undo:
            for name in ("record", "lease", "link"):
                undo.push(effects.undo(name))
            raise error

    async def caught() -> BaseException | None:
        try:
            await request()
        except BaseException as failure:
            return failure
        return None

    assert asyncio.run(caught()) is error
    assert effects.undone == ["link", "lease", "record"]


def test_one_that_fails_hinders_no_other(effects: Effects, caplog: pytest.LogCaptureFixture) -> None:
    async def request() -> None:
        async with Undo() as undo:
            undo.push(effects.undo("lease"))
            undo.push(effects.undo("link", OSError("busy")))
            raise ValueError("refused")

    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="refused"):
        asyncio.run(request())
    assert effects.undone == ["link", "lease"]
    assert "busy" in caplog.text


def test_nothing_to_take_back() -> None:
    async def request() -> None:
        async with Undo():
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(request())


def test_one_that_hangs_is_given_up(
    effects: Effects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cni_bridge.undo._PATIENCE", 0.01)

    async def hang() -> None:
        effects.undone.append("link")
        await asyncio.Event().wait()

    async def request() -> None:
        async with Undo() as undo:
            undo.push(effects.undo("record"))
            undo.push(hang)
            undo.push(effects.undo("rules"))
            raise ValueError("refused")

    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="refused"):
        asyncio.run(asyncio.wait_for(request(), 10))
    assert effects.undone == ["rules", "link", "record"]
    assert "could not take back" in caplog.text
