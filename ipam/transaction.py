"""What one transaction on the lease database can look up and change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ipam.address_statements import AddressStatements
from ipam.history_statements import HistoryStatements
from ipam.network_statements import NetworkStatements
from ipam.schema import VERSION


class Transaction(AddressStatements, NetworkStatements, HistoryStatements):
    """Reads and changes within one transaction."""

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo what the block changed if it raises, and nothing else."""
        await self._connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            await self._connection.execute("ROLLBACK TO part")
            raise
        finally:
            await self._connection.execute("RELEASE part")

    @asynccontextmanager
    async def rehearsal(self) -> AsyncIterator[None]:
        """Undo what the block changes, in any case."""
        await self._connection.execute("SAVEPOINT rehearsal")
        try:
            yield
        finally:
            await self._connection.execute("ROLLBACK TO rehearsal")
            await self._connection.execute("RELEASE rehearsal")

    async def touch(self) -> None:
        """Have the commit write to the disk, and change nothing."""
        await self._connection.execute(f"PRAGMA user_version = {VERSION}")

    async def integrity(self) -> list[str]:
        """What SQLite finds wrong with the file; nothing if it is sound."""
        rows = await self._rows("PRAGMA integrity_check(20)")
        return [str(row[0]) for row in rows if row[0] != "ok"]
