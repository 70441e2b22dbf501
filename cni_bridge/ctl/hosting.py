"""The commands that look after the host: install, repair."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click

from cni_bridge.cni.errors import CniError
from cni_bridge.cni.plugins import Plugin
from cni_bridge.ctl.output import confirm, yes_option
from ipam.settings import Settings


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--name",
    "names",
    multiple=True,
    type=click.Choice([each.value for each in Plugin]),
    help="Only this plugin; may be repeated. By default all of them.",
)
@yes_option
def install(directory: Path, names: tuple[str, ...], yes: bool) -> None:
    """Puts the plugins into a CNI directory, under our names and those of the reference plugins.

    Each is a link to this program's own executable, and is put there by renaming, so that one in use can be replaced.
    """
    executable = Path(sys.argv[0]).resolve().with_name("cni-bridge")
    if not executable.exists():
        raise click.ClickException(f"{executable} is not there")
    chosen = names or tuple(Plugin)
    replaced = [
        str(path) for name in chosen if os.path.lexists(path := directory / name) and path.resolve() != executable
    ]
    if replaced:
        confirm([f"{each} is replaced" for each in replaced], "Replace them?", yes=yes)
    try:
        for name in chosen:
            _link(directory / name, executable)
    except OSError as error:
        raise click.ClickException(f"{error.filename2 or error.filename}: {error.strerror}") from None
    click.echo(f"{len(chosen)} plugins are in {directory}")


@click.command()
@click.option("--network", help="Only of this network.")
@click.pass_obj
def repair(settings: Settings, network: str | None) -> None:
    """Makes the firewall rules of all attachments anew from the records, for instance after a flush."""
    from cni_bridge import wiring  # the netlink library is expensive
    from cni_bridge.restoring import repair as restore_rules

    try:
        with wiring.runtime(settings) as rt:
            number = asyncio.run(restore_rules(rt, network))
    except CniError as error:
        raise click.ClickException(error.msg) from None
    click.echo(f"the rules of {number} attachments are as recorded")


def _link(path: Path, executable: Path) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(executable)
    try:
        draft.rename(path)
    except OSError:
        draft.unlink()
        raise
