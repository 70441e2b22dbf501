"""The daemon with as many containers as a node may have, and with requests without end."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.support.bridged import Bridged
from tests.support.confs import bridge_conf, with_result
from tests.support.ctl import sql
from tests.support.direct import at_once
from tests.support.growth import SPARE_DELETERS, resident, size_of
from tests.support.host import BIN, Answer, Host, Json

_AT_ONCE = 64
_SAMPLE = 16
_MOST_RESIDENT = 64  # MiB, with 1 000 attachments
_MOST_GROWTH = 4  # MiB, after a warm-up
_HISTORY_ROWS = 100  # reached in the warm-up: two for each pair
_SLACK = 256 << 10  # bytes: what comes within a second, after which the history is shortened
_PAIRS_AT_ONCE = 10
_SPARE_THREADS = 6  # which pools of threads have not needed yet: they have one for each CPU and four more


def network(number: int) -> Json:
    """A network with room for a thousand containers."""
    ipam = {"type": "cni-ipam", "subnet": f"10.{100 + number}.0.0/22"}
    return bridge_conf(name=f"net{number}", bridge=f"cni{number}", ipMasqBackend="nftables", ipam=ipam)


def start(host: Host, settings: str = "{}") -> Bridged:
    """A daemon that has to end well with the host."""
    host.run("tee", "/etc/cni-bridge/config.yaml", stdin=settings.encode())
    host.daemon = Bridged(host, BIN / "cni-bridged").started()
    return host.daemon


def add_containers(host: Host, names: list[str]) -> None:
    host.run("ip", "-batch", "-", stdin="".join(f"netns add {each}\n" for each in names).encode())


def all_of(calls: list[Callable[[], Answer]], what: str) -> list[Answer]:
    """The answers, so many at a time."""
    began = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = [each.result() for each in [pool.submit(call) for call in calls]]
    seconds = time.monotonic() - began
    print(f"{what}: {len(calls)} in {seconds:.1f} s, {len(calls) / seconds:.0f} a second")
    return [each.succeeded() for each in answers]


@pytest.mark.timeout(900)
def test_a_full_node(host: Host, is_complete: bool) -> None:
    count, networks = (1000, 4) if is_complete else (128, 2)
    daemon = start(host)
    confs = {f"c{number}": network(number % networks) for number in range(count)}
    add_containers(host, list(confs))
    for verb in ("ADD", "DEL"):  # what is made once is made then
        host.plugin(verb, confs["c0"], "c0").succeeded()
    before = size_of(host, daemon)
    added = all_of([partial(host.plugin, "ADD", conf, name) for name, conf in confs.items()], "ADD")
    results = dict(zip(confs, (each.result for each in added), strict=True))
    addresses = {ip["address"] for result in results.values() for ip in result["ips"]}
    assert len(addresses) == count
    assert {each["address"] for each in host.leases()} == addresses
    print(f"{before.resident:.1f} MiB before, {resident(daemon):.1f} MiB with {count} attachments")
    assert resident(daemon) <= _MOST_RESIDENT
    sample = list(confs)[:: count // _SAMPLE]
    checks = [partial(host.plugin, "CHECK", with_result(confs[each], results[each]), each) for each in sample]
    all_of(checks, "CHECK")
    sent = {name: with_result(conf, results[name]) for name, conf in confs.items()}
    all_of([partial(host.plugin, "DEL", conf, name) for name, conf in sent.items()], "DEL")
    host.assert_nothing_left()
    after = size_of(host, daemon)
    print(f"{after.resident:.1f} MiB after")
    assert after.descriptors <= before.descriptors + SPARE_DELETERS
    assert after.threads <= before.threads + _SPARE_THREADS + SPARE_DELETERS


@pytest.mark.timeout(7200)
def test_nothing_grows_with_requests(host: Host, is_complete: bool) -> None:
    pairs = 20_000 if is_complete else 300
    daemon = start(host, f"addresses: {{cooldown: 0, history_rows: {_HISTORY_ROWS}}}")
    conf, names = network(0), [f"c{number}" for number in range(_PAIRS_AT_ONCE)]
    add_containers(host, names)

    def run(number: int) -> None:
        for _ in range(number // _PAIRS_AT_ONCE):
            for command in ("ADD", "DEL"):
                for answer in at_once(host, command, conf, names):
                    answer.succeeded()

    run(max(2 * _HISTORY_ROWS, pairs // 5))  # caches have a bound, which takes some thousands to reach
    first = size_of(host, daemon)
    print(f"after a warm-up: {first}")
    for done in range(0, pairs, max(pairs // 10, _PAIRS_AT_ONCE)):
        run(max(pairs // 10, _PAIRS_AT_ONCE))
        if is_complete:
            print(f"after {done + pairs // 10} pairs: {size_of(host, daemon)}", flush=True)
    time.sleep(1.1)  # the history is shortened once a second, by the next request
    run(_PAIRS_AT_ONCE)
    last = size_of(host, daemon)
    print(f"after {pairs} pairs: {last}")
    assert last.counts == first.counts
    assert last.descriptors <= first.descriptors + SPARE_DELETERS
    assert last.threads <= first.threads + _SPARE_THREADS + SPARE_DELETERS
    assert last.database - first.database <= _SLACK
    ((events,),) = sql(host, "SELECT count(*) FROM events")
    print(f"{events} events are kept")
    assert events <= _HISTORY_ROWS + 2 * _PAIRS_AT_ONCE
    assert last.resident - first.resident < _MOST_GROWTH
    host.assert_nothing_left()
