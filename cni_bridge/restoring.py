"""Makes rules anew from the records, after somebody flushed them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from cni_bridge.cni.netconf import Backend
from cni_bridge.policy import Policy
from cni_bridge.publishing import let_loopback_out
from cni_bridge.runtime import Runtime
from ipam.api import Owner

log = logging.getLogger(__name__)


async def restore_if_flushed(rt: Runtime, asking: Owner | None = None) -> None:
    """Restore all rules if they are to be."""
    if await rt.on_host(is_to_be_restored, rt, asking):
        log.warning("the nftables rules were flushed; making them anew from the records")
        await restore(rt)


def is_to_be_restored(rt: Runtime, asking: Owner | None = None) -> bool:
    """Whether the table that holds the rules is gone while there are attachments; in the kernel thread.

    Those that are just being made do not count: they are recorded before they have rules. Who is `asking` has all that
    is recorded of him.
    """
    return rt.firewalls[Backend.NFTABLES].is_flushed() and any(
        each.backend == Backend.NFTABLES and (each.owner == asking or not rt.is_busy(each.owner))
        for each in _policies(rt)
    )


async def restore(rt: Runtime, network: str | None = None, keep: frozenset[Owner] | None = None) -> int:
    """Make the rules of all attachments, of one network's, or of these owners', as recorded; of how many attachments.

    What is there already is replaced by the same, in one transaction for each backend.
    """
    # Alone: nobody is detached between the look and the change.
    return await rt.with_rules(partial(_restore, rt, network, keep), alone=True)


def _restore(rt: Runtime, network: str | None, keep: frozenset[Owner] | None) -> int:
    policies = [each for each in _policies(rt, network) if keep is None or each.owner in keep]
    for backend, firewall in rt.firewalls.items():
        own = [each for each in policies if each.backend == backend]
        if own:
            firewall.restore(own)
    let_loopback_out(rt, policies)
    return len({each.owner for each in policies})


async def repair(rt: Runtime, network: str | None = None) -> int:
    """Restore all if all is gone, for one network's base would hide what others lack; then what is asked for."""
    await restore_if_flushed(rt)
    return await restore(rt, network)


def _policies(rt: Runtime, network: str | None = None) -> Iterator[Policy]:
    for records in rt.all_records:
        for state in records.all(network):
            yield from state.policies
