"""The chained plugin `firewall`: lets an attachment's traffic through a host's firewall, and keeps networks apart."""

from __future__ import annotations

from dataclasses import replace

from cni_bridge.chained.lifecycle import Plugin
from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.request import Request
from cni_bridge.cni.result import Result
from cni_bridge.policy import LinkPolicy, Policy
from cni_bridge.rules import change_rules, missing_rules
from cni_bridge.runtime import Runtime

_POLICIES = ("open", "same-bridge", "isolated")


class Firewall(Plugin):
    """See `lifecycle.Plugin`."""

    name = "firewall"

    def plan(self, rt: Runtime, request: Request, previous: Result, recorded: Chained | None) -> Chained | None:
        """See `Plugin.plan`."""
        config = request.config
        backend, ingress = config.string("backend"), config.string("ingressPolicy") or "open"
        if backend == "firewalld":
            raise InvalidConfig(
                f'{config.at("backend")} "firewalld" is not supported',
                "leave it out; rules are in a table of their own",
            )
        if backend not in ("", "iptables", "nftables"):
            raise InvalidConfig(f'{config.at("backend")} "{backend}" is none of iptables, nftables')
        if ingress not in _POLICIES:
            raise InvalidConfig(f'{config.at("ingressPolicy")} "{ingress}" is none of {", ".join(_POLICIES)}')
        addresses = [each.address.ip for each in previous.ips]
        where = (request.netns, request.owner.ifname)
        link = rt.links.link_of(*where, addresses[0], request.netns_fd) if addresses else None
        if link is None:
            if ingress != "open":
                raise InvalidConfig(
                    f'ingressPolicy "{ingress}" needs an address in prevResult that is reached by a link'
                )
            return None
        policy = Policy(
            backend=rt.best_backend(),
            owner=request.owner,
            link=LinkPolicy(
                link=link.name,
                parted=ingress != "open",
                icc=ingress != "isolated",
                trusted=None,
                shared=link.kind == "bridge",
            ),
        )
        if ingress != "isolated":
            return Chained(owner=request.owner, policies=(policy,))
        port = rt.links.port_of(request.netns, request.owner.ifname, request.netns_fd)
        name = port.name if port is not None and port.master else ""
        if policy.backend == Backend.NFTABLES:
            return Chained(owner=request.owner, policies=(replace(policy, apart=name),))
        return Chained(owner=request.owner, policies=(policy,), isolated_port=name)

    def apply(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.apply`."""
        change_rules(rt, (), state.policies)
        if state.isolated_port:
            rt.links.isolate_port(state.isolated_port)

    def undo(self, rt: Runtime, request: Request, state: Chained) -> None:
        """See `Plugin.undo`; the port is taken away by who made it."""
        change_rules(rt, state.policies, ())

    def missing(self, rt: Runtime, request: Request, state: Chained) -> list[str]:
        """See `Plugin.missing`."""
        found = missing_rules(rt, state.policies)
        if state.isolated_port and not rt.links.is_port_isolated(state.isolated_port):
            found.append(f"bridge port {state.isolated_port} is not isolated")
        return found
