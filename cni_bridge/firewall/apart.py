"""Runs a function in a forked child, for libraries that a process can use only once or that end it when they fail."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

_PATIENCE = 10  # seconds; a transaction takes milliseconds


class ChildFailed(Exception):
    """The child raised or ended; the message is what there was to learn."""


def run_apart(function: Callable[[], list[str]]) -> list[str]:
    """The function's outcome, from a copy of this process that does nothing else."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(function, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not said:
        raise ChildFailed(f"the process that changes iptables ended with status {os.waitstatus_to_exitcode(status)}")
    outcome, failure = json.loads(said)
    if failure:
        raise ChildFailed(failure)
    return list(outcome)


def _answer(function: Callable[[], list[str]], writing: int) -> None:
    """Send the outcome and end, without what the parent would do at its end; the kernel ends it if it hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_PATIENCE)
    try:
        try:
            answer = (function(), "")
        except Exception as error:
            answer = ([], f"{error}" or type(error).__name__)
        os.write(writing, json.dumps(answer).encode())
    finally:
        os._exit(0)
