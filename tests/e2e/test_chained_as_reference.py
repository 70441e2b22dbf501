"""Side by side with Debian's reference plugins: the same chain gives an equal result, reachability and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.chain import CniDir
from tests.support.conflist import Runtime, assert_chain_gone, conflist, plugin_directory, tc_figures
from tests.support.confs import add_outside
from tests.support.host import Host, Json
from tests.support.probing import Probe, assert_answers, serve

NETWORKS = {"a": 1, "b": 1, "c": 2}  # which container is attached to which network
ADDRESSES = {"a": "10.91.0.2", "b": "10.91.0.3", "c": "10.92.0.2"}
HOST_PORTS = {"a": 8001, "b": 8002, "c": 8003}
HOST, OUTSIDE = "198.51.100.1", "198.51.100.2"
PUBLISHED, PRIVATE = 80, 443
SLOW = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000}
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}


def bridge(number: int = 1) -> Json:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": f"10.9{number}.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    keys = {"isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    return {"type": "bridge", "bridge": f"cni{number}", **keys}


@dataclass
class Side:
    """A host with one of the two sets of plugins."""

    host: Host
    plugins: CniDir
    ours: bool

    def runtime(self, chain: Json, **capabilities: object) -> Runtime:
        """The chain on this side."""
        return Runtime(self.host, self.plugins, chain, runtime_config=capabilities)


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    """Our plugins on one host, the reference's on another like it; bridged frames pass both firewalls."""
    hosts = [Host(bridge_nf=True), Host(bridge_nf=True)]
    ours = plugin_directory(tmp_path / "ours")
    theirs = plugin_directory(tmp_path / "theirs", ())
    yield Side(hosts[0], ours, ours=True), Side(hosts[1], theirs, ours=False)
    for each in hosts:
        each.close()


@pytest.fixture(params=[True, False], ids=["ours", "reference"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    """One of the two after the other: what is expected of both stands in the test."""
    made = Host(bridge_nf=True)
    names = ("bridge", "portmap", "firewall", "host-local") if request.param else ()
    yield Side(made, plugin_directory(tmp_path, names), ours=request.param)
    made.close()


def comparable(result: Json) -> Json:
    """The result without what is random: names of links on the host, and MAC addresses that nobody asked for."""
    interfaces = [
        {
            **each,
            "name": re.sub("^(veth|bwp)[0-9a-f]+$", r"\1", each["name"]),
            "mac": each["mac"] if each["mac"].startswith("02:0a") else "",
        }
        for each in result["interfaces"]
    ]
    return {**{key: value for key, value in result.items() if value}, "interfaces": interfaces}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_results_limits_and_settings_are_equal_and_are_taken_back(sides: tuple[Side, Side], version: str) -> None:
    tuned = {"mac": "02:0a:0b:0c:0d:0e", "mtu": 1400, "promisc": True, "allmulti": True}
    sysctl = {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "300"}
    chain = conflist(
        bridge(),
        PORTMAP,
        {"type": "firewall"},
        {"type": "tuning", **tuned, "sysctl": sysctl},
        {"type": "bandwidth", **SLOW},
        version=version,
    )
    seen = []
    for side in sides:
        host = side.host
        host.add_netns("a")
        runtime = side.runtime(chain, portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
        before = runtime.call("ADD", runtime.conf_of("bridge"), "a").result
        former = settings(host)
        result = before
        for conf in chain["plugins"][1:]:
            result = runtime.call("ADD", conf, "a", result).result
        during = settings(host)
        limits = [
            {key: each[key] for key in ("kind", "rate", "burst", "lat") if key in each}
            for index in (1, 3)
            for each in tc_figures(host, result["interfaces"][index]["name"])
        ]
        runtime.call("DEL", runtime.conf_of("tuning"), "a", result).succeeded()
        after = settings(host)
        assert after == {**former, "arp_filter": "1", "somaxconn": "300"}, "kernel settings stay, all else is restored"
        seen.append((comparable(result), {**during}, limits))
        runtime.delete("a", result)
        assert list(host.links("a")) == ["lo"]
        assert not [name for name in host.links() if name.startswith(("veth", "bwp"))]
    assert_chain_gone(sides[0].host)
    assert seen[0] == seen[1]


def settings(host: Host) -> Json:
    """What `tuning` can change of the container `a`."""
    link = host.links("a")["eth0"]
    names = {"arp_filter": "ipv4/conf/eth0/arp_filter", "somaxconn": "core/somaxconn"}
    mac = link["address"] if link["address"].startswith("02:0a") else ""
    return {
        **{key: link[key] for key in ("mtu", "promiscuity", "allmulti")},
        "mac": mac,
        **{key: host.shell(f"cat /proc/sys/net/{path}", netns="a").strip() for key, path in names.items()},
    }


RUNTIMES_MAC = {"runtimeConfig": {"mac": "02:0a:00:00:00:06"}}
ARGS_MAC = {"args": {"cni": {"mac": "02:0a:00:00:00:07"}}}


@pytest.mark.parametrize(
    ("keys", "args"),
    [
        pytest.param(
            {"mac": "02:0a:00:00:00:05", **RUNTIMES_MAC, **ARGS_MAC}, "MAC=02:0a:00:00:00:08", id="args first"
        ),
        pytest.param({"mac": "02:0a:00:00:00:05", **RUNTIMES_MAC}, "MAC=02:0a:00:00:00:08", id="then the runtime"),
        pytest.param({"mac": "02:0a:00:00:00:05"}, "MAC=02:0a:00:00:00:08", id="then CNI_ARGS"),
        pytest.param({"mac": "02:0a:00:00:00:05", "mtu": 0}, "", id="mtu 0 is none"),
        pytest.param({"mtu": 1400, "args": {"cni": {"mtu": 1300}}}, "", id="mtu of args"),
        pytest.param({"promisc": True, "args": {"cni": {"promisc": False}}}, "", id="promisc of args"),
        pytest.param({"allmulti": True, "args": {"cni": {"allmulti": False}}}, "", id="allmulti of args"),
        pytest.param(
            {
                "sysctl": {"net.core.somaxconn": "300"},
                "args": {"cni": {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}},
            },
            "",
            id="kernel settings of both",
        ),
        pytest.param({"sysctl": {"kernel.msgmax": "1"}}, "", id="kernel setting outside of net"),
        pytest.param({"sysctl": {"net.core.somaxconn": 300}}, "", id="kernel setting that is a number"),
        pytest.param({"sysctl": 5}, "", id="kernel settings that are none"),
    ],
)
def test_tuning_takes_its_values_from_where_the_reference_does(sides: tuple[Side, Side], keys: Json, args: str) -> None:
    seen = []
    for side in sides:
        host = side.host
        host.add_netns("a")
        host.shell("ip link add v0 type veth peer name eth0 netns a; ip -n a link set eth0 up; ip link set v0 up")
        previous = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}]}
        conf = {"cniVersion": "1.0.0", "name": "net1", "type": "tuning", "prevResult": previous, **keys}
        env = {**side.plugins.env, "CNI_ARGS": args}
        answer = host.plugin("ADD", conf, "a", plugin=side.plugins.find("tuning"), env=env)
        seen.append((answer.status, answer.result["interfaces"] if answer.status == 0 else [], settings(host)))
    assert seen[0] == seen[1]


