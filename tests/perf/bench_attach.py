"""How long attachments take, one at a time, many at once and beside many others, by us and by the reference plugins.

Run as root by `make bench`; docs/benchmarks.md tells how to read it. Ours and the reference's calls take turns in one
run, each on a host of its own, for what a time means depends on the machine and on the minute.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Protocol

from rich.console import Console
from rich.table import Table

from tests.perf.calling import Job
from tests.perf.conditions import describe
from tests.perf.limit import Limit
from tests.perf.places import Place
from tests.perf.runtimes import Network, bare, four_plugins, one_exec
from tests.support.host import BIN, REFERENCE, Json
from tests.support.ways import python_client

WARM_UP = 3  # calls that do not count
AT_ONCE = 16
FEW = 5
NEEDED = ("bridge", "host-local", "portmap", "firewall", "tuning")

console = Console(width=max(118, Console().width))


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured: calls one at a time, rounds and containers of those at once, and beside what others.

    `present` are numbers of bridges, and of containers on each.
    """

    calls: int
    rounds: int
    containers: int
    present: tuple[tuple[int, int], ...]
    pause: float  # seconds until those have sent most of their router solicitations, which each bridge floods


FULL = Size(calls=40, rounds=2, containers=80, present=((1, 1), (1, 500), (1, 1000), (10, 100)), pause=15.0)
QUICK = Size(calls=15, rounds=1, containers=48, present=((1, 1), (1, 200), (4, 50)), pause=4.0)


class Attaching(Protocol):
    """Attaches a container and detaches it again."""

    def add(self) -> float:
        """Milliseconds to attach."""

    def delete(self) -> float:
        """Milliseconds to detach."""


@dataclass(slots=True, kw_only=True)
class Series:
    """Milliseconds of what was attached and detached in one way."""

    what: str
    way: Attaching
    adding: list[float] = field(default_factory=list)
    deleting: list[float] = field(default_factory=list)

    def repeat(self, number: int) -> None:
        """Attach and detach so often."""
        for _ in range(number):
            self.adding.append(self.way.add())
            self.deleting.append(self.way.delete())


