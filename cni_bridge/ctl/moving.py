"""The commands that move leases and read metrics: import, export, dump, load, metrics."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import click

from cni_bridge.cni.errors import CniError
from cni_bridge.ctl.access import all_entries, ask, finish
from cni_bridge.ctl.netconfs import read_wanted
from cni_bridge.ctl.output import confirm, progress, yes_option
from ipam import document, files, host_local, wire
from ipam.client import Client
from ipam.registry import Moved, PoolUse, Registry
from ipam.settings import Settings
from ipam.store import Store

_AT_ONCE = 2000  # leases in one request: they fit into a frame of the daemon's protocol

directory_option = click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=host_local.DEFAULT_DIRECTORY,
    show_default=True,
    help="Where host-local keeps its networks (its dataDir).",
)


@click.group(name="import")
def import_() -> None:
    """Takes over the leases of another IPAM."""


@import_.command(name="host-local")
@click.argument("network")
@directory_option
@click.option(
    "--conf",
    type=click.Path(path_type=Path, exists=True),
    help="The network's configuration, if not in /etc/cni/net.d.",
)
@yes_option
@click.pass_obj
def import_host_local(settings: Settings, network: str, directory: Path, conf: Path | None, yes: bool) -> None:
    """Takes over the leases of NETWORK that the reference host-local gave; its directory is left as it is.

    Do this before the network's ipam.type is changed, while no container of it is started: no container notices.
    """
    try:
        wanted = read_wanted(network, conf)
        contents = host_local.read(directory / network, network)
    except CniError as error:
        raise click.ClickException(error.msg) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    for address in contents.empty:
        click.echo(f"passed over {address}: its file is empty, no container got it", err=True)
    for name in contents.strange:
        click.echo(f"passed over {name}: this is no address", err=True)
    confirm([f"{len(contents.leases)} leases of network {network}"], "Import them?", yes=yes)

    async def work(registry: Registry) -> None:
        with progress() as bar:
            task = bar.add_task("importing", total=len(contents.leases))
            for start in range(0, max(len(contents.leases), 1), _AT_ONCE):
                some = contents.leases[start : start + _AT_ONCE]
                await registry.adopt(wanted, some, contents.last)
                bar.advance(task, len(some))

    ask(settings, work)
    click.echo(f"{len(contents.leases)} leases of network {network} are imported")


@click.command()
@click.argument("network")
@directory_option
@click.pass_obj
def export(settings: Settings, network: str, directory: Path) -> None:
    """Writes the leases of NETWORK as the reference host-local keeps them; here they stay."""

    async def work(registry: Registry) -> tuple[list[Moved], tuple[PoolUse, ...]]:
        entries = await all_entries(registry, network)
        leases = [Moved(owner=each.lease.owner, address=each.address) for each in entries if each.lease is not None]
        return leases, await registry.pools(network)

    leases, pools = ask(settings, work)
    if not pools:
        raise click.ClickException(f'network "{network}" has no pool')
    turns = [turn for each in pools for turn in each.turns]
    last = {each.position: each.last for each in turns if each.position is not None}
    try:
        host_local.write(directory / network, leases, last)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    click.echo(f"{len(leases)} leases of network {network} are written to {directory / network}")


@click.command()
@click.argument("file", type=click.File("w"), default="-")
@click.pass_obj
def dump(settings: Settings, file: TextIO) -> None:
    """Writes the whole lease database as JSON: one state of it, read from the file itself, also beside a daemon."""

    async def work() -> document.Document:
        store = await Store.open(settings.database, patience=settings.patience)
        try:
            return await document.dump(store)
        finally:
            await store.close()

    json.dump(document.render(finish(work())), file, indent=1)
    file.write("\n")


@click.command()
@click.argument("file", type=click.File())
@click.pass_obj
def load(settings: Settings, file: TextIO) -> None:
    """Fills an empty lease database from a dump, while ipamd does not run."""
    try:
        value = json.load(file)
    except (ValueError, OSError) as error:
        raise click.ClickException(f"{file.name} is not JSON: {error}") from None

    async def work() -> document.Document:
        loaded = document.parse(value)
        store = await Store.open(settings.database, patience=settings.patience)
        try:
            with progress() as bar:
                task = bar.add_task("loading", total=len(loaded.addresses) + len(loaded.events))
                await document.load(store, loaded, lambda done: bar.advance(task, done))
        finally:
            await store.close()
        return loaded

    with without_daemon(settings):
        loaded = finish(work())
    click.echo(f"{len(loaded.addresses)} addresses of {len(loaded.networks)} networks are loaded")


@click.command()
@click.pass_obj
def metrics(settings: Settings) -> None:
    """Prints the daemon's metrics in the Prometheus text format."""
    client = Client(settings.ipamd_socket, patience=settings.request_timeout)
    click.echo(finish(client.ask(wire.Text, wire.Metrics())).text, nl=False)


@contextmanager
def without_daemon(settings: Settings) -> Iterator[None]:
    """Keep a daemon from starting meanwhile; fails if one runs."""
    path = settings.state_dir / "ipamd.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = files.create(path)
        except FileExistsError:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise click.ClickException("ipamd runs; stop it first") from None
    finally:
        os.close(fd)
