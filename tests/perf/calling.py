"""Executes programs on a test's host and times each from spawn to exit, with nothing of its own between.

This process enters the host's namespaces to spawn, so it must have one thread. Standard input, output and error are
files in memory: made before the time begins, read after it ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.host import Host

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python; a program expects them as they are by default
_MOST_FAILURES = 10  # of one call

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A program with its environment, and what is on its standard input."""

    executable: Path
    environ: Mapping[str, str]
    stdin: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a call ended, and its milliseconds."""

    ms: float
    status: int
    stdout: bytes
    stderr: bytes


class Spawned:
    """A running call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        os.write(self._files[0], call.stdin)
        os.lseek(self._files[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(self._files)]
        arguments = [str(call.executable)]
        environ = dict(call.environ)
        self.began = time.perf_counter()
        self.pid = os.posix_spawn(arguments[0], arguments, environ, file_actions=actions, setsigdef=_IGNORED)

    def ended(self, wait_status: int) -> Ended:
        """What came of it; at once after it was waited for."""
        ms = (time.perf_counter() - self.began) * 1000
        _, stdout, stderr = (_content(each) for each in self._files)
        return Ended(ms=ms, status=os.waitstatus_to_exitcode(wait_status), stdout=stdout, stderr=stderr)


def _content(file: int) -> bytes:
    """What was written to the file, which is closed."""
    with open(file, "rb") as opened:
        opened.seek(0)
        return opened.read()


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """Be in the host's mount and network namespace."""
    directory = os.open(".", os.O_PATH)
    home = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("mnt", "net")]
    there = os.pidfd_open(host.holder.pid)
    try:
        _enter(there, CLONE_NEWNS | CLONE_NEWNET)
        try:
            yield
        finally:
            for each in home:
                _enter(each, 0)
            os.fchdir(directory)  # which entering a mount namespace leaves
    finally:
        for each in (*home, there, directory):
            os.close(each)


def _enter(fd: int, kinds: int) -> None:
    if _libc.setns(fd, kinds) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def run(host: Host, call: Call) -> Ended:
    """Execute the program on the host, to its end."""
    with inside(host):
        spawned = Spawned(call)
        _, status = os.waitpid(spawned.pid, 0)
        return spawned.ended(status)


@dataclass(slots=True, kw_only=True)
class Job:
    """A call that has to succeed in the end: after a failure `undo` is called, if there is one, and then it again."""

    call: Call
    undo: Call | None = None
    ms: float = 0.0  # from the first spawn to success
    failures: list[Ended] = field(default_factory=list)
    stdout: bytes = b""
    _began: float = 0.0
    _undoing: bool = False
    _spawned: Spawned | None = None

    def start(self) -> int:
        """Spawn what is next; its process."""
        call = self.undo if self._undoing and self.undo is not None else self.call
        self._spawned = Spawned(call)
        self._began = self._began or self._spawned.began
        return self._spawned.pid

    def is_done(self, wait_status: int) -> bool:
        """Take note of how it ended: whether this is all."""
        assert self._spawned is not None
        ended = self._spawned.ended(wait_status)
        self.ms = (time.perf_counter() - self._began) * 1000
        if ended.status != 0:
            self.failures.append(ended)
            if len(self.failures) > _MOST_FAILURES:
                raise SystemExit(f"{self.call.executable} fails again and again: {ended.stdout.decode()}")
            self._undoing = self.undo is not None
            return False
        if self._undoing:
            self._undoing = False
            return False
        self.stdout = ended.stdout
        return True


def run_at_once(host: Host, jobs: Sequence[Job], most: int) -> float:
    """Seconds until all the jobs are done on the host, of which so many are in flight."""
    waiting, running = deque(jobs), dict[int, Job]()
    with inside(host):
        began = time.perf_counter()
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.popleft()
                running[job.start()] = job
            pid, status = os.wait()
            if pid not in running:
                raise SystemExit("a process that the benchmark needs has ended")
            job = running.pop(pid)
            if not job.is_done(status):
                waiting.appendleft(job)
        return time.perf_counter() - began
