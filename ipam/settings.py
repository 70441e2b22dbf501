"""Where things are and how long they may take: `config.yaml`, overridden by the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One node's settings. `request_timeout` is in seconds, for one request from start to answer."""

    state_dir: Path = Path("/var/lib/cni-bridge")
    run_dir: Path = Path("/run/cni-bridge")
    log_level: str = "warning"
    request_timeout: int = 30
    ipamd: IpamdSettings = field(default_factory=IpamdSettings)

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


def load(environ: Mapping[str, str]) -> Settings:
    """The settings in force: defaults, then the file, then `CNI_BRIDGE_STATE_DIR` and `CNI_BRIDGE_RUN_DIR`."""
    path = Path(environ.get("CNI_BRIDGE_CONFIG") or "/etc/cni-bridge/config.yaml")
    settings = parse(_read_yaml(path), path) if path.exists() else Settings()
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
    for key in ("state_dir", "run_dir"):
        if key in values:
            values[key] = _absolute(values[key], f"{path}: {key}")
    settings = Settings(**values)
    if settings.log_level not in LOG_LEVELS:
        raise BadSettings(f"{path}: log_level {settings.log_level!r} is none of {', '.join(LOG_LEVELS)}")
    numbers = {"request_timeout": settings.request_timeout, "ipamd.max_clients": settings.ipamd.max_clients}
    for key, number in numbers.items():
        if number < 1:
            raise BadSettings(f"{path}: {key} {number} is less than 1")
    return settings


_TYPES: dict[str, tuple[type, str]] = {
    "state_dir": (str, "a path"),
    "run_dir": (str, "a path"),
    "log_level": (str, "a word"),
    "request_timeout": (int, "a whole number of seconds"),
    "ipamd": (dict, "a section"),
    "group": (str, "a group name"),
    "max_clients": (int, "a whole number"),
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
