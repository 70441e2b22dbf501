"""Ports that `portmap` publishes on a condition: who meets it reaches the container, whichever firewall works here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from tests.support.chain import CniDir
from tests.support.conflist import Runtime, assert_chain_gone, conflist, plugin_directory
from tests.support.confs import add_outside
from tests.support.host import Host, Json
from tests.support.probing import Probe, assert_answers, serve

UPLINK = {4: "198.51.100.1", 6: "2001:db8:51::1"}
SECOND = {4: "198.51.100.9", 6: "2001:db8:51::9"}  # another address of the host
HOST, OUTSIDE, NEIGHBOUR = "", "outside", "neighbour"
EVERYBODY = {HOST, OUTSIDE, NEIGHBOUR}
HIDE_NFTABLES = "for each in /usr/lib/*/libnftables.so.1; do mount --bind /dev/null $each || exit; done"
SHOW_NFTABLES = "for each in /usr/lib/*/libnftables.so.1; do umount $each || exit; done"


@dataclass(frozen=True, slots=True)
class Case:
    """Conditions for both families, and who meets them at the host's first and at its second address."""

    four: list[str]
    six: list[str]
    first: set[str]
    second: set[str]


COMMENT = ["-m", "comment", "--comment", "from here; only"]
CASES = {
    "a": Case(["-s", "198.51.100.2"], ["-s", "2001:db8:51::2"], {OUTSIDE}, {OUTSIDE}),
    "b": Case(["!", "-s", "198.51.100.2/31"], ["!", "-s", "2001:db8:51::2/127"], {HOST}, {HOST}),
    "c": Case(
        [*COMMENT, "-s", "198.51.100.1,198.51.100.3,198.51.100.8/29"],
        [*COMMENT, "-s", "2001:db8:51::1,2001:db8:51::3,2001:db8:51::8/125"],
        {HOST, NEIGHBOUR},
        {HOST, NEIGHBOUR},
    ),
    "d": Case(["!", "-d", UPLINK[4]], ["!", "-d", UPLINK[6]], set(), EVERYBODY),
    "e": Case(
        ["!", "-d", SECOND[4], "-m", "iprange", "!", "--src-range", "198.51.100.3-198.51.100.7"],
        ["!", "-d", SECOND[6], "-m", "iprange", "!", "--src-range", "2001:db8:51::3-2001:db8:51::7"],
        {HOST, OUTSIDE},
        set(),
    ),
    "f": Case(["-i", "uplink"], ["-i", "up+"], {OUTSIDE, NEIGHBOUR}, {OUTSIDE, NEIGHBOUR}),
    "g": Case(["!", "-i", "uplink"], ["!", "-i", "up+"], {HOST}, {HOST}),
    "h": Case(["-m", "mark", "--mark", "0x10/0xf0"], ["-m", "mark", "--mark", "0x12"], {OUTSIDE}, {OUTSIDE}),
    "i": Case(
        ["-m", "conntrack", "!", "--ctstate", "NEW,RELATED"],
        ["-m", "state", "!", "--state", "NEW"],
        set(),
        set(),
    ),
}


@pytest.fixture
def firewalled_host(host: Host, backend: str) -> Host:
    """A host with two addresses, two others on its link, and nftables or only legacy iptables."""
    add_outside(host, neighbour=True)
    for family, address in SECOND.items():
        host.shell(f"ip address add {address}/{24 if family == 4 else 64} dev uplink nodad")
    for tool in ("iptables", "ip6tables"):
        source = "198.51.100.2" if tool == "iptables" else "2001:db8:51::2"
        host.shell(f"{tool}-legacy -t mangle -A PREROUTING -s {source} -j MARK --set-mark 0x12")
    if backend == "iptables":
        host.shell(HIDE_NFTABLES)
    return host


@pytest.fixture
def directory(tmp_path: Path) -> CniDir:
    """Our plugins under the reference's names."""
    return plugin_directory(tmp_path)


def chain(host: Host, directory: CniDir, port: int, *, subnets: int = 2, **keys: object) -> Runtime:
    """A network whose containers publish their port 80 at that port of the host."""
    ranges = [[{"subnet": each}] for each in ("10.90.7.0/24", "fd00:7::/64")[:subnets]]
    bridge: Json = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}][:subnets]},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, **keys}
    mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
    return Runtime(
        host, directory, conflist(bridge, portmap, version="1.1.0"), runtime_config={"portMappings": [mapping]}
    )


def detach_all(host: Host, backend: str, runtimes: dict[str, Runtime]) -> None:
    """Detach as a runtime that has forgotten everything; then nothing is left."""
    for name, runtime in runtimes.items():
        runtime.forget(name, netns="")
    if backend == "iptables":
        host.shell(SHOW_NFTABLES)
    assert host.shell("nft list chain inet cni_bridge conditional | grep dnat", check=False) == ""
    assert_chain_gone(host)


def probes(port: int, *sources: str) -> list[Probe]:
    """From each of these to the port at the host's first address of both families."""
    return [Probe(source=each, kind="tcp", address=at, port=port) for each in sources for at in UPLINK.values()]


