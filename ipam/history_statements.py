"""The statements on the history of addresses; triggers write it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ipam.api import Address
from ipam.blobs import to_blob
from ipam.registry import Event
from ipam.rows import EVENT, parse_event, render_event
from ipam.statements import Statements


class HistoryStatements(Statements):
    """Reads and shortens what happened to addresses."""

    def history(
        self, network: str, address: Address | None, container: str, before: int | None, limit: int
    ) -> list[Event]:
        """The newest events that match, newest first."""
        asked = {
            "network = ?": network,
            "address = ?": to_blob(address) if address is not None else None,
            "container_id = ?": container,
            "number < ?": before,
        }
        conditions = {condition: value for condition, value in asked.items() if value not in (None, "")}
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._rows(
            f"SELECT {EVENT} FROM events {where} ORDER BY number DESC LIMIT ?",
            (*conditions.values(), limit),
        )
        return [parse_event(row) for row in rows]

    def replace_history(self, events: Iterable[Event]) -> None:
        """Have this be the whole history."""
        self._connection.execute("DELETE FROM events")
        self._connection.executemany(
            f"INSERT INTO events ({EVENT}) VALUES ({', '.join('?' * 11)})", [render_event(each) for each in events]
        )

    def shorten_history(self, rows: int, before: datetime, most: int) -> None:
        """Drop the oldest events beyond that many rows or from before that time, some at a time."""
        self._connection.execute(
            "DELETE FROM events WHERE number IN (SELECT number FROM (SELECT number, at FROM events ORDER BY number "
            "LIMIT ?) WHERE at < ? OR number <= (SELECT max(number) FROM events) - ?)",
            (most, before.isoformat(timespec="seconds"), rows),
        )
