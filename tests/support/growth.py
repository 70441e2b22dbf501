"""How much a host's daemon has, and how much it has made: what must not grow with the number of requests."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.bridged import RUN_DIR, Bridged
from tests.support.ctl import STATE
from tests.support.host import Host
from tests.support.ipamd import outside_path

# Threads of a daemon that delete links, each with its socket: one more is made when all others wait for the kernel.
SPARE_DELETERS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Counts of things; `resident` in MiB, `database` in bytes."""

    resident: float
    database: int
    descriptors: int
    threads: int
    links: int
    rules: int
    elements: int
    files: int

    def __str__(self) -> str:
        return (
            f"{self.resident:.1f} MiB, database {self.database >> 10} KiB, {self.descriptors} descriptors, "
            f"{self.threads} threads, {self.links} links, {self.rules} rules, {self.elements} elements, "
            f"{self.files} files"
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """What has to be the same before and after."""
        return self.links, self.rules, self.elements, self.files


def size_of(host: Host, daemon: Bridged) -> Size:
    """How it is now, while no request is under way. It looks at nftables only: to list the rules of iptables loads them
    into the kernel, and from then on the daemon has to care for them."""
    ruleset = json.loads(host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    return Size(
        resident=resident(daemon),
        database=outside_path(host, f"{STATE}/ipam.db").stat().st_size,
        descriptors=_least(f"/proc/{daemon.pid}/fd"),
        threads=_least(f"/proc/{daemon.pid}/task"),
        links=len(host.links()),
        rules=sum("rule" in each for each in ruleset),
        elements=len(host.nft_elements()),
        files=len(host.files(RUN_DIR, STATE)),
    )


def resident(daemon: Bridged) -> float:
    """Its memory in MiB, proc(5)."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _least(directory: str) -> int:
    """The number of entries, once what was for requests that are answered is gone."""
    found = []
    for _ in range(20):
        found.append(len(list(Path(directory).iterdir())))
        time.sleep(0.01)
    return min(found)
