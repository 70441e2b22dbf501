"""The lease database: schema, transactions and the only SQL of this package.

Addresses are 16-byte blobs that sort as numbers do, IPv4 as mapped addresses (RFC 4291, 2.5.5.2), so one table
serves both families. `leases` holds one row per address, and its primary key is what keeps an address from having
two owners. `taken` holds the same addresses as merged runs, so that the next free one is found in a few looks.

The journal is a rollback journal with `synchronous=FULL`: WAL loses data in SQLite before 3.51.3 when several
processes write, and processes of one node may link different versions.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path

import aiosqlite

from ipam import files
from ipam.allocator import Extent
from ipam.api import Address, Lease, Owner, Range, RangeSet
from ipam.boot import boot_id
from ipam.errors import AddressTaken, IpamError, StoreBusy, StoreDamaged, StoreUnavailable

SCHEMA_VERSION = 1
APPLICATION_ID = 0x636E6962  # "cnib", so that another program's database is not taken for ours

_SCHEMA = f"""
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
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

_MAPPED = b"\0" * 10 + b"\xff" * 2
_LEASE = "address, prefix, gateway, network, container_id, ifname, since, boot_id"


def to_blob(address: Address) -> bytes:
    """The address as the database stores it."""
    return address.packed if isinstance(address, IPv6Address) else _MAPPED + address.packed


def from_blob(blob: bytes) -> Address:
    """The address that the database stores as this blob."""
    return IPv4Address(blob[12:]) if blob.startswith(_MAPPED) else IPv6Address(blob)


