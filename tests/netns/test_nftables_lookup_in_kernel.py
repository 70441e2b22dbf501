"""What is looked up of nftables by netlink is what `nft` lists, in the kernel of a host of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.datapath import netns
from cni_bridge.firewall.nftables_elements import Change, Element, declared_types, link_elements, owned_elements
from cni_bridge.firewall.nftables_layout import BRIDGE, INET, TABLES, render_base, rule_comment
from cni_bridge.firewall.nftables_lookup import Lookup
from cni_bridge.policy import LinkPolicy, Masquerade, OpenPorts, Policy, Publication, Shield, SpoofCheck
from cni_bridge.tag import MAX_LENGTH
from ipam.api import Owner
from tests.support.host import Host

FIRST, COUNT = 7000, 24  # of the run that is published
ALIGNED = 8192  # the first port of one that a prefix could stand for


@pytest.fixture
def inside(host: Host) -> Iterator[Host]:
    """A host whose network namespace this thread is in."""
    with netns.opened(f"/proc/{host.holder.pid}/ns/net") as target, netns.entered(target):
        yield host


def nft(host: Host, *commands: str) -> None:
    host.run("nft", "-f", "-", stdin="\n".join(commands).encode())


def policy(number: int) -> Policy:
    """A policy with elements in every set and map."""
    addresses = (ip_address(f"10.88.0.{number}"), ip_address(f"fd00:88::{number}"))
    places = ((addresses[0], f"192.0.2.{number}"), (addresses[1], f"2001:db8::{number}"))
    base = number * 100
    return Policy(
        backend=Backend.NFTABLES,
        owner=Owner(network="net1", container_id=f"container{number}" * 12, ifname="eth0"),
        apart=f"veth{number}",
        masquerade=tuple(Masquerade(address=each, local_links=("cni0", "cni0.100")) for each in addresses),
        spoof_check=SpoofCheck(port=f"veth{number}", mac=f"02:00:00:00:00:{number:02x}", addresses=addresses),
        publications=tuple(
            Publication(
                protocol=protocol,
                host_ip=at,
                host_port=first + base,
                address=address,
                container_port=target + base,
                count=count,
                masquerade_all=True,
            )
            for address, host_ip in places
            for at in (None, ip_address(host_ip))
            for protocol in (Protocol.TCP, Protocol.SCTP)
            for first, target, count in ((80, 81, 2), (FIRST, FIRST, COUNT), (ALIGNED - base, ALIGNED - base, 16))
            if number == 2 or first != ALIGNED - base
        ),
        shields=tuple(
            Shield(
                address=each,
                routed=True,
                opened=tuple(OpenPorts(protocol=Protocol.UDP, port=53, count=count) for count in (1, 16)),
            )
            for each in addresses
        ),
        link=LinkPolicy(
            link=f"cni{number}", isolated=True, parted=True, internal=True, icc=False, trusted=("eth1", "wg0")
        ),
    )


def fill(host: Host) -> list[Element]:
    """Make the base and the elements of two policies; those."""
    made = [each for number in (2, 3) for each in (*owned_elements(policy(number)), *link_elements(policy(number))[0])]
    nft(host, *map(render_base, TABLES.values()), *(str(each.add()) for each in made))
    return made


def of_set(host: Host, table: str, name: str) -> list[tuple[str, str, str]]:
    """The elements as `nft` lists them: key, data and comment."""
    key_types, data_types = declared_types(table, name)
    kind = "map" if data_types else "set"
    listed = json.loads(host.run("nft", "-j", "list", kind, *table.split(), name).stdout)["nftables"]
    found = next(each[kind] for each in listed if kind in each)
    pairs = (each if data_types else (each, None) for each in found.get("elem", ()))
    return sorted(
        (text(key["elem"]["val"], key_types), text(data, data_types), key["elem"]["comment"]) for key, data in pairs
    )


def text(value: Any, types: list[str]) -> str:
    """A key or data of nft's JSON as it is written."""
    parts = value["concat"] if len(types) > 1 else [value]
    return " . ".join(_part(part, kind) for part, kind in zip(parts, types, strict=True)) if types else ""


