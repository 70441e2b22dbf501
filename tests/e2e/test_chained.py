"""Chains as runtimes write them for the reference run unchanged on our plugins; so do the one plugin's like keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.conftest import start_ipamd
from tests.support.attaching import unchanged
from tests.support.conflist import Runtime, assert_chain_gone, conflist, plugin_directory, tc_figures
from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, with_result
from tests.support.host import BIN, Host, Json
from tests.support.probing import Probe, assert_answers, serve

WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
SLOW = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000}
MAC = "02:0a:0b:0c:0d:0e"
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH: Json = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
TUNING: Json = {
    "type": "tuning",
    "mac": MAC,
    "mtu": 1400,
    "promisc": True,
    "allmulti": True,
    "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
}


def host_local(*subnets: str, **keys: object) -> Json:
    return {
        "type": "host-local",
        "ranges": [[{"subnet": each}] for each in subnets],
        "routes": [{"dst": "::/0" if ":" in each else "0.0.0.0/0"} for each in subnets],
        **keys,
    }


def bridge(**keys: object) -> Json:
    return {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": host_local("10.90.7.0/24"),
        **keys,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a runtime has for a network. `ours`: the plugins that are not the reference's."""

    conflist: Json
    capabilities: Json = field(default_factory=lambda: {"portMappings": [WEB]})
    args: Json = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    ours: tuple[str, ...] = ("bridge", "portmap", "firewall", "tuning", "bandwidth", "host-local")
    repeats: bool = True  # the reference's bridge and ptp refuse a second ADD


PODMAN = Case(
    conflist=conflist(
        bridge(
            bridge="cni-podman1",
            ipam=host_local("10.90.7.0/24", ranges=[[{"subnet": "10.90.7.0/24", "gateway": "10.90.7.1"}]]),
            capabilities={"ips": True},
        ),
        PORTMAP,
        {"type": "firewall", "backend": "", "ingressPolicy": "same-bridge"},
        {"type": "tuning"},
        version="0.4.0",
    ),
    capabilities={"portMappings": [WEB], "ips": ["10.90.7.44"]},
    args={"podman_labels": {"net1": {"app": "web"}}},
    env={"CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME=web;MAC={MAC}"},
)
NERDCTL = Case(
    conflist={
        **conflist(bridge(bridge="nerdctl0"), PORTMAP, {"type": "firewall", "ingressPolicy": "same-bridge"}, TUNING),
        "nerdctlID": 0,
        "nerdctlLabels": {},
    }
)
CRI_O = Case(
    conflist=conflist(bridge(ipam=host_local("10.85.0.0/16", "1100:200::/24")), PORTMAP, BANDWIDTH, version="1.0.0"),
    capabilities={"portMappings": [WEB], "bandwidth": SLOW},
)
K3S = Case(
    conflist=conflist(
        bridge(forceAddress=True, isGateway=False, isDefaultGateway=True, ipMasq=False, mtu=1450),
        PORTMAP,
        BANDWIDTH,
        name="cbr0",
    ),
    capabilities={  # containerd capitalises
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        "bandwidth": {key[0].upper() + key[1:]: value for key, value in SLOW.items()},
    },
)
KIND = Case(
    conflist=conflist(
        {"type": "ptp", "ipMasq": False, "ipam": host_local("10.90.7.0/24"), "mtu": 1500},
        {**PORTMAP, "snat": True},
        {"type": "firewall"},
        TUNING,
        BANDWIDTH,
        version="0.4.0",
    ),
    capabilities={"portMappings": [WEB], "bandwidth": SLOW},
    repeats=False,
)
BEHIND_THEIR_BRIDGE = Case(
    conflist=conflist(bridge(), PORTMAP, {"type": "firewall", "ingressPolicy": "same-bridge"}, TUNING, BANDWIDTH),
    capabilities={"portMappings": [WEB], "bandwidth": SLOW},
    ours=("portmap", "firewall", "tuning", "bandwidth"),
    repeats=False,
)
BEFORE_THEIR_OWN = Case(
    conflist=conflist(
        bridge(ipam=host_local("10.90.7.0/24", "fd00:7::/64")),
        PORTMAP,
        {"type": "firewall"},
        {key: value for key, value in TUNING.items() if key != "sysctl"},  # their CHECK does not know IFNAME
        {"type": "bandwidth", **SLOW},
    ),
    ours=("bridge", "host-local"),
)


