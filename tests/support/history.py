"""Histories of calls, and what in them contradicts the promises: pure, for whatever has recorded them.

An owner's calls come one after another, as runtimes make them. What a call did is known if it was answered; one that
was killed, or was answered with code 11, may have done all of it, some of it or nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

EXHAUSTED = 101
_FOREVER = float("inf")


class Verb(StrEnum):
    """What a call asks for."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


class Outcome(StrEnum):
    """What became of a call."""

    DONE = "done"
    REFUSED = "refused"  # with a code that says that nothing was done
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, from before it was made until after it was answered, in seconds of one clock.

    Its owners: the one it is for; for GC those that it may remove.
    """

    verb: Verb
    network: str
    owners: tuple[str, ...]
    began: float
    ended: float
    outcome: Outcome
    addresses: frozenset[str] = frozenset()  # that an ADD gave
    code: int = 0
    words: str = ""

    def __str__(self) -> str:
        about = f"{self.network} {self.verb} {','.join(self.owners)}"
        found = " ".join(sorted(self.addresses)) + (f" code {self.code}" if self.code else "")
        return f"{self.began:8.3f}-{self.ended:8.3f} {about}: {self.outcome} {found} {self.words}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What `source` said while no call was under way: the addresses of each owner, by network and owner."""

    at: float
    source: str
    held: Mapping[tuple[str, str], frozenset[str]]


@dataclass(slots=True)
class _Owner:
    """What is known of an owner. `held`: the addresses that it surely has; None if that is not known."""

    network: str
    name: str
    held: frozenset[str] | None = frozenset()
    since: float = 0.0
    sure: list[_Interval] = field(default_factory=list)  # when it surely had an address
    possible: list[tuple[float, float]] = field(default_factory=list)  # when it may have had one
    _may_since: float | None = None

    def may_have(self, since: float) -> None:
        if self._may_since is None:
            self._may_since = since

    def has(self, addresses: frozenset[str], since: float) -> None:
        self.held, self.since = addresses, since

    def end(self, at: float) -> None:
        """From here on it may have lost them."""
        self.sure += [_Interval(each, self.network, self.name, self.since, at) for each in self.held or ()]
        self.held = None

    def has_none(self, since: float) -> None:
        if self._may_since is not None:
            self.possible.append((self._may_since, since))
            self._may_since = None
        self.held = frozenset()

    def close(self) -> None:
        if self.held:
            self.sure += [_Interval(each, self.network, self.name, self.since, _FOREVER) for each in self.held]
        if self._may_since is not None:
            self.possible.append((self._may_since, _FOREVER))


@dataclass(frozen=True, slots=True)
class _Interval:
    address: str
    network: str
    owner: str
    since: float
    until: float


def violations(
    calls: Iterable[Call], looks: Iterable[Look] = (), *, capacities: Mapping[str, int] | None = None
) -> list[str]:
    """What contradicts the promises, in words. `capacities`: how many owners a network has addresses for."""
    by_owner: dict[tuple[str, str], list[Call]] = defaultdict(list)
    ordered = sorted(calls, key=lambda each: each.began)
    for call in ordered:
        for name in call.owners:
            by_owner[call.network, name].append(call)
    seen = sorted(looks, key=lambda each: each.at)
    owners = {key: _Owner(*key) for key in by_owner}
    found = [words for key, own in by_owner.items() for words in _contradictions(owners[key], own, seen)]
    found += _strangers(seen, owners.keys())
    found += _doubled([each for owner in owners.values() for each in owner.sure])
    for network, capacity in (capacities or {}).items():
        of_network = [each for each in owners.values() if each.network == network]
        found += _needlessly_refused(ordered, of_network, network, capacity)
    return found


def _contradictions(owner: _Owner, calls: Sequence[Call], looks: Sequence[Look]) -> Iterator[str]:
    """What contradicts itself in what one owner was told; fills in what the owner had."""
    ahead = list(looks)
    before: Call | None = None
    for call in calls:
        while ahead and ahead[0].at < call.began:
            yield from _seen(owner, ahead.pop(0))
        if before is not None and before.ended > call.began:
            yield f"the history is none: {owner.name} has two calls at once:\n  {before}\n  {call}"
        before = call
        match call.verb:
            case Verb.ADD:
                yield from _added(owner, call)
            case Verb.DEL | Verb.GC:
                yield from _deleted(owner, call)
            case Verb.CHECK:
                yield from _checked(owner, call)
    for look in ahead:
        yield from _seen(owner, look)
    owner.close()


