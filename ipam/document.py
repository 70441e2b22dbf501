"""The whole lease database as one JSON document, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from ipam.api import Address
from ipam.codec import Json, decode, encode
from ipam.errors import RequestRefused, StoreUnavailable
from ipam.registry import PAGE, Entry, Event, Place, Pool
from ipam.store import Store
from ipam.transaction import Transaction

FORMAT = "cni-bridge-ipam"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedNetwork:
    """A network's configuration as it was tracked."""

    name: str
    configuration: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCursor:
    """The address that the range set beginning at `first` gave last."""

    network: str
    first: Address
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that was drawn once for this host."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Everything that a lease database holds."""

    networks: tuple[TrackedNetwork, ...]
    pools: tuple[Pool, ...]
    cursors: tuple[SetCursor, ...]
    facts: tuple[Fact, ...]
    addresses: tuple[Entry, ...]
    events: tuple[Event, ...]


def render(document: Document) -> Json:
    """The document as JSON."""
    return {"format": FORMAT, "version": VERSION, **encode(document)}


def parse(value: Json) -> Document:
    """The document in the JSON; `RequestRefused` says what does not fit."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise RequestRefused(f'this is no dump of a lease database: its "format" is not "{FORMAT}"')
    if value.get("version") != VERSION:
        raise RequestRefused(f"this dump has version {value.get('version')}, this program knows version {VERSION}")
    try:
        document = decode(Document, {key: each for key, each in value.items() if key not in ("format", "version")})
        _require_consistent(document)
    except ValueError as error:
        raise RequestRefused(f"malformed dump: {error}") from None
    return document


def _require_consistent(document: Document) -> None:
    """Refuse, with `ValueError`, what no database can hold."""
    for what, keys in (
        ("address", [f"{each.address} of {each.network}" for each in document.addresses]),
        ("fact", [each.name for each in document.facts]),
        ("event", [str(each.number) for each in document.events]),
    ):
        if len(keys) != len(set(keys)):
            raise ValueError(f"{what} {next(each for each in keys if keys.count(each) > 1)} is there twice")
    for entry in document.addresses:
        lease = entry.lease
        if lease is None and entry.released is None and entry.reservation is None:
            raise ValueError(f"{entry.address} of {entry.network} has neither lease nor rest nor reservation")
        if lease is not None and (lease.owner.network, lease.address.ip) != (entry.network, entry.address):
            raise ValueError(f"{entry.address} of {entry.network} has a lease of {lease.address} to {lease.owner}")


async def dump(store: Store) -> Document:
    """One state of the whole database."""
    return await store.read(_dump)


async def load(store: Store, document: Document, advance: Callable[[int], None]) -> None:
    """Fill an empty database with the document, in one transaction.

    `advance` hears, in the database's thread, of addresses and events done.
    """

    def job(txn: Transaction) -> None:
        if txn.entries(limit=1) or txn.pools() or txn.networks() or txn.facts():
            raise StoreUnavailable("the lease database is not empty; move ipam.db away first")
        for network in document.networks:
            txn.track(network.name, network.configuration, network.since)
        for pool in document.pools:
            txn.put_pool(pool)
        for start in range(0, len(document.addresses), PAGE):
            some = document.addresses[start : start + PAGE]
            txn.put(some)
            advance(len(some))
        for cursor in document.cursors:  # after the addresses, which move them
            txn.set_cursor(cursor.network, cursor.first, cursor.address)
        for fact in document.facts:
            txn.put_fact(fact.name, fact.value)
        txn.replace_history(document.events)
        advance(len(document.events))

    await store.write(job)


def _dump(txn: Transaction) -> Document:
    return Document(
        networks=tuple(TrackedNetwork(name=n, configuration=c, since=s) for n, c, s in txn.networks()),
        pools=tuple(txn.pools()),
        cursors=tuple(SetCursor(network=n, first=f, address=a) for n, f, a in txn.cursors()),
        facts=tuple(Fact(name=name, value=value) for name, value in txn.facts()),
        addresses=tuple(_entries(txn)),
        events=tuple(reversed(list(_events(txn)))),
    )


def _entries(txn: Transaction) -> Iterator[Entry]:
    after: Place | None = None
    while page := txn.entries(None, after):
        yield from page
        after = Place(network=page[-1].network, address=page[-1].address)


def _events(txn: Transaction) -> Iterator[Event]:
    before: int | None = None
    while page := txn.history("", None, "", before, PAGE):
        yield from page
        before = page[-1].number
