"""How long an address takes: by the number of leases, beside `host-local`, and from a daemon that many ask at once.

Run as `python -m tests.perf.bench_ipam [--directory DIR]`; it needs no root. It leaves nothing behind and judges
nothing: what a time means depends on the disk, for which each allocation and each release waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_interface, ip_network
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ipam import filesystem, host_local, wire
from ipam.api import Lease, Network, Owner, RangeSet, Wanted
from ipam.client import Client
from ipam.clock import now
from ipam.host import ToldHost
from ipam.local import LocalIpam
from ipam.ranges import build_range
from ipam.registry import Entry, Moved
from ipam.remote import RemoteIpam
from ipam.settings import AddressSettings, Settings
from ipam.store import Store
from ipam.transaction import Transaction

T = TypeVar("T")

BIN = Path(sys.executable).parent
HOST_LOCAL = Path("/usr/lib/cni/host-local")
NETWORK = "bench"
V4, V6 = ip_network("10.200.0.0/16"), ip_network("fd00:200::/64")
COUNTS = (10, 10_000, 60_000)
NEARLY_ALL = round((V4.num_addresses - 3) * 0.999)
PAIRS = 300  # of allocation and release, for each number of leases
ROUNDS = 20  # of one ADD in each way, for each number of leases
CLIENTS = 16
PROCESSES = 2  # that the clients are in: one would wait for itself
SECONDS = 5.0
START_PATIENCE = 3.0  # seconds until all processes are there and begin together
ID_LENGTH = 64

console = Console(width=max(110, Console().width))


def main() -> int:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.bench_ipam", description=__doc__)
    parser.add_argument("--directory", type=Path, help="where to measure; by default that for temporary files")
    with tempfile.TemporaryDirectory(prefix="ipam-", dir=parser.parse_args().directory) as name:
        directory = Path(name)
        kind = filesystem.kind_of(directory) or "an unknown file system"
        console.print(f"{directory.parent} is {kind}; a write that waits for the disk takes {_sync(directory):.2f} ms")
        asyncio.run(_measure_in_process(directory / "a"))
        asyncio.run(_measure_side_by_side(directory / "b"))
        asyncio.run(_measure_at_once(directory / "c"))
    return 0


def _sync(directory: Path) -> float:
    """Milliseconds of a small write that waits for the disk."""
    with (directory / "probe").open("wb", buffering=0) as file:

        def write() -> None:
            file.write(os.urandom(4096))
            os.fsync(file.fileno())

        return median(_timed(write) for _ in range(50))


def _timed(call: Callable[[], object]) -> float:
    """Milliseconds of the call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


async def _awaited(call: Awaitable[object]) -> float:
    """Milliseconds of the call."""
    began = time.perf_counter()
    await call
    return (time.perf_counter() - began) * 1000


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]


def _shown(steps: Iterable[T], what: str) -> Iterable[T]:
    """The steps, with a bar that is gone at the end."""
    return track(list(steps), what, console=console, transient=True, disable=not console.is_terminal)


def _wanted(container: str, subnet: Network = V4) -> Wanted:
    return Wanted(
        owner=Owner(network=NETWORK, container_id=container.rjust(ID_LENGTH, "0"), ifname="eth0"),
        range_sets=(RangeSet(ranges=(build_range(subnet),)),),
        allow_overlap=True,  # whatever addresses this host has
    )


def _entries(subnet: Network, number: int) -> Iterator[Entry]:
    """So many leases, scattered over the subnet, or over the first 2**32 addresses of a large one."""
    base, size = int(subnet.network_address), min(subnet.num_addresses - 1, 1 << 32)
    for offset in random.Random(number).sample(range(2, size), number):
        lease = Lease(
            owner=_wanted(f"earlier-{offset}").owner,
            address=ip_interface((base + offset, subnet.prefixlen)),
            gateway=build_range(subnet).gateway,
            since=datetime.now(UTC).replace(microsecond=0),
            boot_id=now().boot_id,
        )
        yield Entry(network=NETWORK, address=lease.address.ip, lease=lease)


@asynccontextmanager
async def _filled(settings: Settings, subnet: Network, number: int) -> AsyncIterator[LocalIpam]:
    """An IPAM that has given so many addresses of the subnet."""

    def fill(txn: Transaction) -> None:
        txn.put(_entries(subnet, number))

    store = await Store.open(settings.database, patience=settings.patience)
    try:
        ipam, first = LocalIpam(store, settings, ToldHost()), _wanted("first", subnet)
        await ipam.allocate(first)
        await ipam.release(first.owner)
        await store.write(fill)
        yield ipam
    finally:
        await store.close()


