"""The firewall's part of attachments: applies, compares and removes their policies, whichever backend holds them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cni_bridge.cni.errors import CniError, LockBusy
from cni_bridge.failures import Failures
from cni_bridge.policy import Policy, publications_of
from cni_bridge.publishing import let_loopback_out, missing_loopback
from cni_bridge.runtime import Runtime


def change_rules(rt: Runtime, former: Sequence[Policy], wanted: Sequence[Policy]) -> None:
    """Replace the former rules: the wanted ones hold throughout, even where a former one had the same element.

    But where ports led to another address, the former rules go first, for a port leads to one place. Ports can then be
    reached at the host's loopback addresses too: after the rules that keep everybody else out. In the kernel thread, as
    what follows.
    """
    failures, busy = Failures(), list[LockBusy]()
    stale = [each for each in former if each not in wanted]
    moved = {each.address for each in publications_of(stale)} - {each.address for each in publications_of(wanted)}
    for policy in wanted if not moved else ():
        rt.firewalls[policy.backend].apply(policy)
    for policy in stale:
        try:
            rt.firewalls[policy.backend].remove(policy)
        except LockBusy as error:
            busy.append(error)
        except CniError as error:
            failures.note(error)
    for policy in wanted if stale else ():
        rt.firewalls[policy.backend].apply(policy)
    failures.raise_any("removal of rules")
    if busy:  # whoever waits for the lock begins anew
        raise busy[0]
    let_loopback_out(rt, wanted)


def missing_rules(rt: Runtime, policies: Sequence[Policy]) -> list[str]:
    """What of the policies does not hold, in words."""
    found = [words for policy in policies for words in rt.firewalls[policy.backend].missing(policy)]
    return found + missing_loopback(rt, policies)


async def forget_link(rt: Runtime, network: str) -> None:
    """Remove what holds for the network's link once nobody is attached to it.

    An attachment is recorded before its rules are applied, and they are under the same lock.
    """
    if not rt.is_attached_to(network):
        await rt.with_rules(partial(_forget_link, rt, network), alone=True)


def _forget_link(rt: Runtime, network: str) -> None:
    """The rules go last: as long as they are there, a repeat knows for which links something is to be taken back."""
    if rt.is_attached_to(network):
        return
    links = {link for each in rt.firewalls.values() for link in each.network_links(network)}
    shared = _link_policies(rt, links)  # of other networks on the same bridge
    for link in links - shared.keys():
        rt.datapath.keep_loopback_in(link)
    for firewall in rt.firewalls.values() if links else ():
        firewall.forget_link(network)
    for policy in shared.values():
        rt.firewalls[policy.backend].apply(policy)


def _link_policies(rt: Runtime, links: set[str]) -> dict[str, Policy]:
    """One policy for each of these links that an attachment uses, with nothing but the link."""
    found = {}
    for records in rt.all_records if links else ():
        for state in records.all():
            for each in state.policies:
                if each.link is not None and each.link.shared and each.link.link in links:
                    found[each.link.link] = Policy(backend=each.backend, owner=each.owner, link=each.link)
    return found
