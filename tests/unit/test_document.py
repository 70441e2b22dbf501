"""The lease database as a JSON document: nothing is lost on the way, and only an empty database takes one in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from ipam import document
from ipam.api import Lease, RangeSet, ReservedFor
from ipam.codec import Json
from ipam.errors import RequestRefused, StoreUnavailable
from ipam.registry import PAGE, Entry
from tests.support.calls import owner, range_sets
from tests.support.node import ANY6, Node, netns, node_on, wanted

SETS = range_sets(["10.0.0.0/28"], ["fd00::/124"])
OTHER = range_sets(["10.1.0.0/29", "10.2.0.0/29"])


@contextmanager
def eventful_node(directory: Path) -> Iterator[Node]:
    """A node on which everything that a database can hold has happened."""
    with node_on(directory) as made:
        for name in "abc":
            made.add(name, sets=SETS, netns=netns(name), name=f"ns/{name}", mac="02:00:00:00:00:07")
        made.add("d", "10.0.0.9", sets=SETS, sticky="key")
        made.delete("b", "d")
        made.reserve("10.0.0.11", ReservedFor.NAME, "ns/pod [red]")
        made.reserve("10.0.0.12", ReservedFor.NOBODY)
        made.reserve("fd00::9", ReservedFor.MAC, "02:00:00:00:00:09")
        for name in "xyz":
            made.add(owner(name, "net2"), sets=OTHER)
        made.add(owner("u", "net3"), sets=ANY6)
        made.clock.reboot()
        made.host.gone.add(netns("c"))
        made.run(made.ipam.reconcile())
        yield made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with eventful_node(tmp_path / "one") as made:
        yield made


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> str:
    with eventful_node(tmp_path_factory.mktemp("one")) as made:
        return json.dumps(dump(made))


@pytest.fixture
def value(dumped: str) -> Json:
    """What a file would hold."""
    return json.loads(dumped)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Node]:
    """A node on which nothing has happened."""
    with node_on(tmp_path / "other") as made:
        made.clock.reboot()
        yield made


def dump(node: Node) -> Json:
    return json.loads(json.dumps(document.render(node.run(document.dump(node.store)))))


def load(node: Node, value: Json, advance: Callable[[int], None] = lambda _: None) -> None:
    node.run(document.load(node.store, document.parse(value), advance))


def test_nothing_is_lost_on_the_way(node: Node, other: Node) -> None:
    value = dump(node)
    assert (value["format"], value["version"]) == ("cni-bridge-ipam", 1)
    kinds = ("networks", "pools", "cursors", "facts", "addresses", "events")
    assert all(value[kind] for kind in kinds), {kind: len(value[kind]) for kind in kinds}
    for name in ("lease", "released", "reservation", "suspect", "drawn_from"):
        assert any(each[name] for each in value["addresses"]), f"the node shows no {name}"
    done: list[int] = []
    load(other, value, done.append)
    assert dump(other) == value
    assert sum(done) == len(value["addresses"]) + len(value["events"])
    assert other.pools() == node.pools()
    assert other.findings() == []


@pytest.mark.parametrize(
    ("container", "sets"),
    [("new", SETS), (owner("new", "net2"), OTHER), (owner("new", "net3"), ANY6), (owner("new", "net4"), ANY6)],
    ids=["behind the last", "in the next range", "in a chosen subnet", "in a subnet of the same /48"],
)
def test_the_next_allocation_goes_on_where_the_original_would_have(
    node: Node, other: Node, container: Any, sets: tuple[RangeSet, ...]
) -> None:
    load(other, dump(node))
    assert other.add(container, sets=sets) == node.add(container, sets=sets)
    assert dump(other)["cursors"] == dump(node)["cursors"]


def test_history_goes_on_with_higher_numbers(value: Json, other: Node) -> None:
    load(other, value)
    other.delete("a")
    numbers = [each.number for each in other.events()]
    assert len(numbers) > len(value["events"])
    assert numbers == sorted(set(numbers))


def test_an_owner_keeps_what_it_had(node: Node, other: Node) -> None:
    held = node.holders()
    load(other, dump(node))
    assert other.holders() == held
    assert other.add("a", sets=SETS) == ["10.0.0.2", "fd00::2"]
    assert other.add("new", sets=SETS, name="ns/pod [red]")[0] == "10.0.0.11"


def test_more_than_a_page_of_everything(node: Node, other: Node) -> None:
    sets = range_sets(["10.8.0.0/16"])
    node.add(owner("first", "net8"), sets=sets)
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    many = [
        Entry(
            network="net8",
            address=address,
            lease=Lease(
                owner=owner(f"c{i}", "net8"), address=ip_interface((address, 16)), gateway=None, since=at, boot_id="x"
            ),
        )
        for i in range(2 * PAGE)
        for address in [ip_address("10.8.1.0") + i]
    ]
    node.run(node.store.write(lambda txn: txn.put(many)))
    value = dump(node)
    assert min(len(value["addresses"]), len(value["events"])) > 2 * PAGE
    load(other, value)
    assert dump(other) == value


def an_address(node: Node) -> None:
    node.add("a", sets=SETS)


def an_idle_network(node: Node) -> None:
    node.add("a", sets=SETS)
    node.delete("a")
    node.run(node.store.free(lambda txn: txn.end_rests("net1", node.clock(), 0, PAGE)))
    assert node.entries() == {}


def a_network_without_pools(node: Node) -> None:
    node.run(node.store.write(lambda txn: txn.track("net1", "{}", datetime.now(UTC))))


def a_drawn_fact(node: Node) -> None:
    """All that is left of a network whose IPv6 subnet was chosen."""
    node.add("a", sets=ANY6)
    node.delete("a")
    node.run(node.registry.forget("net1"))
    assert (node.entries(), node.pools()) == ({}, [])


@pytest.mark.parametrize("filled", [an_address, an_idle_network, a_network_without_pools, a_drawn_fact])
def test_a_database_that_is_not_empty_stays_as_it_is(value: Json, other: Node, filled: Callable[[Node], None]) -> None:
    filled(other)
    before = other.dump()
    with pytest.raises(StoreUnavailable, match=r"not empty; move ipam\.db away first"):
        load(other, value)
    assert other.dump() == before


def test_an_empty_database_is_dumped_and_loaded(value: Json, other: Node) -> None:
    load(other, dump(other))
    load(other, value)
    assert dump(other) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"format": "something"}, '"format" is not "cni-bridge-ipam"', id="another format"),
        pytest.param({"format": None}, '"format" is not "cni-bridge-ipam"', id="no format"),
        pytest.param({"version": 2}, "this dump has version 2, this program knows version 1", id="newer"),
        pytest.param({"version": None}, "version None", id="no version"),
        pytest.param({"version": "1"}, "version 1, this program", id="version of another type"),
        pytest.param({"addresses": {}}, "addresses is not a list", id="no list"),
        pytest.param({"addresses": None}, "addresses", id="null"),
        pytest.param({"addresses": [5]}, r"addresses\[0\] is not an object", id="no object"),
        pytest.param({"more": []}, "unknown keys.*more", id="unknown key"),
        pytest.param({"addresses": [{"network": "net1"}]}, r"addresses\[0\].*address", id="no address"),
        pytest.param(
            {"addresses": [{"network": "net1", "address": "10.0.0.300"}]},
            r"addresses\[0\].address has a value that does not fit: '10.0.0.300'",
            id="malformed address",
        ),
        pytest.param({"events": [{"number": 1, "happened": "stolen"}]}, r"events\[0\]", id="unknown event"),
    ],
)
def test_what_is_no_dump_of_ours_is_refused(value: Json, changes: Json, message: str) -> None:
    with pytest.raises(RequestRefused, match=message):
        document.parse({**value, **changes})


@pytest.mark.parametrize("missing", ["networks", "pools", "cursors", "facts", "addresses", "events"])
def test_a_dump_without_a_part_is_refused(value: Json, missing: str) -> None:
    del value[missing]
    with pytest.raises(RequestRefused, match=f"malformed dump.*{missing}"):
        document.parse(value)


@pytest.mark.parametrize("text", ["null", "[]", '"text"', "5"])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(RequestRefused, match="no dump"):
        document.parse(json.loads(text))


def without_a_reason(value: Json) -> None:
    value["addresses"].append({"network": "net9", "address": "10.0.0.2"})


def of_another_network(value: Json) -> None:
    first = next(each for each in value["addresses"] if each["lease"])
    first["lease"]["owner"]["network"] = "net9"


def of_another_address(value: Json) -> None:
    first = next(each for each in value["addresses"] if each["lease"])
    first["lease"]["address"] = "10.0.0.14/28"


def twice(part: str) -> Callable[[Json], None]:
    return lambda value: value[part].append(value[part][0])


@pytest.mark.parametrize(
    "spoil",
    [without_a_reason, of_another_network, of_another_address, twice("addresses"), twice("facts"), twice("events")],
    ids=["without a reason", "of another network", "of another address", "address twice", "fact twice", "event twice"],
)
def test_a_dump_that_contradicts_itself_is_refused_and_loads_nothing(
    value: Json, other: Node, spoil: Callable[[Json], None]
) -> None:
    spoil(value)
    with pytest.raises(RequestRefused, match="malformed dump"):
        load(other, value)
    assert other.entries() == {}
    assert other.pools() == []


def test_wanted_of_a_loaded_network_is_not_tracked_anew(node: Node, other: Node) -> None:
    load(other, dump(node))
    other.around("eth0 10.1.0.9/24", routes=("eth0 10.0.0.0/8",))  # which would collide with a new network
    other.run(other.ipam.status(wanted(owner("new", "net2"), sets=OTHER)))
    assert other.subnets() == node.subnets()
