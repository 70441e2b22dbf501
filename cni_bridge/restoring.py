"""Makes rules anew from the records, after somebody flushed them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from cni_bridge.cni.netconf import Backend
from cni_bridge.policy import Policy
from cni_bridge.publishing import let_loopback_out
from cni_bridge.runtime import Runtime
from ipam.api import Owner

log = logging.getLogger(__name__)


async def restore_if_flushed(rt: Runtime) -> None:
    """Restore all rules if the table that holds them is gone while there are attachments.

    Those that are just being made do not count: they are recorded before they have rules.
    """
    if await rt.on_host(rt.firewalls[Backend.NFTABLES].is_flushed) and any(
        each.backend == Backend.NFTABLES and not rt.is_busy(each.owner) for each in _policies(rt)
    ):
        log.warning("the nftables rules were flushed; making them anew from the records")
        await restore(rt)


async def restore(rt: Runtime, network: str | None = None, keep: frozenset[Owner] | None = None) -> int:
    """Make the rules of all attachments, of one network's, or of these owners', as recorded; of how many attachments.

    What is there already is replaced by the same, in one transaction for each backend.
    """
    async with rt.rules_lock.held(alone=True):  # alone: nobody is detached between the look and the change
        policies = [each for each in _policies(rt, network) if keep is None or each.owner in keep]
        for backend, firewall in rt.firewalls.items():
            own = [each for each in policies if each.backend == backend]
            if own:
                await rt.on_host(firewall.restore, own)
        await rt.on_host(let_loopback_out, rt, policies)
    return len({each.owner for each in policies})


async def repair(rt: Runtime, network: str | None = None) -> int:
    """Restore all if all is gone, for one network's base would hide what others lack; then what is asked for."""
    await restore_if_flushed(rt)
    return await restore(rt, network)


def _policies(rt: Runtime, network: str | None = None) -> Iterator[Policy]:
    for records in rt.all_records:
        for state in records.all(network):
            yield from state.policies
