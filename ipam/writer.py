"""Group commit: jobs that wait at the same time share one transaction, so one write to the disk makes all durable."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ipam.errors import IpamError

T = TypeVar("T")
Job = Callable[[Any], Any]
Waiting = tuple[Job, asyncio.Future[Any]]
Outcome = tuple[Any, Exception | None]

MOST_AT_ONCE = 64  # jobs in one transaction: an answer waits for the commit, and so for the last of them


class Writer:
    """Runs jobs one after another in transactions, each of them one call of `transact`.

    A job is answered once its transaction is committed. It raises `IpamError` only before it has changed anything,
    or undoes its changes itself; that failure is the job's own. Any other failure is that of the whole transaction.
    """

    def __init__(self, transact: Callable[[Callable[[Any], list[Outcome]]], Awaitable[list[Outcome]]]) -> None:
        """`transact` gives what a function returns that it calls within a transaction; all is undone if it raises."""
        self._transact = transact
        self._waiting: deque[Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    async def run(self, job: Callable[[Any], T]) -> T:
        """What the job returns, once it is durable. A caller that is cancelled leaves before or after its job."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await answer

    async def close(self) -> None:
        """Finish what waits."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
            batch = [(job, answer) for job, answer in batch if not answer.done()]  # done: its caller is gone
            if batch:
                await self._commit(batch)

    async def _commit(self, batch: list[Waiting]) -> None:
        begun = False

        def work(txn: Any) -> list[Outcome]:
            nonlocal begun
            begun = True
            return [_outcome(job, txn) for job, _ in batch]

        try:
            outcomes = await self._transact(work)
        except Exception as error:
            if begun and len(batch) > 1:  # what one of them met need not be everybody's fate
                for each in batch:
                    await self._commit([each])
                return
            outcomes = [(None, error)] * len(batch)
        for (_, answer), (value, failure) in zip(batch, outcomes, strict=True):
            if answer.done():
                continue
            if failure is not None:
                answer.set_exception(failure)
            else:
                answer.set_result(value)


def _outcome(job: Job, txn: Any) -> Outcome:
    try:
        return job(txn), None
    except IpamError as error:
        return None, error