def test_who_meets_a_condition_of_iptables_reaches_the_port(
    firewalled_host: Host, backend: str, directory: CniDir
) -> None:
    host = firewalled_host
    runtimes, expected = {}, {}
    for port, (name, case) in enumerate(CASES.items(), 8000):
        host.add_netns(name)
        runtimes[name] = chain(host, directory, port, conditionsV4=case.four, conditionsV6=case.six)
        result = runtimes[name].add(name)
        runtimes[name].call("CHECK", runtimes[name].conf_of("portmap"), name, result).succeeded()
        for addresses, reaching in ((UPLINK, case.first), (SECOND, case.second)):
            for source, address in product(EVERYBODY, addresses.values()):
                probe = Probe(source=source, kind="tcp", address=address, port=port)
                expected[probe] = name if source in reaching else ""
    serve(host, dict.fromkeys(CASES, (80,)))
    assert_answers(host, expected)
    detach_all(host, backend, runtimes)


def test_what_is_published_on_a_condition_is_checked_mended_and_taken_back(
    firewalled_host: Host, backend: str, directory: CniDir
) -> None:
    host, outside = firewalled_host, ["-s", "198.51.100.2"]
    ports = dict(zip("abc", (8000, 8001, 8002), strict=True))
    runtimes = {
        name: chain(host, directory, port, conditionsV4=outside, conditionsV6=["!", "-s", "2001:db8:51::3"])
        for name, port in ports.items()
    }
    results = {}
    for name, runtime in runtimes.items():
        host.add_netns(name)
        results[name] = runtime.add(name)
    serve(host, dict.fromkeys(ports, (80,)))
    expected = {probe: name for name, port in ports.items() for probe in probes(port, OUTSIDE)}
    expected |= {probe: "" for port in ports.values() for probe in probes(port, NEIGHBOUR)}
    assert_answers(host, expected)
    flush, chain_name = {
        "nftables": ("nft flush chain inet cni_bridge conditional", "conditional"),
        "iptables": ("for each in iptables ip6tables; do $each-legacy -t nat -F $CHAIN; done", "CNI-BRIDGE-COND"),
    }[backend]
    host.shell(f"CHAIN={chain_name}; {flush}")
    for name, runtime in runtimes.items():
        assert f"chain {chain_name}" in runtime.check_fails("portmap", name, results[name])
    assert_answers(host, dict.fromkeys(expected, ""))
    for name, runtime in runtimes.items():
        assert runtime.add(name) == results[name]
        runtime.check(name, results[name])
    assert_answers(host, expected)
    runtimes["a"].delete("a", results["a"])
    runtimes["b"].collect([("c", "eth0")])
    runtimes["c"].check("c", results["c"])
    assert_answers(host, {probe: answer if answer == "c" else "" for probe, answer in expected.items()})
    detach_all(host, backend, runtimes)


def test_a_port_of_the_host_is_shared_by_condition(firewalled_host: Host, backend: str, directory: CniDir) -> None:
    """As Amazon has a service of the node at an address of its own, and a container at the others."""
    host = firewalled_host
    serve(host, {"": (8080,)}, address=SECOND[4])
    conditions = {
        "a": ["!", "-d", SECOND[4], "-s", "198.51.100.2"],
        "b": ["!", "-d", SECOND[4], "!", "-s", "198.51.100.2"],
    }
    runtimes = {name: chain(host, directory, 8080, subnets=1, conditionsV4=each) for name, each in conditions.items()}
    results = {}
    for name, runtime in runtimes.items():
        host.add_netns(name)
        results[name] = runtime.add(name)
    serve(host, dict.fromkeys("ab", (80,)))
    at = {SECOND[4]: ("host", "host", "host"), UPLINK[4]: ("a", "b", "b")}
    assert_answers(
        host,
        {
            Probe(source=source, kind="tcp", address=address, port=8080): answer
            for address, answers in at.items()
            for source, answer in zip((OUTSIDE, NEIGHBOUR, HOST), answers, strict=True)
        },
    )
    for name, runtime in runtimes.items():
        runtime.check(name, results[name])
    detach_all(host, backend, runtimes)


def test_words_of_nftables_are_for_nftables_alone(firewalled_host: Host, backend: str, directory: CniDir) -> None:
    host = firewalled_host
    host.add_netns("a")
    runtime = chain(
        host, directory, 8080, conditionsV4=["ip", "saddr", "!=", "198.51.100.3"], conditionsV6=["-s", "::1"]
    )
    result = runtime.call("ADD", runtime.conf_of("bridge"), "a").result
    answer = runtime.call("ADD", runtime.conf_of("portmap"), "a", result)
    if backend == "iptables":
        assert answer.code == 7
        assert 'conditionsV4 "ip saddr != 198.51.100.3" is in words of nftables' in answer.error["msg"]
    else:
        serve(host, {"a": (80,)})
        answers = {OUTSIDE: "a", NEIGHBOUR: ""}
        probes = {s: Probe(source=s, kind="tcp", address=UPLINK[4], port=8080) for s in answers}
        assert_answers(host, {probes[source]: answer for source, answer in answers.items()})
    detach_all(host, backend, {"a": runtime})


def test_a_condition_for_a_family_that_the_container_has_not_is_in_nobodys_way(
    firewalled_host: Host, backend: str, directory: CniDir
) -> None:
    host = firewalled_host
    host.add_netns("a")
    runtime = chain(host, directory, 8080, subnets=1, conditionsV6=["ip6", "saddr", "::1"])
    runtime.check("a", runtime.add("a"))
    detach_all(host, backend, {"a": runtime})
