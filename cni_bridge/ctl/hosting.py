"""The commands that look after the host: install, repair."""

from __future__ import annotations

import asyncio
import filecmp
import os
import shutil
import sys
from collections.abc import Callable
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
@click.option("--copy", is_flag=True, help="Copies instead of links: for a host that shares this directory only.")
@yes_option
def install(directory: Path, names: tuple[str, ...], copy: bool, yes: bool) -> None:
    """Puts the plugins into a CNI directory, under our names and those of the reference plugins.

    Each is a link to this program's own executable, or a copy that needs nothing else of this program but its daemon,
    and is put there by renaming, so that one in use can be replaced.
    """
    executable = Path(sys.argv[0]).resolve().with_name("cni-bridge")
    if not executable.exists():
        raise click.ClickException(f"{executable} is not there")
    if copy and not _is_native(executable):
        raise click.ClickException(f"{executable} was built without a C compiler: a copy would need Python beside it")
    chosen = names or tuple(Plugin)
    replaced = [
        str(path)
        for name in chosen
        if os.path.lexists(path := directory / name) and not _is_same(path.resolve(), executable)
    ]
    if replaced:
        confirm([f"{each} is replaced" for each in replaced], "Replace them?", yes=yes)
    put = shutil.copy if copy else os.symlink
    try:
        for name in chosen:
            _replace(directory / name, lambda draft: put(executable, draft))
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


def _is_native(executable: Path) -> bool:
    with executable.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _is_same(path: Path, executable: Path) -> bool:
    return path == executable or (path.is_file() and filecmp.cmp(path, executable, shallow=False))


def _replace(path: Path, put: Callable[[Path], object]) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    try:
        put(draft)
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
