"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.host import BIN, Host

NEEDS_ROOT = ("netns", "e2e", "contract")


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
    host.start(BIN / "ipamd")
    deadline = time.monotonic() + 10
    while host.run("test", "-S", "/run/cni-bridge/ipamd.sock", check=False).returncode != 0:
        assert time.monotonic() < deadline, "ipamd did not start"
        time.sleep(0.02)
