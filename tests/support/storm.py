"""A host in a storm: many workers' calls of the installed client while daemon, clients and one-shots are killed.

What is decided follows from a seed alone: the same seed has the same workers make the same calls in the same order, and
the same processes disturbed after the same pauses. What then happens is a matter of time, and is recorded.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from tests.support.bridged import Bridged
from tests.support.confs import bridge_conf, with_result
from tests.support.ctl import ctl_json
from tests.support.history import EXHAUSTED, Call, Look, Outcome, Verb
from tests.support.host import BIN, REFERENCE, Host, Json

REQUEST_TIMEOUT = 10  # seconds, in the host's settings
_LONGEST = REQUEST_TIMEOUT + 10  # seconds: what a client waits longer, and a busy machine
_TRY_AGAIN, _NOT_AVAILABLE = 11, 50
_IFNAME = "eth0"
_ATTEMPTS = 20  # until a call that is not disturbed has to be answered
_OWN_PREFIX = re.compile(r"\b10\.9\d\.0\.\d+|\bfd00:9\d::[0-9a-f]+\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a worker does next. `killed_after` and `paused_after` are seconds from the start of its process."""

    verb: Verb
    network: int
    directly: bool  # by the one-shot program, as if there were no client
    killed_after: float | None
    paused_after: float | None
    then: Verb  # at once, after a kill: the daemon may be at work on what was killed
    lost: tuple[float, ...]  # for each worker: whether GC takes its container for lost, below the share
    pause: float


class Kind(StrEnum):
    """What happens to the daemon."""

    KILL = "SIGKILL"
    PAUSE = "SIGSTOP"
    KILL_PAUSED = "SIGSTOP, SIGKILL"
    STOP = "SIGTERM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """After so many seconds this happens to the daemon, and that lasts so many."""

    after: float
    kind: Kind
    lasting: float


_VERBS = {Verb.ADD: 40, Verb.DEL: 32, Verb.CHECK: 14, Verb.GC: 8, Verb.STATUS: 6}
_KINDS = {Kind.KILL: 4, Kind.PAUSE: 3, Kind.KILL_PAUSED: 1, Kind.STOP: 2}
_LOST_SHARE = 0.3


def steps(seed: str, worker: int, networks: int, workers: int) -> Iterator[Step]:
    """What a worker does, for ever."""
    random = Random(f"{seed} worker {worker}")
    while True:
        verb = random.choices(list(_VERBS), list(_VERBS.values()))[0]
        network, directly = random.randrange(networks), random.random() < 0.06
        after = 10 ** random.uniform(-3, -0.3)
        drawn = random.random()
        yield Step(
            verb=verb,
            network=network,
            directly=directly,
            killed_after=after if drawn < 0.15 or (directly and drawn < 0.5) else None,
            paused_after=after if drawn > 0.97 else None,
            then=random.choice((Verb.ADD, Verb.DEL)),
            lost=tuple(random.random() for _ in range(workers)),
            pause=random.uniform(0, 0.05),
        )


def disturbances(seed: str) -> Iterator[Disturbance]:
    """What happens to the daemon, for ever."""
    random = Random(f"{seed} daemon")
    while True:
        kind = random.choices(list(_KINDS), list(_KINDS.values()))[0]
        yield Disturbance(after=random.uniform(0.2, 2.5), kind=kind, lasting=random.uniform(0.0, 0.8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network, and how many containers it has IPv4 addresses for."""

    conf: Json
    capacity: int

    @property
    def name(self) -> str:
        return str(self.conf["name"])


def networks() -> list[Network]:
    """One with fewer addresses than containers, one of both families with published ports, one by iptables."""
    both = [[{"subnet": "10.91.0.0/28"}], [{"subnet": "fd00:91::/64"}]]
    confs = [
        bridge_conf(
            name="n0", bridge="br0", ipMasqBackend="nftables", ipam={"type": "cni-ipam", "subnet": "10.90.0.0/29"}
        ),
        bridge_conf(name="n1", bridge="br1", ipMasqBackend="nftables", ipam={"type": "cni-ipam", "ranges": both}),
        bridge_conf(
            name="n2", bridge="br2", ipMasqBackend="iptables", ipam={"type": "cni-ipam", "subnet": "10.92.0.0/28"}
        ),
    ]
    free = (5, 13, 13)  # the gateway has one
    return [Network(conf=conf, capacity=capacity) for conf, capacity in zip(confs, free, strict=True)]


