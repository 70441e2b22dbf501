"""Settings of the container's interface and kernel: where they are read from, and what a bad one gets."""

from __future__ import annotations

import json

import pytest

from cni_bridge.cni.errors import CniError, Code
from cni_bridge.cni.request import parse_request
from cni_bridge.cni.tuning import Sysctl, Tuning, parse_tuning, require_allowed
from tests.support.calls import ENVIRONMENT, refusal, request

MACS = {name: f"02:00:00:00:00:0{n}" for n, name in enumerate(("config", "env", "runtime", "args"), 1)}


def parse(environ: dict[str, str] | None = None, /, **keys: object) -> Tuning:
    return parse_tuning(request(environ, **keys))


def refused(environ: dict[str, str] | None = None, /, **keys: object) -> CniError:
    return refusal(lambda: parse(environ, **keys))


def written(text: str) -> Tuning:
    """What a configuration with these members, as they are written, asks for."""
    stdin = f'{{"cniVersion": "1.0.0", "name": "net1", "type": "tuning", {text}}}'
    return parse_tuning(parse_request(ENVIRONMENT, stdin.encode()))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, Tuning()),
        ({"mac": None, "mtu": None, "sysctl": None, "promisc": None, "allmulti": None, "txQLen": None}, Tuning()),
        ({"mac": "02:0A:0B:0C:0D:0E"}, Tuning(mac="02:0a:0b:0c:0d:0e")),
        ({"mtu": 68}, Tuning(mtu=68)),
        ({"mtu": 65535}, Tuning(mtu=65535)),
        ({"mtu": 0}, Tuning()),  # as the reference reads it: unset
        ({"promisc": True}, Tuning(promisc=True)),
        ({"promisc": False}, Tuning()),
        ({"allmulti": True}, Tuning(allmulti=True)),
        ({"allmulti": False}, Tuning(allmulti=False)),
        ({"txQLen": 0}, Tuning(tx_queue=0)),
        ({"TXQLEN": 500}, Tuning(tx_queue=500)),
    ],
)
def test_settings_of_the_interface(keys: dict[str, object], expected: Tuning) -> None:
    assert parse(**keys) == expected
    assert bool(parse(**keys)) == (expected != Tuning())


