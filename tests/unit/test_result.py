"""The result of ADD, in the shape of each specification version."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_bridge.cni.errors import Code
from cni_bridge.cni.fields import Fields, parse_object
from cni_bridge.cni.result import (
    InterfaceEntry,
    IpEntry,
    Result,
    parse,
    parse_previous,
    render,
    require_renderable,
)
from cni_bridge.cni.versions import SUPPORTED, Version
from ipam.api import Dns, Route
from tests.support.calls import refusal


def fields(document: object) -> Fields:
    """The document as the plugin reads it."""
    return parse_object(json.dumps(document).encode(), "the text")


RESULT = Result(
    interfaces=(
        InterfaceEntry(name="cni0", mac="02:00:00:00:00:01"),
        InterfaceEntry(name="veth1", mac="02:00:00:00:00:02", mtu=1400),
        InterfaceEntry(name="eth0", mac="02:00:00:00:00:03", mtu=1400, sandbox="/run/netns/c1"),
    ),
    ips=(
        IpEntry(address=ip_interface("10.88.0.2/24"), gateway=ip_address("10.88.0.1"), interface=2),
        IpEntry(address=ip_interface("fd00:88::2/64"), gateway=ip_address("fd00:88::1"), interface=2),
        IpEntry(address=ip_interface("10.89.0.2/24"), interface=0),
    ),
    routes=(
        Route(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.88.0.1")),
        Route(dst=ip_network("fd01::/16"), mtu=1300, advmss=1240, priority=7, table=100, scope=0),
    ),
    dns=Dns(nameservers=("10.88.0.53",), domain="a.test", search=("b.test",), options=("ndots:2",)),
)

DNS = {"nameservers": ["10.88.0.53"], "domain": "a.test", "search": ["b.test"], "options": ["ndots:2"]}
ROUTES = [
    {"dst": "0.0.0.0/0", "gw": "10.88.0.1"},
    {"dst": "fd01::/16", "mtu": 1300, "advmss": 1240, "priority": 7, "table": 100, "scope": 0},
]
OLDEST = {
    "ip4": {
        "ip": "10.88.0.2/24",
        "gateway": "10.88.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}],
    },
    "ip6": {"ip": "fd00:88::2/64", "gateway": "fd00:88::1", "routes": [{"dst": "fd01::/16"}]},
    "dns": DNS,
}
INTERFACES = [
    {"name": "cni0", "mac": "02:00:00:00:00:01"},
    {"name": "veth1", "mac": "02:00:00:00:00:02"},
    {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/c1"},
]
IPS = [
    {"interface": 2, "address": "10.88.0.2/24", "gateway": "10.88.0.1"},
    {"interface": 2, "address": "fd00:88::2/64", "gateway": "fd00:88::1"},
    {"interface": 0, "address": "10.89.0.2/24"},
]
MIDDLE = {
    "interfaces": INTERFACES,
    "ips": [{"version": version, **ip} for version, ip in zip("464", IPS, strict=True)],
    "routes": ROUTES,
    "dns": DNS,
}
V1_0 = {"interfaces": INTERFACES, "ips": IPS, "routes": ROUTES, "dns": DNS}
V1_1 = {**V1_0, "interfaces": [INTERFACES[0], *({**each, "mtu": 1400} for each in INTERFACES[1:])]}
SHAPES = {
    "0.1.0": OLDEST,
    "0.2.0": OLDEST,
    "0.3.0": MIDDLE,
    "0.3.1": MIDDLE,
    "0.4.0": MIDDLE,
    "1.0.0": V1_0,
    "1.1.0": V1_1,
}


@pytest.mark.parametrize("version", SUPPORTED)
def test_render(version: Version) -> None:
    rendered = render(RESULT, version)
    assert json.loads(json.dumps(rendered)) == {"cniVersion": version, **SHAPES[version]}


@pytest.mark.parametrize("version", SUPPORTED)
def test_render_of_an_empty_result(version: Version) -> None:
    dns: dict[str, object] = {} if version.since(Version.V1_0_0) else {"dns": {}}
    assert render(Result(), version) == {"cniVersion": version, **dns}


def test_the_oldest_drops_routes_without_an_address_of_their_family() -> None:
    only4 = replace(RESULT, ips=RESULT.ips[:1])
    assert render(only4, Version.V0_2_0) == {"cniVersion": "0.2.0", "ip4": OLDEST["ip4"], "dns": DNS}


@pytest.mark.parametrize("version", SUPPORTED)
def test_what_was_rendered_is_read_again(version: Version) -> None:
    rendered = render(RESULT, version)
    assert render(parse(fields(rendered), Version.V1_1_0), version) == rendered
    without_version = {key: value for key, value in rendered.items() if key != "cniVersion"}
    assert render(parse(fields(without_version), version), version) == rendered


def test_parse_keeps_everything() -> None:
    assert parse(fields(render(RESULT, Version.V1_1_0)), Version.V0_1_0) == RESULT


@pytest.mark.parametrize(
    ("document", "code", "msg"),
    [
        ({"cniVersion": "2.0.0"}, Code.DECODING_FAILURE, 'unsupported CNI result version "2.0.0" in the result'),
        ({"cniVersion": 1}, Code.DECODING_FAILURE, "cniVersion is 1, expected a string"),
        ({"ips": {}}, Code.DECODING_FAILURE, "ips is {}, expected a list"),
        ({"ips": [{}]}, Code.INVALID_CONFIG, 'ips[0].address "" is not an address in CIDR notation'),
        (
            {"ips": [{"address": "10.0.0.1"}]},
            Code.INVALID_CONFIG,
            'ips[0].address "10.0.0.1" is not an address in CIDR notation',
        ),
        (
            {"ips": [{"address": "10.0.0.1/8", "interface": "2"}]},
            Code.DECODING_FAILURE,
            'ips[0].interface is "2", expected a whole number',
        ),
        ({"interfaces": [{"name": 5}]}, Code.DECODING_FAILURE, "interfaces[0].name is 5, expected a string"),
        ({"routes": [{"dst": "x"}]}, Code.INVALID_CONFIG, 'routes[0].dst "x" is not a destination in CIDR notation'),
        ({"dns": []}, Code.DECODING_FAILURE, "dns is [], expected an object"),
        (
            {"cniVersion": "0.2.0", "ip4": {"ip": "x"}},
            Code.INVALID_CONFIG,
            'ip4.ip "x" is not an address in CIDR notation',
        ),
    ],
)
def test_a_bad_result_is_refused(document: dict[str, object], code: Code, msg: str) -> None:
    error = refusal(parse, fields(document), Version.V1_0_0)
    assert (error.code, error.msg) == (code, msg)


@pytest.mark.parametrize("previous", SUPPORTED)
@pytest.mark.parametrize("version", SUPPORTED)
def test_a_previous_result_is_of_the_versions_family(version: Version, previous: Version) -> None:
    config = fields({"prevResult": render(RESULT, previous)})
    if version.family == previous.family:
        parsed = parse_previous(config, version)
        assert parsed is not None
        assert render(parsed, previous) == render(RESULT, previous)
    else:
        error = refusal(parse_previous, config, version)
        assert error.code == Code.DECODING_FAILURE
        assert error.msg.startswith("could not parse prevResult: ")


@pytest.mark.parametrize("named", [{}, {"cniVersion": ""}, {"cniVersion": None}])
@pytest.mark.parametrize("version", SUPPORTED)
def test_a_previous_result_without_version_is_of_the_configurations(version: Version, named: dict[str, object]) -> None:
    config = fields({"prevResult": {**SHAPES[version], **named}})
    parsed = parse_previous(config, version)
    assert parsed is not None
    assert render(parsed, version) == {"cniVersion": version, **SHAPES[version]}


def test_no_previous_result() -> None:
    assert parse_previous(fields({}), Version.V1_1_0) is None
    assert parse_previous(fields({"prevResult": None}), Version.V1_1_0) is None


@pytest.mark.parametrize("previous", [5, [], {"cniVersion": "9.9.9"}, {"ips": [{"address": "x"}]}, {"interfaces": [5]}])
def test_a_bad_previous_result_is_a_decoding_failure(previous: object) -> None:
    error = refusal(parse_previous, fields({"prevResult": previous}), Version.V1_1_0)
    assert error.code == Code.DECODING_FAILURE
    assert "prevResult" in error.msg


def test_after_appends_and_moves_the_interface_positions() -> None:
    previous = Result(
        interfaces=(InterfaceEntry(name="lo", sandbox="/run/netns/c1"),),
        ips=(IpEntry(address=ip_interface("127.0.0.1/8"), interface=0),),
        routes=(Route(dst=ip_network("192.0.2.0/24")),),
        dns=Dns(nameservers=("192.0.2.53",)),
    )
    unplaced = IpEntry(address=ip_interface("10.90.0.2/24"))
    joined = replace(RESULT, ips=(*RESULT.ips, unplaced)).after(previous)
    assert joined.interfaces == previous.interfaces + RESULT.interfaces
    assert joined.ips[0] == previous.ips[0]
    assert [each.interface for each in joined.ips] == [0, 3, 3, 1, None]
    assert joined.routes == previous.routes + RESULT.routes
    assert joined.dns == RESULT.dns
    assert replace(RESULT, dns=Dns()).after(previous).dns == previous.dns
    assert RESULT.after(Result()) == RESULT


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize(
    ("families", "msg"),
    [
        ([4], ""),
        ([6], ""),
        ([6, 4], ""),
        ([], "needs an address"),
        ([4, 4], "does not support more than 1 address per family"),
        ([4, 6, 6], "does not support more than 1 address per family"),
    ],
)
def test_what_the_oldest_cannot_carry_is_refused(version: Version, families: list[int], msg: str) -> None:
    if not msg or version.since(Version.V0_3_0):
        require_renderable(families, version)
        return
    error = refusal(require_renderable, families, version)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith(f"CNI version {version}")
    assert msg in error.msg
