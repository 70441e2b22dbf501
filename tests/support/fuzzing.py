"""Every parser that takes bytes from outside, as a function of bytes that may raise nothing but its own refusal."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import CniError
from cni_bridge.cni.fields import parse_object
from cni_bridge.cni.ipamconf import parse_ipam
from cni_bridge.cni.netconf import parse_netconf, parse_valid_attachments
from cni_bridge.cni.request import Request, parse_environment, parse_request
from cni_bridge.cni.result import parse, parse_previous, render
from cni_bridge.cni.tuning import parse_tuning
from cni_bridge.cni.versions import Version
from cni_bridge.frames import BadFrame, parse_call
from cni_bridge.plan import Attachment
from cni_bridge.resolvconf import parse_resolv_conf
from ipam import document, host_local, settings, wire
from ipam.codec import decode
from ipam.errors import IpamError
from tests.support.confs import DUAL_STACK, bridge_conf

CONF = Path(__file__).parents[2] / "conf"

SEEDS: list[Any] = [
    *(each for path in CONF.glob("*.conflist") for each in json.loads(path.read_text())["plugins"]),
    bridge_conf(
        ipam=DUAL_STACK,
        capabilities={"portMappings": True, "bandwidth": True},
        runtimeConfig={"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "::"}]},
        prevResult={
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/c1", "mtu": 1500}],
            "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}],
            "dns": {"nameservers": ["10.0.0.1"]},
        },
    ),
    {"op": "allocate", "wanted": {"owner": {"network": "n", "container_id": "c", "ifname": "eth0"}}},
    {"ips": [{"version": "4", "address": "10.0.0.2/24"}], "routes": [{"dst": "::/0", "gw": "fd00::1"}], "dns": {}},
    {"state_dir": "/x", "default_pools": [{"base": "10.0.0.0/8", "size": 24}], "ipamd": {"max_clients": 1}},
]

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}


def configuration(data: bytes) -> None:
    """A network configuration on standard input."""
    for command in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        try:
            request = parse_request({**ENVIRONMENT, "CNI_COMMAND": command}, data)
        except CniError:
            continue
        for read in (parse_netconf, parse_ipam, parse_tuning, parse_valid_attachments, _previous):
            try:
                read(request)
            except (CniError, IpamError):
                continue


def _previous(request: Request) -> None:
    parse_previous(request.config, request.version)


def environment(data: bytes) -> None:
    """The environment of a call, as it is in a frame."""
    try:
        call = parse_call(data)
        parse_environment(call.environ)
        parse_request(call.environ, call.stdin or b'{"cniVersion": "1.1.0", "name": "n"}')
    except (BadFrame, CniError):
        return


def ipam_result(data: bytes) -> None:
    """What another IPAM plugin prints; what was understood can be passed on."""
    try:
        result = parse(parse_object(data, "the result"), Version.V1_1_0)
    except CniError:
        return
    for version in Version:
        try:
            json.dumps(render(result, version))
        except CniError:  # an old version has no room for it
            continue


def record(data: bytes) -> None:
    """An attachment's record."""
    for kind in (Attachment, Chained):
        try:
            decode(kind, json.loads(data))
        except (ValueError, RecursionError):
            continue


def question(data: bytes) -> None:
    """A question to `ipamd`."""
    try:
        wire.parse_request(wire.unpack(data))
    except IpamError:
        return


def dump(data: bytes) -> None:
    """A dump of the lease database."""
    try:
        document.parse(json.loads(data))
    except (IpamError, ValueError, RecursionError):
        return


def config_yaml(data: bytes) -> None:
    """The settings file."""
    try:
        settings.parse(yaml.safe_load(data), Path("config.yaml"))
    except (settings.BadSettings, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return
    except ValueError as error:  # of the YAML library, for what only looks like a date
        if "config.yaml" in str(error):
            raise


def resolv_conf(data: bytes) -> None:
    """A file in the format of resolv.conf."""
    parse_resolv_conf(data.decode(errors="replace"))


def host_local_file(data: bytes) -> None:
    """A lease of the reference `host-local`."""
    with tempfile.TemporaryDirectory() as directory:
        network = Path(directory) / "net1"
        network.mkdir()
        (network / "10.0.0.2").write_bytes(data)
        (network / "last_reserved_ip.0").write_bytes(data)
        try:
            host_local.read(Path(directory), "net1")
        except IpamError:
            return


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        configuration,
        environment,
        ipam_result,
        record,
        question,
        dump,
        config_yaml,
        resolv_conf,
        host_local_file,
    )
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(found for key, each in inner for found in leaves(each, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The JSON value with another one at that path."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], tuple(rest), new)}
    return [*value[:key], replaced(value[key], tuple(rest), new), *value[key + 1 :]]
