"""Compares the lease database with itself: addresses with their runs and pools, and pools with each other."""

from __future__ import annotations

from collections.abc import Iterable

from ipam.allocator import Run, merged
from ipam.api import Address
from ipam.blobs import from_number, to_number
from ipam.registry import PAGE, Finding, Place, Pool, Weight
from ipam.transaction import Transaction

_END = 1 << 128  # behind the last address


def verify_page(network: str, start: int, txn: Transaction) -> tuple[list[Finding], int | None]:
    """What is wrong with a page of the network's addresses, from that number on; and where the next page begins."""
    after = Place(network=network, address=from_number(start - 1)) if start else None
    page = txn.entries(network, after)
    full = len(page) == PAGE
    end = to_number(page[-1].address) + 1 if full else _END
    numbers = [to_number(each.address) for each in page]
    expected = merged(Run(first=each, next=each + 1) for each in numbers)
    actual = txn.runs_within(network, Run(first=start, next=end))
    found = []
    for number in txn.runs_in_parts(network) if not start else ():
        what = f'network "{network}": the run of taken addresses around {from_number(number)} is in two parts'
        found.append(Finding(weight=Weight.ERROR, what=what, mendable=True))
    for run in sorted(set(expected) ^ set(actual)):
        what = f'network "{network}": {from_number(run.first)} to {from_number(run.next - 1)} is '
        what += "in use and not marked as taken" if run in expected else "marked as taken and not in use"
        found.append(Finding(weight=Weight.ERROR, what=what, mendable=True))
    if txn.configuration(network) is not None:
        pools = txn.pools(network)
        for each in page:
            if each.lease is not None and not any(_holds(pool, each.address) for pool in pools):
                what = f"{each.address} of {each.lease.owner} is in no pool of its network"
                found.append(Finding(weight=Weight.WARNING, what=what))
    return found, end if full else None


def _holds(pool: Pool, address: Address) -> bool:
    return pool.subnet.version == address.version and address in pool.subnet


def verify_apart(pools: Iterable[Pool]) -> list[Finding]:
    """Pools of different networks that overlap although neither allows it."""
    found = []
    ordered = sorted(
        (each for each in pools if not each.shared),
        key=lambda pool: (pool.subnet.version, int(pool.subnet.network_address), pool.subnet.prefixlen),
    )
    for position, one in enumerate(ordered):
        for other in ordered[position + 1 :]:
            if one.subnet.version != other.subnet.version or not one.subnet.overlaps(other.subnet):
                break  # in this order, none behind it overlaps either
            if one.network != other.network:
                what = f'{one.subnet} of network "{one.network}" overlaps {other.subnet} of network "{other.network}"'
                found.append(Finding(weight=Weight.ERROR, what=what))
    return found
