"""What ADD does to the host, in the kernel thread: the plan, its record, the links, and then the rules."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property, partial

from cni_bridge.cni.errors import CniError
from cni_bridge.cni.ipamconf import IpamConf
from cni_bridge.cni.netconf import Backend, NetConf
from cni_bridge.cni.request import Request
from cni_bridge.datapath.netns import Netns
from cni_bridge.plan import Attachment, LinkSpecs, Made, plan, plan_links
from cni_bridge.policy import Publication, publications_of, publishing
from cni_bridge.publishing import claim, end_stale_connections, require_own_addresses
from cni_bridge.restoring import is_to_be_restored
from cni_bridge.rules import change_rules
from cni_bridge.runtime import Runtime
from cni_bridge.trace import step
from cni_bridge.undo import Undo
from ipam.api import Allocation, Interface, Owner

log = logging.getLogger(__name__)


class Attaching:
    """One ADD. `recorded` is the attachment that an earlier request for the same made; `undo` takes effects back.

    Whoever calls holds the owner's lock, and from `complete` on shares that of the rules, and has that of the ports if
    some are published. `close` it in the end, or `end` it if all went well.
    """

    attachment: Attachment  # as it is made, once it is recorded
    is_held = False  # whether its rules are made

    def __init__(
        self,
        rt: Runtime,
        request: Request,
        conf: NetConf,
        addresses: IpamConf,
        target: Netns,
        recorded: Attachment | None,
        undo: Undo,
    ) -> None:
        self._rt = rt
        self._request = request
        self._conf = conf
        self._addresses = addresses
        self._target = target
        self._recorded = recorded
        self._undo = undo
        self._written: Attachment | None = None
        self._joining = rt.datapath.joining(
            target,
            push_undo=lambda effect: undo.push(partial(rt.on_host, effect)),
            gateways_of_others=partial(_gateways_of_others, rt, request.owner),
        )

    def close(self) -> None:
        """Close what was opened; in any thread."""
        self._joining.close()

    def end(self) -> None:
        """Let the neighbours know, which the answer need not wait for, and close what was opened."""
        try:
            self._joining.notify_neighbours()
        except CniError as error:
            log.warning(
                "whoever sent to an address of %s before may not find it at once: %s", self._request.owner, error
            )
        finally:
            self.close()

    def connect(self) -> bool:
        """Make its veth, for which no address is needed; whether the rules of others have to be restored now."""
        self._joining.connect(self._specs)
        return is_to_be_restored(self._rt)

    def record(self, allocation: Allocation) -> None:
        """Plan the attachment with these addresses, and write it down, before anything of it but the veth is made."""
        rt, recorded = self._rt, self._recorded
        attachment = self._plan(allocation)
        require_own_addresses(rt, publications_of(attachment.policies))
        self._written = attachment
        if recorded is not None:
            attachment = replace(attachment, changed=recorded.changed)
            either = tuple(dict.fromkeys((*attachment.policies, *recorded.policies)))
            self._written = replace(attachment, policies=either)
        rt.records.write(self._written)
        self.attachment = attachment

    def complete(self, allocation: Allocation) -> Made:
        """Make the rest of the links; the rules too, if the links are ready and no lock may have to be waited for."""
        if self._written is None:
            self.record(allocation)
        attachment, recorded = self.attachment, self._recorded
        made = self._joining.configure(attachment, recorded.container.addresses if recorded is not None else ())
        if made.changed:
            attachment = replace(attachment, changed=attachment.changed + made.changed)
        self.attachment = attachment
        if made.ready and all(each.backend == Backend.NFTABLES for each in attachment.policies):
            self.hold()
        return made

    def finish(self) -> bool:
        """Finish the links that were not ready; whether they are."""
        return self._joining.finish()

    def hold(self) -> None:
        """Make the rules of the attachment, whose links are ready."""
        rt, attachment = self._rt, self.attachment
        wished = publications_of(attachment.policies)
        if wished:
            attachment = self._serving(attachment, wished)
        with step("rules"):
            change_rules(rt, self._recorded.policies if self._recorded is not None else (), attachment.policies)
            end_stale_connections(attachment.policies)
        if attachment != self._written:
            rt.records.write(attachment)
        self.attachment, self.is_held = attachment, True

    @cached_property
    def _backend(self) -> Backend:
        conf = self._conf
        return self._rt.best_backend() if conf.ip_masq or conf.is_gateway else Backend.NFTABLES

    @cached_property
    def _specs(self) -> LinkSpecs:
        rt, conf = self._rt, self._conf
        return plan_links(
            conf,
            self._request.owner,
            backend=self._backend,
            uplink_mtu=0 if conf.mtu else rt.datapath.uplink_mtu(),
            nf_call=self._backend == Backend.IPTABLES and rt.datapath.passes_iptables(conf.bridge),
        )

    def _plan(self, allocation: Allocation) -> Attachment:
        rt, conf, request, backend = self._rt, self._conf, self._request, self._backend
        works = backend == Backend.NFTABLES or not rt.firewalls[backend].unusable()
        if not works and conf.is_gateway and not conf.as_reference:
            log.warning("no firewall works here: nothing keeps other networks from network %s", request.owner.network)
        return plan(
            conf,
            request.owner,
            self._target.ref,
            self._specs,
            allocation,
            request=request.digest,
            own_ipam=bool(conf.ipam_type) and rt.find_ipam(request, conf.ipam_type).own,
            configured_gateways=self._addresses.gateways,
            backend=backend,
            firewall_works=works,
        )

    def _serving(self, attachment: Attachment, wished: tuple[Publication, ...]) -> Attachment:
        """The attachment with those of the publications that it may serve now, and those that wait."""
        backend = next((each.backend for each in attachment.policies if each.link is not None), Backend.NFTABLES)
        served, waiting = claim(self._rt, attachment.owner, wished, backend, caller=self._request.caller)
        return replace(attachment, policies=publishing(attachment.policies, served), waiting=waiting)


def _gateways_of_others(rt: Runtime, owner: Owner, bridge: str) -> frozenset[Interface]:
    """The gateway addresses that other attachments need on the bridge."""
    return frozenset(
        address
        for other in rt.records.all()
        if other.owner != owner and other.gateway is not None and other.bridge.name == bridge
        for address in other.gateway.addresses
    )
