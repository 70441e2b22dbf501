"""The plugin `loopback`: brings the container's loopback interface up."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_interface

from cni_bridge.chained.lifecycle import Operation
from cni_bridge.cni.errors import CheckFailed, InvalidNetns
from cni_bridge.cni.request import Command, Request
from cni_bridge.cni.result import InterfaceEntry, IpEntry, Result, parse_previous
from cni_bridge.datapath import netns
from cni_bridge.runtime import Runtime

_LOOPBACK = "lo"
_ADDRESSES = (ip_interface("127.0.0.1/8"), ip_interface("::1/128"))


async def add(rt: Runtime, request: Request) -> Result:
    """Bring it up; a repeat changes nothing."""
    with netns.opened(request.netns, request.netns_fd) as target:
        await rt.on_host(rt.links.set_up, target, _LOOPBACK, up=True)
    previous = parse_previous(request.config, request.version)
    if previous is not None:
        return previous
    families = (4,) if request.version.family == 0 else (4, 6)
    return Result(
        interfaces=(InterfaceEntry(name=_LOOPBACK, mac="00:00:00:00:00:00", sandbox=request.netns),),
        ips=tuple(IpEntry(address=each, interface=0) for each in _ADDRESSES if each.version in families),
    )


async def delete(rt: Runtime, request: Request) -> None:
    """Take it down; with the namespace, it is gone."""
    with suppress(InvalidNetns), netns.opened(request.netns, request.netns_fd) as target:
        await rt.on_host(rt.links.set_up, target, _LOOPBACK, up=False)


async def check(rt: Runtime, request: Request) -> None:
    """Fail unless it is up."""
    with netns.opened(request.netns, request.netns_fd) as target:
        if not await rt.on_host(rt.links.is_up, target, _LOOPBACK):
            raise CheckFailed(f"interface {_LOOPBACK} in {request.netns} is down", "")


async def nothing(rt: Runtime, request: Request) -> None:
    """There is nothing to collect, and nothing that could be missing."""


OPERATIONS: Mapping[Command, Operation] = {
    Command.ADD: add,
    Command.DEL: delete,
    Command.CHECK: check,
    Command.GC: nothing,
    Command.STATUS: nothing,
}
