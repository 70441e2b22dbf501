"""Settings: defaults, the file, the environment, and what a bad value gets."""

from __future__ import annotations

import errno
import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from ipam.settings import AddressSettings, BadSettings, DefaultPool, IpamdSettings, Settings, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def pools(*texts: str) -> tuple[DefaultPool, ...]:
    """Default pools as `BASE SIZE`."""
    words = (text.split() for text in texts)
    return tuple(DefaultPool(base=ip_network(base), size=int(size)) for base, size in words)


def loaded(file: Path, text: str, **environ: str) -> Settings:
    file.write_text(text)
    return load({"CNI_BRIDGE_CONFIG": str(file), **environ})


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "---\n", "{}", "ipamd:\naddresses:\n"])
def test_defaults(file: Path, text: str | None) -> None:
    settings = load({"CNI_BRIDGE_CONFIG": str(file)}) if text is None else loaded(file, text)
    assert settings == Settings(
        state_dir=Path("/var/lib/cni-bridge"),
        run_dir=Path("/run/cni-bridge"),
        log_level="warning",
        request_timeout=30,
        default_pools=pools("10.168.0.0/13 24", "192.168.128.0/17 24"),
        addresses=AddressSettings(cooldown=60, suspect_grace=60, history_days=90, history_rows=100_000),
        ipamd=IpamdSettings(group="", max_clients=128, metrics_port=0),
    )
    assert settings.database == Path("/var/lib/cni-bridge/ipam.db")
    assert settings.ipamd_socket == Path("/run/cni-bridge/ipamd.sock")


def test_every_key_of_the_file(file: Path) -> None:
    text = """
state_dir: /srv/state
run_dir: /srv/run
log_level: debug
request_timeout: 5
default_pools:
  - {base: 10.64.0.0/10, size: 20}
  - base: fd00:1::/48
    size: 64
addresses:
  cooldown: 0
  suspect_grace: 1
  history_days: 2
  history_rows: 3
ipamd:
  group: cni
  max_clients: 7
  metrics_port: 9000
"""
    assert loaded(file, text) == Settings(
        state_dir=Path("/srv/state"),
        run_dir=Path("/srv/run"),
        log_level="debug",
        request_timeout=5,
        default_pools=pools("10.64.0.0/10 20", "fd00:1::/48 64"),
        addresses=AddressSettings(cooldown=0, suspect_grace=1, history_days=2, history_rows=3),
        ipamd=IpamdSettings(group="cni", max_clients=7, metrics_port=9000),
    )


def test_a_section_may_name_some_of_its_keys(file: Path) -> None:
    settings = loaded(file, "addresses: {cooldown: 5}\nipamd: {metrics_port: 65535}\ndefault_pools: []\n")
    assert settings == Settings(
        addresses=AddressSettings(cooldown=5), ipamd=IpamdSettings(metrics_port=65535), default_pools=()
    )


@pytest.mark.parametrize("pool", ["10.0.0.0/24 24", "10.0.0.0/24 30", "fd00::/126 126", "0.0.0.0/0 8"])
def test_the_narrowest_and_widest_default_pools(file: Path, pool: str) -> None:
    base, size = pool.split()
    assert loaded(file, f"default_pools: [{{base: '{base}', size: {size}}}]").default_pools == pools(pool)


def test_the_environment_goes_before_the_file(file: Path) -> None:
    text = "state_dir: /srv/state\nrun_dir: /srv/run\nlog_level: info\n"
    settings = loaded(file, text, CNI_BRIDGE_STATE_DIR="/env/state", CNI_BRIDGE_RUN_DIR="/env/run")
    assert (settings.state_dir, settings.run_dir, settings.log_level) == (Path("/env/state"), Path("/env/run"), "info")


def test_an_empty_variable_is_an_absent_one(file: Path) -> None:
    settings = loaded(file, "state_dir: /srv/state\n", CNI_BRIDGE_STATE_DIR="", CNI_BRIDGE_RUN_DIR="")
    assert (settings.state_dir, settings.run_dir) == (Path("/srv/state"), Path("/run/cni-bridge"))
    assert load({"CNI_BRIDGE_CONFIG": ""}) == load({})