def runtime_of(host: Host, path: Path, case: Case) -> Runtime:
    plugins = plugin_directory(path, case.ours)
    return Runtime(host, plugins, case.conflist, runtime_config=case.capabilities, args=case.args, env=case.env)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(PODMAN, id="podman"),
        pytest.param(NERDCTL, id="nerdctl"),
        pytest.param(CRI_O, id="CRI-O"),
        pytest.param(K3S, id="k3s"),
        pytest.param(KIND, id="kind"),
        pytest.param(BEHIND_THEIR_BRIDGE, id="their bridge"),
    ],
)
def test_a_chain_is_added_checked_added_again_and_deleted(host: Host, tmp_path: Path, case: Case) -> None:
    add_outside(host)
    host.add_netns("web")
    runtime = runtime_of(host, tmp_path, case)
    result = runtime.add("web")
    assert [each["address"].split("/")[0] for each in result["ips"]] == [
        each.split("/")[0] for each in host.addresses("eth0", "web")
    ]
    host.start_whoami(80, "web")
    runtime.check("web", result)
    assert host.whoami("198.51.100.1", 8080, "outside") == "198.51.100.2"
    assert host.whoami("127.0.0.1", 8080)
    assert host.whoami("198.51.100.1", 8080, "web"), "hairpin"
    if case.repeats:
        with unchanged(host, "web"):
            assert runtime.add("web") == result
    runtime.delete("web", result)
    assert host.whoami("198.51.100.1", 8080, "outside") == ""
    assert list(host.links("web")) == ["lo"]
    runtime.forget("web", netns="")
    assert_chain_gone(host)


@pytest.mark.parametrize("case", [pytest.param(PODMAN, id="podman"), pytest.param(CRI_O, id="CRI-O")])
def test_two_containers_of_a_chain_where_only_iptables_works(host: Host, tmp_path: Path, case: Case) -> None:
    """The plugins of a chain share the owner and the link, and each leaves what is the others'."""
    host.shell("for each in /usr/lib/*/libnftables.so.1; do mount --bind /dev/null $each || exit; done")
    add_outside(host)
    runtime = runtime_of(host, tmp_path, replace(case, env={"CNI_ARGS": "IgnoreUnknown=1"}))  # no MAC for both of them
    capabilities = {key: value for key, value in case.capabilities.items() if key != "ips"}
    results = {}
    for name, port in (("web", 8080), ("db", 8081)):
        host.add_netns(name)
        runtime.runtime_config = {**capabilities, "portMappings": [{"hostPort": port, "containerPort": 80}]}
        results[name] = runtime.add(name)
    serve(host, {"web": (80,), "db": (80,), "outside": (7000,)})
    for _ in range(2):
        for name, result in results.items():
            runtime.check(name, result)
        reached = {Probe(source="web", kind="tcp", address="198.51.100.2", port=7000): "outside 198.51.100.1"}
        for port, name in ((8080, "web"), (8081, "db")):
            reached[Probe(source="outside", kind="tcp", address="198.51.100.1", port=port)] = name
        assert_answers(host, reached)
        host.run(BIN / "cni-bridgectl", "repair")
    for name in results:
        runtime.forget(name, netns="")
    host.shell("for each in /usr/lib/*/libnftables.so.1; do umount $each || exit; done")
    assert_chain_gone(host)


def test_our_bridge_before_their_chain(host: Host, tmp_path: Path) -> None:
    add_outside(host)
    host.add_netns("web")
    runtime = runtime_of(host, tmp_path, BEFORE_THEIR_OWN)
    result = runtime.add("web")
    host.start_whoami(80, "web")
    for address, seen in (("198.51.100.1", "198.51.100.2"), ("2001:db8:51::1", "2001:db8:51::2")):
        assert host.whoami(address, 8080, "outside") == seen
    for plugin in ("bridge", "firewall", "tuning", "bandwidth"):  # this portmap's CHECK mixes up the families
        runtime.call("CHECK", runtime.conf_of(plugin), "web", result).succeeded()
    link = host.links("web")["eth0"]
    assert (link["address"], link["mtu"], "PROMISC" in link["flags"]) == (MAC, 1400, True)
    runtime.delete("web", result)
    assert list(host.links("web")) == ["lo"]
    assert_chain_gone(host)


EVERYTHING = conflist(
    bridge(macspoofchk=True),
    PORTMAP,
    {"type": "firewall", "ingressPolicy": "same-bridge"},
    TUNING,
    BANDWIDTH,
    version="1.1.0",
)
CAPABILITIES = {"portMappings": [WEB], "bandwidth": SLOW}


