"""Where the time of a request goes: named steps, and how often the kernel and other programs were asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Trace:
    """One request's steps in seconds, and its counts."""

    began: float = field(default_factory=time.perf_counter)
    steps: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        total = time.perf_counter() - self.began
        spent = {**self.steps, "rest": total - sum(self.steps.values())}
        times = ", ".join(f"{name} {seconds * 1000:.2f}" for name, seconds in spent.items())
        counted = ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()))
        return f"{total * 1000:.2f} ms: {times}; {counted or 'nothing asked'}"


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(*, received_since: float | None = None) -> Trace:
    """Trace what this task does from now on; until now it was received, since that time of the performance counter."""
    trace = Trace()
    if received_since is not None:
        trace.steps["receive"] = trace.began - received_since
        trace.began = received_since
    _current.set(trace)
    return trace


@contextmanager
def step(name: str) -> Iterator[None]:
    """What the block takes belongs to the step of that name; steps do not contain each other."""
    trace = _current.get()
    if trace is None:
        yield
        return
    began = time.perf_counter()
    try:
        yield
    finally:
        trace.steps[name] = trace.steps.get(name, 0.0) + time.perf_counter() - began


def count(what: str) -> None:
    """One more of these, in the plural: messages, dumps, transactions, processes."""
    trace = _current.get()
    if trace is not None:
        trace.counts[what] = trace.counts.get(what, 0) + 1
