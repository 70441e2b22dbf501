"""The elements that stand for a policy: as nftables text, as the kernel has them, and as claims on host ports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.firewall.nftables_elements import (
    Claims,
    Element,
    conditional_rules,
    declared_types,
    link_elements,
    owned_elements,
    publishing_elements,
)
from cni_bridge.firewall.nftables_layout import BRIDGE, INET, TABLES
from cni_bridge.firewall.nftables_lookup import pack_key, unpack
from cni_bridge.policy import LinkPolicy, Masquerade, OpenPorts, Policy, Publication, Shield, SpoofCheck
from cni_bridge.tag import MAX_LENGTH, network_tag, owner_tag
from tests.support.calls import OWNER, owner

POLICY = Policy(backend=Backend.NFTABLES, owner=OWNER)
FOUR, SIX = ip_address("10.88.0.2"), ip_address("fd00:88::2")
PUBLICATION = Publication(protocol=Protocol.TCP, host_ip=None, host_port=8080, address=FOUR, container_port=80)


def keep_numbers(publication: Publication) -> Publication:
    return replace(publication, container_port=publication.host_port)


def words(elements: Iterable[Element]) -> list[str]:
    return [f"{each.set_name} {each.key}" + (f" : {each.data}" if each.data else "") for each in elements]


def owned(**parts: Any) -> list[str]:
    """The elements of a policy with these parts, but for the table and the comment."""
    elements = owned_elements(replace(POLICY, **parts))
    assert {each.comment for each in elements} == {owner_tag(OWNER)}
    return words(elements)


def test_commands() -> None:
    member = Element(table="inet t", set_name="s", key='1.2.3.4 . "eth0"', comment="mark net/c/eth0")
    added, deleted = str(member.add()), str(member.delete())
    assert added == 'add element inet t s { 1.2.3.4 . "eth0" comment "mark net/c/eth0" }'
    assert deleted == 'delete element inet t s { 1.2.3.4 . "eth0" }'
    assert [*map(str, member.replace())] == ['add element inet t s { 1.2.3.4 . "eth0" }', deleted, added]
    entry = replace(member, key="tcp . 80", data="1.2.3.4 . 80")
    assert str(entry.add()) == 'add element inet t s { tcp . 80 comment "mark net/c/eth0" : 1.2.3.4 . 80 }'
    assert str(entry.delete()) == "delete element inet t s { tcp . 80 }"
    assert str(next(entry.replace())) == "add element inet t s { tcp . 80 : 1.2.3.4 . 80 }"


def test_nothing() -> None:
    assert owned_elements(POLICY) == ()


def test_masquerade() -> None:
    both = tuple(Masquerade(address=each, local_links=("cni0", "cni0.7")) for each in (FOUR, SIX))
    assert owned(masquerade=both) == [
        "masquerade4 10.88.0.2",
        'local4 10.88.0.2 . "cni0"',
        'local4 10.88.0.2 . "cni0.7"',
        "masquerade6 fd00:88::2",
        'local6 fd00:88::2 . "cni0"',
        'local6 fd00:88::2 . "cni0.7"',
    ]


@pytest.mark.parametrize(
    ("mac", "addresses", "expected"),
    [
        ("02:00:00:00:00:0a", None, ['mac_checked "veth1"', 'mac_allowed "veth1" . 02:00:00:00:00:0a']),
        (
            "",
            (FOUR, SIX),
            ['ip_checked "veth1"', 'ip4_allowed "veth1" . 10.88.0.2', 'ip6_allowed "veth1" . fd00:88::2'],
        ),
        ("", (), ['ip_checked "veth1"']),
        ("", None, []),
    ],
)
def test_spoof_check(mac: str, addresses: Any, expected: list[str]) -> None:
    elements = owned_elements(replace(POLICY, spoof_check=SpoofCheck(port="veth1", mac=mac, addresses=addresses)))
    assert words(elements) == expected
    assert {each.table for each in elements} <= {BRIDGE}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["publish4 tcp . 8080 : 10.88.0.2 . 80"]),
        ({"protocol": Protocol.SCTP}, ["publish4 sctp . 8080 : 10.88.0.2 . 80"]),
        ({"address": SIX}, ["publish6 tcp . 8080 : fd00:88::2 . 80"]),
        ({"host_ip": ip_address("192.0.2.1")}, ["publish_at4 192.0.2.1 . tcp . 8080 : 10.88.0.2 . 80"]),
        ({"host_ip": ip_address("::1"), "address": SIX}, ["publish_at6 ::1 . tcp . 8080 : fd00:88::2 . 80"]),
        ({"count": 2}, ["publish4 tcp . 8080 : 10.88.0.2 . 80", "publish4 tcp . 8081 : 10.88.0.2 . 81"]),
        ({"container_port": 8080, "count": 16}, ["publish_run4 tcp . 8080-8095 : 10.88.0.2"]),
        (
            {"container_port": 8080, "count": 10_000, "host_ip": ip_address("::1"), "address": SIX},
            ["publish_run_at6 ::1 . tcp . 8080-18079 : fd00:88::2"],
        ),
    ],
)
def test_publications(changes: dict[str, Any], expected: list[str]) -> None:
    assert owned(publications=(replace(PUBLICATION, snat=False, **changes),)) == expected


@pytest.mark.parametrize(
    ("count", "container_port", "elements"), [(15, 8080, 15), (16, 8080, 1), (16, 8081, 16), (10_000, 8080, 1)]
)
def test_a_run_of_sixteen_ports_that_keep_their_numbers_is_one_element(
    count: int, container_port: int, elements: int
) -> None:
    publication = replace(PUBLICATION, snat=False, count=count, container_port=container_port)
    assert len(owned(publications=(publication,))) == elements


TO_CONTAINER = "dnat ip to 10.88.0.2:80"


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        (
            {"condition": "! -d 192.0.2.0/24"},
            [f"meta nfproto ipv4 ip daddr != 192.0.2.0/24 tcp dport 8080 {TO_CONTAINER}"],
        ),
        (
            {"condition": "ip saddr 10.0.0.0/8", "host_ip": ip_address("192.0.2.1")},
            [f"meta nfproto ipv4 ip saddr 10.0.0.0/8 ip daddr 192.0.2.1 tcp dport 8080 {TO_CONTAINER}"],
        ),
        (
            {"condition": "-s fc00::/7", "address": SIX, "count": 2},
            [
                f"meta nfproto ipv6 ip6 saddr fc00::/7 tcp dport {8080 + each} dnat ip6 to [fd00:88::2]:{80 + each}"
                for each in range(2)
            ],
        ),
    ],
)
def test_what_is_published_on_a_condition_is_a_rule_for_each_port(changes: dict[str, Any], rules: list[str]) -> None:
    policy = replace(POLICY, publications=(replace(PUBLICATION, snat=False, **changes),))
    assert list(conditional_rules(policy)) == [f'{each} comment "{owner_tag(OWNER)}"' for each in rules]
    assert owned_elements(policy) == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["self4 10.88.0.2 . 10.88.0.2", "snat4 10.88.0.2 . tcp . 80"]),
        ({"address": SIX}, ["self6 fd00:88::2 . fd00:88::2", "snat6 fd00:88::2 . tcp . 80"]),
        ({"snat": False, "masquerade_all": True}, ["snat_all4 10.88.0.2 . tcp . 80"]),
        (
            {"count": 16, "masquerade_all": True},
            [
                "self4 10.88.0.2 . 10.88.0.2",
                "snat_run4 10.88.0.2 . tcp . 80-95",
                "snat_all_run4 10.88.0.2 . tcp . 80-95",
            ],
        ),
        (
            {"count": 15, "snat": False, "masquerade_all": True},
            [f"snat_all4 10.88.0.2 . tcp . {80 + i}" for i in range(15)],
        ),
    ],
)
def test_whose_source_is_masqueraded(changes: dict[str, Any], expected: list[str]) -> None:
    found = owned(publications=(replace(PUBLICATION, **changes),))
    assert [each for each in found if not each.startswith("publish")] == expected


def test_two_publications_share_what_is_the_same() -> None:
    found = owned(publications=(PUBLICATION, replace(PUBLICATION, host_port=8081)))
    assert len(found) == len(set(found)) == 4


def test_only_host_ports_keep_their_first_owner() -> None:
    elements = owned_elements(replace(POLICY, publications=(PUBLICATION, replace(PUBLICATION, host_port=1, count=16))))
    assert {each.exclusive for each in elements if each.set_name.startswith("publish")} == {True}
    assert {each.exclusive for each in elements if not each.set_name.startswith("publish")} == {False}


def test_shields() -> None:
    opened = (
        OpenPorts(protocol=Protocol.TCP, port=80),
        OpenPorts(protocol=Protocol.UDP, port=53, count=2),
        OpenPorts(protocol=Protocol.TCP, port=9000, count=16),
    )
    assert owned(shields=(Shield(address=FOUR), Shield(address=SIX))) == [
        "shielded4 10.88.0.2",
        "shielded6 fd00:88::2",
    ]
    assert owned(shields=(Shield(address=SIX, routed=True, opened=opened),)) == [
        "shielded6 fd00:88::2",
        "routed6 fd00:88::2",
        "opened6 fd00:88::2 . tcp . 80",
        "opened6 fd00:88::2 . udp . 53",
        "opened6 fd00:88::2 . udp . 54",
        "opened_run6 fd00:88::2 . tcp . 9000-9015",
    ]


def of_link(network: str = "net1", **keys: Any) -> tuple[tuple[Element, ...], tuple[Element, ...]]:
    return link_elements(replace(POLICY, owner=owner("c1", network), link=LinkPolicy(link="cni0", **keys)))


ALWAYS = ['networks "cni0"', 'same "cni0" . "cni0"']


@pytest.mark.parametrize(
    ("changes", "there", "gone"),
    [
        ({}, [], []),
        ({"isolated": True}, ['isolated "cni0"'], []),
        ({"isolated": False}, [], ['isolated "cni0"']),
        ({"internal": True, "isolated": False}, ['internal "cni0"'], ['isolated "cni0"']),
        ({"internal": False}, [], ['internal "cni0"']),
        ({"icc": False}, ['no_icc "cni0" . "cni0"'], []),
        ({"icc": True}, [], ['no_icc "cni0" . "cni0"']),
        ({"trusted": ("eth1", "wg0")}, ['trusted "eth1" . "cni0"', 'trusted "wg0" . "cni0"'], []),
    ],
)
def test_of_a_shared_link_some_elements_are_to_be_there_and_others_not(
    changes: dict[str, Any], there: list[str], gone: list[str]
) -> None:
    wanted, unwanted = of_link(**changes)
    assert (words(wanted), words(unwanted)) == ([*ALWAYS, *there], gone)
    assert owned(link=LinkPolicy(link="cni0", **changes), masquerade=(Masquerade(address=FOUR, local_links=()),)) == [
        "masquerade4 10.88.0.2"
    ]


def test_a_link_of_ones_own_is_its_owners() -> None:
    link = LinkPolicy(link="veth1", isolated=True, icc=True, shared=False)
    assert owned(link=link) == ['networks "veth1"', 'same "veth1" . "veth1"', 'isolated "veth1"']
    assert link_elements(replace(POLICY, link=link)) == link_elements(POLICY) == ((), ())


def test_what_holds_for_a_link_carries_its_networks_tag() -> None:
    for network in ("net1", "n" * 200):
        elements = sum(of_link(network, isolated=True, icc=True, trusted=("eth1",)), ())
        assert len(elements) == 5
        for each in elements:
            assert each.comment.partition(" ")[0] == network_tag(network)
            assert each.comment.partition(" ")[2][:20] == network[:20]
            assert len(each.comment) <= MAX_LENGTH


SETS = [(table.name, name) for table in TABLES.values() for name in table.sets]
V4, V6, TCP80 = "0a580002", "fd008800000000000000000000000002", "06000000" + "00500000"
CNI0, VETH1 = b"cni0".hex().ljust(32, "0"), b"veth1".hex().ljust(32, "0")


@pytest.mark.parametrize(
    ("name", "key", "packed"),
    [
        ("masquerade4", "10.88.0.2", V4),
        ("masquerade6", "fd00:8800::2", V6),
        ("local4", '10.88.0.2 . "cni0"', V4 + CNI0),
        ("local6", 'fd00:8800::2 . "cni0"', V6 + CNI0),
        ("publish4", "tcp . 80", TCP80),
        ("publish_at6", "fd00:8800::2 . tcp . 80", V6 + TCP80),
        ("snat4", "10.88.0.2 . sctp . 65535", V4 + "84000000" + "ffff0000"),
        ("opened4", "10.88.0.2 . udp . 1", V4 + "11000000" + "00010000"),
        ("self4", "10.88.0.2 . 10.88.0.2", V4 + V4),
        ("networks", '"cni0"', CNI0),
        ("trusted", '"veth1" . "cni0"', VETH1 + CNI0),
        ("mac_allowed", '"veth1" . 02:00:00:00:00:0a', VETH1 + "02000000000a" + "0000"),
        ("ip6_allowed", '"veth1" . fd00:8800::2', VETH1 + V6),
    ],
)
def test_keys_are_packed_as_the_kernel_has_them(name: str, key: str, packed: str) -> None:
    table = BRIDGE if name in TABLES[BRIDGE].sets else INET
    types = Element(table=table, set_name=name, key=key, comment="").types
    assert pack_key(key, types).hex() == packed
    assert unpack(bytes.fromhex(packed), types) == key


def test_unpacking_nothing_gives_nothing() -> None:
    assert unpack(b"", ["ipv4_addr", "inet_service"]) == ""


def test_policies_fill_every_set_and_map_with_elements_of_its_type() -> None:
    parts = {"sctp": PUBLICATION, "run": replace(PUBLICATION, host_port=80, count=16)}
    elements: set[Element] = set()
    for address, host_ip in ((FOUR, ip_address("192.0.2.1")), (SIX, ip_address("2001:db8::1"))):
        publications = tuple(
            replace(each, address=address, host_ip=at, masquerade_all=True)
            for each in parts.values()
            for at in (None, host_ip)
        )
        opened = tuple(OpenPorts(protocol=Protocol.UDP, port=53, count=count) for count in (1, 16))
        policy = replace(
            POLICY,
            masquerade=(Masquerade(address=address, local_links=("cni0",)),),
            spoof_check=SpoofCheck(port="veth1", mac="02:00:00:00:00:0a", addresses=(address,)),
            publications=publications,
            shields=(Shield(address=address, routed=True, opened=opened),),
            apart="veth1",
        )
        elements |= set(owned_elements(policy))
    link = LinkPolicy(link="cni0", isolated=True, parted=True, internal=True, icc=False, trusted=("eth1",))
    elements |= set(link_elements(replace(POLICY, link=link))[0])
    assert {(each.table, each.set_name) for each in elements} == set(SETS)
    for each in elements:
        key_types, data_types = declared_types(each.table, each.set_name)
        for text, types in ((each.key, key_types), (each.data, data_types)):
            first = re.sub(r"(?<= )(\d+)-\d+$", r"\1", text)  # a run is looked up by its first port
            assert unpack(pack_key(text, types) if types else b"", types) == first


PUBLICATIONS = st.builds(
    Publication,
    protocol=st.sampled_from([Protocol.TCP, Protocol.UDP]),
    host_ip=st.sampled_from([None, ip_address("192.0.2.1"), ip_address("192.0.2.2")]),
    host_port=st.integers(1, 40),
    container_port=st.integers(1, 40),
    address=st.just(FOUR),
    count=st.integers(1, 20),
)


def places(publication: Publication) -> set[tuple[str, int, str]]:
    """Each protocol, port and address of the host that it is for, where there are three."""
    at = ["192.0.2.1", "192.0.2.2", "192.0.2.3"] if publication.host_ip is None else [str(publication.host_ip)]
    ports = range(publication.host_port, publication.host_port + publication.count)
    return {(publication.protocol, port, address) for port in ports for address in at}


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from("abc"), PUBLICATIONS | PUBLICATIONS.map(keep_numbers)), PUBLICATIONS)
def test_claims_are_of_whoever_has_one_of_the_same_places(held: dict[str, Publication], asked: Publication) -> None:
    claims = Claims(element for tag, each in held.items() for element in publishing_elements(each, tag))
    for publication in (asked, keep_numbers(asked)):
        meeting = {tag for tag, each in held.items() if places(each) & places(publication)}
        assert set(claims.meeting(publication)) == meeting