def everything(host: Host, path: Path, **keys: Json) -> Runtime:
    """All plugins in one chain, with what is given put into the plugin of that type."""
    plugins = [each | keys.get(each["type"], {}) for each in EVERYTHING["plugins"]]
    return Runtime(host, plugin_directory(path), {**EVERYTHING, "plugins": plugins}, runtime_config=CAPABILITIES)


@pytest.mark.parametrize(
    ("netns", "with_result"), [("there", True), ("there", False), ("not named", False), ("gone", True)]
)
def test_whatever_del_is_told_it_removes_everything(host: Host, tmp_path: Path, netns: str, with_result: bool) -> None:
    host.add_netns("a")
    runtime = everything(host, tmp_path)
    result = runtime.add("a")
    if netns == "gone":
        host.run("ip", "netns", "del", "a")
    path = "" if netns == "not named" else None
    for _ in range(2):
        if with_result:
            runtime.delete("a", result, netns=path)
        else:
            runtime.forget("a", netns=path)
    assert_chain_gone(host)


@pytest.mark.every_way
@pytest.mark.parametrize("position", [1, 5])
def test_del_of_all_after_an_add_that_failed_in_the_middle(host: Host, tmp_path: Path, position: int) -> None:
    host.add_netns("a")
    runtime = everything(host, tmp_path)
    runtime.plugins.script("broken", """test $CNI_COMMAND = ADD || exit 0; echo '{"code": 11, "msg": "no"}'; exit 1""")
    runtime.conflist["plugins"].insert(position, {"type": "broken"})
    with pytest.raises(AssertionError, match="no"):
        runtime.add("a")
    runtime.forget("a")
    assert list(host.links("a")) == ["lo"]
    runtime.forget("a", netns="")
    assert_chain_gone(host)


def test_what_fails_half_way_is_taken_back(host: Host, tmp_path: Path) -> None:
    host.add_netns("a")
    settings = {"net.core.nothing": "1"}
    runtime = Runtime(host, plugin_directory(tmp_path), conflist(bridge(), {**TUNING, "sysctl": settings}))
    result = runtime.call("ADD", runtime.conf_of("bridge"), "a").result
    with unchanged(host, "a"):
        answer = runtime.call("ADD", runtime.conf_of("tuning"), "a", result)
        assert (answer.code, "net.core.nothing" in answer.error["msg"]) == (105, True)
    runtime.forget("a")
    assert_chain_gone(host)


def test_gc_removes_what_is_of_no_valid_attachment_and_leaves_the_rest(host: Host, tmp_path: Path) -> None:
    add_outside(host)
    runtime = everything(host, tmp_path, tuning={"mac": ""})
    results = {}
    for number, name in enumerate("abc"):
        host.add_netns(name)
        runtime.runtime_config = {**CAPABILITIES, "portMappings": [{**WEB, "hostPort": 8080 + number}]}
        results[name] = runtime.add(name)
        host.start_whoami(80, name)
    host.run("ip", "netns", "del", "c")  # a container that has vanished with its namespace
    runtime.collect([("b", "eth0")])
    runtime.runtime_config = {**CAPABILITIES, "portMappings": [{**WEB, "hostPort": 8081}]}
    runtime.check("b", results["b"])
    assert [host.whoami("198.51.100.1", port, "outside") for port in (8080, 8081, 8082)] == ["", "198.51.100.2", ""]
    assert list(host.links("a")) == ["lo"]
    assert len([name for name in host.links() if name.startswith(("veth", "bwp"))]) == 2
    runtime.collect([])
    assert_chain_gone(host)


def test_with_ipamd_a_chain_is_the_same(host: Host, tmp_path: Path) -> None:
    start_ipamd(host)
    host.add_netns("a")
    runtime = everything(host, tmp_path)
    result = runtime.add("a")
    runtime.check("a", result)
    runtime.delete("a", result)
    assert_chain_gone(host)


def test_spoof_check_follows_the_mac_address_that_tuning_sets_and_takes_back(host: Host, tmp_path: Path) -> None:
    host.add_netns("a")
    runtime = everything(host, tmp_path)
    former = runtime.call("ADD", runtime.conf_of("bridge"), "a").result["interfaces"][2]["mac"]
    result = runtime.add("a")
    assert runtime.add("a") == result
    assert host.links("a")["eth0"]["address"] == MAC
    host.ping("10.90.7.1", "a")
    runtime.check("a", result)
    host.shell("ip link set eth0 address 02:00:00:00:00:66", netns="a")
    host.ping("10.90.7.1", "a", reached=False)
    assert "02:00:00:00:00:66" in runtime.check_fails("tuning", "a", result)
    host.shell(f"ip link set eth0 address {MAC}", netns="a")
    runtime.call("DEL", runtime.conf_of("tuning"), "a", result).succeeded()
    link = host.links("a")["eth0"]
    assert (link["address"], link["mtu"], link["promiscuity"], link["allmulti"]) == (former, 1500, 0, 0)
    host.ping("10.90.7.1", "a")
    runtime.forget("a")
    assert_chain_gone(host)