class Bench:
    """Measures one thing after another, in a directory, and puts it into one table."""

    def __init__(self, directory: Path, size: Size, stack: ExitStack) -> None:
        self._directory = directory
        self._size = size
        self._stack = stack
        self._plugins = directory / "plugins"
        self._plugins.mkdir()
        # The one-shot program is not beside it, so a call that no daemon serves fails.
        shutil.copy(BIN / "cni-bridge", self._plugins)
        self._places: list[Place] = []
        self.table = Table("", "ours p50", "p99", "other p50", "p99", "ratio of p50", title="Attachments")
        for each in self.table.columns[1:]:
            each.justify = "right"

    def one_at_a_time(self) -> None:
        """Bare, masquerade and full, in one family and both, beside the reference; full beside the limit, too."""
        ours, reference = self._place("ours", daemon=True), self._place("reference")
        links = self._directory / "links"
        links.mkdir()
        ours.host.run(BIN / "cni-bridgectl", "install", links, "--yes")
        by_us, by_our_names, by_them = (
            partial(self._series, "", place, directory)
            for place, directory in ((ours, self._plugins), (ours, links), (reference, REFERENCE))
        )
        pairs: list[tuple[str, Series, Series]] = []
        for families, dual in (("IPv4", False), ("dual stack", True)):
            full = by_them(partial(four_plugins, dual=dual))
            pairs += [
                (
                    f"bare, {families}",
                    by_us(partial(bare, "cni-bridge", dual=dual, isolated=False)),
                    by_them(partial(bare, "bridge", dual=dual)),
                ),
                (
                    f"masquerade, {families}",
                    by_us(partial(bare, "cni-bridge", dual=dual, ipMasq=True)),
                    by_them(partial(bare, "bridge", dual=dual, ipMasq=True)),
                ),
                (f"full, one exec, {families}", by_us(partial(one_exec, dual=dual)), full),
                (f"full, the four plugins' list, {families}", by_our_names(partial(four_plugins, dual=dual)), full),
            ]
        # On a host of its own, for whoever else changes rules makes the daemon look at all of them again.
        limit = self._limit("", Network(self._place("limit", daemon=True), self._plugins, one_exec))
        self.require_served()
        self._take_turns([*unique(each for _, *both in pairs for each in both), limit])
        self._head("One at a time, ms (other: the reference)")
        for what, one, other in pairs:
            self._compare(f"ADD {what}", one.adding, other.adding)
            self._compare(f"DEL {what}", one.deleting, other.deleting)
        one = next(one for what, one, _ in pairs if what == "full, one exec, IPv4")
        self._head("Against the limit, ms (other: the limit loop)")
        self._weigh("ADD full, one exec, IPv4", one.adding, limit.adding)
        self._weigh("DEL full, one exec, IPv4", one.deleting, limit.deleting)

    def many_at_once(self) -> None:
        """Masquerade, with so many calls in flight."""
        size, networks = self._size, []
        for kind, directory in (("cni-bridge", self._plugins), ("bridge", REFERENCE)):
            place = self._place(f"many-{kind}", daemon=kind == "cni-bridge")
            made = Network(place, directory, partial(bare, kind, ipMasq=True))
            made.make_namespaces(size.containers)
            for warm_up in (Network.add_many, Network.delete_many):
                warm_up(made, AT_ONCE, AT_ONCE)
            networks.append(made)
        seconds: dict[tuple[str, int], float] = {}
        jobs: dict[tuple[str, int], list[Job]] = {}
        for _ in range(size.rounds):
            for command, measure in (("ADD", Network.add_many), ("DEL", Network.delete_many)):
                for side, each in enumerate(networks):
                    took, done = measure(each, size.containers, AT_ONCE)
                    seconds[command, side] = seconds.get((command, side), 0.0) + took
                    jobs.setdefault((command, side), []).extend(done)
        self._head(f"{AT_ONCE} at a time, masquerade, IPv4 (other: the reference)")
        for command in ("ADD", "DEL"):
            rates = [len(jobs[command, side]) / seconds[command, side] for side in (0, 1)]
            failures = sum(len(each.failures) for each in jobs[command, 1])
            note = f"; {failures} of its calls failed and were repeated" if failures else ""
            self._row(
                f"{command} a second{note}",
                f"{rates[0]:.0f}",
                "",
                f"{rates[1]:.1f}",
                "",
                f"{rates[0] / rates[1]:.2f} x as many",
            )
            self._compare(f"{command}, ms", *([each.ms for each in jobs[command, side]] for side in (0, 1)))

    def beside_others(self) -> None:
        """Full in one plugin, beside so many that are attached to the same bridge, or to it and others."""
        series, limits = [], []
        for bridges, containers in self._size.present:
            place = self._place(f"beside-{bridges}-{containers}", daemon=True)
            networks = [Network(place, self._plugins, one_exec) for _ in range(bridges)]  # each with one container
            for network in networks:
                network.make_namespaces(containers - 1)
                network.add_many(containers - 1, AT_ONCE)
            what = f"{bridges * containers:,} attached" + (f", to {bridges} bridges" if bridges > 1 else "")
            series.append(Series(what=what, way=networks[0]))
            limits.append(self._limit(f"limit loop, {what}", networks[0]))
        time.sleep(self._size.pause)
        # One after the other, for they have the hosts in common; and some calls at a time, for what is flooded to a
        # thousand containers leaves the processor's caches to the next call as no call of its own would.
        for some in (series, limits):
            self._take_turns(some, turn=FEW)
        self._head("Full, one exec, IPv4, beside others, ms (other: 1 attached)")
        for some in (series, limits):
            for each in some:
                self._weigh(f"ADD, {each.what}", each.adding, some[0].adding)
        for each in series:
            self._weigh(f"DEL, {each.what}", each.deleting, series[0].deleting)
        self._row(f"cni-bridged, {what}: memory, MiB", f"{place.daemon_mebibytes():.0f}", "", "", "", "")

    def ways(self) -> None:
        """Masquerade, by whoever may serve it."""
        python = self._directory / "python"
        python.mkdir()
        shutil.copy(python_client(), python / "cni-bridge")
        served, alone = self._place("served", daemon=True), self._place("alone")
        masquerading = partial(bare, "cni-bridge", ipMasq=True)
        series = [
            self._series("daemon, native client", served, self._plugins, masquerading),
            self._series("daemon, Python client", served, python, masquerading),
            self._series("no daemon, nftables", alone, BIN, masquerading),
            self._series("no daemon, iptables", alone, BIN, partial(masquerading, ipMasqBackend="iptables")),
        ]
        self._take_turns(series)
        self._head("Ways, masquerade, IPv4, ms (other: the first)")
        for each in series:
            self._weigh(f"ADD, {each.what}", each.adding, series[0].adding)
        for each in series:
            self._weigh(f"DEL, {each.what}", each.deleting, series[0].deleting)

    def require_served(self) -> None:
        """Fail unless the daemons have served every call, wherever there is one."""
        for each in self._places:
            if each.daemon is not None:
                each.require_served()

    def _place(self, name: str, *, daemon: bool = False) -> Place:
        place = Place(self._directory / name, daemon=daemon)
        self._stack.callback(place.close)
        self._places.append(place)
        return place

    def _series(self, what: str, place: Place, directory: Path, plugins: Callable[[int], Sequence[Json]]) -> Series:
        return Series(what=what, way=Network(place, directory, plugins))

    def _limit(self, what: str, network: Network) -> Series:
        limit = Limit(network, self._directory)
        self._stack.callback(limit.close)
        return Series(what=what, way=limit)

    def _take_turns(self, series: Sequence[Series], turn: int = 1) -> None:
        """Measure each of the series, so many calls at its turn."""
        for each in series:
            each.repeat(WARM_UP)
            each.adding.clear()
            each.deleting.clear()
        for _ in range(0, self._size.calls, turn):
            for each in series:
                each.repeat(turn)

    def _head(self, words: str) -> None:
        self.table.add_section()
        self._row(f"[bold]{words}", "", "", "", "", "")

    def _compare(self, what: str, ours: list[float], theirs: list[float]) -> None:
        """A row that tells how many times faster we are."""
        self._row(what, *shown(ours), *shown(theirs), f"{median(theirs) / median(ours):.2f} x as fast")

    def _weigh(self, what: str, one: list[float], other: list[float]) -> None:
        """A row that tells how many times longer the one takes than the other."""
        if one is other:
            self._row(what, *shown(one), "", "", "")
        else:
            self._row(what, *shown(one), *shown(other), f"{median(one) / median(other):.2f} x as long")

    def _row(self, *cells: str) -> None:
        self.table.add_row(*cells)


