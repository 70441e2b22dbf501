"""The bridge and the host's gateway addresses: made where they are not, adopted where they are."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cni_bridge.cni.errors import KernelRefused, LinkConflict, UnsupportedField
from cni_bridge.datapath import sysctl
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.flock import lock
from cni_bridge.plan import BridgeSpec, GatewaySpec
from ipam.api import Interface

MAX_PORTS = 1023  # BR_MAX_PORTS is 1024, and port number 0 is not used
_NO_MAC = "00:00:00:00:00:00"


@contextmanager
def bridges_locked(directory: Path, *, alone: bool) -> Iterator[None]:
    """Hold the lock of all bridges, which is one on the directory: shared to attach, `alone` to take a bridge away.

    `LockBusy` while another program does.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, path=str(directory))
        yield
    finally:
        os.close(fd)


def ensure_bridge(netlink: Netlink, link: Link | None, spec: BridgeSpec, changed: list[str]) -> Link:
    """The bridge, up; `link` is what has its name now. What had to be changed is told in words, before it is."""
    if link is None:
        changed.append(f"made bridge {spec.name}")
        link = _make_bridge(netlink, spec)
    if link.kind != "bridge":
        raise LinkConflict(f'bridge "{spec.name}" already exists but is not a bridge: it is a {link.kind or "device"}')
    if not link.up:
        changed.append(f"brought {spec.name} up")
        netlink.set_up(link.index)
    if spec.promisc and not link.promisc:
        changed.append(f"set {spec.name} promiscuous")
        netlink.set_promisc(link, on=True)
    if spec.mtu_configured and link.mtu < spec.mtu:
        changed.append(f"raised the MTU of {spec.name} from {link.mtu} to {spec.mtu}")
        netlink.set_link(link.index, mtu=spec.mtu)
    if spec.vlan_filtering and not link.vlan_filtering:
        _turn_on_vlan_filtering(netlink, link)
    if spec.nf_call and not link.nf_call:
        changed.append(f"turned on nf_call_iptables and nf_call_ip6tables of {spec.name}")
        netlink.set_nf_call(link, on=True)
    return link


def restore_bridge(netlink: Netlink, before: Link) -> None:
    """Undo `ensure_bridge` on a bridge that was there before."""
    if before.kind != "bridge":
        return
    netlink.set_link(before.index, mtu=before.mtu)
    netlink.set_up(before.index, up=before.up)
    netlink.set_promisc(before, on=before.promisc)
    now = netlink.link_at(before.index)
    if now is not None and now.nf_call and not before.nf_call:
        netlink.set_nf_call(before, on=False)


def _make_bridge(netlink: Netlink, spec: BridgeSpec) -> Link:
    try:
        netlink.add_bridge(spec.name, mac=_random_mac(), mtu=spec.mtu)
    except KernelRefused as error:
        if error.errno != errno.EEXIST:  # another request was faster
            raise
    sysctl.write_if_there(f"ipv6/conf/{spec.name}/accept_ra", "0")
    # Nobody else has the link-local address of a random MAC; while it is being detected, IPv6 is not forwarded here.
    sysctl.write_if_there(f"ipv6/conf/{spec.name}/accept_dad", "0")
    link = netlink.link(spec.name)
    if link is None:
        raise KernelRefused(f"bridge {spec.name} vanished while it was set up")
    return link


def _turn_on_vlan_filtering(netlink: Netlink, link: Link) -> None:
    try:
        netlink.set_vlan_filtering(link)
    except KernelRefused as error:
        if error.errno == errno.EOPNOTSUPP:
            raise UnsupportedField(
                "this kernel has no bridge VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING), which vlan and vlanTrunk "
                f"need on bridge {link.name}"
            ) from None
        raise


def missing_bridge(link: Link | None, spec: BridgeSpec, mac: str) -> list[str]:
    """What of the bridge differs, in words; `mac` is what the result of ADD says, if it says."""
    if link is None or link.kind != "bridge":
        return [f"bridge {spec.name} is gone" if link is None else f"{spec.name} is a {link.kind}, not a bridge"]
    differences = {
        f"bridge {spec.name} is down": not link.up,
        f"bridge {spec.name} has MAC address {link.mac}, not {mac}": mac not in ("", link.mac),
        f"bridge {spec.name} is not promiscuous": spec.promisc and not link.promisc,
        f"bridge {spec.name} has mtu {link.mtu}, below {spec.mtu}": spec.mtu_configured and link.mtu < spec.mtu,
        f"bridge {spec.name} has no VLAN filtering": spec.vlan_filtering and not link.vlan_filtering,
        f"bridge {spec.name} has nf_call_iptables or nf_call_ip6tables off": spec.nf_call and not link.nf_call,
    }
    return [words for words, differs in differences.items() if differs]


def ensure_gateway(
    netlink: Netlink, link: Link, spec: GatewaySpec, added: list[Interface], replaced: list[Interface]
) -> Link:
    """Give the link the gateway addresses; the link as it is afterwards. What is done is told before it is.

    Another address conflicts if its subnet overlaps; it is refused, or removed with `force`. A link that gets an
    address has its MAC address pinned: an unpinned bridge takes the lowest of its ports', and neighbours lose it.
    """
    present = [each.address for each in netlink.addresses(link.index)]
    wanted = [each for each in spec.addresses if each not in present]
    if not wanted:
        return link
    for address in wanted:
        for other in present:
            if other not in spec.addresses and other not in replaced and _overlap(other, address):
                if not spec.force:
                    raise LinkConflict(
                        f'"{link.name}" already has an IP address different from {address}: {other}',
                        "remove it, choose another subnet, or set forceAddress",
                    )
                replaced.append(other)
                netlink.delete_address(link.index, other)
    pinned = link.mac if link.mac != _NO_MAC else _random_mac()
    netlink.set_link(link.index, mac=pinned)
    for address in wanted:
        if address.version == 6:
            sysctl.write_if_there(f"ipv6/conf/{link.name}/disable_ipv6", "0")
        added.append(address)
        netlink.add_address(link.index, address, dad=False)
    return netlink.link_at(link.index) or link


def missing_gateway(netlink: Netlink, link: Link, spec: GatewaySpec) -> list[str]:
    """The gateway addresses that the link lacks, in words."""
    present = {each.address for each in netlink.addresses(link.index)}
    return [f"gateway address {each} is missing on {link.name}" for each in spec.addresses if each not in present]


def passes_iptables(netlink: Netlink, name: str) -> bool:
    """Whether what the bridge forwards passes the hooks of iptables: of one family at least, or set so itself."""
    if "1" in (sysctl.read(f"bridge/bridge-nf-call-{each}") for each in ("iptables", "ip6tables")):
        return True
    bridge = netlink.link(name)
    return bridge is not None and bridge.nf_call


def count_ports(netlink: Netlink, name: str) -> int:
    """How many ports the bridge has; 0 if it is not there."""
    bridge = netlink.link(name)
    return len(netlink.ports(bridge)) if bridge is not None else 0


def _overlap(one: Interface, other: Interface) -> bool:
    return one.ip in other.network or other.ip in one.network


def _random_mac() -> str:
    return (b"\x02" + secrets.token_bytes(5)).hex(":")
