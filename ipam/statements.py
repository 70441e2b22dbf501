"""What the statements on all tables of the lease database share: the connection, and rows from it."""

from __future__ import annotations

import sqlite3
from typing import Any


class Statements:
    """Statements within the transaction that is open on a connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _rows(self, statement: str, values: Any = ()) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()
