"""One attachment in the making: its veth first, while its addresses are being chosen, then all that needs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.datapath import bridge as bridges
from cni_bridge.datapath import forwarding, netns, port, vlan
from cni_bridge.datapath.container import (
    configure_container,
    finish_container,
    has_own_addresses,
    notify_neighbours,
)
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netns import Netns
from cni_bridge.datapath.shaping import ensure_shaping, remove_shaping
from cni_bridge.datapath.sockets import Sockets
from cni_bridge.datapath.tuning import apply_tuning
from cni_bridge.plan import Attachment, GatewaySpec, LinkSpecs, Made
from cni_bridge.tag import ifb_ifname, owner_tag
from cni_bridge.trace import step
from ipam.api import Interface

PushUndo = Callable[[Callable[[], object]], None]


class Joining:
    """Joins the namespace `target` to a bridge; each effect's undo is pushed before it.

    `gateways_of_others` tells which addresses of a bridge have to stay when this attachment is undone; bridges are
    locked at `lock_dir`. Everything but `close` runs in the thread of the sockets.
    """

    def __init__(
        self,
        sockets: Sockets,
        target: Netns,
        *,
        lock_dir: Path,
        push_undo: PushUndo,
        gateways_of_others: Callable[[str], frozenset[Interface]],
    ) -> None:
        self._sockets = sockets
        self._target = target
        self._lock_dir = lock_dir
        self._push_undo = push_undo
        self._gateways_of_others = gateways_of_others
        self._resources = ExitStack()
        self._gateway: GatewaySpec | None = None

    def close(self) -> None:
        """Close what was opened, in any thread, once nothing of it runs; what was made stays."""
        self._resources.close()

    def connect(self, links: LinkSpecs) -> None:
        """Make the bridge, if need be, and the veth."""
        host = self._sockets.host
        self._links = links
        with bridges.bridges_locked(self._lock_dir, alone=False), step("links"):
            before = host.link(links.bridge.name)
            self._effects = _HostEffects(before=before)
            self._push_undo(self._abandon)
            self._bridge = bridges.ensure_bridge(host, before, links.bridge, self._effects.changed)
            self._push_undo(lambda: self._sockets.host.delete_link(links.port.name))
            self._inside = self._resources.enter_context(self._sockets.inside(self._target))
            port.ensure_port(host, self._inside, self._bridge, links, self._target)

    def configure(self, attachment: Attachment, former: tuple[Interface, ...]) -> Made:
        """Give the container and the bridge their addresses, and what else is wanted.

        `former` are the container's addresses by an earlier request of the same owner.
        """
        self._spec = attachment.container
        self._gateway = attachment.gateway
        inside, spec, effects = self._inside, attachment.container, self._effects
        with step("addresses"):
            container = configure_container(inside, self._target, spec, former)
            if attachment.tuning:
                with netns.entered(self._target):
                    container = apply_tuning(inside, container, attachment.tuning)
            self._container = container
            self._shape(attachment)
            gateway = self._give_gateway()
        return Made(
            bridge_mac=gateway.mac if gateway.index == self._bridge.index else self._bridge.mac,
            gateway_mac=gateway.mac,
            container_mac=container.mac,
            ready=self.finish(),
            changed=effects.in_words(),
        )

    def finish(self) -> bool:
        """Give the container its routes, once its frames pass and its addresses are its own.

        False if that is not so yet: whoever asks can wait, but this thread has others to serve.
        """
        spec = self._spec
        with step("addresses"):
            if spec.up and not port.is_forwarding(self._sockets.host, self._links.port.name):
                return False
            if not has_own_addresses(self._inside, self._container, spec):
                return False
            finish_container(self._inside, self._container, spec)
        return True

    def notify_neighbours(self) -> None:
        """Tell everybody on the bridge who has the addresses now: a frame to each port, which takes the kernel long."""
        if self._spec.up:
            notify_neighbours(self._inside, self._container)

    def _give_gateway(self) -> Link:
        """The link that has the gateway addresses, and is routed; the bridge if there are none."""
        spec, host, effects = self._gateway, self._sockets.host, self._effects
        if spec is None:
            return self._bridge
        with bridges.bridges_locked(self._lock_dir, alone=False):
            bridge = host.link_at(self._bridge.index)  # as it is now: others were served since the veth was made
            if bridge is None:
                raise KernelRefused(f"bridge {self._bridge.name} vanished while it was set up")
            self._bridge = bridge
            link = vlan.gateway_link(host, bridge, spec, effects.changed)
            link = bridges.ensure_gateway(host, link, spec, effects.added, effects.replaced)
        forwarding.ensure_forwarding(host, spec.families, effects.changed)
        return link

    def _shape(self, attachment: Attachment) -> None:
        if attachment.shaping:
            ifb, host = ifb_ifname(attachment.owner), self._sockets.host
            self._push_undo(lambda: remove_shaping(self._sockets.host, ifb))
            link = port.present(host, attachment.port.name)
            ensure_shaping(host, link, ifb, owner_tag(attachment.owner), attachment.shaping)

    def _abandon(self) -> None:
        """Take back what a failed ADD did to the bridge, but for what others use by now."""
        effects, gateway = self._effects, self._gateway
        if not effects.in_words():
            return
        host, name = self._sockets.host, self._links.bridge.name
        with bridges.bridges_locked(self._lock_dir, alone=True):
            kept = self._gateways_of_others(name)
            link = host.link(gateway.link) if gateway is not None else None
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