def shaping_changes(port: str) -> dict[str, str]:
    """What someone changes of the limits at the port, and what CHECK then says."""
    return {
        f"tc qdisc replace dev {port} root handle 1: tbf rate 9mbit burst 100000 latency 25ms": f"{port} has 9000000",
        f"tc qdisc del dev {port} ingress": f"what comes in by {port}",
        "tc qdisc del dev $(ip -br link | grep -o 'bwp[0-9a-f]*') root": "has no limit",
    }


@pytest.mark.every_way
def test_check_names_what_of_a_chain_was_changed(host: Host, tmp_path: Path) -> None:
    host.add_netns("a")
    runtime = everything(host, tmp_path)
    result = runtime.add("a")
    port = result["interfaces"][1]["name"]
    changes = [
        (
            "tuning",
            {
                "ip -n a link set eth0 mtu 1300": "mtu 1300, not 1400",
                "ip -n a link set eth0 promisc off": "not promiscuous",
                "ip -n a link set eth0 allmulticast off": "allmulti",
                "ip netns exec a sysctl -w net.ipv4.conf.eth0.arp_filter=0": "net.ipv4.conf.eth0.arp_filter is '0'",
            },
        ),
        ("bandwidth", shaping_changes(port)),
        ("bandwidth", {f"tc filter del dev {port} ingress": port}),
        ("portmap", {"nft flush map inet cni_bridge publish4": "8080"}),
        ("firewall", {"nft flush set inet cni_bridge parted": "parted"}),
    ]
    missed = []
    for plugin, each in changes:
        for script in each:
            host.shell(script)
        answer = runtime.call("CHECK", runtime.conf_of(plugin), "a", result)
        missed += [script for script, said in each.items() if said not in answer.stdout]
        runtime.call("ADD", runtime.conf_of(plugin), "a", result).succeeded()
    assert missed == []
    assert runtime.add("a") == result
    runtime.check("a", result)
    runtime.forget("a")
    assert_chain_gone(host)


@pytest.mark.every_way
def test_a_repeated_add_that_asks_for_something_else_replaces_what_was_there(host: Host, tmp_path: Path) -> None:
    add_outside(host)
    host.add_netns("a")
    everything(host, tmp_path).add("a")
    other = everything(host, tmp_path / "other", tuning={"mtu": None, "promisc": False, "txQLen": 7})
    other.runtime_config = {
        "portMappings": [{**WEB, "hostPort": 9090}],
        "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 100_000},
    }
    result = other.add("a")
    other.check("a", result)
    link = host.links("a")["eth0"]
    assert (link["mtu"], link["promiscuity"], link["txqlen"]) == (1500, 0, 7)
    assert link["address"] == result["interfaces"][2]["mac"] == MAC
    host.start_whoami(80, "a")
    assert [host.whoami("198.51.100.1", port, "outside") for port in (8080, 9090)] == ["", "198.51.100.2"]
    assert not [name for name in host.links() if name.startswith("bwp")]
    other.forget("a")
    assert_chain_gone(host)


def test_a_repeated_add_without_a_mac_address_gives_the_former_one_back(host: Host, tmp_path: Path) -> None:
    host.add_netns("a")
    plugins = plugin_directory(tmp_path)
    former = Runtime(host, plugins, conflist(bridge(), {"type": "tuning", "mtu": 1400})).add("a")
    assert Runtime(host, plugins, conflist(bridge(), TUNING)).add("a")["interfaces"][2]["mac"] == MAC
    runtime = Runtime(host, plugins, conflist(bridge(), {"type": "tuning", "mtu": 1400}))
    result = runtime.add("a")
    assert host.links("a")["eth0"]["address"] == former["interfaces"][2]["mac"]
    assert result == former
    runtime.check("a", result)
    runtime.forget("a")
    assert_chain_gone(host)


