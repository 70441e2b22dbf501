"""How the operator's command prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ipam.codec import encode

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


def network_option(*, required: bool = False) -> Callable[[F], F]:
    """The option `--network`."""
    return click.option("--network", required=required, help="The network." if required else "Only this network.")


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def table(*columns: str) -> Table:
    """A table without a frame."""
    made = Table(box=None, pad_edge=False)
    for each in columns:
        made.add_column(each, overflow="fold")
    return made


def show(what: Table) -> None:
    """Print as wide as the terminal is, or, to a pipe, as wide as the table is; text stays as it is."""
    width = None if sys.stdout.isatty() else 1000
    Console(width=width, markup=False, emoji=False, highlight=False).print(what)


def show_json(values: Any) -> None:
    """Print the value, or what dataclasses of this project it is made of, as JSON."""
    json.dump(values, sys.stdout, indent=2, default=encode)
    click.echo()


def progress() -> Progress:
    """Shows on standard error how far long work is, to people."""
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def moment(at: datetime) -> str:
    """A time for people, in UTC."""
    return at.strftime("%Y-%m-%d %H:%M:%S")


def confirm(lines: Iterable[str], question: str, *, yes: bool) -> None:
    """Name what is about to be hit and ask; anything but yes ends the command with status 1."""
    for each in lines:
        click.echo(each, err=True)
    if not yes:
        click.confirm(question, abort=True, err=True)
