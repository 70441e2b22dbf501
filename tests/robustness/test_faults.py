"""What fails once costs no more than a repetition: each question and each change of a request fails in each likely way.

A failure is answered as the specification says; a failed ADD leaves nothing, a failed repetition of it takes nothing
away, and what is asked for again succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random

import pytest

from tests.support.armed import CHANGES, QUESTIONS
from tests.support.forks import Forks
from tests.support.lab import DAEMON, ONESHOT, Lab, lab, single, well_formed

_MOST = 500  # effects of one request
_SHARE = 17  # the points of which one is tried each day
_FAULTS_A_DAY = 2
_NETWORKS = {"nftables": single("nftables"), "iptables": single("iptables")}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What fails, and how."""

    watch: str
    kinds: tuple[str, ...]
    act: str

    def __str__(self) -> str:
        return f"{' '.join(self.kinds)} {self.watch} {self.act}"


_FAULTS = [
    *(Fault(watch=QUESTIONS, kinds=("netlink", "look"), act=each) for each in ("EBUSY", "EEXIST", "ENOBUFS", "EINTR")),
    Fault(watch=QUESTIONS, kinds=("netlink",), act="ENODEV"),
    *(Fault(watch=CHANGES, kinds=("file",), act=each) for each in ("ENOSPC", "EIO", "EROFS", "EACCES")),
    *(Fault(watch=CHANGES, kinds=("sqlite",), act=f"SQLITE_{each}") for each in ("BUSY", "FULL", "IOERR", "READONLY")),
    *(Fault(watch=QUESTIONS, kinds=("sqlite",), act=f"SQLITE_{each}") for each in ("BUSY", "IOERR")),
    *(Fault(watch=CHANGES, kinds=("nftables",), act=each) for each in ("EBUSY", "ENOENT", "ENOBUFS")),
    Fault(watch=QUESTIONS, kinds=("nftables",), act="EBUSY"),
    *(Fault(watch=CHANGES, kinds=("pyroute2",), act=each) for each in ("EBUSY", "ENOBUFS", "ENODEV")),
]
_GONE = Fault(watch=QUESTIONS, kinds=("look",), act="ENODEV")  # somebody has taken the link away, which DEL is glad of
_FAULTS_OF_IPTABLES = [
    *(Fault(watch=each, kinds=("iptables",), act="resource busy") for each in (CHANGES, QUESTIONS)),
    *(each for each in _FAULTS if each.kinds != ("nftables",)),
]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A host's state while the container is attached, and when it is not any more."""

    attached: frozenset[str]
    gone: frozenset[str]


Story = Callable[[Lab, Reference, Callable[[], None], Callable[[], str]], str]


def _left(host: Lab, reference: Reference, after: str) -> None:
    left = host.state() - reference.gone
    assert not left, f"after {after} is left: {_shown(left)}"


def _as_attached(host: Lab, reference: Reference, after: str) -> None:
    host.check()
    differs = host.state() ^ reference.attached
    assert not differs, f"after {after} differs: {_shown(differs)}"


def _shown(words: frozenset[str]) -> str:
    return "\n".join(each[:200] for each in sorted(words))


def add(host: Lab, reference: Reference, arm: Callable[[], None], disarm: Callable[[], str]) -> str:
    """A failed ADD leaves nothing."""
    arm()
    answer, reached = host.add(), disarm()
    if not reached:
        answer.succeeded()
        return ""
    well_formed(answer)
    if answer.status != 0 and "a lock's file" not in reached:
        _left(host, reference, f"a failed ADD ({answer.error['msg']})")
    host.add().succeeded()
    _as_attached(host, reference, "ADD was repeated")
    host.delete().succeeded()
    _left(host, reference, "DEL")
    return reached


def add_again(host: Lab, reference: Reference, arm: Callable[[], None], disarm: Callable[[], str]) -> str:
    """A repetition that fails takes nothing away."""
    result = host.add().result
    arm()
    answer, reached = host.add(), disarm()
    if not reached:
        answer.succeeded()
        return ""
    well_formed(answer)
    _as_attached(host, reference, f"a repeated ADD ended with {answer.status}")
    assert host.add().result == result
    _as_attached(host, reference, "ADD was repeated")
    host.delete().succeeded()
    _left(host, reference, "DEL")
    return reached


