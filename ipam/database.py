"""The connection to the lease database, in whose thread whole transactions run in one go."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiosqlite

from ipam import effects
from ipam.transaction import Transaction

T = TypeVar("T")


class Database(aiosqlite.Connection):
    """A connection that is handed whole functions: a statement alone that is awaited costs two changes of thread.

    They run one after another. A caller that is cancelled leaves before its function has begun or while it goes on to
    its end, so no transaction stays open.
    """

    @classmethod
    async def open(cls, path: Path, *, patience: float) -> Database:
        """Open the file; `patience`: seconds to wait for other writers."""
        connect = partial(sqlite3.connect, path, timeout=patience, isolation_level=None)
        database = cls(connect, iter_chunk_size=64)  # which nothing here makes use of
        await database
        return database

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What the function returns, called in the connection's thread."""
        gone = False

        def unless_gone() -> T | None:
            return None if gone else work(self._conn)

        try:
            result: T = await self._execute(unless_gone)  # type: ignore[no-untyped-call]
            return result
        finally:
            gone = True

    async def transact(self, begin: str, work: Callable[[Transaction], T]) -> T:
        """What the function returns, once the transaction that it is called in is durable; undone if it raises."""
        return await self.call(partial(_transact, begin, work))


def _transact(begin: str, work: Callable[[Transaction], T], connection: sqlite3.Connection) -> T:
    effects.ask(begin)
    connection.execute(begin)
    try:
        result = work(Transaction(connection))
        if begin != "BEGIN":
            effects.change("commit")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.OperationalError):  # SQLite has undone it already if, for one, the disk is full
            connection.execute("ROLLBACK")
        raise
    return result
