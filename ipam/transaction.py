"""What one transaction on the lease database can look up and change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ipam.address_statements import AddressStatements
from ipam.history_statements import HistoryStatements
from ipam.network_statements import NetworkStatements
from ipam.schema import VERSION


class Transaction(AddressStatements, NetworkStatements, HistoryStatements):
    """Reads and changes within one transaction."""

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what the block changed if it raises, and nothing else."""
        self._connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._undo("part")
            raise
        self._connection.execute("RELEASE part")

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Undo what the block changes, in any case."""
        self._connection.execute("SAVEPOINT rehearsal")
        try:
            yield
        finally:
            self._undo("rehearsal")

    def _undo(self, savepoint: str) -> None:
        if self._connection.in_transaction:  # else SQLite has undone all of it already, as when the disk is full
            self._connection.execute(f"ROLLBACK TO {savepoint}")
            self._connection.execute(f"RELEASE {savepoint}")

    def touch(self) -> None:
        """Have the commit write to the disk, and change nothing."""
        self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the file; nothing if it is sound."""
        rows = self._rows("PRAGMA integrity_check(20)")
        return [str(row[0]) for row in rows if row[0] != "ok"]
