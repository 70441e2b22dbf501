"""A network is what it should be without nftables, beside another program's rules, and with the administrator's."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations, product

import pytest

from tests.support.attaching import attach, detach
from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, route_from_outside, with_result
from tests.support.ctl import ctl
from tests.support.host import Host, Json
from tests.support.probing import Probe, assert_answers, serve

UPLINK = ("198.51.100.1", "2001:db8:51::1")
OUTSIDE = ("198.51.100.2", "2001:db8:51::2")
GATEWAY = ("10.88.0.1", "fd00:88::1")
ADDRESSES = {"a": ("10.88.0.2", "fd00:88::2"), "b": ("10.88.0.3", "fd00:88::3"), "c": ("10.89.0.2", "fd00:89::2")}
SUBNETS = {"net1": ("10.88.0.0/24", "fd00:88::/64"), "net2": ("10.89.0.0/24", "fd00:89::/64")}
TABLES = ("raw", "nat", "filter")
BOTH = ("tcp", "udp")


def ports(host_port: int, container_port: int, count: int = 1, host_ip: str = "") -> list[Json]:
    """Mappings of as many neighbouring ports, of TCP and UDP."""
    return [
        {"hostPort": host_port + each, "containerPort": container_port + each, "protocol": protocol}
        | ({"hostIP": host_ip} if host_ip else {})
        for protocol in BOTH
        for each in range(count)
    ]


def conf(*mappings: list[Json], **keys: object) -> Json:
    found = [each for mapping in mappings for each in mapping]
    given: Json = {"ipam": DUAL_STACK, "runtimeConfig": {"portMappings": found}, **keys}
    return bridge_conf(**given)


def second(*mappings: list[Json], **keys: object) -> Json:
    """Another network."""
    ranges = [[{"subnet": each}] for each in SUBNETS["net2"]]
    return conf(*mappings, name="net2", bridge="cni1", ipam={**DUAL_STACK, "ranges": ranges}, **keys)


def probes(source: str, addresses: tuple[str, ...], *asked: int) -> list[Probe]:
    """TCP and UDP to each of the ports at each of the addresses."""
    return [
        Probe(source=source, kind=kind, address=address, port=port)
        for kind, address, port in product(BOTH, addresses, asked)
    ]


def pings(source: str, addresses: tuple[str, ...]) -> list[Probe]:
    return [Probe(source=source, kind="ping", address=address) for address in addresses]


# Where nftables does not work


@pytest.fixture
def xtables_host(host: Host) -> Host:
    """A host where only legacy iptables works."""
    return without_nftables(host)


@pytest.fixture
def either_xtables_host(either_host: Host) -> Host:
    """The same, as a plain one and as Docker and Kubernetes set it."""
    return without_nftables(either_host)


def without_nftables(host: Host) -> Host:
    add_outside(host, neighbour=True)
    host.shell("for each in /usr/lib/*/libnftables.so.1; do mount --bind /dev/null $each || exit; done")
    return host


def saved(host: Host, variant: str = "legacy", tables: tuple[str, ...] = TABLES) -> list[str]:
    """The chains, policies and rules of both families, as iptables saves them, but for counters."""
    return [
        f"{tool} {table} {line.partition(' [')[0]}"
        for tool, table in product(("iptables", "ip6tables"), tables)
        for line in host.run(f"{tool}-{variant}-save", "-t", table).stdout.splitlines()
        if not line.startswith("#")
    ]


def owned(host: Host) -> list[str]:
    """The rules of iptables that are some attachment's or some network's."""
    return [each for each in saved(host) if "cni-bridge:" in each]


def detach_all(host: Host, confs: dict[str, Json]) -> None:
    """Detach these containers, after which nothing is left in iptables, and nothing anywhere else."""
    for name, of in confs.items():
        host.plugin("DEL", of, name).succeeded()
    assert owned(host) == []
    host.shell("for each in /usr/lib/*/libnftables.so.1; do umount $each || exit; done")
    host.assert_nothing_left()


EVERY_KIND = [
    ports(8080, 80),
    ports(8081, 81, host_ip="198.51.100.1"),
    ports(8081, 81, host_ip="2001:db8:51::1"),
    ports(9000, 90, host_ip="127.0.0.1"),
    ports(7000, 7000, 20),
    ports(6000, 5000, 20),
]


@pytest.mark.parametrize(
    ("keys", "outside", "loopback"),
    [
        pytest.param({}, OUTSIDE, GATEWAY[0], id="default"),
        pytest.param({"masqAll": True}, GATEWAY, GATEWAY[0], id="masqAll"),
        pytest.param({"snat": False}, OUTSIDE, "", id="no snat"),
    ],
)
def test_iptables_publishes(either_xtables_host: Host, keys: Json, outside: tuple[str, str], loopback: str) -> None:
    host = either_xtables_host
    confs = {"a": conf(*EVERY_KIND, **keys), "b": conf(), "c": second()}
    for name, of in confs.items():
        attach(host, of, name)
    serve(host, {"a": (80, 81, 90, 4999, 5000, 5019, 5020, 5999, 6020, 6999, 7000, 7019, 7020)})
    everywhere, inside = (8080, 7000, 7019, 6000, 6019), ("", "c") if "snat" in keys else ("", "a", "b", "c")
    expected = {
        probe: "a"
        for source in ("outside", "neighbour", *inside)
        for probe in [
            *probes(source, UPLINK, *everywhere, 8081),
            *(probes(source, GATEWAY, *everywhere) if source in inside else []),
        ]
    }
    for source in ("outside", "neighbour", *inside):
        expected |= dict.fromkeys(probes(source, UPLINK, 5999, 6020, 6999, 7020, 9000), "")
    for address, seen in zip(UPLINK, outside, strict=True):
        expected |= dict.fromkeys(probes("outside", (address,), 8080, 7019, 6019), f"a {seen}")
    expected |= dict.fromkeys(probes("", ("127.0.0.1",), 9000, *everywhere), f"a {loopback}" if loopback else "")
    expected |= dict.fromkeys(probes("", ("127.0.0.1", "127.0.0.2"), 8081), "")
    expected |= dict.fromkeys(probes("", ("127.0.0.2",), 9000), "")
    assert_answers(host, expected)
    detach_all(host, confs)


PUBLISHED, PRIVATE, ELSEWHERE = 80, 443, 7000  # ports of a container, published or not, and of everybody else
HOST_PORTS = {"a": 8001, "b": 8002, "c": 8003}
EVERY_WAY, UNPUBLISHED = "private direct ping published", "private direct ping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A mode and the ways to container `a` from outside, from a neighbour on its bridge, and from another network.

    It is reached by its own address at an unpublished and at a published port and by ping, and by the host's.
    """

    keys: Json = field(default_factory=dict)
    outside: str = "published"
    b: str = EVERY_WAY
    c: str = "published"
    itself: str = EVERY_WAY
    out: bool = True
    masquerades: bool = True


