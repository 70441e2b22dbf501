"""Nothing is lost, given twice or brought back in any history of calls, whoever is killed meanwhile.

A failure names its seed: HISTORY_SEED=... has the same decisions made again. HISTORY_SECONDS says how long it lasts.
"""

from __future__ import annotations

import os
import secrets
import signal
from itertools import islice

import pytest

from ipam import wire
from tests.support.bridged import Bridged
from tests.support.calls import range_sets
from tests.support.confs import bridge_conf
from tests.support.ctl import audit
from tests.support.direct import Direct
from tests.support.history import Call, Look, Outcome, Verb, violations
from tests.support.host import BIN, Host
from tests.support.ipamd import Ipamd, connected
from tests.support.node import wanted
from tests.support.storm import Storm, disturbances, steps

_SECONDS = {False: 11.0, True: 150.0}  # of each case, by whether the run is complete
_ROUND = 4.0  # seconds after which everybody pauses and what is there is looked at


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cooldown", [0, 1])
def test_nothing_contradicts_the_promises(host: Host, is_complete: bool, cooldown: int) -> None:
    seed = os.environ.get("HISTORY_SEED") or secrets.token_hex(4)
    seconds = float(os.environ.get("HISTORY_SECONDS", _SECONDS[is_complete]))
    storm = Storm(host, seed, cooldown=cooldown)
    try:
        while storm.now() < seconds:
            storm.rage(_ROUND)
            storm.look()
            _assert_kept(storm)
        storm.end()
        storm.look()
        _assert_kept(storm)
        audit(host)
        host.assert_nothing_left()
        host.stop_daemon()
        assert not [each for each in storm.daemons if "Traceback" in each.said()]
    except AssertionError as failure:
        pytest.fail(
            f"{failure}\n\nthe last of the history:\n{storm.last(60)}\n\nagain: HISTORY_SEED={seed}", pytrace=True
        )
    outcomes = {each: sum(call.outcome == each for call in storm.calls) for each in Outcome}
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    print(
        f"HISTORY_SEED={seed}: {len(storm.calls)} calls, {told}; {len(storm.daemons)} daemons, in {storm.now():.0f} s"
    )
    assert outcomes[Outcome.DONE] > 10 and outcomes[Outcome.UNKNOWN], "this was no storm"


def _assert_kept(storm: Storm) -> None:
    found = violations(storm.calls, storm.looks, capacities=storm.capacities)
    owners = {name for each in storm.calls for name in each.owners}
    about = [name for name in sorted(owners) if any(name in words for words in found)]
    told = "\n\n".join(f"the last of {name}:\n{storm.last(12, name)}" for name in about[:4])
    assert not found, "\n".join(found) + "\n\n" + told


# A client that ended while the daemon had its request and did nothing


def _go_on(daemon: Bridged | Ipamd, host: Host) -> None:
    daemon.process.send_signal(signal.SIGCONT)
    daemon.stop()  # which does before what it has
    assert host.leases() == []


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_an_add_that_nobody_waits_for_undoes_nothing(host: Host, verb: str) -> None:
    conf = bridge_conf(ipMasqBackend="nftables")
    host.add_netns("a")
    daemon = Bridged(host, BIN / "cni-bridged").started()
    with Direct(host) as killed:
        daemon.process.send_signal(signal.SIGSTOP)
        killed.call("ADD", conf, "a")
    host.plugin(verb, {**conf, "cni.dev/valid-attachments": []}, "a").succeeded()
    _go_on(daemon, host)
    host.assert_nothing_left()


def test_an_allocation_that_nobody_waits_for_undoes_nothing(host: Host) -> None:
    conf = bridge_conf()
    daemon = Ipamd(host).started()
    with connected(host) as killed:
        daemon.signal(signal.SIGSTOP)
        killed.send(wire.render_request(wire.Allocate(wanted=wanted("a", sets=range_sets(["10.88.0.0/24"])))))
    host.plugin("DEL", conf, "a", plugin="cni-ipam", netns="").succeeded()
    _go_on(daemon, host)


# What judges


def test_a_seed_decides_everything() -> None:
    for draw in (lambda seed: steps(seed, 1, 3, 8), disturbances):
        drawn = [list(islice(draw(seed), 50)) for seed in ("a", "a", "b")]
        assert drawn[0] == drawn[1] != drawn[2]


def call(verb: str, owner: str, began: float, ended: float, *given: str, unknown: bool = False, code: int = 0) -> Call:
    outcome = Outcome.UNKNOWN if unknown else Outcome.REFUSED if code else Outcome.DONE
    return Call(
        verb=Verb(verb),
        network="n",
        owners=tuple(owner.split()),
        began=began,
        ended=ended,
        outcome=outcome,
        addresses=frozenset(given),
        code=code,
    )


def look(at: float, **held: str) -> Look:
    return Look(at=at, source="leases", held={("n", owner): frozenset(each.split()) for owner, each in held.items()})


