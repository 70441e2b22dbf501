"""The lease database as a file: opening it, its schema, who writes when, and what its failures mean.

The journal is a rollback journal with `synchronous=FULL`: WAL loses data in SQLite before 3.51.3 when several
processes write, and processes of one node may link different versions.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from ipam import effects, files, schema
from ipam.blobs import blob_number, number_blob
from ipam.database import Database
from ipam.errors import IpamError, RequestRefused, StoreBusy, StoreDamaged, StoreFull, StoreUnavailable
from ipam.reserve import Reserve
from ipam.transaction import Transaction
from ipam.writer import Writer

T = TypeVar("T")

_SMALL = 1 << 20  # bytes: some thousand leases, checked in a millisecond or two
_JOURNAL_LIMIT = 1 << 20  # bytes that the journal keeps on the disk


class Store:
    """One connection to the lease database; transactions of several processes on one file exclude each other.

    Jobs are called in the connection's thread, each with a transaction.
    """

    def __init__(self, database: Database, path: Path) -> None:
        self._database = database
        self._path = path
        self._reserve = Reserve(path.with_name("ipam.reserve"))
        self._writer = Writer(partial(self._transact, "BEGIN IMMEDIATE"))

    @classmethod
    async def open(cls, path: Path, *, patience: float, check: bool = False) -> Store:
        """Open the database, creating it where there is none; `patience`: seconds to wait for other writers.

        `check`: look for damage in all of it, which is done in any case as long as it is small.
        """
        with _reasons(path):
            effects.change("create the database")
            _create_file(path)
            database = await Database.open(path, patience=patience)
        store = cls(database, path)
        try:
            with _reasons(path):
                await database.call(store._prepare)
                if check or path.stat().st_size <= _SMALL:
                    await database.call(store._require_sound)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Finish what is being written and close the connection."""
        await self._writer.close()
        await self._database.close()

    async def wait_for_others(self, patience: float) -> None:
        """Wait so many seconds for other writers from now on."""
        with _reasons(self._path):
            await self._database.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}")

    async def write(self, job: Callable[[Transaction], T]) -> T:
        """What the job returns, once its changes are durable (see `Writer`); it needs room on the disk."""
        self._reserve.ensure()
        return await self._writer.run(job)

    async def free(self, job: Callable[[Transaction], T]) -> T:
        """The same for a job that gives addresses back: on a full disk it gets the room held in reserve."""
        try:
            return await self._writer.run(job)
        except StoreFull:
            if not self._reserve.spend():
                raise
        return await self._writer.run(job)

    async def read(self, job: Callable[[Transaction], T]) -> T:
        """What the job returns, from one state of the database."""
        return await self._transact("BEGIN", job)

    async def _transact(self, begin: str, work: Callable[[Transaction], T]) -> T:
        with _reasons(self._path):
            return await self._database.transact(begin, work)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # The journal stays as it is between transactions: that saves a change of the file system for each of them.
        connection.execute("PRAGMA journal_mode = PERSIST")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_LIMIT}")
        connection.execute("PRAGMA synchronous = FULL")
        if self._version(connection) == schema.VERSION:
            return
        connection.create_function("next_address", 1, _next_address, deterministic=True)
        effects.change("make the schema")
        connection.execute("BEGIN IMMEDIATE")
        version = self._version(connection)  # again: another process may have created the schema meanwhile
        if version != schema.VERSION:
            for statement in self._statements(version):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        connection.execute("COMMIT")

    def _statements(self, version: int) -> Iterator[str]:
        """What makes the database of that version one of this program's; 0 is an empty one."""
        if version == 0:
            yield from schema.CREATE
            return
        if version > schema.VERSION:
            raise StoreUnavailable(
                f"{self._path} has schema version {version}, this program knows version {schema.VERSION}; "
                "use the program version that wrote it"
            )
        for step in range(version, schema.VERSION):
            yield from schema.STEPS[step]

    def _require_sound(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("PRAGMA quick_check(1)").fetchall()
        if rows != [("ok",)]:
            raise StoreDamaged(f"lease database {self._path} is damaged ({rows[0][0]}); it was left as it is")

    def _version(self, connection: sqlite3.Connection) -> int:
        """The schema version; 0 for an empty database."""
        rows = connection.execute(
            "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema) "
            "FROM pragma_user_version, pragma_application_id"
        )
        ((version, application, objects),) = rows
        if application != schema.APPLICATION_ID and objects:
            raise StoreDamaged(f"{self._path} is a database of another program; move it away or set state_dir")
        return int(version)


def _next_address(blob: bytes) -> bytes:
    return number_blob(blob_number(blob) + 1)


def _create_file(path: Path) -> None:
    """Make an empty database where there is none; SQLite gives its journal the database's owner itself."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        fd = files.create(path)
    except FileExistsError:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise StoreUnavailable(f"{path} is not a regular file; remove what stands there") from None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # whoever may not read it is told so here, in words
    os.close(fd)


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Say what a failing database means for whoever has to mend it."""
    try:
        yield
    except IpamError:
        raise
    except (OverflowError, UnicodeEncodeError) as error:
        raise RequestRefused(f"a value of the request does not fit into the lease database: {error}") from None
    except OSError as error:
        raise StoreUnavailable(f"lease database {path}: {error.strerror}; check its directory") from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0)
        primary = code & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreBusy(f"lease database {path} is locked by another process; try again") from error
        if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise StoreFull(f"lease database {path}: {error}; free space on its file system") from error
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreDamaged(f"lease database {path} is damaged ({error}); it was left as it is") from error
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise StoreUnavailable(f"lease database {path}: {error}; check its directory") from error
        raise
