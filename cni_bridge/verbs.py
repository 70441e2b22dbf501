"""The operations of the plugin, each as a short story over IPAM, datapath, firewall and records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial

from cni_bridge import waiting
from cni_bridge.attaching import Attaching
from cni_bridge.beside import both
from cni_bridge.cni.errors import CheckFailed, CniError, Code, InvalidConfig, InvalidNetns, KernelRefused
from cni_bridge.cni.ipamconf import IpamConf, parse_ipam
from cni_bridge.cni.netconf import (
    MIN_IPV6_MTU,
    Backend,
    NetConf,
    parse_ipam_type,
    parse_netconf,
    parse_valid_attachments,
)
from cni_bridge.cni.request import Command, Request
from cni_bridge.cni.result import Result, require_renderable
from cni_bridge.datapath import netns
from cni_bridge.datapath.bridge import MAX_PORTS
from cni_bridge.datapath.tuning import require_allowed_here
from cni_bridge.failures import Failures
from cni_bridge.plan import Attachment, build_result
from cni_bridge.policy import publications_of
from cni_bridge.publishing import hand_over
from cni_bridge.resolvconf import read_resolv_conf
from cni_bridge.restoring import restore, restore_if_flushed
from cni_bridge.rules import forget_link, missing_rules
from cni_bridge.runtime import Runtime
from cni_bridge.tag import container_mac, host_ifname
from cni_bridge.teardown import detach, lenient, release, take_back, tear_down, tear_down_unrecorded
from cni_bridge.trace import step
from cni_bridge.undo import Undo
from ipam.api import Allocation, Dns, Ipam, Owner, Wanted
from ipam.errors import LeaseMissing

log = logging.getLogger(__name__)

_READY_PATIENCE = 5.0  # seconds


async def add(rt: Runtime, request: Request) -> Result:
    """Attach the container; a repeat gives the same answer, and a failure leaves nothing that was not there."""
    conf = parse_netconf(request)
    addresses = _address_conf(rt, request, conf)
    if not conf.ipam_type or addresses.range_sets:
        _require_fitting(conf, [each.family for each in addresses.range_sets])
    require_allowed_here(conf.tuning)
    dns = read_resolv_conf(addresses.resolv_conf)
    with netns.opened(request.netns, request.netns_fd) as target:
        _refuse_own_netns(request, target)
        mac = conf.mac or container_mac(request.owner)
        wanted = addresses.wanted(request.owner, dns, netns=target.ref, mac=mac)
        async with rt.locked(request.owner), rt.ipam(request, conf.ipam_type) as ipam:
            recorded = await _earlier_attachment(rt, request, conf, target)
            # A repeat that fails takes nothing back, for the container may be using what an earlier request made.
            async with Undo(active=recorded is None) as undo:
                undo.push(partial(forget_link, rt, request.owner.network))
                undo.push(partial(rt.on_host, rt.records.remove, request.owner))
                undo.push(partial(take_back, rt, request, conf.ipam_type))
                if recorded is None:
                    rt.records.announce(request.owner, conf.ipam_type)
                with ExitStack() as unfinished:
                    attaching = Attaching(rt, request, conf, addresses, target, recorded, undo)
                    unfinished.callback(attaching.close)
                    asking = _allocate(rt, request, conf, ipam, wanted, recorded)
                    if conf.ipam_type and rt.find_ipam(request, conf.ipam_type).executes:
                        # It would go on by itself if this process were killed, and come after whoever repeats this.
                        allocation = await asking
                        await rt.on_host(attaching.record, allocation)
                        flushed = await rt.on_host(attaching.connect)
                    else:  # the veth is made while the addresses are being chosen: neither needs the other
                        allocation, flushed = await both(asking, rt.on_host(attaching.connect))
                    if flushed:
                        await restore_if_flushed(rt)
                    made = await rt.with_rules(partial(attaching.complete, allocation), ports=bool(conf.ports))
                    if not made.ready:
                        await _finish(rt, request, attaching)
                    if not attaching.is_held:
                        await rt.with_rules(attaching.hold, ports=bool(conf.ports))
                    unfinished.pop_all()
                    rt.leave_to_host(attaching.end)
    return build_result(conf, attaching.attachment, made, request.netns)


async def delete(rt: Runtime, request: Request) -> None:
    """Detach the container: does all it can, whatever of the attachment or the request is gone."""
    owner, failures = request.owner, Failures()
    async with rt.locked(owner):
        recorded = _readable_record(rt, owner)
        async with rt.rules_lock.held(alone=False):
            if recorded is not None:
                await detach(rt, request, recorded, failures)
            else:
                await failures.collect(tear_down_unrecorded(rt, request))
                ipam_type = rt.records.announced(owner) or lenient(parse_ipam_type, request)
                await failures.collect(release(rt, request, ipam_type, owner))
            failures.raise_any(f"DEL of {owner}")
            rt.records.remove(owner)
    await forget_link(rt, owner.network)  # whatever was found: a DEL that was killed has not come to it
    if recorded is None or publications_of(recorded.policies):
        await hand_over(rt, owner.container_id, request.caller)


async def check(rt: Runtime, request: Request) -> None:
    """Compare the attachment with what ADD made and with the result that the runtime holds."""
    conf = parse_netconf(request)
    if conf.prev_result is None:
        raise InvalidConfig("Required prevResult missing", "CHECK compares with the result of ADD")
    with netns.opened(request.netns, request.netns_fd) as target:
        async with rt.locked(request.owner), rt.ipam(request, conf.ipam_type) as ipam:
            attachment = rt.records.read(request.owner)
            if attachment is None:
                held = await ipam.held(request.owner) if ipam is not None else ()
                code = Code.CHECK_FAILED if held else Code.UNKNOWN_CONTAINER
                raise CniError(code, f"{request.owner} is not attached: there is no record of it")
            found = [] if attachment.netns.same_as(target.ref) else ["CNI_NETNS is another namespace than that of ADD"]
            if ipam is not None:
                try:
                    await ipam.check(Wanted(owner=request.owner), attachment.container.addresses)
                except LeaseMissing as error:
                    found.append(str(error))
            found += await rt.on_host(rt.datapath.missing, attachment, conf.prev_result, target)
            found += await rt.on_host(missing_rules, rt, attachment.policies)
    if found:
        raise CheckFailed(f"{request.owner} is not as it was attached: {found[0]}", "\n".join(found))


async def collect(rt: Runtime, request: Request) -> None:
    """Remove what belongs to attachments of this network that are not valid any more (GC)."""
    network, keep, failures = request.owner.network, parse_valid_attachments(request), Failures()
    await failures.collect(restore_if_flushed(rt))
    for owner in set(rt.records.drafts(network)) - keep:
        await failures.collect(_forget_draft(rt, request, owner))
    for attachment in list(rt.records.all(network)):
        if attachment.owner not in keep:
            await failures.collect(_collect_one(rt, request, attachment))
    waiting.require()
    left = {each.owner for each in rt.records.all(network)}  # there may be rules that lead to their addresses
    await failures.collect(_collect_addresses(rt, request, keep | left))
    await failures.collect(rt.on_host(rt.datapath.collect, network, keep))
    for firewall in rt.firewalls.values():
        await failures.collect(rt.on_host(firewall.collect, network, keep))
    await failures.collect(rt.on_host(rt.records.forget_unreadable, network, keep))  # found by their marks
    await failures.collect(forget_link(rt, network))
    await failures.collect(restore(rt, network, keep))
    await failures.collect(rt.on_host(rt.sweep_locks, network))
    failures.raise_any(f'GC of network "{network}"')


async def status(rt: Runtime, request: Request) -> None:
    """Fail with the reason if an ADD could not be served now."""
    conf = parse_netconf(request)
    addresses = _address_conf(rt, request, conf)
    rt.records.require_writable()
    async with rt.ipam(request, conf.ipam_type) as ipam:
        if ipam is not None:
            await ipam.status(addresses.wanted(request.owner, Dns(), mac=conf.mac))
    ports = await rt.on_host(rt.datapath.count_ports, conf.bridge)
    if ports >= MAX_PORTS:
        raise CniError(Code.NOT_AVAILABLE, f"bridge {conf.bridge} is full: it has {ports} ports")
    needed = {Backend.NFTABLES} if conf.mac_spoof_check or conf.ip_spoof_check else set()
    if conf.ip_masq or conf.isolated or conf.internal or not conf.icc:
        needed.add(conf.ip_masq_backend or await rt.default_backend())
    for backend in needed:
        reason = await rt.on_host(rt.firewalls[backend].unusable)
        if reason:
            without = [each for each in rt.records.all(request.owner.network) if _rests_on(each, backend)]
            code = Code.LIMITED_CONNECTIVITY if without else Code.NOT_AVAILABLE
            raise CniError(
                code, f"firewall {backend} does not work here: {reason}", "\n".join(str(each.owner) for each in without)
            )


OPERATIONS: Mapping[Command, Callable[[Runtime, Request], Awaitable[Result | None]]] = {
    Command.ADD: add,
    Command.DEL: delete,
    Command.CHECK: check,
    Command.GC: collect,
    Command.STATUS: status,
}


async def _earlier_attachment(rt: Runtime, request: Request, conf: NetConf, target: netns.Netns) -> Attachment | None:
    """What an earlier ADD of this owner attached, if this one asks for the same; anything else is removed first."""
    recorded = rt.records.read(request.owner)
    if recorded is None:
        await _tear_down_announced(rt, request, conf)
        return None
    if recorded.netns.same_as(target.ref) and recorded.request == request.digest:
        return recorded
    log.info("%s was attached otherwise: attaching it anew", request.owner)
    async with rt.rules_lock.held(alone=False):  # nobody makes rules anew from the record until it is gone
        await tear_down(rt, recorded)
        await _release_unless_given_again(rt, request, conf, recorded.ipam_type)
        rt.records.remove(request.owner)
    return None


async def _release_unless_given_again(rt: Runtime, request: Request, conf: NetConf, ipam_type: str) -> None:
    """Give back what the owner has of that IPAM; our own gives the same address again, if it is asked."""
    if ipam_type and not all(each and rt.find_ipam(request, each).own for each in (ipam_type, conf.ipam_type)):
        await release(rt, request, ipam_type, request.owner)


async def _tear_down_announced(rt: Runtime, request: Request, conf: NetConf) -> None:
    """Remove what an ADD or a DEL left that was killed when it had no rules yet, or none any more."""
    ipam_type = rt.records.announced(request.owner)
    if ipam_type is None:
        return
    log.info("%s was not attached, or detached, to the end: attaching it anew", request.owner)
    await rt.on_host(rt.datapath.detach_unrecorded, request.owner, "", "")
    await _release_unless_given_again(rt, request, conf, ipam_type)


async def _allocate(
    rt: Runtime, request: Request, conf: NetConf, ipam: Ipam | None, wanted: Wanted, recorded: Attachment | None
) -> Allocation:
    """The addresses of the attachment; other plugins' IPAMs refuse a repeat, so what they gave is remembered."""
    if ipam is None:
        return Allocation(leases=())
    if recorded is not None and not rt.find_ipam(request, conf.ipam_type).own:
        return recorded.allocation
    with step("ipam"):
        allocation = await ipam.allocate(wanted)
    _require_fitting(conf, [each.address.version for each in allocation.leases])
    return allocation


