"""Decides which leases a reboot ended: never on one look, and never one whose namespace is seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipam.clock import Moment
from ipam.host import Host
from ipam.registry import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a look found: leases that are suspect since now, that are no longer, and whose time is over."""

    suspect: tuple[Entry, ...]
    cleared: tuple[Entry, ...]
    ended: tuple[Entry, ...]


def judge(entries: Iterable[Entry], now: Moment, host: Host, grace: float) -> Verdict:
    """Look at these leases; `grace`: seconds from the first look that finds a namespace gone to the last."""
    suspect, cleared, ended = [], [], []
    for entry in entries:
        gone = is_gone(entry, now, host)
        if gone and entry.suspect is None:
            suspect.append(entry)
        elif gone and entry.suspect is not None and now.since(entry.suspect) >= grace:
            ended.append(entry)
        elif not gone and entry.suspect is not None:
            cleared.append(entry)
    return Verdict(suspect=tuple(suspect), cleared=tuple(cleared), ended=tuple(ended))


def is_gone(entry: Entry, now: Moment, host: Host) -> bool:
    """Whether the lease is of an earlier boot, which no namespace outlives, and nothing is where its namespace was.

    Leases of this boot are the runtime's business, and the operator's: a path that is gone is no proof for them.
    """
    lease = entry.lease
    if lease is None or lease.boot_id == now.boot_id:
        return False
    return lease.netns is None or host.lives(lease.netns) is not True
