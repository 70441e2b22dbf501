"""The statements on addresses: who holds them, what rests, what is reserved, and the runs that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ipam.allocator import Run
from ipam.api import Address, Lease, Owner, Wanted
from ipam.blobs import blob_number, from_blob, number_blob, to_blob
from ipam.clock import Moment
from ipam.registry import PAGE, Entry, Place
from ipam.rows import ENTRY, parse_entry, render_entry
from ipam.statements import Statements

_OPENING = (
    "SELECT configuration, NULL, NULL, NULL, " + ", ".join(["NULL"] * 20) + " FROM networks WHERE name = :network "
    "UNION ALL SELECT NULL, first, cursor, (SELECT next FROM taken WHERE taken.network = cursors.network "
    "AND taken.first <= cursor ORDER BY taken.first DESC LIMIT 1), "
    + ", ".join(["NULL"] * 20)
    + " FROM cursors WHERE network = :network "
    f"UNION ALL SELECT NULL, NULL, NULL, NULL, {ENTRY} FROM addresses INDEXED BY addresses_by_owner "
    "WHERE network = :network AND container_id = :container_id AND ifname IN (:ifname, '')"
)
_OPENING_RESERVED = _OPENING + (
    f" UNION ALL SELECT NULL, NULL, NULL, NULL, {ENTRY} FROM addresses INDEXED BY addresses_reserved "
    "WHERE network = :network AND reserved_for = 'name' AND reserved_value IN (:name, :short_name) "
    f"UNION ALL SELECT NULL, NULL, NULL, NULL, {ENTRY} FROM addresses INDEXED BY addresses_reserved "
    "WHERE network = :network AND reserved_for = 'mac' AND reserved_value = :mac "
    f"UNION ALL SELECT NULL, NULL, NULL, NULL, {ENTRY} FROM addresses INDEXED BY addresses_reserved "
    "WHERE network = :network AND reserved_for = 'sticky' AND reserved_value = :sticky"
)
_UPSERT = (
    f"INSERT INTO addresses ({ENTRY}, next) VALUES ({', '.join('?' * 21)}) ON CONFLICT (network, address) DO UPDATE "
    "SET "
    + ", ".join(
        f"{each} = excluded.{each}"
        for each in ENTRY.split(", ")[2:]  # the first two are the key
    )
)
_LEASE_OFF = (
    "container_id = NULL, ifname = NULL, prefix = NULL, gateway = NULL, since = NULL, boot_id = NULL, name = NULL, "
    "mac = NULL, netns_path = NULL, netns_device = NULL, netns_inode = NULL, drawn_from = NULL, suspect = NULL, "
    "suspect_boot = NULL"
)
_RELEASE = (
    f"UPDATE addresses INDEXED BY addresses_by_owner SET {_LEASE_OFF}, released = ?, released_boot = ? "
    "WHERE network = ? AND container_id = ?"
)


@dataclass(slots=True, kw_only=True)
class Cursor:
    """Where a range set stands: the address it last gave, and where the run of taken ones around that ends."""

    address: Address
    run: Run | None


@dataclass(slots=True, kw_only=True)
class Opening:
    """What has to be known before an owner is given addresses.

    `configuration`: that of the network as tracked, None if it is new. `cursors`: by the first address of the set.
    """

    configuration: str | None = None
    cursors: dict[Address, Cursor] = field(default_factory=dict)
    held: list[Entry] = field(default_factory=list)
    reserved: list[Entry] = field(default_factory=list)


class AddressStatements(Statements):
    """Reads and changes what is known of addresses."""

    def opening(self, wanted: Wanted) -> Opening:
        """What allocation begins with, in one statement."""
        owner, opening = wanted.owner, Opening()
        asks_by_more = wanted.name or wanted.mac or wanted.sticky
        rows = self._rows(
            _OPENING_RESERVED if asks_by_more else _OPENING,
            {
                "network": owner.network,
                "container_id": owner.container_id,
                "ifname": owner.ifname,
                "name": wanted.name,
                "short_name": wanted.name.rpartition("/")[2],
                "mac": wanted.mac,
                "sticky": wanted.sticky,
            },
        )
        for configuration, first, cursor, run_next, *columns in rows:
            if configuration is not None:
                opening.configuration = configuration
            elif first is not None:
                run = Run(first=blob_number(cursor), next=blob_number(run_next)) if (run_next or b"") > cursor else None
                opening.cursors[from_blob(first)] = Cursor(address=from_blob(cursor), run=run)
            else:
                entry = parse_entry(columns)
                mine = entry.lease is not None and _is_of(entry.lease.owner, owner)
                (opening.held if mine and entry not in opening.held else opening.reserved).append(entry)
        return opening

    def held(self, owner: Owner) -> list[Lease]:
        """What the owner holds, in order of address."""
        rows = self._rows(
            f"SELECT {ENTRY} FROM addresses INDEXED BY addresses_by_owner "
            "WHERE network = ? AND container_id = ? AND ifname IN (?, '') ORDER BY address",
            _key(owner),
        )
        return [each.lease for row in rows if (each := parse_entry(row)).lease is not None]

    def owners(self, network: str) -> list[Owner]:
        """Every owner of a lease in the network."""
        rows = self._rows(
            "SELECT DISTINCT network, container_id, ifname FROM addresses "
            "WHERE network = ? AND container_id IS NOT NULL",
            (network,),
        )
        return [Owner(network=row[0], container_id=row[1], ifname=row[2]) for row in rows]

    def leases_within(self, network: str, within: Run) -> list[Lease]:
        """The leases of these addresses of the network."""
        rows = self._rows(
            f"SELECT {ENTRY} FROM addresses WHERE network = ? AND address >= ? AND address < ? "
            "AND container_id IS NOT NULL ORDER BY address",
            (network, *_ends(within)),
        )
        return [each.lease for row in rows if (each := parse_entry(row)).lease is not None]

    def entry(self, network: str, address: Address) -> Entry | None:
        """What is known of the address."""
        rows = self._rows(
            f"SELECT {ENTRY} FROM addresses WHERE network = ? AND address = ?", (network, to_blob(address))
        )
        return next((parse_entry(row) for row in rows), None)

    def put(self, entries: Iterable[Entry]) -> None:
        """Make this all that is known of these addresses."""
        self._connection.executemany(_UPSERT, [render_entry(each) for each in entries])

    def drop(self, entry: Entry) -> None:
        """Forget what is known of the address."""
        self._connection.execute(
            "DELETE FROM addresses WHERE network = ? AND address = ?", (entry.network, to_blob(entry.address))
        )

    def release(self, owner: Owner, now: Moment) -> None:
        """End all leases of the owner; their addresses begin their rest."""
        self._connection.execute(
            f"{_RELEASE} AND ifname IN (?, '')",
            (now.seconds, now.boot_id, owner.network, owner.container_id, owner.ifname),
        )

    def release_all(self, owners: Iterable[Owner], now: Moment) -> None:
        """End all leases of these owners, as they are written."""
        self._connection.executemany(
            f"{_RELEASE} AND ifname = ?",
            [(now.seconds, now.boot_id, each.network, each.container_id, each.ifname) for each in owners],
        )

    def release_address(self, owner: Owner, address: Address, now: Moment) -> bool:
        """End the owner's lease of this one address; whether there was one."""
        cursor = self._connection.execute(
            f"{_RELEASE} AND ifname = ? AND address = ?",
            (now.seconds, now.boot_id, *_key(owner), to_blob(address)),
        )
        return cursor.rowcount > 0

    def end_rests(self, network: str, now: Moment, cooldown: float, most: int) -> int:
        """Free the addresses that have rested longest, if it was long enough; how many there were."""
        conditions = [("released_boot = ? AND released <= ?", (now.boot_id, now.seconds - cooldown))]
        if now.seconds >= cooldown:
            conditions += [("released_boot < ? AND released >= ?", (now.boot_id, 0.0))]
            conditions += [("released_boot > ? AND released >= ?", (now.boot_id, 0.0))]
        ended = 0
        for condition, values in conditions:
            cursor = self._connection.execute(
                "DELETE FROM addresses WHERE (network, address) IN (SELECT network, address "
                f"FROM addresses INDEXED BY addresses_at_rest WHERE network = ? AND {condition} "
                "AND reserved_for IS NULL ORDER BY released_boot, released LIMIT ?)",
                (network, *values, most),
            )
            ended += cursor.rowcount
        return ended

    def longest_at_rest(self, network: str, within: Run, boot_id: str) -> Entry | None:
        """The address that was released first and is not reserved, earlier boots before this one."""
        for comparison in ("<", ">", "="):
            rows = self._rows(
                f"SELECT {ENTRY} FROM addresses INDEXED BY addresses_at_rest "
                f"WHERE network = ? AND released_boot {comparison} ? AND released IS NOT NULL "
                "AND reserved_for IS NULL AND address >= ? AND address < ? ORDER BY released_boot, released LIMIT 1",
                (network, boot_id, *_ends(within)),
            )
            for row in rows:
                return parse_entry(row)
        return None

    def of_earlier_boots(self, network: str, within: Run, boot_id: str) -> Iterator[Entry]:
        """The leases that were given in an earlier boot, of addresses that are not reserved."""
        for comparison in ("<", ">"):
            behind: tuple[str, bytes] = ("", b"")
            while True:
                rows = self._rows(
                    f"SELECT {ENTRY} FROM addresses INDEXED BY addresses_by_boot "
                    f"WHERE network = ? AND boot_id {comparison} ? AND (boot_id, address) > (?, ?) "
                    "AND container_id IS NOT NULL AND reserved_for IS NULL AND address >= ? AND address < ? "
                    "ORDER BY boot_id, address LIMIT 64",
                    (network, boot_id, *behind, *_ends(within)),
                )
                for row in rows:
                    entry = parse_entry(row)
                    if entry.lease is not None:
                        behind = (entry.lease.boot_id, to_blob(entry.address))
                        yield entry
                if not rows:
                    break

    def mark_suspect(self, entries: Iterable[Entry], now: Moment | None) -> None:
        """Remember since when these leases are suspect, or, with None, that they are not."""
        self._connection.executemany(
            "UPDATE addresses SET suspect = ?, suspect_boot = ? "
            "WHERE network = ? AND address = ? AND container_id = ? AND ifname = ?",
            [
                (
                    now and now.seconds,
                    now and now.boot_id,
                    each.network,
                    to_blob(each.address),
                    *_key(each.lease.owner)[1:],
                )
                for each in entries
                if each.lease is not None
            ],
        )

    def count(self, network: str, within: Run, now: Moment, cooldown: float) -> tuple[int, int, int]:
        """How many addresses are leased, cooling and reserved."""
        rows = self._rows(
            "SELECT count(container_id), "
            "count(*) FILTER (WHERE container_id IS NULL AND reserved_for IS NULL AND "
            "CASE WHEN released_boot = ? THEN ? - released ELSE ? END < ?), "
            "count(*) FILTER (WHERE container_id IS NULL AND reserved_for IS NOT NULL) "
            "FROM addresses WHERE network = ? AND address >= ? AND address < ?",
            (now.boot_id, now.seconds, now.seconds, cooldown, network, *_ends(within)),
        )
        ((leased, cooling, reserved),) = rows
        return leased, cooling, reserved

    def count_rests(self, network: str, within: Run) -> int:
        """How many addresses were released and have nothing else, whether their rest is over or not."""
        rows = self._rows(
            "SELECT count(*) FROM addresses WHERE network = ? AND address >= ? AND address < ? "
            "AND container_id IS NULL AND reserved_for IS NULL",
            (network, *_ends(within)),
        )
        return int(rows[0][0])

    def entries(self, network: str | None = None, after: Place | None = None, limit: int = PAGE) -> list[Entry]:
        """What is known of the addresses behind `after`, in order of network and address."""
        conditions: list[str] = []
        values: list[object] = []
        if network is not None:
            conditions.append("network = ?")
            values.append(network)
        if after is not None:
            conditions.append("(network, address) > (?, ?)")
            values += [after.network, to_blob(after.address)]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._rows(f"SELECT {ENTRY} FROM addresses {where} ORDER BY network, address LIMIT ?", (*values, limit))
        return [parse_entry(row) for row in rows]

    def run_at(self, network: str, number: int) -> Run | None:
        """The run of taken addresses that covers the one of this number."""
        rows = self._rows(
            "SELECT first, next FROM taken WHERE network = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            (network, number_blob(number)),
        )
        for first, following in rows:
            if blob_number(following) > number:
                return Run(first=blob_number(first), next=blob_number(following))
        return None

    def runs_within(self, network: str, within: Run) -> list[Run]:
        """The runs of taken addresses as far as they are within this one, in order."""
        first, end = _ends(within)
        rows = self._rows(
            "SELECT max(first, :first), min(next, :end) FROM taken WHERE network = :network AND first < :end "
            "AND first >= coalesce("
            "(SELECT max(first) FROM taken WHERE network = :network AND first <= :first), :first) "
            "AND next > :first ORDER BY first",
            {"network": network, "first": first, "end": end},
        )
        return [Run(first=blob_number(row[0]), next=blob_number(row[1])) for row in rows]

    def runs_in_parts(self, network: str) -> list[int]:
        """The numbers at which one run ends and another begins, which should be one."""
        rows = self._rows(
            "SELECT one.next FROM taken AS one JOIN taken AS other ON other.network = one.network "
            "AND other.first = one.next WHERE one.network = ? ORDER BY one.next",
            (network,),
        )
        return [blob_number(row[0]) for row in rows]

    def count_taken(self, network: str, within: Run) -> int:
        """How many of these addresses are taken, by the runs."""
        return sum(each.next - each.first for each in self.runs_within(network, within))

    def networks_of_anything(self) -> list[str]:
        """Every network that any table names."""
        rows = self._rows(
            "SELECT name FROM networks UNION SELECT network FROM pools UNION SELECT network FROM addresses "
            "UNION SELECT network FROM taken ORDER BY 1"
        )
        return [str(row[0]) for row in rows]

    def rebuild_runs(self) -> None:
        """Make the indexes, and the runs, anew from the addresses."""
        self._connection.execute("REINDEX")
        self._connection.execute("DELETE FROM taken")
        self._connection.execute(
            "WITH steps AS (SELECT network, address, next, lag(next) OVER by_address IS NOT address AS begins "
            "FROM addresses WINDOW by_address AS (PARTITION BY network ORDER BY address)), "
            "groups AS (SELECT network, address, next, sum(begins) OVER (PARTITION BY network ORDER BY address) AS run "
            "FROM steps) "
            "INSERT INTO taken SELECT network, min(address), max(next) FROM groups GROUP BY network, run"
        )


def _ends(run: Run) -> tuple[bytes, bytes]:
    return number_blob(run.first), number_blob(run.next)


def _key(owner: Owner) -> tuple[str, str, str]:
    return (owner.network, owner.container_id, owner.ifname)


def _is_of(holder: Owner, owner: Owner) -> bool:
    """Whether the owner holds what `holder` does: a lease that was moved in may name no interface."""
    return (holder.network, holder.container_id) == (owner.network, owner.container_id) and holder.ifname in (
        owner.ifname,
        "",
    )
