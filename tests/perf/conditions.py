"""What the machine is like on which something was measured, in lines for people."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from ipam import filesystem
from tests.perf.calling import Call, run
from tests.support.host import REFERENCE, Host

_PROBES = 50


def describe(directory: Path) -> Iterator[str]:
    """The machine, its programs, the disk of the directory, and what spawning takes by itself."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    yield (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores of {model.partition(': ')[2] or 'some CPU'}; "
        f"Linux {platform.release()}; Python {platform.python_version()}; SQLite {sqlite3.sqlite_version}"
    )
    reference = _said("dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins")
    yield f"{_said('nft', '--version')}; {_said('iptables', '--version')}; reference plugins {reference} in {REFERENCE}"
    yield (
        f"{directory} is {filesystem.kind_of(directory) or 'an unknown file system'}, where a write that waits for the "
        f"disk takes {_sync(directory):.2f} ms; to spawn /bin/true and wait for it takes {_spawn():.2f} ms; "
        f"load {os.getloadavg()[0]:.1f}"
    )


def _said(*words: str) -> str:
    """The first line that the program prints."""
    try:
        printed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return f"no {words[0]}"
    return (printed.splitlines() or ["unknown"])[0]


def _sync(directory: Path) -> float:
    """Milliseconds of a small write that waits for the disk."""
    path, times = directory / "probe", []
    with path.open("wb", buffering=0) as file:
        for _ in range(_PROBES):
            began = time.perf_counter()
            file.write(os.urandom(4096))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return median(times) * 1000


def _spawn() -> float:
    """Milliseconds of a program that does nothing, as the harness executes it: what is in every time."""
    host = Host()
    try:
        return median(run(host, Call(executable=Path("/bin/true"), environ={})).ms for _ in range(_PROBES))
    finally:
        host.close()
