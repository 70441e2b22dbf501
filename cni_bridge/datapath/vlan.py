"""Where the gateway of an access VLAN lives: on a veth beside the bridge, whose other end is a port in that VLAN."""

from __future__ import annotations

from collections.abc import Callable

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.datapath.netlink import Link, Netlink
from cni_bridge.plan import GatewaySpec
from cni_bridge.tag import vlan_port_ifname

_DEFAULT_VLAN = 1


def gateway_link(host: Netlink, bridge: Link, spec: GatewaySpec, about_to_make: Callable[[], None]) -> Link:
    """The link that holds the gateway addresses: the bridge, or the VLAN's own; `about_to_make` is called first."""
    if not spec.vlan:
        return bridge
    link = host.link(spec.link)
    if link is None:
        about_to_make()
        inner = vlan_port_ifname(spec.link)
        host.add_veth(inner, mac="", mtu=bridge.mtu, master=bridge.index, peer=spec.link, peer_mac="", peer_netns=None)
        port = host.link(inner)
        link = host.link(spec.link)
        if port is None or link is None:
            raise KernelRefused(f"veth {spec.link} vanished while it was set up")
        host.delete_vlan(port.index, _DEFAULT_VLAN)
        host.add_vlan(port.index, spec.vlan, native=True)
        host.set_link(link.index, state="up")
    return link
