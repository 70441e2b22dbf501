"""The runtime's port mappings: how they are read, merged into runs, and refused."""

from __future__ import annotations

import random
import time
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_bridge.cni.errors import CniError, Code, InvalidConfig
from cni_bridge.cni.ports import PortMapping, Protocol, parse_port_mappings
from tests.support.calls import refusal, request


def parse(*mappings: dict[str, object]) -> tuple[PortMapping, ...]:
    return parse_port_mappings(request(runtimeConfig={"portMappings": list(mappings)}).config)


def refused(*mappings: dict[str, object]) -> CniError:
    return refusal(parse, *mappings)


def port(host: int, container: int = 80, **keys: object) -> dict[str, object]:
    return {"hostPort": host, "containerPort": container, **keys}


def in_words(mapping: PortMapping) -> str:
    """Host side and first container port."""
    return f"{mapping} -> {mapping.container_port}"


@pytest.mark.parametrize("runtime", [None, {}, {"portMappings": None}, {"portMappings": []}])
def test_no_mapping(runtime: object) -> None:
    assert parse_port_mappings(request(runtimeConfig=runtime).config) == ()


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (port(8080), "8080/tcp -> 80"),
        (port(1, 65535, protocol="udp"), "1/udp -> 65535"),
        (port(65535, 1, protocol="sctp"), "65535/sctp -> 1"),
        (port(8080, protocol="TCP"), "8080/tcp -> 80"),
        (port(8080, protocol=""), "8080/tcp -> 80"),
        (port(8080, protocol=None, hostIP=None), "8080/tcp -> 80"),
        (port(8080, hostIP=""), "8080/tcp -> 80"),
        (port(8080, hostIP="192.0.2.1"), "192.0.2.1:8080/tcp -> 80"),
        (port(8080, hostIP="2001:DB8:0::1"), "[2001:db8::1]:8080/tcp -> 80"),
        (port(8080, hostIP="0.0.0.0"), "0.0.0.0:8080/tcp -> 80"),
        (port(8080, hostIP="::"), "[::]:8080/tcp -> 80"),
        ({"HostPort": 53, "ContainerPort": 54, "Protocol": "UDP", "HostIP": "127.0.0.1"}, "127.0.0.1:53/udp -> 54"),
        (port(8080, unknown=5), "8080/tcp -> 80"),
    ],
)
def test_one_mapping(mapping: dict[str, object], expected: str) -> None:
    assert [in_words(each) for each in parse(mapping)] == [expected]


@pytest.mark.parametrize(
    ("mappings", "expected"),
    [
        ([port(80, 8080), port(81, 8081)], ["80-81/tcp -> 8080"]),
        ([port(82, 82), port(80, 80), port(81, 81)], ["80-82/tcp -> 80"]),
        ([port(80, 80), port(82, 82)], ["80/tcp -> 80", "82/tcp -> 82"]),
        ([port(80, 8080), port(81, 8082)], ["81/tcp -> 8082", "80/tcp -> 8080"]),
        ([port(80, 80), port(81, 80)], ["80/tcp -> 80", "81/tcp -> 80"]),
        ([port(80, 80), port(81, 81, protocol="udp")], ["80/tcp -> 80", "81/udp -> 81"]),
        ([port(80, 80), port(81, 81, hostIP="192.0.2.1")], ["80/tcp -> 80", "192.0.2.1:81/tcp -> 81"]),
        ([port(65534, 1), port(65535, 2)], ["65534-65535/tcp -> 1"]),
        (
            [port(80, 80, hostIP="::1"), port(81, 81, hostIP="0:0:0::1"), port(81, 81, hostIP="127.0.0.1")],
            ["127.0.0.1:81/tcp -> 81", "[::1]:80-81/tcp -> 80"],
        ),
    ],
)
def test_neighbours_of_equal_offset_are_one(mappings: list[dict[str, object]], expected: list[str]) -> None:
    assert [in_words(each) for each in parse(*mappings)] == expected


def test_a_run_of_ten_thousand_in_whatever_order_is_one_mapping_and_quick() -> None:
    mappings = [port(number, number - 10_000) for number in range(20_000, 30_000)]
    random.Random(5).shuffle(mappings)
    config = request(runtimeConfig={"portMappings": mappings}).config
    start = time.process_time()
    [merged] = parse_port_mappings(config)
    assert time.process_time() - start < 2
    assert (merged.host_port, merged.container_port, merged.count) == (20_000, 10_000, 10_000)


def test_ten_thousand_single_ports_are_quick() -> None:
    config = request(runtimeConfig={"portMappings": [port(number) for number in range(20_000, 30_000)]}).config
    start = time.process_time()
    assert len(parse_port_mappings(config)) == 10_000
    assert time.process_time() - start < 2


@pytest.mark.parametrize("key", ["hostPort", "containerPort"])
@pytest.mark.parametrize("value", [0, -1, 65536, 70000])
def test_a_number_that_is_no_port(key: str, value: int) -> None:
    error = refused(port(1), {**port(2), key: value})
    assert error.code == Code.INVALID_CONFIG
    assert error.msg == f"runtimeConfig.portMappings[1].{key} {value} is not between 1 and 65535"


@pytest.mark.parametrize("key", ["hostPort", "containerPort"])
def test_a_port_that_is_missing(key: str) -> None:
    null = {**port(80), key: None}
    for mapping in (null, {name: value for name, value in null.items() if name != key}):
        error = refused(mapping)
        assert (error.code, error.msg) == (Code.INVALID_CONFIG, f"runtimeConfig.portMappings[0].{key} is missing")


