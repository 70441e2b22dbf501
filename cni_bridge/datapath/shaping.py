"""Limits an attachment's traffic with token buckets (tc-tbf(8)): on its veth, and on an IFB for what it sends."""

from __future__ import annotations

from typing import Any

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.cni.shaping import Rate, Shaping
from cni_bridge.datapath import sysctl
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink

_ROOT = 0x10000  # 1:, the handle of a root discipline
_INGRESS = 0xFFFF0000  # ffff:, that of ingress
_TC_H_ROOT, _TC_H_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1  # their parents
_ETH_P_ALL = 3
_TICK = 1e-6  # seconds: in microseconds is how the bucket is set


def ensure_shaping(host: Netlink, port: Link, ifb: str, alias: str, shaping: Shaping) -> str:
    """Limit what goes over the port, the veth's end on the host; the MAC address of the IFB, empty if none is needed.

    What the container sends is led through the IFB, for the kernel delays only what leaves a link.
    """
    if shaping.ingress is not None:
        _set_bucket(host, port.index, shaping.ingress)
    if shaping.egress is None:
        return ""
    link = host.link(ifb)
    if link is None:
        host.add_ifb(ifb, mtu=port.mtu)
        sysctl.write_if_there(f"ipv6/conf/{ifb}/accept_ra", "0")
        link = host.link(ifb)
    if link is None:
        raise KernelRefused(f"link {ifb} vanished while it was set up; was its container removed?")
    if link.alias != alias:
        host.set_alias(ifb, alias)
    _set_bucket(host, link.index, shaping.egress)
    _redirect_incoming(host, port.index, link.index)
    return link.mac


def remove_shaping(host: Netlink, ifb: str) -> None:
    """Delete the IFB; the rest goes with the veth. Gone already is success."""
    host.delete_link(ifb)


def lift_limits(host: Netlink, index: int) -> None:
    """Take the link's token bucket away, and what leads elsewhere what comes in; gone already is success."""
    for handle, parent in ((_ROOT, _TC_H_ROOT), (_INGRESS, _TC_H_INGRESS)):
        if any(each["handle"] == handle for each in host.qdiscs(index)):
            host.change_tc(f"lift the limits of link {index}", "del", index=index, handle=handle, parent=parent)


def missing_shaping(host: Netlink, port: Link, ifb: str, shaping: Shaping) -> list[str]:
    """What of the limits differs, in words."""
    found = []
    if shaping.ingress is not None and not _is_as(_bucket(host, port.index), shaping.ingress):
        found.append(_words(port.name, _bucket(host, port.index), shaping.ingress))
    if shaping.egress is not None:
        link = host.link(ifb)
        if link is None:
            return [*found, f"link {ifb}, which limits what the container sends, is gone"]
        if not _is_as(_bucket(host, link.index), shaping.egress):
            found.append(_words(ifb, _bucket(host, link.index), shaping.egress))
        if _redirection(host, port.index) != link.index:
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


def _set_bucket(host: Netlink, index: int, rate: Rate) -> None:
    """Delay what leaves the link by a token bucket; what waits longer than 25 ms is dropped."""
    bucket = {"rate": rate.rate // 8, "burst": rate.burst // 8, "latency": "25ms"}
    host.change_tc(f"limit link {index}", "replace", "tbf", index, _ROOT, parent=_TC_H_ROOT, **bucket)


def _bucket(host: Netlink, index: int) -> Rate | None:
    """The link's token bucket; None if it has none."""
    for each in host.qdiscs(index):
        if each.get("TCA_KIND") == "tbf":
            parms = each.get("TCA_OPTIONS").get("TCA_TBF_PARMS")
            # The buffer is kept as the time that it takes to send it, in ticks of 64 ns (PSCHED_SHIFT).
            burst = round(parms["buffer"] * 64 * parms["rate"] / 1e9)
            return Rate(rate=parms["rate"] * 8, burst=burst * 8)
    return None


def _redirect_incoming(host: Netlink, index: int, to: int) -> None:
    """Have what comes in by the link leave by another one; once is enough."""
    former = _redirection(host, index)
    if former == to:
        return
    what = f"redirect what comes in by link {index}"
    if former is not None:  # to a link that is gone by now: all that comes in would be lost
        host.change_tc(what, "del", index=index, handle=_INGRESS, parent=_TC_H_INGRESS)
    host.change_tc(what, "replace", "ingress", index, _INGRESS)
    host.change_tc(
        what,
        "add-filter",
        "u32",
        index,
        parent=_INGRESS,
        protocol=_ETH_P_ALL,
        prio=1,
        target=_ROOT | 1,
        keys=["0x0/0x0+0"],
        action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": to},
    )


def _redirection(host: Netlink, index: int) -> int | None:
    """The link to which what comes in by this one is led, by its index; 0 if a filter does anything else."""
    if not any(each.get("TCA_KIND") == "ingress" for each in host.qdiscs(index)):
        return None
    filters = [each for each in host.filters(index, _INGRESS) if each.get("TCA_OPTIONS") is not None]
    targets = [to for each in filters if (to := _target(each)) is not None]
    return targets[0] if targets else 0 if filters else None


def _target(found: Any) -> int | None:
    """The index of the link to which a u32 filter redirects; None for the filter's hash table."""
    actions = found.get("TCA_OPTIONS").get("TCA_U32_ACT")
    for _, action in actions["attrs"] if actions is not None else ():
        if action.get("TCA_ACT_KIND") == "mirred":
            return int(action.get("TCA_ACT_OPTIONS").get("TCA_MIRRED_PARMS")["ifindex"])
    return None
