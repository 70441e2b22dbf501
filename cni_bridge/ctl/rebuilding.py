"""Makes a damaged lease database anew, from what records and results on the host say and its namespaces bear out."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import click

from cni_bridge.cni.plugins import Plugin
from cni_bridge.ctl.access import finish
from cni_bridge.ctl.moving import without_daemon
from cni_bridge.ctl.output import confirm
from cni_bridge.datapath.survey import LiveAddress, survey
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from ipam.api import Lease, Owner
from ipam.clock import now
from ipam.ranges import build_range
from ipam.registry import Entry, Origin, Pool
from ipam.settings import Settings
from ipam.store import Store
from ipam.transaction import Transaction

log = logging.getLogger(__name__)

RESULTS = Path("/var/lib/cni/results")  # where libcni keeps the results of ADD


def rebuild(settings: Settings, *, yes: bool) -> None:
    """Move the damaged database aside and fill a new one with the leases of containers that live."""
    live = survey()
    leases = list({(each.owner.network, each.address.ip): each for each in _living(settings, live)}.values())
    confirm(
        [
            f"{settings.database} is moved aside; what is not in use now (history, reservations, rests) is lost",
            *(f"lease {each.address} to {each.owner}" for each in leases),
        ],
        f"Make the database anew with {len(leases)} leases?",
        yes=yes,
    )
    with without_daemon(settings):
        aside = settings.database.with_name(f"ipam.db.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        settings.database.rename(aside)
        journal = settings.database.with_name("ipam.db-journal")
        if journal.exists():  # it belongs to the damaged one, and would be played back into the new one
            journal.rename(aside.with_name(f"{aside.name}-journal"))
        finish(_fill(settings, leases))
    click.echo(f"{len(leases)} leases are in the new database; the damaged one is {aside}", err=True)


async def _fill(settings: Settings, leases: list[Lease]) -> None:
    store = await Store.open(settings.database, patience=settings.patience)
    try:
        entries = [Entry(network=each.owner.network, address=each.address.ip, lease=each) for each in leases]
        pools = {(each.owner.network, each.address.network): _pool(each) for each in leases}

        def job(txn: Transaction) -> None:
            for pool in pools.values():
                txn.put_pool(pool)
            txn.put(entries)

        await store.write(job)
    finally:
        await store.close()


def _pool(lease: Lease) -> Pool:
    """The pool of the lease as far as it tells; the network's next ADD says what it is in truth."""
    subnet = lease.address.network
    return Pool(
        network=lease.owner.network,
        subnet=subnet,
        ranges=(build_range(subnet, gateway=lease.gateway),),
        origin=Origin.DEFAULT,  # so that a network whose configuration names no subnet keeps it
        reason="made anew from the leases of containers that lived",
        shared=False,
        since=datetime.now(UTC).replace(microsecond=0),
    )


def _living(settings: Settings, live: list[LiveAddress]) -> Iterator[Lease]:
    """The leases that records and results tell of and that a namespace bears out, now those of this boot."""
    seen = {(each.ifname, each.address.ip): each for each in live}
    for lease in (*_cached(live), *_recorded(settings)):  # what a record says goes before
        found = seen.get((lease.owner.ifname, lease.address.ip))
        if found is not None:
            yield replace(lease, boot_id=now().boot_id, netns=lease.netns or found.netns, mac=lease.mac or found.mac)


def _recorded(settings: Settings) -> Iterator[Lease]:
    for attachment in Records(settings.run_dir / "attachments", Attachment).all():
        if attachment.own_ipam:
            yield from attachment.allocation.leases


def _cached(live: list[LiveAddress]) -> Iterator[Lease]:
    """The leases in the results that libcni keeps ("cniCacheV1"), if a link has the MAC address they tell."""
    macs = {each.mac for each in live}
    for path in sorted(RESULTS.glob("*")):
        try:
            cached = json.loads(path.read_bytes())
            owner = Owner(network=cached["networkName"], container_id=cached["containerId"], ifname=cached["ifName"])
            if _is_ours(json.loads(base64.b64decode(cached["config"]))):
                links = [each for each in cached["result"].get("interfaces", ()) if each.get("sandbox")]
                if all(each["mac"].lower() in macs for each in links if each["name"] == owner.ifname):
                    yield from (_lease(owner, each) for each in cached["result"]["ips"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("passing over %s: %s: %s", path, type(error).__name__, error)


def _is_ours(config: dict[str, Any]) -> bool:
    """Whether our IPAM gave the addresses: a `host-local` may be the reference's, only our records tell."""
    return any(plugin.get("ipam", {}).get("type") == Plugin.CNI_IPAM for plugin in config.get("plugins", [config]))


def _lease(owner: Owner, ip: dict[str, Any]) -> Lease:
    gateway = ip.get("gateway")
    return Lease(
        owner=owner,
        address=ip_interface(ip["address"]),
        gateway=ip_address(gateway) if gateway else None,
        since=datetime.now(UTC).replace(microsecond=0),
    )
