"""Takes attachments away: their rules, links and addresses, with a record of them or without."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cni_bridge.cni.errors import CniError
from cni_bridge.cni.fields import Fields
from cni_bridge.cni.netconf import parse_bridge_name, parse_ipam_type
from cni_bridge.cni.request import Request
from cni_bridge.failures import Failures
from cni_bridge.plan import Attachment, links_of
from cni_bridge.publishing import end_stale_connections
from cni_bridge.rules import change_rules
from cni_bridge.runtime import Runtime
from cni_bridge.trace import step
from ipam.api import Lease, Owner

log = logging.getLogger(__name__)


async def tear_down(rt: Runtime, attachment: Attachment) -> None:
    """Remove the attachment's links and rules, as `detach` does; whoever does holds its owner's lock too."""
    await remove_links(rt, attachment)
    await _retire(rt, attachment)


async def detach(rt: Runtime, request: Request, attachment: Attachment, failures: Failures) -> None:
    """Remove all of the attachment: links, then rules, then addresses.

    So nobody sends without the rules, or from an address that he has no more; a port that cannot be deleted is brought
    down. No address is given back as long as rules lead to it, or are made anew from the record.
    """
    if not await failures.did(remove_links(rt, attachment)):
        await failures.collect(rt.on_host(rt.datapath.silence, attachment.port.name))
    if await failures.did(_retire(rt, attachment)) and attachment.ipam_type:
        await failures.collect(release(rt, request, attachment.ipam_type, attachment.owner))


async def _retire(rt: Runtime, attachment: Attachment) -> None:
    """Remove the rules, and have nobody make them anew; whoever does shares the lock of the rules."""
    await remove_rules(rt, attachment)
    rt.records.retire(attachment.owner)


async def take_back(rt: Runtime, request: Request, ipam_type: str) -> None:
    """Remove the rules and then the addresses of an ADD that failed, as far as it has come to them."""
    async with rt.rules_lock.held(alone=False):
        recorded = rt.records.read(request.owner)
        if recorded is not None:
            try:
                await remove_rules(rt, recorded)
            except CniError as error:  # of a firewall that does not work, there are none
                log.warning("rules of %s may be left: %s", request.owner, error.msg)
            rt.records.retire(request.owner)
    await release(rt, request, ipam_type, request.owner)


async def remove_links(rt: Runtime, attachment: Attachment) -> None:
    """Remove the attachment's links."""
    with step("links"):
        await rt.delete_links(links_of(attachment))


async def remove_rules(rt: Runtime, attachment: Attachment) -> None:
    """Remove the attachment's rules, and the flows that know them."""
    with step("rules"):
        await rt.on_host(_remove_rules, rt, attachment)


def _remove_rules(rt: Runtime, attachment: Attachment) -> None:
    try:
        change_rules(rt, attachment.policies, ())
    finally:
        end_stale_connections(attachment.policies)


async def tear_down_unrecorded(rt: Runtime, request: Request) -> None:
    """Remove what the owner may have without a record.

    Mostly there is nothing, for runtimes repeat DEL. Only where a lease or a link shows that there was something, the
    rules are searched for the owner's mark.
    """
    owner, bridge, failures = request.owner, lenient(parse_bridge_name, request), Failures()
    held = await failures.collect(_held(rt, request))
    linked = await failures.collect(
        rt.on_host(rt.datapath.detach_unrecorded, owner, bridge, request.netns, request.netns_fd)
    )
    for firewall in rt.firewalls.values() if held or linked else ():
        await failures.collect(rt.on_host(firewall.forget, owner))
    failures.raise_any(f"removal of {owner}, of which there is no record")


async def _held(rt: Runtime, request: Request) -> tuple[Lease, ...]:
    async with rt.ipam(request, lenient(parse_ipam_type, request)) as ipam:
        return await ipam.held(request.owner) if ipam is not None else ()


async def release(rt: Runtime, request: Request, ipam_type: str, owner: Owner) -> None:
    """Give the owner's addresses back; given back already is success."""
    with step("ipam"):
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
