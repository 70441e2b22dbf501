"""What the plugin prints: results in the shape of each specification version, the about text, VERSION."""

from __future__ import annotations

import json

import pytest

from tests.support.attaching import attach, detach, unchanged
from tests.support.confs import DUAL_STACK, IPV4, VERSIONS, bridge_conf, with_result
from tests.support.host import BIN, Host, Json

OLDEST, MIDDLE, NEWEST = VERSIONS[:2], VERSIONS[2:5], VERSIONS[5:]
DNS = {"nameservers": ["10.88.0.53"], "domain": "test", "search": ["a.test", "b.test"], "options": ["ndots:2"]}
TWO_OF_A_FAMILY = {"type": "cni-ipam", "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "10.89.0.0/24"}]]}


def links_of(host: Host, version: str) -> list[Json]:
    """The three interfaces as a result of this version describes them, by what the kernel says."""
    outer, inner = host.links(), host.links("a")["eth0"]
    (veth,) = [link for name, link in outer.items() if name.startswith("veth")]
    interfaces = [
        {"name": "cni0", "mac": outer["cni0"]["address"]},
        {"name": veth["ifname"], "mac": veth["address"], "mtu": veth["mtu"]},
        {"name": "eth0", "mac": inner["address"], "mtu": inner["mtu"], "sandbox": "/run/netns/a"},
    ]
    if version != "1.1.0":
        for each in interfaces:
            each.pop("mtu", None)
    return interfaces


@pytest.mark.parametrize("version", VERSIONS)
def test_ipv4(host: Host, version: str) -> None:
    conf = bridge_conf(version, dns=DNS)
    result = attach(host, conf)
    address = {"address": "10.88.0.2/24", "gateway": "10.88.0.1", "interface": 2}
    rest = {"routes": [{"dst": "0.0.0.0/0"}], "dns": DNS, "cniVersion": version}
    if version in OLDEST:
        ip4 = {"ip": "10.88.0.2/24", "gateway": "10.88.0.1", "routes": [{"dst": "0.0.0.0/0"}]}
        assert result == {"cniVersion": version, "ip4": ip4, "dns": DNS}
    elif version in MIDDLE:
        assert result == {**rest, "interfaces": links_of(host, version), "ips": [{**address, "version": "4"}]}
    else:
        assert result == {**rest, "interfaces": links_of(host, version), "ips": [address]}
    detach(host, with_result(conf, result))


@pytest.mark.parametrize("version", VERSIONS)
def test_dual_stack(host: Host, version: str) -> None:
    conf = bridge_conf(version, ipam=DUAL_STACK)
    result = attach(host, conf)
    if version in OLDEST:
        assert result == {
            "cniVersion": version,
            "ip4": {"ip": "10.88.0.2/24", "gateway": "10.88.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00:88::2/64", "gateway": "fd00:88::1", "routes": [{"dst": "::/0"}]},
            "dns": {},
        }
    else:
        ips = [
            {"version": "4", "interface": 2, "address": "10.88.0.2/24", "gateway": "10.88.0.1"},
            {"version": "6", "interface": 2, "address": "fd00:88::2/64", "gateway": "fd00:88::1"},
        ]
        newest = version in NEWEST
        assert result == {
            "cniVersion": version,
            "interfaces": links_of(host, version),
            "ips": [{key: each[key] for key in each if key != "version" or not newest} for each in ips],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            **({} if newest else {"dns": {}}),
        }
    detach(host, with_result(conf, result))


@pytest.mark.parametrize("version", MIDDLE + NEWEST)
def test_without_addresses(host: Host, version: str) -> None:
    conf = bridge_conf(version, ipam=None)
    result = attach(host, conf)
    expected = {"cniVersion": version, "interfaces": links_of(host, version)}
    assert result == (expected if version in NEWEST else {**expected, "dns": {}})
    detach(host, with_result(conf, result))


@pytest.mark.parametrize("version", OLDEST)
@pytest.mark.parametrize("ipam", [None, TWO_OF_A_FAMILY], ids=["no address", "two addresses of a family"])
def test_what_the_oldest_results_cannot_hold_is_refused_before_anything_is_made(
    host: Host, version: str, ipam: Json | None
) -> None:
    host.add_netns("a")
    with unchanged(host, "a"):
        error = host.plugin("ADD", bridge_conf(version, ipam=ipam), "a").error
    assert (error["code"], error["cniVersion"]) == (7, version)
    assert version in error["msg"]


@pytest.mark.every_way
def test_without_version_the_result_is_of_the_oldest(host: Host) -> None:
    conf = {key: value for key, value in bridge_conf().items() if key != "cniVersion"}
    result = attach(host, conf)
    assert result["cniVersion"] == "0.1.0"
    assert result["ip4"]["ip"] == "10.88.0.2/24"


@pytest.mark.every_way
def test_dns_comes_from_resolv_conf_unless_configured(host: Host) -> None:
    host.shell("printf 'nameserver 10.88.0.53\\nsearch a.test b.test\\n' > /run/resolv.conf")
    ipam = {**IPV4, "resolvConf": "/run/resolv.conf"}
    assert attach(host, bridge_conf(ipam=ipam), "a")["dns"] == {
        "nameservers": ["10.88.0.53"],
        "search": ["a.test", "b.test"],
    }
    assert attach(host, bridge_conf(ipam=ipam, dns={"domain": "test"}), "b")["dns"] == {"domain": "test"}


@pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
def test_previous_result_is_passed_on(host: Host, version: str) -> None:
    before: Json = {
        "cniVersion": version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0, **({"version": "4"} if version == "0.4.0" else {})}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    conf = bridge_conf(version, prevResult=before)
    result = attach(host, conf)
    assert result["interfaces"][0] == before["interfaces"][0]
    assert [each["name"] for each in result["interfaces"][1::2]] == ["cni0", "eth0"]
    assert result["ips"][0] == before["ips"][0]
    assert (result["ips"][1]["address"], result["ips"][1]["interface"]) == ("10.88.0.2/24", 3)
    assert [each["dst"] for each in result["routes"]] == ["192.0.2.0/24", "0.0.0.0/0"]
    assert result["dns"] == before["dns"]
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    detach(host, with_result(conf, result))


@pytest.mark.parametrize(
    "before",
    [{"cniVersion": "0.4.0", "ips": []}, {"cniVersion": "9.9.9"}, {"ips": [{"address": "nonsense"}]}, "text", [1]],
    ids=str,
)
def test_previous_result_that_cannot_be_read_is_refused(host: Host, before: object) -> None:
    host.add_netns("a")
    with unchanged(host, "a"):
        error = host.plugin("ADD", bridge_conf("1.0.0", prevResult=before), "a").error
    assert error["code"] == 6
    assert "prevResult" in error["msg"]


@pytest.mark.parametrize("plugin", ["cni-bridge", "cni-ipam"])
def test_about_text_where_no_command_is_given(host: Host, plugin: str) -> None:
    for environment in ({}, {"CNI_COMMAND": ""}):
        done = host.run(BIN / plugin, env=environment)
        assert done.stdout == ""
        assert plugin in done.stderr
        assert ", ".join(VERSIONS) in done.stderr


@pytest.mark.parametrize("plugin", ["cni-bridge", "cni-ipam"])
@pytest.mark.parametrize(
    ("stdin", "echoed"),
    [*((json.dumps({"cniVersion": each}), each) for each in VERSIONS), ("", "1.1.0"), ("{}", "1.1.0"), ("{", "1.1.0")],
)
def test_version_is_echoed_with_all_that_are_supported(host: Host, plugin: str, stdin: str, echoed: str) -> None:
    dummies = dict.fromkeys(("CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "dummy")  # as libcni sends them
    answer = host.plugin("VERSION", stdin, "", plugin=plugin, env=dummies)
    assert answer.result == {"cniVersion": echoed, "supportedVersions": list(VERSIONS)}
    assert answer.stderr == ""


def test_version_needs_no_variable_but_the_command(host: Host) -> None:
    done = host.run(BIN / "cni-bridge", env={"CNI_COMMAND": "VERSION"}, stdin=b'{"cniVersion": "1.1.0"}')
    assert json.loads(done.stdout)["supportedVersions"] == list(VERSIONS)
