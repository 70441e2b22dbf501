"""The conditions of `portmap`: what of iptables' options is understood, what is refused, and what nftables is told."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_bridge.cni.conditions import (
    AddressMatch,
    AddressRange,
    Condition,
    Direction,
    LinkMatch,
    MarkMatch,
    Match,
    Side,
    State,
    StateMatch,
    parse_condition,
    read_condition,
)
from cni_bridge.cni.errors import Code
from tests.support.calls import refusal


def parse(*words: str, family: int = 4) -> Condition:
    return parse_condition(words, f"conditionsV{family}", family)


@pytest.mark.parametrize(
    ("words", "nftables"),
    [
        # As the reference's documentation has them, and AWS, Calico and champtar in their issues.
        pytest.param(["!", "-d", "192.0.2.0/24"], "ip daddr != 192.0.2.0/24", id="documentation"),
        pytest.param(["!", "-d", "169.254.170.23"], "ip daddr != 169.254.170.23", id="amazon-vpc-cni-k8s"),
        pytest.param(["-d", "10.10.10.10/32,127.0.0.1/32"], "ip daddr { 10.10.10.10, 127.0.0.1 }", id="tigera"),
        pytest.param(
            ["!", "-d", "127.0.0.0/8", "-m", "iprange", "!", "--dst-range", "198.19.254.254"],
            "ip daddr != 127.0.0.0/8 ip daddr != 198.19.254.254",
            id="iprange",
        ),
        (["-s", "10.0.0.0/8"], "ip saddr 10.0.0.0/8"),
        (["--source", "10.1.2.3/8", "!", "--destination", "10.1.2.3"], "ip saddr 10.0.0.0/8 ip daddr != 10.1.2.3"),
        (["--src", "10.0.0.0/255.0.0.0", "--dst", "0.0.0.0/0"], "ip saddr 10.0.0.0/8 ip daddr 0.0.0.0/0"),
        (["-s", "10.1.0.0/16, 10.0.0.0/8"], "ip saddr 10.0.0.0/8"),
        (["-m", "iprange", "--src-range", "10.0.0.3-10.0.0.9"], "ip saddr 10.0.0.3-10.0.0.9"),
        (["-m", "iprange", "--src-range", "10.0.0.4-10.0.0.7"], "ip saddr 10.0.0.4/30"),
        (["-i", "eth0", "!", "-o", "wg+"], 'iifname "eth0" oifname != "wg*"'),
        (["!", "--in-interface", "eth0.100", "--out-interface", "eth1"], 'iifname != "eth0.100" oifname "eth1"'),
        (["-m", "mark", "--mark", "0x10"], "meta mark == 0x10"),
        (["--match", "mark", "!", "--mark", "1/255"], "meta mark and 0xff != 0x1"),
        (["-m", "conntrack", "--ctstate", "RELATED,NEW"], "ct state { new, related }"),
        (["-m", "state", "!", "--state", "invalid"], "ct state != { invalid }"),
        (["-m", "comment", "--comment", "only from here -s", "-s", "10.0.0.0/8"], "ip saddr 10.0.0.0/8"),
        (["-m", "comment", "--comment", "nothing more"], ""),
    ],
)
def test_options_of_iptables_are_understood(words: list[str], nftables: str) -> None:
    condition = parse(*words)
    assert (condition.nftables(), condition.opaque) == (nftables, "")
    assert read_condition(str(condition), 4) == condition
    assert condition.require_matches("conditionsV4") == condition.matches


@pytest.mark.parametrize(
    ("words", "nftables"),
    [
        (["!", "-d", "fc00::/7"], "ip6 daddr != fc00::/7"),
        (["-s", "2001:db8::1,2001:db8:1::1/48"], "ip6 saddr { 2001:db8::1, 2001:db8:1::/48 }"),
        (["-m", "iprange", "--dst-range", "::2-::5"], "ip6 daddr ::2-::5"),
    ],
)
def test_addresses_of_ipv6(words: list[str], nftables: str) -> None:
    condition = parse(*words, family=6)
    assert condition.nftables() == nftables
    assert read_condition(str(condition), 6) == condition


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "tcp"], '[0] "-p" is no option of iptables that is understood here'),
        (["-s", "10.0.0.0/8", "--dport", "80"], '[2] "--dport" is no option'),
        (["-s", "10.0.0.0/8", "ip", "daddr", "10.0.0.1"], '[2] "ip" is no option'),
        (
            ["-m", "set", "--match-set", "work", "src"],
            '[0] "-m" "set" is none of iprange, mark, conntrack, state, comment',
        ),
        (["-m"], '[0] "-m" "" is none of'),
        (["!", "-m", "mark", "--mark", "1"], '[1] "-m" is no option'),
        (["!"], '[0] "!" is no option'),
        (["-s", "!", "10.0.0.0/8"], '[0] "-s" "!" is no IPv4 address or subnet'),
        (["!", "!", "-s", "10.0.0.0/8"], '[1] "!" is no option'),
        (["-s"], '[0] "-s" "" is no IPv4 address'),
        (["-s", "fc00::/7"], '[0] "-s" "fc00::/7" is no IPv4 address or subnet'),
        (["-s", "db.example"], '"db.example" is no IPv4'),
        (["-s", "10.0.0.0/33"], '"10.0.0.0/33" is no IPv4'),
        (["-s", "10.0.0.0/0.255.255.255"], '"10.0.0.0/0.255.255.255" is no IPv4'),
        (["!", "-s", "10.0.0.1,10.0.0.2"], '[1] "-s" "10.0.0.1,10.0.0.2": several cannot be negated'),
        (["--dst-range", "10.0.0.1-10.0.0.2"], '[0] "--dst-range" needs -m iprange before it'),
        (["-m", "iprange", "--dst-range", "10.0.0.2-10.0.0.1"], '"10.0.0.2-10.0.0.1" ends before it begins'),
        (["-m", "iprange", "--dst-range", "10.0.0.0/8"], '"10.0.0.0/8" is no IPv4 address'),
        (["-m", "iprange"], ": -m iprange has no option of its own"),
        (["-m", "mark", "--mark", "0x100000000"], '[2] "--mark" "0x100000000" is no mark of 32 bits'),
        (["-m", "mark", "--mark", "1/"], '"" is no mark'),
        (["-m", "mark", "--mark", "web"], '"web" is no mark'),
        (["-m", "conntrack", "--ctstate", "NEW,DNAT"], '[2] "--ctstate" "DNAT" is none of INVALID, NEW'),
        (["-m", "conntrack", "--state", "NEW"], '[2] "--state" needs -m state before it'),
        (["-i", "+"], '[0] "-i" "+" is no name of a link'),
        (["-i", 'a"b'], "is no name of a link"),
        (["-i", "*"], "is no name of a link"),
        (["-i", "l" * 16], "is no name of a link"),
        (["-i", "eth0", "!", "-i", "eth1"], '[3] "-i" is given twice'),
        (
            ["ip", "saddr", "10.0.0.0/8;"],
            '[2] "10.0.0.0/8;" has characters that are no part of a condition of nftables',
        ),
        (["ip saddr 10.0.0.0/8 # all"], "has characters"),
        ([""], '[0] "" has characters'),
    ],
)
def test_what_is_not_understood_is_refused_by_name(words: list[str], said: str) -> None:
    error = refusal(parse, *words)
    assert (error.code, error.msg.startswith("conditionsV4")) == (Code.INVALID_CONFIG, True)
    assert said in error.msg, error.msg


@pytest.mark.parametrize(
    "words",
    [
        ["ip", "saddr", "!=", "198.51.100.2"],
        ["ip saddr { 10.0.0.0/8, 192.168.0.0/16 }"],
        ["meta", "mark", "&", "0xff", "==", "0x1"],
        ['iifname "eth*"'],
    ],
)
def test_words_of_nftables_are_handed_on_as_they_are(words: list[str]) -> None:
    condition = parse(*words)
    assert condition.nftables() == str(condition) == " ".join(words)
    assert read_condition(str(condition), 4) == condition
    error = refusal(condition.require_matches, "conditionsV4")
    assert (error.code, f'conditionsV4 "{condition}"' in error.msg) == (Code.INVALID_CONFIG, True)


def test_no_words_are_no_condition() -> None:
    assert parse() == read_condition("", 4) == Condition()
    assert (str(Condition()), Condition().nftables(), Condition().require_matches("")) == ("", "", ())


def address_matches(family: int) -> st.SearchStrategy[Match]:
    addresses = st.ip_addresses(v=family)
    sides, ends = st.sampled_from(Side), st.tuples(addresses, addresses).map(sorted)
    spans = ends.map(lambda both: AddressRange(first=both[0], last=both[1]))
    subnets = st.tuples(addresses, st.integers(0, 32)).map(lambda both: ip_network(both, strict=False))
    one = subnets.map(lambda each: AddressRange(first=each[0], last=each[-1]))
    apart = st.lists(addresses, min_size=2, max_size=4, unique_by=lambda each: int(each) // 2).map(
        lambda found: tuple(AddressRange(first=each, last=each) for each in sorted(found))
    )
    return st.builds(
        AddressMatch, side=sides, ranges=(spans | one).map(lambda each: (each,)), negated=st.booleans()
    ) | st.builds(AddressMatch, side=sides, ranges=apart)


def conditions(family: int) -> st.SearchStrategy[Condition]:
    marks = st.integers(0, 0xFFFFFFFF)
    links = [
        st.builds(
            LinkMatch, direction=st.just(each), name=st.sampled_from(["lo", "eth0", "wg+"]), negated=st.booleans()
        )
        for each in Direction
    ]
    others = st.lists(
        address_matches(family)
        | st.builds(MarkMatch, value=marks, mask=marks, negated=st.booleans())
        | st.builds(
            StateMatch,
            states=st.sets(st.sampled_from(State), min_size=1).map(lambda found: tuple(s for s in State if s in found)),
            negated=st.booleans(),
        ),
        max_size=4,
    )
    parts = st.tuples(others, *(st.none() | each for each in links))
    return parts.map(lambda found: Condition(matches=(*found[0], *(each for each in found[1:] if each is not None))))


@given(st.sampled_from([4, 6]).flatmap(lambda family: st.tuples(st.just(family), conditions(family))))
def test_what_is_recorded_is_read_again(drawn: tuple[int, Condition]) -> None:
    family, condition = drawn
    assert read_condition(str(condition), family) == condition


def test_a_range_is_shown_as_the_subnet_that_it_is() -> None:
    for first, last, shown in (
        ("10.0.0.0", "10.0.0.255", "10.0.0.0/24"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.2"),
        ("10.0.0.2", "10.0.0.5", "10.0.0.2-10.0.0.5"),
        ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"),
    ):
        assert str(AddressRange(first=ip_address(first), last=ip_address(last))) == shown
