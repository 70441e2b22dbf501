"""Hosts to attach containers on, which keep their state on a real disk and count their calls."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.perf import calling
from tests.perf.calling import Call, Ended, Job
from tests.support.bridged import Bridged
from tests.support.confs import add_outside
from tests.support.host import BIN, Host
from tests.support.ways import Way

# What has to survive a power failure, and so is to wait for a disk; a test's host has it in memory.
_STATE = ("/var/lib/cni-bridge", "/var/lib/cni")


class Place:
    """A host with an uplink, with state below the directory; `daemon`: whether `cni-bridged` runs on it."""

    def __init__(self, directory: Path, *, daemon: bool = False) -> None:
        self.host = Host(way=Way.ONESHOT)  # its own calls are not what is measured
        self._calls = 0
        self._networks = 0
        for each in _STATE:
            (directory / Path(each).name).mkdir(parents=True)
            self.host.run("mount", "--bind", directory / Path(each).name, each)
        add_outside(self.host)
        self.daemon = Bridged(self.host, BIN / "cni-bridged").started() if daemon else None

    def close(self) -> None:
        """Stop the daemon and take the host away."""
        try:
            if self.daemon is not None:
                self.daemon.stop()
                print(self.daemon.said(), end="", file=sys.stderr)
        finally:
            self.host.close()

    def number_of_next_network(self) -> int:
        """A number that no other network of this host has, from 1 on."""
        self._networks += 1
        return self._networks

    def add_netns(self, names: Iterable[str]) -> None:
        """Make containers' namespaces of these names."""
        self.host.run("ip", "-batch", "-", stdin="".join(f"netns add {each}\n" for each in names).encode(), timeout=300)

    def run(self, call: Call) -> Ended:
        """Execute the program on this host, to its end, which must be a success."""
        self._calls += 1
        ended = calling.run(self.host, call)
        if ended.status != 0:
            raise SystemExit(f"{call.executable} failed: {ended.stdout.decode()}{ended.stderr.decode()}")
        return ended

    def run_at_once(self, jobs: list[Job], most: int) -> float:
        """Seconds until the jobs are done, of which so many are in flight; failures are counted."""
        self._calls += len(jobs)
        seconds = calling.run_at_once(self.host, jobs, most)
        if self.daemon is not None and any(each.failures for each in jobs):
            first = next(each.failures[0] for each in jobs if each.failures)
            raise SystemExit(f"cni-bridge failed: {first.stdout.decode()}{first.stderr.decode()}")
        return seconds

    def require_served(self) -> None:
        """Fail unless the daemon has served every call, by its own count, and none was served by a fall-back."""
        assert self.daemon is not None
        text = self.host.run(BIN / "cni-bridgectl", "metrics").stdout
        samples = (each for family in text_string_to_metric_families(text) for each in family.samples)
        served = sum(each.value for each in samples if each.name == "cni_bridge_request_seconds_count")
        if served != self._calls:
            raise SystemExit(f"cni-bridged served {served:.0f} of {self._calls} calls: {self.daemon.said()}")

    def daemon_mebibytes(self) -> float:
        """The daemon's resident memory."""
        assert self.daemon is not None
        lines = Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines()
        return next(int(each.split()[1]) for each in lines if each.startswith("VmRSS:")) / 1024
