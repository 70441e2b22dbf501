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
from ipam.api import Owner
from tests.support.bridged import Bridged
from tests.support.calls import range_sets
from tests.support.confs import bridge_conf, with_result
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
            _assert_kept(storm)
        storm.end()
        _assert_kept(storm)
        audit(host)
        host.assert_nothing_left()
        host.stop_daemon()
        assert not [each for each in storm.daemons if "Traceback" in each.said()]
    except Exception as failure:
        pytest.fail(f"{failure}\n\nthe last of the history:\n{storm.last(60)}\n\nagain: HISTORY_SEED={seed}")
    outcomes = {each: sum(call.outcome == each for call in storm.calls) for each in Outcome}
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    print(
        f"HISTORY_SEED={seed}: {len(storm.calls)} calls, {told}; {len(storm.daemons)} daemons, in {storm.now():.0f} s"
    )
    assert outcomes[Outcome.DONE] > 10 and outcomes[Outcome.UNKNOWN], "this was no storm"


def _assert_kept(storm: Storm) -> None:
    found = storm.look() + violations(storm.calls, storm.looks, capacities=storm.capacities)
    owners = {name for each in storm.calls for name in each.owners}
    about = [name for name in sorted(owners) if any(name in words for words in found)]
    told = "\n\n".join(f"the last of {name}:\n{storm.last(12, name)}" for name in about[:4])
    assert not found, "\n".join(found) + "\n\n" + told


# A client that ended while the daemon had its request and did nothing: what the runtime did since has to stand

NOBODY = {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}


def _go_on(daemon: Bridged | Ipamd) -> None:
    daemon.process.send_signal(signal.SIGCONT)
    daemon.stop()  # which does before what it has


@pytest.mark.parametrize(("forgotten", "then"), [("ADD", "DEL"), ("ADD", "GC"), ("DEL", "ADD"), ("GC", "ADD")])
def test_a_request_that_nobody_waits_for_undoes_nothing(host: Host, forgotten: str, then: str) -> None:
    conf = bridge_conf(ipMasqBackend="nftables")
    sent = {verb: {**conf, "cni.dev/valid-attachments": []} if verb == "GC" else conf for verb in (forgotten, then)}
    host.add_netns("a")
    daemon = Bridged(host, BIN / "cni-bridged").started()
    with Direct(host) as killed:
        daemon.process.send_signal(signal.SIGSTOP)
        killed.call(forgotten, sent[forgotten], "a", env=NOBODY if forgotten == "GC" else None)
    answer = host.plugin(then, sent[then], "a").succeeded()
    _go_on(daemon)
    if then == "ADD":
        host.plugin("CHECK", with_result(conf, answer.result), "a").succeeded()
        host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


ADDRESSES = range_sets(["10.88.0.0/24"])
OWNER = Owner(network="net1", container_id="a", ifname="eth0")


@pytest.mark.parametrize(
    ("forgotten", "then"),
    [
        pytest.param(wire.Allocate(wanted=wanted(OWNER, sets=ADDRESSES)), "DEL", id="Allocate"),
        pytest.param(wire.Release(owner=OWNER), "ADD", id="Release"),
        pytest.param(wire.Collect(network="net1", keep=frozenset()), "ADD", id="Collect"),
    ],
)
def test_a_question_that_nobody_waits_for_undoes_nothing(host: Host, forgotten: wire.Request, then: str) -> None:
    host.add_netns("a")
    daemon = Ipamd(host).started()
    with connected(host) as killed:
        daemon.signal(signal.SIGSTOP)
        killed.send(wire.render_request(forgotten))
    host.plugin(then, bridge_conf(), "a", plugin="cni-ipam").succeeded()
    _go_on(daemon)
    assert len(host.leases()) == (then == "ADD")


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