def _part(part: Any, kind: str) -> str:
    if isinstance(part, dict) and "range" in part:
        return "-".join(map(str, part["range"]))
    return f'"{part}"' if kind == "ifname" else str(part)


def test_what_is_changed_by_netlink_is_as_nft_would_have_made_it(inside: Host) -> None:
    made = fill(inside)
    before = {place: of_set(inside, *place) for place in SETS}
    look = Lookup()
    for few in batches([each.delete() for each in made]):
        look.make_changes(few, "delete")
    assert all(
        len(of_set(inside, *place)) < len(before[place]) for place in {(each.table, each.set_name) for each in made}
    )
    for few in batches([each.add() for each in made]):
        look.make_changes(few, "add")
    assert {place: of_set(inside, *place) for place in SETS} == before
    for each in made:
        look.make_changes(list(replace(each, comment="somebody").replace()), "replace")
        single = re.sub(r"-\d+$", "", each.key)
        assert look.element_comment(each.table, each.set_name, single, each.types) == "somebody"
        look.make_changes(list(each.replace()), "replace")
    assert {place: of_set(inside, *place) for place in SETS} == before


def test_a_change_that_the_kernel_refuses_is_named_and_none_is_made(inside: Host) -> None:
    nft(inside, *map(render_base, TABLES.values()))
    look = Lookup()
    added = Element(table=INET, set_name="publish4", key="tcp . 80", data="10.88.0.2 . 81", comment="mark")
    other = replace(added, data="10.88.0.3 . 81")
    masqueraded = Element(table=INET, set_name="masquerade4", key="10.88.0.2", comment="mark")
    look.make_changes([added.add()], "publish")
    for refused in (other.add(), masqueraded.delete()):
        place = replace(masqueraded, key="10.88.0.9")
        with pytest.raises(KernelRefused, match=re.escape(str(refused))):
            look.make_changes([place.add(), refused, replace(place, key="10.88.0.10").add()], "change")
        assert of_set(inside, INET, "masquerade4") == []
    nft(inside, f"delete table {INET}")
    with pytest.raises(KernelRefused, match=r"masquerade4.*no such file"):
        look.make_changes([masqueraded.add()], "masquerade")
    assert look.generation()  # the answers of what was refused are not taken for this one's


def batches(changes: list[Change]) -> list[list[Change]]:
    return [changes[start : start + 50] for start in range(0, len(changes), 50)]


SETS = [(table.name, name) for table in TABLES.values() for name in table.sets]


def test_elements_are_those_that_nft_lists(inside: Host) -> None:
    made = fill(inside)
    for table, name in SETS:
        found = sorted(Lookup().elements(table, name, *declared_types(table, name)))
        assert found == of_set(inside, table, name), name
        assert found == sorted(
            (each.key, each.data, each.comment) for each in made if (each.table, each.set_name) == (table, name)
        ), name
        assert len(found) >= 2, name


def test_an_element_is_found_by_its_key_and_no_other_is(inside: Host) -> None:
    made = fill(inside)
    keys = {(each.table, each.set_name, each.key) for each in made}
    for each in made:
        single = re.sub(r"-\d+$", "", each.key)
        assert Lookup().element_comment(each.table, each.set_name, single, each.types) == each.comment, each
        other = single.replace("10.88.0.", "10.99.0.").replace("fd00:88:", "fd00:99:").replace("veth", "vet")
        other = re.sub(r"(tcp|udp|sctp) \. ", r"\1 . 1", other).replace('cni0"', 'cni1"').replace('cni2"', 'cni"')
        if other != single and (each.table, each.set_name, other) not in keys and len(other.split(" . ")[-1]) < 6:
            assert Lookup().element_comment(each.table, each.set_name, other, each.types) == "", other


