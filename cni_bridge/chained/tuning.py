"""The chained plugin `tuning`: sets the container's interface and its namespace's kernel settings."""

from __future__ import annotations

from dataclasses import replace

from cni_bridge.chained.lifecycle import Plugin
from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import InvalidNetns
from cni_bridge.cni.request import Request
from cni_bridge.cni.result import Result
from cni_bridge.cni.tuning import parse_tuning
from cni_bridge.datapath import netns
from cni_bridge.datapath.tuning import require_allowed_here
from cni_bridge.runtime import Runtime


class Tuning(Plugin):
    """See `lifecycle.Plugin`."""

    name = "tuning"

    def plan(self, rt: Runtime, request: Request, previous: Result, recorded: Chained | None) -> Chained | None:
        """See `Plugin.plan`."""
        tuning = parse_tuning(request)
        if not tuning:
            return None
        require_allowed_here(tuning)
        with netns.opened(request.netns, request.netns_fd) as target:
            former = recorded.former if recorded is not None else None
            if former is None:
                former = rt.links.read_former(target, request.owner.ifname)
        return Chained(owner=request.owner, tuning=tuning, former=former)

    def apply(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.apply`."""
        with netns.opened(request.netns, request.netns_fd) as target:
            rt.links.tune(target, state.owner.ifname, state.tuning)
        if state.tuning.mac:
            self._follow(rt, state, state.tuning.mac)

    def undo(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.undo`; with the namespace, all is gone."""
        try:
            with netns.opened(request.netns, request.netns_fd) as target:
                if state.former is not None:
                    rt.links.untune(target, state.owner.ifname, state.former, state.tuning)
        except InvalidNetns:
            return
        if state.tuning.mac and state.former is not None:
            self._follow(rt, state, state.former.mac)

    def _follow(self, rt: Runtime, state: Chained, mac: str) -> None:
        """Have the spoof check of our own attachment allow the MAC address that the interface has now."""
        attachment = rt.records.read(state.owner)
        if attachment is None:
            return
        changed = tuple(
            replace(each, spoof_check=replace(each.spoof_check, mac=mac))
            if each.spoof_check is not None and each.spoof_check.mac
            else each
            for each in attachment.policies
        )
        if changed == attachment.policies:
            return
        rt.records.write(replace(attachment, policies=tuple(dict.fromkeys((*changed, *attachment.policies)))))
        for old, new in zip(attachment.policies, changed, strict=True):
            if old != new:
                firewall = rt.firewalls[new.backend]
                firewall.apply(new)
                only_check = replace(old, publications=(), shields=(), link=None, masquerade=())
                firewall.remove(only_check)
                firewall.apply(new)
        rt.records.write(replace(attachment, policies=changed))

    def missing(self, rt: Runtime, request: Request, state: Chained) -> list[str]:
        """See `Plugin.missing`."""
        with netns.opened(request.netns, request.netns_fd) as target:
            return rt.links.missing_tune(target, state.owner.ifname, state.tuning)

    def result(self, rt: Runtime, previous: Result, state: Chained | None, recorded: Chained | None) -> Result:
        """See `Plugin.result`; with the MAC address that was set, or the one that was given back.

        The plugins before saw what an earlier ADD had set.
        """
        if state is not None and state.tuning.mac:
            return previous.with_mac(state.owner.ifname, state.tuning.mac)
        if recorded is not None and recorded.tuning.mac and recorded.former is not None:
            return previous.with_mac(recorded.owner.ifname, recorded.former.mac)
        return previous