@dataclass(slots=True)
class _Container:
    """One container in one network, as its runtime knows it. `known` is None after a call that was not answered."""

    name: str
    network: Network
    port: int
    result: Json | None = None
    known: bool | None = False  # whether it is attached
    busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def conf(self) -> Json:
        ports = [{"hostPort": self.port, "containerPort": 80, "protocol": "tcp"}]
        wants_port = self.network.name == "n1"
        return {**self.network.conf, **({"runtimeConfig": {"portMappings": ports}} if wants_port else {})}


class Wrong(AssertionError):
    """A call ended as none may."""


class Storm:
    """Workers with one container in each network, the daemon, and what was recorded."""

    def __init__(self, host: Host, seed: str, *, workers: int = 8, cooldown: int = 0) -> None:
        self.host, self.seed, self.workers = host, seed, workers
        self.networks = networks()
        self.calls: list[Call] = []
        self.looks: list[Look] = []
        self.daemons: list[Bridged] = []
        self._happened: list[tuple[float, str]] = []
        self._origin = time.monotonic()
        self._enough = threading.Event()
        self._containers = {
            (network.name, worker): _Container(f"c{worker}-{network.name}", network, 8000 + worker)
            for network in self.networks
            for worker in range(workers)
        }
        self._steps = [steps(seed, each, len(self.networks), workers) for each in range(workers)]
        self._disturbances = disturbances(seed)
        settings = f"{{request_timeout: {REQUEST_TIMEOUT}, addresses: {{cooldown: {cooldown}}}}}\n"
        host.run("tee", "/etc/cni-bridge/config.yaml", stdin=settings.encode())
        names = [each.name for each in self._containers.values()]
        host.run("ip", "-batch", "-", stdin="".join(f"netns add {each}\n" for each in names).encode())
        self._start_daemon()

    @property
    def capacities(self) -> dict[str, int]:
        """How many containers each network has addresses for."""
        return {each.name: each.capacity for each in self.networks}

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._origin

    def rage(self, seconds: float) -> None:
        """Have everybody call, and be killed, that long; then wait for all calls, and end in no doubt about any."""
        self._enough.clear()
        with ThreadPoolExecutor(self.workers + 1) as pool:
            running = [pool.submit(self._work, each) for each in range(self.workers)]
            running.append(pool.submit(self._disturb))
            end = time.monotonic() + seconds
            while time.monotonic() < end and not any(each.done() for each in running):
                time.sleep(0.05)
            self._enough.set()
        for each in running:
            each.result()
        self._settle()

    def end(self) -> None:
        """Detach everybody, twice; collect garbage."""
        for _ in range(2):
            for container in self._containers.values():
                self._until_answered(container, Verb.DEL)
        for network in self.networks:
            self._collect(network, dict.fromkeys(range(self.workers), True), None)

    # The daemon.

    def _start_daemon(self) -> None:
        self.daemons.append(Bridged(self.host, BIN / "cni-bridged"))
        self.daemons[-1].started()
        self.host.daemon = self.daemons[-1]

    def _stop_daemon(self) -> None:
        self.host.daemon = None
        self.daemons[-1].stop()  # which ends with 0, once it has finished what it has

    def _disturb(self) -> None:
        for each in self._disturbances:
            if self._enough.wait(each.after):
                return
            process = self.daemons[-1].process
            self._note(f"the daemon: {each.kind}, for {each.lasting:.3f} s")
            match each.kind:
                case Kind.STOP:
                    self._stop_daemon()
                    time.sleep(each.lasting)
                case Kind.KILL:
                    process.kill()
                    time.sleep(each.lasting)
                case Kind.PAUSE | Kind.KILL_PAUSED:
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(each.lasting)
                    process.send_signal(signal.SIGCONT if each.kind == Kind.PAUSE else signal.SIGKILL)
            if each.kind != Kind.PAUSE:
                process.wait()
                self._start_daemon()
            self._note("the daemon: goes on")

    def _note(self, words: str) -> None:
        at = self.now()
        self._happened.append((at, f"{at:8.3f} {words}"))

    # The workers.

    def _work(self, worker: int) -> None:
        for step in self._steps[worker]:
            if self._enough.wait(step.pause):
                return
            network = self.networks[step.network]
            container = self._containers[network.name, worker]
            if step.verb == Verb.GC:
                self._collect(network, {each: step.lost[each] < _LOST_SHARE for each in range(self.workers)}, step)
            elif step.verb == Verb.STATUS:
                self._call(Verb.STATUS, network, network.conf, (), step)
            else:
                with container.busy:
                    outcome = self._act(container, step.verb, step)
                    if step.killed_after is not None and outcome == Outcome.UNKNOWN:
                        self._act(container, step.then, None)

    def _act(self, container: _Container, verb: Verb, step: Step | None) -> Outcome:
        conf = container.conf
        if verb == Verb.CHECK or (verb == Verb.DEL and container.result is not None):
            conf = with_result(conf, container.result or {"cniVersion": conf["cniVersion"], "ips": []})
        before = container.known
        if verb != Verb.CHECK:
            container.known = None
        call, result = self._call(verb, container.network, conf, (container.name,), step)
        match verb, call.outcome:
            case Verb.ADD, Outcome.DONE:
                container.result, container.known = result, True
            case Verb.ADD, Outcome.REFUSED:
                container.known = before
            case Verb.DEL, Outcome.DONE:
                container.known = False
        return call.outcome

    def _collect(self, network: Network, lost: dict[int, bool], step: Step | None) -> None:
        """GC with those attachments that are valid: all that may be, but for those that nobody is at work on and that
        are not attached, or are taken for lost."""
        with ExitStack() as held:
            gone = []
            for worker, taken in lost.items():
                container = self._containers[network.name, worker]
                if container.busy.acquire(blocking=False):
                    held.callback(container.busy.release)
                    if taken or container.known is False:
                        gone.append(container)
            kept = [
                {"containerID": each.name, "ifname": _IFNAME}
                for (name, _), each in self._containers.items()
                if name == network.name and each not in gone
            ]
            conf = {**network.conf, "cni.dev/valid-attachments": kept}
            call, _ = self._call(Verb.GC, network, conf, tuple(each.name for each in gone), step)
            for each in gone:
                if call.outcome == Outcome.DONE:
                    each.known = False
                elif each.known:
                    each.known = None

    def _call(
        self, verb: Verb, network: Network, conf: Json, owners: tuple[str, ...], step: Step | None
    ) -> tuple[Call, Json]:
        program = BIN / ("cni-bridge-oneshot" if step and step.directly else "cni-bridge")
        container = owners[0] if verb in (Verb.ADD, Verb.DEL, Verb.CHECK) else ""
        env = {
            "CNI_COMMAND": str(verb),
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}" if container else "",
            "CNI_IFNAME": _IFNAME if container else "",
            "CNI_PATH": f"{BIN}:{REFERENCE}",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        began = self.now()
        process = subprocess.Popen(
            [*self.host.enter(), program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        out, err = _finish(process, json.dumps(conf).encode(), step)
        outcome, result = _judged(verb, process.returncode, out.decode(), err.decode())
        words = "killed" if process.returncode < 0 else result.get("msg", "")
        recorded = Call(
            verb=verb,
            network=network.name,
            owners=owners,
            began=began,
            ended=self.now(),
            outcome=outcome,
            addresses=frozenset(each["address"].partition("/")[0] for each in result.get("ips", ())),
            code=result.get("code", 0),
            words=f"one-shot {words}" if step and step.directly else words,
        )
        self.calls.append(recorded)
        if recorded.ended - began > _LONGEST:
            raise Wrong(f"it took longer than {_LONGEST} s: {recorded}")
        return recorded, result

    # Between storms.

    def _settle(self) -> None:
        """Let the daemon finish what it has; then repeat each call of which nobody knows what it did, or undo it."""
        self._stop_daemon()
        self._start_daemon()
        random = Random(f"{self.seed} settling at {len(self.looks)}")
        for container in self._containers.values():
            retried = random.random() < 0.5
            if container.known is None:
                self._until_answered(container, Verb.ADD if retried else Verb.DEL)

    def _until_answered(self, container: _Container, verb: Verb) -> None:
        for _ in range(_ATTEMPTS):
            if self._act(container, verb, None) == Outcome.DONE:
                return
            verb = Verb.DEL if self.calls[-1].code == EXHAUSTED else verb
        raise Wrong(f"{verb} of {container.name} never succeeds:\n{self.calls[-1]}")

    def look(self) -> list[str]:
        """Record who has which address by the database, by the containers' links and by the rules; what else differs,
        in words."""
        leases: dict[tuple[str, str], frozenset[str]] = {}
        for each in ctl_json(self.host, "leases"):
            key = each["network"], each["container_id"]
            leases[key] = leases.get(key, frozenset()) | {each["address"].partition("/")[0]}
        names = {each.name: (each.network.name, each.name) for each in self._containers.values()}
        script = "".join(f"echo {each}; ip -n {each} -json address;" for each in names)
        lines = iter(self.host.shell(script).split("\n"))
        links = {names[name]: _addresses_of(json.loads(next(lines) or "[]")) for name in lines if name}
        by_address = {address: owner for owner, addresses in leases.items() for address in addresses}
        rules: dict[tuple[str, str], frozenset[str]] = {}
        for address in _OWN_PREFIX.findall("\n".join(self.host.nft_elements() + self.host.iptables_rules())):
            key = by_address.get(address, ("", "nobody"))
            rules[key] = rules.get(key, frozenset()) | {address}
        for source, held in (("leases", leases), ("links", links), ("rules", rules)):
            self.looks.append(
                Look(at=self.now(), source=source, held={key: each for key, each in held.items() if each})
            )
        attached = sum(bool(each) for each in links.values())
        veths = sum(name.startswith("veth") for name in self.host.links())
        records = len(self.host.files("/run/cni-bridge/attachments"))
        if (veths, records) == (attached, attached):
            return []
        return [f"at {self.now():.3f} {attached} are attached, with {veths} links on the host and {records} records"]

    def last(self, count: int, about: str = "") -> str:
        """The last events, in their order; of those of an owner, if one is named."""
        events = [(each.began, str(each)) for each in self.calls if not about or about in each.owners]
        return "\n".join(words for _, words in sorted(events + self._happened)[-count:])


def _finish(process: subprocess.Popen[bytes], stdin: bytes, step: Step | None) -> tuple[bytes, bytes]:
    """What it prints, unless the step has it killed first."""
    if step is not None and step.paused_after is not None:
        paused = threading.Timer(step.paused_after, _pause, [process, step.paused_after])
        paused.start()
    if step is not None and step.killed_after is not None:
        try:
            return process.communicate(stdin, timeout=step.killed_after)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()
    try:
        return process.communicate(stdin, timeout=3 * _LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Wrong(f"{process.args} never ends") from None


def _pause(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Stop it for a while."""
    with suppress(ProcessLookupError):  # send_signal looks whether it has ended; it may end just then
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)


def _judged(verb: Verb, status: int, out: str, err: str) -> tuple[Outcome, Json]:
    """What became of a call, and what it printed."""
    words = f"{verb} ended with {status}\n{out}\n{err}"
    if "Traceback" in err:
        raise Wrong(words)
    if status == -signal.SIGKILL:
        return Outcome.UNKNOWN, {}
    try:
        printed: Json = json.loads(out) if out else {}
    except ValueError:
        raise Wrong(words) from None
    if status == 0:
        return Outcome.DONE, printed
    code = printed.get("code")
    if status != 1 or code is None:
        raise Wrong(words)
    if code == _TRY_AGAIN:
        return Outcome.UNKNOWN, printed
    allowed = {Verb.ADD: (EXHAUSTED,), Verb.STATUS: (_NOT_AVAILABLE,), Verb.CHECK: (3, 100)}
    if code not in allowed.get(verb, ()):
        raise Wrong(words)
    return Outcome.REFUSED, printed


def _addresses_of(links: list[Json]) -> frozenset[str]:
    return frozenset(
        info["local"]
        for link in links
        if link["ifname"] == _IFNAME
        for info in link["addr_info"]
        if info["scope"] == "global"
    )