async def _finish(rt: Runtime, request: Request, attaching: Attaching) -> None:
    """Finish what is not ready: a port comes up in a millisecond, duplicate address detection takes a second or two."""
    pause = 0.0005
    try:
        async with asyncio.timeout(_READY_PATIENCE):
            while not await rt.on_host(attaching.finish):
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.05)
    except TimeoutError:
        raise KernelRefused(
            f"{host_ifname(request.owner)} is not ready after {_READY_PATIENCE:g} s: its bridge port has no carrier, "
            "or duplicate address detection does not end"
        ) from None


def _address_conf(rt: Runtime, request: Request, conf: NetConf) -> IpamConf:
    """What the configuration says of addresses, where it is ours to read; another plugin reads its own."""
    if not conf.ipam_type or not rt.find_ipam(request, conf.ipam_type).own:
        return IpamConf()
    return parse_ipam(request, first_may_be_claimed=not conf.is_gateway)


def _rests_on(attachment: Attachment, backend: Backend) -> bool:
    return any(policy.backend == backend for policy in attachment.policies)


def _require_fitting(conf: NetConf, families: list[int]) -> None:
    """Refuse addresses, by their families, that the result's version or the MTU does not allow."""
    require_renderable(families, conf.version)
    if 6 in families and 0 < conf.mtu < MIN_IPV6_MTU:
        raise InvalidConfig(f"mtu {conf.mtu} is below {MIN_IPV6_MTU}, the least that IPv6 works with (RFC 8200)")


