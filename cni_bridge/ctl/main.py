"""`cni-bridgectl`: what is attached, who holds which address, and how to put it right, for people and for programs."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

from cni_bridge.ctl import auditing, changing, health, hosting, looking, moving, publishing
from ipam.settings import BadSettings, load


@click.group()
@click.version_option(package_name="cni-bridge")
@click.pass_context
def main(context: click.Context) -> None:
    """Shows and changes what cni-bridge knows of this host's containers and addresses.

    It asks cni-bridged or ipamd if one runs, and else reads the lease database itself.
    """
    try:
        context.obj = load(os.environ)
    except BadSettings as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
def completion(shell: str) -> None:
    """Prints the completion script for a shell, to be sourced."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows both"
    click.echo(kind(main, {}, "cni-bridgectl", "_CNI_BRIDGECTL_COMPLETE").source())


for command in (
    health.health,
    looking.pools,
    looking.leases,
    looking.show_one,
    looking.history,
    looking.attachments,
    publishing.ports,
    changing.reserve,
    changing.unreserve,
    changing.release,
    changing.forget,
    auditing.audit,
    hosting.install,
    hosting.repair,
    moving.import_,
    moving.export,
    moving.dump,
    moving.load,
    moving.metrics,
):
    main.add_command(command)
