"""The chained plugin `bandwidth`: limits an attachment's traffic in both directions."""

from __future__ import annotations

from dataclasses import replace

from cni_bridge.chained.lifecycle import Plugin
from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.request import Request
from cni_bridge.cni.result import InterfaceEntry, Result
from cni_bridge.cni.shaping import parse_shaping
from cni_bridge.runtime import Runtime
from cni_bridge.tag import ifb_ifname


class Bandwidth(Plugin):
    """See `lifecycle.Plugin`."""

    name = "bandwidth"

    def plan(self, rt: Runtime, request: Request, previous: Result, recorded: Chained | None) -> Chained | None:
        """See `Plugin.plan`."""
        shaping = parse_shaping(request.config)
        if not shaping:
            return None
        port = rt.links.port_of(request.netns, request.owner.ifname, request.netns_fd)
        if port is None:
            raise InvalidConfig(
                f"interface {request.owner.ifname} has no veth peer on this host, so it cannot be limited"
            )
        return Chained(owner=request.owner, port=port.name, shaping=shaping)

    def apply(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.apply`."""
        rt.links.shape(state.owner, state.port, state.shaping)

    def undo(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.undo`."""
        rt.links.unshape(state.owner, state.port)

    def missing(self, rt: Runtime, request: Request, state: Chained) -> list[str]:
        """See `Plugin.missing`."""
        return rt.links.missing_shape(state.owner, state.port, state.shaping)

    def result(self, rt: Runtime, previous: Result, state: Chained | None, recorded: Chained | None) -> Result:
        """See `Plugin.result`; with the link that delays what the container sends, as the reference answers."""
        link = rt.links.link(ifb_ifname(state.owner)) if state is not None else None
        if link is None:
            return previous
        return replace(previous, interfaces=(*previous.interfaces, InterfaceEntry(name=link.name, mac=link.mac)))
