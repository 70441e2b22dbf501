"""What the firewall does for an attachment: part of its desired state. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cni_bridge.cni.netconf import Backend
from ipam.api import Address, Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Masquerade:
    """Traffic from this address that leaves by another link than `local_links` gets that link's address."""

    address: Address
    local_links: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoofCheck:
    """Frames that enter the bridge by this port carry this source MAC address, or are dropped."""

    port: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All that one backend holds for one attachment."""

    backend: Backend
    owner: Owner
    masquerade: tuple[Masquerade, ...] = ()
    spoof_check: SpoofCheck | None = None
