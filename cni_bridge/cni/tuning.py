"""Settings of the container's interface and namespace, as the reference `tuning` reads them. Pure."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cni_bridge.cni.errors import CniError, Code, DecodingFailure, InvalidConfig
from cni_bridge.cni.fields import Fields
from cni_bridge.cni.mac import config_mac, parse_mac
from cni_bridge.cni.request import Request

_LEAST_MTU, _MAX_MTU = 68, 65535  # the least that IPv4 works with (RFC 791)
_MAX_QUEUE = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """A kernel setting below `net`, its name with slashes (`ipv4/conf/eth0/arp_filter`); `key`: as it was written."""

    name: str
    value: str
    key: str

    def __str__(self) -> str:
        return f"net.{self.name.replace('/', '.')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What is to be set; None or empty for what is to stay as it is."""

    sysctls: tuple[Sysctl, ...] = ()
    mac: str = ""
    mtu: int = 0
    promisc: bool = False
    allmulti: bool | None = None
    tx_queue: int | None = None

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = Tuning()


def parse_tuning(request: Request, *, link: bool = True) -> Tuning:
    """The settings in the configuration, and over them those of `args.cni`; without `link`, not MAC and MTU."""
    config, args = request.config, request.config.object("args").object("cni")
    sources = (args, config)
    return Tuning(
        sysctls=_sysctls(request),
        mac=(config_mac(args) or parse_mac(request) or config_mac(config)) if link else "",
        mtu=_mtu(sources) if link else 0,
        promisc=next((each.boolean("promisc") for each in sources if each.has("promisc")), False),
        allmulti=next((each.boolean("allmulti") for each in sources if each.has("allmulti")), None),
        tx_queue=_first(sources, "txQLen", _MAX_QUEUE),
    )


def _mtu(sources: Iterable[Fields]) -> int:
    """The MTU; 0 means that it stays as it is."""
    fields = next((each for each in sources if each.has("mtu")), None)
    mtu = fields.integer("mtu", 0, low=0, high=_MAX_MTU) if fields is not None else 0
    if fields is not None and 0 < mtu < _LEAST_MTU:
        raise InvalidConfig(f"{fields.at('mtu')} {mtu} is not between {_LEAST_MTU} and {_MAX_MTU}")
    return mtu


def _first(sources: Iterable[Fields], key: str, high: int) -> int | None:
    return next((each.integer(key, 0, low=0, high=high) for each in sources if each.has(key)), None)


def _sysctls(request: Request) -> tuple[Sysctl, ...]:
    """The settings, those of `args.cni` over the others, as they are written: unlike keys, they differ by case."""
    merged: dict[str, Sysctl] = {}
    if not any(each.has("sysctl") for each in (request.config, request.config.object("args").object("cni"))):
        return ()  # the configuration is not read a second time for nothing
    document: object = json.loads(request.stdin, object_pairs_hook=_Members)
    for path in (("sysctl",), ("args", "cni", "sysctl")):
        found: dict[str, Sysctl] = {}
        for key, value in _pairs_at(document, path):
            if not isinstance(value, str):
                raise DecodingFailure(f"{'.'.join(path)}.{key} is not a string")
            name = posixpath.normpath(key.replace(".", "/").replace("IFNAME", request.owner.ifname, 1))
            if not name.startswith("net/") or name in found:
                why = "is given twice" if name in found else "is not below net"
                raise InvalidConfig(f'{".".join(path)}: kernel setting "{key}" {why}')
            found[name] = Sysctl(name=name.removeprefix("net/"), value=value, key=key)
        merged |= found
    return tuple(merged.values())


def _pairs_at(document: object, path: tuple[str, ...]) -> list[tuple[str, object]]:
    """The members of the object there, in order and with repetitions; path components match whatever their case."""
    found = document
    for part in path:
        members = found if isinstance(found, _Members) else _Members()
        found = next((value for key, value in reversed(members) if key.lower() == part), None)
    if found is not None and not isinstance(found, _Members):
        raise DecodingFailure(f"{'.'.join(path)} is not an object")
    return found if isinstance(found, _Members) else []


class _Members(list[tuple[str, object]]):
    """An object's members."""


def require_allowed(sysctls: Iterable[Sysctl], allowed: Iterable[str]) -> None:
    """Refuse settings that match none of the administrator's patterns, as they are written or as they are meant."""
    patterns = [each.strip() for each in allowed if each.strip() and not each.startswith("#")]
    compiled = [_compile(each) for each in patterns]
    for each in sysctls:
        if not any(one.search(each.key) or one.search(str(each)) for one in compiled):
            raise InvalidConfig(f"{each} is not allowed here; allowed are {', '.join(patterns) or 'none'}")


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise CniError(
            Code.IO_FAILURE, f'the list of allowed settings has a bad pattern, "{pattern}": {error}'
        ) from None
