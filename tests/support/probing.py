"""Who reaches whom, asked of a whole host at once: servers that tell their names, and probes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support.host import Host

_PATIENCE = {True: 5.0, False: 0.5}  # seconds, for what has to answer and for what has to keep silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One attempt from a namespace, the host's own if it is empty: `tcp`, `udp` or `ping`.

    `own_port` 0 stands for any.
    """

    source: str
    kind: str
    address: str
    port: int = 0
    own_port: int = 0


def serve(host: Host, servers: Mapping[str, tuple[int, ...]], address: str = "::") -> None:
    """Start a server in each of the namespaces, at these ports, that answers with its namespace's name."""
    script = Path(__file__).with_name("serve.py")
    started = [
        host.start(
            sys.executable,
            *("-IS", str(script), netns or "host", address),
            *map(str, ports),
            netns=netns,
            stdout=subprocess.PIPE,
        )
        for netns, ports in servers.items()
    ]
    for each in started:
        assert each.stdout.readline() == b"ready\n"


def ask(host: Host, expected: Mapping[Probe, bool]) -> dict[Probe, str]:
    """What the probes are answered, all at once; those of which nothing is expected are given up soon."""
    by_source = defaultdict(list)
    for each in expected:
        by_source[each.source].append(each)

    def run(source: str) -> dict[Probe, str]:
        probes = by_source[source]
        wanted = [[each.kind, each.address, each.port, each.own_port, _PATIENCE[expected[each]]] for each in probes]
        script = Path(__file__).with_name("probe.py")
        printed = host.run(sys.executable, "-IS", script, netns=source, stdin=json.dumps(wanted).encode()).stdout
        return dict(zip(probes, json.loads(printed), strict=True))

    with ThreadPoolExecutor(len(by_source)) as pool:
        return {probe: answer for answers in pool.map(run, by_source) for probe, answer in answers.items()}


def assert_answers(host: Host, expected: Mapping[Probe, str]) -> None:
    """Each probe is answered so: by that server, to that address if one is named, "" by nobody.

    What differs is shown all at once.
    """
    found = ask(host, {probe: bool(answer) for probe, answer in expected.items()})
    wrong = [
        f"{probe.source or 'host'}: {probe.kind} {probe.address} {probe.port or ''}: {found[probe]!r}, not {answer!r}"
        for probe, answer in expected.items()
        if not _fits(found[probe], answer)
    ]
    assert not wrong, "\n".join(wrong)


def hear(host: Host, sender: str, frames: Iterable[bytes], *, at: str) -> list[bytes]:
    """Send the frames by `eth0` of one namespace, and give those that come in by `eth0` of another meanwhile."""
    words = (sys.executable, "-IS", Path(__file__).with_name("frames.py"), "eth0")
    sent = [each.hex() for each in frames]
    if at == sender:
        heard = host.run(*words, "1.5", *sent, netns=sender).stdout
    else:
        listener = host.start(*words, "60", netns=at, stdout=subprocess.PIPE)
        assert listener.stdout.readline() == b"ready\n"
        host.run(*words, "0.5", *sent, netns=sender)
        listener.terminate()
        heard = listener.communicate()[0].decode()
    return [bytes.fromhex(each) for each in heard.removeprefix("ready\n").split()]


def _fits(found: str, expected: str) -> bool:
    return found == expected if not expected or " " in expected else found.partition(" ")[0] == expected
