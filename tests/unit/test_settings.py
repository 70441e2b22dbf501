"""Settings: defaults, the file, the environment, and what a bad value gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipam.settings import BadSettings, IpamdSettings, Settings, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def loaded(file: Path, text: str, **environ: str) -> Settings:
    file.write_text(text)
    return load({"CNI_BRIDGE_CONFIG": str(file), **environ})


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "---\n", "{}", "ipamd:\n"])
def test_defaults(file: Path, text: str | None) -> None:
    settings = load({"CNI_BRIDGE_CONFIG": str(file)}) if text is None else loaded(file, text)
    assert settings == Settings(
        state_dir=Path("/var/lib/cni-bridge"),
        run_dir=Path("/run/cni-bridge"),
        log_level="warning",
        request_timeout=30,
        ipamd=IpamdSettings(group="", max_clients=128),
    )
    assert settings.database == Path("/var/lib/cni-bridge/ipam.db")
    assert settings.ipamd_socket == Path("/run/cni-bridge/ipamd.sock")


def test_every_key_of_the_file(file: Path) -> None:
    text = """
state_dir: /srv/state
run_dir: /srv/run
log_level: debug
request_timeout: 5
ipamd:
  group: cni
  max_clients: 7
"""
    assert loaded(file, text) == Settings(
        state_dir=Path("/srv/state"),
        run_dir=Path("/srv/run"),
        log_level="debug",
        request_timeout=5,
        ipamd=IpamdSettings(group="cni", max_clients=7),
    )


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
        ("ipamd: {unknown: 1}", "unknown key ipamd.unknown; known are group, max_clients"),
        ("timeout: 5", "unknown key timeout; known are ipamd, log_level, request_timeout, run_dir, state_dir"),
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


def test_the_machines_own_environment_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CNI_BRIDGE_STATE_DIR", "/elsewhere")
    assert loaded(file, "").state_dir == Path("/var/lib/cni-bridge")
