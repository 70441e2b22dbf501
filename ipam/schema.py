"""The tables of the lease database, and how older ones become these.

`addresses` has a row for each address that is leased, at rest after a release, or reserved; its primary key is what
keeps an address from having two owners. Triggers keep two things in step with it, in the same transaction: `taken`,
the same addresses as merged runs (`first` included, `next` not), in which the next free one is found by looking up one
run, and `events`, what happened to whom and when. Blobs are addresses (see `ipam.blobs`).
"""

from __future__ import annotations

APPLICATION_ID = 0x636E6962  # "cnib", so that another program's database is not taken for ours
VERSION = 2

_TABLES = (
    """CREATE TABLE networks (
        name TEXT NOT NULL PRIMARY KEY,
        configuration TEXT NOT NULL,  -- its range sets, as JSON
        since TEXT NOT NULL) STRICT, WITHOUT ROWID""",
    """CREATE TABLE pools (
        network TEXT NOT NULL, subnet TEXT NOT NULL, first BLOB NOT NULL, last BLOB NOT NULL,
        ranges TEXT NOT NULL,  -- as JSON
        origin TEXT NOT NULL CHECK (origin IN ('configured', 'runtime', 'default')),
        reason TEXT NOT NULL, shared INTEGER NOT NULL CHECK (shared IN (0, 1)), since TEXT NOT NULL,
        PRIMARY KEY (network, subnet)) STRICT, WITHOUT ROWID""",
    "CREATE TABLE facts (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE cursors (
        network TEXT NOT NULL, first BLOB NOT NULL,  -- of the first range of a set
        cursor BLOB NOT NULL,                        -- the address that the set last gave
        PRIMARY KEY (network, first)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE addresses (
        network TEXT NOT NULL, address BLOB NOT NULL CHECK (length(address) = 16),
        next BLOB NOT NULL CHECK (length(next) BETWEEN 16 AND 17),
        container_id TEXT, ifname TEXT, prefix INTEGER, gateway TEXT, since TEXT, boot_id TEXT,
        name TEXT, mac TEXT, netns_path TEXT, netns_device INTEGER, netns_inode INTEGER,
        drawn_from BLOB, suspect REAL, suspect_boot TEXT,
        released REAL, released_boot TEXT,
        reserved_for TEXT CHECK (reserved_for IN ('name', 'mac', 'sticky', 'nobody')), reserved_value TEXT,
        PRIMARY KEY (network, address),
        CHECK (container_id IS NOT NULL OR released IS NOT NULL OR reserved_for IS NOT NULL),
        CHECK (container_id IS NULL OR (
            ifname IS NOT NULL AND prefix IS NOT NULL AND since IS NOT NULL AND boot_id IS NOT NULL))
        ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX addresses_by_owner ON addresses (network, container_id, ifname) WHERE container_id IS NOT NULL",
    "CREATE INDEX addresses_by_boot ON addresses (network, boot_id) WHERE container_id IS NOT NULL",
    "CREATE INDEX addresses_at_rest ON addresses (network, released_boot, released) "
    "WHERE released IS NOT NULL AND reserved_for IS NULL",
    "CREATE INDEX addresses_reserved ON addresses (network, reserved_for, reserved_value) "
    "WHERE reserved_for IS NOT NULL",
    """CREATE TABLE taken (
        network TEXT NOT NULL, first BLOB NOT NULL, next BLOB NOT NULL,
        PRIMARY KEY (network, first)) STRICT, WITHOUT ROWID""",
    "CREATE INDEX taken_by_next ON taken (network, next)",
    """CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, happened TEXT NOT NULL,
        network TEXT NOT NULL, address BLOB NOT NULL, container_id TEXT, ifname TEXT, name TEXT, mac TEXT,
        reserved_for TEXT, reserved_value TEXT) STRICT""",
)

_KEEP_RUNS = (
    """CREATE TRIGGER taken_grows AFTER INSERT ON addresses BEGIN
        INSERT INTO taken VALUES (
            NEW.network,
            coalesce((SELECT first FROM taken WHERE network = NEW.network AND next = NEW.address), NEW.address),
            coalesce((SELECT next FROM taken WHERE network = NEW.network AND first = NEW.next), NEW.next))
        ON CONFLICT (network, first) DO UPDATE SET next = excluded.next;
        DELETE FROM taken WHERE network = NEW.network AND first = NEW.next;
    END""",
    """CREATE TRIGGER taken_shrinks AFTER DELETE ON addresses BEGIN
        INSERT INTO taken SELECT network, OLD.next, next FROM taken
            WHERE network = OLD.network AND next > OLD.next AND first =
                (SELECT max(first) FROM taken WHERE network = OLD.network AND first <= OLD.address);
        UPDATE taken SET next = OLD.address WHERE network = OLD.network AND first =
            (SELECT max(first) FROM taken WHERE network = OLD.network AND first < OLD.next);
        DELETE FROM taken WHERE network = OLD.network AND first = OLD.address;
    END""",
)

_MOVE_CURSORS = tuple(
    f"CREATE TRIGGER cursor_moves_on_{change.split()[0].lower()} AFTER {change} ON addresses WHEN {condition} BEGIN "
    "INSERT INTO cursors VALUES (NEW.network, NEW.drawn_from, NEW.address) "
    "ON CONFLICT (network, first) DO UPDATE SET cursor = excluded.cursor; END"
    for change, condition in (
        ("INSERT", "NEW.drawn_from IS NOT NULL"),
        ("UPDATE OF drawn_from", "NEW.drawn_from IS NOT NULL AND OLD.drawn_from IS NOT NEW.drawn_from"),
    )
)


_OF_AN_EVENT = "network, address, container_id, ifname, name, mac, reserved_for, reserved_value"


def _event(name: str, change: str, happened: str, row: str, condition: str) -> str:
    columns = ", ".join(f"{row}.{each}" for each in _OF_AN_EVENT.split(", "))
    values = f"strftime('%Y-%m-%dT%H:%M:%S+00:00'), '{happened}', {columns}"
    return (
        f"CREATE TRIGGER {name} AFTER {change} ON addresses WHEN {condition} BEGIN "
        f"INSERT INTO events (at, happened, {_OF_AN_EVENT}) VALUES ({values}); END"
    )


_OTHER_OWNER = "(OLD.container_id IS NOT NEW.container_id OR OLD.ifname IS NOT NEW.ifname)"
_OTHER_RESERVATION = "(OLD.reserved_for IS NOT NEW.reserved_for OR OLD.reserved_value IS NOT NEW.reserved_value)"

_KEEP_HISTORY = (
    _event("history_lease", "INSERT", "leased", "NEW", "NEW.container_id IS NOT NULL"),
    _event("history_end", "DELETE", "released", "OLD", "OLD.container_id IS NOT NULL"),
    # Of triggers on one event, SQLite runs the one that was created last first: an end comes before what follows it.
    _event(
        "history_take_over",
        "UPDATE OF container_id, ifname",
        "leased",
        "NEW",
        f"NEW.container_id IS NOT NULL AND {_OTHER_OWNER}",
    ),
    _event(
        "history_release",
        "UPDATE OF container_id, ifname",
        "released",
        "OLD",
        f"OLD.container_id IS NOT NULL AND {_OTHER_OWNER}",
    ),
    _event("history_reservation", "INSERT", "reserved", "NEW", "NEW.reserved_for IS NOT NULL"),
    _event("history_reservation_gone", "DELETE", "unreserved", "OLD", "OLD.reserved_for IS NOT NULL"),
    _event(
        "history_reservation_new",
        "UPDATE OF reserved_for, reserved_value",
        "reserved",
        "NEW",
        f"NEW.reserved_for IS NOT NULL AND {_OTHER_RESERVATION}",
    ),
    _event(
        "history_reservation_end",
        "UPDATE OF reserved_for, reserved_value",
        "unreserved",
        "OLD",
        f"OLD.reserved_for IS NOT NULL AND {_OTHER_RESERVATION}",
    ),
)

CREATE = (*_TABLES, *_KEEP_RUNS, *_MOVE_CURSORS, *_KEEP_HISTORY)

# Version 1 had `ranges` with cursors, `leases` and `taken` with inclusive ends. It kept no configuration, so its
# networks are tracked from their next request on. The store provides the function next_address().
_FROM_1 = (
    "ALTER TABLE leases RENAME TO leases_1",
    "ALTER TABLE ranges RENAME TO ranges_1",
    "DROP INDEX leases_by_owner",
    "DROP TABLE taken",
    *CREATE,
    "INSERT INTO addresses (network, address, next, container_id, ifname, prefix, gateway, since, boot_id) "
    "SELECT network, address, next_address(address), container_id, ifname, prefix, gateway, since, boot_id "
    "FROM leases_1",
    "INSERT INTO cursors SELECT network, first, cursor FROM ranges_1 WHERE cursor IS NOT NULL",
    "DROP TABLE leases_1",
    "DROP TABLE ranges_1",
)

STEPS = {1: _FROM_1}  # by the version they start from, each to the next one
