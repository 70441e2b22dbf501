"""Every configuration and command that an operator copies from `conf/` and the README works as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from ipam.settings import Settings, load, parse
from tests.support.confs import with_result
from tests.support.host import Host, Json

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFLISTS = sorted((ROOT / "conf").glob("*.conflist"))


def blocks(language: str) -> list[str]:
    """The README's code blocks in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def conf_of(conflist: Path) -> Json:
    """The configuration that a runtime makes of a list with one plugin."""
    document = json.loads(conflist.read_text())
    (plugin,) = document["plugins"]
    return {"cniVersion": document["cniVersion"], "name": document["name"], **plugin}


def attach_check_detach(host: Host, conf: Json) -> None:
    for name in ("a", "b"):
        host.add_netns(name)
    results = {name: host.plugin("ADD", conf, name).result for name in ("a", "b")}
    for address in (each["address"].split("/")[0] for each in results["b"].get("ips", ())):
        host.ping(address, "a")
    for name, result in results.items():
        host.plugin("CHECK", with_result(conf, result), name).succeeded()
        host.plugin("DEL", with_result(conf, result), name).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("conflist", CONFLISTS, ids=lambda path: path.name)
def test_example_network(host: Host, conflist: Path) -> None:
    attach_check_detach(host, conf_of(conflist))


@pytest.mark.parametrize("block", blocks("json"))
def test_network_of_the_readme(host: Host, block: str) -> None:
    attach_check_detach(host, json.loads(block))


@pytest.mark.parametrize("text", [(ROOT / "conf/config.yaml").read_text(), *blocks("yaml")], ids=["conf", "README"])
def test_settings_are_the_defaults(text: str) -> None:
    assert parse(yaml.safe_load(text), Path("config.yaml")) == Settings() == load({"CNI_BRIDGE_CONFIG": "/nonexistent"})


def test_commands_of_the_readme(host: Host, tmp_path: Path) -> None:
    """The first block are the two commands: one started this test, `test_demo` runs the other.

    The second installs, here below a directory of the test, for pip needs a network; the rest run on a host.
    """
    make, install, *others = blocks("sh")
    assert make.split() == ["make", "demo", "make", "test"]
    assert "make test" in (ROOT / ".ci/run").read_text()

    def below(script: str) -> str:
        return f"set -e; cd {ROOT}\n" + re.sub(r"(?<=[\s=])/(opt|etc)/", rf"{tmp_path}/\1/", script)

    environment = {**os.environ, "PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(["sh", "-c", below(install)], check=True, env=environment)
    (conflist,) = (tmp_path / "etc/cni/net.d").iterdir()
    assert conflist.name == "10-bridge-nat.conflist"
    scripts = [each for each in (tmp_path / "opt/cni-bridge/bin").iterdir() if is_ours(each)]
    assert sorted(each.name for each in scripts) == OURS

    printed = host.run("sh", "-c", "\n".join(map(below, others))).stdout
    assert '"address": "10.77.0.2/24"' in printed
    host.assert_nothing_left()


OURS = ["cni-bridge", "cni-bridge-oneshot", "cni-bridgectl", "cni-bridged", "cni-ipam", "ipamd"]


def is_ours(script: Path) -> bool:
    """Whether an installed program is this project's: it imports its code, or asks its daemon."""
    return any(each in script.read_bytes() for each in (b"from cni_bridge", b"from ipam", b"cni-bridged.sock"))


def test_demo() -> None:
    done = subprocess.run(
        ["make", "demo", "SYSTEM_PACKAGES=present"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "links and rules are as they were before" in done.stdout


def test_units_start_what_is_installed() -> None:
    service = (ROOT / "packaging/systemd/ipamd.service").read_text()
    socket = (ROOT / "packaging/systemd/ipamd.socket").read_text()
    (user,) = re.findall(r"^u +(\S+)", (ROOT / "packaging/systemd/cni-bridge.sysusers").read_text(), re.MULTILINE)
    assert "ExecStart=/opt/cni-bridge/bin/ipamd\n" in service
    assert f"User={user}\n" in service
    assert f"ListenStream={Settings().ipamd_socket}\n" in socket


def test_units_of_the_daemon_name_its_program_and_its_sockets() -> None:
    service = (ROOT / "packaging/systemd/cni-bridged.service").read_text()
    socket = (ROOT / "packaging/systemd/cni-bridged.socket").read_text()
    assert "ExecStart=/opt/cni-bridge/bin/cni-bridged\n" in service
    assert re.findall("^ListenStream=(.*)", socket, re.MULTILINE) == [
        str(Settings().bridged_socket),
        str(Settings().ipamd_socket),
    ]
