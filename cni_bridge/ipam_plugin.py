"""The operations of `cni-ipam`, the CNI IPAM plugin: addresses for any interface plugin, as `host-local` gives them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from cni_bridge.cni.ipamconf import parse_ipam
from cni_bridge.cni.netconf import parse_valid_attachments
from cni_bridge.cni.request import Command, Request
from cni_bridge.cni.result import IpEntry, Result, parse_previous, require_renderable
from cni_bridge.resolvconf import read_resolv_conf
from ipam.api import Dns, Ipam, Wanted


async def add(ipam: Ipam, request: Request) -> Result:
    """Allocate the owner's addresses; a repeat gives the same ones."""
    conf = parse_ipam(request)
    require_renderable([each.family for each in conf.range_sets], request.version)
    allocation = await ipam.allocate(conf.wanted(request.owner, read_resolv_conf(conf.resolv_conf)))
    return Result(
        ips=tuple(IpEntry(address=each.address, gateway=each.gateway) for each in allocation.leases),
        routes=allocation.routes,
        dns=allocation.dns,
    )


async def delete(ipam: Ipam, request: Request) -> None:
    """Release what the owner holds, whatever the configuration says now."""
    await ipam.release(request.owner)


async def check(ipam: Ipam, request: Request) -> None:
    """Fail unless the owner holds an address, and those that `prevResult` names from these ranges."""
    conf = parse_ipam(request)
    previous = parse_previous(request.config, request.version)
    ours = tuple(
        each.address
        for each in (previous.ips if previous is not None else ())
        if any(offer.range_of(each.address.ip) is not None for offer in conf.range_sets)
    )
    await ipam.check(Wanted(owner=request.owner), ours)


async def collect(ipam: Ipam, request: Request) -> None:
    """Release what attachments of this network hold that are not valid any more (GC)."""
    await ipam.collect(request.owner.network, parse_valid_attachments(request))


async def status(ipam: Ipam, request: Request) -> None:
    """Fail with the reason if an ADD could not be served now."""
    await ipam.status(parse_ipam(request).wanted(request.owner, Dns()))


OPERATIONS: Mapping[Command, Callable[[Ipam, Request], Awaitable[Result | None]]] = {
    Command.ADD: add,
    Command.DEL: delete,
    Command.CHECK: check,
    Command.GC: collect,
    Command.STATUS: status,
}
