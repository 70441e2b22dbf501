"""Where the time of a request goes: named steps, and how often the kernel and other programs were asked."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Trace:
    """One request's steps in seconds, when each of them was, and its counts."""

    began: float = field(default_factory=time.perf_counter)
    steps: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[float, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        total = time.perf_counter() - self.began
        spent = {**self.steps, "rest": total - self.covered()}
        times = ", ".join(f"{name} {seconds * 1000:.2f}" for name, seconds in spent.items())
        counted = ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()))
        return f"{total * 1000:.2f} ms: {times}; {counted or 'nothing asked'}"

    def add(self, name: str, began: float, ended: float) -> None:
        """This much more of a step."""
        self.steps[name] = self.steps.get(name, 0.0) + ended - began
        self.spans.append((began, ended))

    def covered(self) -> float:
        """The seconds in which there was a step, or several beside each other."""
        covered, until = 0.0, self.began
        for began, ended in sorted(self.spans):
            covered += max(ended, until) - max(began, until)
            until = max(ended, until)
        return covered


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(*, received_since: float | None = None) -> Trace:
    """Trace what this task does from now on; until now it was received, since that time of the performance counter."""
    trace = Trace()
    if received_since is not None:
        trace.add("receive", received_since, trace.began)
        trace.began = received_since
    _current.set(trace)
    return trace


class step:
    """What the block takes belongs to the step of that name; one may run beside another, in a thread of its own."""

    __slots__ = ("_began", "_name")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        trace = _current.get()
        if trace is not None:
            trace.add(self._name, self._began, time.perf_counter())


def count(what: str) -> None:
    """One more of these, in the plural: messages, dumps, transactions, processes."""
    trace = _current.get()
    if trace is not None:
        trace.counts[what] = trace.counts.get(what, 0) + 1
