"""The lease database: what is made, what is refused, and what is left as it was."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ipam.allocator import Run
from ipam.api import Lease
from ipam.blobs import number_blob, to_blob, to_number
from ipam.errors import AddressTaken, IpamError, StoreBusy, StoreDamaged, StoreFull, StoreUnavailable
from ipam.registry import Entry
from ipam.schema import APPLICATION_ID, VERSION
from ipam.store import Store
from ipam.transaction import Transaction
from tests.support.calls import OWNER, behind, entries, owner, taken_runs

T = TypeVar("T")

# A thread of aiosqlite that outlives its event loop prints a traceback on standard error.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

NOBODY = 65534
LEASE = Lease(
    owner=OWNER,
    address=ip_interface("10.0.0.2/24"),
    gateway=ip_address("10.0.0.1"),
    since=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    boot_id="a",
)
VERSION_1 = """
CREATE TABLE ranges (
    network TEXT NOT NULL, first BLOB NOT NULL CHECK (length(first) = 16),
    last BLOB NOT NULL CHECK (length(last) = 16), subnet TEXT NOT NULL, gateway TEXT, cursor BLOB,
    PRIMARY KEY (network, first)) STRICT, WITHOUT ROWID;
CREATE TABLE leases (
    network TEXT NOT NULL, address BLOB NOT NULL CHECK (length(address) = 16), prefix INTEGER NOT NULL,
    gateway TEXT, container_id TEXT NOT NULL, ifname TEXT NOT NULL, since TEXT NOT NULL, boot_id TEXT NOT NULL,
    PRIMARY KEY (network, address)) STRICT, WITHOUT ROWID;
CREATE INDEX leases_by_owner ON leases (network, container_id, ifname);
CREATE TABLE taken (
    network TEXT NOT NULL, first BLOB NOT NULL, last BLOB NOT NULL,
    PRIMARY KEY (network, first)) STRICT, WITHOUT ROWID;
PRAGMA application_id = 0x636E6962;
PRAGMA user_version = 1;
"""


def entry(lease: Lease) -> Entry:
    return Entry(network=lease.owner.network, address=lease.address.ip, lease=lease)


def on(path: Path, story: Callable[[Store], Awaitable[T]]) -> T:
    """What the story, told with the database open, returns."""

    async def run() -> T:
        store = await Store.open(path, patience=0.05)
        try:
            return await story(store)
        finally:
            await store.close()

    return asyncio.run(run())


def opened(path: Path) -> None:
    """Open the database, take a lease and close it."""
    on(path, lambda store: store.write(lambda txn: txn.put([entry(LEASE)])))


def known(path: Path) -> list[Entry]:
    """What the database at the path holds, by its own account."""
    return on(path, lambda store: store.read(lambda txn: txn.entries()))


def refused(path: Path) -> IpamError:
    with pytest.raises(IpamError) as caught:
        opened(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ipam.db"


@pytest.fixture
def unprivileged_directory() -> Iterator[Path]:
    """A directory of an unprivileged user, whom the test becomes if it is root: root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_a_new_database_belongs_to_its_owner_only(database: Path) -> None:
    opened(database)
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700
    files = {each.name: each.stat() for each in database.parent.iterdir() if each.stat().st_size}
    assert files.keys() == {"ipam.db", "ipam.db-journal", "ipam.reserve"}
    assert {stat.S_IMODE(each.st_mode) for each in files.values()} == {0o600}


def test_leases_survive_reopening(database: Path) -> None:
    opened(database)
    assert known(database) == [entry(LEASE)] == entries(database)


def test_an_empty_file_is_a_new_database(database: Path) -> None:
    database.parent.mkdir()
    database.touch()
    opened(database)
    assert len(known(database)) == 1


def test_an_address_has_one_row_in_a_network(database: Path) -> None:
    everyone = [
        LEASE,
        replace(LEASE, address=ip_interface("fd00::2/64"), gateway=None),
        replace(LEASE, owner=owner("c1", network="net2")),
    ]
    on(database, lambda store: store.write(lambda txn: txn.put(map(entry, reversed(everyone)))))
    assert known(database) == list(map(entry, everyone)), "in order of network and address, IPv4 first"
    other = replace(LEASE, owner=owner("c2"))
    on(database, lambda store: store.write(lambda txn: txn.put([entry(other)])))
    assert known(database) == [entry(other), *map(entry, everyone[1:])]
    row = ("net1", to_blob(LEASE.address.ip), number_blob(to_number(LEASE.address.ip) + 1))
    with closing(sqlite3.connect(database)) as another, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        another.execute("INSERT INTO addresses (network, address, next, reserved_for) VALUES (?, ?, ?, 'nobody')", row)


