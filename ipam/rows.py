"""Rows of the lease database as the types of this package, and back."""

from __future__ import annotations

import json
from datetime import datetime
from ipaddress import ip_address, ip_network
from typing import Any

from ipam.api import Lease, NetnsRef, Owner, Range, Reservation, ReservedFor
from ipam.blobs import from_blob, number_blob, to_blob, to_number, with_prefix
from ipam.clock import Moment
from ipam.codec import decode, encode
from ipam.registry import Entry, Event, Happened, Origin, Pool

ENTRY = (
    "network, address, container_id, ifname, prefix, gateway, since, boot_id, name, mac, netns_path, netns_device, "
    "netns_inode, drawn_from, suspect, suspect_boot, released, released_boot, reserved_for, reserved_value"
)
POOL = "network, subnet, ranges, origin, reason, shared, since"
EVENT = "number, at, happened, network, address, container_id, ifname, name, mac, reserved_for, reserved_value"


def _moment(seconds: float | None, boot_id: str | None) -> Moment | None:
    return None if seconds is None or boot_id is None else Moment(boot_id=boot_id, seconds=seconds)


def parse_entry(row: Any) -> Entry:
    """The entry in a row of the columns `ENTRY`."""
    (network, blob, container_id, ifname, prefix, gateway, since, boot_id, name, mac, path, device, inode, drawn) = row[
        :14
    ]
    suspect, suspect_boot, released, released_boot, reserved_for, reserved_value = row[14:]
    address = from_blob(blob)
    lease = None
    if container_id is not None:
        lease = Lease(
            owner=Owner(network=network, container_id=container_id, ifname=ifname),
            address=with_prefix(address, prefix),
            gateway=ip_address(gateway) if gateway is not None else None,
            since=datetime.fromisoformat(since),
            boot_id=boot_id,
            name=name or "",
            mac=mac or "",
            netns=NetnsRef(path=path, device=device, inode=inode) if path is not None else None,
        )
    return Entry(
        network=network,
        address=address,
        lease=lease,
        released=_moment(released, released_boot),
        reservation=_reservation(reserved_for, reserved_value),
        suspect=_moment(suspect, suspect_boot),
        drawn_from=from_blob(drawn) if drawn is not None else None,
    )


def render_entry(entry: Entry) -> tuple[object, ...]:
    """The columns `ENTRY` of the entry, and the address behind it."""
    lease, netns = entry.lease, entry.lease.netns if entry.lease is not None else None
    held: tuple[object, ...] = (None,) * 11
    if lease is not None:
        held = (
            lease.owner.container_id,
            lease.owner.ifname,
            lease.address.network.prefixlen,
            str(lease.gateway) if lease.gateway is not None else None,
            lease.since.isoformat(),
            lease.boot_id,
            lease.name or None,
            lease.mac or None,
            *((netns.path, netns.device, netns.inode) if netns is not None else (None, None, None)),
        )
    return (
        entry.network,
        to_blob(entry.address),
        *held,
        to_blob(entry.drawn_from) if entry.drawn_from is not None else None,
        *_moment_columns(entry.suspect),
        *_moment_columns(entry.released),
        *((entry.reservation.kind, entry.reservation.value) if entry.reservation is not None else (None, None)),
        number_blob(to_number(entry.address) + 1),
    )


def _moment_columns(moment: Moment | None) -> tuple[object, object]:
    return (moment.seconds, moment.boot_id) if moment is not None else (None, None)


def _reservation(kind: str | None, value: str | None) -> Reservation | None:
    return Reservation(kind=ReservedFor(kind), value=value or "") if kind is not None else None


def parse_pool(row: Any) -> Pool:
    """The pool in a row of the columns `POOL`."""
    network, subnet, ranges, origin, reason, shared, since = row
    return Pool(
        network=network,
        subnet=ip_network(subnet),
        ranges=tuple(decode(Range, each) for each in json.loads(ranges)),
        origin=Origin(origin),
        reason=reason,
        shared=bool(shared),
        since=datetime.fromisoformat(since),
    )


def render_pool(pool: Pool) -> tuple[object, ...]:
    """The columns `POOL` of the pool, and its first and last address."""
    return (
        pool.network,
        str(pool.subnet),
        json.dumps(encode(pool.ranges)),
        pool.origin,
        pool.reason,
        int(pool.shared),
        pool.since.isoformat(),
        to_blob(pool.subnet.network_address),
        to_blob(pool.subnet.broadcast_address),
    )


def parse_event(row: Any) -> Event:
    """The event in a row of the columns `EVENT`."""
    number, at, happened, network, address, container_id, ifname, name, mac, reserved_for, reserved_value = row
    return Event(
        number=number,
        at=datetime.fromisoformat(at),
        happened=Happened(happened),
        network=network,
        address=from_blob(address),
        container_id=container_id or "",
        ifname=ifname or "",
        name=name or "",
        mac=mac or "",
        reservation=_reservation(reserved_for, reserved_value),
    )


def render_event(event: Event) -> tuple[object, ...]:
    """The columns `EVENT` of the event."""
    reservation = event.reservation
    return (
        event.number,
        event.at.isoformat(timespec="seconds"),
        event.happened,
        event.network,
        to_blob(event.address),
        event.container_id or None,
        event.ifname or None,
        event.name or None,
        event.mac or None,
        *((reservation.kind, reservation.value) if reservation is not None else (None, None)),
    )
