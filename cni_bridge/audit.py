"""Compares what the store says with the namespaces and the attachments of the host. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cni_bridge.datapath.survey import LiveAddress
from cni_bridge.plan import Attachment
from ipam.allocator import usable
from ipam.api import Address, NetnsRef, Owner
from ipam.blobs import to_number
from ipam.registry import Entry, Finding, Pool, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeBack:
    """Repairs a lease that outlived its container."""

    owner: Owner
    address: Address

    def __str__(self) -> str:
        return f"release {self.address} of {self.owner}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Repairs an attachment whose lease is lost."""

    owner: Owner
    address: Address

    def __str__(self) -> str:
        return f"lease {self.address} to {self.owner}, who has it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Withhold:
    """Keeps an address from being given out while an unknown container has it."""

    network: str
    address: Address

    def __str__(self) -> str:
        return f"reserve {self.address} of network {self.network} for nobody, since an unknown container has it"


Repair = TakeBack | Adopt | Withhold


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A finding, and what would put it right; None if that is not for this program to do."""

    finding: Finding
    repair: Repair | None = None


def compare(
    entries: Sequence[Entry],
    pools: Sequence[Pool],
    live: Sequence[LiveAddress],
    attachments: Iterable[Attachment],
    lives: Callable[[NetnsRef], bool | None],
    boot_id: str,
) -> Iterator[Problem]:
    """What differs. `live`: the addresses in all namespaces; `lives`: whether one is still at its path."""
    leased = {each.address for each in entries if each.lease is not None}
    withheld = {(each.network, each.address) for each in entries if each.reservation is not None}
    owners = {
        lease.address.ip: lease.owner
        for attachment in attachments
        if attachment.own_ipam
        for lease in attachment.allocation.leases
    }
    yield from _outlived(entries, live, lives, boot_id)
    yield from _doubled(leased, live)
    for each in live:
        address, owner = each.address.ip, owners.get(each.address.ip)
        if address in leased:
            continue
        repairs: list[Repair] = []
        if owner is not None and owner.ifname == each.ifname:
            repairs.append(Adopt(owner=owner, address=address))
        else:
            networks = dict.fromkeys(pool.network for pool in pools if _hands_out(pool, address))
            repairs += [
                Withhold(network=network, address=address) for network in networks if (network, address) not in withheld
            ]
        what = f"{address} is in use on {each.ifname} in {each.netns.path} and has no lease"
        for repair in repairs:
            yield Problem(finding=Finding(weight=Weight.ERROR, what=what), repair=repair)


def _doubled(leased: Collection[Address], live: Iterable[LiveAddress]) -> Iterator[Problem]:
    """Leased addresses that links of several namespaces have."""
    holders: dict[Address, dict[tuple[int, int], str]] = {}  # by device and inode: one has many paths
    for each in live:
        if each.address.ip in leased:
            key = (each.netns.device, each.netns.inode)
            holders.setdefault(each.address.ip, {})[key] = f"{each.ifname} in {each.netns.path}"
    for address, places in holders.items():
        if len(places) > 1:
            what = f"{address} is leased and in use on {' and on '.join(places.values())}; remove one of them"
            yield Problem(finding=Finding(weight=Weight.ERROR, what=what))


def _outlived(
    entries: Iterable[Entry],
    live: Iterable[LiveAddress],
    lives: Callable[[NetnsRef], bool | None],
    boot_id: str,
) -> Iterator[Problem]:
    """Leases whose namespace is gone, or no longer has the address."""
    seen = {(each.netns.device, each.netns.inode, each.address.ip) for each in live}
    for entry in entries:
        lease = entry.lease
        if lease is None:
            continue
        if lease.netns is None:
            if lease.boot_id != boot_id:
                what = f"{entry.address} of {lease.owner} was leased before this boot, which no namespace outlives"
                yield Problem(
                    finding=Finding(weight=Weight.WARNING, what=what),
                    repair=TakeBack(owner=lease.owner, address=entry.address),
                )
            continue
        alive = lives(lease.netns)
        if alive is False:
            what = f"{entry.address} of {lease.owner} is leased, and its namespace {lease.netns.path} is gone"
            yield Problem(
                finding=Finding(weight=Weight.WARNING, what=what),
                repair=TakeBack(owner=lease.owner, address=entry.address),
            )
        elif alive and (lease.netns.device, lease.netns.inode, entry.address) not in seen:
            what = f"{entry.address} of {lease.owner} is leased, and no link in {lease.netns.path} has it"
            yield Problem(finding=Finding(weight=Weight.WARNING, what=what))


def _hands_out(pool: Pool, address: Address) -> bool:
    number = to_number(address)
    return any(run.first <= number < run.next for each in pool.ranges for run in usable(each))
