"""What the daemon counts and measures, in the Prometheus text format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ipam.errors import StoreBusy
from ipam.registry import PoolUse, Registry

_PATIENCE = 10.0  # seconds that the pools may take to be counted
# From a tenth of a commit to the longest wait for a lock, in seconds.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Counts requests, and asks the registry how full the pools are when it is read."""

    def __init__(self, registry: Registry) -> None:
        self.collected = CollectorRegistry()
        requests = Counter(
            "ipam_requests", "Requests by operation and outcome.", ["operation", "outcome"], registry=self.collected
        )
        seconds = Histogram(
            "ipam_request_seconds",
            "Time from request to answer.",
            ["operation"],
            registry=self.collected,
            buckets=_BUCKETS,
        )
        # Looking a label up takes longer than counting.
        self._requests_of, self._seconds_of = cache(requests.labels), cache(seconds.labels)
        self.collected.register(_Pools(registry, asyncio.get_running_loop()))

    def count(self, operation: str, outcome: str, seconds: float) -> None:
        """Count a request: `outcome` is `ok` or the name of the failure."""
        self._requests_of(operation, outcome).inc()
        self._seconds_of(operation).observe(seconds)

    async def render(self) -> str:
        """All metrics as text."""
        return (await asyncio.to_thread(generate_latest, self.collected)).decode()


class _Pools(Collector):
    """How full each pool is; read from another thread than the event loop's."""

    def __init__(self, registry: Registry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry = registry
        self._loop = loop

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """See `Collector`; asked while it is registered, when the loop cannot answer yet."""
        yield from self._families(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `Collector`."""
        future = asyncio.run_coroutine_threadsafe(self._pools(), self._loop)
        try:
            pools = future.result(_PATIENCE)
        except TimeoutError:
            future.cancel()
            raise StoreBusy(f"the pools could not be counted within {_PATIENCE:g} s; try again") from None
        yield from self._families(pools)

    async def _pools(self) -> tuple[PoolUse, ...]:
        return await self._registry.pools()

    def _families(self, pools: tuple[PoolUse, ...]) -> Iterator[GaugeMetricFamily]:
        for name, words in (
            ("capacity", "Addresses that the pool can hand out."),
            ("leased", "Addresses of the pool that are leased."),
            ("cooling", "Addresses of the pool that were released and rest."),
            ("reserved", "Addresses of the pool that are reserved and not leased."),
            ("free", "Addresses of the pool that the next request may get."),
        ):
            family = GaugeMetricFamily(f"ipam_pool_{name}", words, labels=["network", "subnet"])
            for each in pools:
                # A float holds every number of addresses that anybody will tell apart.
                family.add_metric([each.pool.network, str(each.pool.subnet)], float(getattr(each, name)))
            yield family
