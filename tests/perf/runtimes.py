"""Attaches containers as a runtime does, with a list of plugins, and tells how long the plugins took."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests.perf.calling import Call, Job
from tests.perf.places import Place
from tests.support.host import Json

_VERSION = "1.0.0"  # the newest that the reference plugins know
_PORT = 8080  # of the host, which leads to the container that is measured
_RESIDENT_PORT = 9000  # and the network's number: leads to the one that stays
_FIRST_OF_MANY = 10_000  # and a thousand for each network


class Network:
    """A network on a host as a runtime knows it: its plugins, by its number, and the directory that they are in."""

    def __init__(self, place: Place, directory: Path, plugins: Callable[[int], Sequence[Json]]) -> None:
        self.place = place
        self._directory = directory
        self.number = place.number_of_next_network()
        self._name = f"net{self.number}"
        self._plugins = plugins(self.number)
        self._calls = 0
        self._attached: tuple[str, Json] = ("", {})
        self._settle()

    def add(self) -> float:
        """Milliseconds that the plugins took to attach another container."""
        self._calls += 1
        container = self._container(str(self._calls))
        ms, result = self._add(container, self._netns("measured"), _PORT)
        self._attached = (container, result)
        return ms

    def delete(self) -> float:
        """Milliseconds that the plugins took to detach it."""
        container, result = self._attached
        asked = (container, self._netns("measured"), _PORT, result)
        return sum(self.place.run(self._call("DEL", each, *asked)).ms for each in reversed(self._plugins))

    def make_namespaces(self, number: int) -> None:
        """Make the namespaces for so many containers that are attached at once."""
        self.place.add_netns(self._netns(str(each)) for each in range(number))

    def add_many(self, number: int, most: int) -> tuple[float, list[Job]]:
        """Attach so many containers, of which so many are in flight; the seconds, and what became of each."""
        jobs = [
            Job(call=add, undo=undo)
            for add, undo in zip(self._many("ADD", number), self._many("DEL", number), strict=True)
        ]
        return self.place.run_at_once(jobs, most), jobs

    def delete_many(self, number: int, most: int) -> tuple[float, list[Job]]:
        """Detach them."""
        jobs = [Job(call=each) for each in self._many("DEL", number)]
        return self.place.run_at_once(jobs, most), jobs

    def _settle(self) -> None:
        """Attach a container that stays, so that none which is measured is the network's first or last."""
        self.place.add_netns([self._netns("resident"), self._netns("measured")])
        self._add(self._container("resident"), self._netns("resident"), _RESIDENT_PORT + self.number)

    def _many(self, command: str, number: int) -> Iterator[Call]:
        (plugin,) = self._plugins
        first = _FIRST_OF_MANY + 1_000 * self.number
        for each in range(number):
            yield self._call(command, plugin, self._container(f"many-{each}"), self._netns(str(each)), first + each, {})

    def _add(self, container: str, netns: str, port: int) -> tuple[float, Json]:
        ms, result = 0.0, dict[str, Any]()
        for each in self._plugins:
            ended = self.place.run(self._call("ADD", each, container, netns, port, result))
            ms, result = ms + ended.ms, json.loads(ended.stdout)
        return ms, result

    def _netns(self, name: str) -> str:
        return f"{self._name}-{name}"

    def _container(self, name: str) -> str:
        return sha256(f"{self._name}/{name}".encode()).hexdigest()

    def _call(self, command: str, plugin: Json, container: str, netns: str, port: int, result: Json) -> Call:
        """The call of one plugin of the list, as libcni makes it."""
        ports = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]
        wants_ports = plugin.get("capabilities", {}).get("portMappings")
        conf = {
            **plugin,
            "name": self._name,
            "cniVersion": _VERSION,
            **({"runtimeConfig": {"portMappings": ports}} if wants_ports else {}),
            **({"prevResult": result} if result else {}),
        }
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._directory),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        return Call(executable=self._directory / plugin["type"], environ=environ, stdin=json.dumps(conf).encode())


SYSCTL = {"net.core.somaxconn": "500"}
PORTS = {"portMappings": True}


def bridge_name(number: int) -> str:
    """The bridge of the network of that number."""
    return f"br{number}"


def subnet(number: int) -> IPv4Network:
    """Its addresses, from the first of which on they are given."""
    return IPv4Network(f"10.{100 + number}.0.0/16")


def bare(kind: str, number: int, *, dual: bool = False, **more: object) -> list[Json]:
    """A bridge with addresses, in one family or both, of the network of that number; ours or the reference's."""
    ranges = [[{"subnet": str(subnet(number))}], [{"subnet": f"fd00:{number}::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = "cni-ipam" if kind == "cni-bridge" else "host-local"
    addresses = {"type": ipam, "ranges": ranges[: 1 + dual], "routes": routes[: 1 + dual]}
    return [{"type": kind, "bridge": bridge_name(number), "isGateway": True, "ipam": addresses, **more}]


def one_exec(number: int, *, dual: bool = False) -> list[Json]:
    """Masquerading, a published port, what a firewall and tuning do, all in one plugin: ours."""
    return bare("cni-bridge", number, dual=dual, ipMasq=True, hairpinMode=True, sysctl=SYSCTL, capabilities=PORTS)


def four_plugins(number: int, *, dual: bool = False) -> list[Json]:
    """The same in a list as Podman, nerdctl and others write it for the reference plugins."""
    return [
        *bare("bridge", number, dual=dual, ipMasq=True, hairpinMode=True),
        {"type": "portmap", "capabilities": PORTS},
        {"type": "firewall"},
        {"type": "tuning", "sysctl": SYSCTL},
    ]