def test_isolated_containers_of_one_bridge_do_not_reach_each_other_and_check_agrees(
    either_host: Host, tmp_path: Path
) -> None:
    host = either_host
    add_outside(host)
    runtime = Runtime(
        host, plugin_directory(tmp_path), conflist(bridge(), {"type": "firewall", "ingressPolicy": "isolated"})
    )
    results = {}
    for name in "ab":
        host.add_netns(name)
        results[name] = runtime.add(name)
    address = results["b"]["ips"][0]["address"].split("/")[0]
    host.ping(address, "a", reached=False)
    for target in ("10.90.7.1", "198.51.100.2"):
        host.ping(target, "a")
    host.ping(address)
    assert runtime.add("a") == results["a"]
    host.ping(address, "a", reached=False)
    for name, result in results.items():
        runtime.check(name, result)
    for name in results:
        runtime.forget(name)
    assert_chain_gone(host)


def test_a_network_without_gateway_changes_nothing_of_the_uplink(host: Host, tmp_path: Path) -> None:
    """As Podman writes `--internal` with `--opt isolate=true`: the host reaches the container by no link of its own."""
    add_outside(host)
    internal = bridge(isGateway=False, ipMasq=False, ipam=host_local("10.90.7.0/24", routes=[]))
    chain = conflist(internal, PORTMAP, {"type": "firewall", "ingressPolicy": "same-bridge"})
    runtime = Runtime(host, plugin_directory(tmp_path), chain, runtime_config={"portMappings": [WEB]})
    host.add_netns("a")
    runtime.add("a")
    assert host.sysctl("net.ipv4.conf.uplink.route_localnet") == "0"
    assert not [element for element in host.nft_elements() if "uplink" in element]
    runtime.forget("a")
    assert_chain_gone(host)


@pytest.mark.parametrize("key", ["net.ipv4.conf.IFNAME.arp_filter", "net.ipv4.conf.eth0.arp_filter"])
def test_the_administrators_list_of_kernel_settings(host: Host, tmp_path: Path, key: str) -> None:
    host.add_netns("a")
    runtime = Runtime(host, plugin_directory(tmp_path), conflist(bridge(), {"type": "tuning", "sysctl": {key: "1"}}))
    result = runtime.call("ADD", runtime.conf_of("bridge"), "a").result
    host.shell("mkdir -p /etc/cni/tuning")
    for line, allowed in (("^net.core.", False), (f"^{key}$", True)):
        host.shell(f"echo '{line}' > /etc/cni/tuning/allowlist.conf")
        answer = runtime.call("ADD", runtime.conf_of("tuning"), "a", result)
        if allowed:
            answer.succeeded()
        else:
            assert (answer.code, "arp_filter is not allowed" in answer.error["msg"]) == (7, True)
        shown = host.shell("cat /proc/sys/net/ipv4/conf/eth0/arp_filter", netns="a")
        assert shown == f"{int(allowed)}\n"
    host.shell("rm /etc/cni/tuning/allowlist.conf")
    runtime.forget("a")
    assert_chain_gone(host)


PREVIOUS = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/a"}],
    "ips": [{"address": "10.90.7.2/24", "gateway": "10.90.7.1", "interface": 0}],
}
PORTS = "runtimeConfig.portMappings"
PUBLISHING: Json = {"runtimeConfig": {"portMappings": [WEB]}}


def assert_untouched(host: Host) -> None:
    assert (list(host.links()), host.nft_elements(), host.files("/run/cni-bridge")) == (["lo"], [], [])