def shown(ms: list[float]) -> tuple[str, str]:
    """Median and 99th percentile; of less than a hundred, the latter is between the two longest."""
    return f"{median(ms):.2f}", f"{quantiles(ms, n=100, method='inclusive')[98]:.2f}"


def unique(series: Iterable[Series]) -> list[Series]:
    """Each of them once."""
    return list({id(each): each for each in series}.values())


def main() -> int:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.bench_attach", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than two minutes instead of five")
    parser.add_argument("--directory", type=Path, help="where state is kept; by default where temporary files are")
    arguments = parser.parse_args()
    if missing := [each for each in NEEDED if not (REFERENCE / each).exists()]:
        raise SystemExit(f"{REFERENCE} lacks {', '.join(missing)}: install containernetworking-plugins")
    parent = arguments.directory.resolve() if arguments.directory is not None else None
    with tempfile.TemporaryDirectory(prefix="attach-", dir=parent) as name:
        directory = Path(name)
        lines = list(describe(directory))
        with ExitStack() as stack:
            bench = Bench(directory, QUICK if arguments.quick else FULL, stack)
            # The last leaves more namespaces behind than the kernel takes away in a moment.
            for measure in (bench.one_at_a_time, bench.many_at_once, bench.ways, bench.beside_others):
                print(f"measuring {measure.__name__.replace('_', ' ')}", file=sys.stderr)
                measure()
                bench.require_served()
        for line in (*lines, f"The load at the end, some of it ours: {os.getloadavg()[0]:.1f}"):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(bench.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
