"""The operations of a chained plugin (CNI SPEC, section 3), which adds to an attachment that another one made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from cni_bridge.chained_state import Chained
from cni_bridge.cni.errors import CheckFailed, InvalidConfig
from cni_bridge.cni.netconf import parse_valid_attachments
from cni_bridge.cni.request import Command, Request
from cni_bridge.cni.result import Result, parse_previous
from cni_bridge.failures import Failures
from cni_bridge.restoring import is_to_be_restored, restore_if_flushed
from cni_bridge.rules import forget_link
from cni_bridge.runtime import Runtime
from cni_bridge.undo import Undo
from ipam.api import Owner

Operation = Callable[[Runtime, Request], Awaitable[Result | None]]


class Plugin(ABC):
    """What differs from one chained plugin to the other. Nothing but `apply` and `undo` changes anything.

    All but `released` runs in the kernel thread.
    """

    name: str
    claims_ports = False

    @abstractmethod
    def plan(self, rt: Runtime, request: Request, previous: Result, recorded: Chained | None) -> Chained | None:
        """What the configuration asks for; None if that is nothing. `recorded` is from an earlier ADD."""

    @abstractmethod
    def apply(self, rt: Runtime, request: Request, state: Chained) -> None:
        """Make it so; a repeat changes nothing."""

    @abstractmethod
    def undo(self, rt: Runtime, request: Request, state: Chained) -> None:
        """Take it back, whatever of it is gone; the request is that of DEL or GC."""

    @abstractmethod
    def missing(self, rt: Runtime, request: Request, state: Chained) -> list[str]:
        """What of it differs, in words."""

    def result(self, rt: Runtime, previous: Result, state: Chained | None, recorded: Chained | None) -> Result:
        """The result of ADD; the one before, unless there is something to tell."""
        return previous

    async def released(self, rt: Runtime, request: Request, state: Chained) -> None:  # noqa: B027 - most have nothing to do then
        """After it was taken back and forgotten, outside of the owner's lock."""


def operations(plugin: Plugin) -> Mapping[Command, Operation]:
    """The plugin's operations."""
    return {
        Command.ADD: partial(_add, plugin),
        Command.DEL: partial(_delete, plugin),
        Command.CHECK: partial(_check, plugin),
        Command.GC: partial(_collect, plugin),
        Command.STATUS: partial(_status, plugin),
    }


async def _add(plugin: Plugin, rt: Runtime, request: Request) -> Result:
    previous = _require_previous(plugin, request)
    async with rt.locked(request.owner), Undo() as undo:
        making = partial(_make, plugin, rt, request, previous, undo)
        made = await rt.with_rules(making, ports=plugin.claims_ports)
        if made is None:
            await restore_if_flushed(rt, request.owner)
            made = await rt.with_rules(partial(making, go_on=True), ports=plugin.claims_ports)
            assert made is not None
        return made


def _make(
    plugin: Plugin, rt: Runtime, request: Request, previous: Result, undo: Undo, *, go_on: bool = False
) -> Result | None:
    """The result of ADD. None if nothing was done, because others' rules have to be restored first."""
    if not go_on and is_to_be_restored(rt, request.owner):
        return None
    records = rt.chained[plugin.name]
    recorded = records.read(request.owner)
    state = plugin.plan(rt, request, previous, recorded)
    if recorded is not None and recorded != state:
        plugin.undo(rt, request, recorded)
        records.remove(request.owner)
    if state is not None:
        if recorded != state:
            undo.push(partial(forget_link, rt, request.owner.network))
            undo.push(partial(rt.on_host, records.remove, request.owner))
            undo.push(partial(rt.on_host, plugin.undo, rt, request, state))
        records.write(state)
        plugin.apply(rt, request, state)
    return plugin.result(rt, previous, state, recorded)


async def _delete(plugin: Plugin, rt: Runtime, request: Request) -> None:
    async with rt.locked(request.owner):
        state = await rt.with_rules(partial(_unmake, plugin, rt, request, request.owner))
    await forget_link(rt, request.owner.network)  # whatever was found: a DEL that was killed has not come to it
    if state is not None:
        await plugin.released(rt, request, state)


def _unmake(plugin: Plugin, rt: Runtime, request: Request, owner: Owner) -> Chained | None:
    """Take the owner's part back, and forget it; what it was."""
    state = rt.chained[plugin.name].read(owner)
    if state is not None:
        plugin.undo(rt, request, state)
    rt.chained[plugin.name].remove(owner)
    return state


async def _check(plugin: Plugin, rt: Runtime, request: Request) -> None:
    previous = _require_previous(plugin, request)
    async with rt.locked(request.owner):
        found = await rt.on_host(_missing, plugin, rt, request, previous)
    if found:
        raise CheckFailed(f"{request.owner} is not as {plugin.name} made it: {found[0]}", "\n".join(found))


def _missing(plugin: Plugin, rt: Runtime, request: Request, previous: Result) -> list[str]:
    state = rt.chained[plugin.name].read(request.owner)
    if state is not None:
        return plugin.missing(rt, request, state)
    if plugin.plan(rt, request, previous, None) is not None:
        raise CheckFailed(f"{request.owner} has nothing of {plugin.name}: there is no record of it", "")
    return []


async def _collect(plugin: Plugin, rt: Runtime, request: Request) -> None:
    network, keep, failures = request.owner.network, parse_valid_attachments(request), Failures()
    records = rt.chained[plugin.name]
    for owner in set(records.drafts(network)) - keep:
        async with rt.locked(owner):
            if owner in records.drafts(network):
                records.remove(owner)
    for stale in list(records.all(network)):
        if stale.owner not in keep:
            await failures.collect(_collect_one(plugin, rt, request, stale))
    await failures.collect(forget_link(rt, network))
    failures.raise_any(f'GC of network "{network}" by {plugin.name}')


async def _collect_one(plugin: Plugin, rt: Runtime, request: Request, stale: Chained) -> None:
    async with rt.locked(stale.owner):
        await rt.with_rules(partial(_unmake, plugin, rt, request, stale.owner))
    await _after(plugin, rt, request, stale)


async def _after(plugin: Plugin, rt: Runtime, request: Request, state: Chained) -> None:
    await forget_link(rt, state.owner.network)
    await plugin.released(rt, request, state)


async def _status(plugin: Plugin, rt: Runtime, request: Request) -> None:
    rt.chained[plugin.name].require_writable()


def _require_previous(plugin: Plugin, request: Request) -> Result:
    previous = parse_previous(request.config, request.version)
    if previous is None:
        raise InvalidConfig("Required prevResult missing", f"{plugin.name} must be called as a chained plugin")
    return previous
