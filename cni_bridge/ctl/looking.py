"""The commands that look: pools, leases, show, history, attachments."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address

import click
from rich.bar import Bar

from cni_bridge.cni.errors import CniError
from cni_bridge.ctl.access import all_entries, ask
from cni_bridge.ctl.output import json_option, moment, network_option, show, show_json, table
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from ipam.api import Address, NetnsRef
from ipam.clock import now
from ipam.registry import PAGE, Entry, Event, Happened, PoolUse, Registry, State
from ipam.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An address as it is shown: `state` is leased, cooling or reserved, or free when its rest is over."""

    network: str
    address: str
    state: str
    container_id: str
    ifname: str
    name: str
    mac: str
    gateway: str
    since: datetime | None
    boot_id: str
    netns: NetnsRef | None
    suspect: bool
    reserved_for: str


def row_of(entry: Entry, settings: Settings) -> Row:
    """What is shown of the entry."""
    lease = entry.lease
    return Row(
        network=entry.network,
        address=str(lease.address if lease is not None else entry.address),
        state=entry.state(now(), settings.addresses.cooldown) or "free",
        container_id=lease.owner.container_id if lease is not None else "",
        ifname=lease.owner.ifname if lease is not None else "",
        name=lease.name if lease is not None else "",
        mac=lease.mac if lease is not None else "",
        gateway=str(lease.gateway or "") if lease is not None else "",
        since=lease.since if lease is not None else None,
        boot_id=lease.boot_id if lease is not None else "",
        netns=lease.netns if lease is not None else None,
        suspect=entry.suspect is not None,
        reserved_for=str(entry.reservation or ""),
    )


@click.command()
@network_option()
@json_option
@click.pass_obj
def pools(settings: Settings, network: str | None, as_json: bool) -> None:
    """Lists the pools and how full they are."""
    found = ask(settings, lambda registry: registry.pools(network))
    if as_json:
        show_json([_pool_row(each) for each in found])
        return
    made = table("network", "subnet", "use", "leased", "cooling", "reserved", "free", "origin", "reason")
    for each in found:
        used = each.capacity - each.free
        made.add_row(
            each.pool.network,
            str(each.pool.subnet),
            Bar(size=max(each.capacity, 1), begin=0, end=used, width=20),
            *map(str, (each.leased, each.cooling, each.reserved, each.free)),
            each.pool.origin,
            each.pool.reason,
        )
    show(made)


def _pool_row(use: PoolUse) -> dict[str, object]:
    numbers = {name: getattr(use, name) for name in ("capacity", "leased", "cooling", "reserved", "free")}
    pool = use.pool
    about = {"network": pool.network, "subnet": str(pool.subnet), "origin": pool.origin, "reason": pool.reason}
    return {**about, "shared": pool.shared, "since": pool.since.isoformat(), **numbers, "ranges": list(pool.ranges)}


@click.command()
@network_option()
@click.option("--container", default="", help="Only of containers whose id begins so.")
@click.option("--name", default="", help="Only of this pod (NAMESPACE/POD or POD) or container.")
@click.option(
    "--state",
    type=click.Choice([*(each.value for each in State), "all"]),
    default=State.LEASED.value,
    show_default=True,
    help="Only addresses in this state.",
)
@json_option
@click.pass_obj
def leases(settings: Settings, network: str | None, container: str, name: str, state: str, as_json: bool) -> None:
    """Lists the addresses in use, cooling or reserved."""
    entries = ask(settings, lambda registry: all_entries(registry, network))
    rows = [row_of(each, settings) for each in entries]
    rows = [
        each
        for each in rows
        if (state == "all" or each.state == state)
        and each.container_id.startswith(container)
        and (not name or name in (each.name, each.name.rpartition("/")[2]))
    ]
    show_rows(rows, as_json=as_json)


def show_rows(rows: Iterable[Row], *, as_json: bool) -> None:
    """Print addresses."""
    if as_json:
        show_json(list(rows))
        return
    made = table("network", "address", "state", "container", "interface", "name", "since (UTC)", "reserved for")
    for each in rows:
        made.add_row(
            each.network,
            each.address,
            f"{each.state}, suspect" if each.suspect else each.state,
            each.container_id,
            each.ifname,
            each.name,
            moment(each.since) if each.since is not None else "",
            each.reserved_for,
        )
    show(made)


@click.command(name="show")
@click.argument("what", metavar="ADDRESS|CONTAINER|NETWORK")
@json_option
@click.pass_obj
def show_one(settings: Settings, what: str, as_json: bool) -> None:
    """Tells all that is known of an address, a container (its id, the beginning of it, or its name) or a network."""
    found = ask(settings, lambda registry: _look_up(registry, what))
    attachments = [each for each in _records(settings).all() if _is_about(each, what)]
    if not any(found) and not attachments:
        raise click.ClickException(f"nothing is known of {what}")
    uses, entries, events = found
    rows = [row_of(each, settings) for each in entries]
    if as_json:
        show_json(
            {
                "pools": [_pool_row(each) for each in uses],
                "addresses": rows,
                "attachments": attachments,
                "history": list(events),
            }
        )
        return
    for use in uses:
        for key, value in _pool_row(use).items():
            click.echo(f"{key}: {' '.join(map(str, value)) if isinstance(value, list) else value}")
        click.echo()
    for row in rows:
        for line in _described(row):
            click.echo(line)
        click.echo()
    for each in attachments:
        click.echo(f"attachment: {each.owner} at port {each.port.name} of bridge {each.bridge.name}")
    show_events(events)


