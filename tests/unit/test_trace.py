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
