"""`cni-bridgectl`: what is attached and who holds which address, for people and for programs."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import click
from rich.console import Console
from rich.table import Table

from cni_bridge.cni.errors import CniError
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from ipam.api import Lease
from ipam.codec import encode
from ipam.errors import IpamError
from ipam.local import LocalIpam
from ipam.settings import BadSettings, Settings, load


@click.group()
@click.version_option(package_name="cni-bridge")
@click.pass_context
def main(context: click.Context) -> None:
    """Shows what cni-bridge has done on this host."""
    try:
        context.obj = load(os.environ)
    except BadSettings as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--network", help="Only this network.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def leases(settings: Settings, network: str | None, as_json: bool) -> None:
    """Lists the addresses in use."""
    try:
        found = asyncio.run(_read_leases(settings, network))
    except IpamError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        json.dump([encode(each) for each in found], sys.stdout, indent=2)
        click.echo()
        return
    table = _table("network", "address", "container", "interface", "since (UTC)")
    for each in found:
        owner, since = each.owner, each.since.strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(owner.network, str(each.address), owner.container_id, owner.ifname, since)
    _print(table)


@main.command()
@click.option("--network", help="Only this network.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def attachments(settings: Settings, network: str | None, as_json: bool) -> None:
    """Lists the attachments and their links."""
    try:
        found: list[Attachment] = list(Records(settings.run_dir / "attachments").all(network))
    except CniError as error:
        raise click.ClickException(error.msg) from None
    if as_json:
        json.dump([encode(each) for each in found], sys.stdout, indent=2)
        click.echo()
        return
    table = _table("network", "container", "interface", "bridge", "host link", "addresses", "namespace")
    for each in found:
        owner, addresses = each.owner, " ".join(map(str, each.container.addresses))
        table.add_row(
            owner.network,
            owner.container_id,
            owner.ifname,
            each.bridge.name,
            each.port.name,
            addresses,
            each.netns.path,
        )
    _print(table)


async def _read_leases(settings: Settings, network: str | None) -> list[Lease]:
    if not settings.database.exists():
        return []
    ipam = await LocalIpam.open(settings.database, patience=settings.patience)
    try:
        return await ipam.leases(network)
    finally:
        await ipam.close()


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for each in columns:
        table.add_column(each, overflow="fold")
    return table


def _print(table: Table) -> None:
    """Print as wide as the terminal is, or, to a pipe, as wide as the table is; text stays as it is."""
    width = None if sys.stdout.isatty() else 1000
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
