"""The veth pair: its host end a port of the bridge, its other end in the container."""

from __future__ import annotations

import errno

from cni_bridge.cni.errors import KernelRefused, LinkConflict, UnsupportedField
from cni_bridge.datapath.bridge import MAX_PORTS
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import BR_STATE_DISABLED, Netlink
from cni_bridge.datapath.netns import Netns
from cni_bridge.plan import Attachment, LinkSpecs, PortSpec

_NATIVE_VLAN = 1  # of a trunk without an access VLAN, as with the reference


def ensure_port(host: Netlink, inside: Netlink, bridge: Link, specs: LinkSpecs, netns: Netns) -> None:
    """Make the veth pair, or adopt the one that an earlier request of the same owner made."""
    spec, ifname = specs.port, specs.container.ifname
    try:
        _make(host, bridge, specs, netns)
    except KernelRefused as error:
        if error.errno != errno.EEXIST:
            raise
        link = host.link(spec.name)
        if link is not None and host.leads_to(link, inside, netns.fd, ifname):
            _adopt(host, bridge, link, spec)
            return
        _require_free(inside, ifname, netns)
        host.delete_link(spec.name)  # its other end is in an earlier namespace of this container, or renamed
        _make(host, bridge, specs, netns)


def _adopt(host: Netlink, bridge: Link, link: Link, spec: PortSpec) -> None:
    if link.master != bridge.index:
        host.set_link(link.index, master=bridge.index)
    if spec.mtu and link.mtu != spec.mtu:
        host.set_link(link.index, mtu=spec.mtu)
    if not link.up:
        host.set_up(link.index)
    _set_up(host, bridge, spec)


def _set_up(host: Netlink, bridge: Link, spec: PortSpec) -> None:
    """What cannot be said when the veth is made."""
    host.set_up_port(spec.name, alias=spec.alias, hairpin=spec.hairpin, isolated=spec.isolated)
    if spec.vlan or spec.vlan_trunk:
        _ensure_vlans(host, bridge, present(host, spec.name), spec)


def is_forwarding(host: Netlink, name: str) -> bool:
    """Whether the bridge has enabled the port, which then forwards at once unless the bridge has STP on.

    Its carrier comes through the kernel's link watch, within a millisecond or so.
    """
    return present(host, name).port_state != BR_STATE_DISABLED


def missing_port(host: Netlink, inside: Netlink, attachment: Attachment, netns: Netns) -> list[str]:
    """What of the port differs, in words."""
    spec, bridge, ifname = attachment.port, attachment.bridge, attachment.container.ifname
    link, master = host.link(spec.name), host.link(bridge.name)
    if link is None:
        return [f"veth {spec.name} is gone"]
    differences = {
        f"veth {spec.name} does not lead to {ifname} in the container": not host.leads_to(
            link, inside, netns.fd, ifname
        ),
        f"veth {spec.name} is down": not link.up,
        f"veth {spec.name} has MAC address {link.mac}, not {spec.mac}": link.mac != spec.mac,
        f"veth {spec.name} has lost its alias, {spec.alias}": link.alias != spec.alias,
        f"veth {spec.name} is no port of bridge {bridge.name}": master is None or link.master != master.index,
        f"veth {spec.name} has mtu {link.mtu}, not {spec.mtu}": spec.mtu not in (0, link.mtu),
        f"veth {spec.name} has hairpin mode {'on' if link.hairpin else 'off'}": link.hairpin != spec.hairpin,
        f"veth {spec.name} has port isolation {'on' if link.isolated else 'off'}": link.isolated != spec.isolated,
    }
    return [words for words, differs in differences.items() if differs]


def _require_free(inside: Netlink, ifname: str, netns: Netns) -> None:
    taken = inside.link(ifname)
    if taken is not None:
        raise LinkConflict(
            f'interface "{ifname}" already exists in {netns.ref.path}: it is a {taken.kind or "device"}',
            f"CNI_IFNAME is {ifname}",
        )


def _make(host: Netlink, bridge: Link, specs: LinkSpecs, netns: Netns) -> None:
    spec, container = specs.port, specs.container
    try:
        host.add_veth(
            spec.name,
            mac=spec.mac,
            mtu=spec.mtu,
            master=bridge.index,
            peer=container.ifname,
            peer_mac=container.mac,
            peer_netns=netns.fd,
        )
        _set_up(host, bridge, spec)
    except KernelRefused as error:
        if error.errno == errno.EXFULL:
            raise KernelRefused(
                f"bridge {bridge.name} is full: the kernel allows {MAX_PORTS} ports; spread the containers over bridges"
            ) from None
        raise


def present(host: Netlink, name: str) -> Link:
    """The veth's end on the host, which has to be there."""
    link = host.link(name)
    if link is None:
        raise KernelRefused(f"veth {name} vanished while it was set up; was its container removed?")
    return link


def _ensure_vlans(host: Netlink, bridge: Link, link: Link, spec: PortSpec) -> None:
    """Set the VLANs of the port: the access VLAN untagged, the trunk tagged, 1 native where only a trunk is set."""
    try:
        if not spec.preserve_default_vlan:
            host.delete_vlan(link.index, bridge.default_vlan)
        host.add_vlan(link.index, spec.vlan or _NATIVE_VLAN, native=True)
        for vlan in spec.vlan_trunk:
            if vlan != spec.vlan:
                host.add_vlan(link.index, vlan, native=False)
    except KernelRefused as error:
        if error.errno == errno.EOPNOTSUPP:
            raise UnsupportedField(
                "this kernel has no bridge VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING), which vlan and vlanTrunk need"
            ) from None
        raise
