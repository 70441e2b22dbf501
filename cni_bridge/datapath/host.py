"""The host's links as a whole: joined, taken away, compared. Everything runs in one thread, which enters namespaces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from cni_bridge.cni.errors import InvalidNetns
from cni_bridge.cni.result import Result
from cni_bridge.datapath import bridge as bridges
from cni_bridge.datapath import forwarding, netns, port, sysctl
from cni_bridge.datapath.container import (
    missing_container,
)
from cni_bridge.datapath.joining import Joining, PushUndo
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.datapath.netns import Netns
from cni_bridge.datapath.shaping import missing_shaping
from cni_bridge.datapath.sockets import Sockets
from cni_bridge.datapath.tuning import missing_tuning
from cni_bridge.plan import Attachment
from cni_bridge.tag import MARK, host_ifname, ifb_ifname, key_of_tag, network_tag, owner_key
from ipam.api import Address, Interface, Owner

log = logging.getLogger(__name__)

# Documentation addresses (RFC 5737, RFC 3849): any that only the default route leads to.
_ELSEWHERE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))

_LOOPBACK6 = ip_address("::1")

_DEFAULT_MTU = 1500  # ETH_DATA_LEN


class Datapath:
    """Links, addresses, routes and forwarding; bridges are locked at `lock_dir`."""

    def __init__(self, sockets: Sockets, lock_dir: Path) -> None:
        self._lock_dir = lock_dir
        self._sockets = sockets

    def uplink_mtu(self) -> int:
        """The MTU of the link that the default route leads over, in bytes; the kernel's default if there is none."""
        links = (self._host.route_link(address) for address in _ELSEWHERE)
        return next((link.mtu for link in links if link is not None and link.name != "lo"), _DEFAULT_MTU)

    def passes_iptables(self, bridge: str) -> bool:
        """Whether what the bridge forwards passes the hooks of iptables."""
        return bridges.passes_iptables(self._host, bridge)

    def joining(
        self,
        target: Netns,
        *,
        push_undo: PushUndo,
        gateways_of_others: Callable[[str], frozenset[Interface]],
    ) -> Joining:
        """What joins the namespace to a bridge, step by step."""
        return Joining(
            self._sockets,
            target,
            lock_dir=self._lock_dir,
            push_undo=push_undo,
            gateways_of_others=gateways_of_others,
        )

    def silence(self, name: str) -> None:
        """Let nothing pass the host's link of that name any more; one that is gone passes nothing."""
        self._host.set_down(name)

    def detach_unrecorded(self, owner: Owner, bridge: str, path: str, passed: int | None = None) -> bool:
        """Delete what the owner may have without a record: its own veth, or the container's veth to the bridge.

        The latter is how attachments look that the reference plugin made before this one took its place; one that
        carries another owner's mark is left alone, and so is everything in the host's own namespace. Whether there was
        one of the owner's own.
        """
        host = self._host
        host.delete_link(ifb_ifname(owner))
        if host.delete_link(host_ifname(owner)):
            return True
        if not path:
            return False
        with suppress(InvalidNetns), netns.opened(path, passed) as target:
            if target.ref.same_as(netns.own()):
                return False
            with self._sockets.inside(target) as inside:
                link = inside.link(owner.ifname)
                outer = host.link_at(link.peer) if link is not None and link.kind == "veth" else None
                master = host.link(bridge)
                if outer is None or master is None or outer.master != master.index or outer.alias.startswith(MARK):
                    return False
                if host.leads_to(outer, inside, target.fd, owner.ifname):
                    log.info("deleting %s, which another plugin made for %s", outer.name, owner)
                    host.delete_link(outer.name)
        return False

    def missing(self, attachment: Attachment, expected: Result, target: Netns) -> list[str]:
        """What differs from the attachment, in words; `expected` is the result that the runtime holds."""
        host = self._host
        bridge = host.link(attachment.bridge.name)
        with self._sockets.inside(target) as inside:
            found = [
                *bridges.missing_bridge(bridge, attachment.bridge, _bridge_mac(expected, attachment.bridge.name)),
                *port.missing_port(host, inside, attachment, target),
                *missing_container(inside, attachment.container, expected, target.ref),
            ]
            if attachment.tuning:
                with netns.entered(target):
                    found += missing_tuning(inside, attachment.container.ifname, attachment.tuning)
        link = host.link(attachment.port.name)
        if attachment.shaping and link is not None:
            found += missing_shaping(host, link, ifb_ifname(attachment.owner), attachment.shaping)
        if attachment.gateway is not None:
            link = host.link(attachment.gateway.link)
            if link is None:
                found.append(f"gateway link {attachment.gateway.link} is gone")
            else:
                found += bridges.missing_gateway(host, link, attachment.gateway)
            found += forwarding.missing_forwarding(attachment.gateway.families)
        return found

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """Delete marked host links of the network whose owners are not in `keep`."""
        prefix, kept = network_tag(network), {owner_key(each) for each in keep}
        for link in self._host.links():
            if link.alias.startswith(prefix) and key_of_tag(link.alias) not in kept:
                log.info("deleting stray link %s (%s)", link.name, link.alias)
                self._host.delete_link(link.name)

    def own_addresses(self) -> frozenset[Address]:
        """All addresses of the host."""
        return frozenset(address.ip for _, address in self._host.all_addresses())

    def let_loopback_out(self, link: str, family: int) -> None:
        """Let packets from the host's loopback addresses leave by the link, so that ports published there work.

        In IPv4 it also lets packets for these addresses in; the firewall's chain `raw` drops them, and has to be
        there. In IPv6 answers to ::1 need a local route; where bridged frames pass the firewall first, the kernel
        drops them all the same, for they come in with that address.
        """
        if family == 4:  # a link that is recorded and not made yet has no setting; whoever makes it sets it
            self._host.set_route_localnet(link, on=True)
        elif sysctl.read("bridge/bridge-nf-call-ip6tables") == "1":
            log.info("ports are not published at ::1: net.bridge.bridge-nf-call-ip6tables is 1 here")
        elif (found := self._host.link(link)) is not None:
            self._host.add_local_route(found.index, _LOOPBACK6)

    def keep_loopback_in(self, link: str) -> None:
        """Take back what `let_loopback_out` did; a link that is gone has lost it by itself."""
        self._host.set_route_localnet(link, on=False)
        if (found := self._host.link(link)) is not None:
            self._host.delete_local_route(found.index, _LOOPBACK6)

    def missing_loopback(self, link: str, family: int) -> list[str]:
        """What of `let_loopback_out` is not there, in words; IPv6 is not looked at: there it depends on the host."""
        name = f"ipv4/conf/{link}/route_localnet"
        differs = family == 4 and sysctl.read(name) != "1"
        return [f"ports are not published at 127.0.0.1: net.{name.replace('/', '.')} is not 1"] if differs else []

    def count_ports(self, bridge: str) -> int:
        """How many ports the bridge has."""
        return bridges.count_ports(self._host, bridge)

    @property
    def _host(self) -> Netlink:
        return self._sockets.host


def _bridge_mac(expected: Result, name: str) -> str:
    """The MAC address that a result gives the bridge."""
    return next((each.mac.lower() for each in expected.interfaces if each.name == name and not each.sandbox), "")
