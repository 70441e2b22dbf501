"""A host on which requests are ended, or made to fail, at any of their effects, and all that is left is listed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import armed
from tests.support.armed import CHANGES, KILL
from tests.support.bridged import greets
from tests.support.confs import DUAL_STACK, bridge_conf
from tests.support.executables import Executables, Process
from tests.support.forks import Forks, Started
from tests.support.host import BIN, REFERENCE, Answer, Host, Json
from tests.support.ipamd import greets as ipamd_greets
from tests.support.ipamd import outside_path, wait_until

ONESHOT, DAEMON, IPAMD = WAYS = ("oneshot", "daemon", "ipamd")
_CONTROL = "/run/test-control"
_IFNAME = "eth0"

_LOOK = """
for each in "" $(ls /run/netns); do
    echo "== netns $each"
    in="${each:+-n $each}"
    ip $in -json -details link; echo; ip $in -json address; echo
    for family in 4 6; do ip $in -$family -json route show table all; echo; done
    tc $in -json qdisc; echo
done
echo "== nft"; nft --stateless --json list ruleset
echo "== iptables"
if [ -s /proc/net/ip_tables_names ]; then iptables-legacy-save; fi
if [ -s /proc/net/ip6_tables_names ]; then ip6tables-legacy-save; fi
echo "== files"; find /run /var/lib/cni-bridge /var/lib/cni \\( -type f -o -type d \\) -print
echo "== conntrack"; conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null; true
"""
# What stays: the database and what belongs to it, locks that are held by descriptor, what the test itself has.
_STAYING = re.compile(
    r"/var/lib/cni-bridge/(ipam\.(db|db-journal|reserve)|ipamd\.lock)$|/run/netns|/run/xtables\.lock$|/run/test-control"
    r"|/var/lib/cni/networks(/[^/]+(/(lock|last_reserved_ip\.\d+))?)?$"
)


def full_conf(backend: str, *, number: int = 0, **keys: object) -> Json:
    """A network of which an attachment has all that there is to have; host ports differ by `number`."""
    ports = [
        {"hostPort": 8080 + number, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 9053 + number, "containerPort": 53, "protocol": "udp"},
    ]
    rates = {"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000}
    given: Json = {
        "ipam": DUAL_STACK,
        "ipMasqBackend": backend,
        "macspoofchk": True,
        "hairpinMode": True,
        "runtimeConfig": {"portMappings": ports},
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
        "txQLen": 500,
        "allmulti": True,
        **rates,
        **keys,
    }
    return bridge_conf(**given)


def as_chain(conf: Json) -> list[Json]:
    """The same as a list of plugins, each of which does its part."""
    common = {key: conf[key] for key in ("cniVersion", "name")}
    rates = {key: value for key, value in conf.items() if key.endswith(("Rate", "Burst"))}
    chained = {"sysctl", "txQLen", "allmulti", "runtimeConfig", *rates}
    return [
        {key: value for key, value in conf.items() if key not in chained},
        {**common, "type": "portmap", "runtimeConfig": conf["runtimeConfig"]},
        {**common, "type": "firewall"},
        {**common, "type": "bandwidth", **rates},
        {**common, "type": "tuning", "mac": "02:00:00:00:00:99"}
        | {key: conf[key] for key in ("sysctl", "txQLen", "allmulti")},
    ]


# The configurations of one plugin or of a chain of them, for the container of that number: their host ports differ.
Network = Callable[[int], Sequence[Json]]


def single(backend: str, **keys: object) -> Network:
    """All of it done by one plugin."""
    return lambda number: [full_conf(backend, number=number, **keys)]


def chained(backend: str) -> Network:
    """Each part of it done by another plugin."""
    return lambda number: as_chain(full_conf(backend, number=number))


@dataclass
class Lab:
    """A host whose requests are served in one way: by processes of their own, by `cni-bridged`, or with an `ipamd`."""

    forks: Forks | Executables
    way: str
    network: Network
    env: Json = field(default_factory=dict)
    host: Host = field(default_factory=Host)
    daemon: Started | Process | None = None
    results: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._control = outside_path(self.host, _CONTROL)
        self._fired = self._control.with_suffix(".fired")
        self.start()

    def close(self) -> None:
        """End it, and all that it has started."""
        daemon, self.daemon = self.daemon, None
        self.host.close()
        if daemon is not None:
            daemon.ended(10)

    # Who serves.

    def start(self) -> None:
        """Start who serves, if that is a daemon and it does not run."""
        if self.way == ONESHOT or (self.daemon is not None and self.daemon.ended() is None):
            return
        program = "cni-bridged" if self.way == DAEMON else "ipamd"
        does_greet = greets if self.way == DAEMON else ipamd_greets
        self.daemon = self.forks.start(self.host, program, env={armed.VARIABLE: _CONTROL})
        wait_until(lambda: does_greet(self.host), f"{program} does not greet: {self.daemon.said()}")

    # Requests.

    def confs(self, container: str) -> Sequence[Json]:
        """The configurations for the container."""
        return self.network("ab".index(container))

    def call(self, command: str, conf: Json, container: str = "a", *, netns: str | None = None) -> Answer:
        """Call one plugin as a runtime does."""
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container if command != "GC" else "",
            "CNI_NETNS": (f"/run/netns/{container}" if netns is None else netns) if command != "GC" else "",
            "CNI_IFNAME": _IFNAME if command != "GC" else "",
            "CNI_PATH": f"{BIN}:{REFERENCE}",
            **self.env,
        }
        stdin = json.dumps(conf).encode()
        if self.way == DAEMON and self.daemon is not None and self.daemon.ended() is None:
            client = BIN / ("cni-bridge" if conf["type"] == "bridge" else conf["type"])
            return self._by_client(client, conf, stdin, variables)
        if self.way != IPAMD:
            variables[armed.VARIABLE] = _CONTROL
        return self.forks.run(self.host, "cni-bridge-oneshot", conf["type"], env=variables, stdin=stdin)

    def _by_client(self, client: Path, conf: Json, stdin: bytes, variables: Json) -> Answer:
        if not client.exists():  # a chained plugin goes by its file's name
            client = Path("/run/plugins") / conf["type"]
            self.host.shell(f"mkdir -p /run/plugins; test -e {client} || cp {BIN}/cni-bridge {client}")
            self.host.shell(f"cp {BIN}/cni-bridge-oneshot /run/plugins/")
        done = self.host.run(client, stdin=stdin, check=False, env=variables)
        return Answer(done.returncode, done.stdout, done.stderr)

    def add(self, container: str = "a") -> Answer:
        """Attach: the answer of the last plugin, or of the one that failed or was ended."""
        result: Json = {}
        for conf in self.confs(container):
            answer = self.call("ADD", {**conf, "prevResult": result} if result else conf, container)
            if answer.status != 0:
                return answer
            result = answer.result
        self.results[container] = result
        return answer

    def delete(self, container: str = "a", *, netns: str | None = None) -> Answer:
        """Detach; as libcni does, it ends at the first failure."""
        for conf in reversed(self.confs(container)):
            answer = self.call("DEL", conf, container, netns=netns)
            if answer.status != 0:
                return answer
        return answer

    def collect(self, *valid: str) -> Answer:
        """Collect garbage; every plugin has its turn. The first failure, or the last answer."""
        keep = [{"containerID": each, "ifname": _IFNAME} for each in valid]
        answers = [self.call("GC", {**conf, "cni.dev/valid-attachments": keep}) for conf in self.confs("a")]
        return next((each for each in answers if each.status != 0), answers[-1])

    def check(self, container: str = "a") -> None:
        """It is as the result says, and reaches its gateway."""
        for conf in self.confs(container):
            self.call("CHECK", {**conf, "prevResult": self.results[container]}, container).succeeded()
        for each in self.results[container]["ips"]:
            self.host.ping(each["gateway"], container)

    def audit(self) -> None:
        """The operator's command finds nothing."""
        answer = self.forks.run(self.host, "cni-bridgectl", "audit", alone=True)
        assert answer.status == 0, answer.stdout + answer.stderr

    def repair(self) -> None:
        """The operator has the rules of all attachments made anew."""
        answer = self.forks.run(self.host, "cni-bridgectl", "repair", alone=True)
        assert answer.status == 0, answer.stdout + answer.stderr

    # Effects.

    def arm(self, number: int, *, watch: str = CHANGES, act: str = KILL, kinds: Sequence[str] = ()) -> None:
        """From now on, the process that comes to the effect of that number, from 1, ends there, or has it fail."""
        order = {"watch": watch, "left": number, "act": act, "kinds": list(kinds)}
        self._control.with_suffix(".new").write_text(json.dumps(order))
        self._control.with_suffix(".new").rename(self._control)

    def disarm(self) -> str:
        """The effect that was reached; empty if there were not so many."""
        self._control.unlink(missing_ok=True)
        try:
            what: str = json.loads(self._fired.read_text())
        except FileNotFoundError:
            return ""
        self._fired.unlink()
        return what

    def recover(self) -> None:
        """After a kill: what was ended is started again."""
        if self.daemon is not None:
            assert self.daemon.ended(5) == -9, "the daemon was ended"
            self.daemon = None
            self.start()

    # What is there.

    def state(self) -> frozenset[str]:
        """All that can be of an attachment, each in words: links, addresses, rules, files, leases and so on.

        An address that is leased is called by its owner, for after a DEL the next one is given.
        """
        leases = [line.split() for line in self.forks.run(self.host, "leases").stdout.splitlines()]
        text = self.host.shell(_LOOK)
        for address, owner in leases:
            name = f"IPv{6 if ':' in address else 4} of {owner}"
            text = re.sub(rf"(?<![\w.:]){re.escape(address)}(?![\w.:])", name, text)
        return frozenset(_parse(text)) | {f"lease of IPv{6 if ':' in each else 4} by {by}" for each, by in leases}

    def _told(self) -> Iterator[tuple[str, str]]:
        for container, result in self.results.items():
            for each in result["ips"]:
                yield each["address"].partition("/")[0], f"net1/{container}/{_IFNAME}"


