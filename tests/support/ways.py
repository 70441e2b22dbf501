"""The ways in which a request can be served, and which of them a test goes."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import zlib
from enum import StrEnum
from functools import cache
from pathlib import Path

from cni_bridge import shim


class Way(StrEnum):
    """Who serves the calls that a host's runtime makes."""

    ONESHOT = "oneshot"  # a process for each, as no daemon runs
    NATIVE = "native"  # `cni-bridged`, asked by the client that was built
    PYTHON = "python"  # `cni-bridged`, asked by the client for where no C compiler is


_SHARES = (Way.NATIVE, Way.NATIVE, Way.PYTHON, Way.ONESHOT)

chosen = Way.ONESHOT  # of hosts that are made from now on; the tests' configuration sets it for each test


def drawn(name: str) -> Way:
    """The way of the test of that name: always the same."""
    return _SHARES[zlib.crc32(name.encode()) % len(_SHARES)]


def interpreter() -> str:
    """The interpreter that the Python client is built for, as setup.py says."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def python_client() -> Path:
    """The Python client as it is built where there is no C compiler, somewhere; it is gone with this process."""
    directory = Path(tempfile.mkdtemp(prefix="client-"))
    atexit.register(shutil.rmtree, directory)
    path = directory / "client"
    path.write_text(f"#!{interpreter()} -IS\n{Path(shim.__file__).read_text()}")
    path.chmod(0o755)
    return path