def attached(side: Side, policies: tuple[str, str], **portmap: object) -> None:
    """Three containers on two networks with these ingress policies, each with a server and a published port."""
    host = side.host
    add_outside(host)
    route_from_outside_alone(host)
    for name, number in NETWORKS.items():
        host.add_netns(name)
        chain = conflist(
            bridge(number),
            {**PORTMAP, **portmap},
            {"type": "firewall", "ingressPolicy": policies[number - 1]},
            name=f"net{number}",
        )
        port = {"hostPort": HOST_PORTS[name], "containerPort": PUBLISHED, "protocol": "tcp"}
        result = side.runtime(chain, portMappings=[port]).add(name)
        assert result["ips"][0]["address"] == f"{ADDRESSES[name]}/24"
    serve(host, dict.fromkeys(NETWORKS, (PUBLISHED, PRIVATE)))


def route_from_outside_alone(host: Host) -> None:
    host.shell("ip route add 10.88.0.0/13 via 198.51.100.1", netns="outside")


def directly(source: str, target: str) -> tuple[Probe, Probe]:
    """By the container's own address."""
    address = ADDRESSES[target]
    return (
        Probe(source=source, kind="ping", address=address),
        Probe(source=source, kind="tcp", address=address, port=PRIVATE),
    )


def published(source: str, target: str, address: str = HOST) -> Probe:
    """By a port of the host."""
    return Probe(source=source, kind="tcp", address=address, port=HOST_PORTS[target])


def expectation(reaches: dict[tuple[str, str], bool]) -> dict[Probe, str]:
    """From everywhere to each container: what is not named is reached."""
    expected = {}
    for source in ("", "outside", *NETWORKS):
        for target in NETWORKS:
            reached = reaches.get((source, target), True)
            ping, tcp = directly(source, target)
            expected |= {ping: "pong" if reached else "", tcp: target if reached else ""}
            if reached:
                expected[published(source, target)] = target
    return expected


def across(reached: bool, *pairs: str) -> dict[tuple[str, str], bool]:
    """The pairs, of a letter each, in both directions."""
    return {(one, other): reached for pair in pairs for one, other in (pair, pair[::-1])}


@pytest.mark.parametrize(
    ("policies", "reaches"),
    [
        pytest.param(("same-bridge", "same-bridge"), across(False, "ac", "bc"), id="same-bridge"),
        pytest.param(("same-bridge", "open"), {}, id="same-bridge beside open"),
    ],
)
def test_who_is_reached_under_an_ingress_policy(
    side: Side, policies: tuple[str, str], reaches: dict[tuple[str, str], bool]
) -> None:
    attached(side, policies)
    # The reference parts isolated networks for published ports too; here those stay open, as for all that is isolated.
    crossing = {published(*pair): pair[1] if side.ours else "" for pair in reaches}
    assert_answers(side.host, expectation(reaches) | crossing)


