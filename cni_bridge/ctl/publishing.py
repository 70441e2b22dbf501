"""The command `ports`: which ports of the host lead where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click

from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import CniError
from cni_bridge.cni.plugins import Plugin
from cni_bridge.ctl.output import json_option, network_option, show, show_json, table
from cni_bridge.datapath import sysctl
from cni_bridge.plan import Attachment
from cni_bridge.policy import Publication, publications_of
from cni_bridge.records import Records
from ipam.api import Owner
from ipam.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A publication as it is shown; `state`: served, or waiting for another attachment of the container to go."""

    network: str
    container_id: str
    ifname: str
    plugin: str
    state: str
    publication: Publication


@click.command()
@network_option()
@json_option
@click.pass_obj
def ports(settings: Settings, network: str | None, as_json: bool) -> None:
    """Lists the ports of the host that are published, and where they lead."""
    try:
        rows = list(_rows(settings, network))
    except CniError as error:
        raise click.ClickException(error.msg) from None
    if as_json:
        show_json(rows)
        return
    made = table("host", "port", "leads to", "state", "network", "container", "interface", "by")
    for each in rows:
        one = each.publication
        host = str(one.host_ip) if one.host_ip is not None else f"any IPv{one.address.version}"
        target = f"[{one.address}]" if one.address.version == 6 else str(one.address)
        made.add_row(
            host,
            f"{_range(one.host_port, one.count)}/{one.protocol}",
            f"{target}:{_range(one.container_port, one.count)}",
            each.state,
            each.network,
            each.container_id,
            each.ifname,
            each.plugin,
        )
    show(made)
    six = any(each.publication.address.version == 6 for each in rows)
    if six and sysctl.read("bridge/bridge-nf-call-ip6tables") == "1":
        click.echo("not at [::1]: net.bridge.bridge-nf-call-ip6tables is 1 here", err=True)


def _rows(settings: Settings, network: str | None) -> Iterator[Row]:
    for attachment in Records(settings.run_dir / "attachments", Attachment).all(network):
        yield from _of(Plugin.CNI_BRIDGE, attachment.owner, publications_of(attachment.policies), attachment.waiting)
    for chained in Records(settings.run_dir / "chained" / Plugin.PORTMAP, Chained).all(network):
        yield from _of(Plugin.PORTMAP, chained.owner, publications_of(chained.policies), chained.waiting)


def _of(
    plugin: Plugin, owner: Owner, served: tuple[Publication, ...], waiting: tuple[Publication, ...]
) -> Iterator[Row]:
    for state, publications in (("served", served), ("waiting", waiting)):
        for each in publications:
            yield Row(
                network=owner.network,
                container_id=owner.container_id,
                ifname=owner.ifname,
                plugin=plugin,
                state=state,
                publication=each,
            )


def _range(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"
