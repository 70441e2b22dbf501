"""Requests, owners and range sets for tests that run no process, a clock, and a look behind the program's back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from cni_bridge.cni.errors import CniError
from cni_bridge.cni.request import Request, parse_request
from ipam.allocator import Run
from ipam.api import Lease, Owner, RangeSet
from ipam.blobs import blob_number
from ipam.clock import Moment
from ipam.ranges import build_range, require_apart
from ipam.registry import Entry
from ipam.rows import ENTRY, parse_entry

OWNER = Owner(network="net1", container_id="c1", ifname="eth0")

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
}


def owner(container_id: str, network: str = "net1", ifname: str = "eth0") -> Owner:
    """An owner of `net1`, told apart by its container."""
    return Owner(network=network, container_id=container_id, ifname=ifname)


def request(environ: dict[str, str] | None = None, /, **keys: object) -> Request:
    """A request with these configuration keys and changes of the environment; ADD of 1.1.0 otherwise."""
    config = {"cniVersion": "1.1.0", "name": "net1", "type": "cni-bridge", **keys}
    return parse_request({**ENVIRONMENT, **(environ or {})}, json.dumps(config).encode())


def refusal(call: Callable[..., object], *args: object) -> CniError:
    """The error that the call raises."""
    with pytest.raises(CniError) as caught:
        call(*args)
    return caught.value


def range_sets(*sets: list[str]) -> tuple[RangeSet, ...]:
    """Range sets of subnets, each with the default ends and gateway."""
    return require_apart(
        tuple(RangeSet(ranges=tuple(build_range(ip_network(subnet)) for subnet in subnets)) for subnets in sets)
    )


@dataclass(slots=True, kw_only=True)
class Clock:
    """The time as a test tells it."""

    boot: int = 1
    seconds: float = 1000.0

    def __call__(self) -> Moment:
        return Moment(boot_id=f"boot {self.boot}", seconds=self.seconds)

    def reboot(self) -> None:
        self.boot += 1
        self.seconds = 10.0


@contextmanager
def behind(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads the database, behind the back of whoever else has it open."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


def entries(database: Path, network: str = "net1") -> list[Entry]:
    """What the database holds of the network's addresses, in their order."""
    with behind(database) as connection:
        rows = connection.execute(f"SELECT {ENTRY} FROM addresses WHERE network = ? ORDER BY address", (network,))
        return [parse_entry(row) for row in rows]


def leases(database: Path, network: str = "net1") -> list[Lease]:
    """The network's leases, in the order of their addresses."""
    return [each.lease for each in entries(database, network) if each.lease is not None]


def taken_runs(database: Path, network: str = "net1") -> tuple[Run, ...]:
    """The runs of taken addresses that the database keeps of the network."""
    with behind(database) as connection:
        rows = connection.execute("SELECT first, next FROM taken WHERE network = ? ORDER BY first", (network,))
        return tuple(Run(first=blob_number(first), next=blob_number(following)) for first, following in rows)
