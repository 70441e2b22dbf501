"""Publishes ports: who may have which host port, who waits for it, and who gets it next."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cni_bridge.cni.errors import CniError, InvalidConfig, PortConflict
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.datapath import listeners
from cni_bridge.datapath.conntrack import end_connections
from cni_bridge.policy import Policy, Publication, publications_of, publishing
from cni_bridge.records import Records
from cni_bridge.runtime import Runtime
from cni_bridge.tag import key_of_tag
from ipam.api import Owner

log = logging.getLogger(__name__)


async def claim(
    rt: Runtime, owner: Owner, publications: Sequence[Publication], *, refuse: bool = True
) -> tuple[tuple[Publication, ...], tuple[Publication, ...]]:
    """Those of the publications that the owner may serve, and those that wait for another attachment to go.

    A port that another attachment of the same container serves is waited for: Podman passes the mappings to each of
    its networks. `PortConflict` names whoever else has one; unless `refuse`, it is waited for too, with a warning.
    """
    if not publications:
        return (), ()
    await rt.on_host(_require_own_addresses, rt, publications)
    waiting: list[Publication] = []
    for each in publications:
        try:
            if await _is_held_by_the_same_container(rt, owner, each):
                waiting.append(each)
            else:
                await rt.on_host(_require_no_listener, [each], owner.container_id)
        except PortConflict as error:
            if refuse:
                raise
            log.warning("%s does not get its port: %s", owner, error.msg)
            if error.owned:
                waiting.append(each)
    return tuple(each for each in publications if each not in waiting), tuple(waiting)


async def hand_over(rt: Runtime, container_id: str) -> None:
    """Let other attachments of the container serve what they wait for; after one is gone, outside its lock."""
    for records in rt.publishers:
        for found in list(records.of_container(container_id)):
            if found.waiting:
                async with rt.locked(found.owner):
                    await _take_over(rt, records, found.owner)


async def _take_over(rt: Runtime, records: Records[Any], owner: Owner) -> None:
    state = records.read(owner)
    if state is None or not state.waiting:
        return
    wanted = (*publications_of(state.policies), *state.waiting)
    served, waiting = await claim(rt, owner, wanted, refuse=False)
    state = replace(state, policies=publishing(state.policies, served), waiting=waiting)
    records.write(state)
    async with rt.rules_locked(False):
        for policy in state.policies:
            await rt.on_host(rt.firewalls[policy.backend].apply, policy)
    await rt.on_host(let_loopback_out, rt, state.policies)
    await end_stale_connections(rt, state.policies)


def let_loopback_out(rt: Runtime, policies: Iterable[Policy]) -> None:
    """Let ports be reached at the host's IPv4 loopback addresses; after the rules that keep everybody else out."""
    for policy in policies:
        places = [each.host_ip for each in policy.publications if each.snat and each.address.version == 4]
        if policy.link is not None and any(each is None or each.is_loopback for each in places):
            rt.datapath.let_loopback_out(policy.link.link)


async def end_stale_connections(rt: Runtime, policies: Iterable[Policy]) -> None:
    """Have flows that know the ports' former meaning begin anew."""
    for each in publications_of(policies):
        if each.protocol != Protocol.TCP:
            last = each.host_port + each.count - 1
            try:
                await rt.on_host(end_connections, each.address.version, each.protocol, each.host_port, last)
            except CniError as error:
                log.warning("flows to %s may still go where they went before: %s", each, error.msg)


async def _is_held_by_the_same_container(rt: Runtime, owner: Owner, publication: Publication) -> bool:
    """Whether another attachment of the container serves it; `PortConflict` if another container does."""
    firewall = rt.firewalls[Backend.NFTABLES]
    while tag := (await rt.on_host(firewall.claimed, [publication], owner)).get(publication, ""):
        key = key_of_tag(tag)
        holder = next((found.owner for each in rt.publishers if (found := each.find(key)) is not None), None)
        if holder is None:
            log.warning("%s led to %s, of which there is no record: removed", publication, tag)
            await rt.on_host(firewall.evict, key)
            continue
        if holder.container_id == owner.container_id:
            return True
        raise PortConflict(
            f"{publication} is published for container {holder.container_id} already",
            f"by {holder}; choose another hostPort, or remove that container",
            owned=True,
        )
    return False


def _require_own_addresses(rt: Runtime, publications: Iterable[Publication]) -> None:
    asked = {each.host_ip for each in publications if each.host_ip is not None and not each.host_ip.is_loopback}
    if asked and (foreign := asked - rt.datapath.own_addresses()):
        named = ", ".join(sorted(map(str, foreign)))
        raise InvalidConfig(f"runtimeConfig.portMappings: hostIP {named} is no address of this host")


def _require_no_listener(publications: Sequence[Publication], container_id: str) -> None:
    """Refuse ports at which a process of the host listens, unless it does so for this container."""
    allowed: set[int] | None = None
    for listener in listeners.listeners({each.protocol for each in publications}):
        for each in publications:
            if not _collide(each, listener):
                continue
            allowed = listeners.ancestors() if allowed is None else allowed
            others = [
                process
                for process in listeners.holders(listener.inode)
                if process.pid not in allowed and not any(container_id in word for word in process.command)
            ]
            if others:
                raise PortConflict(
                    f"{others[0]} listens at port {listener.port}/{listener.protocol} of "
                    f"{listener.address or 'every address'}, which is to be published at {each}",
                    "stop it, or choose another hostPort",
                )


def _collide(publication: Publication, listener: listeners.Listener) -> bool:
    if listener.protocol != publication.protocol:
        return False
    if not publication.host_port <= listener.port < publication.host_port + publication.count:
        return False
    if listener.address is None or publication.host_ip is None:
        return listener.family == publication.address.version or (listener.address is None and listener.family == 6)
    return listener.address == publication.host_ip
