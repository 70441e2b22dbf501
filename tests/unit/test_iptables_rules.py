"""The iptables rules that stand for a policy, by family and in order, and what is read from them again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_bridge.cni.errors import Code
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.firewall.iptables_rules import (
    CHAINS,
    Rule,
    base,
    denied_rules,
    hooks,
    is_no_longer_trusted,
    is_of_address,
    link_rules,
    owned_rules,
    published,
)
from cni_bridge.policy import LinkPolicy, Masquerade, OpenPorts, Policy, Publication, Shield, SpoofCheck
from cni_bridge.tag import MARK, network_tag, owner_tag
from tests.support.calls import OWNER, owner, refusal

POLICY = Policy(backend=Backend.IPTABLES, owner=OWNER)
LINK = LinkPolicy(link="cni0")
FOUR, SIX = ip_address("10.88.0.2"), ip_address("fd00:88::2")
PUBLICATION = Publication(protocol=Protocol.TCP, host_ip=None, host_port=8080, address=FOUR, container_port=80)
WHOLE = replace(
    POLICY,
    masquerade=tuple(Masquerade(address=each, local_links=("cni0",)) for each in (FOUR, SIX)),
    publications=tuple(replace(PUBLICATION, address=each, masquerade_all=True) for each in (FOUR, SIX)),
    shields=tuple(
        Shield(address=each, routed=True, opened=(OpenPorts(protocol=Protocol.UDP, port=53),)) for each in (FOUR, SIX)
    ),
    link=replace(LINK, isolated=True, parted=True, internal=True, icc=False, trusted=("eth1",)),
)


def shown(rules: Iterable[Rule]) -> list[str]:
    """Each rule as its chain and words, but for the table and the comment."""
    return [
        f"{each.chain} " + flat({name: words for name, words in each.words.items() if name != "comment"})
        for each in rules
    ]


def flat(words: Any) -> str:
    if not isinstance(words, dict):
        return str(words)
    return " ".join(f"{name} {flat(value)}" for name, value in words.items())


def owned(family: int = 4, **parts: Any) -> list[str]:
    rules = owned_rules(replace(POLICY, **parts), family)
    assert {each.comment for each in rules} <= {owner_tag(OWNER)}
    return shown(rules)


def test_nothing() -> None:
    for family in (4, 6):
        assert owned(family) == owned(family, spoof_check=SpoofCheck(port="veth1", mac="02:00:00:00:00:0a")) == []
    assert link_rules(POLICY) == ()


def test_masquerading_leaves_out_what_stays_within_the_network() -> None:
    both = tuple(Masquerade(address=each, local_links=("cni0", "cni0.7")) for each in (FOUR, SIX))
    for family, address in ((4, "10.88.0.2/32"), (6, "fd00:88::2/128")):
        assert owned(family, masquerade=both) == [
            f"CNI-BRIDGE src {address} out-interface cni0 target RETURN",
            f"CNI-BRIDGE src {address} out-interface cni0.7 target RETURN",
            f"CNI-BRIDGE src {address} target MASQUERADE",
        ]


@pytest.mark.parametrize(
    ("changes", "family", "expected"),
    [
        ({}, 4, ["protocol tcp tcp dport 8080 target DNAT to-destination 10.88.0.2:80"]),
        (
            {"protocol": Protocol.SCTP, "address": SIX},
            6,
            ["protocol sctp sctp dport 8080 target DNAT to-destination [fd00:88::2]:80"],
        ),
        ({"container_port": 8080}, 4, ["protocol tcp tcp dport 8080 target DNAT to-destination 10.88.0.2"]),
        (
            {"container_port": 8080, "count": 10_000, "address": SIX},
            6,
            ["protocol tcp tcp dport 8080:18079 target DNAT to-destination fd00:88::2"],
        ),
        (
            {"count": 3, "protocol": Protocol.UDP},
            4,
            [
                f"protocol udp udp dport {8080 + each} target DNAT to-destination 10.88.0.2:{80 + each}"
                for each in range(3)
            ],
        ),
        (
            {"host_ip": ip_address("192.0.2.1")},
            4,
            ["protocol tcp tcp dport 8080 dst 192.0.2.1/32 target DNAT to-destination 10.88.0.2:80"],
        ),
        (
            {"host_ip": ip_address("2001:db8::1"), "address": SIX, "container_port": 8080, "count": 2},
            6,
            ["protocol tcp tcp dport 8080:8081 dst 2001:db8::1/128 target DNAT to-destination fd00:88::2"],
        ),
    ],
)
def test_publications_lead_to_the_container(changes: dict[str, Any], family: int, expected: list[str]) -> None:
    publications = (replace(PUBLICATION, snat=False, **changes),)
    assert owned(family, publications=publications, link=LINK) == [f"CNI-BRIDGE-PUB {each}" for each in expected]
    assert owned(10 - family, publications=publications, link=LINK) == []


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(
    ("changes", "sources"),
    [
        ({"snat": False}, []),
        ({}, ["src {address} ", "src {loopback} ", "out-interface cni0 mark mark 0x40/0x40 "]),
        ({"snat": False, "masquerade_all": True}, [""]),
    ],
    ids=["nobody's", "own and loopback", "all"],
)
@pytest.mark.parametrize(
    ("address", "host", "loopback"), [(FOUR, "10.88.0.2/32", "127.0.0.0/8"), (SIX, "fd00:88::2/128", "::1/128")]
)
def test_whose_source_is_masqueraded(
    changes: dict[str, Any], sources: list[str], address: Any, host: str, loopback: str, count: int
) -> None:
    """At the ports of the container, whatever their numbers were: the packet is translated already."""
    publication = replace(PUBLICATION, address=address, count=count, **changes)
    found = {
        " ".join(sorted(each.split(" target ")[0].split(" ")))
        for each in owned(address.version, publications=(publication,), link=LINK)
        if each.startswith("CNI-BRIDGE-SNAT ")
    }
    ports = "80" if count == 1 else "80:99"
    reached = f"dst {host} protocol tcp tcp dport {ports}"
    expected = {f"CNI-BRIDGE-SNAT {each.format(address=host, loopback=loopback)}{reached}" for each in sources}
    assert found == {" ".join(sorted(each.split(" "))) for each in expected}


def test_without_a_link_of_its_own_nothing_comes_from_there() -> None:
    assert len(owned(publications=(PUBLICATION,), link=LINK)) == len(owned(publications=(PUBLICATION,))) + 1
    assert not any("interface" in each for each in owned(publications=(PUBLICATION,)))


PUBLISHED = "protocol tcp tcp dport 8080 {}target DNAT to-destination 10.88.0.2:80"


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("-s 10.0.0.0/8", ["iprange src-range 10.0.0.0-10.255.255.255 "]),
        ("! -d 192.0.2.1", ["iprange dst-range ['!', '192.0.2.1-192.0.2.1'] "]),
        (
            "! -d 127.0.0.0/8 -m iprange ! --dst-range 10.0.0.1-10.0.0.2",
            ["iprange [{'dst-range': ['!', '127.0.0.0-127.255.255.255']}, {'dst-range': ['!', '10.0.0.1-10.0.0.2']}] "],
        ),
        (
            "-s 10.0.0.1,10.0.0.4 -d 192.0.2.1,192.0.2.4",
            [
                f"iprange [{{'src-range': '10.0.0.{src}-10.0.0.{src}'}}, "
                f"{{'dst-range': '192.0.2.{dst}-192.0.2.{dst}'}}] "
                for src in (1, 4)
                for dst in (1, 4)
            ],
        ),
        ("-i eth+ ! -o wg0", ["in-interface eth+ out-interface !wg0 "]),
        (
            "-m mark ! --mark 0x1/0xff -m conntrack --ctstate NEW",
            ["mark mark ['!', '0x1/0xff'] conntrack ctstate NEW "],
        ),
    ],
)
def test_what_is_published_on_a_condition_goes_first_and_claims_nothing(condition: str, matches: list[str]) -> None:
    publication = replace(PUBLICATION, snat=False, condition=condition)
    rules = owned_rules(replace(POLICY, publications=(publication,), link=LINK), 4)
    assert shown(rules) == [f"CNI-BRIDGE-COND {PUBLISHED.format(each)}" for each in matches]
    assert [each for each in rules if published(each)] == []
    assert all(is_of_address(each, frozenset({FOUR})) for each in rules)
    assert not any(is_of_address(each, frozenset({ip_address("10.0.0.1"), ip_address("192.0.2.1")})) for each in rules)
    assert [each for each in shown(base(4)) if each.startswith("CNI-BRIDGE-PUB ")] == [
        "CNI-BRIDGE-PUB target CNI-BRIDGE-MARK",
        "CNI-BRIDGE-PUB target CNI-BRIDGE-COND",
    ]


def test_a_condition_is_beside_the_address_at_which_a_port_is_published() -> None:
    at = replace(PUBLICATION, snat=False, host_ip=ip_address("192.0.2.1"), condition="! -d 192.0.2.2 -s 10.0.0.1")
    assert owned(4, publications=(at,)) == [
        "CNI-BRIDGE-COND "
        + PUBLISHED.format(
            "dst 192.0.2.1/32 iprange [{'dst-range': ['!', '192.0.2.2-192.0.2.2']}, "
            "{'src-range': '10.0.0.1-10.0.0.1'}] "
        )
    ]


def test_words_of_nftables_publish_nothing() -> None:
    publication = replace(PUBLICATION, condition="ip saddr 10.0.0.0/8")
    error = refusal(owned_rules, replace(POLICY, publications=(publication,)), 4)
    assert (error.code, "ip saddr 10.0.0.0/8" in error.msg) == (Code.INVALID_CONFIG, True)


def test_a_shield_drops_what_nothing_else_accepts() -> None:
    opened = (
        OpenPorts(protocol=Protocol.TCP, port=80),
        OpenPorts(protocol=Protocol.UDP, port=53, count=2),
    )
    shields = (Shield(address=FOUR, opened=opened), Shield(address=SIX, routed=True, opened=opened))
    assert owned(4, shields=shields) == ["CNI-BRIDGE-SHIELD dst 10.88.0.2/32 target DROP"]
    assert owned(6, shields=shields) == [
        "CNI-BRIDGE-OPEN dst fd00:88::2/128 protocol tcp tcp dport 80 target ACCEPT",
        "CNI-BRIDGE-OPEN dst fd00:88::2/128 protocol udp udp dport 53:54 target ACCEPT",
        "CNI-BRIDGE-SHIELD dst fd00:88::2/128 protocol icmpv6 icmp6 icmpv6-type 128 target ACCEPT",
        "CNI-BRIDGE-SHIELD dst fd00:88::2/128 target DROP",
    ]
    assert "CNI-BRIDGE-SHIELD dst 10.88.0.2/32 protocol icmp icmp icmp-type 8 target ACCEPT" in owned(
        4, shields=(Shield(address=FOUR, routed=True),)
    )


ALWAYS = [
    "CNI-BRIDGE-MARK in-interface cni0 target MARK set-xmark 0x40/0x40",
    "CNI-BRIDGE-SAME in-interface cni0 out-interface cni0 target ACCEPT",
    "CNI-BRIDGE-TO out-interface cni0 target DROP",
    "CNI-BRIDGE-FROM in-interface cni0 target DROP",
    "CNI-BRIDGE-BETW in-interface cni0 target CNI-BRIDGE-BETW-TO",
    "CNI-BRIDGE-BETW-TO out-interface cni0 target ACCEPT",
    "CNI-BRIDGE-ACC in-interface cni0 target ACCEPT",
]


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, []),
        ({"icc": True, "internal": False, "isolated": False, "parted": False}, []),
        (
            {"icc": False},
            [
                "CNI-BRIDGE-ICC in-interface cni0 out-interface cni0 conntrack ctstate DNAT target ACCEPT",
                "CNI-BRIDGE-ICC in-interface cni0 out-interface cni0 target DROP",
            ],
        ),
        (
            {"internal": True},
            [
                "CNI-BRIDGE-INT in-interface cni0 target DROP",
                "CNI-BRIDGE-INT out-interface cni0 target DROP",
            ],
        ),
        (
            {"isolated": True},
            [
                "CNI-BRIDGE-ISO in-interface cni0 target CNI-BRIDGE-TO",
                "CNI-BRIDGE-ISO out-interface cni0 target CNI-BRIDGE-FROM",
            ],
        ),
        (
            {"parted": True},
            [
                "CNI-BRIDGE-ISO in-interface cni0 target CNI-BRIDGE-PARTED",
                "CNI-BRIDGE-PARTED out-interface cni0 target DROP",
            ],
        ),
        (
            {"trusted": ("eth1", "wg0")},
            [f"CNI-BRIDGE-TRUST in-interface {each} out-interface cni0 target ACCEPT" for each in ("eth1", "wg0")],
        ),
    ],
)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_what_holds_for_a_link_is_its_networks_or_its_owners(
    changes: dict[str, Any], more: list[str], shared: bool
) -> None:
    policy = replace(POLICY, link=replace(LINK, shared=shared, **changes))
    of_link, of_owner = link_rules(policy), owned_rules(policy, 4)
    assert owned_rules(policy, 6) == of_owner
    rules, others = (of_link, of_owner) if shared else (of_owner, of_link)
    assert (shown(rules), others) == ([*ALWAYS, *more], ())
    tag = network_tag(OWNER.network) if shared else owner_tag(OWNER)
    assert {each.comment for each in rules} == {tag}
    assert denied_rules(replace(policy, link=replace(LINK, shared=shared))) == ()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_what_is_denied_for_a_link_is_what_was_made_of_it_before(shared: bool) -> None:
    """Nothing that holds in any case, nor what the policy is silent about."""
    link = replace(LINK, shared=shared)
    silent, trusting = replace(POLICY, link=link), replace(POLICY, link=replace(link, trusted=("eth1",)))

    def made(policy: Policy) -> list[Rule]:
        return [*link_rules(policy), *owned_rules(policy, 4)]

    for key, said in (("isolated", True), ("parted", True), ("internal", True), ("icc", False)):
        policy, opposite = (replace(silent, link=replace(link, **{key: each})) for each in (said, not said))
        before, after = made(policy), made(silent)
        assert list(denied_rules(opposite)) == [each for each in before if each not in after]
        assert denied_rules(policy) == ()
    assert [shown([each])[0] for each in made(trusting) if is_no_longer_trusted(each, silent)] == [
        "CNI-BRIDGE-TRUST in-interface eth1 out-interface cni0 target ACCEPT"
    ]
    for policy in (trusting, POLICY, replace(POLICY, link=replace(link, link="cni1"))):
        assert not any(is_no_longer_trusted(each, policy) for each in made(trusting))


@pytest.mark.parametrize("family", [4, 6])
def test_every_rule_is_in_a_chain_of_ours_and_every_jump_leads_there(family: int) -> None:
    rules = [*base(family), *owned_rules(WHOLE, family), *link_rules(WHOLE)]
    for each in rules:
        assert each.chain in CHAINS[each.table], each
    jumps = {
        (each.table, each.words["target"])
        for each in (*hooks(family), *rules)
        if str(each.words["target"]).startswith("CNI-BRIDGE")
    }
    chains = {(table, chain) for table, names in CHAINS.items() if (family, table) != (6, "raw") for chain in names}
    assert jumps == chains, "each chain is reached"
    assert {each.comment for each in (*hooks(family), *base(family))} == {MARK}


@pytest.mark.parametrize("family", [4, 6])
def test_what_has_been_let_in_goes_before_all_and_the_shields_come_last(family: int) -> None:
    forward = [each for each in shown(base(family)) if each.startswith("CNI-BRIDGE-FWD ")]
    assert [each.removeprefix("CNI-BRIDGE-FWD ").removeprefix("target ") for each in forward] == [
        "conntrack ctstate RELATED,ESTABLISHED target ACCEPT",
        *(f"protocol icmpv6 icmp6 icmpv6-type {each} target ACCEPT" for each in (135, 136) if family == 6),
        "CNI-BRIDGE-ICC",
        "CNI-BRIDGE-SAME",
        "CNI-BRIDGE-INT",
        "conntrack ctstate DNAT target ACCEPT",
        "CNI-BRIDGE-OPEN",
        "CNI-BRIDGE-ISO",
        "CNI-BRIDGE-BETW",
        "CNI-BRIDGE-TRUST",
        "CNI-BRIDGE-SHIELD",
        "CNI-BRIDGE-ACC",
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_no_rule_is_of_the_other_family(family: int) -> None:
    own, other = (FOUR, SIX) if family == 4 else (SIX, FOUR)
    rules = owned_rules(WHOLE, family)
    assert rules
    assert all(is_of_address(each, frozenset({own})) for each in rules)
    assert not any(is_of_address(each, frozenset({other})) for each in rules)


@pytest.mark.parametrize("address", ["10.88.0.2", "10.88.0.20", "fd00:88::2", "fd00:88::20"])
def test_only_rules_of_the_very_address_are_of_it(address: str) -> None:
    policy = replace(
        POLICY,
        masquerade=(Masquerade(address=ip_address(address), local_links=("cni0",)),),
        publications=tuple(
            replace(PUBLICATION, address=ip_address(address), container_port=port, count=2) for port in (80, 8080)
        ),
        shields=(Shield(address=ip_address(address)),),
        link=LINK,
    )
    rules = owned_rules(policy, ip_address(address).version)
    assert len(rules) > 5
    for other in ("10.88.0.2", "10.88.0.20", "10.88.0.200", "fd00:88::2", "fd00:88::20"):
        of_it = {is_of_address(each, frozenset({ip_address(other)})) for each in rules}
        assert of_it == {other == address}, other


ADDRESSES = {4: (FOUR, "192.0.2.1"), 6: (SIX, "2001:db8::1")}


@given(
    family=st.sampled_from([4, 6]),
    protocol=st.sampled_from(list(Protocol)),
    at=st.booleans(),
    ports=st.tuples(st.integers(1, 65_000), st.integers(1, 65_000)) | st.integers(1, 65_000).map(lambda n: (n, n)),
    count=st.integers(1, 30),
)
def test_the_published_ports_are_read_from_the_rules_again(
    family: int, protocol: Protocol, at: bool, ports: tuple[int, int], count: int
) -> None:
    address, host_ip = ADDRESSES[family]
    publication = Publication(
        protocol=protocol,
        host_ip=ip_address(host_ip) if at else None,
        host_port=ports[0],
        address=address,
        container_port=ports[1],
        count=count,
        masquerade_all=True,
    )
    rules = owned_rules(replace(WHOLE, owner=owner("c2"), publications=(publication,)), family)
    found = [each for rule in rules if (each := published(rule)) is not None]
    assert {(name, where) for name, _, _, where in found} == {(protocol.value, host_ip if at else "")}
    assert [port for _, first, last, _ in found for port in range(first, last + 1)] == list(
        range(ports[0], ports[0] + count)
    )


def test_rules_of_other_kinds_publish_nothing() -> None:
    rules = [*hooks(4), *base(4), *link_rules(WHOLE), *owned_rules(replace(WHOLE, publications=()), 4)]
    assert [each for each in rules if published(each) is not None] == []