MODES = {
    "cni-bridge": Mode(),
    "bridge": Mode(keys={"type": "bridge"}, outside=EVERY_WAY, c=EVERY_WAY),
    "no icc": Mode(keys={"icc": False}, b="published"),
    "not isolated": Mode(keys={"isolated": False}, c=EVERY_WAY),
    "internal": Mode(
        keys={"internal": True, "runtimeConfig": {}}, outside="", b=UNPUBLISHED, c="", itself=UNPUBLISHED, out=False
    ),
    "routed": Mode(
        keys={"gatewayMode": "routed", "ipMasq": False},
        outside="direct ping",
        b=UNPUBLISHED,
        c="direct",
        itself=UNPUBLISHED,
        masquerades=False,
    ),
    "no masquerading": Mode(keys={"ipMasq": False}, outside=EVERY_WAY, masquerades=False),
    "trusted uplink": Mode(keys={"trustedInterfaces": ["uplink"]}, outside=EVERY_WAY),
    "trusted other link": Mode(keys={"trustedInterfaces": ["uplink2"]}),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_iptables_lets_pass_what_the_mode_allows_and_nothing_else(either_xtables_host: Host, mode: Mode) -> None:
    host = either_xtables_host
    route_from_outside(host, *SUBNETS["net1"], *SUBNETS["net2"])
    makers = {"a": conf, "b": conf, "c": second}
    confs = {name: make(ports(HOST_PORTS[name], PUBLISHED), **mode.keys) for name, make in makers.items()}
    for name, of in confs.items():
        attach(host, of, name)
    if not mode.out:  # so that it is more than the lack of a route that keeps it in
        for gateway in GATEWAY:
            host.shell(f"ip route add default via {gateway}", "a")
    serve(host, {**dict.fromkeys("abc", (PUBLISHED, PRIVATE)), "": (ELSEWHERE,), "outside": (ELSEWHERE,)})
    expected: dict[Probe, str] = {}
    ways = dict.fromkeys(("outside", "neighbour"), mode.outside)
    ways |= {"": mode.itself, "a": mode.itself, "b": mode.b, "c": mode.c}
    for source, open_ in ways.items():
        for way, asked in {
            "private": probes(source, ADDRESSES["a"], PRIVATE),
            "direct": probes(source, ADDRESSES["a"], PUBLISHED),
            "ping": pings(source, ADDRESSES["a"]),
            "published": probes(source, UPLINK, HOST_PORTS["a"]),
        }.items():
            answer = "pong" if way == "ping" else "a"
            expected |= dict.fromkeys(asked, answer if way in open_.split() else "")
    for own, masked, target in zip(ADDRESSES["a"], UPLINK, OUTSIDE, strict=True):
        seen = masked if mode.masquerades else own
        expected |= dict.fromkeys(pings("a", (target,)), "pong" if mode.out else "")
        expected |= dict.fromkeys(probes("a", (target,), ELSEWHERE), f"outside {seen}" if mode.out else "")
    for own, gateway in zip(ADDRESSES["a"], GATEWAY, strict=True):
        expected |= dict.fromkeys(probes("a", (gateway,), ELSEWHERE), f"host {own}")
    assert_answers(host, expected)
    detach_all(host, confs)


def test_iptables_keeps_containers_apart_when_bridged_frames_no_longer_pass_it_by_default(xtables_host: Host) -> None:
    host = xtables_host
    for each in ("iptables", "ip6tables"):
        host.sysctl(f"net.bridge.bridge-nf-call-{each}", "1")
    own = conf(ports(8080, PUBLISHED), icc=False, snat=False)
    result = attach(host, own, "a")
    for each in ("iptables", "ip6tables"):
        host.sysctl(f"net.bridge.bridge-nf-call-{each}", "0")
    host.plugin("CHECK", with_result(own, result), "a").succeeded()
    attach(host, conf(icc=False), "b")
    attach(host, conf(icc=False), "c")
    serve(host, dict.fromkeys("abc", (PUBLISHED, PRIVATE)))
    addresses = {**ADDRESSES, "c": ("10.88.0.4", "fd00:88::4")}
    expected: dict[Probe, str] = {}
    for source, target in permutations("abc", 2):
        expected |= dict.fromkeys(probes(source, addresses[target], PRIVATE), "")
        expected |= dict.fromkeys(pings(source, addresses[target]), "")
    for source in "bc":
        expected |= dict.fromkeys(probes(source, UPLINK, 8080), "a")
    assert_answers(host, expected)
    host.shell("ip link set cni0 type bridge nf_call_iptables 0")
    assert "nf_call_iptables" in host.plugin("CHECK", with_result(own, result), "a").error["msg"]
    host.plugin("ADD", own, "a").succeeded()
    host.plugin("CHECK", with_result(own, result), "a").succeeded()
    detach_all(host, dict.fromkeys("abc", own))


def test_a_failed_add_has_the_bridge_pass_iptables_no_longer(xtables_host: Host) -> None:
    host = xtables_host
    for each in ("iptables", "ip6tables"):
        host.sysctl(f"net.bridge.bridge-nf-call-{each}", "1")
    host.add_netns("a")
    host.shell("ip link add cni0 type bridge; ip link set cni0 up")
    looked = "ip -d link show cni0 | grep -o 'nf_call_ip[6]*tables [01]'"
    before = host.shell(looked)
    assert "nf_call_iptables 0" in before
    route = {"dst": "10.1.0.0/16", "gw": "203.0.113.1"}
    failing = conf(icc=False, ipam={**DUAL_STACK, "routes": [route]})
    assert host.plugin("ADD", failing, "a").code == 105
    assert host.shell(looked) == before
    host.plugin("ADD", conf(icc=False), "a").succeeded()
    assert host.shell(looked) == before.replace(" 0", " 1")
    detach_all(host, {"a": conf(icc=False)})


def test_iptables_names_who_has_a_port(xtables_host: Host) -> None:
    host, held = xtables_host, conf(*EVERY_KIND)
    attach(host, held, "holder-of-it")
    before = saved(host)
    host.add_netns("b")
    for wanted in (
        ports(8080, 81),
        ports(8080, 80, host_ip="198.51.100.1"),
        ports(8081, 80),
        ports(6990, 80, 11),
        ports(6990, 6990, 20),
        ports(6019, 6019, host_ip="2001:db8:51::1"),
    ):
        error = host.plugin("ADD", conf(wanted), "b").error
        assert (error["code"], "holder-of-it" in error["msg"]) == (109, True), f"{wanted}: {error}"
        assert saved(host) == before
    apart = conf(ports(8081, 80, host_ip="127.0.0.1"), ports(7020, 80), ports(5980, 80, 20))
    host.plugin("ADD", apart, "b").succeeded()
    detach_all(host, {"holder-of-it": held, "b": apart})


def test_iptables_del_takes_its_own_rules_and_a_repeated_add_doubles_none(xtables_host: Host) -> None:
    host, own = xtables_host, conf(*EVERY_KIND, masqAll=True)
    attach(host, conf(ports(8002, 80)), "b")
    attach(host, second(ports(8003, 80)), "c")
    before = saved(host)
    result = attach(host, own)
    made = saved(host)
    assert host.plugin("ADD", own, "a").result == result
    assert sorted(saved(host)) == sorted(made)
    assert len(made) > len(before)
    for told in (with_result(own, result), bridge_conf(ipam=DUAL_STACK), bridge_conf(ipMasq=None)):
        host.plugin("ADD", own, "a").succeeded()
        host.plugin("DEL", told, "a").succeeded()
        assert sorted(saved(host)) == sorted(before)
    host.plugin("ADD", own, "a").succeeded()
    host.plugin("GC", {**conf(), "cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]}).succeeded()
    assert sorted(saved(host)) == sorted(before)
    detach_all(host, {"b": conf(), "c": second()})


def test_iptables_check_names_each_rule_that_is_gone_and_repair_brings_it_back(xtables_host: Host) -> None:
    host = xtables_host
    own = conf(ports(8080, 80), ports(7000, 7000, 20), icc=False, trustedInterfaces=["uplink"])
    result = attach(host, own)
    complete, base = saved(host), base_rules(host)
    chains: dict[str, list[str]] = {}
    for each in complete:
        if " -A " in each:
            tool, table, _, chain, *_ = each.split()
            chains.setdefault(f"{tool} {table} {chain}", []).append(each)
    assert len(chains) > 30
    for which in (0, -1):  # of each chain
        for place, rules in chains.items():
            tool, table, chain = place.split()
            host.shell(f"{tool}-legacy -t {table} -D {chain} {which % len(rules) + 1}")
        error = host.plugin("CHECK", with_result(own, result), "a").error
        assert error["code"] == 100
        for place in chains:
            tool, table, chain = place.split()
            family = {"iptables": 4, "ip6tables": 6}[tool]
            assert f"in chain {chain} of the IPv{family} {table} table" in error["details"], place
        assert ctl(host, "repair").stdout == "the rules of 1 attachments are as recorded\n"
        assert sorted(saved(host)) == sorted(complete)
        assert base_rules(host) == base
        host.plugin("CHECK", with_result(own, result), "a").succeeded()
    detach_all(host, {"a": own})


def base_rules(host: Host) -> list[str]:
    """Those that are there whoever is attached, in their order."""
    return [each for each in saved(host) if "comment cni-bridge -" in each]


def test_iptables_repair_after_a_flush(xtables_host: Host) -> None:
    host = xtables_host
    confs = {"a": conf(ports(8080, 80)), "c": second(ports(7000, 7000, 20))}
    results = {name: attach(host, of, name) for name, of in confs.items()}
    serve(host, {"a": (80, 443), "c": (7000,)})
    reached = dict.fromkeys(probes("outside", UPLINK, 8080), "a") | dict.fromkeys(probes("", UPLINK, 7000), "c")
    complete = saved(host)
    flush = "; ".join(
        f"{tool}-legacy -t {table} {option}"
        for tool, table, option in product(("iptables", "ip6tables"), TABLES, ("-F", "-X"))
    )
    host.shell(flush)
    assert owned(host) == []
    assert_answers(host, dict.fromkeys(reached, ""))
    for name, of in confs.items():
        assert host.plugin("CHECK", with_result(of, results[name]), name).code == 100
    assert ctl(host, "repair").stdout == "the rules of 2 attachments are as recorded\n"
    assert sorted(saved(host)) == sorted(complete)
    assert_answers(host, reached)
    for name, of in confs.items():
        host.plugin("CHECK", with_result(of, results[name]), name).succeeded()
    detach_all(host, confs)


# A FORWARD chain that drops


@pytest.mark.parametrize("docker_user", [False, True], ids=["FORWARD", "DOCKER-USER"])
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_forward_chain_that_drops_lets_our_links_through(either_host: Host, variant: str, docker_user: bool) -> None:
    host = either_host
    add_outside(host)
    route_from_outside_alone(host)
    for tool in (f"iptables-{variant}", f"ip6tables-{variant}"):
        host.shell(f"{tool} -P FORWARD DROP")
        if docker_user:
            host.shell(f"{tool} -N DOCKER-USER; {tool} -A DOCKER-USER -j RETURN; {tool} -A FORWARD -j DOCKER-USER")
    chain = "DOCKER-USER" if docker_user else "FORWARD"
    theirs = saved(host, variant, ("filter",))
    confs = {"a": conf(ports(8001, 80)), "b": conf(ports(8002, 80)), "c": second(ports(8003, 80))}
    results = {"a": attach(host, confs["a"], "a")}
    with_one = saved(host, variant, ("filter",))
    added = [each for each in with_one if each not in theirs]
    assert sorted(each.split()[:1] + each.split()[2:6] for each in added) == [
        [tool, "-A", chain, option, "cni0"] for tool in ("ip6tables", "iptables") for option in ("-i", "-o")
    ]
    results["b"] = attach(host, confs["b"], "b")
    assert saved(host, variant, ("filter",)) == with_one, "nothing for a second container"
    results["c"] = attach(host, confs["c"], "c")
    serve(host, {**dict.fromkeys("abc", (80, 443)), "outside": (7000,)})
    expected = {
        **{
            probe: name
            for name, port in (("a", 8001), ("b", 8002), ("c", 8003))
            for source in ("outside", "", "a", "c")
            for probe in probes(source, UPLINK, port)
        },
        **dict.fromkeys(probes("outside", ADDRESSES["a"], 80, 443), ""),
        **dict.fromkeys(pings("outside", ADDRESSES["a"]), ""),
        **dict.fromkeys(probes("c", ADDRESSES["a"], 80, 443), ""),
        **dict.fromkeys(probes("b", ADDRESSES["a"], 443), "a"),
    }
    for name in "abc":
        for target, seen in zip(OUTSIDE, UPLINK, strict=True):
            expected |= dict.fromkeys(probes(name, (target,), 7000), f"outside {seen}")
            expected |= dict.fromkeys(pings(name, (target,)), "pong")
    assert_answers(host, expected)
    for each in added:
        tool, _, rule = each.split(" ", 2)
        host.shell(f"{tool}-{variant} -D {rule.removeprefix('-A ')}")
        error = host.plugin("CHECK", with_result(confs["a"], results["a"]), "a").error
        assert (error["code"], f"{tool}-{variant}" in error["details"]) == (100, True), error
        assert f"cni0 in chain {chain}" in error["details"]
        assert f" {rule.split()[2]} cni0 " in error["details"]
        # It is this rule that lets them through.
        family = "ip6tables".startswith(tool)
        dropped = probes("outside", (UPLINK[family],), 8001) if "-o" in rule else probes("a", (OUTSIDE[family],), 7000)
        assert_answers(host, dict.fromkeys(dropped, ""))
        host.plugin("ADD", confs["b"], "b").succeeded()
        host.plugin("CHECK", with_result(confs["a"], results["a"]), "a").succeeded()
    assert_answers(host, expected)
    host.plugin("DEL", confs["a"], "a").succeeded()
    assert_answers(
        host, {probe: name for probe, name in expected.items() if probe.source != "a" and name in ("b", "c")}
    )
    host.plugin("DEL", confs["b"], "b").succeeded()
    left = [each for each in saved(host, variant, ("filter",)) if each not in theirs]
    assert len(left) == 4
    assert all(" cni1 " in each for each in left)
    host.plugin("DEL", confs["c"], "c").succeeded()
    assert saved(host, variant, ("filter",)) == theirs
    host.assert_nothing_left()


def route_from_outside_alone(host: Host) -> None:
    for subnets in SUBNETS.values():
        for subnet, via in zip(subnets, UPLINK, strict=True):
            host.shell(f"ip route add {subnet} via {via}", "outside")


def test_chains_that_accept_are_left_alone(host: Host) -> None:
    for variant in ("nft", "legacy"):
        host.shell(f"iptables-{variant} -N DOCKER-USER; ip6tables-{variant} -P FORWARD ACCEPT")
    before = {variant: saved(host, variant, ("filter",)) for variant in ("nft", "legacy")}
    attach(host, conf(ports(8080, 80)))
    for variant, rules in before.items():
        assert saved(host, variant, ("filter",)) == rules
    detach(host, conf())


# What other programs do to their rules, and the administrator's own

THEIRS = """*filter
:INPUT ACCEPT [0:0]
:FORWARD {} [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
"""


def reload(host: Host, variant: str, policy: str) -> None:
    """Have another program put its own rules in place of all that iptables has."""
    for tool in ("iptables", "ip6tables"):
        host.run(f"{tool}-{variant}-restore", stdin=THEIRS.format(policy).encode())


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_another_program_reloads_its_own_rules(either_host: Host, variant: str) -> None:
    host = either_host
    add_outside(host)
    route_from_outside_alone(host)
    reload(host, variant, "ACCEPT")
    confs = {"a": conf(ports(8001, 80)), "b": conf(ports(8002, 80))}
    result = attach(host, confs["a"])
    serve(host, {"a": (80, 443), "outside": (7000,)})
    expected = {
        **dict.fromkeys([each for source in ("outside", "", "a") for each in probes(source, UPLINK, 8001)], "a"),
        **dict.fromkeys(probes("outside", ADDRESSES["a"], 80, 443), ""),
        **dict.fromkeys(probes("a", OUTSIDE, 7000), "outside"),
        **dict.fromkeys(pings("a", OUTSIDE), "pong"),
    }
    assert_answers(host, expected)
    reload(host, variant, "ACCEPT")
    assert_answers(host, expected)
    host.plugin("CHECK", with_result(confs["a"], result), "a").succeeded()
    if variant == "nft":
        host.shell("nft delete table ip filter; nft delete table ip nat; nft delete table ip6 filter")
        assert_answers(host, expected)
        host.plugin("CHECK", with_result(confs["a"], result), "a").succeeded()
    reload(host, variant, "DROP")
    error = host.plugin("CHECK", with_result(confs["a"], result), "a").error
    assert (error["code"], error["details"].count("which would drop")) == (100, 4), error
    attach(host, confs["b"], "b")
    assert_answers(host, expected)
    host.plugin("CHECK", with_result(confs["a"], result), "a").succeeded()
    reload(host, variant, "DROP")
    ctl(host, "repair")
    assert_answers(host, expected)
    host.plugin("DEL", confs["a"], "a").succeeded()
    detach(host, confs["b"], "b")
    assert not [each for each in saved(host, variant, ("filter",)) if "cni-bridge" in each]


def test_the_administrators_rules_go_first_and_stay(either_host: Host) -> None:
    host = either_host
    add_outside(host)
    confs = {"a": conf(ports(8001, 80), ports(8011, 443)), "b": conf(ports(8002, 80))}
    attach(host, confs["a"])
    serve(host, {"a": (80, 443), "outside": (7000, 7001)})
    open_ = {
        **dict.fromkeys(probes("outside", UPLINK, 8001, 8011), "a"),
        **dict.fromkeys(probes("a", OUTSIDE, 7000, 7001), "outside"),
    }
    assert_answers(host, open_)
    rules = ("meta l4proto { tcp, udp } th dport 443 counter drop", "ip daddr 198.51.100.2 th dport 7001 drop")
    for each in rules:
        host.shell(f"nft add rule inet cni_bridge admin '{each}'")
    written = host.shell("nft --stateless list chain inet cni_bridge admin")
    assert written.count("drop") == len(rules)
    closed = {
        **dict.fromkeys(probes("outside", UPLINK, 8011), ""),
        **dict.fromkeys(probes("a", OUTSIDE[:1], 7001), ""),
    }
    assert_answers(host, open_ | closed)
    attach(host, confs["b"], "b")
    host.plugin("ADD", confs["a"], "a").succeeded()
    ctl(host, "repair")
    host.plugin(
        "GC", {**conf(), "cni.dev/valid-attachments": [{"containerID": each, "ifname": "eth0"} for each in "ab"]}
    ).succeeded()
    assert host.shell("nft --stateless list chain inet cni_bridge admin") == written
    assert_answers(host, open_ | closed)
    host.plugin("DEL", confs["a"], "a").succeeded()
    detach(host, confs["b"], "b")
    assert host.shell("nft --stateless list chain inet cni_bridge admin") == written
