"""A runtime that has our plugins under the reference's names, those only in part, or the reference's alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.chain import Chain, CniDir
from tests.support.host import Host, Json

NAMES = ("bridge", "portmap", "firewall", "tuning", "bandwidth", "host-local", "static", "loopback")


def plugin_directory(path: Path, ours: Iterable[str] = NAMES) -> CniDir:
    """A directory with these names leading to our executable; all others are the reference's."""
    path.mkdir(exist_ok=True)
    plugins = CniDir(path)
    for name in ours:
        plugins.link(name, "cni-bridge")
    return plugins


def conflist(*plugins: Json, version: str = "1.0.0", name: str = "net1") -> Json:
    """A configuration list."""
    return {"cniVersion": version, "name": name, "plugins": list(plugins)}


@dataclass
class Runtime(Chain):
    """Runs every operation of a configuration list, each plugin with what libcni gives it."""

    def check(self, container: str, result: Json, netns: str | None = None) -> None:
        """Check: in order, each plugin gets the final result."""
        for conf in self.conflist["plugins"]:
            self.call("CHECK", conf, container, result, netns).succeeded()

    def check_fails(self, plugin: str, container: str, result: Json) -> str:
        """What the plugin of that type says to CHECK, which must fail."""
        return str(self.call("CHECK", self.conf_of(plugin), container, result).error)

    def collect(self, valid: Sequence[tuple[str, str]]) -> None:
        """Collect garbage: each plugin is told the attachments (container and interface) that are valid."""
        keep = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        for conf in self.conflist["plugins"]:
            self.call("GC", {**conf, "cni.dev/valid-attachments": keep, "cni.dev/attachments": keep}, "").succeeded()

    def forget(self, container: str, netns: str | None = None) -> None:
        """Detach as after a failed ADD: with neither result nor what is for capabilities."""
        bare = Runtime(self.host, self.plugins, self.conflist, env=self.env)
        bare.delete(container, netns=netns)

    def conf_of(self, plugin: str) -> Json:
        """The configuration of the plugin of that type."""
        found: Json = next(each for each in self.conflist["plugins"] if each["type"] == plugin)
        return found


def assert_chain_gone(host: Host) -> None:
    """Nothing of any attachment is left, and nothing of what chained plugins keep and make."""
    host.assert_nothing_left()
    assert host.files("/run/cni-bridge/chained") == []
    assert not [name for name in host.links() if name.startswith("bwp")]


def tc_figures(host: Host, link: str) -> list[Json]:
    """The queueing disciplines of a link that limit it, in the kernel's own figures."""
    shown: list[Json] = json.loads(host.run("tc", "-json", "qdisc", "show", "dev", link).stdout or "[]")
    return [{"kind": each["kind"], **each.get("options", {})} for each in shown if each["kind"] in ("tbf", "ingress")]
