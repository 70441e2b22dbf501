"""The operations of the plugin, each as a short story over IPAM, datapath, firewall and records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

from cni_bridge.cni.errors import CheckFailed, CniError, Code, InvalidConfig, InvalidNetns, as_cni_error
from cni_bridge.cni.fields import Fields
from cni_bridge.cni.ipamconf import IpamConf, parse_ipam
from cni_bridge.cni.netconf import (
    Backend,
    NetConf,
    parse_bridge_name,
    parse_ipam_type,
    parse_netconf,
    parse_valid_attachments,
)
from cni_bridge.cni.request import Command, Request
from cni_bridge.cni.result import Result, require_renderable
from cni_bridge.datapath import netns
from cni_bridge.datapath.bridge import MAX_PORTS
from cni_bridge.datapath.host import Datapath
from cni_bridge.firewall.api import Firewall
from cni_bridge.plan import Attachment, build_result, plan
from cni_bridge.records import Records
from cni_bridge.undo import Undo
from ipam.api import Allocation, Ipam, Owner, Wanted
from ipam.errors import LeaseMissing

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_NO_ADDRESSES = Allocation(leases=())


class IpamSource(Protocol):
    """The IPAM that a configuration names, found but not opened."""

    @property
    def own(self) -> bool:
        """Whether it is this project's, so that the configuration's `ipam` section is for us to read."""

    def open(self) -> AbstractAsyncContextManager[Ipam]:
        """Open it for one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the verbs work with; `wiring` makes it."""

    records: Records
    datapath: Datapath
    firewalls: Mapping[Backend, Firewall]
    find_ipam: Callable[[Request, str], IpamSource]  # by the request and its ipam.type
    locked: Callable[[Owner], AbstractAsyncContextManager[None]]  # one request at a time for one owner
    kernel_thread: Executor  # one thread talks to the kernel, and only it enters namespaces

    async def on_host(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in the kernel thread, to its end: what it has begun cannot be left half done."""
        work = partial(function, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self.kernel_thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def default_backend(self) -> Backend:
        """The firewall for attachments whose configuration names none: nftables where it works."""
        reason = await self.on_host(self.firewalls[Backend.NFTABLES].unusable)
        if reason:
            log.info("using iptables, for nftables does not work here: %s", reason)
        return Backend.IPTABLES if reason else Backend.NFTABLES

    @asynccontextmanager
    async def ipam(self, request: Request, ipam_type: str) -> AsyncIterator[Ipam | None]:
        """The IPAM of that type, open; None for a network without addresses."""
        if not ipam_type:
            yield None
            return
        async with self.find_ipam(request, ipam_type).open() as ipam:
            yield ipam


async def add(rt: Runtime, request: Request) -> Result:
    """Attach the container; a repeat gives the same addresses, and a failure leaves nothing."""
    conf = parse_netconf(request)
    addresses = _address_conf(rt, request, conf)
    if not conf.ipam_type or addresses.range_sets:
        require_renderable([each.family for each in addresses.range_sets], conf.version)
    with netns.opened(request.netns) as target:
        _refuse_own_netns(request, target)
        async with rt.locked(request.owner), rt.ipam(request, conf.ipam_type) as ipam:
            recorded = await _earlier_attachment(rt, request, target)
            # A repeat takes nothing back when it fails: the container may be using what an earlier request made, and
            # with the record there, DEL removes it all.
            async with Undo(active=recorded is None) as undo:
                undo.push(partial(rt.on_host, rt.records.remove, request.owner))
                if recorded is None:
                    rt.records.write(await _plan(rt, conf, request, target, addresses, _NO_ADDRESSES))
                allocation = _NO_ADDRESSES
                if ipam is not None:
                    undo.push(partial(ipam.release, request.owner))
                    allocation = await ipam.allocate(addresses.wanted(request.owner))
                    require_renderable([each.address.version for each in allocation.leases], conf.version)
                attachment = await _plan(rt, conf, request, target, addresses, allocation)
                if recorded is not None and recorded.policies != attachment.policies:
                    await _remove_rules(rt, recorded)
                rt.records.write(attachment)
                bridge_mac = await rt.on_host(
                    rt.datapath.attach, attachment, target, lambda effect: undo.push(partial(rt.on_host, effect))
                )
                for policy in attachment.policies:
                    firewall = rt.firewalls[policy.backend]
                    undo.push(partial(rt.on_host, firewall.remove, policy))
                    await rt.on_host(firewall.apply, policy)
    return build_result(conf, attachment, allocation, bridge_mac, request.netns)


async def delete(rt: Runtime, request: Request) -> None:
    """Detach the container: does all it can, whatever of the attachment or the request is gone."""
    owner, failures = request.owner, Failures()
    async with rt.locked(owner):
        recorded = _readable_record(rt, owner)
        if recorded is not None:
            await failures.collect(_tear_down(rt, recorded))
        else:
            bridge = _lenient(parse_bridge_name, request)
            await failures.collect(rt.on_host(rt.datapath.detach_unrecorded, owner, bridge, request.netns))
        ipam_type = _lenient(parse_ipam_type, request) or (recorded.ipam_type if recorded is not None else "")
        await failures.collect(_release(rt, request, ipam_type, owner))
        failures.raise_any(f"DEL of {owner}")
        rt.records.remove(owner)


async def check(rt: Runtime, request: Request) -> None:
    """Compare the attachment with what ADD made and with the result that the runtime holds."""
    conf = parse_netconf(request)
    if conf.prev_result is None:
        raise InvalidConfig("Required prevResult missing", "CHECK compares with the result of ADD")
    with netns.opened(request.netns) as target:
        async with rt.locked(request.owner), rt.ipam(request, conf.ipam_type) as ipam:
            attachment = rt.records.read(request.owner)
            if attachment is None:
                raise CheckFailed(f"{request.owner} is not attached: there is no record of it")
            found = [] if attachment.netns.same_as(target.ref) else ["CNI_NETNS is another namespace than that of ADD"]
            if ipam is not None:
                try:
                    await ipam.check(Wanted(owner=request.owner), attachment.container.addresses)
                except LeaseMissing as error:
                    found.append(str(error))
            found += await rt.on_host(rt.datapath.missing, attachment, conf.prev_result, target)
            for policy in attachment.policies:
                found += await rt.on_host(rt.firewalls[policy.backend].missing, policy)
    if found:
        raise CheckFailed(f"{request.owner} is not as it was attached: {found[0]}", "\n".join(found))


async def collect(rt: Runtime, request: Request) -> None:
    """Remove what belongs to attachments of this network that are not valid any more (GC)."""
    network, keep, failures = request.owner.network, parse_valid_attachments(request), Failures()
    for attachment in list(rt.records.all(network)):
        if attachment.owner not in keep:
            await failures.collect(_collect_one(rt, request, attachment))
    await failures.collect(rt.on_host(rt.datapath.collect, network, keep))
    for firewall in rt.firewalls.values():
        if not await rt.on_host(firewall.unusable):
            await failures.collect(rt.on_host(firewall.collect, network, keep))
    await failures.collect(_collect_addresses(rt, request, keep))
    failures.raise_any(f'GC of network "{network}"')


async def status(rt: Runtime, request: Request) -> None:
    """Fail with code 50 and the reason if an ADD could not be served now."""
    conf = parse_netconf(request)
    try:
        rt.records.require_writable()
        addresses = _address_conf(rt, request, conf)
        async with rt.ipam(request, conf.ipam_type) as ipam:
            if ipam is not None:
                await ipam.status(addresses.wanted(request.owner))
        ports = await rt.on_host(rt.datapath.count_ports, conf.bridge)
        if ports >= MAX_PORTS:
            raise CniError(Code.NOT_AVAILABLE, f"bridge {conf.bridge} is full: it has {ports} ports")
        needed = {Backend.NFTABLES} if conf.mac_spoof_check else set()
        if conf.ip_masq:
            needed.add(conf.ip_masq_backend or await rt.default_backend())
        for backend in needed:
            reason = await rt.on_host(rt.firewalls[backend].unusable)
            if reason:
                raise CniError(Code.NOT_AVAILABLE, f"firewall {backend} does not work here: {reason}")
    except Exception as error:
        failure = as_cni_error(error)
        if failure.code in (Code.INVALID_CONFIG, Code.DECODING_FAILURE, Code.NOT_AVAILABLE, Code.LIMITED_CONNECTIVITY):
            raise failure from None
        raise CniError(Code.NOT_AVAILABLE, failure.msg, failure.details) from None


OPERATIONS: Mapping[Command, Callable[[Runtime, Request], Awaitable[Result | None]]] = {
    Command.ADD: add,
    Command.DEL: delete,
    Command.CHECK: check,
    Command.GC: collect,
    Command.STATUS: status,
}


class Failures:
    """Collects failures, so that one does not keep the rest from being done."""

    def __init__(self) -> None:
        self._errors: list[CniError] = []

    async def collect(self, action: Awaitable[T]) -> T | None:
        """The action's outcome; None if it failed."""
        try:
            return await action
        except Exception as error:
            self._errors.append(as_cni_error(error))
            return None

    def raise_any(self, what: str) -> None:
        """Fail with all failures in one, the first one's code, if there were any."""
        if self._errors:
            first, *others = self._errors
            details = "\n".join(filter(None, [first.details, *(each.msg for each in others)]))
            raise CniError(first.code, f"{what} is incomplete: {first.msg}", details)


async def _earlier_attachment(rt: Runtime, request: Request, target: netns.Netns) -> Attachment | None:
    """What an earlier ADD of this owner recorded for this namespace; of another namespace it is removed first."""
    recorded = rt.records.read(request.owner)
    if recorded is None or recorded.netns.same_as(target.ref):
        return recorded
    log.info("%s comes back in another namespace without a DEL before", request.owner)
    await _tear_down(rt, recorded)
    return None


async def _plan(
    rt: Runtime,
    conf: NetConf,
    request: Request,
    target: netns.Netns,
    addresses: IpamConf,
    allocation: Allocation,
) -> Attachment:
    masquerades = conf.ip_masq and conf.ip_masq_backend is None
    return plan(
        conf,
        request.owner,
        target.ref,
        allocation,
        implied_gateways=addresses.implied_gateways,
        backend=await rt.default_backend() if masquerades and allocation.leases else Backend.NFTABLES,
        uplink_mtu=0 if conf.mtu else await rt.on_host(rt.datapath.uplink_mtu),
    )


def _address_conf(rt: Runtime, request: Request, conf: NetConf) -> IpamConf:
    """What the configuration says of addresses, where it is ours to read; another plugin reads its own."""
    if not conf.ipam_type or not rt.find_ipam(request, conf.ipam_type).own:
        return IpamConf()
    return parse_ipam(request, first_may_be_claimed=not conf.is_gateway)


async def _tear_down(rt: Runtime, attachment: Attachment) -> None:
    """Remove the attachment's rules and links."""
    failures = Failures()
    await failures.collect(_remove_rules(rt, attachment))
    await failures.collect(rt.on_host(rt.datapath.detach, attachment))
    failures.raise_any(f"removal of {attachment.owner}")


async def _remove_rules(rt: Runtime, attachment: Attachment) -> None:
    failures = Failures()
    for policy in attachment.policies:
        await failures.collect(rt.on_host(rt.firewalls[policy.backend].remove, policy))
    failures.raise_any(f"removal of the rules of {attachment.owner}")


async def _collect_one(rt: Runtime, request: Request, attachment: Attachment) -> None:
    async with rt.locked(attachment.owner):
        current = rt.records.read(attachment.owner)
        if current is not None:
            log.info("collecting %s", attachment.owner)
            await _tear_down(rt, current)
            await _release(rt, request, current.ipam_type, current.owner)
            rt.records.remove(current.owner)


async def _release(rt: Runtime, request: Request, ipam_type: str, owner: Owner) -> None:
    async with rt.ipam(request, ipam_type) as ipam:
        if ipam is not None:
            await ipam.release(owner)


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


def _lenient(parse: Callable[[Fields], str], request: Request) -> str:
    """What a part of the configuration says; empty if it has become invalid, which must not keep DEL from its work."""
    try:
        return parse(request.config)
    except CniError as error:
        log.warning("going on without a part of the configuration: %s", error.msg)
        return ""


def _refuse_own_netns(request: Request, target: netns.Netns) -> None:
    if target.ref.same_as(netns.own()) and not request.netns_may_be_own:
        raise InvalidNetns(
            "plugin's netns and netns from CNI_NETNS should not be the same", f"CNI_NETNS is {request.netns}"
        )
