"""MAC addresses that a configuration or a runtime asks for. Pure."""

from __future__ import annotations

import re

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.fields import Fields
from cni_bridge.cni.request import Request, blame_args

_MAC = re.compile(
    r"([\da-f]{2}(?P<separator>[:-])([\da-f]{2}(?P=separator)){4}[\da-f]{2}|[\da-f]{4}(\.[\da-f]{4}){2})\Z", re.I | re.A
)


def parse_mac(request: Request) -> str:
    """The requested MAC address; a runtime's wish goes before the user's, and `args` before `CNI_ARGS`."""
    runtime, args = request.config.object("runtimeConfig"), request.config.object("args").object("cni")
    sources = (
        (runtime.at("mac"), runtime.string("mac")),
        (args.at("mac"), args.string("mac")),
        ("CNI_ARGS MAC", request.args.get("MAC", "")),
    )
    return next((_mac(text, path) for path, text in sources if text), "")


def config_mac(config: Fields) -> str:
    """The MAC address in the configuration itself."""
    return _mac(config.string("mac"), config.at("mac")) if config.string("mac") else ""


def _mac(text: str, path: str) -> str:
    digits = re.sub("[:.-]", "", text.lower())
    if not _MAC.match(text) or int(digits[:2], 16) & 1 or not int(digits, 16):
        raise blame_args(InvalidConfig(f'{path} "{text}" is not a unicast MAC address of six octets'), path)
    return bytes.fromhex(digits).hex(":")