def _parse(text: str) -> Iterator[str]:
    for section in text.split("== ")[1:]:
        head, _, body = section.partition("\n")
        match head.split():
            case ["netns", *name]:
                yield from _netns(name[0] if name else "host", body.splitlines())
            case ["nft"]:
                for each in json.loads(body or '{"nftables": []}')["nftables"]:
                    yield from _nft(each)
            case ["iptables"]:
                yield from (f"iptables {line}" for line in body.splitlines() if line.startswith(("-A", "-N")))
            case ["files"]:
                yield from (f"file {each}" for each in body.splitlines() if not _STAYING.search(each))
            case ["conntrack"]:
                for line in body.splitlines():
                    if found := re.search(r"\b(tcp|udp)\b.* dport=(8080|9053|80|53)\b", line):
                        yield f"conntrack {found[1]} {found[2]}"


def _netns(name: str, lines: list[str]) -> Iterator[str]:
    links, addresses, routes, routes6, qdiscs = (json.loads(each) for each in lines if each)
    for each in links:
        port = each.get("linkinfo", {}).get("info_slave_data", {})
        words = {key: each[key] for key in ("master", "ifalias", "mtu", "txqlen", "group") if key in each}
        words |= {key: port[key] for key in ("hairpin", "isolated") if key in port}
        words |= {"address": each["address"]} if name != "host" else {}
        flags = sorted({"UP", "PROMISC", "ALLMULTI"} & set(each["flags"]))
        yield f"{name}: link {each['ifname']} {words} {flags}"
    for each in addresses:
        for one in each["addr_info"]:
            if one["scope"] == "global":
                yield f"{name}: address {one['local']}/{one['prefixlen']} on {each['ifname']}"
    for each in (*routes, *routes6):
        if (
            each.get("dev") != "lo"
            and not re.match("fe80|ff00|multicast", each["dst"])
            and each.get("protocol") != "ra"
        ):
            yield f"{name}: route {each['dst']} {each.get('gateway', '')} {each.get('table', '')} {each.get('dev', '')}"
    for each in qdiscs:
        if each["kind"] not in ("noqueue", "pfifo_fast", "fq_codel", "fq", "mq"):
            yield f"{name}: qdisc {each['kind']} {each.get('options')} on {each['dev']}"


def _nft(each: Json) -> Iterator[str]:
    ((kind, found),) = each.items()
    if kind == "metainfo":
        return
    elements = found.pop("elem", [])
    found = {key: value for key, value in found.items() if key != "handle"}
    yield f"nft {kind} {json.dumps(found, sort_keys=True)}"
    for one in elements:
        yield f"nft element of {found['table']} {found['name']}: {json.dumps(one, sort_keys=True)}"


@contextmanager
def lab(forks: Forks | Executables, way: str, network: Network) -> Iterator[Lab]:
    """A lab for one case, with the namespace of a container."""
    made = Lab(forks, way, network)
    try:
        made.host.add_netns("a")
        yield made
    finally:
        made.close()


def well_formed(answer: Answer) -> None:
    """A success, or one document that says what failed, and not that nobody knows."""
    if answer.status != 0:
        assert answer.code != 999, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr, answer.stderr