@dataclass(slots=True, kw_only=True)
class Filling:
    """A subnet and how many leases it has, and the milliseconds that more of them took."""

    subnet: Network
    leases: int
    allocating: list[float] = field(default_factory=list)
    releasing: list[float] = field(default_factory=list)


async def _measure_in_process(directory: Path) -> None:
    """Released addresses do not rest, so that the few that are left of a full subnet can go round."""
    cases = [
        *(Filling(subnet=V4, leases=each) for each in (*COUNTS, NEARLY_ALL)),
        *(Filling(subnet=V6, leases=each) for each in (COUNTS[0], COUNTS[-1])),
    ]
    async with AsyncExitStack() as opened:
        ipams = []
        for each in _shown(cases, "filling databases"):
            state = directory / f"{each.subnet.version}-{each.leases}"
            settings = Settings(state_dir=state, addresses=AddressSettings(cooldown=0))
            ipams.append(await opened.enter_async_context(_filled(settings, each.subnet, each.leases)))
        for pair in _shown(range(PAIRS), "in process"):
            for each, ipam in zip(cases, ipams, strict=True):
                wanted = _wanted(f"{pair}", each.subnet)
                each.allocating.append(await _awaited(ipam.allocate(wanted)))
                each.releasing.append(await _awaited(ipam.release(wanted.owner)))
    table = Table("leases", "in a", "allocate p50", "p99", "release p50", "p99", title=f"In process, ms of {PAIRS}")
    for each in cases:
        times = [median(each.allocating), _p99(each.allocating), median(each.releasing), _p99(each.releasing)]
        table.add_row(f"{each.leases:,}", f"/{each.subnet.prefixlen}", *(f"{ms:.2f}" for ms in times))
    console.print(table)
    medians = [median(each.allocating) for each in cases]
    console.print(f"largest allocate p50 / smallest: {max(medians) / min(medians):.2f}\n")


@asynccontextmanager
async def _daemon(directory: Path) -> AsyncIterator[Client]:
    """A running `ipamd` on the state directory `state` in that one, with all else below it too."""
    socket_path = directory / "run" / "ipamd.sock"
    client = Client(socket_path, patience=Settings().request_timeout)
    process = await asyncio.create_subprocess_exec(BIN / "ipamd", env=_environment(directory, directory / "run"))
    try:
        while not await client.is_served():
            if process.returncode is not None:
                raise SystemExit("ipamd did not start")
            await asyncio.sleep(0.01)
        yield client
    finally:
        process.terminate()
        await process.wait()


def _environment(directory: Path, run: Path) -> dict[str, str]:
    """What our programs need to know to touch nothing but this directory, with settings as they are by default."""
    return {
        "PATH": os.environ["PATH"],
        "CNI_BRIDGE_STATE_DIR": str(directory / "state"),
        "CNI_BRIDGE_RUN_DIR": str(run),
        "CNI_BRIDGE_CONFIG": str(directory / "no-config.yaml"),
    }


@dataclass(slots=True, kw_only=True)
class Beside:
    """Milliseconds of an ADD in each way beside so many leases, and of the daemon's part of it."""

    directory: Path
    leases: int
    ways: dict[str, list[float]] = field(default_factory=dict)
    daemon: float = 0.0

    def execute(self, way: str, executable: Path, run: Path, container: str) -> None:
        """Have the executable add and delete; the former is measured."""
        conf = {
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "type": "macvlan",
            "ipam": {
                "type": executable.name,
                "subnet": str(V4),
                "allowOverlap": True,
                "dataDir": str(self.directory / "networks"),
            },
        }
        environment = _environment(self.directory, run) | {
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/run/netns/none",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(executable.parent),
        }
        call = partial(subprocess.run, [executable], input=json.dumps(conf).encode(), capture_output=True, check=True)
        ms = _timed(lambda: call(env=environment | {"CNI_COMMAND": "ADD"}))
        self.ways.setdefault(way, []).append(ms)
        call(env=environment | {"CNI_COMMAND": "DEL"})

    async def request(self, way: str, ipam: RemoteIpam, container: str) -> None:
        """Have the daemon add and delete without any process; the former is measured."""
        wanted = _wanted(container)
        self.ways.setdefault(way, []).append(await _awaited(ipam.allocate(wanted)))
        await ipam.release(wanted.owner)


