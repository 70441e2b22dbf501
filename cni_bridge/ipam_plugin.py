"""The operations of `cni-ipam`, the CNI IPAM plugin: addresses for any interface plugin, as `host-local` gives them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cni_bridge.cni.ipamconf import parse_ipam
from cni_bridge.cni.mac import parse_mac
from cni_bridge.cni.netconf import parse_valid_attachments
from cni_bridge.cni.request import Command, Request
from cni_bridge.cni.result import IpEntry, Result, parse_previous, require_renderable
from cni_bridge.resolvconf import read_resolv_conf
from ipam.api import Dns, Ipam, NetnsRef, Wanted


async def add(ipam: Ipam, request: Request) -> Result:
    """Allocate the owner's addresses; a repeat gives the same ones."""
    conf = parse_ipam(request)
    require_renderable([each.family for each in conf.range_sets], request.version)
    dns = read_resolv_conf(conf.resolv_conf)
    wanted = conf.wanted(request.owner, dns, netns=_netns(request.netns), mac=parse_mac(request))
    allocation = await ipam.allocate(wanted)
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
    subnets = {each.address.network for each in await ipam.held(request.owner)}
    ours = tuple(
        each.address
        for each in (previous.ips if previous is not None else ())
        if each.address.network in subnets
        or any(offer.range_of(each.address.ip) is not None for offer in conf.range_sets)
    )
    await ipam.check(Wanted(owner=request.owner), ours)


async def collect(ipam: Ipam, request: Request) -> None:
    """Release what attachments of this network hold that are not valid any more (GC)."""
    await ipam.collect(request.owner.network, parse_valid_attachments(request))


async def status(ipam: Ipam, request: Request) -> None:
    """Fail with the reason if an ADD could not be served now."""
    await ipam.status(parse_ipam(request).wanted(request.owner, Dns()))


def _netns(path: str) -> NetnsRef | None:
    """The namespace at the path; None if there is none that could be found again."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # ValueError for a path that the system cannot have
        return None
    return NetnsRef(path=path, device=status.st_dev, inode=status.st_ino)


OPERATIONS: Mapping[Command, Callable[[Ipam, Request], Awaitable[Result | None]]] = {
    Command.ADD: add,
    Command.DEL: delete,
    Command.CHECK: check,
    Command.GC: collect,
    Command.STATUS: status,
}
