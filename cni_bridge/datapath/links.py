"""Links that another plugin made: looks at them, limits them, tunes them. Everything runs in one thread."""

from __future__ import annotations

from cni_bridge.cni.errors import InvalidNetns, KernelRefused
from cni_bridge.cni.shaping import Shaping
from cni_bridge.cni.tuning import Tuning
from cni_bridge.datapath import netns
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.datapath.netns import Netns
from cni_bridge.datapath.shaping import ensure_shaping, lift_limits, missing_shaping, remove_shaping
from cni_bridge.datapath.sockets import Sockets
from cni_bridge.datapath.tuning import Former, apply_tuning, find, missing_tuning, read_former, restore
from cni_bridge.tag import ifb_ifname, owner_tag
from ipam.api import Address, Owner


class Links:
    """The links of the host and of containers, for chained plugins."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def link(self, name: str) -> Link | None:
        """The host's link of that name."""
        return self._host.link(name)

    def link_of(self, path: str, ifname: str, address: Address, passed: int | None = None) -> Link | None:
        """The container's link on the host: the bridge of its veth, or else the link on which its address is."""
        try:
            port = self.port_of(path, ifname, passed)
        except InvalidNetns:
            port = None
        if port is not None and port.master:
            return self._host.link_at(port.master)
        return port or self._host.neighbour_link(address)

    def port_of(self, path: str, ifname: str, passed: int | None = None) -> Link | None:
        """The host's end of the veth whose other end is this interface of the namespace; see `netns.opened`."""
        with netns.opened(path, passed) as target, self._sockets.inside(target) as inside:
            link = inside.link(ifname)
            outer = self._host.link_at(link.peer) if link is not None and link.kind == "veth" else None
            leads = outer is not None and self._host.leads_to(outer, inside, target.fd, ifname)
        return outer if leads else None

    def isolate_port(self, name: str) -> None:
        """Keep the bridge port from other isolated ones."""
        link = self._host.link(name)
        if link is not None and not link.isolated:
            self._host.set_port(link.index, hairpin=link.hairpin, isolated=True)

    def is_port_isolated(self, name: str) -> bool:
        """Whether the bridge port is there and isolated."""
        link = self._host.link(name)
        return link is not None and link.isolated

    def shape(self, owner: Owner, port: str, shaping: Shaping) -> None:
        """Limit what goes over the port."""
        link = self._host.link(port)
        if link is None:
            raise KernelRefused(f"link {port} is gone")
        ensure_shaping(self._host, link, ifb_ifname(owner), owner_tag(owner), shaping)

    def unshape(self, owner: Owner, port: str) -> None:
        """Lift the limits; gone already is success."""
        remove_shaping(self._host, ifb_ifname(owner))
        link = self._host.link(port)
        if link is not None:
            lift_limits(self._host, link.index)

    def missing_shape(self, owner: Owner, port: str, shaping: Shaping) -> list[str]:
        """What of the limits differs, in words."""
        link = self._host.link(port)
        if link is None:
            return [f"link {port} is gone"]
        return missing_shaping(self._host, link, ifb_ifname(owner), shaping)

    def read_former(self, target: Netns, ifname: str) -> Former:
        """The container's interface as it is."""
        with self._sockets.inside(target) as inside:
            return read_former(inside, ifname)

    def tune(self, target: Netns, ifname: str, tuning: Tuning) -> None:
        """Set the container's interface."""
        with self._sockets.inside(target) as inside, netns.entered(target):
            apply_tuning(inside, find(inside, ifname), tuning)

    def untune(self, target: Netns, ifname: str, former: Former, tuning: Tuning) -> None:
        """Give the container's interface back what it was; gone already is success."""
        with self._sockets.inside(target) as inside:
            restore(inside, ifname, former, tuning)

    def missing_tune(self, target: Netns, ifname: str, tuning: Tuning) -> list[str]:
        """What of the container's interface differs, in words."""
        with self._sockets.inside(target) as inside, netns.entered(target):
            return missing_tuning(inside, ifname, tuning)

    def set_up(self, target: Netns, ifname: str, *, up: bool) -> None:
        """Bring the container's interface up or down; one that is gone is left."""
        with self._sockets.inside(target) as inside:
            link = inside.link(ifname)
            if link is not None and link.up != up:
                inside.set_up(link.index, up=up)

    def is_up(self, target: Netns, ifname: str) -> bool:
        """Whether the container's interface is there and up."""
        with self._sockets.inside(target) as inside:
            link = inside.link(ifname)
            return link is not None and link.up

    @property
    def _host(self) -> Netlink:
        return self._sockets.host
