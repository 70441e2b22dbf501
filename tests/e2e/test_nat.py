"""Containers on one bridge reach each other, the gateway and the outside; afterwards nothing is left."""

from __future__ import annotations

import pytest

from tests.conftest import serve_ipam
from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, with_result
from tests.support.host import Host


@pytest.fixture
def conf(backend: str) -> dict[str, object]:
    return bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend)


def test_attach_reach_detach(either_host: Host, ipam_path: str, conf: dict[str, object]) -> None:
    host = either_host
    serve_ipam(host, ipam_path)
    add_outside(host)
    results = {}
    for name in ("a", "b"):
        host.add_netns(name)
        results[name] = host.plugin("ADD", conf, name).result
    assert host.addresses("eth0", "a") == ["10.88.0.2/24", "fd00:88::2/64"]
    for address in ("10.88.0.3", "fd00:88::3", "10.88.0.1", "fd00:88::1", "198.51.100.2", "2001:db8:51::2"):
        host.ping(address, "a")
    host.ping("10.88.0.2", "outside", reached=False)
    for name, result in results.items():
        host.plugin("CHECK", with_result(conf, result), name).succeeded()
        host.plugin("DEL", with_result(conf, result), name).succeeded()
    host.ping("10.88.0.3", "a", reached=False)
    host.assert_nothing_left()


@pytest.mark.every_way
def test_tcp_through_nat_keeps_the_source_within_the_network(either_host: Host, conf: dict[str, object]) -> None:
    host = either_host
    add_outside(host)
    for name in ("a", "b"):
        host.add_netns(name)
        host.plugin("ADD", conf, name).succeeded()
    for peer, address, expected in (
        ("outside", "198.51.100.2", "198.51.100.1"),
        ("outside", "2001:db8:51::2", "2001:db8:51::1"),
        ("b", "10.88.0.3", "10.88.0.2"),
        ("b", "fd00:88::3", "fd00:88::2"),
    ):
        port = 7000 if ":" in address else 7001
        host.start_whoami(port, peer)
        assert host.whoami(address, port, "a") == expected
    for name in ("a", "b"):
        host.plugin("DEL", conf, name).succeeded()
    host.assert_nothing_left()
