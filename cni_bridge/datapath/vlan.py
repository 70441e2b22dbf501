"""Where the gateway of an access VLAN lives: on a veth beside the bridge, whose other end is a port in that VLAN."""

from __future__ import annotations

import errno

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.plan import GatewaySpec
from cni_bridge.tag import vlan_port_ifname


def gateway_link(host: Netlink, bridge: Link, spec: GatewaySpec, changed: list[str]) -> Link:
    """The link that holds the gateway addresses: the bridge, or the VLAN's own; that it is made is told before."""
    if not spec.vlan:
        return bridge
    link = host.link(spec.link)
    if link is not None:
        return link
    changed.append(f"made {spec.link}")
    inner = vlan_port_ifname(spec.link)
    try:
        host.add_veth(inner, mac="", mtu=bridge.mtu, master=bridge.index, peer=spec.link, peer_mac="", peer_netns=None)
    except KernelRefused as error:
        if error.errno != errno.EEXIST:  # another request was faster
            raise
    port, link = host.link(inner), host.link(spec.link)
    if port is None or link is None:
        raise KernelRefused(f"veth {spec.link} vanished while it was set up")
    host.delete_vlan(port.index, bridge.default_vlan)
    host.add_vlan(port.index, spec.vlan, native=True)
    host.set_up(link.index)
    return link
