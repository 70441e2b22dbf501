"""Sets the container's interface and its namespace's kernel settings; the calling thread is in that namespace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.cni.tuning import Tuning, require_allowed
from cni_bridge.datapath import sysctl
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink

ALLOWED = Path("/etc/cni/tuning/allowlist.conf")  # the reference's: patterns of settings that may be set


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """What an interface was before it was tuned."""

    mac: str
    mtu: int
    promisc: bool
    allmulti: bool
    tx_queue: int


def require_allowed_here(tuning: Tuning) -> None:
    """Refuse kernel settings that the administrator of this host does not allow, if there is a list."""
    if tuning.sysctls and ALLOWED.exists():
        require_allowed(tuning.sysctls, ALLOWED.read_text().splitlines())


def find(inside: Netlink, ifname: str) -> Link:
    """The interface, which has to be there."""
    link = inside.link(ifname)
    if link is None:
        raise KernelRefused(f"interface {ifname} is not in the container")
    return link


def read_former(inside: Netlink, ifname: str) -> Former:
    """The interface as it is now."""
    link = find(inside, ifname)
    return Former(mac=link.mac, mtu=link.mtu, promisc=link.promisc, allmulti=link.allmulti, tx_queue=link.tx_queue)


def apply_tuning(inside: Netlink, link: Link, tuning: Tuning) -> Link:
    """Set what the tuning names; the link as it is afterwards."""
    for each in tuning.sysctls:
        sysctl.write(each.name, each.value)
    if tuning.mac and tuning.mac != link.mac:
        inside.set_link(link.index, mac=tuning.mac)
    if tuning.mtu and tuning.mtu != link.mtu:
        inside.set_link(link.index, mtu=tuning.mtu)
    if tuning.promisc and not link.promisc:
        inside.set_promisc(link, on=True)
    if tuning.allmulti is not None and tuning.allmulti != link.allmulti:
        inside.set_allmulti(link, on=tuning.allmulti)
    if tuning.tx_queue is not None and tuning.tx_queue != link.tx_queue:
        inside.set_link(link.index, tx_queue=tuning.tx_queue)
    return (inside.link_at(link.index) or link) if tuning.mac else link


def restore(inside: Netlink, ifname: str, former: Former, tuning: Tuning) -> None:
    """Give the interface back what the tuning changed; settings of the namespace stay, as with the reference."""
    link = inside.link(ifname)
    if link is None:
        return
    if tuning.mac:
        inside.set_link(link.index, mac=former.mac)
    if tuning.mtu:
        inside.set_link(link.index, mtu=former.mtu)
    if tuning.promisc:
        inside.set_promisc(link, on=former.promisc)
    if tuning.allmulti is not None:
        inside.set_allmulti(link, on=former.allmulti)
    if tuning.tx_queue is not None:
        inside.set_link(link.index, tx_queue=former.tx_queue)


def missing_tuning(inside: Netlink, ifname: str, tuning: Tuning) -> list[str]:
    """What differs from the tuning, in words."""
    link = inside.link(ifname)
    if link is None:
        return [f"interface {ifname} is gone from the container"]
    differences = {
        f"{each} is {sysctl.read(each.name)!r}, not {each.value!r}": _value(sysctl.read(each.name))
        != _value(each.value)
        for each in tuning.sysctls
    }
    differences |= {
        f"interface {ifname} has MAC address {link.mac}, not {tuning.mac}": tuning.mac not in ("", link.mac),
        f"interface {ifname} has mtu {link.mtu}, not {tuning.mtu}": tuning.mtu not in (0, link.mtu),
        f"interface {ifname} is not promiscuous": tuning.promisc and not link.promisc,
        f"interface {ifname} has allmulti {link.allmulti}": tuning.allmulti not in (None, link.allmulti),
        f"interface {ifname} has txqueuelen {link.tx_queue}, not {tuning.tx_queue}": tuning.tx_queue
        not in (None, link.tx_queue),
    }
    return [words for words, differs in differences.items() if differs]


def _value(text: str) -> list[str]:
    """The value's words: the kernel separates them by tabs."""
    return text.split()
