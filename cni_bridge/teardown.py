"""Takes attachments away: their rules, links and addresses, with a record of them or without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from cni_bridge.cni.errors import CniError
from cni_bridge.cni.fields import Fields
from cni_bridge.cni.netconf import parse_bridge_name, parse_ipam_type
from cni_bridge.cni.request import Request
from cni_bridge.failures import Failures
from cni_bridge.plan import Attachment
from cni_bridge.policy import Policy
from cni_bridge.publishing import end_stale_connections
from cni_bridge.runtime import Runtime
from ipam.api import Lease, Owner

log = logging.getLogger(__name__)


async def tear_down(rt: Runtime, attachment: Attachment) -> None:
    """Remove the attachment's rules and links."""
    failures = Failures()
    await failures.collect(change_rules(rt, attachment.policies, ()))
    await failures.collect(end_stale_connections(rt, attachment.policies))
    await failures.collect(rt.on_host(rt.datapath.detach, attachment))
    failures.raise_any(f"removal of {attachment.owner}")


async def tear_down_unrecorded(rt: Runtime, request: Request) -> bool:
    """Remove what the owner may have without a record; whether there was something.

    Mostly there is nothing, for runtimes repeat DEL. Only where a lease or a link shows that there was something, the
    rules are searched for the owner's mark.
    """
    owner, bridge, failures = request.owner, lenient(parse_bridge_name, request), Failures()
    held = await failures.collect(_held(rt, request))
    linked = await failures.collect(rt.on_host(rt.datapath.detach_unrecorded, owner, bridge, request.netns))
    for firewall in rt.firewalls.values() if held or linked else ():
        await failures.collect(rt.on_host(firewall.forget, owner))
    failures.raise_any(f"removal of {owner}, of which there is no record")
    return bool(held or linked)


async def forget_link(rt: Runtime, network: str) -> None:
    """Remove what holds for the network's link once nobody is attached to it.

    An attachment is recorded before its rules are applied, and they are under the same lock.
    """
    if not rt.is_attached_to(network):
        async with rt.rules_locked(True):
            if not rt.is_attached_to(network):
                links = {link for each in rt.firewalls.values() for link in await rt.on_host(each.forget_link, network)}
                for policy in _link_policies(rt, links):  # of another network on the same bridge
                    await rt.on_host(rt.firewalls[policy.backend].apply, policy)


def _link_policies(rt: Runtime, links: set[str]) -> Iterable[Policy]:
    """One policy for each of these links that an attachment uses, with nothing but the link."""
    found = {}
    for records in rt.all_records if links else ():
        for state in records.all():
            for each in state.policies:
                if each.link is not None and each.link.shared and each.link.link in links:
                    found[each.link.link] = Policy(backend=each.backend, owner=each.owner, link=each.link)
    return found.values()


async def change_rules(rt: Runtime, former: Iterable[Policy], wanted: Iterable[Policy]) -> None:
    """Replace the former rules: the wanted ones hold throughout, even where a former one had the same element."""
    wanted, failures = list(wanted), Failures()
    stale = [each for each in former if each not in wanted]
    for policy in wanted:
        await rt.on_host(rt.firewalls[policy.backend].apply, policy)
    for policy in stale:
        await failures.collect(rt.on_host(rt.firewalls[policy.backend].remove, policy))
    for policy in wanted if stale else ():
        await rt.on_host(rt.firewalls[policy.backend].apply, policy)
    failures.raise_any("removal of rules")


async def _held(rt: Runtime, request: Request) -> tuple[Lease, ...]:
    async with rt.ipam(request, lenient(parse_ipam_type, request)) as ipam:
        return await ipam.held(request.owner) if ipam is not None else ()


async def release(rt: Runtime, request: Request, ipam_type: str, owner: Owner) -> None:
    async with rt.ipam(request, ipam_type) as ipam:
        if ipam is not None:
            await ipam.release(owner)


def lenient(parse: Callable[[Fields], str], request: Request) -> str:
    """What a part of the configuration says; empty if it has become invalid, which must not keep DEL from its work."""
    try:
        return parse(request.config)
    except CniError as error:
        log.warning("going on without a part of the configuration: %s", error.msg)
        return ""
