"""JSON as CNI's Go programs read it: keys of any case, strict types, null as absent, paths in messages."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_bridge.cni.errors import Code
from cni_bridge.cni.fields import Fields, parse_destination, parse_interface, parse_object
from tests.support.calls import refusal


def read(text: str) -> Fields:
    return parse_object(text.encode(), "the text")


@pytest.mark.parametrize("key", ["mtu", "MTU", "Mtu"])
def test_keys_match_whatever_their_case(key: str) -> None:
    fields = read(f'{{"{key}": 1400}}')
    assert fields.integer("mtu", 0, low=0, high=9000) == 1400
    assert fields.has("MTU")
    assert "mTu" in fields


@pytest.mark.parametrize(
    "text",
    [
        '{"mtu": 1, "mtu": 3}',
        '{"mtu": 1, "MTU": 3}',
        '{"MTU": 1, "mtu": 3}',
        '{"mtu": 1, "MTU": 2, "mtu": 3}',
    ],
)
def test_the_last_duplicate_wins(text: str) -> None:
    assert read(text).integer("mtu", 0, low=0, high=9) == 3


def test_null_is_absent() -> None:
    fields = read('{"s": null, "b": null, "i": null, "o": null, "l": null, "a": null}')
    assert fields.string("s", "x") == "x"
    assert fields.boolean("b", True) is True
    assert fields.integer("i", 7, low=8, high=9) == 7  # a default need not lie in the range
    assert fields.optional_integer("i", low=8, high=9) is None
    assert fields.object("o").string("s") == ""
    assert fields.items("l") == []
    assert fields.strings("l") == ()
    assert fields.objects("l") == ()
    assert fields.address("a") is None
    assert not fields.has("s")
    assert "s" in fields


def test_absent_keys_have_their_defaults() -> None:
    fields = read("{}")
    assert fields.string("s") == ""
    assert fields.boolean("b") is False
    assert fields.integer("i", 5, low=0, high=9) == 5
    assert fields.object("o").path == "o"
    assert "s" not in fields


@pytest.mark.parametrize(
    ("value", "read_it", "msg"),
    [
        ("1400.0", lambda f: f.integer("k", 0, low=0, high=9000), "k is 1400.0, expected a whole number"),
        ("1.4e3", lambda f: f.integer("k", 0, low=0, high=9000), "k is 1400.0, expected a whole number"),
        ('"1500"', lambda f: f.integer("k", 0, low=0, high=9000), 'k is "1500", expected a whole number'),
        ("true", lambda f: f.integer("k", 0, low=0, high=9000), "k is true, expected a whole number"),
        ("1", lambda f: f.boolean("k"), "k is 1, expected true or false"),
        ('"true"', lambda f: f.boolean("k"), 'k is "true", expected true or false'),
        ("5", lambda f: f.string("k"), "k is 5, expected a string"),
        ("[]", lambda f: f.object("k"), "k is [], expected an object"),
        ("{}", lambda f: f.items("k"), "k is {}, expected a list"),
        ('["a", null]', lambda f: f.strings("k"), "k[1] is null, expected a string"),
        ("[{}, 5]", lambda f: f.objects("k"), "k[1] is 5, expected an object"),
        ("[null]", lambda f: f.objects("k"), "k[0] is null, expected an object"),
        ("10", lambda f: f.address("k"), "k is 10, expected a string"),
    ],
)
def test_wrong_types_are_decoding_failures(value: str, read_it: Callable[[Fields], object], msg: str) -> None:
    error = refusal(read_it, read(f'{{"k": {value}}}'))
    assert (error.code, error.msg) == (Code.DECODING_FAILURE, msg)


def test_a_long_value_is_cut_in_the_message() -> None:
    error = refusal(read(f'{{"k": "{"x" * 1000}"}}').boolean, "k")
    assert len(error.msg) < 100


@pytest.mark.parametrize("number", [-1, 10])
def test_numbers_out_of_range_name_the_range(number: int) -> None:
    fields = read(f'{{"k": {number}}}')
    for call in (lambda: fields.integer("k", 0, low=0, high=9), lambda: fields.optional_integer("k", low=0, high=9)):
        error = refusal(call)
        assert (error.code, error.msg) == (Code.INVALID_CONFIG, f"k {number} is not between 0 and 9")


def test_messages_name_the_whole_path() -> None:
    config = read('{"ipam": {"ranges": [{}, {"subnet": 5}]}}')
    inner = config.object("ipam").objects("ranges")[1]
    assert inner.path == "ipam.ranges[1]"
    assert refusal(inner.string, "subnet").msg == "ipam.ranges[1].subnet is 5, expected a string"


def netmasks(address: str) -> list[str]:
    """The address with what Python takes for a prefix length."""
    return [f"{address}/{mask}" for mask in ("255.255.255.0", "0.0.0.255")]


@pytest.mark.parametrize("text", ["10.0.0.256", "10.0.0.1/24", "fe80::1%eth0", "010.0.0.1", "10.0.0", "localhost", " "])
def test_bad_addresses(text: str) -> None:
    error = refusal(read(f'{{"gw": "{text}"}}').address, "gw")
    assert (error.code, error.msg) == (Code.INVALID_CONFIG, f'gw "{text}" is not an IP address')


def test_good_addresses() -> None:
    assert read('{"gw": "10.0.0.1"}').address("gw") == ip_address("10.0.0.1")
    assert read('{"gw": "FD00::0:1"}').address("gw") == ip_address("fd00::1")
    assert read('{"gw": ""}').address("gw") is None


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "10.0.0.1/33", "10.0.0.1/", "/24", "fd00::1/129", "fe80::1%eth0/64", *netmasks("10.0.0.1")]
)
def test_bad_interfaces(text: str) -> None:
    error = refusal(parse_interface, text, "ips[0].address")
    assert error.code == Code.INVALID_CONFIG
    assert error.msg == f'ips[0].address "{text}" is not an address in CIDR notation'


def test_an_interface_keeps_its_host_bits() -> None:
    assert parse_interface("10.0.0.1/24", "x") == ip_interface("10.0.0.1/24")


@pytest.mark.parametrize("text", ["", "default", "10.0.0.0/33", "10.0.0.0", "::", "fe80::%1/64", *netmasks("10.0.0.0")])
def test_bad_destinations(text: str) -> None:
    error = refusal(parse_destination, text, "routes[0].dst")
    assert error.code == Code.INVALID_CONFIG
    assert error.msg == f'routes[0].dst "{text}" is not a destination in CIDR notation'


def test_a_destination_loses_its_host_bits() -> None:
    assert parse_destination("10.1.2.3/16", "x") == ip_network("10.1.0.0/16")
    assert parse_destination("::/0", "x") == ip_network("::/0")