@pytest.mark.parametrize(
    ("plugin", "keys", "code", "said"),
    [
        ("firewall", {"backend": "firewalld"}, 7, 'backend "firewalld" is not supported'),
        ("firewall", {"backend": "ebtables"}, 7, 'backend "ebtables"'),
        ("firewall", {"ingressPolicy": "closed"}, 7, 'ingressPolicy "closed"'),
        ("firewall", {"ingressPolicy": 5}, 6, "ingressPolicy is 5"),
        ("portmap", {"backend": "firewalld"}, 7, 'backend "firewalld"'),
        ("portmap", {"markMasqBit": 32}, 7, "markMasqBit 32"),
        ("portmap", {"externalSetMarkChain": "KUBE-MARK-MASQ"}, 7, "externalSetMarkChain is not supported"),
        ("portmap", {"conditionsV4": ["-m", "set"], **PUBLISHING}, 7, 'conditionsV4[0] "-m" "set" is none of iprange'),
        ("portmap", {"conditionsV6": ["!", "-p", "tcp"], **PUBLISHING}, 7, 'conditionsV6[1] "-p" is no option'),
        ("portmap", {"conditionsV6": ["-s", "10.0.0.0/8"], **PUBLISHING}, 7, '"10.0.0.0/8" is no IPv6 address'),
        ("portmap", {"conditionsV4": ["tcp dport 1; x"], **PUBLISHING}, 7, 'conditionsV4[0] "tcp dport 1; x" has'),
        ("portmap", {"conditionsV4": "-s", **PUBLISHING}, 6, 'conditionsV4 is "-s"'),
        ("portmap", {"snat": "no", "runtimeConfig": {"portMappings": [WEB]}}, 6, 'snat is "no"'),
        ("portmap", {"runtimeConfig": {"portMappings": [{**WEB, "hostPort": 0}]}}, 7, f"{PORTS}[0].hostPort 0"),
        ("portmap", {"runtimeConfig": {"portMappings": [{**WEB, "containerPort": 70000}]}}, 7, "containerPort 70000"),
        ("portmap", {"runtimeConfig": {"portMappings": [{**WEB, "protocol": "icmp"}]}}, 7, 'protocol "icmp"'),
        ("portmap", {"runtimeConfig": {"portMappings": [{**WEB, "hostIP": "here"}]}}, 7, 'hostIP "here"'),
        ("portmap", {"runtimeConfig": {"portMappings": [WEB, {**WEB, "containerPort": 1}]}}, 7, "overlap"),
        ("bandwidth", {"ingressRate": 8000}, 7, "ingressRate is set, so ingressBurst must be too"),
        (
            "bandwidth",
            {"runtimeConfig": {"bandwidth": {"egressBurst": 8000}}},
            7,
            "runtimeConfig.bandwidth.egressBurst",
        ),
        ("bandwidth", {"egressRate": "fast", "egressBurst": 8000}, 6, 'egressRate is "fast"'),
        ("bandwidth", {**SLOW}, 7, "eth0 has no veth peer"),
        ("tuning", {"mac": "zz"}, 7, 'mac "zz"'),
        ("tuning", {"sysctl": {"kernel.msgmax": "1"}}, 7, '"kernel.msgmax" is not below net'),
        ("tuning", {"mtu": 1400}, 105, "interface eth0 is not in the container"),
    ],
)
def test_what_a_plugin_cannot_do_is_refused_by_key_and_value_and_nothing_changes(
    host: Host, tmp_path: Path, plugin: str, keys: Json, code: int, said: str
) -> None:
    host.add_netns("a")
    plugins = plugin_directory(tmp_path)
    conf = {"cniVersion": "1.0.0", "name": "net1", "type": plugin, **keys}
    answer = host.plugin("ADD", {**conf, "prevResult": PREVIOUS}, "a", plugin=plugins.find(plugin), env=plugins.env)
    assert answer.code == code
    assert said in answer.error["msg"]
    assert_untouched(host)


@pytest.mark.parametrize("plugin", ["portmap", "firewall", "tuning", "bandwidth"])
def test_a_chained_plugin_needs_a_result_and_does_nothing_without_being_asked(
    host: Host, tmp_path: Path, plugin: str
) -> None:
    host.add_netns("a")
    plugins = plugin_directory(tmp_path)
    conf = {"cniVersion": "1.1.0", "name": "net1", "type": plugin}
    previous = {**PREVIOUS, "cniVersion": "1.1.0"}

    def call(command: str, **keys: object) -> Json:
        answer = host.plugin(command, {**conf, **keys}, "a", plugin=plugins.find(plugin), env=plugins.env)
        return answer.error if answer.status else json.loads(answer.stdout or "{}")

    assert (call("ADD")["code"], call("CHECK")["msg"]) == (7, "Required prevResult missing")
    assert call("ADD", prevResult={**PREVIOUS, "cniVersion": "0.4.0"})["code"] == 6
    assert call("ADD", prevResult=previous) == previous
    for command in ("CHECK", "DEL", "STATUS"):
        assert call(command, prevResult=previous) == {}
    assert call("GC")["code"] == 7, "no attachment was said to be valid"
    assert call("GC", **{"cni.dev/valid-attachments": []}) == {}
    assert_untouched(host)


def test_a_host_port_that_is_taken_is_worth_a_warning(host: Host, tmp_path: Path) -> None:
    add_outside(host)
    runtime = Runtime(
        host, plugin_directory(tmp_path), conflist(bridge(), PORTMAP), runtime_config={"portMappings": [WEB]}
    )
    for name in "ab":
        host.add_netns(name)
    runtime.add("a")
    bridged = runtime.call("ADD", runtime.conf_of("bridge"), "b").result
    answer = runtime.call("ADD", runtime.conf_of("portmap"), "b", bridged).succeeded()
    assert "WARNING" in answer.stderr
    assert "8080" in answer.stderr
    serve(host, {"a": (80,), "b": (80,)})
    assert host.whoami("198.51.100.1", 8080, "outside").startswith("a "), "who came first serves"
    runtime.check("a", runtime.add("a"))
    runtime.delete("a")
    for name in "ab":
        runtime.forget(name, netns="")
    assert_chain_gone(host)