@pytest.mark.parametrize("set_name", ["publish_run4", "publish_run_at6", "snat_run4"])
def test_a_run_is_found_by_each_of_its_ports(inside: Host, set_name: str) -> None:
    made = fill(inside)
    (run, *_) = (each for each in made if each.set_name == set_name and f"tcp . {FIRST + 200}-" in each.key)
    before, _, ports = run.key.rpartition(" . ")
    first, last = map(int, ports.split("-"))
    assert last - first == COUNT - 1
    for port in range(first - 2, last + 3):
        found = Lookup().element_comment(INET, set_name, f"{before} . {port}", run.types)
        assert found == (run.comment if first <= port <= last else ""), port


@pytest.mark.parametrize("length", [1, 2, 63, 64, 120, MAX_LENGTH])
def test_comments_of_any_length_that_fits(inside: Host, length: int) -> None:
    comment = "".join("abc defg"[position % 8] for position in range(length - 1)) + "."
    nft(
        inside,
        "add table ip t",
        "add set ip t s { type ipv4_addr; }",
        f'add element ip t s {{ 1.2.3.4 comment "{comment}" }}',
        "add chain ip t c",
        f'add rule ip t c counter comment "{comment}"',
    )
    assert Lookup().element_comment("ip t", "s", "1.2.3.4", ["ipv4_addr"]) == comment
    assert list(Lookup().elements("ip t", "s", ["ipv4_addr"], [])) == [("1.2.3.4", "", comment)]
    assert Lookup().rule_comments("ip t", "c") == [comment]


def test_thousands_of_elements_are_all_listed_once(inside: Host) -> None:
    """They fill many messages."""
    keys = {f"{protocol} . {port}": f"10.88.0.2 . {port}" for protocol in ("tcp", "udp") for port in range(1, 2501)}
    comment = "c" * 120
    nft(
        inside,
        render_base(TABLES[INET]),
        *(f'add element {INET} publish4 {{ {key} comment "{comment}" : {data} }}' for key, data in keys.items()),
        *(
            f'add element {INET} publish_run4 {{ tcp . {port}-{port + 15} comment "{port}" : 10.88.0.2 }}'
            for port in range(16, 65_000, 32)
        ),
    )
    found = list(Lookup().elements(INET, "publish4", *declared_types(INET, "publish4")))
    assert len(found) == len(keys) == 5000
    assert {key: data for key, data, _ in found} == keys
    assert {each for _, _, each in found} == {comment}
    runs = list(Lookup().elements(INET, "publish_run4", *declared_types(INET, "publish_run4")))
    expected = [(f"tcp . {port}-{port + 15}", "10.88.0.2", str(port)) for port in range(16, 65_000, 32)]
    assert sorted(runs) == sorted(expected)
    assert Lookup().element_comment(INET, "publish_run4", "tcp . 32031", ["inet_proto", "inet_service"]) == "32016"


def test_a_listing_is_of_one_moment_though_others_change_it_meanwhile(inside: Host) -> None:
    steady, changing = ({f"{first}.{number // 250}.{number % 250}.1" for number in range(3000)} for first in (10, 11))
    nft(
        inside,
        "add table ip t",
        "add set ip t s { type ipv4_addr; }",
        f"add element ip t s {{ {', '.join(steady)} }}",
    )
    # All or none of these are there at any moment.
    script = "while :; do nft -f /run/add; sleep 0.1; nft -f /run/delete; sleep 0.1; done"
    for verb in ("add", "delete"):
        words = f"{verb} element ip t s {{ {', '.join(changing)} }}"
        inside.run("tee", f"/run/{verb}", stdin=words.encode())
    program = inside.start("sh", "-c", script)
    seen = []
    for _ in range(60):
        found = [key for key, _, _ in Lookup().elements("ip t", "s", ["ipv4_addr"], [])]
        assert len(found) == len(set(found))
        assert set(found) in (steady, steady | changing)
        seen.append(len(found))
    assert program.poll() is None
    assert len(set(seen)) == 2, "it did change"


