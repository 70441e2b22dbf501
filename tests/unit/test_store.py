"""The lease database: what is made, what is refused, and what is left as it was."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipam.api import Lease
from ipam.errors import AddressTaken, IpamError, StoreBusy, StoreDamaged, StoreUnavailable
from ipam.store import APPLICATION_ID, SCHEMA_VERSION, Store, from_blob, to_blob
from tests.support.calls import OWNER, owner, range_sets

# A thread of aiosqlite that outlives its event loop prints a traceback on standard error.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

NOBODY = 65534
((EACH,), (EACH6,)) = (each.ranges for each in range_sets(["10.0.0.0/24"], ["fd00::/64"]))


def opened(path: Path) -> None:
    """Open the database, take a lease and close it."""

    async def run() -> None:
        store = await Store.open(path, patience=0.05)
        try:
            async with store.transaction() as txn:
                await txn.insert(OWNER, ip_address("10.0.0.2"), EACH)
        finally:
            await store.close()

    asyncio.run(run())


def leases(path: Path) -> list[Lease]:
    """What the database at the path holds."""

    async def run() -> list[Lease]:
        store = await Store.open(path, patience=0.05)
        try:
            return await store.leases()
        finally:
            await store.close()

    return asyncio.run(run())


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


@pytest.mark.parametrize("text", ["0.0.0.0", "10.0.0.1", "255.255.255.255", "::", "::1", "fd00::ffff", "::10.0.0.1"])
def test_an_address_survives_its_blob(text: str) -> None:
    blob = to_blob(ip_address(text))
    assert len(blob) == 16
    assert from_blob(blob) == ip_address(text)


def test_blobs_sort_as_addresses_do() -> None:
    for texts in (["10.0.0.2", "10.0.0.10", "10.0.1.0", "192.0.2.1"], ["::2", "::ff", "::100", "fd00::", "fd00::1:0"]):
        assert sorted(map(ip_address, texts)) == [
            from_blob(each) for each in sorted(map(to_blob, map(ip_address, texts)))
        ]


def test_a_new_database_belongs_to_its_owner_only(database: Path) -> None:
    opened(database)
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700
    assert [each.name for each in database.parent.iterdir() if each.stat().st_size] == ["ipam.db"]


def test_leases_survive_reopening(database: Path) -> None:
    opened(database)
    (lease,) = leases(database)
    assert (lease.owner, str(lease.address), lease.gateway) == (OWNER, "10.0.0.2/24", ip_address("10.0.0.1"))
    assert lease.since.tzinfo is not None


def test_an_empty_file_is_a_new_database(database: Path) -> None:
    database.parent.mkdir()
    database.touch()
    opened(database)
    assert len(leases(database)) == 1


def test_an_address_has_one_owner_in_a_network(database: Path) -> None:
    opened(database)

    async def run() -> None:
        store = await Store.open(database, patience=0.05)
        try:
            async with store.transaction() as txn:
                await txn.insert(owner("c1", network="net2"), ip_address("10.0.0.2"), EACH)
                await txn.insert(OWNER, ip_address("fd00::2"), EACH6)
            with pytest.raises(AddressTaken, match=r'10.0.0.2 of network "net1" is held by container c1 \(eth0\)'):
                async with store.transaction() as txn:
                    await txn.insert(owner("c2"), ip_address("10.0.0.3"), EACH)
                    await txn.insert(owner("c2"), ip_address("10.0.0.2"), EACH)
        finally:
            await store.close()

    asyncio.run(run())
    assert [(each.owner.network, str(each.address)) for each in leases(database)] == [
        ("net1", "10.0.0.2/24"),
        ("net1", "fd00::2/64"),
        ("net2", "10.0.0.2/24"),
    ]


def test_another_programs_database_is_left_alone(database: Path) -> None:
    database.parent.mkdir()
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = database.read_bytes()
    error = refused(database)
    assert isinstance(error, StoreDamaged)
    assert "another program" in str(error)
    assert database.read_bytes() == before


def test_a_newer_schema_is_left_alone(database: Path) -> None:
    opened(database)
    with sqlite3.connect(database) as newer:
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    before = database.read_bytes()
    error = refused(database)
    assert isinstance(error, StoreUnavailable)
    assert f"schema version {SCHEMA_VERSION + 1}, this program knows version {SCHEMA_VERSION}" in str(error)
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
    torn = whole[:4096] + b"\xff" * (len(whole) - 4096)  # the first page holds the schema
    database.write_bytes(torn)
    assert isinstance(refused(database), StoreDamaged)
    assert database.read_bytes() == torn


def test_the_application_id_marks_our_database(database: Path) -> None:
    opened(database)
    with sqlite3.connect(database) as ours:
        assert ours.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    ours.close()


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_another_writer_is_waited_for_and_then_reported(database: Path, lock: str) -> None:
    opened(database)
    other = sqlite3.connect(database, isolation_level=None)
    try:
        other.execute(f"BEGIN {lock}")
        error = refused(database)
        assert isinstance(error, StoreBusy)
        assert "locked by another process" in str(error)
    finally:
        other.close()
    assert len(leases(database)) == 1


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
    assert len(leases(database)) == 1


def test_an_unreadable_database(unprivileged_directory: Path) -> None:
    database = unprivileged_directory / "ipam.db"
    opened(database)
    database.chmod(0)
    assert isinstance(refused(database), StoreUnavailable)