class Store:
    """One connection to the lease database; transactions of several processes on one file exclude each other."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    async def open(cls, path: Path, *, patience: float) -> Store:
        """Open the database, creating it where there is none; `patience`: seconds to wait for other writers."""
        with _reasons(path):
            _create_file(path)
            connection = await aiosqlite.connect(path, timeout=patience, isolation_level=None)
        store = cls(connection, path)
        try:
            with _reasons(path):
                await store._prepare()
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        await self._connection.close()

    @asynccontextmanager
    async def transaction(self, *, reading: bool = False) -> AsyncIterator[Transaction]:
        """A transaction, durable when the block ends and undone when it raises; writers exclude each other."""
        with _reasons(self._path):
            try:
                await self._connection.execute("BEGIN" if reading else "BEGIN IMMEDIATE")
                yield Transaction(self._connection)
                await self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.OperationalError):  # none is open if BEGIN failed, or if COMMIT still ran
                    await self._connection.execute("ROLLBACK")
                raise

    async def leases(self, network: str | None = None) -> list[Lease]:
        """All leases, or those of one network, in order of network and address."""
        where, values = ("WHERE network = ?", (network,)) if network is not None else ("", ())
        with _reasons(self._path):
            rows = await self._connection.execute_fetchall(
                f"SELECT {_LEASE} FROM leases {where} ORDER BY network, address", values
            )
        return [_lease(row) for row in rows]

    async def _prepare(self) -> None:
        await self._connection.execute("PRAGMA journal_mode = TRUNCATE")
        await self._connection.execute("PRAGMA synchronous = FULL")
        if await self._version() == SCHEMA_VERSION:
            return
        await self._connection.execute("BEGIN IMMEDIATE")
        version = await self._version()  # again: another process may have created the schema meanwhile
        if version == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                await self._connection.execute(statement)
        await self._connection.execute("COMMIT")
        if version not in (0, SCHEMA_VERSION):
            raise StoreUnavailable(
                f"{self._path} has schema version {version}, this program knows version {SCHEMA_VERSION}; "
                "use the program version that wrote it"
            )

    async def _version(self) -> int:
        """The schema version; 0 for an empty database."""
        rows = await self._connection.execute_fetchall(
            "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema) "
            "FROM pragma_user_version, pragma_application_id"
        )
        ((version, application, objects),) = rows
        if application != APPLICATION_ID and objects:
            raise StoreDamaged(f"{self._path} is a database of another program; move it away or set state_dir")
        return int(version)


class Transaction:
    """Reads and changes within one write transaction."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def touch(self) -> None:
        """Have the commit write to the disk, and change nothing."""
        await self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    async def leases_of(self, owner: Owner) -> list[Lease]:
        """What the owner holds, in order of address."""
        rows = await self._connection.execute_fetchall(
            f"SELECT {_LEASE} FROM leases WHERE network = ? AND container_id = ? AND ifname = ? ORDER BY address",
            _key(owner),
        )
        return [_lease(row) for row in rows]

    async def owners(self, network: str) -> list[Owner]:
        """Every owner of a lease in the network."""
        rows = await self._connection.execute_fetchall(
            "SELECT DISTINCT network, container_id, ifname FROM leases WHERE network = ?", (network,)
        )
        return [Owner(network=row[0], container_id=row[1], ifname=row[2]) for row in rows]

    async def holder(self, network: str, address: Address) -> Owner | None:
        """Who holds the address."""
        rows = await self._connection.execute_fetchall(
            f"SELECT {_LEASE} FROM leases WHERE network = ? AND address = ?", (network, to_blob(address))
        )
        return next((_lease(row).owner for row in rows), None)

    async def extent_at(self, network: str, address: Address) -> Extent | None:
        """The run of taken addresses that covers the address."""
        blob = to_blob(address)
        rows = await self._connection.execute_fetchall(
            "SELECT first, last FROM taken WHERE network = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            (network, blob),
        )
        for first, last in rows:
            if last >= blob:
                return Extent(first=int(from_blob(first)), last=int(from_blob(last)))
        return None

    async def insert(self, owner: Owner, address: Address, offered: Range) -> Lease:
        """Lease the address; `AddressTaken` names the holder if there is one."""
        lease = Lease(
            owner=owner,
            address=ip_interface(f"{address}/{offered.subnet.prefixlen}"),
            gateway=offered.gateway,
            since=datetime.now(UTC).replace(microsecond=0),
            boot_id=boot_id(),
        )
        gateway = str(lease.gateway) if lease.gateway is not None else None
        row = (
            to_blob(address),
            offered.subnet.prefixlen,
            gateway,
            *_key(owner),
            lease.since.isoformat(),
            lease.boot_id,
        )
        try:
            await self._connection.execute(f"INSERT INTO leases ({_LEASE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            holder = await self.holder(owner.network, address)
            raise AddressTaken(
                f'address {address} of network "{owner.network}" is held by container '
                f"{holder.container_id if holder else '?'} ({holder.ifname if holder else '?'})"
            ) from None
        await self._take(owner.network, address)
        return lease

    async def confirm(self, owner: Owner) -> None:
        """Make the owner's leases those of this boot: it has just asked for them."""
        await self._connection.execute(
            "UPDATE leases SET boot_id = ? WHERE network = ? AND container_id = ? AND ifname = ? AND boot_id <> ?",
            (boot_id(), *_key(owner), boot_id()),
        )

    async def first_of_earlier_boots(self, network: str, offer: RangeSet) -> Address | None:
        """The set's first address whose lease no live container can have, for its namespace has gone with the boot."""
        for each in offer.ranges:
            rows = await self._connection.execute_fetchall(
                "SELECT address FROM leases WHERE network = ? AND address BETWEEN ? AND ? AND boot_id <> ? LIMIT 1",
                (network, to_blob(each.first), to_blob(each.last), boot_id()),
            )
            for row in rows:
                return from_blob(row[0])
        return None

    async def delete_of_earlier_boots(self, network: str, address: Address) -> None:
        """End the address's lease if it is of an earlier boot."""
        rows = await self._connection.execute_fetchall(
            f"SELECT {_LEASE} FROM leases WHERE network = ? AND address = ? AND boot_id <> ?",
            (network, to_blob(address), boot_id()),
        )
        for row in rows:
            await self.delete(_lease(row))

    async def delete(self, lease: Lease) -> None:
        """End the lease."""
        network, address = lease.owner.network, lease.address.ip
        await self._connection.execute(
            "DELETE FROM leases WHERE network = ? AND address = ?", (network, to_blob(address))
        )
        await self._give_back(network, address)

    async def cursor(self, network: str, first: Address) -> Address | None:
        """The address last handed out from the range set whose first range begins at `first`."""
        rows = await self._connection.execute_fetchall(
            "SELECT cursor FROM ranges WHERE network = ? AND first = ?", (network, to_blob(first))
        )
        return next((from_blob(row[0]) for row in rows if row[0] is not None), None)

    async def move_cursor(self, network: str, first: Address, address: Address) -> None:
        """Remember the address as the last handed out of that range set."""
        await self._connection.execute(
            "UPDATE ranges SET cursor = ? WHERE network = ? AND first = ?", (to_blob(address), network, to_blob(first))
        )

    async def record_range(self, network: str, each: Range) -> None:
        """Keep the range as a row, with its subnet and gateway as configured now."""
        gateway = str(each.gateway) if each.gateway is not None else None
        await self._connection.execute(
            "INSERT INTO ranges (network, first, last, subnet, gateway) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET last = excluded.last, subnet = excluded.subnet, gateway = excluded.gateway "
            "WHERE last <> excluded.last OR subnet <> excluded.subnet OR gateway IS NOT excluded.gateway",
            (network, to_blob(each.first), to_blob(each.last), str(each.subnet), gateway),
        )

    async def _take(self, network: str, address: Address) -> None:
        """Add a free address to the runs: join the neighbours that it touches."""
        number, make = int(address), type(address)
        before = await self._touching(network, address, -1)
        after = await self._touching(network, address, +1)
        if after is not None:
            await self._drop_run(network, make(after.first))
        if before is not None:
            await self._drop_run(network, make(before.first))
        first = before.first if before is not None else number
        last = after.last if after is not None else number
        await self._add_run(network, make(first), make(last))

    async def _give_back(self, network: str, address: Address) -> None:
        """Take an address out of the run that covers it, splitting the run."""
        run = await self.extent_at(network, address)
        if run is None:
            return
        number, make = int(address), type(address)
        await self._drop_run(network, make(run.first))
        if run.first < number:
            await self._add_run(network, make(run.first), make(number - 1))
        if run.last > number:
            await self._add_run(network, make(number + 1), make(run.last))

    async def _touching(self, network: str, address: Address, step: int) -> Extent | None:
        number = int(address) + step
        if not 0 <= number < 1 << address.max_prefixlen:
            return None
        return await self.extent_at(network, type(address)(number))

    async def _add_run(self, network: str, first: Address, last: Address) -> None:
        await self._connection.execute("INSERT INTO taken VALUES (?, ?, ?)", (network, to_blob(first), to_blob(last)))

    async def _drop_run(self, network: str, first: Address) -> None:
        await self._connection.execute("DELETE FROM taken WHERE network = ? AND first = ?", (network, to_blob(first)))


def _key(owner: Owner) -> tuple[str, str, str]:
    return (owner.network, owner.container_id, owner.ifname)


def _lease(row: sqlite3.Row | tuple[object, ...]) -> Lease:
    address, prefix, gateway, network, container_id, ifname, since, boot = row
    return Lease(
        owner=Owner(network=str(network), container_id=str(container_id), ifname=str(ifname)),
        address=ip_interface(f"{from_blob(address)}/{prefix}"),  # type: ignore[arg-type]  # a BLOB column
        gateway=ip_address(str(gateway)) if gateway is not None else None,
        since=datetime.fromisoformat(str(since)),
        boot_id=str(boot),
    )


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
    except OSError as error:
        raise StoreUnavailable(f"lease database {path}: {error.strerror}; check its directory") from error
    except sqlite3.DatabaseError as error:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreBusy(f"lease database {path} is locked by another process; try again") from error
        if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise StoreBusy(f"lease database {path}: {error}; free space on its file system") from error
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreDamaged(f"lease database {path} is damaged ({error}); it was left as it is") from error
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise StoreUnavailable(f"lease database {path}: {error}; check its directory") from error
        raise