GOOD = {
    "reuse": [call("ADD", "a", 0, 1, "x"), call("DEL", "a", 2, 3), call("ADD", "b", 2.5, 4, "x")],
    "two addresses": [call("ADD", "a", 0, 1, "x"), call("ADD", "b", 0, 1, "y")],
    "repeat": [call("ADD", "a", 0, 1, "x"), call("ADD", "a", 2, 3, "x"), call("CHECK", "a", 4, 5)],
    "killed ADD, another owner": [call("ADD", "a", 0, 1, unknown=True), call("ADD", "b", 2, 3, "x")],
    "killed repeat": [call("ADD", "a", 0, 1, "x"), call("ADD", "a", 2, 3, unknown=True), call("CHECK", "a", 4, 5)],
    "killed DEL": [call("ADD", "a", 0, 1, "x"), call("DEL", "a", 2, 3, unknown=True), call("ADD", "b", 4, 5, "x")],
    "killed DEL, then another address": [
        call("ADD", "a", 0, 1, "x"),
        call("DEL", "a", 2, 3, unknown=True),
        call("CHECK", "a", 3, 4, code=100),
        call("ADD", "a", 4, 5, "y"),
    ],
    "GC": [call("ADD", "a", 0, 1, "x"), call("GC", "a b", 2, 3), call("ADD", "b", 4, 5, "x"), call("DEL", "a", 6, 7)],
    "full": [
        call("ADD", "a", 0, 1, "x"),
        call("ADD", "b", 0, 1, unknown=True),
        call("ADD", "c", 2, 3, code=101),
        call("CHECK", "c", 4, 5, code=3),
    ],
    "full until a DEL ends": [
        call("ADD", "a", 0, 1, "x"),
        call("ADD", "b", 0, 1, "y"),
        call("DEL", "a", 2, 4),
        call("ADD", "c", 3, 5, code=101),
    ],
}
BAD = {
    "two owners": ("had two owners", [call("ADD", "a", 0, 1, "x"), call("ADD", "b", 0, 2, "x")]),
    "two owners, one deleted later": (
        "had two owners",
        [
            call("ADD", "a", 0, 1, "x"),
            call("ADD", "b", 2, 3, "x"),
            call("DEL", "a", 4, 5),
            call("DEL", "b", 6, 7),
        ],
    ),
    "given while a long holder has it, and again": (
        "had two owners",
        [
            call("ADD", "a", 0, 1, "x"),
            call("ADD", "b", 2, 3, "x"),
            call("DEL", "b", 4, 5),
        ],
    ),
    "two owners although a repeat was killed": (
        "had two owners",
        [
            call("ADD", "a", 0, 1, "x"),
            call("ADD", "a", 2, 3, unknown=True),
            call("ADD", "b", 4, 5, "x"),
        ],
    ),
    "two owners although a GC spared one": (
        "had two owners",
        [
            call("ADD", "a", 0, 1, "x"),
            call("GC", "b", 2, 3),
            call("ADD", "b", 4, 5, "x"),
        ],
    ),
    "another address": ("gave others", [call("ADD", "a", 0, 1, "x"), call("ADD", "a", 2, 3, "y")]),
    "lost": ("CHECK denies it", [call("ADD", "a", 0, 1, "x"), call("CHECK", "a", 2, 3, code=100)]),
    "no address": ("without an address", [call("ADD", "a", 0, 1)]),
    "DEL undone": ("CHECK succeeds", [call("ADD", "a", 0, 1, "x"), call("DEL", "a", 2, 3), call("CHECK", "a", 4, 5)]),
    "GC undone": ("CHECK succeeds", [call("ADD", "a", 0, 1, "x"), call("GC", "a", 2, 3), call("CHECK", "a", 4, 5)]),
    "DEL refused": ("a DEL was refused", [call("DEL", "a", 0, 1, code=5)]),
    "ADD refused": ("an ADD was refused", [call("ADD", "a", 0, 1, code=5)]),
    "an address, and told that there is none": (
        "was told that there is none",
        [call("ADD", "a", 0, 1, "x"), call("ADD", "a", 2, 3, code=101)],
    ),
    "full without reason": (
        "none was free",
        [
            call("ADD", "a", 0, 1, "x"),
            call("DEL", "a", 2, 3),
            call("ADD", "b", 4, 5, "y"),
            call("ADD", "c", 6, 7, code=101),
        ],
    ),
    "no history": ("two calls at once", [call("ADD", "a", 0, 2, "x"), call("CHECK", "a", 1, 3)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_histories_that_contradict_nothing(name: str) -> None:
    assert violations(GOOD[name], capacities={"n": 2}) == []


@pytest.mark.parametrize("name", BAD)
def test_histories_that_contradict_a_promise(name: str) -> None:
    words, calls = BAD[name]
    assert words in "\n".join(violations(calls, capacities={"n": 2}))


ATTACHED = [call("ADD", "a", 0, 1, "x")]
DELETED = [*ATTACHED, call("DEL", "a", 2, 3)]
KILLED = [*ATTACHED, call("DEL", "a", 2, 3, unknown=True)]


@pytest.mark.parametrize(
    ("calls", "seen", "agrees"),
    [
        pytest.param(ATTACHED, look(2, a="x"), True, id="attached"),
        pytest.param(ATTACHED, look(2), False, id="lost"),
        pytest.param(ATTACHED, look(2, a="y"), False, id="another address"),
        pytest.param(ATTACHED, look(2, a="x y"), False, id="one more address"),
        pytest.param(ATTACHED, look(2, a="x", b="y"), False, id="a stranger"),
        pytest.param(DELETED, look(1.5, a="x"), True, id="attached until then"),
        pytest.param(DELETED, look(4), True, id="deleted"),
        pytest.param(DELETED, look(4, a="x"), False, id="deleted, and there"),
        pytest.param(KILLED, look(4, a="x"), True, id="a killed DEL that did nothing"),
        pytest.param(KILLED, look(4), True, id="a killed DEL that did it"),
    ],
)
def test_what_is_there_agrees_with_the_history(calls: list[Call], seen: Look, agrees: bool) -> None:
    assert (violations(calls, [seen]) == []) == agrees
