"""Group commit: who shares a transaction, when answers come, and what a failure does to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from ipam.errors import AddressTaken, StoreBusy
from ipam.writer import MOST_AT_ONCE, Writer

T = TypeVar("T")
Job = Callable[[list[str]], str]


class Journal:
    """Transactions as lists of what was done in them; each may fail to begin or to commit."""

    def __init__(self) -> None:
        self.committed: list[list[str]] = []
        self.undone: list[list[str]] = []
        self.no_begin: list[Exception] = []
        self.no_commit: list[Exception] = []
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.commits = asyncio.Event()

    async def transact(self, work: Callable[[list[str]], T]) -> T:
        if self.no_begin:
            raise self.no_begin.pop()
        done: list[str] = []
        try:
            result = work(done)
            self.commits.set()
            await self.may_commit.wait()
            if self.no_commit:
                raise self.no_commit.pop()
        except BaseException:
            self.undone.append(done)
            raise
        self.committed.append(done)
        return result


def does(name: str) -> Job:
    """A job that writes its name and answers with it."""

    def job(txn: list[str]) -> str:
        txn.append(name)
        return name

    return job


def fails(error: Exception) -> Job:
    """A job that changes nothing and raises."""

    def job(_: list[str]) -> str:
        raise error

    return job


def told(story: Callable[[Writer, Journal], Coroutine[Any, Any, None]]) -> Journal:
    """The journal after a story."""

    async def run() -> Journal:
        journal = Journal()
        writer = Writer(journal.transact)
        try:
            await story(writer, journal)
        finally:
            journal.may_commit.set()
            await writer.close()
        return journal

    return asyncio.run(run())


async def outcomes(writer: Writer, *jobs: Job) -> list[str | BaseException]:
    """What becomes of jobs that wait at the same time."""
    return await asyncio.gather(*map(writer.run, jobs), return_exceptions=True)


async def settled() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_jobs_that_wait_at_the_same_time_share_a_transaction() -> None:
    async def story(writer: Writer, _: Journal) -> None:
        assert await outcomes(writer, *map(does, "abc")) == ["a", "b", "c"]
        assert await writer.run(does("d")) == "d"

    assert told(story).committed == [["a", "b", "c"], ["d"]]


def test_a_transaction_has_an_end() -> None:
    names = [str(number) for number in range(2 * MOST_AT_ONCE + 1)]

    async def story(writer: Writer, _: Journal) -> None:
        assert await outcomes(writer, *map(does, names)) == names

    committed = told(story).committed
    assert [len(each) for each in committed] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    assert [name for each in committed for name in each] == names


def test_answers_come_after_the_commit() -> None:
    async def story(writer: Writer, journal: Journal) -> None:
        journal.may_commit.clear()
        waiting = [asyncio.create_task(writer.run(job)) for job in (does("a"), fails(AddressTaken("x")))]
        await journal.commits.wait()
        await settled()
        assert not any(each.done() for each in waiting)
        journal.may_commit.set()
        assert await waiting[0] == "a"
        with pytest.raises(AddressTaken):
            await waiting[1]

    assert told(story).committed == [["a"]]


def test_an_ipam_error_is_the_jobs_own() -> None:
    async def story(writer: Writer, _: Journal) -> None:
        refused = AddressTaken("mine alone")
        assert await outcomes(writer, does("a"), fails(refused), does("c")) == ["a", refused, "c"]

    journal = told(story)
    assert (journal.committed, journal.undone) == ([["a", "c"]], [])


def test_another_failure_reruns_each_job_alone() -> None:
    async def story(writer: Writer, _: Journal) -> None:
        error, refused = ValueError("odd"), AddressTaken("mine alone")
        jobs = does("a"), fails(error), does("c"), fails(refused)
        assert await outcomes(writer, *jobs) == ["a", error, "c", refused]

    journal = told(story)
    assert journal.undone == [["a"], []]
    assert journal.committed == [["a"], ["c"], []]


def test_a_commit_that_fails_is_tried_for_each_alone() -> None:
    async def story(writer: Writer, journal: Journal) -> None:
        error = StoreBusy("for b")
        journal.no_commit = [StoreBusy("for all")]
        assert await outcomes(writer, *map(does, "ab")) == ["a", "b"]
        journal.no_commit = [error]
        assert await outcomes(writer, does("c")) == [error]

    journal = told(story)
    assert journal.undone == [["a", "b"], ["c"]]
    assert journal.committed == [["a"], ["b"]]


def test_a_transaction_that_does_not_begin_fails_for_all() -> None:
    async def story(writer: Writer, journal: Journal) -> None:
        error = StoreBusy("locked")
        journal.no_begin = [error]
        assert await outcomes(writer, *map(does, "ab")) == [error, error]
        assert await writer.run(does("c")) == "c"

    journal = told(story)
    assert (journal.committed, journal.undone) == ([["c"]], [])


def test_a_cancelled_caller_is_skipped() -> None:
    async def story(writer: Writer, journal: Journal) -> None:
        journal.may_commit.clear()
        first = asyncio.create_task(writer.run(does("first")))
        await journal.commits.wait()
        gone, last = (asyncio.create_task(writer.run(does(each))) for each in ("gone", "last"))
        await settled()
        gone.cancel()
        journal.may_commit.set()
        assert await first == "first"
        assert await last == "last"
        assert gone.cancelled()

    assert told(story).committed == [["first"], ["last"]]


def test_a_job_that_has_begun_is_finished_without_its_caller() -> None:
    async def story(writer: Writer, journal: Journal) -> None:
        journal.may_commit.clear()
        gone, stays = (asyncio.create_task(writer.run(does(each))) for each in ("gone", "stays"))
        await journal.commits.wait()
        gone.cancel()
        await settled()
        journal.may_commit.set()
        assert await stays == "stays"
        assert gone.cancelled()

    journal = told(story)
    assert (journal.committed, journal.undone) == ([["gone", "stays"]], [])


def test_close_finishes_what_waits() -> None:
    async def story(writer: Writer, journal: Journal) -> None:
        journal.may_commit.clear()
        first = asyncio.create_task(writer.run(does("first")))
        await journal.commits.wait()
        second = asyncio.create_task(writer.run(does("second")))
        closing = asyncio.create_task(writer.close())
        await settled()
        assert not closing.done()
        journal.may_commit.set()
        await closing
        assert (await first, await second) == ("first", "second")

    assert told(story).committed == [["first"], ["second"]]


def test_close_without_anything_to_do() -> None:
    async def story(writer: Writer, _: Journal) -> None:
        await writer.close()

    assert told(story).committed == []