def test_ingress_policy_isolated_parts_containers_of_one_bridge(tmp_path: Path) -> None:
    """Debian's reference is older than this policy."""
    host = Host(bridge_nf=True)
    try:
        attached(Side(host, plugin_directory(tmp_path), ours=True), ("isolated", "isolated"))
        assert_answers(host, expectation(across(False, "ab", "ac", "bc")) | {published("b", "a"): "a"})
    finally:
        host.close()


GATEWAY = "10.91.0.1"


@pytest.mark.parametrize(
    ("keys", "local", "hairpin", "outside"),
    [
        pytest.param({}, f"a {GATEWAY}", f"a {GATEWAY}", f"a {OUTSIDE}", id="snat"),
        pytest.param({"snat": False}, "", "", f"a {OUTSIDE}", id="no snat"),
    ],
)
def test_under_an_open_policy_all_is_reached_and_published_ports_see_this_source(
    side: Side, keys: Json, local: str, hairpin: str, outside: str
) -> None:
    attached(side, ("open", "open"), **keys)
    everywhere = [directly(source, target) for source in ("", "outside", *NETWORKS) for target in NETWORKS]
    assert_answers(
        side.host,
        {
            **{ping: "pong" for ping, _ in everywhere},
            published("", "a", "127.0.0.1"): local,
            published("", "a"): f"a {HOST}",
            published("a", "a"): hairpin,
            published("outside", "a"): outside,
            published("c", "a"): f"a {GATEWAY}",
            # A neighbour's own address is kept here, for the answer comes back this way.
            published("b", "a"): "a 10.91.0.3" if side.ours or not keys.get("snat", True) else f"a {GATEWAY}",
        },
    )


@pytest.mark.parametrize(
    ("conditions", "reaching"),
    [
        pytest.param(["-s", OUTSIDE], {"outside"}, id="source"),
        pytest.param(["!", "-s", f"{OUTSIDE}/24"], {"b", "c"}, id="not the source"),
        pytest.param(["-s", f"{OUTSIDE},{ADDRESSES['b']}"], {"outside", "b"}, id="several sources"),
        pytest.param(["!", "-d", HOST], set(), id="not the destination"),
        pytest.param(["-i", "cni+"], {"b", "c"}, id="interface"),
        pytest.param(["!", "-i", "uplink"], {"", "b", "c"}, id="not the interface"),
        pytest.param(
            ["-m", "iprange", "!", "--src-range", "10.91.0.3-10.92.0.2", "-m", "comment", "--comment", "all but them"],
            {"", "outside"},
            id="range",
        ),
        pytest.param(
            ["-m", "conntrack", "--ctstate", "NEW", "-m", "mark", "!", "--mark", "0x1/0x1"], None, id="state, mark"
        ),
    ],
)
def test_conditions_in_iptables_words_mean_what_they_meant(
    side: Side, conditions: list[str], reaching: set[str] | None
) -> None:
    attached(side, ("open", "open"), conditionsV4=conditions)
    sources = {"", "outside", "b", "c"}
    reaching = sources if reaching is None else reaching
    assert_answers(side.host, {published(source, "a"): "a" if source in reaching else "" for source in sources})


def test_masquerading_of_all_that_is_published(tmp_path: Path) -> None:
    """Debian's reference is older than this key."""
    host = Host(bridge_nf=True)
    try:
        attached(Side(host, plugin_directory(tmp_path), ours=True), ("open", "open"), masqAll=True)
        sources = ("", "outside", "a", "b")
        assert_answers(host, {published(source, "a"): f"a {GATEWAY}" for source in sources})
    finally:
        host.close()


@pytest.mark.parametrize("what", ["rate without burst", "burst without rate", "port 0", "no result", "policy", "mac"])
def test_what_the_reference_refuses_is_refused(sides: tuple[Side, Side], what: str) -> None:
    plugin, keys = {
        "rate without burst": ("bandwidth", {"ingressRate": 8000}),
        "burst without rate": ("bandwidth", {"runtimeConfig": {"bandwidth": {"egressBurst": 8000}}}),
        "port 0": ("portmap", {"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}}),
        "no result": ("firewall", {"prevResult": None}),
        "policy": ("firewall", {"ingressPolicy": "closed"}),
        "mac": ("tuning", {"mac": "zz"}),
    }[what]
    previous = {
        "interfaces": [{"name": "cni1"}, {"name": "v0"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "10.91.0.2/24", "interface": 2}],
    }
    conf = {"cniVersion": "1.0.0", "name": "net1", "type": plugin, "prevResult": previous, **keys}
    for side in sides:
        side.host.add_netns("a")
        side.host.shell("ip link add v0 type veth peer name eth0 netns a")
        side.host.shell("ip link add cni1 type bridge; ip address add 10.91.0.1/24 dev cni1; ip link set cni1 up")
        answer = side.host.plugin("ADD", conf, "a", plugin=side.plugins.find(plugin), env=side.plugins.env)
        assert answer.status == 1, answer.stdout
