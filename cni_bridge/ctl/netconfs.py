"""Finds a network's configuration among those that the runtimes of this host read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cni_bridge.cni.ipamconf import parse_ipam
from cni_bridge.cni.request import parse_request
from ipam.api import Dns, Wanted

DIRECTORY = Path("/etc/cni/net.d")
_SUFFIXES = (".conf", ".conflist", ".json")


def read_wanted(network: str, conf: Path | None) -> Wanted:
    """What attachments of the network ask of an IPAM, by the file, or by one of the runtimes' that has this network."""
    for path in [conf] if conf is not None else _files():
        for plugin in _plugins(path):
            if plugin.get("name") == network and isinstance(plugin.get("ipam"), dict):
                return _wanted(plugin)
    where = str(conf) if conf is not None else f"{DIRECTORY}/*"
    raise click.ClickException(f'no plugin with ipam of a network "{network}" in {where}; name its file with --conf')


def _files() -> list[Path]:
    return sorted(each for each in DIRECTORY.glob("*") if each.suffix in _SUFFIXES)


def _plugins(path: Path) -> Iterator[dict[str, Any]]:
    """The configurations of the plugins in the file, each with its network's name and version."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise click.ClickException(f"{path} is no network configuration")
    plugins = document.get("plugins", [document])
    if not isinstance(plugins, list) or not all(isinstance(each, dict) for each in plugins):
        raise click.ClickException(f'{path} is no network configuration: its "plugins" is no list of objects')
    of_all = {key: document[key] for key in ("name", "cniVersion") if key in document}
    for plugin in plugins:
        yield {**plugin, **of_all}


def _wanted(plugin: dict[str, Any]) -> Wanted:
    """As the plugin would ask for a container, but for nobody."""
    environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "", "CNI_IFNAME": ""}
    request = parse_request(environment, json.dumps(plugin).encode())
    return parse_ipam(request).wanted(request.owner, Dns())
