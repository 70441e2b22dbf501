"""A newer version takes over from the one before, with containers attached: none of them notices.

The version before is the last commit that changed the code; UPGRADE_FROM names another one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.bridged import Bridged
from tests.support.chain import CniDir
from tests.support.conflist import assert_chain_gone
from tests.support.confs import add_outside
from tests.support.ctl import audit
from tests.support.host import BIN, Host, Json
from tests.support.lab import as_chain, full_conf
from tests.support.previous import NoPrevious, Previous, previous

_HOST = "198.51.100.1"
_CHAINED = ("portmap", "firewall", "tuning", "bandwidth")

Confs = Sequence[Json]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Previous:
    """The version before."""
    try:
        return previous(tmp_path_factory.mktemp("previous"))
    except NoPrevious as reason:
        pytest.skip(str(reason))


@pytest.fixture
def now(tmp_path: Path) -> CniDir:
    """This version's executables, under all names."""
    plugins = CniDir(tmp_path)
    for name in _CHAINED:
        plugins.link(name, "cni-bridge")
    return plugins


class Connection:
    """A TCP connection on which each line comes back."""

    def __init__(self, host: Host, address: str, port: int, netns: str) -> None:
        words = ("busybox", "nc", "-w", "5", address, str(port))
        self._process: Any = host.start(*words, netns=netns, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lines = 0

    def works(self) -> None:
        """A line comes back."""
        self._lines += 1
        line = f"line {self._lines}\n".encode()
        self._process.stdin.write(line)
        self._process.stdin.flush()
        assert self._process.stdout.readline() == line, f"the connection broke at line {self._lines}"


def echo(host: Host, netns: str, port: int) -> None:
    """Have a server there that sends each line back."""
    host.start("busybox", "nc", "-ll", "-p", str(port), "-e", "cat", netns=netns)
    hexadecimal = f":{port:04X} "
    host.shell(f"until grep -q '{hexadecimal}.* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done", netns)


def add(host: Host, plugins: CniDir, confs: Confs, container: str) -> Json:
    """Attach as libcni does; the final result."""
    result: Json = {}
    for conf in confs:
        sent = {**conf, "prevResult": result} if result else conf
        result = host.plugin("ADD", sent, container, plugin=plugins.find(conf["type"]), env=plugins.env).result
    return result


def with_final(host: Host, verb: str, plugins: CniDir, confs: Confs, container: str, result: Json) -> None:
    """Call each with the final result."""
    for conf in confs:
        sent = {**conf, "prevResult": result}
        host.plugin(verb, sent, container, plugin=plugins.find(conf["type"]), env=plugins.env).succeeded()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("backend", "change"),
    [("nftables", "SIGTERM"), ("nftables", "SIGKILL"), ("nftables", "no daemon"), ("iptables", "SIGTERM")],
)
def test_nothing_breaks(
    host: Host, before: Previous, now: CniDir, is_complete: bool, backend: str, change: str
) -> None:
    add_outside(host)
    old = CniDir(before.bin)
    second = {
        "name": "net2",
        "bridge": "cni1",
        "ipam": {"type": "cni-ipam", "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]]},
    }
    attached: dict[str, Confs] = {
        "a": [full_conf(backend)],
        "b": as_chain(full_conf(backend, number=1, **second)),
        "c": [{**full_conf(backend), "runtimeConfig": {}}],
    }
    if change == "no daemon" and not is_complete:  # a process for each plugin of the chain takes its time
        del attached["b"]
    for name in (*attached, "d"):
        host.add_netns(name)
    daemon = Bridged(host, before.bin / "cni-bridged").started() if change != "no daemon" else None
    results = {name: add(host, old, confs, name) for name, confs in attached.items()}

    echo(host, "a", 80)
    echo(host, "outside", 7777)
    connections = [Connection(host, _HOST, 8080, "outside"), Connection(host, "198.51.100.2", 7777, "a")]

    def all_work() -> None:
        for each in connections:
            each.works()

    all_work()
    if daemon is not None:
        if change == "SIGTERM":
            daemon.stop()
        else:
            daemon.process.kill()
            daemon.process.wait()
        all_work()
        with_final(host, "CHECK", now, attached["b"], "b", results["b"])  # by a process of its own
        host.daemon = Bridged(host, BIN / "cni-bridged").started()
    all_work()

    for name, confs in attached.items():
        with_final(host, "CHECK", now, confs, name, results[name])
    audit(host)
    host.plugin("STATUS", attached["a"][0]).succeeded()
    assert add(host, now, attached["a"], "a") == results["a"]
    attached["d"] = attached["c"]
    results["d"] = add(host, now, attached["d"], "d")
    addresses = [ip["address"] for result in results.values() for ip in result["ips"]]
    assert len(set(addresses)) == len(addresses) == 2 * len(attached)
    for _ in range(2):
        keep = [{"containerID": each, "ifname": "eth0"} for each in attached]
        host.plugin("GC", {**attached["a"][0], "cni.dev/valid-attachments": keep}).succeeded()
    all_work()
    connections.append(Connection(host, _HOST, 8080, "outside"))
    all_work()

    with_final(host, "DEL", old, attached["c"], "c", results["c"])  # a client of before may still be at work
    all_work()
    del attached["c"]
    for name in attached:
        with_final(host, "DEL", now, list(reversed(attached[name])), name, results[name])
    assert_chain_gone(host)
