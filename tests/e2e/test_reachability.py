"""Who may reach what in each mode of a network, over TCP, UDP and ping, by IPv4 and IPv6: that passes, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest

from tests.support.attaching import attach
from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, route_from_outside
from tests.support.host import Host, Json
from tests.support.probing import Probe, assert_answers, serve

SUBNETS = {"net1": ("10.88.0.0/24", "fd00:88::/64"), "net2": ("10.89.0.0/24", "fd00:89::/64")}
NETWORKS = {"a": "net1", "b": "net1", "c": "net2"}
BRIDGES = {"net1": "cni0", "net2": "cni1"}
HOST_PORTS = {"a": 8001, "b": 8002, "c": 8003}
PUBLISHED, PRIVATE, ELSEWHERE = 80, 443, 7000  # ports of a container, published or not, and of everybody else
HOSTS = {"host": ("198.51.100.1", "2001:db8:51::1"), "outside": ("198.51.100.2", "2001:db8:51::2")}
OUTSIDE = ("outside", "neighbour")

# How a container may be reached: by its own address at an unpublished port, at a published one and by ping, and by
# the host's address at the published port.
EVERY_WAY = "private direct ping published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A mode, by its keys, and the ways in which a container may be reached from elsewhere, as words.

    `other` is a container of another network in the same mode. `out`: containers reach the outside, which sees the
    host's address if `masquerades`.
    """

    keys: Json = field(default_factory=dict)
    outside: str = "published"
    host: str = EVERY_WAY
    itself: str = EVERY_WAY
    same: str = EVERY_WAY
    other: str = "published"
    publishes: bool = True
    out: bool = True
    masquerades: bool = True

    def ways(self, source: str, target: str) -> list[str]:
        """The ways from one namespace to a container."""
        if source in OUTSIDE:
            return self.outside.split()
        if not source:
            return self.host.split()
        if source == target:
            return self.itself.split()
        return (self.same if NETWORKS[source] == NETWORKS[target] else self.other).split()


UNPUBLISHED = "private direct ping"
MODES = {
    "cni-bridge": Mode(),
    "bridge": Mode(keys={"type": "bridge"}, outside=EVERY_WAY, other=EVERY_WAY),
    "no icc": Mode(keys={"icc": False}, same="published"),
    "not isolated": Mode(keys={"isolated": False}, other=EVERY_WAY),
    "internal": Mode(
        keys={"internal": True},
        outside="",
        host=UNPUBLISHED,
        itself=UNPUBLISHED,
        same=UNPUBLISHED,
        other="",
        publishes=False,
        out=False,
    ),
    "nat": Mode(keys={"gatewayMode": "nat", "ipMasq": False}, masquerades=False),
    "nat-unprotected": Mode(keys={"gatewayMode": "nat-unprotected"}, outside=EVERY_WAY),
    "routed": Mode(
        keys={"gatewayMode": "routed", "ipMasq": False},
        outside="direct ping",
        host=UNPUBLISHED,
        itself=UNPUBLISHED,
        same=UNPUBLISHED,
        other="direct",
        masquerades=False,
    ),
    "direct routing": Mode(keys={"allowDirectRouting": True}, outside=EVERY_WAY),
    "no masquerading": Mode(keys={"ipMasq": False}, outside=EVERY_WAY, masquerades=False),
    "trusted uplink": Mode(keys={"trustedInterfaces": ["uplink"]}, outside=EVERY_WAY),
    "trusted other link": Mode(keys={"trustedInterfaces": ["uplink2"]}),
}


def conf_of(mode: Mode, container: str) -> Json:
    network = NETWORKS[container]
    ports = [
        {"hostPort": HOST_PORTS[container], "containerPort": PUBLISHED, "protocol": protocol}
        for protocol in ("tcp", "udp")
    ]
    keys: Json = {"ipam": {**DUAL_STACK, "ranges": [[{"subnet": each}] for each in SUBNETS[network]]}, **mode.keys}
    if mode.publishes:
        keys["runtimeConfig"] = {"portMappings": ports}
    return bridge_conf(name=network, bridge=BRIDGES[network], **keys)


def probes(source: str, way: str, container: str, addresses: tuple[str, ...]) -> Iterator[Probe]:
    """The probes of one way, over all protocols and both families."""
    for address in HOSTS["host"] if way in ("published", "unpublished") else addresses:
        if way == "ping":
            yield Probe(source=source, kind="ping", address=address)
            continue
        port = {"published": HOST_PORTS[container], "direct": PUBLISHED}.get(way, PRIVATE)
        for kind in ("tcp", "udp"):
            yield Probe(source=source, kind=kind, address=address, port=port)


def between(mode: Mode, addresses: dict[str, tuple[str, ...]]) -> Iterator[tuple[Probe, str]]:
    """Every way from anybody to a container, with who is to answer."""
    for source in ("", *OUTSIDE, *NETWORKS):
        for target in NETWORKS:
            for way in (*EVERY_WAY.split(), "unpublished"):
                open_ = way in mode.ways(source, target)
                for probe in probes(source, way, target, addresses[target]):
                    yield probe, "" if not open_ else "pong" if way == "ping" else target


def outwards(mode: Mode, addresses: dict[str, tuple[str, ...]]) -> Iterator[tuple[Probe, str]]:
    """From each container to its gateway, and out; with who is to answer, and the address that it is to see."""
    for container, network in NETWORKS.items():
        gateways = tuple(str(next(ip_network(each).hosts())) for each in SUBNETS[network])
        for name, others in (("host", gateways), ("outside", HOSTS["outside"])):
            for address, own, masked in zip(others, addresses[container], HOSTS["host"], strict=True):
                seen = masked if name == "outside" and mode.masquerades else own
                open_ = name == "host" or mode.out
                yield Probe(source=container, kind="ping", address=address), "pong" if open_ else ""
                for kind in ("tcp", "udp"):
                    probe = Probe(source=container, kind=kind, address=address, port=ELSEWHERE)
                    yield probe, f"{name} {seen}" if open_ else ""


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_reachable_is_what_the_mode_allows_and_nothing_else(either_host: Host, mode: Mode) -> None:
    host = either_host
    add_outside(host, neighbour=True)
    route_from_outside(host, *(each for subnets in SUBNETS.values() for each in subnets))
    addresses = {}
    for container in NETWORKS:
        result = attach(host, conf_of(mode, container), container)
        addresses[container] = tuple(each["address"].partition("/")[0] for each in result["ips"])
        assert any(each["dst"] == "default" for each in host.routes(container)) == mode.out
        if not mode.out:  # so that it is more than the lack of a route that keeps it in
            for subnet in SUBNETS[NETWORKS[container]]:
                host.shell(f"ip route add default via {next(ip_network(subnet).hosts())}", container)
    serve(host, {**dict.fromkeys(NETWORKS, (PUBLISHED, PRIVATE)), "": (ELSEWHERE,), "outside": (ELSEWHERE,)})
    assert_answers(host, dict([*between(mode, addresses), *outwards(mode, addresses)]))
    for container in NETWORKS:
        host.plugin("DEL", conf_of(mode, container), container).succeeded()
    host.assert_nothing_left()