async def _collect_one(rt: Runtime, request: Request, attachment: Attachment) -> None:
    async with rt.locked(attachment.owner):
        current = rt.records.read(attachment.owner)
        if current is not None:
            log.info("collecting %s", attachment.owner)
            failures = Failures()
            async with rt.rules_lock.held(alone=False):
                await detach(rt, request, current, failures)
                failures.raise_any(f"removal of {current.owner}")
                rt.records.remove(current.owner)


async def _forget_draft(rt: Runtime, request: Request, owner: Owner) -> None:
    """Remove what is left of the owner's attachment but for what all of the network's are searched for."""
    async with rt.locked(owner):
        if owner in rt.records.drafts(owner.network):  # no request has ended meanwhile
            await rt.on_host(rt.datapath.detach_unrecorded, owner, "", "")
            ipam_type = rt.records.announced(owner)
            if ipam_type and not rt.find_ipam(request, ipam_type).own:
                await release(rt, request, ipam_type, owner)
            rt.records.remove(owner)


async def _collect_addresses(rt: Runtime, request: Request, keep: frozenset[Owner]) -> None:
    async with rt.ipam(request, parse_ipam_type(request.config)) as ipam:
        if ipam is not None:
            await ipam.collect(request.owner.network, keep)


def _readable_record(rt: Runtime, owner: Owner) -> Attachment | None:
    """The owner's record; None, with a word in the log, if it cannot be read: GC finds by their marks what it names."""
    try:
        return rt.records.read(owner)
    except CniError as error:
        log.warning("going on without the record: %s", error.msg)
        return None


def _refuse_own_netns(request: Request, target: netns.Netns) -> None:
    if target.ref.same_as(netns.own()) and not request.netns_may_be_own:
        raise InvalidNetns(
            "plugin's netns and netns from CNI_NETNS should not be the same", f"CNI_NETNS is {request.netns}"
        )
