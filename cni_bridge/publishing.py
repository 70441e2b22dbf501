"""Publishes ports: who may have which host port, who waits for it, and who gets it next."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cni_bridge.cni.errors import CniError, InvalidConfig, PortConflict
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.datapath import listeners
from cni_bridge.datapath.conntrack import end_connections
from cni_bridge.firewall.api import Firewall
from cni_bridge.policy import Policy, Publication, publications_of, publishing
from cni_bridge.records import Records
from cni_bridge.runtime import Runtime
from cni_bridge.tag import key_of_tag
from ipam.api import Owner

log = logging.getLogger(__name__)


def claim(
    rt: Runtime,
    owner: Owner,
    publications: Sequence[Publication],
    backend: Backend,
    *,
    caller: int | None,
    refuse: bool = True,
) -> tuple[tuple[Publication, ...], tuple[Publication, ...]]:
    """Those of the publications that the owner may serve, and those that wait for another attachment to go.

    A port that another attachment of the same container serves is waited for: Podman passes the mappings to each of
    its networks. What `caller` (see `Request`) and its ancestors listen at is theirs to give. `PortConflict` names
    whoever else has one; unless `refuse`, it is waited for too, with a warning.
    """
    if not publications:
        return (), ()
    waiting, conflicts, listened = _taken_by_others(rt, rt.firewalls[backend], owner, publications, caller)
    rest = [each for each in publications if each not in waiting and each not in conflicts]
    for each in (*conflicts.values(), *listened.values()):
        if refuse:
            raise each
        log.warning("%s does not get its port: %s", owner, each.msg)
    return tuple(each for each in rest if each not in listened), (*waiting, *conflicts)


async def hand_over(rt: Runtime, container_id: str, caller: int | None) -> None:
    """Let other attachments of the container serve what they wait for; after one is gone, outside its lock."""
    for records in rt.publishers:
        for found in list(records.of_container(container_id)):
            if found.waiting:
                async with rt.locked(found.owner):
                    await rt.with_rules(partial(_take_over, rt, records, found.owner, caller), ports=True)


def _take_over(rt: Runtime, records: Records[Any], owner: Owner, caller: int | None) -> None:
    state = records.read(owner)
    if state is None or not state.waiting:
        return
    wanted = (*publications_of(state.policies), *state.waiting)
    backend = next(each.backend for each in state.policies if each.link is not None)
    served, waiting = claim(rt, owner, wanted, backend, caller=caller, refuse=False)
    state = replace(state, policies=publishing(state.policies, served), waiting=waiting)
    records.write(state)
    for policy in state.policies:
        rt.firewalls[policy.backend].apply(policy)
    let_loopback_out(rt, state.policies)
    end_stale_connections(state.policies)


def let_loopback_out(rt: Runtime, policies: Iterable[Policy]) -> None:
    """Let ports be reached at the host's loopback addresses; after the rules that keep everybody else out."""
    for link, family in sorted(_published_at_loopback(policies)):
        rt.datapath.let_loopback_out(link, family)


def missing_loopback(rt: Runtime, policies: Iterable[Policy]) -> list[str]:
    """The links by which the host's loopback addresses do not leave, though ports are published there, in words."""
    places = sorted(_published_at_loopback(policies))
    return [words for link, family in places for words in rt.datapath.missing_loopback(link, family)]


def _published_at_loopback(policies: Iterable[Policy]) -> set[tuple[str, int]]:
    """The links, each with a family, of containers whose ports are published at loopback addresses."""
    return {
        (policy.link.link, each.address.version)
        for policy in policies
        if policy.link is not None
        for each in policy.publications
        if each.snat and (each.host_ip is None or each.host_ip.is_loopback)
    }


def end_stale_connections(policies: Iterable[Policy]) -> None:
    """Have flows that know the ports' former meaning begin anew."""
    for each in publications_of(policies):
        if each.protocol != Protocol.TCP:
            last = each.host_port + each.count - 1
            try:
                end_connections(each.address.version, each.protocol, each.host_port, last)
            except CniError as error:
                log.warning("flows to %s may still go where they went before: %s", each, error.msg)


def _taken_by_others(
    rt: Runtime, firewall: Firewall, owner: Owner, publications: Sequence[Publication], caller: int | None
) -> tuple[list[Publication], dict[Publication, PortConflict], dict[Publication, PortConflict]]:
    """Those that another attachment of the container serves, those that other containers have, and other processes."""
    waiting, conflicts = _held_by_others(rt, firewall, owner, publications)
    rest = [each for each in publications if each not in waiting and each not in conflicts]
    return waiting, conflicts, _listened_at(rest, owner.container_id, caller)


def _held_by_others(
    rt: Runtime, firewall: Firewall, owner: Owner, publications: Sequence[Publication]
) -> tuple[list[Publication], dict[Publication, PortConflict]]:
    waiting: list[Publication] = []
    conflicts: dict[Publication, PortConflict] = {}
    stale = True
    while stale:
        stale = False
        for each, tag in firewall.claimed(publications, owner).items():
            key = key_of_tag(tag)
            holder = next((found.owner for records in rt.publishers if (found := records.find(key)) is not None), None)
            if holder is None:
                log.warning("%s led to %s, of which there is no record: removed", each, tag)
                firewall.evict(key)
                stale = True
                break
            if holder.container_id == owner.container_id:
                waiting.append(each)
            else:
                conflicts[each] = PortConflict(
                    f"{each} is published for container {holder.container_id} already",
                    f"by {holder}; choose another hostPort, or remove that container",
                )
    return waiting, conflicts


def require_own_addresses(rt: Runtime, publications: Iterable[Publication]) -> None:
    """Refuse host addresses that this host does not have."""
    asked = {each.host_ip for each in publications if each.host_ip is not None and not each.host_ip.is_loopback}
    if asked and (foreign := asked - rt.datapath.own_addresses()):
        named = ", ".join(sorted(map(str, foreign)))
        raise InvalidConfig(f"runtimeConfig.portMappings: hostIP {named} is no address of this host")


def _listened_at(
    publications: Sequence[Publication], container_id: str, caller: int | None
) -> dict[Publication, PortConflict]:
    """Those at whose ports a process of the host listens, unless it does so for this container."""
    conflicts: dict[Publication, PortConflict] = {}
    allowed: set[int] | None = None
    for listener in listeners.listeners({each.protocol for each in publications}):
        for each in publications:
            if not _collide(each, listener):
                continue
            allowed = listeners.ancestors(caller) if allowed is None else allowed
            others = [
                process
                for process in listeners.holders(listener.inode)
                if process.pid not in allowed and not any(container_id in word for word in process.command)
            ]
            if others:
                conflicts[each] = PortConflict(
                    f"{others[0]} listens at port {listener.port}/{listener.protocol} of "
                    f"{listener.address or 'every address'}, which is to be published at {each}",
                    "stop it, or choose another hostPort",
                )
    return conflicts


def _collide(publication: Publication, listener: listeners.Listener) -> bool:
    if publication.condition:  # it is not for everybody, so both can be served
        return False
    if listener.protocol != publication.protocol:
        return False
    if not publication.host_port <= listener.port < publication.host_port + publication.count:
        return False
    if listener.address is None or publication.host_ip is None:
        return listener.family == publication.address.version or (listener.address is None and listener.family == 6)
    return listener.address == publication.host_ip
