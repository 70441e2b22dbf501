"""`loopback` and `static` under the reference's names: as themselves, and as the reference answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.attaching import unchanged
from tests.support.chain import CniDir
from tests.support.conflist import Runtime, assert_chain_gone, conflist, plugin_directory
from tests.support.confs import VERSIONS
from tests.support.host import REFERENCE, Answer, Host, Json

STATIC = {
    "type": "static",
    "addresses": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"}, {"address": "fd00:5::5/64"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.5.0.1"], "search": ["example"]},
}


@pytest.fixture
def plugins(tmp_path: Path) -> CniDir:
    """Our plugins under the reference's names."""
    return plugin_directory(tmp_path)


def loopback_conf(version: str, **keys: object) -> Json:
    return {"cniVersion": version, "name": "cni-loopback", "type": "loopback", **keys}


def loopback(host: Host, plugins: CniDir, command: str, conf: Json, netns: str | None = None) -> Answer:
    return host.plugin(command, conf, "a", netns=netns, ifname="lo", plugin=plugins.find("loopback"), env=plugins.env)


def is_up(host: Host) -> bool:
    return "UP" in host.links("a")["lo"]["flags"]


def test_loopback_answers_in_every_version_as_the_reference_does(host: Host, plugins: CniDir) -> None:
    host.run("ip", "netns", "add", "a")
    theirs = loopback(host, CniDir(REFERENCE), "ADD", loopback_conf("1.0.0")).result
    assert loopback(host, plugins, "ADD", loopback_conf("1.0.0")).result == {
        key: value for key, value in theirs.items() if value
    }
    for version in VERSIONS:
        result = loopback(host, plugins, "ADD", loopback_conf(version)).result
        assert result["cniVersion"] == version
        if version < "0.3.0":  # which has no place for a link
            assert result["ip4"] == {"ip": "127.0.0.1/8"}
        else:
            assert result["interfaces"] == theirs["interfaces"]
            assert [each["address"] for each in result["ips"]] == ["127.0.0.1/8", "::1/128"]


@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
def test_loopback_is_brought_up_and_down(host: Host, plugins: CniDir, version: str) -> None:
    host.run("ip", "netns", "add", "a")
    conf = loopback_conf(version)
    result = loopback(host, plugins, "ADD", conf).result
    assert is_up(host)
    assert [each["address"] for each in result["ips"]] == ["127.0.0.1/8", "::1/128"]
    host.ping("127.0.0.1", "a")
    assert loopback(host, plugins, "ADD", conf).result == result
    loopback(host, plugins, "DEL", {**conf, "prevResult": result}).succeeded()
    assert not is_up(host)
    loopback(host, plugins, "DEL", conf).succeeded()
    loopback(host, plugins, "DEL", conf, netns="").succeeded()
    host.run("ip", "netns", "del", "a")
    loopback(host, plugins, "DEL", conf).succeeded()
    assert_chain_gone(host)


def test_check_of_loopback_needs_no_result_and_finds_it_down(host: Host, plugins: CniDir) -> None:
    host.add_netns("a")
    conf = loopback_conf("1.0.0")
    result = loopback(host, plugins, "ADD", conf).result
    for each in (conf, {**conf, "prevResult": result}):
        loopback(host, plugins, "CHECK", each).succeeded()
    host.shell("ip link set lo down", netns="a")
    with unchanged(host, "a"):
        assert loopback(host, plugins, "CHECK", conf).code == 100
    assert loopback(host, plugins, "CHECK", loopback_conf("0.3.1")).code == 1


def test_loopback_behind_another_plugin_passes_its_result_on(host: Host, plugins: CniDir) -> None:
    host.run("ip", "netns", "add", "a")
    previous = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    answer = loopback(host, plugins, "ADD", loopback_conf("1.0.0", prevResult=previous))
    assert answer.result == previous
    assert is_up(host)


@pytest.mark.parametrize(
    ("netns", "code"), [pytest.param("/run/netns/none", 8, id="none there"), pytest.param("", 4, id="none named")]
)
def test_loopback_without_a_namespace(host: Host, plugins: CniDir, netns: str, code: int) -> None:
    for command in ("ADD", "CHECK"):
        assert loopback(host, plugins, command, loopback_conf("1.0.0"), netns=netns).code == code