ONE = bridge_conf(
    ipam=DUAL_STACK,
    runtimeConfig={"bandwidth": SLOW},
    sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "2000 3000"},
    promisc=True,
    allmulti=True,
    txQLen=7,
)


def received_bits(host: Host, address: str, netns: str, *options: str) -> float:
    """The rate that a receiver at the address, or with -R this namespace, measures."""
    done = host.run("iperf3", "--json", "-c", address, "-t", "2", "-O", "1", *options, netns=netns)
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])


def test_the_one_plugin_limits_both_directions(host: Host) -> None:
    add_outside(host)
    host.add_netns("a")
    result = host.plugin("ADD", ONE, "a").result
    for port in ("5201", "5202"):
        server = host.start("iperf3", "-s", "-p", port, "--forceflush", netns="outside", stdout=-1)
        assert server.stdout.readline()
    assert received_bits(host, "198.51.100.2", "a") == pytest.approx(4e6, rel=0.3)
    assert received_bits(host, "2001:db8:51::2", "a", "-p", "5202", "-R") == pytest.approx(8e6, rel=0.3)
    host.plugin("DEL", with_result(ONE, result), "a").succeeded()
    assert_chain_gone(host)


@pytest.mark.parametrize(
    ("keys", "ingress", "egress"),
    [
        pytest.param({"ingressRate": 8_000_000, "ingressBurst": 800_000}, True, False, id="ingress only"),
        pytest.param({"egressRate": 8_000_000, "egressBurst": 800_000}, False, True, id="egress only"),
        pytest.param(
            {"egressRate": 8_000_000, "egressBurst": 800_000, "runtimeConfig": {"bandwidth": SLOW}},
            False,
            True,
            id="the configuration goes before the runtime",
        ),
    ],
)
@pytest.mark.parametrize("chained", [False, True], ids=["one plugin", "chained"])
def test_a_limit_in_one_direction(
    host: Host, tmp_path: Path, keys: Json, ingress: bool, egress: bool, chained: bool
) -> None:
    host.add_netns("a")
    chain = conflist(bridge(), {"type": "bandwidth", **keys}) if chained else conflist(bridge_conf(**keys))
    runtime = Runtime(host, plugin_directory(tmp_path), chain)
    result = runtime.add("a")
    runtime.check("a", result)
    limit = {"kind": "tbf", "rate": 1_000_000, "burst": 100_000, "lat": 25_000}
    led = {"kind": "ingress"}
    port = next(name for name in host.links() if name.startswith("veth"))
    assert [{key: each.get(key) for key in limit} if len(each) > 1 else each for each in tc_figures(host, port)] == [
        *([limit] if ingress else []),
        *([led] if egress else []),
    ]
    blocks = [name for name in host.links() if name.startswith("bwp")]
    assert len(blocks) == egress
    assert [each["rate"] for name in blocks for each in tc_figures(host, name)] == [1_000_000] * egress
    assert ([each["name"] for each in result["interfaces"][3:]] == blocks) or not chained
    runtime.forget("a", netns="")
    assert_chain_gone(host)


