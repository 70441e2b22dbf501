"""Runs the plugins of a network one after another, as libcni does for a runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.host import BIN, REFERENCE, Answer, Host, Json


@dataclass
class CniDir:
    """A directory of plugins, searched before the reference's."""

    path: Path

    @property
    def env(self) -> dict[str, str]:
        """What a runtime passes so that plugins find each other."""
        return {"CNI_PATH": f"{self.path}:{BIN}:{REFERENCE}"}

    def link(self, name: str, plugin: str) -> None:
        """Install one of our executables under that name."""
        (self.path / name).symlink_to(BIN / plugin)

    def copy(self, name: str, plugin: str) -> None:
        """Copy one of our executables to that name."""
        (self.path / name).write_bytes((BIN / plugin).read_bytes())
        (self.path / name).chmod(0o755)

    def script(self, name: str, text: str) -> None:
        """Write a shell script as a plugin."""
        (self.path / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.path / name).chmod(0o755)

    def find(self, name: str) -> Path:
        """The executable of that name."""
        return next(each / name for each in (self.path, BIN, REFERENCE) if (each / name).exists())


@dataclass
class Chain:
    """A configuration list on a host; `runtime_config` holds what the runtime has for capabilities."""

    host: Host
    plugins: CniDir
    conflist: Json
    runtime_config: Json = field(default_factory=dict)
    args: Json = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    def add(self, container: str, netns: str | None = None, ifname: str = "eth0") -> Json:
        """Attach: in order, each plugin gets the result of the one before."""
        result: Json = {}
        for conf in self.conflist["plugins"]:
            result = self.call("ADD", conf, container, result, netns, ifname).result
        return result

    def delete(
        self, container: str, result: Json | None = None, netns: str | None = None, ifname: str = "eth0"
    ) -> None:
        """Detach: in reverse, each plugin gets the final result if the runtime still has it."""
        for conf in reversed(self.conflist["plugins"]):
            self.call("DEL", conf, container, result, netns, ifname).succeeded()

    def version(self) -> list[Json]:
        """Ask every plugin for its versions, with the values that libcni fills in for want of better ones."""
        dummies = {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy", "CNI_CONTAINERID": ""}
        return [
            self.host.plugin(
                "VERSION",
                {"cniVersion": self.conflist["cniVersion"]},
                plugin=self.plugins.find(conf["type"]),
                env=dummies,
            ).result
            for conf in self.conflist["plugins"]
        ]

    def call(
        self,
        command: str,
        conf: Json,
        container: str,
        result: Json | None = None,
        netns: str | None = None,
        ifname: str = "eth0",
    ) -> Answer:
        """Call one plugin of the list."""
        capabilities = {name for name, wanted in conf.get("capabilities", {}).items() if wanted}
        given = {key: value for key, value in self.runtime_config.items() if key in capabilities}
        stdin = {
            **conf,
            "name": self.conflist["name"],
            "cniVersion": self.conflist["cniVersion"],
            **({"args": self.args} if self.args else {}),
            **({"runtimeConfig": given} if given else {}),
            **({"prevResult": result} if result else {}),
        }
        return self.host.plugin(
            command,
            json.dumps(stdin),
            container,
            netns=netns,
            ifname=ifname,
            plugin=self.plugins.find(conf["type"]),
            env={**self.plugins.env, **self.env},
        )
