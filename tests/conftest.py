"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator

import pytest

from tests.support import bridged, ways
from tests.support.host import BIN, Host
from tests.support.ways import Way

NEEDS_ROOT = ("netns", "e2e", "contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--way` says how the calls of plugins in tests of the whole are served."""
    parser.addoption(
        "--way",
        choices=["spread", *Way],
        default="spread",
        help="how plugins are served: each test in one of the ways, always the same (spread), or all in this one",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tell the marks."""
    config.addinivalue_line("markers", "oneshot(reason): the test cannot be run with a daemon beside it")
    config.addinivalue_line("markers", "native(reason): the test cannot be run without a daemon and the native client")
    config.addinivalue_line("markers", "every_way: the test is run in each way in which a request can be served")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked so in every way."""
    if metafunc.definition.get_closest_marker("every_way"):
        way = metafunc.config.getoption("--way")
        metafunc.fixturenames.append("way")
        metafunc.parametrize("way", list(Way) if way == "spread" else [Way(way)], ids=str)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Choose the way of the test, for the hosts that it makes."""
    bridged.recent.clear()
    ways.chosen = _way_of(item)
    item.user_properties.append(("way", str(ways.chosen)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell a failed test's way, and what its daemons said."""
    report = yield
    if report.failed and "tests/e2e/" in item.nodeid:
        report.sections.append(("served in this way", f"{ways.chosen}, as with --way={ways.chosen}"))
        report.sections += [("cni-bridged", each.said()) for each in bridged.recent]
    return report


def _way_of(item: pytest.Item) -> Way:
    if "tests/e2e/" not in item.nodeid or item.get_closest_marker("oneshot"):
        return Way.ONESHOT
    if item.get_closest_marker("native"):
        return Way.NATIVE
    if item.get_closest_marker("every_way"):
        assert isinstance(item, pytest.Function)
        return Way(item.callspec.params["way"])
    way = item.config.getoption("--way")
    return ways.drawn(item.nodeid) if way == "spread" else Way(way)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say plainly what a run without root does not show."""
    if os.geteuid() != 0:
        for item in items:
            if any(f"tests/{each}/" in item.nodeid for each in NEEDS_ROOT):
                item.add_marker(pytest.mark.skip(reason="needs root, for network namespaces"))


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with the kernel's settings of a plain one."""
    made = Host()
    yield made
    made.close()


@pytest.fixture(params=[False, True], ids=["bridge-nf-0", "bridge-nf-1"])
def either_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A plain host, and one where bridged frames pass iptables, as Docker and Kubernetes set it."""
    made = Host(bridge_nf=request.param)
    yield made
    made.close()


@pytest.fixture(params=["in process", "ipamd"])
def ipam_path(request: pytest.FixtureRequest) -> str:
    """Who serves addresses; a test that has it calls `serve_ipam`."""
    return str(request.param)


@pytest.fixture(params=["nftables", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    """The firewall backend."""
    return str(request.param)


def serve_ipam(host: Host, ipam_path: str) -> None:
    """Start what `ipam_path` names."""
    if ipam_path == "ipamd":
        start_ipamd(host)


def start_ipamd(host: Host) -> None:
    """Start `ipamd` and wait until its socket is there."""
    host.do_without_daemon()
    host.start(BIN / "ipamd")
    deadline = time.monotonic() + 10
    while host.run("test", "-S", "/run/cni-bridge/ipamd.sock", check=False).returncode != 0:
        assert time.monotonic() < deadline, "ipamd did not start"
        time.sleep(0.02)