def test_a_job_that_is_refused_changes_nothing_and_hinders_no_other(database: Path) -> None:
    def refusal(txn: Transaction) -> None:
        with txn.savepoint():
            txn.put([entry(replace(LEASE, owner=owner("c2"), address=ip_interface("10.0.0.3/24")))])
            raise AddressTaken("in the middle")

    async def story(store: Store) -> None:
        jobs = store.write(refusal), store.write(lambda txn: txn.put([entry(LEASE)]))
        refusal_, done = await asyncio.gather(*jobs, return_exceptions=True)
        assert (type(refusal_), done) == (AddressTaken, None)

    on(database, story)
    assert known(database) == [entry(LEASE)]
    number = to_number(LEASE.address.ip)
    assert taken_runs(database) == (Run(first=number, next=number + 1),)


def test_a_disk_that_gets_full_within_a_savepoint_is_reported_as_full(database: Path) -> None:
    """SQLite undoes the whole transaction then, savepoint and all."""

    def job(txn: Transaction) -> None:
        txn._connection.execute("PRAGMA max_page_count = 1")  # as many as there are
        with txn.savepoint():
            txn.track("net1", "x" * 100_000, LEASE.since)

    async def story(store: Store) -> None:
        with pytest.raises(StoreFull, match="disk is full"):
            await store.write(job)
        await store.write(lambda txn: txn.put([entry(LEASE)]))

    on(database, story)
    assert known(database) == [entry(LEASE)]


class Held:
    """A job that stays in its transaction until it is let go."""

    def __init__(self, *, raises: bool = False) -> None:
        self.began = threading.Event()
        self.may_end = threading.Event()
        self._raises = raises

    def __call__(self, txn: Transaction) -> None:
        txn.put([entry(LEASE)])
        self.began.set()
        assert self.may_end.wait(10)
        if self._raises:
            raise ValueError("when nobody listens any more")


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("way", [Store.write, Store.read, Store.free])
def test_a_job_whose_caller_is_cancelled_goes_to_its_end(
    database: Path, way: Callable[[Store, Held], Coroutine[Any, Any, None]], raises: bool
) -> None:
    async def story(store: Store) -> None:
        job = Held(raises=raises)
        caller = asyncio.create_task(way(store, job))
        await asyncio.to_thread(job.began.wait, 10)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        next_ = asyncio.create_task(store.write(Transaction.touch))
        job.may_end.set()
        await next_

    on(database, story)
    assert known(database) == ([] if raises else [entry(LEASE)])


@pytest.mark.parametrize("way", [Store.write, Store.read, Store.free])
def test_a_job_whose_caller_is_cancelled_before_its_turn_is_left_out(
    database: Path, way: Callable[[Store, Callable[[Transaction], None]], Coroutine[Any, Any, None]]
) -> None:
    ran: list[Transaction] = []

    async def story(store: Store) -> None:
        before = Held()
        first = asyncio.create_task(store.write(before))
        await asyncio.to_thread(before.began.wait, 10)
        caller = asyncio.create_task(way(store, ran.append))
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        before.may_end.set()
        await first
        await store.write(Transaction.touch)

    on(database, story)
    assert ran == []


def test_closing_waits_for_the_job_that_runs(database: Path) -> None:
    async def story(store: Store) -> None:
        job = Held()
        caller = asyncio.create_task(store.write(job))
        await asyncio.to_thread(job.began.wait, 10)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        job.may_end.set()
        await closing
        assert caller.done()

    on(database, story)
    assert known(database) == [entry(LEASE)]


def test_only_what_gives_addresses_back_gets_the_room_held_in_reserve(database: Path) -> None:
    reserve = database.with_name("ipam.reserve")

    def while_there_is_room(txn: Transaction) -> None:
        if reserve.exists():
            raise StoreFull("as long as the reserve is there")
        txn.put([entry(LEASE)])

    async def story(store: Store) -> None:
        await store.write(Transaction.touch)
        with pytest.raises(StoreFull):
            await store.write(while_there_is_room)
        assert reserve.exists()
        await store.free(while_there_is_room)
        assert not reserve.exists()
        await store.write(Transaction.touch)
        assert reserve.exists(), "held again as soon as there is room"

    on(database, story)
    assert known(database) == [entry(LEASE)]