def _added(owner: _Owner, call: Call) -> Iterator[str]:
    match call.outcome:
        case Outcome.DONE:
            if not call.addresses:
                yield f"an ADD succeeded without an address: {call}"
            if owner.held and owner.held != call.addresses:
                yield f"{owner.name} had {' '.join(sorted(owner.held))}, and a repeated ADD gave others: {call}"
                owner.end(call.began)
            owner.may_have(call.began)
            if not owner.held:
                owner.has(call.addresses, call.ended)
        case Outcome.UNKNOWN:
            owner.may_have(call.began)
            if not owner.held:  # what it has, a repeat that ends midway does not take away
                owner.held = None
        case Outcome.REFUSED:
            if call.code != EXHAUSTED:
                yield f"an ADD was refused: {call}"
            elif owner.held:
                yield f"{owner.name} has an address, and was told that there is none: {call}"


def _deleted(owner: _Owner, call: Call) -> Iterator[str]:
    if call.outcome == Outcome.REFUSED:
        yield f"a {call.verb} was refused: {call}"
    if owner.held:
        owner.end(call.began)
    if call.outcome == Outcome.DONE:
        owner.has_none(call.ended)


def _checked(owner: _Owner, call: Call) -> Iterator[str]:
    if call.outcome == Outcome.REFUSED and owner.held:
        yield f"{owner.name} is attached, and CHECK denies it: {call}"
    if call.outcome == Outcome.DONE and owner.held == frozenset():
        yield f"{owner.name} is not attached, and CHECK succeeds: {call}"


def _seen(owner: _Owner, look: Look) -> Iterator[str]:
    there = look.held.get((owner.network, owner.name), frozenset())
    if owner.held is not None and owner.held != there:
        expected = " ".join(sorted(owner.held)) or "nothing"
        yield (
            f"{owner.name} of {owner.network} has {expected}, "
            f"but {look.source} at {look.at:.3f} say {' '.join(sorted(there)) or 'nothing'}"
        )


def _strangers(looks: Iterable[Look], known: Iterable[tuple[str, str]]) -> Iterator[str]:
    expected = set(known)
    for look in looks:
        for (network, owner), addresses in look.held.items():
            if (network, owner) not in expected and addresses:
                listed = " ".join(sorted(addresses))
                yield f"{look.source} at {look.at:.3f} say {listed} of {network} for {owner}, who never asked"


def _doubled(intervals: Iterable[_Interval]) -> Iterator[str]:
    """Addresses that two owners of a network surely had at one time."""
    by_address: dict[tuple[str, str], list[_Interval]] = defaultdict(list)
    for each in intervals:
        by_address[each.network, each.address].append(each)
    for (network, address), all_of_it in by_address.items():
        holder: _Interval | None = None
        for each in sorted(all_of_it, key=lambda one: one.since):
            if holder is not None and each.since < holder.until and each.owner != holder.owner:
                yield (
                    f"{address} of {network} had two owners: {holder.owner} from {holder.since:.3f} to "
                    f"{holder.until:.3f}, and {each.owner} from {each.since:.3f} to {each.until:.3f}"
                )
            if holder is None or each.until > holder.until:
                holder = each


def _needlessly_refused(calls: Iterable[Call], owners: Iterable[_Owner], network: str, capacity: int) -> Iterator[str]:
    """ADDs that were told that no address is free while there must have been one."""
    listed = list(owners)
    for call in calls:
        if (call.verb, call.network, call.outcome, call.code) == (Verb.ADD, network, Outcome.REFUSED, EXHAUSTED):
            others = [each for each in listed if each.name not in call.owners]
            holding = sum(any(a <= call.ended and call.began <= b for a, b in each.possible) for each in others)
            if holding < capacity:
                yield f"{holding} of {capacity} addresses may have been held, and none was free: {call}"
