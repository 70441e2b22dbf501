"""The command that tells whether the daemon serves."""

from __future__ import annotations

import socket

import click

from cni_bridge.frames import GREETING_PATIENCE, GREETING_SIZE, is_greeting
from ipam.settings import Settings


@click.command()
@click.pass_obj
def health(settings: Settings) -> None:
    """Tells whether cni-bridged greets, as its clients see it; exits with 1 if they would have to serve themselves."""
    path = settings.bridged_socket
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(GREETING_PATIENCE)
            client.connect(str(path))
            greeting = client.recv(GREETING_SIZE, socket.MSG_WAITALL)
    except OSError as error:
        raise click.ClickException(f"cni-bridged does not greet at {path}: {error.strerror or error}") from None
    if not is_greeting(greeting):
        raise click.ClickException(f"what answers at {path} is not cni-bridged of this version")
    click.echo(f"cni-bridged serves at {path}")