@pytest.mark.parametrize(
    ("mapping", "code", "msg"),
    [
        (port(80, protocol="icmp"), Code.INVALID_CONFIG, 'protocol "icmp" is none of tcp, udp, sctp'),
        (port(80, protocol="tcp "), Code.INVALID_CONFIG, 'protocol "tcp " is none of tcp, udp, sctp'),
        (port(80, protocol=6), Code.DECODING_FAILURE, "protocol is 6, expected a string"),
        (port(80, hostIP="localhost"), Code.INVALID_CONFIG, 'hostIP "localhost" is not an IP address'),
        (port(80, hostIP="10.0.0.0/8"), Code.INVALID_CONFIG, 'hostIP "10.0.0.0/8" is not an IP address'),
        (port(80, hostIP="fe80::1%lo"), Code.INVALID_CONFIG, 'hostIP "fe80::1%lo" is not an IP address'),
        (port(80, hostIP="[::1]"), Code.INVALID_CONFIG, 'hostIP "[::1]" is not an IP address'),
        ({**port(1), "hostPort": "80"}, Code.DECODING_FAILURE, 'hostPort is "80", expected a whole number'),
        ({**port(1), "hostPort": True}, Code.DECODING_FAILURE, "hostPort is true, expected a whole number"),
        ({**port(1), "hostPort": 80.0}, Code.DECODING_FAILURE, "hostPort is 80.0, expected a whole number"),
    ],
)
def test_a_value_that_cannot_be_used(mapping: dict[str, object], code: Code, msg: str) -> None:
    error = refused(mapping)
    assert error.code == code
    assert error.msg.startswith(f"runtimeConfig.portMappings[0].{msg}")


@pytest.mark.parametrize(
    ("mappings", "msg"),
    [
        ([port(80, 1), port(80, 2)], "host port 80/tcp and 80/tcp overlap"),
        ([port(80), port(80)], "host port 80/tcp and 80/tcp overlap"),
        ([port(80), port(80, hostIP="192.0.2.1")], "host port 80/tcp and 192.0.2.1:80/tcp overlap"),
        ([port(80), port(80, hostIP="::1")], "host port 80/tcp and [::1]:80/tcp overlap"),
        ([port(80, hostIP="0.0.0.0"), port(80, hostIP="192.0.2.1")], "0.0.0.0:80/tcp and 192.0.2.1:80/tcp overlap"),
        ([port(80, hostIP="::"), port(80, hostIP="::1")], "host port [::]:80/tcp and [::1]:80/tcp overlap"),
        ([port(80, hostIP="::"), port(80)], "host port 80/tcp and [::]:80/tcp overlap"),
        (
            [*(port(each, each) for each in range(100, 110)), port(105, 1, hostIP="192.0.2.1")],
            "host port 100-109/tcp and 192.0.2.1:105/tcp overlap",
        ),
    ],
)
def test_two_for_one_host_port(mappings: list[dict[str, object]], msg: str) -> None:
    for order in (mappings, mappings[::-1]):
        error = refused(*order)
        assert error.code == Code.INVALID_CONFIG
        assert error.msg.startswith("runtimeConfig.portMappings: host port ")
        assert msg in error.msg


@pytest.mark.parametrize(
    "mappings",
    [
        [port(80), port(80, protocol="udp")],
        [port(80, hostIP="0.0.0.0"), port(80, hostIP="::")],
        [port(80, hostIP="0.0.0.0"), port(80, hostIP="::1")],
        [port(80, hostIP="127.0.0.1"), port(80, hostIP="127.0.0.2")],
        [port(80, hostIP="127.0.0.1"), port(81, hostIP="127.0.0.2")],
    ],
)
def test_no_packet_is_for_both(mappings: list[dict[str, object]]) -> None:
    assert len(parse(*mappings)) == len(mappings)


MAPPINGS = st.lists(
    st.fixed_dictionaries(
        {
            "hostPort": st.integers(1, 12),
            "containerPort": st.integers(1, 12),
            "protocol": st.sampled_from(Protocol),
            "hostIP": st.sampled_from(["", "0.0.0.0", "::", "192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        }
    ),
    max_size=8,
)
PLACES = {
    "": {"192.0.2.1", "192.0.2.2", "other IPv4", "2001:db8::1", "other IPv6"},
    "0.0.0.0": {"192.0.2.1", "192.0.2.2", "other IPv4"},
    "::": {"2001:db8::1", "other IPv6"},
}


def led(mapping: dict[str, Any]) -> set[tuple[str, int, str]]:
    """What the mapping is for: each protocol, host port and address of the host."""
    places = PLACES.get(mapping["hostIP"], {mapping["hostIP"]})
    return {(mapping["protocol"], mapping["hostPort"], place) for place in places}


@settings(max_examples=400)
@given(MAPPINGS)
def test_merging_loses_and_invents_no_port_and_overlaps_are_found(mappings: list[dict[str, Any]]) -> None:
    config = request(runtimeConfig={"portMappings": mappings}).config
    overlapping = any(led(one) & led(other) for one, other in combinations(mappings, 2))
    try:
        merged = parse_port_mappings(config)
    except InvalidConfig:
        assert overlapping
        return
    assert not overlapping
    singles = [
        (each.protocol, str(each.host_ip or ""), each.host_port + offset, each.container_port + offset)
        for each in merged
        for offset in range(each.count)
    ]
    asked = [(each["protocol"], each["hostIP"], each["hostPort"], each["containerPort"]) for each in mappings]
    assert sorted(singles) == sorted(asked)
    ends = {
        (each.protocol, each.host_ip, each.host_port + each.count, each.container_port + each.count) for each in merged
    }
    starts = {(each.protocol, each.host_ip, each.host_port, each.container_port) for each in merged}
    assert not ends & starts  # nothing is left to merge