@pytest.mark.parametrize(
    ("rate", "burst"),
    [
        pytest.param(1_000_001, 1_000_001, id="no whole bytes"),
        pytest.param(10_000_000_000, 12_345_672, id="10 Gbit/s"),
        pytest.param(34_000_000_000, 80_000_000, id="34 Gbit/s"),
        pytest.param(1_000, 8_000, id="1 kbit/s"),
    ],
)
def test_a_rate_that_is_taken_is_set_and_found_again_by_check(host: Host, rate: int, burst: int) -> None:
    host.add_netns("a")
    limits = {"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}
    conf = bridge_conf(runtimeConfig={"bandwidth": limits})
    result = host.plugin("ADD", conf, "a").result
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    port = result["interfaces"][1]["name"]
    assert tc_figures(host, port)[0]["rate"] == pytest.approx(rate / 8, rel=0.001)
    host.plugin("DEL", conf, "a", netns="").succeeded()
    assert_chain_gone(host)


@pytest.mark.parametrize(("rate", "burst"), [(1_000_000, 4_294_967_295), (8, 8), (1 << 62, 8_000_000)])
def test_an_unusual_limit_is_set_or_refused_by_its_key(host: Host, rate: int, burst: int) -> None:
    host.add_netns("a")
    conf = bridge_conf(runtimeConfig={"bandwidth": {"ingressRate": rate, "ingressBurst": burst}})
    answer = host.plugin("ADD", conf, "a")
    if answer.status == 0:
        host.plugin("CHECK", with_result(conf, answer.result), "a").succeeded()
    else:
        assert (answer.code, "ingress" in answer.error["msg"]) == (7, True), answer.stdout
    host.plugin("DEL", conf, "a").succeeded()
    assert_chain_gone(host)


def test_the_one_plugin_sets_and_checks_the_interface(host: Host) -> None:
    host.add_netns("a")
    result = host.plugin("ADD", ONE, "a").result
    port = result["interfaces"][1]["name"]
    link = host.links("a")["eth0"]
    assert (link["txqlen"], link["promiscuity"], link["allmulti"]) == (7, 1, 1)
    assert host.shell("sysctl -n net.ipv4.conf.eth0.arp_filter net.ipv4.ip_local_port_range", netns="a") == (
        "1\n2000\t3000\n"
    )
    with unchanged(host, "a"):
        assert host.plugin("ADD", ONE, "a").result == result
    changes = {
        "ip -n a link set eth0 txqueuelen 8": "txqueuelen 8, not 7",
        "ip -n a link set eth0 promisc off": "promiscuous",
        "ip -n a link set eth0 allmulticast off": "allmulti",
        "ip netns exec a sysctl -w net.ipv4.conf.eth0.arp_filter=0": "arp_filter",
        "ip netns exec a sysctl -w 'net.ipv4.ip_local_port_range=2000 4000'": "ip_local_port_range",
        **shaping_changes(port),
    }
    block = next(name for name in host.links() if name.startswith("bwp"))
    for each in (changes, {f"ip link del {block}": f"link {block}", f"tc qdisc del dev {port} root": "has no limit"}):
        for script in each:
            host.shell(script)
        answer = host.plugin("CHECK", with_result(ONE, result), "a")
        assert answer.code == 100
        assert [script for script, said in each.items() if said not in answer.error["details"]] == []
        assert host.plugin("ADD", ONE, "a").result == result
    host.plugin("CHECK", with_result(ONE, result), "a").succeeded()
    host.plugin("DEL", ONE, "a", netns="").succeeded()
    assert_chain_gone(host)


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"egressRate": 8000}, 7, "egressRate is set, so egressBurst must be too"),
        ({"sysctl": {"net.core.nothing": "1"}}, 105, "net.core.nothing"),
        ({"sysctl": {"kernel.msgmax": "1"}}, 7, "kernel.msgmax"),
        ({"txQLen": -1}, 7, "txQLen -1"),
        ({"promisc": "yes"}, 6, 'promisc is "yes"'),
    ],
)
def test_what_the_one_plugin_cannot_set_is_refused_and_nothing_is_left(
    host: Host, keys: Json, code: int, said: str
) -> None:
    host.add_netns("a")
    answer = host.plugin("ADD", bridge_conf(**keys), "a")
    assert (answer.code, said in answer.error["msg"]) == (code, True), answer.stdout
    assert list(host.links("a")) == ["lo"]
    assert_chain_gone(host)


def test_the_administrators_list_holds_for_the_one_plugin_too(host: Host) -> None:
    host.add_netns("a")
    host.shell("mkdir -p /etc/cni/tuning; echo '^net.core.' > /etc/cni/tuning/allowlist.conf")
    answer = host.plugin("ADD", ONE, "a")
    assert (answer.code, "is not allowed" in answer.error["msg"]) == (7, True)
    host.shell("rm /etc/cni/tuning/allowlist.conf")
    assert list(host.links("a")) == ["lo"]
    assert_chain_gone(host)


def test_gc_of_the_one_plugin_leaves_no_block_that_delays(host: Host) -> None:
    for name in "ab":
        host.add_netns(name)
        host.plugin("ADD", ONE, name).succeeded()
    host.run("ip", "netns", "del", "a")
    valid = {"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]}
    host.plugin("GC", {**ONE, **valid}).succeeded()
    assert len([name for name in host.links() if name.startswith("bwp")]) == 1
    host.plugin("GC", {**ONE, "cni.dev/valid-attachments": []}).succeeded()
    assert_chain_gone(host)