async def _measure_side_by_side(directory: Path) -> None:
    cases = [Beside(directory=directory / str(each), leases=each) for each in COUNTS]
    async with AsyncExitStack() as opened:
        clients = []
        for each in _shown(cases, "filling directories"):
            async with _filled(Settings(state_dir=each.directory / "state"), V4, each.leases):
                pass  # closed again: it is the daemon's now
            held = (entry.lease for entry in _entries(V4, each.leases) if entry.lease is not None)
            moved = [Moved(owner=lease.owner, address=lease.address.ip) for lease in held]
            host_local.write(each.directory / "networks" / NETWORK, moved, {})
            clients.append(await opened.enter_async_context(_daemon(each.directory)))
        for number in _shown(range(ROUNDS), "side by side"):
            for each, client in zip(cases, clients, strict=True):
                if HOST_LOCAL.exists():
                    each.execute("host-local", HOST_LOCAL, each.directory, f"h{number}")
                each.execute("cni-ipam alone", BIN / "cni-ipam", each.directory / "no-daemon", f"a{number}")
                each.execute("cni-ipam, ipamd", BIN / "cni-ipam", each.directory / "run", f"d{number}")
                await each.request("request to ipamd", RemoteIpam(client), f"{number}")
        for each, client in zip(cases, clients, strict=True):
            each.daemon = await _own_time(client)
    ways = list(cases[0].ways)
    table = Table("leases", *ways, "within ipamd (mean)", title=f"Side by side: one ADD, median ms of {ROUNDS}")
    for each in cases:
        medians = (f"{median(each.ways[way]):.2f}" for way in ways)
        table.add_row(f"{each.leases:,}", *medians, f"{each.daemon:.2f}")
    console.print(table, "")


async def _own_time(client: Client) -> float:
    """Milliseconds from request to answer of the daemon's allocations, by its own metrics."""
    text = (await client.ask(wire.Text, wire.Metrics())).text
    samples = chain.from_iterable(family.samples for family in text_string_to_metric_families(text))
    values = {each.name: each.value for each in samples if each.labels.get("operation") == "Allocate"}
    return 1000 * values["ipam_request_seconds_sum"] / values["ipam_request_seconds_count"]


async def _measure_at_once(directory: Path) -> None:
    table = Table("clients", "allocations/s", "p50", "p99", "within ipamd (mean)", title="At once, ms")
    for number in (1, CLIENTS):
        async with _daemon(directory / str(number)) as client:
            await RemoteIpam(client).allocate(_wanted("first"))
            path, processes = directory / str(number) / "run" / "ipamd.sock", min(number, PROCESSES)
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                ask = partial(ask_on_and_on, path, number // processes, time.monotonic() + START_PATIENCE)
                times = list(chain.from_iterable(pool.map(ask, range(processes))))
            rate = len(times) / SECONDS
            own = await _own_time(client)
        table.add_row(str(number), f"{rate:.0f}", f"{median(times):.2f}", f"{_p99(times):.2f}", f"{own:.2f}")
    console.print(table)


def ask_on_and_on(path: Path, clients: int, at: float, process: int) -> list[float]:
    """Milliseconds of all allocations that so many clients at once get from `at` on, each on a connection of its own.

    Done with as little as possible, for what is to be measured is the other side.
    """
    frame, blank = wire.pack(wire.render_request(wire.Allocate(wanted=_wanted("")))), b"0" * ID_LENGTH
    assert frame.count(blank) == 1

    def ask(container: str) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            _frame(connection)
            connection.sendall(frame.replace(blank, container.rjust(ID_LENGTH, "0").encode()))
            answer = _frame(connection)
        if not answer.startswith(b'{"ok"'):
            raise SystemExit(f"ipamd: {answer.decode()}")

    def keep_asking(client: int) -> list[float]:
        times: list[float] = []
        while time.monotonic() < at + SECONDS:
            times.append(_timed(partial(ask, f"{process}-{client}-{len(times)}")))
        return times

    time.sleep(max(0.0, at - time.monotonic()))
    with ThreadPoolExecutor(clients) as pool:
        return list(chain.from_iterable(pool.map(keep_asking, range(clients))))


def _frame(connection: socket.socket) -> bytes:
    """The body of the next frame."""
    found = connection.recv(1 << 16)
    while len(found) < wire.HEADER_SIZE or len(found) < wire.HEADER_SIZE + wire.body_size(found[: wire.HEADER_SIZE]):
        more = connection.recv(1 << 16)
        if not more:
            raise SystemExit("ipamd hung up")
        found += more
    return found[wire.HEADER_SIZE :]


if __name__ == "__main__":
    sys.exit(main())
