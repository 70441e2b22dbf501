"""Nothing is lost or left when a process is killed: at any effect of ADD, DEL and GC, as they come in a run.

Each case has a host of its own, on which one request is ended before its n-th effect. What comes after goes by what a
host looks like on which the same was done undisturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

import pytest

from tests.support.executables import Executables
from tests.support.forks import Forks
from tests.support.host import Answer
from tests.support.lab import DAEMON, IPAMD, ONESHOT, WAYS, Lab, chained, lab, single, well_formed

_MOST = 300  # effects of one request
_SHARE = 29  # the points of which one is tried each day
_NETWORKS = {
    "nftables": single("nftables"),
    "iptables": single("iptables"),
    "host-local": single("nftables", ipam={"type": "host-local", "subnet": "10.88.0.0/24"}, cniVersion="1.0.0"),
    "chain": chained("nftables"),
}

Request = Callable[[Lab], Answer]
Then = Callable[[Lab, "Life"], None]


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a host looks like while the container is attached, and after; `other` is attached throughout."""

    attached: frozenset[str]
    gone: frozenset[str]
    other: bool


@pytest.fixture(scope="session")
def lives(forks: Forks) -> Callable[[str, str, bool], Life]:
    """Undisturbed lives, by way, network and whether another container is there."""

    @cache
    def live(way: str, network: str, other: bool) -> Life:
        with lab(forks, way, _NETWORKS[network]) as host:
            if other:
                _add_other(host)
            host.add().succeeded()
            host.check()
            attached = host.state()
            host.delete().succeeded()
            _collect(host, other).succeeded()
            if not other:
                host.host.assert_nothing_left()
            return Life(attached=attached, gone=host.state(), other=other)

    return live


def _add_other(host: Lab) -> None:
    host.host.add_netns("b")
    host.add("b").succeeded()


def _collect(host: Lab, other: bool) -> Answer:
    if host.confs("a")[0]["cniVersion"] != "1.1.0":
        return Answer(0, "", "")  # which brought GC
    return host.collect("b") if other else host.collect()


# What is done after the kill.


def _nothing_left(host: Lab, life: Life, after: str) -> None:
    left = host.state() - life.gone
    assert not left, f"after {after} is left: {_shown(left)}"
    host.audit()
    if life.other:
        host.check("b")


def _finish(host: Lab, life: Life) -> None:
    host.delete().succeeded()
    _nothing_left(host, life, "DEL")
    _collect(host, life.other).succeeded()
    _nothing_left(host, life, "GC")


def retry(host: Lab, life: Life) -> None:
    """ADD again, which makes what it would have made alone."""
    result = host.add().result
    assert host.add().result == result, "a repeat gives the same answer"
    host.check()
    host.audit()
    differs = host.state() ^ life.attached
    assert not differs, f"after ADD was repeated differs: {_shown(differs)}"
    _finish(host, life)


def attach_anew(host: Lab, life: Life) -> None:
    """ADD after a DEL, which may get another address."""
    host.add().succeeded()
    host.check()
    host.audit()
    _finish(host, life)


def attach_after_repair(host: Lab, life: Life) -> None:
    """ADD after somebody had the rules of all records made anew."""
    host.repair()
    attach_anew(host, life)


def delete(host: Lab, life: Life) -> None:
    """DEL at once."""
    _finish(host, life)


def delete_without_namespace(host: Lab, life: Life) -> None:
    """DEL when the container is gone."""
    host.host.run("ip", "netns", "del", "a")
    host.delete(netns="").succeeded()
    _nothing_left(host, life, "DEL without a namespace")


def collect(host: Lab, life: Life) -> None:
    """GC at once."""
    _collect(host, life.other).succeeded()
    _nothing_left(host, life, "GC")


def delete_killed_too(host: Lab, life: Life) -> None:
    """DEL, which is killed somewhere as well, and again."""
    host.arm(1 + Random(str(life.gone)).randrange(12))
    host.delete()
    if host.disarm():
        host.recover()
    _finish(host, life)


_THEN: dict[str, tuple[Then, ...]] = {
    "ADD": (retry, delete, collect, delete_without_namespace, delete_killed_too),
    "DEL": (delete, collect, attach_anew, attach_after_repair, delete_without_namespace),
    "GC": (collect, delete),
}


def _shown(words: frozenset[str]) -> str:
    return "\n".join(each[:200] for each in sorted(words))


