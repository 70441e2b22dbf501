"""The runtime's port mappings, as runs of ports (CNI CONVENTIONS, "portMappings"). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.fields import Fields
from ipam.api import Address

MAX_PORT = 65535


class Protocol(StrEnum):
    """What has ports that can be published, by the names that nftables and iptables know."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """`count` neighbouring ports of the host, from `host_port` on, and as many of the container from `container_port`.

    `host_ip` None means every address of the host, the unspecified address every one of its family.
    """

    protocol: Protocol
    host_ip: Address | None
    host_port: int
    container_port: int
    count: int = 1

    def __str__(self) -> str:
        ports = str(self.host_port) if self.count == 1 else f"{self.host_port}-{self.host_port + self.count - 1}"
        where = f"[{self.host_ip}]" if self.host_ip is not None and self.host_ip.version == 6 else self.host_ip
        return f"{ports}/{self.protocol}" if where is None else f"{where}:{ports}/{self.protocol}"

    def overlaps(self, other: PortMapping) -> bool:
        """Whether some packet would be for both."""
        apart = self.host_port + self.count <= other.host_port or other.host_port + other.count <= self.host_port
        return self.protocol == other.protocol and not apart and _same_place(self.host_ip, other.host_ip)


def parse_port_mappings(config: Fields) -> tuple[PortMapping, ...]:
    """The port mappings of `runtimeConfig`; neighbours of equal offset are one. Two for one host port are refused."""
    single = [_parse(each) for each in config.object("runtimeConfig").objects("portMappings")]
    merged = tuple(_merged(single))
    by_start = sorted(merged, key=lambda each: (each.protocol, each.host_port))
    for position, one in enumerate(by_start):
        for other in by_start[position + 1 :]:
            if other.protocol != one.protocol or other.host_port >= one.host_port + one.count:
                break  # in this order, none behind it overlaps either
            if one.overlaps(other):
                raise InvalidConfig(f"runtimeConfig.portMappings: host port {one} and {other} overlap")
    return merged


def _parse(fields: Fields) -> PortMapping:
    name = (fields.string("protocol") or Protocol.TCP).lower()
    if name not in list(Protocol):
        raise InvalidConfig(f'{fields.at("protocol")} "{name}" is none of {", ".join(Protocol)}')
    ports = {}
    for key in ("hostPort", "containerPort"):
        if not fields.has(key):
            raise InvalidConfig(f"{fields.at(key)} is missing")
        ports[key] = fields.integer(key, 0, low=1, high=MAX_PORT)
    return PortMapping(
        protocol=Protocol(name),
        host_ip=fields.address("hostIP"),
        host_port=ports["hostPort"],
        container_port=ports["containerPort"],
    )


def _merged(mappings: Iterable[PortMapping]) -> Iterator[PortMapping]:
    """The mappings as runs, in order of protocol, address and port; each is of one port."""

    def run_key(each: PortMapping) -> tuple[str, str, int, int]:
        return (each.protocol, str(each.host_ip or ""), each.host_port - each.container_port, each.host_port)

    run: PortMapping | None = None
    for each in sorted(mappings, key=run_key):
        if run is not None and run_key(each) == (*run_key(run)[:3], run.host_port + run.count):
            run = replace(run, count=run.count + 1)
            continue
        if run is not None:
            yield run
        run = each
    if run is not None:
        yield run


def _same_place(one: Address | None, other: Address | None) -> bool:
    if one is None or other is None:
        return True
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)
