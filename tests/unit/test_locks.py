"""One request at a time for one owner, in order; what many share is changed by one alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cni_bridge.cni.errors import CniError, Code
from cni_bridge.locks import OwnerLocks, SharedLock
from ipam.api import Owner
from tests.support.calls import OWNER, owner


async def take(directory: Path, owner: Owner = OWNER, *, patience: float = 10) -> None:
    """Take the lock and give it back."""
    async with OwnerLocks(directory, patience=patience).held(owner):
        pass


def hold_until_killed(directory: Path, ready: Connection) -> None:
    async def hold() -> None:
        async with OwnerLocks(directory, patience=10).held(OWNER):
            ready.send("held")
            signal.pause()

    asyncio.run(hold())


def test_holders_exclude_each_other(tmp_path: Path) -> None:
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with OwnerLocks(tmp_path, patience=10).held(OWNER):
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
        async with OwnerLocks(tmp_path, patience=0).held(OWNER):
            await take(tmp_path, other, patience=0)

    asyncio.run(both())


def test_the_lock_file_is_gone_after_a_failure_too(tmp_path: Path) -> None:
    async def fail() -> None:
        async with OwnerLocks(tmp_path, patience=0).held(OWNER):
            assert len(list(tmp_path.iterdir())) == 1
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(fail())
    assert list(tmp_path.iterdir()) == []


def test_patience_ends_with_code_11(tmp_path: Path) -> None:
    async def wait_in_vain() -> None:
        async with OwnerLocks(tmp_path, patience=0).held(OWNER):
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


def test_requests_of_one_process_come_in_their_order(tmp_path: Path) -> None:
    locks, order = OwnerLocks(tmp_path, patience=10), []

    async def enter(number: int) -> None:
        async with locks.held(OWNER):
            order.append(number)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        await asyncio.gather(*map(enter, range(20)))

    asyncio.run(all_of_them())
    assert order == list(range(20))


def test_who_waits_in_the_same_process_waits_no_longer_than_allowed(tmp_path: Path) -> None:
    locks = OwnerLocks(tmp_path, patience=0.05)

    async def enter_twice() -> None:
        async with locks.held(OWNER), locks.held(OWNER):
            pass

    with pytest.raises(CniError) as caught:
        asyncio.run(enter_twice())
    assert caught.value.code == Code.TRY_AGAIN_LATER


@pytest.mark.parametrize("alone", [False, True])
def test_many_share_a_lock_or_one_has_it(tmp_path: Path, alone: bool) -> None:
    lock, inside, most = SharedLock(tmp_path, "it is", patience=10), 0, 0

    async def enter() -> None:
        nonlocal inside, most
        async with lock.held(alone=alone):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    async def all_of_them() -> None:
        await asyncio.gather(*(enter() for _ in range(10)))

    asyncio.run(all_of_them())
    assert most == (1 if alone else 10)


def test_who_wants_to_be_alone_goes_before_those_who_come_later(tmp_path: Path) -> None:
    lock, order = SharedLock(tmp_path, "it is", patience=10), []

    async def enter(name: str, *, alone: bool) -> None:
        async with lock.held(alone=alone):
            order.append(name)
            await asyncio.sleep(0.005)

    async def all_of_them() -> None:
        await asyncio.gather(
            enter("first", alone=False), enter("alone", alone=True), *(enter("later", alone=False) for _ in range(5))
        )

    asyncio.run(all_of_them())
    assert order == ["first", "alone", *["later"] * 5]


def test_a_shared_lock_of_another_process_is_waited_for_no_longer_than_allowed(tmp_path: Path) -> None:
    mine, others = (SharedLock(tmp_path, "rules are", patience=0.05) for _ in range(2))

    async def collide() -> None:
        async with others.held(alone=False), mine.held(alone=True):
            pass

    with pytest.raises(CniError, match="rules are still held by another request") as caught:
        asyncio.run(collide())
    assert caught.value.code == Code.TRY_AGAIN_LATER
