"""The chained plugin `portmap`: publishes ports of an attachment that another plugin made."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from cni_bridge.chained.lifecycle import Plugin
from cni_bridge.chained_state import Chained
from cni_bridge.cni.conditions import parse_condition
from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.fields import Fields
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import parse_port_mappings
from cni_bridge.cni.request import Request
from cni_bridge.cni.result import Result
from cni_bridge.policies import plan_publications
from cni_bridge.policy import LinkPolicy, Policy
from cni_bridge.publishing import claim, end_stale_connections, hand_over, require_own_addresses
from cni_bridge.rules import change_rules, missing_rules
from cni_bridge.runtime import Runtime
from ipam.api import Address

log = logging.getLogger(__name__)

_MAX_MARK_BIT = 31


class Portmap(Plugin):
    """See `lifecycle.Plugin`."""

    name = "portmap"
    claims_ports = True

    def plan(self, rt: Runtime, request: Request, previous: Result, recorded: Chained | None) -> Chained | None:
        """See `Plugin.plan`. A host port that is taken is worth a warning only, as chains were written for that."""
        config = request.config
        _require_known_options(config)
        mappings = parse_port_mappings(config)
        addresses = tuple(_addresses(previous, request.owner.ifname))
        if not mappings or not addresses:
            return None
        keys = {family: f"conditionsV{family}" for family in (4, 6)}
        conditions = {n: parse_condition(config.strings(key), config.at(key), n) for n, key in keys.items()}
        wanted = tuple(
            plan_publications(
                mappings,
                addresses,
                snat=config.boolean("snat", True),
                masquerade_all=config.boolean("masqAll"),
                conditions=conditions,
            )
        )
        backend = rt.best_backend()
        for family in {each.address.version for each in wanted} if backend == Backend.IPTABLES else ():
            conditions[family].require_matches(config.at(keys[family]))
        require_own_addresses(rt, wanted)
        claiming = tuple(each for each in wanted if not each.condition)  # on a condition, others may have the port too
        granted, waiting = claim(rt, request.owner, claiming, backend, caller=request.caller, refuse=False)
        served = tuple(each for each in wanted if each.condition or each in granted)
        where = (request.netns, request.owner.ifname, addresses[0], request.netns_fd)
        link = rt.links.link_of(*where)
        policy = Policy(
            backend=backend,
            owner=request.owner,
            publications=served,
            link=LinkPolicy(link=link.name, trusted=None, shared=link.kind == "bridge") if link is not None else None,
        )
        return Chained(owner=request.owner, policies=(policy,), waiting=waiting)

    def apply(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.apply`."""
        change_rules(rt, (), state.policies)
        end_stale_connections(state.policies)

    def undo(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.undo`."""
        try:
            change_rules(rt, state.policies, ())
        finally:
            end_stale_connections(state.policies)

    def missing(self, rt: Runtime, request: Request, state: Chained) -> list[str]:
        """See `Plugin.missing`."""
        return missing_rules(rt, state.policies)

    async def released(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.released`."""
        await hand_over(rt, state.owner.container_id, request.caller)


def _require_known_options(config: Fields) -> None:
    """Refuse what this plugin would not do; whatever backend is named, it is nftables where that works."""
    backend = config.string("backend")
    if backend not in ("", "iptables", "nftables"):
        raise InvalidConfig(f'{config.at("backend")} "{backend}" is none of iptables, nftables')
    config.integer("markMasqBit", 13, low=0, high=_MAX_MARK_BIT)  # no mark is needed to masquerade
    if config.string("externalSetMarkChain"):
        raise InvalidConfig(
            f"{config.at('externalSetMarkChain')} is not supported", "no mark is needed to masquerade in nftables"
        )


def _addresses(previous: Result, ifname: str) -> Iterator[Address]:
    """The container's addresses in the result, but for those of other interfaces."""
    for each in previous.ips:
        at = each.interface
        if (
            at is None
            or not 0 <= at < len(previous.interfaces)
            or (previous.interfaces[at].sandbox and previous.interfaces[at].name == ifname)
        ):
            yield each.address.ip