async def _look_up(registry: Registry, what: str) -> tuple[list[PoolUse], list[Entry], list[Event]]:
    address = as_address(what)
    uses = await registry.pools()
    if address is not None:
        entries = [each for each in await all_entries(registry) if each.address == address]
        within = [each for each in uses if each.pool.subnet.version == address.version and address in each.pool.subnet]
        return within, entries, list(await registry.history(address=address, limit=20))
    of_network = [each for each in uses if each.pool.network == what]
    if of_network:
        return of_network, [], list(await registry.history(network=what, limit=20))
    entries = [each for each in await all_entries(registry) if _is_of(each, what)]
    ids = {each.lease.owner.container_id for each in entries if each.lease is not None} or {what}
    events = [event for each in sorted(ids) for event in await registry.history(container=each, limit=20)]
    return [], entries, events


def as_address(text: str) -> Address | None:
    """The address that the text is; None if it is none."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_of(entry: Entry, container: str) -> bool:
    lease = entry.lease
    if lease is None:
        return False
    return lease.owner.container_id.startswith(container) or container in (lease.name, lease.name.rpartition("/")[2])


def _is_about(attachment: Attachment, what: str) -> bool:
    owner = attachment.owner
    return (
        as_address(what) in {each.ip for each in attachment.container.addresses}
        or owner.network == what
        or owner.container_id.startswith(what)
    )


def _described(row: Row) -> Iterable[str]:
    yield f"address: {row.address} of network {row.network}, {row.state}"
    for name in ("container_id", "ifname", "name", "mac", "gateway", "since", "boot_id", "reserved_for"):
        if value := getattr(row, name):
            yield f"  {name}: {value}"
    if row.netns is not None:
        yield f"  netns: {row.netns.path} (device {row.netns.device}, inode {row.netns.inode})"
    if row.suspect:
        yield "  suspect: it is of an earlier boot and its namespace is gone"


@click.command()
@click.argument("address", required=False, default="")
@network_option()
@click.option("--container", default="", help="Only of this container id.")
@click.option("--at", "at", type=click.DateTime(), help="Who had ADDRESS at this time (UTC).")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most that many events.")
@json_option
@click.pass_obj
def history(
    settings: Settings,
    address: str,
    network: str | None,
    container: str,
    at: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Tells what happened to addresses, newest first, and who had one at a time."""
    of = as_address(address)
    if address and of is None:
        raise click.UsageError(f"{address} is no address")
    if at is not None and of is None:
        raise click.UsageError("--at needs an ADDRESS")
    events = ask(
        settings, lambda registry: _events(registry, network or "", of, container, limit if at is None else sys.maxsize)
    )
    if at is not None:
        events = _holders(events, at.replace(tzinfo=UTC))
        if not events:
            raise click.ClickException(f"nobody had {address} at {moment(at)} UTC, as far as the history goes back")
    if as_json:
        show_json(events)
    else:
        show_events(events)


async def _events(registry: Registry, network: str, address: Address | None, container: str, limit: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < limit:
        page = await registry.history(
            network=network,
            address=address,
            container=container,
            before=found[-1].number if found else None,
            limit=min(PAGE, limit - len(found)),
        )
        found += page
        if not page:
            break
    return found


def _holders(events: list[Event], at: datetime) -> list[Event]:
    """Of each network, the lease that was in force at that time."""
    last: dict[str, Event] = {}
    for event in events:  # newest first
        if event.at <= at and event.happened in (Happened.LEASED, Happened.RELEASED):
            last.setdefault(event.network, event)
    return [each for each in last.values() if each.happened == Happened.LEASED]


def show_events(events: Iterable[Event]) -> None:
    """Print events."""
    made = table("time (UTC)", "event", "network", "address", "container", "interface", "name", "reserved for")
    for each in events:
        made.add_row(
            moment(each.at),
            each.happened,
            each.network,
            str(each.address),
            each.container_id,
            each.ifname,
            each.name,
            str(each.reservation or ""),
        )
    show(made)


@click.command()
@network_option()
@json_option
@click.pass_obj
def attachments(settings: Settings, network: str | None, as_json: bool) -> None:
    """Lists the attachments and their links."""
    try:
        found = list(_records(settings).all(network))
    except CniError as error:
        raise click.ClickException(error.msg) from None
    if as_json:
        show_json(found)
        return
    made = table("network", "container", "interface", "bridge", "host link", "addresses", "namespace")
    for each in found:
        owner, addresses = each.owner, " ".join(map(str, each.container.addresses))
        made.add_row(
            owner.network,
            owner.container_id,
            owner.ifname,
            each.bridge.name,
            each.port.name,
            addresses,
            each.netns.path,
        )
    show(made)


def _records(settings: Settings) -> Records[Attachment]:
    return Records(settings.run_dir / "attachments", Attachment)