def delete(host: Lab, reference: Reference, arm: Callable[[], None], disarm: Callable[[], str]) -> str:
    """A DEL that succeeds leaves nothing, and one that fails does so when it is repeated."""
    host.add().succeeded()
    arm()
    answer, reached = host.delete(), disarm()
    well_formed(answer)
    if answer.status != 0 or not reached:
        (answer if not reached else host.delete()).succeeded()
    if "a lock's file" in reached:
        host.delete().succeeded()  # it is in nobody's way, and goes with the next request
    _left(host, reference, "DEL")
    return reached


def collect(host: Lab, reference: Reference, arm: Callable[[], None], disarm: Callable[[], str]) -> str:
    """The same of GC."""
    host.add().succeeded()
    arm()
    answer, reached = host.collect("b"), disarm()
    well_formed(answer)
    if answer.status != 0 or not reached:
        (answer if not reached else host.collect("b")).succeeded()
    if "a lock's file" in reached:
        host.delete().succeeded()  # it is in nobody's way, and goes with the next request
    _left(host, reference, "GC")
    return reached


def _attach_other(host: Lab) -> None:
    host.host.add_netns("b")
    host.add("b").succeeded()


def _reference(host: Lab) -> Reference:
    host.add().succeeded()
    attached = host.state()
    host.delete().succeeded()
    return Reference(attached=attached, gone=host.state())


def _failures(
    forks: Forks, way: str, network: str, story: Story, fault: Fault, points: Iterable[int], *, other: bool
) -> Iterator[str]:
    """What goes wrong at each of these points, until the request has no more.

    Beside another container they have one host after another failure only; alone, each has its own.
    """
    with ExitStack() as stack:
        with lab(forks, way, _NETWORKS[network]) as undisturbed:
            if other:
                _attach_other(undisturbed)
            reference = _reference(undisturbed)
        host: Lab | None = None
        for number in points:
            if host is None:
                host = stack.enter_context(lab(forks, way, _NETWORKS[network]))
                if other:
                    _attach_other(host)
            now, reached = host, "?"

            def arm(number: int = number, now: Lab = now) -> None:
                now.arm(number, watch=fault.watch, act=fault.act, kinds=fault.kinds)

            def disarm(now: Lab = now) -> str:
                nonlocal reached
                reached = now.disarm()
                return reached

            try:
                if not story(now, reference, arm, disarm):
                    return
                if not other:
                    host = None
            except AssertionError as failure:
                yield f"{story.__name__}: {fault} at {number}, {reached}: {failure}"
                host = None
                stack.close()
    raise AssertionError(f"more than {_MOST} effects")


_MATRIX = [
    pytest.param(way, network, story, id=f"{way}-{network}-{story.__name__}")
    for way, network, stories in (
        (DAEMON, "nftables", (add, add_again, delete, collect)),
        (DAEMON, "iptables", (add, add_again, delete, collect)),
        (ONESHOT, "nftables", (add,)),  # on hosts on which nothing was attached before
        (ONESHOT, "iptables", (add,)),
    )
    for story in stories
]
_IDS = [str(each.id) for each in _MATRIX]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("way", "network", "story"), _MATRIX)
def test_what_fails_once_is_told_and_repeated(
    forks: Forks,
    is_complete: bool,
    today: int,
    request: pytest.FixtureRequest,
    way: str,
    network: str,
    story: Story,
) -> None:
    """In every way in which it may fail; or in some of them each day, at a share of the points."""
    faults = [*(_FAULTS if network == "nftables" else _FAULTS_OF_IPTABLES), *([_GONE] if story is add else [])]
    day = today + 7 * _IDS.index(request.node.callspec.id)
    found = [
        words
        for fault in (faults if is_complete else Random(day).sample(faults, _FAULTS_A_DAY))
        for words in _failures(
            forks,
            way,
            network,
            story,
            fault,
            range(1, _MOST) if is_complete else range(1 + day % _SHARE, _MOST, _SHARE),
            other=way == DAEMON,
        )
    ]
    assert not found, "\n\n".join(found)