def test_loopback_has_nothing_to_collect(host: Host, plugins: CniDir) -> None:
    host.add_netns("a")
    conf = loopback_conf("1.1.0", **{"cni.dev/valid-attachments": []})
    with unchanged(host, "a"):
        for command in ("STATUS", "GC"):
            loopback(host, plugins, command, conf).succeeded()


@pytest.mark.parametrize(
    ("keys", "args"),
    [
        pytest.param({}, "", id="configuration"),
        pytest.param({}, "IgnoreUnknown=1;IP=10.5.0.6/24,10.6.0.6/24;GATEWAY=10.6.0.1", id="CNI_ARGS"),
        pytest.param({"args": {"cni": {"ips": ["10.7.0.7/24"]}}}, "IP=10.5.0.6/24", id="args"),
        pytest.param(
            {"args": {"cni": {"ips": ["10.7.0.7/24"]}}, "runtimeConfig": {"ips": ["10.8.0.8/24", "fd00:8::8/64"]}},
            "IP=10.5.0.6/24",
            id="runtime",
        ),
        pytest.param({"ipam": {"type": "static"}}, "", id="nothing"),
        pytest.param({"ipam": {"type": "static", "addresses": [{"address": "10.5.0.5"}]}}, "", id="no CIDR"),
        pytest.param({"ipam": None}, "", id="no ipam"),
        pytest.param({}, "IP=10.5.0.6", id="CNI_ARGS no CIDR"),
        pytest.param({}, "GATEWAY=x", id="bad gateway"),
        pytest.param({"runtimeConfig": {"ips": ["10.5.0.6"]}}, "", id="runtime no CIDR"),
    ],
)
def test_static_answers_as_the_reference_does(host: Host, plugins: CniDir, keys: Json, args: str) -> None:
    host.add_netns("a")
    conf = {"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "ipam": STATIC, **keys}
    env = {**plugins.env, "CNI_ARGS": args}
    ours, theirs = (
        host.plugin("ADD", conf, "a", plugin=each, env=env) for each in (plugins.find("static"), REFERENCE / "static")
    )
    assert (ours.status == 0) == (theirs.status == 0), f"{ours.stdout}{theirs.stdout}"
    if theirs.status:
        assert ours.code in (4, 7)
        return
    assert {"ips": [], "dns": {}, **ours.result} == {"ips": [], "dns": {}, **theirs.result}
    host.plugin("DEL", conf, "a", plugin=plugins.find("static"), env=plugins.env).succeeded()
    host.assert_nothing_left()
    assert host.files("/var/lib/cni", "/run/cni-bridge", *([] if host.daemon else ["/var/lib/cni-bridge"])) == []


def test_our_bridge_with_our_static(host: Host, plugins: CniDir) -> None:
    host.add_netns("a")
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": STATIC}
    runtime = Runtime(host, plugins, conflist({**bridge, "capabilities": {"ips": True}}))
    result = runtime.add("a")
    assert [(each["address"], each["gateway"]) for each in result["ips"]] == [
        ("10.5.0.5/24", "10.5.0.1"),
        ("fd00:5::5/64", "fd00:5::1"),
    ]
    assert result["dns"] == STATIC["dns"]
    assert host.addresses("eth0", "a") == ["10.5.0.5/24", "fd00:5::5/64"]
    assert host.leases() == []
    host.ping("10.5.0.1", "a")
    host.ping("fd00:5::1", "a")
    with unchanged(host, "a"):
        assert runtime.add("a") == result
    runtime.check("a", result)
    runtime.runtime_config = {"ips": ["10.5.0.77/24"]}
    assert [each["address"] for each in runtime.add("a")["ips"]] == ["10.5.0.77/24"]
    assert host.addresses("eth0", "a") == ["10.5.0.77/24"]
    runtime.delete("a", result)
    runtime.forget("a", netns="")
    assert_chain_gone(host)


def test_a_bridge_with_addresses_from_nowhere_is_refused(host: Host, plugins: CniDir) -> None:
    host.add_netns("a")
    conf = {"type": "bridge", "bridge": "cni0", "ipam": {"type": "static"}}
    answer = Runtime(host, plugins, conflist(conf)).call("ADD", conf, "a")
    assert "missing IP config" in answer.error["msg"]
    assert list(host.links("a")) == ["lo"]
    assert_chain_gone(host)