@pytest.mark.parametrize(
    ("of_args", "expected"),
    [
        ({"mtu": 1300}, Tuning(mtu=1300, promisc=True, allmulti=True, tx_queue=7)),
        ({"promisc": False}, Tuning(mtu=1400, allmulti=True, tx_queue=7)),
        ({"allmulti": False}, Tuning(mtu=1400, promisc=True, allmulti=False, tx_queue=7)),
        ({"txQLen": 0}, Tuning(mtu=1400, promisc=True, allmulti=True, tx_queue=0)),
        ({}, Tuning(mtu=1400, promisc=True, allmulti=True, tx_queue=7)),
    ],
)
def test_args_go_before_the_configuration(of_args: dict[str, object], expected: Tuning) -> None:
    configured = {"mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 7}
    assert parse(**configured, args={"cni": of_args}) == expected


@pytest.mark.parametrize(
    ("sources", "first"),
    [
        ("config env runtime args", "args"),
        ("config env runtime", "runtime"),
        ("config env args", "args"),
        ("config env", "env"),
        ("config", "config"),
    ],
)
def test_the_mac_address_is_taken_from_where_the_reference_takes_it(sources: str, first: str) -> None:
    given = {name: MACS[name] for name in sources.split()}
    asked = parse(
        {"CNI_ARGS": f"MAC={given['env']}"} if "env" in given else {},
        mac=given["config"],
        runtimeConfig={"mac": given["runtime"]} if "runtime" in given else None,
        args={"cni": {"mac": given["args"]}} if "args" in given else None,
    )
    assert asked.mac == MACS[first]


def test_as_a_key_of_the_one_plugin_neither_mac_nor_mtu_is_meant() -> None:
    keys = {"mac": MACS["config"], "mtu": 1400, "txQLen": 7, "sysctl": {"net.core.somaxconn": "5"}}
    tuning = parse_tuning(request(**keys), link=False)
    assert tuning == Tuning(tx_queue=7, sysctls=(Sysctl(name="core/somaxconn", value="5", key="net.core.somaxconn"),))


@pytest.mark.parametrize(
    ("ifname", "key", "name"),
    [
        ("eth0", "net.core.somaxconn", "core/somaxconn"),
        ("eth0", "net/core/somaxconn", "core/somaxconn"),
        ("eth0", "net.ipv4.conf.IFNAME.arp_filter", "ipv4/conf/eth0/arp_filter"),
        ("eth0", "net/ipv4/conf/IFNAME/arp_filter", "ipv4/conf/eth0/arp_filter"),
        ("eth0.5", "net.ipv4.conf.IFNAME.arp_filter", "ipv4/conf/eth0.5/arp_filter"),
        ("eth0", "net.ipv4.conf.IFNAME.IFNAME", "ipv4/conf/eth0/IFNAME"),
    ],
)
def test_the_name_of_a_kernel_setting(ifname: str, key: str, name: str) -> None:
    assert parse({"CNI_IFNAME": ifname}, sysctl={key: "1"}).sysctls == (Sysctl(name=name, value="1", key=key),)


def test_kernel_settings_keep_their_order_and_their_case() -> None:
    names = ["net.ipv4.conf.Eth0.arp_filter", "net.core.somaxconn", "net.ipv4.conf.eth0.arp_filter"]
    assert [str(each) for each in parse(SysCtl=dict.fromkeys(names, "1")).sysctls] == names


def test_kernel_settings_of_args_are_added_to_the_configurations_or_replace_one() -> None:
    configured = {"net.core.somaxconn": "500", "net.core.xfrm_larval_drop": "1"}
    asked = parse(
        sysctl=configured, args={"cni": {"sysctl": {"net.core.somaxconn": "600", "net.ipv4.ip_forward": "1"}}}
    )
    assert {str(each): each.value for each in asked.sysctls} == {
        "net.core.somaxconn": "600",
        "net.core.xfrm_larval_drop": "1",
        "net.ipv4.ip_forward": "1",
    }
    assert parse(sysctl=configured, args={"cni": {"sysctl": {}}}) == parse(sysctl=configured)
    assert [str(each) for each in parse(args={"cni": {"sysctl": {"net.core.somaxconn": "1"}}}).sysctls] == [
        "net.core.somaxconn"
    ]


@pytest.mark.parametrize("key", ["kernel.msgmax", "net", "net.", "", "network.x", "/net.core.x", "../net/x"])
def test_a_kernel_setting_outside_of_net_is_refused(key: str) -> None:
    error = refused(sysctl={key: "1"})
    assert error.code == Code.INVALID_CONFIG
    assert f'"{key}" is not below net' in error.msg


@pytest.mark.parametrize(
    "members",
    [
        '"net.core.somaxconn": "1", "net.core.somaxconn": "2"',
        '"net.core.somaxconn": "1", "net/core/somaxconn": "1"',
        '"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.eth0.arp_filter": "1"',
    ],
)
def test_a_kernel_setting_that_is_given_twice_is_refused(members: str) -> None:
    error = refusal(lambda: written(f'"sysctl": {{{members}}}'))
    assert error.code == Code.INVALID_CONFIG
    assert "is given twice" in error.msg


@pytest.mark.parametrize("value", [1, True, None, ["1"], {"value": "1"}])
def test_a_kernel_setting_that_is_no_string_is_refused(value: object) -> None:
    for keys in (
        {"sysctl": {"net.core.somaxconn": value}},
        {"args": {"cni": {"sysctl": {"net.core.somaxconn": value}}}},
    ):
        error = refused(**keys)
        assert error.code == Code.DECODING_FAILURE
        assert "net.core.somaxconn" in error.msg


@pytest.mark.parametrize("sysctl", [[], "net.core.somaxconn=1", 5, True])
def test_kernel_settings_that_are_no_object_are_refused(sysctl: object) -> None:
    for keys in ({"sysctl": sysctl}, {"args": {"cni": {"sysctl": sysctl}}}):
        assert refused(**keys).code == Code.DECODING_FAILURE


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"mac": "zz"}, Code.INVALID_CONFIG, 'mac "zz" is not a unicast MAC address'),
        ({"mac": "01:00:5e:00:00:01"}, Code.INVALID_CONFIG, "is not a unicast MAC address"),
        ({"mac": 5}, Code.DECODING_FAILURE, "mac is 5, expected a string"),
        ({"mtu": 67}, Code.INVALID_CONFIG, "mtu 67 is not between 68"),
        ({"mtu": -1}, Code.INVALID_CONFIG, "mtu -1 is not between"),
        ({"mtu": 65536}, Code.INVALID_CONFIG, "mtu 65536 is not between"),
        ({"mtu": "1400"}, Code.DECODING_FAILURE, 'mtu is "1400", expected a whole number'),
        ({"txQLen": -1}, Code.INVALID_CONFIG, "txQLen -1 is not between"),
        ({"txQLen": 1 << 32}, Code.INVALID_CONFIG, "txQLen 4294967296 is not between"),
        ({"txQLen": 1.5}, Code.DECODING_FAILURE, "txQLen is 1.5, expected a whole number"),
        ({"promisc": "yes"}, Code.DECODING_FAILURE, 'promisc is "yes"'),
        ({"allmulti": 1}, Code.DECODING_FAILURE, "allmulti is 1"),
    ],
)
def test_a_value_that_cannot_be_set(keys: dict[str, object], code: Code, said: str) -> None:
    error = refused(**keys)
    assert (error.code, said in error.msg) == (code, True), error.msg
    error = refused(args={"cni": keys})
    assert (error.code, f"args.cni.{said}" in error.msg or "unicast" in said) == (code, True), error.msg


