"""What the firewall does for an attachment: part of its desired state. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from ipam.api import Address, Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Masquerade:
    """Traffic from this address that leaves by another link than `local_links` gets that link's address."""

    address: Address
    local_links: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoofCheck:
    """Frames that enter the bridge by this port carry this source MAC address, or are dropped; empty for any.

    Likewise these IP addresses, as source and in ARP; None for any.
    """

    port: str
    mac: str
    addresses: tuple[Address, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """`count` ports of the host, from `host_port` on, lead to as many of the container, from `container_port` on.

    `host_ip` None means every address of the container's family. Traffic that comes from this host by its loopback
    address, or from the container's own link, gets the host's address as its source if `snat`; all does with
    `masquerade_all`. `condition`: what else must be so, as `cni.conditions` writes and reads it; then others may have
    the port too.
    """

    protocol: Protocol
    host_ip: Address | None
    host_port: int
    address: Address
    container_port: int
    count: int = 1
    snat: bool = True
    masquerade_all: bool = False
    condition: str = ""

    def __str__(self) -> str:
        ports = str(self.host_port) if self.count == 1 else f"{self.host_port}-{self.host_port + self.count - 1}"
        return f"{self.host_ip or f'any IPv{self.address.version} address'} port {ports}/{self.protocol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPorts:
    """Ports of a container that may be reached by its own address."""

    protocol: Protocol
    port: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shield:
    """New connections from other links to this address are dropped, but for those to published ports.

    `routed`: it is meant to be reached by routing, at the ports `opened` and by ping.
    """

    address: Address
    routed: bool = False
    opened: tuple[OpenPorts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPolicy:
    """What holds for a network's link, a bridge mostly, whoever is attached.

    `isolated`: no traffic with other networks of this host, but to published ports; `parted`: none with other networks
    that are parted too. `internal`: none with anything
    beyond the link. `icc`: its containers may reach each other. `trusted`: links from which a shield is open.
    None leaves it to what others say. `shared`: other attachments have the same link, so it is the network's and not
    one owner's.
    """

    link: str
    isolated: bool | None = None
    parted: bool | None = None
    internal: bool | None = None
    icc: bool | None = None
    trusted: tuple[str, ...] | None = ()
    shared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All that one backend holds for one attachment; of several for one link, the last that was applied counts.

    `apart`: a bridge port that exchanges no frames with others that are apart, but for those to published ports.
    """

    backend: Backend
    owner: Owner
    masquerade: tuple[Masquerade, ...] = ()
    spoof_check: SpoofCheck | None = None
    publications: tuple[Publication, ...] = ()
    shields: tuple[Shield, ...] = ()
    link: LinkPolicy | None = None
    apart: str = ""


def publications_of(policies: Iterable[Policy]) -> tuple[Publication, ...]:
    """The ports that the policies publish."""
    return tuple(each for policy in policies for each in policy.publications)


def publishing(policies: Iterable[Policy], served: Iterable[Publication]) -> tuple[Policy, ...]:
    """The policies with these publications instead of their own; the one that has a link is theirs."""
    served = tuple(served)
    return tuple(replace(each, publications=served) if each.link is not None else each for each in policies)