@pytest.mark.parametrize("name", ["CNI_BRIDGE_STATE_DIR", "CNI_BRIDGE_RUN_DIR"])
def test_a_relative_directory_in_the_environment_is_refused(file: Path, name: str) -> None:
    with pytest.raises(BadSettings, match=f"{name} here/there is not an absolute path"):
        loaded(file, "", **{name: "here/there"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state_dir: relative", "state_dir relative is not an absolute path"),
        ("run_dir: ''", "run_dir  is not an absolute path"),
        ("state_dir: 5", "state_dir is 5, expected a path"),
        ("run_dir: [a]", "run_dir is ['a'], expected a path"),
        ("run_dir:", "run_dir is None, expected a path"),
        ("log_level: loud", "log_level 'loud' is none of debug, info, warning, error"),
        ("log_level: 10", "log_level is 10, expected a word"),
        ("request_timeout: 0", "request_timeout 0 is less than 1"),
        ("request_timeout: -5", "request_timeout -5 is less than 1"),
        ("request_timeout: 1.5", "request_timeout is 1.5, expected a whole number of seconds"),
        ("request_timeout: '30'", "request_timeout is '30', expected a whole number of seconds"),
        ("request_timeout: true", "request_timeout is True, expected a whole number of seconds"),
        ("ipamd: 5", "ipamd is 5, expected a section"),
        ("ipamd: {group: 5}", "ipamd.group is 5, expected a group name"),
        ("ipamd: {max_clients: 0}", "ipamd.max_clients 0 is less than 1"),
        ("ipamd: {max_clients: many}", "ipamd.max_clients is 'many', expected a whole number"),
        ("bridged: {unknown: 1}", "unknown key bridged.unknown; known are max_requests, serve_ipam"),
        ("bridged: {max_requests: 0}", "bridged.max_requests 0 is less than 1"),
        ("bridged: {serve_ipam: 1}", "bridged.serve_ipam is 1, expected true or false"),
        ("trace: 1", "trace is 1, expected true or false"),
        ("ipamd: {unknown: 1}", "unknown key ipamd.unknown; known are group, max_clients, metrics_port"),
        ("ipamd: {metrics_port: -1}", "ipamd.metrics_port -1 is less than 0"),
        ("ipamd: {metrics_port: 65536}", "ipamd.metrics_port 65536 is no TCP port"),
        ("ipamd: {metrics_port: '80'}", "ipamd.metrics_port is '80', expected a TCP port, or 0 for none"),
        ("addresses: 5", "addresses is 5, expected a section"),
        ("addresses: {cooldown: -1}", "addresses.cooldown -1 is less than 0"),
        ("addresses: {cooldown: 0.5}", "addresses.cooldown is 0.5, expected a whole number of seconds"),
        ("addresses: {cooldown:}", "addresses.cooldown is None, expected a whole number of seconds"),
        ("addresses: {suspect_grace: -1}", "addresses.suspect_grace -1 is less than 0"),
        ("addresses: {suspect_grace: 1m}", "addresses.suspect_grace is '1m', expected a whole number of seconds"),
        ("addresses: {history_days: 0}", "addresses.history_days 0 is less than 1"),
        ("addresses: {history_days: a}", "addresses.history_days is 'a', expected a whole number of days"),
        ("addresses: {history_rows: 0}", "addresses.history_rows 0 is less than 1"),
        ("addresses: {history_rows: all}", "addresses.history_rows is 'all', expected a whole number of events"),
        ("addresses: {rest: 1}", "unknown key addresses.rest; known are cooldown, history_days, history_rows, "),
        ("default_pools:", "default_pools is None, expected a list of pools, each with base and size"),
        ("default_pools: 10.0.0.0/8", "default_pools is '10.0.0.0/8', expected a list of pools"),
        ("default_pools: [10.0.0.0/8]", "default_pools[0] is not a mapping of keys to values"),
        ("default_pools: [{}]", "default_pools[0] needs both base and size"),
        ("default_pools: [{size: 24}]", "default_pools[0] needs both base and size"),
        (
            "default_pools: [{base: 10.0.0.0/8, size: 24}, {base: 10.0.0.0/8}]",
            "default_pools[1] needs both base and size",
        ),
        ("default_pools: [{base: 10, size: 24}]", "default_pools[0].base is 10, expected a subnet in CIDR notation"),
        ("default_pools: [{base: nonsense, size: 24}]", "default_pools[0].base is no subnet: "),
        ("default_pools: [{base: 10.0.0.1/8, size: 24}]", "default_pools[0].base is no subnet: "),
        ("default_pools: [{base: 10.0.0.0/255.0.0.0, size: 24}]", "default_pools[0].base is no subnet: "),
        ("default_pools: [{base: 10.0.0.0/0.255.255.255, size: 24}]", "default_pools[0].base is no subnet: "),
        ("default_pools: [{base: 10.0.0.0/8, size: 7}]", "default_pools[0].size 7 is not between 8 and 30"),
        ("default_pools: [{base: 10.0.0.0/8, size: 31}]", "default_pools[0].size 31 is not between 8 and 30"),
        ("default_pools: [{base: 'fd00::/48', size: 127}]", "default_pools[0].size 127 is not between 48 and 126"),
        ("default_pools: [{base: 10.0.0.0/8, size: '24'}]", "default_pools[0].size is '24', expected a prefix length"),
        ("default_pools: [{base: 10.0.0.0/8, size: 24, x: 1}]", "unknown key default_pools[0].x; known are base, size"),
        (
            "timeout: 5",
            "unknown key timeout; known are addresses, bridged, default_pools, ipamd, log_level, request_timeout, "
            "run_dir, state_dir, trace",
        ),
        ("5: 5", "unknown key 5"),
        ("- a\n- b", "the document is not a mapping of keys to values"),
        ("just text", "the document is not a mapping of keys to values"),
    ],
)
def test_a_bad_value_names_file_and_key(file: Path, text: str, message: str) -> None:
    with pytest.raises(BadSettings) as caught:
        loaded(file, text)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"a: b: c", b"\xff\xfe\xfd", b"a: \x07", b"!!python/object:os.system {}", b"? [a]\n: b", b"[" * 5000],
)
def test_what_is_not_yaml_names_the_file(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BadSettings) as caught:
        load({"CNI_BRIDGE_CONFIG": str(file)})
    assert str(caught.value).startswith(f"{file} cannot be read: ")
    assert "\n" not in str(caught.value)


def test_a_directory_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="cannot be read"):
        load({"CNI_BRIDGE_CONFIG": str(tmp_path)})


def test_a_directory_that_may_not_be_entered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(BadSettings, match=r"^/closed/config.yaml cannot be read: Permission denied$"):
        load({"CNI_BRIDGE_CONFIG": "/closed/config.yaml"})


def test_the_machines_own_environment_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CNI_BRIDGE_STATE_DIR", "/elsewhere")
    assert loaded(file, "").state_dir == Path("/var/lib/cni-bridge")