def _kill(host: Lab, verb: str, number: int, *, other: bool) -> str:
    """End the request before that effect; which it was, empty if it has not so many and succeeded."""
    if verb != "ADD":
        host.add().succeeded()
        host.host.shell("bash -c 'echo > /dev/udp/10.88.0.1/9053'")  # the kernel tracks it: DEL has to end that
    host.arm(number)
    answer = {"ADD": host.add, "DEL": host.delete, "GC": lambda: _collect(host, other)}[verb]()
    reached = host.disarm()
    if not reached:
        answer.succeeded()
        return ""
    if host.way == ONESHOT:
        assert answer.status == -9
    else:
        well_formed(answer)
    host.recover()
    return reached


def _failures(
    forks: Forks | Executables,
    lives: Callable[[str, str, bool], Life],
    way: str,
    network: str,
    verb: str,
    then: Then,
    points: Sequence[int],
    *,
    other: bool,
) -> Iterator[str]:
    """What goes wrong after a kill at each of the points, until the request has no more."""
    life = lives(way, network, other)
    for number in points:
        reached = "?"
        with lab(forks, way, _NETWORKS[network]) as host:
            try:
                if other:
                    _add_other(host)
                reached = _kill(host, verb, number, other=other)
                if not reached:
                    return
                then(host, life)
            except AssertionError as failure:
                beside = "beside another" if other else "alone"
                yield f"{verb} {beside}, killed before effect {number}, {reached}, then {then.__name__}: {failure}"
    assert len(points) == 1, f"{verb} has more than {_MOST} effects"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_request_that_was_killed_is_completed_by_its_repetition(
    forks: Forks, lives: Callable[[str, str, bool], Life], is_complete: bool, today: int, verb: str, part: int
) -> None:
    """Alone and beside another container: all of both in the complete run, else in turn."""
    then = _THEN[verb][0]
    found = [
        words
        for other in (False, True)
        for words in _failures(
            forks, lives, ONESHOT, "nftables", verb, then, _points(part, 4, is_complete, today + other), other=other
        )
    ]
    assert not found, "\n\n".join(found)


def _points(part: int, parts: int, is_complete: bool, day: int) -> range:
    """This part of the points; of these every second, the others on other days, unless the run is complete."""
    if is_complete:
        return range(1 + part, _MOST, parts)
    return range(1 + part + parts * (day % 2), _MOST, 2 * parts)


_MATRIX = [
    pytest.param(way, network, verb, id=f"{way}-{network}-{verb}")
    for way, networks in (
        (ONESHOT, list(_NETWORKS)),
        (DAEMON, list(_NETWORKS)),
        (IPAMD, ["nftables"]),
    )
    for network in networks
    for verb in _THEN
    if (network, verb) != ("host-local", "GC")  # whose version has none
]
_IDS = [str(each.id) for each in _MATRIX]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("way", "network", "verb"), _MATRIX)
def test_nothing_is_left_of_a_request_that_was_killed(
    forks: Forks,
    lives: Callable[[str, str, bool], Life],
    is_complete: bool,
    today: int,
    request: pytest.FixtureRequest,
    way: str,
    network: str,
    verb: str,
) -> None:
    """Whatever comes after the kill, alone and beside another container; or one of all this each day."""
    day = today + 7 * _IDS.index(request.node.callspec.id)
    stories = [
        (then, other)
        for then in _THEN[verb]
        for other in (False, True)
        if (network, then) != ("host-local", collect)
        if (way, network, then) != (ONESHOT, "nftables", retry)  # above
    ]
    points = range(1, _MOST) if is_complete else range(1 + day % _SHARE, _MOST, _SHARE)
    found = [
        words
        for then, other in (stories if is_complete else [stories[day % len(stories)]])
        for words in _failures(forks, lives, way, network, verb, then, points, other=other)
    ]
    assert not found, "\n\n".join(found)


@pytest.mark.timeout(900)
def test_the_installed_executables_can_be_killed_too(
    lives: Callable[[str, str, bool], Life], is_complete: bool, today: int
) -> None:
    """Nothing but how they are started differs from the forks of all other tests."""
    points = range(1, _MOST, 5) if is_complete else [1 + today % 20]
    found = [
        words
        for way in (WAYS if is_complete else [WAYS[today % len(WAYS)]])
        for words in _failures(Executables(), lives, way, "nftables", "ADD", retry, points, other=today % 2 == 0)
    ]
    assert not found, "\n\n".join(found)