def test_a_database_of_version_1_is_taken_over(database: Path) -> None:
    database.parent.mkdir()
    since = LEASE.since.isoformat()
    held = [
        ("net1", "10.0.0.2", 24, "10.0.0.1", "c1", "eth0"),
        ("net1", "10.0.0.3", 24, "10.0.0.1", "c2", "eth0"),
        ("net1", "fd00::2", 64, None, "c1", "eth0"),
        ("net2", "10.0.0.2", 24, "10.0.0.1", "c1", "eth1"),
    ]
    with closing(sqlite3.connect(database)) as old, old:
        old.executescript(VERSION_1)
        for network, address, *rest in held:
            blob = to_blob(ip_address(address))
            old.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, 'a')", (network, blob, *rest, since))
        first, last, cursor = (to_blob(ip_address(f"10.0.0.{each}")) for each in (1, 254, 3))
        old.executemany(
            "INSERT INTO ranges VALUES (?, ?, ?, '10.0.0.0/24', '10.0.0.1', ?)",
            [("net1", first, last, cursor), ("net2", first, last, None)],
        )
    assert [str(each.lease.address) for each in known(database) if each.lease is not None] == [
        f"{address}/{prefix}" for _, address, prefix, *_ in held
    ]
    assert known(database)[0] == entry(LEASE)
    assert known(database)[3] == entry(replace(LEASE, owner=owner("c1", network="net2", ifname="eth1")))
    v4, v6 = to_number(ip_address("10.0.0.2")), to_number(ip_address("fd00::2"))
    assert taken_runs(database) == (Run(first=v4, next=v4 + 2), Run(first=v6, next=v6 + 1))
    assert taken_runs(database, "net2") == (Run(first=v4, next=v4 + 1),)
    with behind(database) as connection:
        assert connection.execute("SELECT * FROM cursors").fetchall() == [("net1", first, cursor)]
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        migrated = set(connection.execute("SELECT name, sql FROM sqlite_schema"))
    on(database.with_name("new.db"), lambda store: store.read(lambda txn: txn.entries()))
    with behind(database.with_name("new.db")) as connection:
        assert migrated == set(connection.execute("SELECT name, sql FROM sqlite_schema"))


def test_another_programs_database_is_left_alone(database: Path) -> None:
    database.parent.mkdir()
    with closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = database.read_bytes()
    error = refused(database)
    assert isinstance(error, StoreDamaged)
    assert "another program" in str(error)
    assert database.read_bytes() == before


def test_a_newer_schema_is_left_alone(database: Path) -> None:
    opened(database)
    with closing(sqlite3.connect(database)) as newer:
        newer.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = database.read_bytes()
    error = refused(database)
    assert isinstance(error, StoreUnavailable)
    assert f"schema version {VERSION + 1}, this program knows version {VERSION}" in str(error)
    assert database.read_bytes() == before


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 8192])
def test_what_is_no_database_is_left_alone(database: Path, content: bytes) -> None:
    database.parent.mkdir()
    database.write_bytes(content)
    assert isinstance(refused(database), StoreDamaged)
    assert database.read_bytes() == content


def test_a_torn_database_is_reported_and_left_alone(database: Path) -> None:
    opened(database)
    whole = database.read_bytes()
    torn = whole[:4096] + b"\xff" * (len(whole) - 4096)  # the first page leads to the schema
    database.write_bytes(torn)
    assert isinstance(refused(database), StoreDamaged)
    assert database.read_bytes() == torn


def test_the_application_id_marks_our_database(database: Path) -> None:
    opened(database)
    with behind(database) as ours:
        assert ours.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_another_writer_is_waited_for_and_then_reported(database: Path, lock: str) -> None:
    opened(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute(f"BEGIN {lock}")
        error = refused(database)
        assert isinstance(error, StoreBusy)
        assert "locked by another process" in str(error)
    assert len(known(database)) == 1


def test_a_path_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(refused(tmp_path / "file" / "ipam.db"), StoreUnavailable)


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("directory", "fifo", "link"):
        error = refused(tmp_path / name)
        assert isinstance(error, StoreUnavailable)
        assert "is not a regular file" in str(error)
    assert not (tmp_path / "elsewhere").exists()


def test_a_read_only_directory(unprivileged_directory: Path) -> None:
    unprivileged_directory.chmod(0o500)
    assert isinstance(refused(unprivileged_directory / "ipam.db"), StoreUnavailable)


def test_a_read_only_database(unprivileged_directory: Path) -> None:
    database = unprivileged_directory / "ipam.db"
    opened(database)
    database.chmod(0o400)
    assert isinstance(refused(database), StoreUnavailable)
    assert len(known(database)) == 1


def test_an_unreadable_database(unprivileged_directory: Path) -> None:
    database = unprivileged_directory / "ipam.db"
    opened(database)
    database.chmod(0)
    assert isinstance(refused(database), StoreUnavailable)
