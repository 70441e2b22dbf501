"""One request at a time for one owner."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cni_bridge.cni.errors import CniError, Code
from cni_bridge.locks import owner_locked
from ipam.api import Owner
from tests.support.calls import OWNER, owner


async def take(directory: Path, owner: Owner = OWNER, *, patience: float = 10) -> None:
    """Take the lock and give it back."""
    async with owner_locked(directory, owner, patience=patience):
        pass


def hold_until_killed(directory: Path, ready: Connection) -> None:
    async def hold() -> None:
        async with owner_locked(directory, OWNER, patience=10):
            ready.send("held")
            signal.pause()

    asyncio.run(hold())


def test_holders_exclude_each_other(tmp_path: Path) -> None:
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with owner_locked(tmp_path, OWNER, patience=10):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1

    async def all_at_once() -> None:
        await asyncio.gather(*(enter() for _ in range(20)))

    asyncio.run(all_at_once())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [owner("c2"), owner("c1", ifname="eth1"), owner("c1", network="net2")], ids=str)
def test_other_owners_do_not_wait(tmp_path: Path, other: Owner) -> None:
    async def both() -> None:
        async with owner_locked(tmp_path, OWNER, patience=0):
            await take(tmp_path, other, patience=0)

    asyncio.run(both())


def test_the_lock_file_is_gone_after_a_failure_too(tmp_path: Path) -> None:
    async def fail() -> None:
        async with owner_locked(tmp_path, OWNER, patience=0):
            assert len(list(tmp_path.iterdir())) == 1
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(fail())
    assert list(tmp_path.iterdir()) == []


def test_patience_ends_with_code_11(tmp_path: Path) -> None:
    async def wait_in_vain() -> None:
        async with owner_locked(tmp_path, OWNER, patience=0):
            await take(tmp_path, patience=0.05)

    with pytest.raises(CniError) as caught:
        asyncio.run(wait_in_vain())
    assert caught.value.code == Code.TRY_AGAIN_LATER
    assert str(OWNER) in caught.value.msg


def test_the_lock_holds_across_processes_and_ends_with_its_process(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    holder = fork.Process(target=hold_until_killed, args=(tmp_path, sender))
    holder.start()
    try:
        assert receiver.recv() == "held"
        with pytest.raises(CniError):
            asyncio.run(take(tmp_path, patience=0.02))
    finally:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    asyncio.run(take(tmp_path, patience=0))
    assert list(tmp_path.iterdir()) == []


def test_long_names(tmp_path: Path) -> None:
    asyncio.run(take(tmp_path, owner("c" * 400, network="n" * 400)))


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    asyncio.run(take(tmp_path))
    outside = tmp_path / "outside"
    directory = tmp_path / "locks"
    directory.mkdir()
    (directory / "net1:c1:eth0").symlink_to(outside)
    with pytest.raises(OSError):
        asyncio.run(take(directory, patience=0))
    assert not outside.exists()
