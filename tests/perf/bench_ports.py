"""Published ports: how long a new connection through one takes beside many others, and how long it takes to publish.

Run as root by `make bench`. Everything happens in namespaces of its own. Compare within one table only: the machine
decides the rest. The reference is Debian's `portmap`, where that is installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.support.confs import IPV4, add_outside, bridge_conf
from tests.support.host import REFERENCE, Host, Json

COUNTS = (1, 1_000, 10_000)
REFERENCE_COUNTS = (1, 1_000)
ROUNDS = 15
CONNECTIONS = 200  # of each round
FIRST = 10_000  # the host port of the first mapping
RUN = 10_000  # ports of the run that is published as a whole
TIMES = 30

console = Console(width=max(110, Console().width))

CONNECT = """
import socket, sys, time
times = []
for _ in range({connections}):
    began = time.perf_counter()
    socket.create_connection(("198.51.100.1", {port})).close()
    times.append(time.perf_counter() - began)
print(sorted(times)[len(times) // 2] * 1e6)
"""

PUBLISH = """
import json, sys, time
from statistics import median
from ipaddress import ip_address
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.firewall.nftables import NftablesFirewall
from cni_bridge.policy import LinkPolicy, Policy, Publication
from ipam.api import Owner

firewall = NftablesFirewall()
def policy(container, count):
    return Policy(
        backend=Backend.NFTABLES,
        owner=Owner(network="net1", container_id=container, ifname="eth0"),
        publications=tuple(
            Publication(protocol=Protocol.TCP, host_ip=None, host_port=20000, address=ip_address(address),
                        container_port=20000, count=count)
            for address in ("10.88.0.2", "fd00:88::2")
        ),
        link=LinkPolicy(link="cni0"),
    )
cases = {1: policy("one", 1), %d: policy("run", %d)}
times = {count: [] for count in cases}
for _ in range(%d):
    for count, each in cases.items():
        began = time.perf_counter()
        firewall.apply(each)
        times[count].append((time.perf_counter() - began) * 1000)
        firewall.remove(each)
json.dump({count: median(found) for count, found in times.items()}, sys.stdout)
"""


@dataclass(slots=True, kw_only=True)
class Publishing:
    """A host on which so many ports lead to one container, and the microseconds of a connection through the last."""

    host: Host
    plugin: str
    count: int
    times: list[float] = field(default_factory=list)

    def prepare(self) -> None:
        """Attach the container and publish its ports."""
        add_outside(self.host)
        self.host.add_netns("a")
        self.host.start_whoami(80, "a")
        mappings = [
            {"hostPort": FIRST + number, "containerPort": 80, "protocol": "tcp"} for number in range(self.count)
        ]
        published: Json = {"runtimeConfig": {"portMappings": mappings}}
        if self.plugin == "cni-bridge":
            self.host.plugin("ADD", bridge_conf(ipam=IPV4, **published), "a", timeout=300).succeeded()
            return
        conf = bridge_conf("1.0.0", ipam=IPV4)
        previous = self.host.plugin("ADD", conf, "a").result
        chained = {"cniVersion": "1.0.0", "name": "net1", "type": "portmap", "prevResult": previous, **published}
        self.host.plugin("ADD", chained, "a", plugin=REFERENCE / "portmap", timeout=600).succeeded()

    def connect(self) -> None:
        """Measure one round."""
        script = CONNECT.format(connections=CONNECTIONS, port=FIRST + self.count - 1)
        self.times.append(float(self.host.run(sys.executable, "-IS", "-c", script, netns="outside").stdout))


def main() -> int:
    """Measure everything and print it."""
    with ExitStack() as stack:

        def host() -> Host:
            made = Host()
            stack.callback(made.close)
            return made

        _measure_connections(host)
        _measure_publishing(host())
    return 0


def _measure_connections(host: Callable[[], Host]) -> None:
    cases = [Publishing(host=host(), plugin="cni-bridge", count=each) for each in COUNTS]
    if (REFERENCE / "portmap").exists():
        cases += [Publishing(host=host(), plugin="portmap", count=each) for each in REFERENCE_COUNTS]
    for case in track(cases, "publishing", console=console, transient=True, disable=not console.is_terminal):
        case.prepare()
    for _ in track(range(ROUNDS), "connecting", console=console, transient=True, disable=not console.is_terminal):
        for case in cases:
            case.connect()
    title = f"A new TCP connection through a published port, µs: median of {ROUNDS} interleaved rounds"
    table = Table("plugin", "ports", "median", "of its first", title=title)
    for case in cases:
        first = next(each for each in cases if each.plugin == case.plugin)
        ratio = median(case.times) / median(first.times)
        table.add_row(case.plugin, f"{case.count:,}", f"{median(case.times):.0f}", f"{ratio:.2f} x")
    console.print(table, "")


def _measure_publishing(host: Host) -> None:
    script = PUBLISH % (RUN, RUN, TIMES)
    found = {int(count): ms for count, ms in json.loads(host.run(sys.executable, "-c", script).stdout).items()}
    title = f"The firewall's transaction that publishes ports, both families, ms: median of {TIMES}"
    table = Table("ports", "median", "of one", title=title)
    for count, ms in found.items():
        table.add_row(f"{count:,}", f"{ms:.2f}", f"{ms / found[1]:.2f} x")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
