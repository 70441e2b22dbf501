"""What a runtime asks: the environment and standard input of one call, validated in the reference's order. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from cni_bridge.cni.errors import CniError, Code, DecodingFailure, InvalidConfig
from cni_bridge.cni.fields import Fields, parse_object
from cni_bridge.cni.versions import NEWEST, SUPPORTED, Version
from ipam.api import Owner

STDIN_LIMIT = 16 << 20  # bytes; thousands of port mappings fit many times over
_NOT_PRINTED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")


class Command(StrEnum):
    """The operations (CNI SPEC, section 2)."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


_REQUIRED: dict[str, tuple[str, ...]] = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    Command.GC: ("CNI_PATH",),
    Command.STATUS: ("CNI_PATH",),
    Command.VERSION: (),
}

_SINCE = {Command.CHECK: Version.V0_4_0, Command.GC: Version.V1_1_0, Command.STATUS: Version.V1_1_0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of the plugin. `stdin` and `environ` are kept as they came, for a delegated IPAM plugin."""

    command: Command
    owner: Owner  # container_id and ifname are empty for GC and STATUS
    netns: str
    args: Mapping[str, str]
    path: tuple[str, ...]
    version: Version
    config: Fields
    stdin: bytes
    environ: Mapping[str, str]
    netns_fd: int | None = None  # the namespace that `netns` names, where the caller opened it itself
    caller: int | None = None  # the process that asks, where that is another than this one
    caller_root: str = ""  # its root directory as this process sees it, where it sees other files

    @property
    def digest(self) -> str:
        """What tells whether a repeated ADD asks for the same: the configuration but for `prevResult`, and the args."""
        asked = (self.config.without("prevResult"), sorted(self.args.items()))
        return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def netns_may_be_own(self) -> bool:
        """Whether the caller insists on a container that shares the host's network namespace."""
        return self.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("TRUE", "1")


def parse_environment(environ: Mapping[str, str]) -> None:
    """Refuse an environment that lacks a variable or holds a bad value, as code 4."""
    command = environ.get("CNI_COMMAND", "")
    required = _REQUIRED.get(command, ())
    for variable in required:
        _CHECKS.get(variable, _anything)(environ.get(variable, ""))
    missing = [variable for variable in required if not environ.get(variable)]
    if missing:
        raise CniError(Code.INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")


def parse_request(
    environ: Mapping[str, str],
    stdin: bytes,
    *,
    netns_fd: int | None = None,
    caller: int | None = None,
    caller_root: str = "",
) -> Request:
    """The request in a valid environment and what came on standard input; the rest as in `Request`."""
    if len(stdin) > STDIN_LIMIT:
        raise DecodingFailure(f"the network configuration on stdin is larger than {STDIN_LIMIT >> 20} MiB")
    config = parse_object(stdin, "the network configuration on stdin")
    network = config.string("name")
    if not network:
        raise InvalidConfig("missing network name", 'the key "name" of the network configuration is absent or empty')
    if not _NAME.match(network):
        raise InvalidConfig("invalid characters found in network name", network)
    command = environ.get("CNI_COMMAND", "")
    if command not in list(Command):
        raise CniError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    version = parse_version(config)
    needed = _SINCE.get(Command(command))
    if needed is not None and not version.since(needed):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"config version does not allow {command}",
            f'cniVersion "{version}" is older than {needed}, which brought {command}',
        )
    return Request(
        command=Command(command),
        owner=Owner(
            network=network,
            container_id=environ.get("CNI_CONTAINERID", ""),
            ifname=environ.get("CNI_IFNAME", ""),
        ),
        netns=environ.get("CNI_NETNS", ""),
        args=parse_args(environ.get("CNI_ARGS", "")) if command in (Command.ADD, Command.CHECK) else {},
        path=tuple(filter(None, environ.get("CNI_PATH", "").split(":"))),
        version=version,
        config=config,
        stdin=stdin,
        environ=environ,
        netns_fd=netns_fd,
        caller=caller,
        caller_root=caller_root,
    )


def parse_version(config: Fields) -> Version:
    """The configuration's `cniVersion`; absent means 0.1.0."""
    text = config.string("cniVersion") or Version.V0_1_0
    if text not in list(Version):
        supported = " ".join(f'"{each}"' for each in SUPPORTED)
        raise CniError(
            Code.INCOMPATIBLE_VERSION, "incompatible CNI versions", f'config is "{text}", plugin supports [{supported}]'
        )
    return Version(text)


def version_asked(stdin: bytes) -> str:
    """The `cniVersion` that a VERSION request echoes; the newest where the caller sent none."""
    try:
        return parse_object(stdin, "stdin").string("cniVersion") or NEWEST
    except CniError:
        return NEWEST


KNOWN_ARGS = frozenset({"IgnoreUnknown", "MAC", "IP", "GATEWAY", "STICKY"})


_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}  # whatever their case, as the reference reads them


def parse_args(text: str) -> dict[str, str]:
    """`CNI_ARGS` as the reference reads it: keys are case-sensitive, unknown ones need `IgnoreUnknown`."""
    pairs: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or "=" in value:
            raise CniError(Code.INVALID_ENVIRONMENT, f'CNI_ARGS: invalid pair "{pair}"', f"CNI_ARGS is {text}")
        pairs[key] = value
    ignore = _BOOLEANS.get(pairs.get("IgnoreUnknown", "false").lower())
    if ignore is None:
        said = pairs["IgnoreUnknown"]
        raise CniError(
            Code.INVALID_ENVIRONMENT, f'CNI_ARGS: IgnoreUnknown "{said}" is not true or false', f"CNI_ARGS is {text}"
        )
    unknown = [f"{key}={value}" for key, value in pairs.items() if key not in KNOWN_ARGS]
    if unknown and not ignore:
        shown = ", ".join(f'"{each}"' for each in unknown)
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: unknown args [{shown}]", "IgnoreUnknown=1 lets them pass")
    return pairs


def blame_args(error: CniError, path: str) -> CniError:
    """The error as one of the environment, if the value came from `CNI_ARGS`, which `path` then begins with."""
    return CniError(Code.INVALID_ENVIRONMENT, error.msg, error.details) if path.startswith("CNI_ARGS") else error


def _check_container_id(value: str) -> None:
    if value and not _NAME.match(value):
        raise CniError(Code.INVALID_ENVIRONMENT, "invalid characters in containerID", f"CNI_CONTAINERID is {value}")


def _check_ifname(value: str) -> None:
    shown = f"CNI_IFNAME is {value}"
    if not value.isprintable() and _NOT_PRINTED.search(value):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            "interface name contains control characters or is not UTF-8",
            f"CNI_IFNAME is {value!a}",
        )
    if len(value.encode()) > 15:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            "interface name is too long",
            f"interface name should be less than 16 characters; {shown}",
        )
    if value in (".", ".."):
        raise CniError(Code.INVALID_ENVIRONMENT, "interface name is . or ..", shown)
    if any(each in "/:" or each.isspace() for each in value):
        raise CniError(Code.INVALID_ENVIRONMENT, "interface name contains / or : or whitespace characters", shown)
    if "%" in value:  # dev_alloc_name() of the kernel would make another name of it
        raise CniError(Code.INVALID_ENVIRONMENT, "interface name contains %", shown)


def _anything(_: str) -> None:
    pass


_CHECKS = {"CNI_CONTAINERID": _check_container_id, "CNI_IFNAME": _check_ifname}
