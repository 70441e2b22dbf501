"""Group commit: jobs that wait at the same time share one transaction, so one write to the disk makes all durable."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from ipam.errors import IpamError

T = TypeVar("T")
Txn = TypeVar("Txn")

MOST_AT_ONCE = 64  # jobs in one transaction: an answer waits for the commit, and so for the last of them


class Writer:
    """Runs jobs one after another in transactions that `begin` opens.

    A job is answered once its transaction is committed. It raises `IpamError` only before it has changed anything,
    or undoes its changes itself; that failure is the job's own. Any other failure is that of the whole transaction.
    """

    def __init__(self, begin: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._begin = begin
        self._waiting: deque[tuple[Callable[[Any], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def run(self, job: Callable[[Any], Awaitable[T]]) -> T:
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

    async def _commit(self, batch: list[tuple[Callable[[Any], Awaitable[Any]], asyncio.Future[Any]]]) -> None:
        outcomes: list[tuple[asyncio.Future[Any], Any, IpamError | None]] = []
        begun = False
        try:
            async with self._begin() as txn:
                begun = True
                for job, answer in batch:
                    try:
                        outcomes.append((answer, await job(txn), None))
                    except IpamError as error:
                        outcomes.append((answer, None, error))
        except Exception as error:
            if begun and len(batch) > 1:  # what one of them met need not be everybody's fate
                for each in batch:
                    await self._commit([each])
                return
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for answer, value, failure in outcomes:
            if answer.done():
                continue
            if failure is not None:
                answer.set_exception(failure)
            else:
                answer.set_result(value)
