"""What the statements on all tables of the lease database share: the connection, and rows from it."""

from __future__ import annotations

from typing import Any

import aiosqlite


class Statements:
    """Statements within the transaction that is open on a connection."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def _rows(self, statement: str, values: Any = ()) -> list[Any]:
        return list(await self._connection.execute_fetchall(statement, values))
