"""Steps add up, counts are per request, and nothing is kept where nobody asked."""

from __future__ import annotations

import asyncio
import re

from cni_bridge import trace


def test_steps_and_counts_of_a_request() -> None:
    async def work(number: int) -> trace.Trace:
        tracing = trace.begin()
        for _ in range(number):
            with trace.step("links"):
                trace.count("messages")
                await asyncio.sleep(0.001)
        return tracing

    async def both() -> list[trace.Trace]:
        return await asyncio.gather(work(1), work(3))

    one, three = asyncio.run(both())
    assert (one.counts, three.counts) == ({"messages": 1}, {"messages": 3})
    assert one.steps["links"] < three.steps["links"]
    assert re.fullmatch(r"[\d.]+ ms: links [\d.]+, rest [\d.]+; 3 messages", str(three))


def test_without_a_trace_nothing_is_kept() -> None:
    async def work() -> None:
        with trace.step("links"):
            trace.count("messages")

    asyncio.run(work())


def test_a_step_that_fails_is_counted() -> None:
    async def work() -> trace.Trace:
        tracing = trace.begin()
        try:
            with trace.step("ipam"):
                raise ValueError
        except ValueError:
            return tracing

    assert asyncio.run(work()).steps.keys() == {"ipam"}


def test_steps_beside_each_other_cover_their_time_once() -> None:
    tracing = trace.Trace(began=0.0)
    for name, began, ended in (("links", 0.2, 0.6), ("ipam", 0.1, 0.5), ("rules", 0.7, 0.8), ("links", 0.72, 0.75)):
        tracing.add(name, began, ended)
    assert {name: round(seconds, 6) for name, seconds in tracing.steps.items()} == {
        "links": 0.43,
        "ipam": 0.4,
        "rules": 0.1,
    }
    assert round(tracing.covered(), 6) == 0.6