def test_a_bad_mac_address_in_cni_args_is_an_error_of_the_environment() -> None:
    assert refused({"CNI_ARGS": "MAC=zz"}).code == Code.INVALID_ENVIRONMENT


@pytest.mark.parametrize(
    ("patterns", "key", "allowed"),
    [
        (["^net.core.somaxconn$"], "net.core.somaxconn", True),
        (["", "  ^net.core.somaxconn$  "], "net.core.somaxconn", True),
        (["somax"], "net.core.somaxconn", True),  # unanchored, as the reference reads it
        (["^net.core.[a-z]*$"], "net.core.somaxconn", True),
        (["^net.core.[a-z]*$"], "net.ipv4.ip_forward", False),
        (["^net.core$", "ip_forward"], "net.ipv4.ip_forward", True),
        ([], "net.core.somaxconn", False),
        (["# net.core.somaxconn"], "net.core.somaxconn", False),
        # Administrators write patterns for the key as the configuration has it (README of the reference).
        (["^net.ipv4.conf.IFNAME.[a-z_]*$"], "net.ipv4.conf.IFNAME.arp_filter", True),
        (["^net.ipv4.conf.IFNAME.[a-z_]*$"], "net/ipv4/conf/IFNAME/arp_filter", True),
        (["^net.ipv4.conf.IFNAME.[a-z_]*$"], "net.ipv4.conf.eth1.arp_filter", False),
    ],
)
def test_the_administrators_list_of_kernel_settings(patterns: list[str], key: str, allowed: bool) -> None:
    sysctls = parse(sysctl={key: "1"}).sysctls
    if allowed:
        require_allowed(sysctls, patterns)
        return
    error = refusal(require_allowed, sysctls, patterns)
    assert error.code == Code.INVALID_CONFIG
    assert f"{key} is not allowed" in error.msg


def test_a_pattern_of_the_administrator_that_is_none_is_named() -> None:
    error = refusal(require_allowed, parse(sysctl={"net.core.somaxconn": "1"}).sysctls, ["net.core.[a-z"])
    assert error.code == Code.IO_FAILURE
    assert "net.core.[a-z" in error.msg


def test_no_kernel_setting_needs_no_permission() -> None:
    require_allowed((), ())


def test_the_last_of_two_sections_counts_as_for_every_other_key() -> None:
    sections = [{"net.core.somaxconn": "1"}, {"net.ipv4.ip_forward": "1"}]
    text = ", ".join(f'"{name}": {json.dumps(each)}' for name, each in zip(("sysctl", "SysCtl"), sections, strict=True))
    assert [str(each) for each in written(text).sysctls] == ["net.ipv4.ip_forward"]
