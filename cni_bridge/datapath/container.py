"""The container's end of the attachment: its settings, addresses and routes."""

from __future__ import annotations

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.cni.result import Result
from cni_bridge.datapath import netns, sysctl
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.datapath.netns import Netns
from cni_bridge.plan import ContainerSpec
from ipam.api import Interface, NetnsRef


def configure_container(inside: Netlink, target: Netns, spec: ContainerSpec, former: tuple[Interface, ...]) -> Link:
    """Configure the interface, and give it as it is; `inside` is a socket of the namespace `target`.

    `former` are addresses that an earlier request of the same owner gave it. Those of anybody else stay.
    """
    link = present(inside, spec)
    if any(each.version == 6 for each in spec.addresses):
        with netns.entered(target):
            _set_sysctls(spec)
    for stale in set(former) - set(spec.addresses):
        inside.delete_address(link.index, stale)
    for address in spec.addresses:
        inside.add_address(link.index, address, dad=spec.dad)
    inside.set_arp_notify(link.index, up=spec.up, link_local=spec.link_local)
    return link


def has_own_addresses(inside: Netlink, link: Link, spec: ContainerSpec) -> bool:
    """Whether duplicate address detection has found the addresses free (RFC 4862, section 5.4), if it is wanted."""
    if not spec.dad or not any(each.version == 6 for each in spec.addresses):
        return True
    states = [each for each in inside.addresses(link.index) if each.address in spec.addresses]
    failed = [str(each.address) for each in states if each.dad_failed]
    if failed:
        raise KernelRefused(f"address {', '.join(failed)} is in use by somebody else on this bridge (DAD failed)")
    return not any(each.tentative for each in states)


def finish_container(inside: Netlink, link: Link, spec: ContainerSpec) -> None:
    """Give the interface its routes."""
    for route in spec.routes:
        inside.append_route(link.index, route)


def notify_neighbours(inside: Netlink, link: Link) -> None:
    """Tell the neighbours of the interface's addresses, once its frames pass.

    Without it, whoever talked to an address's former holder goes on sending to the old MAC address for a while. The
    kernel does it when a MAC address is set, also to what it was, as arp_notify and ndisc_notify say. A packet socket
    could too, but to close one takes as long as all the rest: the kernel waits for every CPU.
    """
    now = inside.link_at(link.index)  # somebody may have set another MAC address, or taken it away
    if now is not None:
        inside.set_link(now.index, mac=now.mac)


def missing_container(inside: Netlink, spec: ContainerSpec, expected: Result, where: NetnsRef) -> list[str]:
    """What of the interface differs from the result that the runtime holds, in words.

    A later plugin of the chain may have changed MAC, MTU and routes: the result's MAC counts, the MTU does not, and
    of the routes those that the result still names, in whatever table.
    """
    link = inside.link(spec.ifname)
    if link is None:
        return [f"interface {spec.ifname} is gone from {where.path}"]
    position = next(
        (i for i, each in enumerate(expected.interfaces) if each.name == spec.ifname and each.sandbox), None
    )
    if position is None:
        return [f"prevResult does not name interface {spec.ifname} in a sandbox"]
    found = []
    mac = expected.interfaces[position].mac.lower()
    if mac and mac != link.mac:
        found.append(f"interface {spec.ifname} has MAC address {link.mac}, not {mac}")
    if spec.up and not link.up:
        found.append(f"interface {spec.ifname} is down")
    present = {each.address for each in inside.addresses(link.index)}
    found += [
        f"address {each.address} is missing on {spec.ifname}"
        for each in expected.ips
        if each.interface in (None, position) and each.address not in present
    ]
    kept = {each.dst for each in expected.routes}
    wanted = [each for each in spec.routes if each.dst in kept]
    routes = {(each.dst, each.gw) for each in inside.routes(link.index)} if wanted else set()
    found += [
        f"route to {each.dst}{f' via {each.gw}' if each.gw else ''} is missing on {spec.ifname}"
        for each in wanted
        if (each.dst, each.gw) not in routes
    ]
    return found


def _set_sysctls(spec: ContainerSpec) -> None:
    for name in ("lo", spec.ifname):
        sysctl.write(f"ipv6/conf/{name}/disable_ipv6", "0")
    sysctl.write(f"ipv6/conf/{spec.ifname}/keep_addr_on_down", "1")
    sysctl.write(f"ipv6/conf/{spec.ifname}/ndisc_notify", "1")
    if spec.dad:
        sysctl.write(f"ipv6/conf/{spec.ifname}/enhanced_dad", "1")
    sysctl.write(f"ipv6/conf/{spec.ifname}/accept_dad", "1" if spec.dad else "0")


def present(inside: Netlink, spec: ContainerSpec) -> Link:
    """The interface as it is; it has to be there."""
    link = inside.link(spec.ifname)
    if link is None:
        raise KernelRefused(f"interface {spec.ifname} vanished from the container while it was set up")
    return link
