"""Runs this project's programs on a test's host in forks of a process that has imported them already.

Each is a process of its own, which can be killed as any other; but what takes it longest, to start, is done once. The
programs are those of the executables, and their effects are watched (`armed`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from tests.support.host import BIN, Answer, Host, Json

_ROOT = Path(__file__).parents[2]
_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


class Forks:
    """The process that forks; one for all tests of a session."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._answers = self._socket.makefile("r")

    def close(self) -> None:
        """End it."""
        self._answers.close()
        self._socket.close()
        self._process.wait(20)

    def run(
        self,
        host: Host,
        program: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        alone: bool = False,
    ) -> Answer:
        """Run the program to its end; `alone`: where no other process is to be seen."""
        asked = self._asked(host, program, words, env) | {"op": "run", "stdin": stdin.decode(), "alone": alone}
        told = self._ask(asked)
        return Answer(told["status"], told["stdout"], told["stderr"])

    def start(self, host: Host, program: str, *, env: Mapping[str, str] | None = None) -> Started:
        """Start a program that goes on; it ends with the host at the latest."""
        log = tempfile.NamedTemporaryFile("r", prefix=f"{program}-", suffix=".log")  # noqa: SIM115
        asked = self._asked(host, program, (), env) | {"op": "start", "log": log.name}
        return Started(self, self._ask(asked)["pid"], log)

    def wait(self, pid: int, seconds: float) -> int | None:
        """The status of what was started, None if it has not ended then."""
        status: int | None = self._ask({"op": "wait", "pid": pid, "seconds": seconds})["status"]
        return status

    def _asked(self, host: Host, program: str, words: tuple[str, ...], env: Mapping[str, str] | None) -> Json:
        environment = {"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", **host.environment, **(env or {})}
        return {"holder": host.holder.pid, "program": program, "words": words, "env": environment}

    def _ask(self, asked: Json) -> Json:
        self._socket.sendall(json.dumps(asked).encode() + b"\n")
        told: Json = json.loads(self._answers.readline())
        return told


@dataclass
class Started:
    """A program that goes on."""

    forks: Forks
    pid: int
    log: Any
    status: int | None = None

    def said(self) -> str:
        """What it has said so far."""
        return Path(self.log.name).read_text()

    def ended(self, seconds: float = 0) -> int | None:
        """Its status, None if it runs after these seconds."""
        if self.status is None:
            self.status = self.forks.wait(self.pid, seconds)
        return self.status

    def stop(self) -> None:
        """End it as a service manager does."""
        os.kill(self.pid, signal.SIGTERM)
        assert self.ended(20) == 0, self.said()


# What follows runs in the process that forks, and in its forks.


def _serve(asking: socket.socket) -> None:
    programs = _programs()
    gc.freeze()
    with asking.makefile("r") as lines:
        for line in lines:
            asking.sendall(json.dumps(_do(json.loads(line), programs, asking)).encode() + b"\n")


def _programs() -> dict[str, Callable[[], object]]:
    import aiosqlite  # noqa: F401
    import iptc.easy  # noqa: F401
    import pyroute2  # noqa: F401

    from cni_bridge import daemon, ipam_plugin, ipamd, oneshot, static_ipam, verbs, wiring  # noqa: F401
    from cni_bridge.chained import served  # noqa: F401
    from cni_bridge.ctl.main import main as ctl

    return {
        "cni-bridge-oneshot": oneshot.main,
        "cni-bridged": daemon.main,
        "ipamd": ipamd.main,
        "cni-bridgectl": ctl,
        "leases": print_leases,
    }


def _do(asked: Json, programs: Mapping[str, Callable[[], object]], asking: socket.socket) -> Json:
    match asked["op"]:
        case "run":
            with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                given.write(asked["stdin"].encode())
                given.seek(0)
                pid = _fork(asked, programs, asking, (given.fileno(), out.fileno(), err.fileno()))
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                out.seek(0)
                err.seek(0)
                return {"status": status, "stdout": out.read().decode(), "stderr": err.read().decode()}
        case "start":
            with open(os.devnull, "rb") as given, open(asked["log"], "wb") as log:
                return {"pid": _fork(asked, programs, asking, (given.fileno(), log.fileno(), log.fileno()))}
        case "wait":
            return {"status": _wait(asked["pid"], asked["seconds"])}
    raise AssertionError(asked)


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def _fork(
    asked: Json,
    programs: Mapping[str, Callable[[], object]],
    asking: socket.socket,
    descriptors: tuple[int, int, int],
) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for number, fd in enumerate(descriptors):
            os.dup2(fd, number)
        asking.close()
        status = _become(asked, programs[asked["program"]])
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _become(asked: Json, program: Callable[[], object]) -> int:
    for name, kind in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)):
        with open(f"/proc/{asked['holder']}/ns/{name}") as namespace:
            _call("setns", namespace.fileno(), kind)
    if asked.get("alone"):
        _be_alone()
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = [str(BIN / asked["program"]), *asked["words"]]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    from ipam import effects
    from tests.support import armed

    armed.install()
    try:
        status = program()
    except SystemExit as end:
        status = end.code
    effects.change("answer")
    return status if isinstance(status, int) else int(status is not None)


def _be_alone() -> None:
    """Go on as the first process of a namespace of process ids, with its own /proc."""
    _call("unshare", _CLONE_NEWPID | _CLONE_NEWNS)
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call("mount", b"proc", b"/proc", b"proc", 0, None)


def _call(name: str, *values: Any) -> None:
    if getattr(_libc, name)(*values) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


_libc = ctypes.CDLL(None, use_errno=True)


def print_leases() -> None:
    """Prints the leases in the database, as no program of ours does."""
    import sqlite3
    from contextlib import closing

    path = Path(os.environ.get("CNI_BRIDGE_STATE_DIR", "/var/lib/cni-bridge")) / "ipam.db"
    if path.exists():
        with closing(sqlite3.connect(path, timeout=5)) as database:
            if database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'addresses'").fetchall():
                rows = database.execute(
                    "SELECT address, network, container_id, ifname FROM addresses WHERE container_id IS NOT NULL"
                )
                for address, *owner in rows:
                    full = IPv6Address(address)
                    print(full.ipv4_mapped or full, "/".join(owner))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
