"""Frozen dataclasses as JSON values and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

import pytest

from ipam.api import (
    Address,
    AnySubnet,
    Dns,
    Interface,
    Lease,
    NetnsRef,
    Network,
    Owner,
    RangeSet,
    Reservation,
    ReservedFor,
    Route,
    Wanted,
)
from ipam.clock import Moment
from ipam.codec import decode, encode
from ipam.ranges import build_range
from ipam.registry import Entry, Place
from tests.support.calls import OWNER, owner, range_sets


class Colour(StrEnum):
    """A closed set."""

    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """One of each kind of field."""

    text: str
    number: int
    flag: bool
    colour: Colour
    maybe_colour: Colour | None
    address: Address
    maybe_address: Address | None
    interface: Interface
    network: Network
    only4: IPv4Address
    when: datetime
    owner: Owner
    maybe_owner: Owner | None
    many: tuple[Owner, ...]
    set_of: frozenset[Owner]
    default: int = 5


EVERYTHING = Everything(
    text="ä\n",
    number=1 << 70,
    flag=False,
    colour=Colour.RED,
    maybe_colour=None,
    address=ip_address("fd00::1"),
    maybe_address=None,
    interface=ip_interface("10.0.0.5/24"),
    network=ip_network("fd00::/64"),
    only4=IPv4Address("10.0.0.1"),
    when=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    owner=OWNER,
    maybe_owner=owner("c2"),
    many=(owner("c2"), OWNER),
    set_of=frozenset({OWNER, owner("c2")}),
)
JSON = {
    "text": "ä\n",
    "number": 1 << 70,
    "flag": False,
    "colour": "red",
    "maybe_colour": None,
    "address": "fd00::1",
    "maybe_address": None,
    "interface": "10.0.0.5/24",
    "network": "fd00::/64",
    "only4": "10.0.0.1",
    "when": "2026-01-02T03:04:05+00:00",
    "owner": {"network": "net1", "container_id": "c1", "ifname": "eth0"},
    "maybe_owner": {"network": "net1", "container_id": "c2", "ifname": "eth0"},
    "many": [
        {"network": "net1", "container_id": "c2", "ifname": "eth0"},
        {"network": "net1", "container_id": "c1", "ifname": "eth0"},
    ],
    "set_of": [
        {"network": "net1", "container_id": "c1", "ifname": "eth0"},
        {"network": "net1", "container_id": "c2", "ifname": "eth0"},
    ],
    "default": 5,
}


def test_encode() -> None:
    assert encode(EVERYTHING) == JSON


def test_decode() -> None:
    decoded = decode(Everything, json.loads(json.dumps(JSON)))
    assert decoded == EVERYTHING
    assert decoded.colour is Colour.RED
    assert decode(Everything, {key: value for key, value in JSON.items() if key != "default"}) == EVERYTHING


@pytest.mark.parametrize(
    "value",
    [
        OWNER,
        Dns(nameservers=("10.0.0.1",), domain="a.test"),
        Route(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.0.0.1"), mtu=1400, table=0),
        Route(dst=ip_network("::/0")),
        Lease(owner=OWNER, address=ip_interface("fd00::2/64"), gateway=None, since=datetime.now(UTC)),
        Lease(
            owner=OWNER,
            address=ip_interface("10.0.0.2/24"),
            gateway=ip_address("10.0.0.1"),
            since=datetime.now(UTC),
            boot_id="a",
            name="shop/web-0",
            mac="02:00:00:00:00:01",
            netns=NetnsRef(path="/run/netns/c1", device=4, inode=1 << 63),
        ),
        RangeSet(any_subnet=AnySubnet(family=6, prefixlen=80), runtime=True),
        build_range(ip_network("10.0.0.0/24"), exclude=(ip_network("10.0.0.9/32"), ip_network("10.0.0.64/26"))),
        Place(network="net1", address=ip_address("fd00::1")),
        Moment(boot_id="a", seconds=1234.5),
        Moment(boot_id="a", seconds=60.0),
        Entry(
            network="net1",
            address=ip_address("10.0.0.2"),
            released=Moment(boot_id="a", seconds=0.1),
            reservation=Reservation(kind=ReservedFor.STICKY, value="db"),
        ),
        Wanted(owner=OWNER),
        Wanted(
            owner=OWNER,
            range_sets=range_sets(["10.0.0.0/24", "10.0.1.0/32"], ["fd00::/64"]),
            requested=(ip_address("10.0.0.5"), ip_address("fd00::5")),
            routes=(Route(dst=ip_network("10.9.0.0/16"), scope=253),),
            dns=Dns(search=("a", "b")),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_round_trip(value: object) -> None:
    assert decode(type(value), json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 5}, "Everything.text is not of type str"),
        ({"text": None}, "Everything.text is not of type str"),
        ({"number": "5"}, "Everything.number is not of type int"),
        ({"number": 5.0}, "Everything.number is not of type int"),
        ({"number": True}, "Everything.number is not of type int"),
        ({"flag": 1}, "Everything.flag is not of type bool"),
        ({"colour": "blue"}, "Everything.colour has a value that does not fit: 'blue'"),
        ({"colour": None}, "Everything.colour is not a string"),
        ({"maybe_colour": "blue"}, "Everything.maybe_colour has a value that does not fit: 'blue'"),
        ({"address": "10.0.0.1/24"}, "Everything.address has a value that does not fit: '10.0.0.1/24'"),
        ({"address": 167772161}, "Everything.address is not a string"),
        ({"address": None}, "Everything.address is not a string"),
        ({"maybe_address": "x"}, "Everything.maybe_address has a value that does not fit: 'x'"),
        ({"interface": "x/24"}, "Everything.interface has a value that does not fit: 'x/24'"),
        ({"network": "10.0.0.1/24"}, "Everything.network has a value that does not fit: '10.0.0.1/24'"),
        ({"only4": "fd00::1"}, "Everything.only4 has a value that does not fit: 'fd00::1'"),
        ({"when": "yesterday"}, "Everything.when has a value that does not fit: 'yesterday'"),
        ({"when": 0}, "Everything.when is not a string"),
        ({"owner": []}, "Everything.owner is not an object"),
        ({"owner": {"network": "n"}}, "Everything.owner: "),
        ({"owner": {**JSON["owner"], "extra": 1}}, "Everything.owner has unknown keys ['extra']"),  # type: ignore[dict-item]
        ({"many": {}}, "Everything.many is not a list"),
        ({"many": [5]}, "Everything.many[0] is not an object"),
        ({"set_of": None}, "Everything.set_of is not a list"),
        ({"extra": 1}, "Everything has unknown keys ['extra']"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        decode(Everything, {**JSON, **change})
    assert str(caught.value).startswith(message)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError) as caught:
        decode(Everything, {**JSON, "address": "x" * 10_000})
    assert len(str(caught.value)) < 200
