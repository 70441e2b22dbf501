"""Runs this project's executables as they are installed, each of which watches its effects all the same (`armed`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.host import BIN, Answer, Host

_ROOT = Path(__file__).parents[2]
_HOOKS = _ROOT / "tests/robustness/hooks"
_LEASES = "from tests.support.forks import print_leases; print_leases()"


class Executables:
    """What `forks.Forks` is, but slower."""

    def run(
        self,
        host: Host,
        program: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        alone: bool = False,
    ) -> Answer:
        """See `Forks.run`. The one-shot program is left to the client to run."""
        command: list[str | Path] = [BIN / program, *words]
        if program == "cni-bridge-oneshot":
            command = [BIN / words[0]]
        elif program == "leases":
            command = [sys.executable, "-c", _LEASES]
        given = ("unshare", "--pid", "--fork", "--mount-proc") if alone else ()
        done = host.run(*given, *command, stdin=stdin, check=False, env=_environment(env))
        return Answer(done.returncode, done.stdout, done.stderr)

    def start(self, host: Host, program: str, *, env: Mapping[str, str] | None = None) -> Process:
        """See `Forks.start`."""
        log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - as long as the program
        return Process(host.start(BIN / program, env=_environment(env), stderr=log), log)


@dataclass
class Process:
    """See `forks.Started`."""

    process: subprocess.Popen[bytes]
    log: Any

    def said(self) -> str:
        """See `Started.said`."""
        self.log.seek(0)
        return str(self.log.read().decode())

    def ended(self, seconds: float = 0) -> int | None:
        """See `Started.ended`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {"PYTHONPATH": f"{_HOOKS}:{_ROOT}", **(env or {})}
