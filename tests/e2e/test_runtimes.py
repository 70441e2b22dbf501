"""Every way in which container runtimes were seen to call a plugin works."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.chain import Chain, CniDir
from tests.support.confs import add_outside, bridge_conf, with_result
from tests.support.host import BIN, Answer, Host, Json

DUMMIES = {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy"}
REFERENCE_IPAM = {"type": "host-local", "subnet": "10.88.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}


def podman_conflist() -> Json:
    """What `podman network create --subnet 10.90.7.0/24 net1` of podman 4.3.1 writes."""
    return {
        "cniVersion": "0.4.0",
        "name": "net1",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni-podman1",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "ranges": [[{"subnet": "10.90.7.0/24", "gateway": "10.90.7.1"}]],
                },
                "capabilities": {"ips": True},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall", "backend": ""},
            {"type": "tuning"},
        ],
    }


def as_symlinks(plugins: CniDir) -> None:
    plugins.link("bridge", "cni-bridge")
    plugins.link("host-local", "cni-ipam")


def as_copies(plugins: CniDir) -> None:
    plugins.copy("bridge", "cni-bridge")
    plugins.copy("host-local", "cni-ipam")


def bridge_only(plugins: CniDir) -> None:
    plugins.link("bridge", "cni-bridge")


@pytest.mark.parametrize(
    "install",
    [
        as_symlinks,
        pytest.param(as_copies, marks=pytest.mark.native("a copy of a program has none for one shot beside it")),
        bridge_only,
    ],
)
def test_podman_runs_its_own_conflist(host: Host, tmp_path: Path, install: Callable[[CniDir], None]) -> None:
    add_outside(host)
    host.add_netns("web")
    plugins = CniDir(tmp_path)
    install(plugins)
    chain = Chain(
        host,
        plugins,
        podman_conflist(),
        runtime_config={
            "ips": ["10.90.7.44"],  # without a prefix length
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        },
        args={"podman_labels": {"net1": {"app": "web"}}, "podman_options": {"net1": {"isolate": "false"}}},
        env={"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web;MAC=02:0a:0b:0c:0d:0e"},
    )
    for answer in chain.version():
        assert chain.conflist["cniVersion"] in answer["supportedVersions"]
    result = chain.add("web")
    assert result["ips"] == [
        {"version": "4", "interface": 2, "address": "10.90.7.44/24", "gateway": "10.90.7.1"},
    ]
    assert host.addresses("eth0", "web") == ["10.90.7.44/24"]
    assert host.links("web")["eth0"]["address"] == "02:0a:0b:0c:0d:0e"
    host.start_whoami(80, "web")
    assert host.whoami("198.51.100.1", 8080, "outside") == "198.51.100.2"
    host.ping("198.51.100.2", "web")
    chain.call("CHECK", chain.conflist["plugins"][0], "web", result).succeeded()
    chain.delete("web", result)
    assert host.whoami("198.51.100.1", 8080, "outside") == ""
    assert list(host.links("web")) == ["lo"]
    host.assert_nothing_left()


def test_all_plugins_are_deleted_after_a_failed_add_and_without_one(host: Host, tmp_path: Path) -> None:
    host.add_netns("web")
    plugins = CniDir(tmp_path)
    as_symlinks(plugins)
    chain = Chain(host, plugins, podman_conflist())
    chain.delete("web")
    taken = host.plugin(
        "ADD",
        {**chain.conflist, **chain.conflist["plugins"][0]},
        "web",
        ifname="lo",
        env=plugins.env,
    )
    assert "lo" in taken.error["msg"]
    chain.delete("web", ifname="lo")
    chain.delete("web", netns="", ifname="lo")
    assert host.links("web")["lo"]["operstate"] == "UNKNOWN", "the loopback interface is no business of ours"
    host.assert_nothing_left()


@pytest.mark.parametrize("plugin", ["cni-bridge", "cni-ipam"])
def test_version_with_dummy_values(host: Host, plugin: str) -> None:
    answer = host.plugin("VERSION", {"cniVersion": "1.0.0"}, plugin=plugin, env=DUMMIES).result
    assert answer["cniVersion"] == "1.0.0"
    assert answer["supportedVersions"] == ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def test_containerd_capitalises_the_keys_of_runtime_config(host: Host) -> None:
    host.add_netns("a")
    capitalised = {
        "RuntimeConfig": {
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
            "bandwidth": {"IngressRate": 1000000, "IngressBurst": 1000000, "EgressRate": 0, "EgressBurst": 0},
            "dns": {"Servers": ["10.88.0.10"], "Searches": ["cluster.local"], "Options": ["ndots:5"]},
            "IpRanges": [[{"Subnet": "10.55.0.0/24", "RangeStart": "10.55.0.9"}]],
            "IPs": ["10.55.0.20"],
            "Mac": "02:0A:0B:0C:0D:0E",
        }
    }
    conf = bridge_conf("1.0.0", ipam={"type": "cni-ipam"}, **capitalised)
    host.plugin("ADD", conf, "a").succeeded()
    assert host.addresses("eth0", "a") == ["10.55.0.20/24"]
    assert host.links("a")["eth0"]["address"] == "02:0a:0b:0c:0d:0e"
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("ipam", [bridge_conf()["ipam"], REFERENCE_IPAM], ids=["cni-ipam", "host-local"])
def test_containerd_sends_a_second_del_without_netns_and_result(host: Host, backend: str, ipam: Json) -> None:
    host.add_netns("a")
    conf = bridge_conf("1.0.0", ipam=ipam, ipMasqBackend=backend)
    result = host.plugin("ADD", conf, "a", netns="/var/run/netns/a").result
    host.plugin("DEL", with_result(conf, result), "a", netns="/var/run/netns/a").succeeded()
    host.assert_nothing_left()
    host.run("ip", "netns", "del", "a")
    host.plugin("DEL", conf, "a", netns="").succeeded()
    host.assert_nothing_left()


def test_ipam_is_sent_the_second_del_too(host: Host) -> None:
    conf = bridge_conf("1.0.0")
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a", plugin="cni-ipam").result
    host.plugin("DEL", with_result(conf, result), "a", plugin="cni-ipam").succeeded()
    host.plugin("DEL", conf, "a", netns="", plugin="cni-ipam").succeeded()
    assert host.leases() == []


@pytest.mark.parametrize("ipam", [bridge_conf()["ipam"], REFERENCE_IPAM], ids=["cni-ipam", "host-local"])
def test_ctr_sends_a_del_without_netns_only(host: Host, ipam: Json) -> None:
    host.add_netns("a")
    conf = bridge_conf("1.0.0", ipam=ipam)
    process = start_in(host, "a")
    result = host.plugin("ADD", conf, "a", netns=f"/proc/{process.pid}/ns/net").result
    assert result["interfaces"][2]["sandbox"] == f"/proc/{process.pid}/ns/net"
    process.kill()
    process.wait()
    host.plugin("DEL", conf, "a", netns="").succeeded()
    assert list(host.links("a")) == ["lo"]
    host.assert_nothing_left()


def start_in(host: Host, netns: str) -> subprocess.Popen[bytes]:
    """A process in the namespace, which also has the namespace open as descriptor 9."""
    script = "exec 9< /proc/self/ns/net; echo ready; exec sleep infinity"
    process: subprocess.Popen[bytes] = host.start("sh", "-c", script, netns=netns, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize(
    ("version", "path", "ifname"),
    [
        pytest.param("1.0.0", "/proc/{pid}/fd/9", "eth0", id="buildah"),
        pytest.param("1.0.0", "/proc/{pid}/ns/net", "eth0", id="ctr"),
        pytest.param("1.1.0", "/var/run/netns/a", "eth0", id="containerd"),
        pytest.param("1.1.0", "/run/buildkit/net/cni/a", "eth1", id="BuildKit"),
    ],
)
def test_namespace_by_whatever_path(host: Host, version: str, path: str, ifname: str) -> None:
    host.add_netns("a")
    host.shell("mkdir -p /run/buildkit/net/cni && touch /run/buildkit/net/cni/a")
    host.shell("mount --bind /run/netns/a /run/buildkit/net/cni/a")
    netns = path.format(pid=start_in(host, "a").pid)
    conf = bridge_conf(version)
    result = host.plugin("ADD", conf, "a", netns=netns, ifname=ifname).result
    assert result["interfaces"][2] | {"mac": "", "mtu": 0} == {"name": ifname, "sandbox": netns, "mac": "", "mtu": 0}
    for alias in (netns, "/run/netns/a"):
        host.plugin("CHECK", with_result(conf, result), "a", netns=alias, ifname=ifname).succeeded()
    host.plugin("DEL", with_result(conf, result), "a", netns=netns, ifname=ifname).succeeded()
    assert list(host.links("a")) == ["lo"]
    host.assert_nothing_left()


def test_cri_o_starts_and_restarts(host: Host) -> None:
    conf = bridge_conf("1.1.0")
    host.plugin("VERSION", {"cniVersion": "1.1.0"}, env=DUMMIES).succeeded()
    host.plugin("STATUS", conf).succeeded()
    cri_o_gc(host, conf, None).succeeded()
    results = {}
    for pod in ("a", "b"):
        host.add_netns(pod)
        netns = f"/var/run/netns/{pod}"
        results[pod] = host.plugin("ADD", conf, pod, netns=netns).result
        host.plugin("CHECK", with_result(conf, results[pod]), pod, netns=netns).succeeded()
    host.plugin("DEL", with_result(conf, results["a"]), "a", netns="/var/run/netns/a").succeeded()
    cri_o_gc(host, conf, [{"containerID": "b", "ifname": "eth0"}]).succeeded()
    host.plugin("CHECK", with_result(conf, results["b"]), "b", netns="/var/run/netns/b").succeeded()
    host.ping("10.88.0.1", "b")
    host.plugin("DEL", with_result(conf, results["b"]), "b", netns="/var/run/netns/b").succeeded()
    host.assert_nothing_left()


def cri_o_gc(host: Host, conf: Json, valid: list[Json] | None) -> Answer:
    """GC as libcni 1.3 sends it: the list also under the key of an older libcni."""
    return host.plugin("GC", {**conf, "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid})


def test_runtime_that_does_not_know_the_results_version_detaches(host: Host) -> None:
    host.add_netns("a")
    conf = bridge_conf("1.1.0")
    assert host.plugin("ADD", conf, "a").result["cniVersion"] == "1.1.0"
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


def test_cnitool_passes_what_it_is_given(host: Host) -> None:
    host.add_netns("a")
    conf, env = bridge_conf(), {"CNI_ARGS": "", "CNI_PATH": f"{BIN}"}
    result = host.plugin("ADD", conf, "cnitool-77383ca0a0715733ca6f", netns="/run/netns/a", env=env).result
    for command in ("CHECK", "DEL"):
        host.plugin(
            command, with_result(conf, result), "cnitool-77383ca0a0715733ca6f", netns="/run/netns/a", env=env
        ).succeeded()
    host.plugin("STATUS", conf, env=env).succeeded()
    assert host.plugin("GC", conf, env=env).code == 7, "cnitool gc without arguments names no attachments"
    host.assert_nothing_left()
