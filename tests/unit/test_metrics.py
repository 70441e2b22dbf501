"""What the daemon counts, and how full the pools are when somebody looks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipam import metrics
from ipam.api import Network
from ipam.errors import StoreBusy
from ipam.metrics import Metrics
from ipam.ranges import build_range, parse_subnet
from ipam.registry import Origin, Pool, PoolUse

Samples = dict[tuple[str, frozenset[str]], float]


class Pools:
    """As much of a registry as metrics ask."""

    def __init__(self, answer: Callable[[], Awaitable[tuple[PoolUse, ...]]]) -> None:
        self._answer = answer

    async def pools(self) -> tuple[PoolUse, ...]:
        return await self._answer()


def use(network: str, subnet: Network, leased: int) -> PoolUse:
    pool = Pool(
        network=network,
        subnet=subnet,
        ranges=(build_range(subnet),),
        origin=Origin.CONFIGURED,
        reason="",
        shared=False,
        since=datetime.now(UTC),
    )
    return PoolUse(pool=pool, capacity=subnet.num_addresses, leased=leased, cooling=1, reserved=2)


async def no_pools() -> tuple[PoolUse, ...]:
    return ()


def rendered(
    count: Callable[[Metrics], None] = lambda _: None, pools: Callable[[], Awaitable[tuple[PoolUse, ...]]] = no_pools
) -> Samples:
    """The values in the text by name and values of labels, after `count`."""

    async def run() -> str:
        made = Metrics(Pools(pools))  # type: ignore[arg-type]
        count(made)
        return await made.render()

    families = text_string_to_metric_families(asyncio.run(run()))
    return {(each.name, frozenset(each.labels.values())): each.value for family in families for each in family.samples}


def test_requests_are_counted_by_operation_and_outcome_and_their_time_is_summed_up() -> None:
    def count(made: Metrics) -> None:
        for outcome, seconds in (("ok", 0.002), ("ok", 0.5), ("PoolExhausted", 20.0)):
            made.count("Allocate", outcome, seconds)
        made.count("Release", "ok", 1.0)

    found = rendered(count)
    assert found["ipam_requests_total", frozenset({"Allocate", "ok"})] == 2
    assert found["ipam_requests_total", frozenset({"Allocate", "PoolExhausted"})] == 1
    assert found["ipam_requests_total", frozenset({"Release", "ok"})] == 1
    assert found["ipam_request_seconds_sum", frozenset({"Allocate"})] == 20.502
    buckets = {
        bound: found["ipam_request_seconds_bucket", frozenset({"Allocate", bound})]
        for bound in ("0.001", "0.0025", "0.5", "10.0", "+Inf")
    }
    assert buckets == {"0.001": 0, "0.0025": 1, "0.5": 2, "10.0": 2, "+Inf": 3}


def test_pools_are_told_as_they_are_now_whatever_their_names() -> None:
    odd = 'of "Müller"\\n\nand sons'
    uses = [use("net1", parse_subnet("10.88.0.0/24"), 7), use(odd, parse_subnet("fd00:88::/64"), 3)]

    async def pools() -> tuple[PoolUse, ...]:
        return tuple(uses)

    found = rendered(pools=pools)
    for network, subnet, values in (
        ("net1", "10.88.0.0/24", {"capacity": 256, "leased": 7, "cooling": 1, "reserved": 2, "free": 246}),
        (odd, "fd00:88::/64", {"capacity": 2.0**64, "leased": 3, "free": 2.0**64}),
    ):
        for name, value in values.items():
            assert found[f"ipam_pool_{name}", frozenset({network, subnet})] == value
    uses.clear()
    assert not any(name.startswith("ipam_pool") for name, _ in rendered(pools=pools))


def test_what_keeps_the_pools_from_being_counted_is_told() -> None:
    async def busy() -> tuple[PoolUse, ...]:
        raise StoreBusy("locked by another process")

    with pytest.raises(StoreBusy, match="locked by another process"):
        rendered(pools=busy)


def test_pools_that_are_not_counted_in_time_are_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> tuple[PoolUse, ...]:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    monkeypatch.setattr(metrics, "_PATIENCE", 0.01)
    with pytest.raises(StoreBusy, match="pools"):
        rendered(pools=never)
