"""Where things are and how long they may take: `config.yaml`, overridden by the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")


class BadSettings(Exception):
    """The settings file cannot be used; the message names the file, the key and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpamdSettings:
    """The IPAM daemon's own settings."""

    group: str = ""  # members may ask the daemon, besides root and the daemon's own user
    max_clients: int = 128
    metrics_port: int = 0  # TCP on 127.0.0.1; 0 for none


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgedSettings:
    """The settings of `cni-bridged`, which serves plugins and, if `serve_ipam`, what `ipamd` serves elsewhere."""

    serve_ipam: bool = True
    max_requests: int = 64  # at the same time; others wait for their turn


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultPool:
    """Where subnets for networks that name none are taken from: the blocks of `size` bits in `base`, in order."""

    base: IPv4Network | IPv6Network
    size: int

    def __str__(self) -> str:
        return f"{self.base} in /{self.size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSettings:
    """How addresses are handed out. `cooldown` is in seconds, `suspect_grace` too."""

    cooldown: int = 60  # an address rests that long after its release
    suspect_grace: int = 60  # between the first and the second look that find a lease's namespace gone
    history_days: int = 90
    history_rows: int = 100_000


# Clear of what Docker, Podman and Kubernetes distributions take by default. An IPv6 pool that is not set is a /48 of
# fd00::/8 that the store draws once for this host (RFC 4193).
_DEFAULT_POOLS = (
    DefaultPool(base=IPv4Network("10.168.0.0/13"), size=24),
    DefaultPool(base=IPv4Network("192.168.128.0/17"), size=24),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One node's settings. `request_timeout` is in seconds, for one request from start to answer."""

    state_dir: Path = Path("/var/lib/cni-bridge")
    run_dir: Path = Path("/run/cni-bridge")
    log_level: str = "warning"
    request_timeout: int = 30
    trace: bool = False  # log where the time of each request went
    default_pools: tuple[DefaultPool, ...] = _DEFAULT_POOLS
    addresses: AddressSettings = field(default_factory=AddressSettings)
    ipamd: IpamdSettings = field(default_factory=IpamdSettings)
    bridged: BridgedSettings = field(default_factory=BridgedSettings)

    @property
    def database(self) -> Path:
        """The lease database."""
        return self.state_dir / "ipam.db"

    @property
    def patience(self) -> float:
        """Seconds to wait for one thing that others hold: short of the request's end, so that it ends in words."""
        return self.request_timeout / 2

    @property
    def ipamd_socket(self) -> Path:
        """Where `ipamd` listens."""
        return self.run_dir / "ipamd.sock"

    @property
    def bridged_socket(self) -> Path:
        """Where `cni-bridged` listens."""
        return self.run_dir / "cni-bridged.sock"


def settings_file(environ: Mapping[str, str]) -> Path:
    """Where the settings are."""
    return Path(environ.get("CNI_BRIDGE_CONFIG") or "/etc/cni-bridge/config.yaml")


def load(environ: Mapping[str, str]) -> Settings:
    """The settings in force: defaults, then the file, then `CNI_BRIDGE_STATE_DIR` and `CNI_BRIDGE_RUN_DIR`."""
    path = settings_file(environ)
    try:
        settings = parse(_read_yaml(path), path) if path.exists() else Settings()
    except OSError as error:  # path.exists() fails where a directory may not be entered
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    overrides = {
        key: _absolute(environ[name], name)
        for key, name in (("state_dir", "CNI_BRIDGE_STATE_DIR"), ("run_dir", "CNI_BRIDGE_RUN_DIR"))
        if environ.get(name)
    }
    return Settings(**{each.name: overrides.get(each.name, getattr(settings, each.name)) for each in fields(Settings)})


def parse(document: Any, path: Path) -> Settings:
    """The settings in a parsed YAML document; `path` is for messages."""
    values = _section(document, path, "", Settings)
    if "ipamd" in values:
        values["ipamd"] = IpamdSettings(**_section(values["ipamd"], path, "ipamd.", IpamdSettings))
    if "bridged" in values:
        values["bridged"] = BridgedSettings(**_section(values["bridged"], path, "bridged.", BridgedSettings))
    if "addresses" in values:
        values["addresses"] = AddressSettings(**_section(values["addresses"], path, "addresses.", AddressSettings))
    if "default_pools" in values:
        entries = values["default_pools"]
        values["default_pools"] = tuple(_default_pool(each, path, i) for i, each in enumerate(entries))
    for key in ("state_dir", "run_dir"):
        if key in values:
            values[key] = _absolute(values[key], f"{path}: {key}")
    settings = Settings(**values)
    if settings.log_level not in LOG_LEVELS:
        raise BadSettings(f"{path}: log_level {settings.log_level!r} is none of {', '.join(LOG_LEVELS)}")
    addresses, ipamd = settings.addresses, settings.ipamd
    _require_at_least(
        1,
        path,
        {
            "request_timeout": settings.request_timeout,
            "ipamd.max_clients": ipamd.max_clients,
            "bridged.max_requests": settings.bridged.max_requests,
            "addresses.history_days": addresses.history_days,
            "addresses.history_rows": addresses.history_rows,
        },
    )
    _require_at_least(
        0,
        path,
        {
            "ipamd.metrics_port": ipamd.metrics_port,
            "addresses.cooldown": addresses.cooldown,
            "addresses.suspect_grace": addresses.suspect_grace,
        },
    )
    if ipamd.metrics_port > 65535:
        raise BadSettings(f"{path}: ipamd.metrics_port {ipamd.metrics_port} is no TCP port")
    return settings


def _require_at_least(least: int, path: Path, numbers: Mapping[str, int]) -> None:
    for key, number in numbers.items():
        if number < least:
            raise BadSettings(f"{path}: {key} {number} is less than {least}")


def _default_pool(entry: Any, path: Path, position: int) -> DefaultPool:
    at = f"default_pools[{position}]"
    values = _section(entry, path, f"{at}.", DefaultPool)
    if values.keys() != {"base", "size"}:
        raise BadSettings(f"{path}: {at} needs both base and size")
    try:
        base = ip_network(values["base"])
        if values["base"].partition("/")[2] not in ("", str(base.prefixlen)):  # a netmask
            raise ValueError(f"{values['base']} has no prefix length")
    except ValueError as error:
        raise BadSettings(f"{path}: {at}.base is no subnet: {error}") from None
    highest = base.max_prefixlen - 2
    if not base.prefixlen <= values["size"] <= highest:
        raise BadSettings(f"{path}: {at}.size {values['size']} is not between {base.prefixlen} and {highest}")
    return DefaultPool(base=base, size=values["size"])


_TYPES: dict[str, tuple[type, str]] = {
    "state_dir": (str, "a path"),
    "run_dir": (str, "a path"),
    "log_level": (str, "a word"),
    "request_timeout": (int, "a whole number of seconds"),
    "trace": (bool, "true or false"),
    "ipamd": (dict, "a section"),
    "bridged": (dict, "a section"),
    "serve_ipam": (bool, "true or false"),
    "max_requests": (int, "a whole number"),
    "group": (str, "a group name"),
    "max_clients": (int, "a whole number"),
    "metrics_port": (int, "a TCP port, or 0 for none"),
    "default_pools": (list, "a list of pools, each with base and size"),
    "base": (str, "a subnet in CIDR notation"),
    "size": (int, "a prefix length"),
    "addresses": (dict, "a section"),
    "cooldown": (int, "a whole number of seconds"),
    "suspect_grace": (int, "a whole number of seconds"),
    "history_days": (int, "a whole number of days"),
    "history_rows": (int, "a whole number of events"),
}


def _absolute(text: str, what: str) -> Path:
    if not Path(text).is_absolute():
        raise BadSettings(f"{what} {text} is not an absolute path")
    return Path(text)


def _section(document: Any, path: Path, prefix: str, kind: type) -> dict[str, Any]:
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadSettings(f"{path}: {prefix.rstrip('.') or 'the document'} is not a mapping of keys to values")
    known = {each.name for each in fields(kind)}
    for key, value in document.items():
        if key not in known:
            raise BadSettings(f"{path}: unknown key {prefix}{key}; known are {', '.join(sorted(known))}")
        expected, words = _TYPES[key]
        if type(value) is not expected and not (expected is dict and value is None):
            raise BadSettings(f"{path}: {prefix}{key} is {value!r}, expected {words}")
    return dict(document)


def _read_yaml(path: Path) -> Any:
    import yaml  # only where there is a file: most hosts have none, and its import takes longer than the rest

    try:
        return yaml.safe_load(path.read_bytes())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise BadSettings(f"{path} cannot be read: {' '.join(str(error).split())}") from None
