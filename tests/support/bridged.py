"""A host's `cni-bridged` seen from outside: its process, what it says, and whether it greets."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.host import Host

RUN_DIR = "/run/cni-bridge"
SOCKET = f"{RUN_DIR}/cni-bridged.sock"
_PATIENCE = 20  # seconds, for a daemon on a busy machine

recent: list[Bridged] = []  # those of the test that runs; its configuration empties it


class Bridged:
    """A daemon that is started, with these words before its command and these arguments."""

    def __init__(
        self,
        host: Host,
        executable: Path,
        *words: str | Path,
        arguments: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._host = host
        recent.append(self)
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - as long as the daemon; a pipe would fill
        self.process: subprocess.Popen[bytes] = host.start(*words, executable, *arguments, stderr=self._log, env=env)

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def started(self) -> Bridged:
        """This daemon, when it greets."""
        _wait_until(lambda: self.process.poll() is not None or greets(self._host), "cni-bridged does not greet")
        assert self.process.poll() is None, self.said()
        return self

    def said(self) -> str:
        """What it has said so far."""
        self._log.seek(0)
        return self._log.read().decode()

    def hears(self, words: str, times: int = 1) -> None:
        """Wait until it has said these words that often."""
        _wait_until(lambda: self.said().count(words) >= times, f"it does not say {words!r}")

    def refused(self) -> str:
        """Why it did not start: one line on standard error, and exit status 1."""
        assert self.process.wait(_PATIENCE) == 1, self.said()
        complaint = self.said()
        assert complaint.startswith("cni-bridged: ") and complaint.count("\n") == 1, complaint
        return complaint

    def stop(self) -> None:
        """End it as a service manager does; it never said that something unforeseen happened."""
        self.process.send_signal(signal.SIGTERM)
        self.ended()

    def ended(self) -> None:
        """It ends as it should."""
        assert self.process.wait(_PATIENCE) == 0, self._last_words()
        assert "Traceback" not in self.said(), self._last_words()

    def _last_words(self) -> str:
        return self.said()[-3000:]


def greets(host: Host, path: str = SOCKET) -> bool:
    """Whether a daemon greets there."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(f"/proc/{host.holder.pid}/root{path}")
            return client.recv(8).startswith(b"cnib")
        except OSError:
            return False


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {_PATIENCE} s"
        time.sleep(0.005)