def test_rules_are_found_with_their_handles_in_order(inside: Host) -> None:
    nft(inside, *map(render_base, TABLES.values()))
    nft(inside, f"insert rule {INET} forward counter", f'add rule {INET} forward counter comment "last"')
    for table in TABLES.values():
        for chain in table.chains:
            listed = json.loads(inside.run("nft", "-j", "list", "chain", *table.name.split(), chain.name).stdout)
            rules = [each["rule"] for each in listed["nftables"] if "rule" in each]
            assert Lookup().rule_handles(table.name, chain.name) == [
                (each["handle"], each.get("comment", "")) for each in rules
            ]
            more = ["", "last"] if (table.name, chain.name) == (INET, "forward") else []
            expected = [*more[:1], *map(rule_comment, chain.rules), *more[1:]]
            assert Lookup().rule_comments(table.name, chain.name) == expected
    nft(inside, *(f"delete rule {INET} raw handle {handle}" for handle, _ in Lookup().rule_handles(INET, "raw")[:1]))
    assert Lookup().rule_comments(INET, "raw") == ["as if from this host itself"]


@pytest.mark.parametrize("there", [False, True], ids=["no table", "no set and no chain"])
@pytest.mark.parametrize(
    "look",
    [
        lambda: Lookup().element_comment("inet t", "s", "1.2.3.4", ["ipv4_addr"]),
        lambda: list(Lookup().elements("inet t", "s", ["ipv4_addr"], [])),
        lambda: Lookup().rule_comments("inet t", "c"),
        lambda: Lookup().rule_handles("inet t", "c"),
        lambda: Lookup().drops_by_default("inet t", "c"),
    ],
    ids=["element_comment", "elements", "rule_comments", "rule_handles", "drops_by_default"],
)
def test_where_it_would_be_is_not_there(inside: Host, look: Callable[[], object], there: bool) -> None:
    nft(
        inside,
        "add table ip t",
        "add set ip t s { type ipv4_addr; elements = { 1.2.3.4 comment x } }",
        "add chain ip t c { type filter hook forward priority 0; policy drop; }",
        'add rule ip t c counter comment "x"',
        "add table inet t" if there else "",
    )
    assert not look()


def test_a_table_is_told_by_family_and_whole_name(inside: Host) -> None:
    assert not any(Lookup().has_table(f"{family} filter") for family in ("ip", "ip6", "inet", "bridge"))
    nft(inside, "add table ip filter", "add table inet cni_bridge_too", "add table bridge nat")
    expected = {
        "ip filter": True,
        "inet filter": False,
        "ip6 filter": False,
        "ip filte": False,
        "ip filters": False,
        "bridge nat": True,
        INET: False,
        BRIDGE: False,
        "inet cni_bridge_too": True,
    }
    assert {each: Lookup().has_table(each) for each in expected} == expected


def test_a_chain_drops_by_its_policy_only(inside: Host) -> None:
    nft(
        inside,
        "add table ip filter",
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        "add chain ip filter INPUT { type filter hook input priority 0; policy accept; }",
        "add chain ip filter DOCKER-USER",
        "add rule ip filter DOCKER-USER drop",
        "add table ip6 filter",
        "add chain ip6 filter FORWARD { type filter hook forward priority 0; }",
    )
    drops = [(table, chain) for table in ("ip filter", "ip6 filter") for chain in ("FORWARD", "INPUT", "DOCKER-USER")]
    assert [each for each in drops if Lookup().drops_by_default(*each)] == [("ip filter", "FORWARD")]
    nft(inside, "add chain ip filter FORWARD { policy accept; }", "add chain ip6 filter FORWARD { policy drop; }")
    assert [each for each in drops if Lookup().drops_by_default(*each)] == [("ip6 filter", "FORWARD")]
