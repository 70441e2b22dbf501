"""The statements on networks: their configuration, pools and cursors, and what was drawn once for this host."""

from __future__ import annotations

from datetime import datetime

from ipam.api import Address
from ipam.blobs import from_blob, to_blob
from ipam.registry import Pool
from ipam.rows import POOL, parse_pool, render_pool
from ipam.statements import Statements


class NetworkStatements(Statements):
    """Reads and changes what is known of networks."""

    def configuration(self, network: str) -> str | None:
        """The network's configuration as tracked."""
        rows = self._rows("SELECT configuration FROM networks WHERE name = ?", (network,))
        return next((str(row[0]) for row in rows), None)

    def track(self, network: str, configuration: str, since: datetime) -> None:
        """Keep the network's configuration."""
        self._connection.execute(
            "INSERT INTO networks VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET configuration = excluded.configuration",
            (network, configuration, since.isoformat()),
        )

    def networks(self) -> list[tuple[str, str, datetime]]:
        """The tracked networks: name, configuration, since when."""
        rows = self._rows("SELECT name, configuration, since FROM networks ORDER BY name")
        return [(name, configuration, datetime.fromisoformat(since)) for name, configuration, since in rows]

    def pools(self, network: str | None = None) -> list[Pool]:
        """The pools of one network, or all, in order of network and subnet."""
        where, values = ("WHERE network = ?", (network,)) if network is not None else ("", ())
        rows = self._rows(
            f"SELECT {POOL} FROM pools {where} ORDER BY network, first, last DESC",
            values,
        )
        return [parse_pool(row) for row in rows]

    def put_pool(self, pool: Pool) -> None:
        """Keep the pool; one of this subnet is replaced."""
        self._connection.execute(
            f"INSERT INTO pools ({POOL}, first, last) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (network, subnet) DO UPDATE SET "
            "ranges = excluded.ranges, origin = excluded.origin, reason = excluded.reason, shared = excluded.shared",
            render_pool(pool),
        )

    def drop_pool(self, pool: Pool) -> None:
        """Forget the pool; what is known of its addresses stays."""
        self._connection.execute("DELETE FROM pools WHERE network = ? AND subnet = ?", (pool.network, str(pool.subnet)))

    def forget(self, network: str) -> None:
        """Remove all that is known of the network but its history."""
        for table, column in (("networks", "name"), ("pools", "network"), ("cursors", "network")):
            self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (network,))
        self._connection.execute("DELETE FROM addresses WHERE network = ?", (network,))

    def set_cursor(self, network: str, first: Address, address: Address) -> None:
        """Have the set that begins at `first` go on behind the address."""
        self._connection.execute(
            "INSERT INTO cursors VALUES (?, ?, ?) ON CONFLICT (network, first) DO UPDATE SET cursor = excluded.cursor",
            (network, to_blob(first), to_blob(address)),
        )

    def cursors(self, network: str | None = None) -> list[tuple[str, Address, Address]]:
        """Where range sets stand: network, first address of the set, address that it gave last."""
        where, values = ("WHERE network = ?", (network,)) if network is not None else ("", ())
        rows = self._rows(f"SELECT network, first, cursor FROM cursors {where} ORDER BY network, first", values)
        return [(each, from_blob(first), from_blob(cursor)) for each, first, cursor in rows]

    def fact(self, name: str) -> str | None:
        """What was drawn once for this host under that name."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", (name,))
        return next((str(row[0]) for row in rows), None)

    def facts(self) -> list[tuple[str, str]]:
        """What was drawn once for this host."""
        return [(name, value) for name, value in self._rows("SELECT name, value FROM facts ORDER BY name")]

    def put_fact(self, name: str, value: str) -> None:
        """Keep what was drawn once for this host."""
        self._connection.execute("INSERT INTO facts VALUES (?, ?)", (name, value))
