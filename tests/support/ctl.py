"""Calls of the operator's command on a host, and looks and changes behind the back of whoever has its database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.host import BIN, Host, Json

CTL = BIN / "cni-bridgectl"
STATE = "/var/lib/cni-bridge"
DATABASE = f"{STATE}/ipam.db"

_STATEMENT = """
import json, sqlite3, sys
with sqlite3.connect(sys.argv[1]) as connection:
    print(json.dumps(connection.execute(*map(json.loads, sys.argv[2:])).fetchall()))
"""


_SERVE = """
import json, sys, traceback
from click.testing import CliRunner
from cni_bridge.ctl.main import main

for line in sys.stdin:
    asked = json.loads(line)
    done = CliRunner().invoke(main, asked["words"], input=asked["stdin"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        traceback.print_exception(done.exception)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""


class Operator:
    """Runs the command on a host time and again in one process: to start takes it longer than all that it does."""

    def __init__(self, host: Host, env: Mapping[str, str]) -> None:
        words = (sys.executable, "-c", _SERVE)
        self._process = host.start(*words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, *words: str, status: int = 0, stdin: str = "") -> str:
        """What the command prints, then what it says on standard error; it ends with that status."""
        out, err = self._ask(words, status, stdin)
        return out + err

    def json(self, *words: str) -> Any:
        """What the command prints with `--json`."""
        return json.loads(self._ask((*words, "--json"), 0, "")[0])

    def _ask(self, words: tuple[str, ...], status: int, stdin: str) -> tuple[str, str]:
        self._process.stdin.write(json.dumps({"words": words, "stdin": stdin}).encode() + b"\n")
        self._process.stdin.flush()
        ended, out, err = json.loads(self._process.stdout.readline())
        assert ended == status, f"{words}: {ended}\n{out}{err}"
        return out, err


def ctl(
    host: Host,
    *words: str | Path,
    status: int = 0,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command, which ends with that status and no traceback."""
    return _ended(host.run(CTL, *words, stdin=stdin.encode(), check=False, env=env), status)


def ctl_json(host: Host, *words: str | Path, status: int = 0, env: Mapping[str, str] | None = None) -> Any:
    """What the command prints with `--json`."""
    return json.loads(ctl(host, *words, "--json", status=status, env=env).stdout)


def audit(
    host: Host, *words: str, status: int = 0, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `audit` where no process of another host is to be seen: a host has no process ids of its own."""
    alone = ("unshare", "--pid", "--fork", "--mount-proc")
    return _ended(host.run(*alone, CTL, "audit", *words, stdin=stdin.encode(), check=False, env=env), status)


def found(host: Host, *words: str, status: int = 1, env: Mapping[str, str] | None = None) -> list[Json]:
    """What an audit finds."""
    problems: list[Json] = json.loads(audit(host, *words, "--json", status=status, env=env).stdout)
    return problems


def sql(host: Host, statement: str, *values: object) -> list[list[Any]]:
    """Run the statement on the database, as no program of ours does."""
    words = (DATABASE, json.dumps(statement), json.dumps(values))
    rows: list[list[Any]] = json.loads(host.run(sys.executable, "-c", _STATEMENT, *words).stdout)
    return rows


def _ended(done: subprocess.CompletedProcess[str], status: int) -> subprocess.CompletedProcess[str]:
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, f"{done.args}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done
