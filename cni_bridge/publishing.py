"""Publishes ports: who may have which host port, who waits for it, and who gets it next."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cni_bridge.cni.errors import CniError, InvalidConfig, PortConflict
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.datapath import listeners
from cni_bridge.datapath.conntrack import end_connections
from cni_bridge.plan import Attachment
from cni_bridge.policy import Publication
from cni_bridge.runtime import Runtime
from cni_bridge.tag import key_of_tag
from ipam.api import Owner

log = logging.getLogger(__name__)


async def claim(rt: Runtime, attachment: Attachment) -> Attachment:
    """The attachment with those of its publications that it serves, and those that wait.

    A port that another attachment of the same container serves is waited for: Podman passes the mappings to each of
    its networks. `PortConflict` names whoever else has one.
    """
    publications = attachment.publications
    if not publications:
        return attachment
    await rt.on_host(_require_own_addresses, rt, publications)
    waiting = await _held_by_the_same_container(rt, attachment.owner, publications)
    served = tuple(each for each in publications if each not in waiting)
    await rt.on_host(_require_no_listener, served, attachment.owner.container_id)
    return attachment.publishing(served, waiting)


async def hand_over(rt: Runtime, container_id: str) -> None:
    """Let other attachments of the container serve what they wait for; after one is gone, outside its lock."""
    for found in list(rt.records.of_container(container_id)):
        if not found.waiting:
            continue
        async with rt.locked(found.owner):
            attachment = rt.records.read(found.owner)
            if attachment is None or not attachment.waiting:
                continue
            whole = attachment.publishing((*attachment.publications, *attachment.waiting), ())
            try:
                served = await claim(rt, whole)
            except CniError as error:
                log.warning("%s does not take over its ports: %s", found.owner, error.msg)
                continue
            rt.records.write(served)
            async with rt.rules_locked(False):
                for policy in served.policies:
                    await rt.on_host(rt.firewalls[policy.backend].apply, policy)
            await end_stale_connections(rt, served.publications)


async def end_stale_connections(rt: Runtime, publications: Iterable[Publication]) -> None:
    """Have flows that know the ports' former meaning begin anew."""
    for each in publications:
        if each.protocol != Protocol.TCP:
            last = each.host_port + each.count - 1
            try:
                await rt.on_host(end_connections, each.address.version, each.protocol, each.host_port, last)
            except CniError as error:
                log.warning("flows to %s may still go where they went before: %s", each, error.msg)


async def _held_by_the_same_container(
    rt: Runtime, owner: Owner, publications: tuple[Publication, ...]
) -> tuple[Publication, ...]:
    firewall = rt.firewalls[Backend.NFTABLES]
    waiting = []
    for publication, tag in (await rt.on_host(firewall.claimed, publications, owner)).items():
        holder = rt.records.find(key_of_tag(tag))
        if holder is None:
            log.warning("%s led to %s, of which there is no record: removed", publication, tag)
            await rt.on_host(firewall.evict, key_of_tag(tag))
        elif holder.owner.container_id == owner.container_id:
            waiting.append(publication)
        else:
            raise PortConflict(
                f"{publication} is published for container {holder.owner.container_id} already",
                f"by {holder.owner}; choose another hostPort, or remove that container",
            )
    return tuple(waiting)


def _require_own_addresses(rt: Runtime, publications: Iterable[Publication]) -> None:
    asked = {each.host_ip for each in publications if each.host_ip is not None and not each.host_ip.is_loopback}
    if asked and (foreign := asked - rt.datapath.own_addresses()):
        named = ", ".join(sorted(map(str, foreign)))
        raise InvalidConfig(f"runtimeConfig.portMappings: hostIP {named} is no address of this host")


def _require_no_listener(publications: tuple[Publication, ...], container_id: str) -> None:
    """Refuse ports at which a process of the host listens, unless it does so for this container."""
    if not publications:
        return
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
