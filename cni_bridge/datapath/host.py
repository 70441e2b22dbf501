"""The host's links as a whole: attaches, detaches, compares. Everything runs in one thread, which enters namespaces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cni_bridge.cni.errors import InvalidNetns
from cni_bridge.cni.result import Result
from cni_bridge.datapath import bridge as bridges
from cni_bridge.datapath import forwarding, netns, port, sysctl, vlan
from cni_bridge.datapath.container import (
    configure_container,
    finish_container,
    has_own_addresses,
    missing_container,
    present,
)
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.datapath.netns import Netns
from cni_bridge.datapath.shaping import ensure_shaping, missing_shaping, remove_shaping
from cni_bridge.datapath.sockets import Sockets
from cni_bridge.datapath.tuning import apply_tuning, missing_tuning
from cni_bridge.plan import Attachment, GatewaySpec, Made
from cni_bridge.tag import MARK, host_ifname, ifb_ifname, key_of_tag, network_tag, owner_key, owner_tag
from cni_bridge.trace import step
from ipam.api import Address, Interface, Owner

log = logging.getLogger(__name__)

# Documentation addresses (RFC 5737, RFC 3849): any that only the default route leads to.
_ELSEWHERE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))

_LOOPBACK6 = ip_address("::1")

_DEFAULT_MTU = 1500  # ETH_DATA_LEN

PushUndo = Callable[[Callable[[], object]], None]


class Datapath:
    """Links, addresses, routes and forwarding; bridges are locked at `lock_dir`, within `patience` seconds."""

    def __init__(self, sockets: Sockets, lock_dir: Path, *, patience: float) -> None:
        self._lock_dir = lock_dir
        self._patience = patience
        self._sockets = sockets

    def uplink_mtu(self) -> int:
        """The MTU of the link that the default route leads over, in bytes; the kernel's default if there is none."""
        links = (self._host.route_link(address) for address in _ELSEWHERE)
        return next((link.mtu for link in links if link is not None), _DEFAULT_MTU)

    def passes_iptables(self, bridge: str) -> bool:
        """Whether what the bridge forwards passes the hooks of iptables."""
        return bridges.passes_iptables(self._host, bridge)

    def attach(
        self,
        attachment: Attachment,
        target: Netns,
        former: tuple[Interface, ...],
        *,
        push_undo: PushUndo,
        gateways_of_others: Callable[[], frozenset[Interface]],
    ) -> Made:
        """Make the attachment; each effect's undo is pushed before it.

        `former` are the container's addresses by an earlier request of the same owner; `gateways_of_others` tells
        which addresses of the bridge have to stay when this attachment is undone.
        """
        host, gateway = self._host, attachment.gateway
        effects = _HostEffects(before=host.link(attachment.bridge.name))
        push_undo(lambda: self._abandon(attachment, effects, gateways_of_others))
        with bridges.bridges_locked(self._lock_dir, alone=False, patience=self._patience):
            bridge = bridges.ensure_bridge(host, attachment.bridge, effects.changed)
            push_undo(lambda: self._host.delete_link(attachment.port.name))
            with self._sockets.inside(target) as inside:
                with step("links"):
                    port.ensure_port(host, inside, bridge, attachment, target)
                with step("addresses"), netns.entered(target):
                    container = configure_container(inside, attachment.container, former)
                    if attachment.tuning:
                        apply_tuning(inside, attachment.container.ifname, attachment.tuning)
                        container = inside.link(attachment.container.ifname) or container
            self._shape(attachment, push_undo)
            link = bridge
            if gateway is not None:
                with step("addresses"):
                    link = vlan.gateway_link(host, bridge, gateway, effects.changed)
                    link = bridges.ensure_gateway(host, link, gateway, effects.added, effects.replaced)
        if gateway is not None:
            forwarding.ensure_forwarding(host, _families(gateway), effects.changed)
        return Made(
            bridge_mac=link.mac if link.index == bridge.index else bridge.mac,
            gateway_mac=link.mac,
            container_mac=container.mac,
            ready=self._finish(attachment, target, container),
            changed=effects.in_words(),
        )

    def finish(self, attachment: Attachment, target: Netns) -> bool:
        """Give the container its routes and announce it, once its frames pass and its addresses are its own.

        False if that is not so yet: whoever asks can wait, but this thread has others to serve.
        """
        return self._finish(attachment, target, None)

    def _finish(self, attachment: Attachment, target: Netns, link: Link | None) -> bool:
        spec = attachment.container
        if spec.up and not port.is_forwarding(self._host, attachment.port.name):
            return False
        with step("addresses"), self._sockets.inside(target) as inside:
            link = link or present(inside, spec)
            if not has_own_addresses(inside, link, spec):
                return False
            finish_container(inside, link, spec)
        return True

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
            found += forwarding.missing_forwarding(_families(attachment.gateway))
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
            sysctl.write_if_there(f"ipv4/conf/{link}/route_localnet", "1")
        elif sysctl.read("bridge/bridge-nf-call-ip6tables") == "1":
            log.info("ports are not published at ::1: net.bridge.bridge-nf-call-ip6tables is 1 here")
        elif (found := self._host.link(link)) is not None:
            self._host.add_local_route(found.index, _LOOPBACK6)

    def keep_loopback_in(self, link: str) -> None:
        """Take back what `let_loopback_out` did; a link that is gone has lost it by itself."""
        sysctl.write_if_there(f"ipv4/conf/{link}/route_localnet", "0")
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

    def _shape(self, attachment: Attachment, push_undo: PushUndo) -> None:
        if attachment.shaping:
            ifb, host = ifb_ifname(attachment.owner), self._host
            push_undo(lambda: remove_shaping(self._host, ifb))
            link = port.present(host, attachment.port.name)
            ensure_shaping(host, link, ifb, owner_tag(attachment.owner), attachment.shaping)

    @property
    def _host(self) -> Netlink:
        return self._sockets.host

    def _abandon(
        self,
        attachment: Attachment,
        effects: _HostEffects,
        gateways_of_others: Callable[[], frozenset[Interface]],
    ) -> None:
        """Take back what a failed ADD did to the bridge, but for what others use by now."""
        if not effects.in_words():
            return
        host, name = self._host, attachment.bridge.name
        with bridges.bridges_locked(self._lock_dir, alone=True, patience=self._patience):
            kept = gateways_of_others()
            link = host.link(attachment.gateway.link) if attachment.gateway is not None else None
            if link is not None:
                for address in set(effects.added) - kept:
                    host.delete_address(link.index, address)
                for address in effects.replaced:
                    host.add_address(link.index, address, dad=False)
                if link.name != name and not kept and f"made {link.name}" in effects.changed:
                    host.delete_link(link.name)
            if bridges.count_ports(host, name):
                return
            if effects.before is None:
                host.delete_link(name)
            else:
                bridges.restore_bridge(host, effects.before)


@dataclass(slots=True, kw_only=True)
class _HostEffects:
    """What one ADD does to the host beside its own links, told before it is done."""

    before: Link | None  # the bridge
    changed: list[str] = field(default_factory=list)
    added: list[Interface] = field(default_factory=list)
    replaced: list[Interface] = field(default_factory=list)

    def in_words(self) -> tuple[str, ...]:
        """All of it."""
        replaced = (f"removed address {each}" for each in self.replaced)
        return (*self.changed, *replaced, *(f"added address {each}" for each in self.added))


def _bridge_mac(expected: Result, name: str) -> str:
    """The MAC address that a result gives the bridge."""
    return next((each.mac.lower() for each in expected.interfaces if each.name == name and not each.sandbox), "")


def _families(gateway: GatewaySpec) -> list[int]:
    return sorted({each.version for each in gateway.addresses})
