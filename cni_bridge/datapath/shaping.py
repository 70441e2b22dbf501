"""Limits an attachment's traffic with token buckets (tc-tbf(8)): on its veth, and on an IFB for what it sends."""

from __future__ import annotations

from cni_bridge.cni.shaping import Rate, Shaping
from cni_bridge.datapath import sysctl
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink

_TICK = 1e-6  # seconds: in microseconds is how the bucket is set


def ensure_shaping(host: Netlink, port: Link, ifb: str, alias: str, shaping: Shaping) -> str:
    """Limit what goes over the port, the veth's end on the host; the MAC address of the IFB, empty if none is needed.

    What the container sends is led through the IFB, for the kernel delays only what leaves a link.
    """
    if shaping.ingress is not None:
        host.set_bucket(port.index, shaping.ingress)
    if shaping.egress is None:
        return ""
    link = host.link(ifb)
    if link is None:
        host.add_ifb(ifb, mtu=port.mtu, alias=alias)
        sysctl.write_if_there(f"ipv6/conf/{ifb}/accept_ra", "0")
        link = host.link(ifb)
    assert link is not None
    host.set_bucket(link.index, shaping.egress)
    host.redirect_incoming(port.index, link.index)
    return link.mac


def remove_shaping(host: Netlink, ifb: str) -> None:
    """Delete the IFB; the rest goes with the veth. Gone already is success."""
    host.delete_link(ifb)


def missing_shaping(host: Netlink, port: Link, ifb: str, shaping: Shaping) -> list[str]:
    """What of the limits differs, in words."""
    found = []
    if shaping.ingress is not None and not _is_as(host.bucket(port.index), shaping.ingress):
        found.append(_words(port.name, host.bucket(port.index), shaping.ingress))
    if shaping.egress is not None:
        link = host.link(ifb)
        if link is None:
            return [*found, f"link {ifb}, which limits what the container sends, is gone"]
        if not _is_as(host.bucket(link.index), shaping.egress):
            found.append(_words(ifb, host.bucket(link.index), shaping.egress))
        if not host.redirects_incoming(port.index):
            found.append(f"what comes in by {port.name} is not led to {ifb}")
    return found


def _is_as(actual: Rate | None, wanted: Rate) -> bool:
    """Whether the bucket is the one that was wanted: in bytes, and its burst as exact as the kernel's clock."""
    if actual is None or actual.rate // 8 != wanted.rate // 8:
        return False
    return abs(actual.burst - wanted.burst) // 8 <= 2 + wanted.rate * _TICK / 8


def _words(name: str, actual: Rate | None, wanted: Rate) -> str:
    shown = f"{actual.rate} bit/s with bursts of {actual.burst} bit" if actual is not None else "no limit"
    return f"{name} has {shown}, not {wanted.rate} bit/s with bursts of {wanted.burst} bit"
