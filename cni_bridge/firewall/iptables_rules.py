"""The iptables backend's chains and rules, in the words of python-iptables' `iptc.easy`. Pure.

    raw     PREROUTING                       -> CNI-BRIDGE-RAW     nobody but the host uses its loopback addresses
    nat     PREROUTING, OUTPUT, to this host -> CNI-BRIDGE-PUB     host ports lead to containers, some on a condition
    nat     POSTROUTING                      -> CNI-BRIDGE         sources: of published ports, then masquerading
    filter  FORWARD                          -> CNI-BRIDGE-FWD     who reaches whom, in classes, a chain each

xtables has no sets, so there are some rules for each container. Every rule's comment is its owner's tag, its network's
for what holds for a link, or the program's for the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from cni_bridge.cni.conditions import AddressMatch, LinkMatch, MarkMatch, Match, StateMatch, read_condition
from cni_bridge.policy import LinkPolicy, Masquerade, Policy, Publication, Shield
from cni_bridge.tag import MARK, network_tag, owner_tag
from ipam.api import Address

Words = Mapping[str, Any]

MASQUERADE = "CNI-BRIDGE"
_SNAT, _PUBLISH, _RAW, _FORWARD = "CNI-BRIDGE-SNAT", "CNI-BRIDGE-PUB", "CNI-BRIDGE-RAW", "CNI-BRIDGE-FWD"
_MARK = "CNI-BRIDGE-MARK"
CONDITIONAL = "CNI-BRIDGE-COND"  # what `portmap` publishes on a condition
_ICC, _SAME, _INTERNAL, _ISOLATED = "CNI-BRIDGE-ICC", "CNI-BRIDGE-SAME", "CNI-BRIDGE-INT", "CNI-BRIDGE-ISO"
_TO_NETWORK, _FROM_NETWORK, _TRUSTED = "CNI-BRIDGE-TO", "CNI-BRIDGE-FROM", "CNI-BRIDGE-TRUST"
_TO_PARTED = "CNI-BRIDGE-PARTED"
_BETWEEN, _BETWEEN_TO = "CNI-BRIDGE-BETW", "CNI-BRIDGE-BETW-TO"
_OPENED, _SHIELD, _ACCEPT = "CNI-BRIDGE-OPEN", "CNI-BRIDGE-SHIELD", "CNI-BRIDGE-ACC"
_FROM_OWN_LINK = "0x40/0x40"  # the packet's mark; kube-proxy, the reference `portmap`, Calico, Cilium use higher bits
_DNAT = {"conntrack": {"ctstate": "DNAT"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of a chain; two are the same if all their words are."""

    table: str
    chain: str
    words: Words

    @property
    def comment(self) -> str:
        """Whose it is."""
        return str(self.words["comment"]["comment"])


def _rule(table: str, chain: str, comment: str, target: object, **words: object) -> Rule:
    given = {name.replace("_", "-"): value for name, value in words.items()}
    return Rule(table=table, chain=chain, words={**given, "comment": {"comment": comment}, "target": target})


def hooks(family: int) -> tuple[Rule, ...]:
    """The jumps from the kernel's chains into ours; into `CNI-BRIDGE` last of its chain, the others first."""
    local = {"addrtype": {"dst-type": "LOCAL"}}
    raw = [_rule("raw", "PREROUTING", MARK, _RAW)] if family == 4 else []
    return (
        *raw,
        _rule("nat", "PREROUTING", MARK, _PUBLISH, **local),
        _rule("nat", "OUTPUT", MARK, _PUBLISH, **local),
        _rule("nat", "POSTROUTING", MARK, MASQUERADE),
        _rule("filter", "FORWARD", MARK, _FORWARD),
    )


def base(family: int) -> tuple[Rule, ...]:
    """The rules that our chains begin with."""
    multicast, loopback = {4: ("224.0.0.0/4", "127.0.0.0/8"), 6: ("ff00::/8", "::1/128")}[family]
    raw = (
        _rule("raw", _RAW, MARK, "DROP", in_interface="!lo", dst=loopback),
        _rule("raw", _RAW, MARK, "DROP", in_interface="!lo", src=loopback),
    )
    # Neighbour discovery, of bridged packets: routed ones are nobody's (RFC 4861, section 7.1).
    solicitation, advertisement = {"icmpv6-type": "135"}, {"icmpv6-type": "136"}
    neighbours = (
        _rule("filter", _FORWARD, MARK, "ACCEPT", protocol="icmpv6", icmp6=each)
        for each in (solicitation, advertisement)
    )
    return (
        *(raw if family == 4 else ()),  # IPv6 drops them by itself
        _rule("nat", _PUBLISH, MARK, _MARK),
        _rule("nat", _PUBLISH, MARK, CONDITIONAL),
        _rule("nat", MASQUERADE, MARK, "RETURN", dst=multicast),
        _rule("nat", MASQUERADE, MARK, _SNAT, **_DNAT),
        _rule("filter", _FORWARD, MARK, "ACCEPT", conntrack={"ctstate": "RELATED,ESTABLISHED"}),
        *(neighbours if family == 6 else ()),
        *(_rule("filter", _FORWARD, MARK, chain) for chain in (_ICC, _SAME, _INTERNAL)),
        _rule("filter", _FORWARD, MARK, "ACCEPT", **_DNAT),
        *(
            _rule("filter", _FORWARD, MARK, chain)
            for chain in (_OPENED, _ISOLATED, _BETWEEN, _TRUSTED, _SHIELD, _ACCEPT)
        ),
    )


CHAINS: Mapping[str, tuple[str, ...]] = {
    "raw": (_RAW,),
    "nat": (_SNAT, MASQUERADE, _MARK, CONDITIONAL, _PUBLISH),
    "filter": (
        _ICC,
        _SAME,
        _INTERNAL,
        _TO_NETWORK,
        _FROM_NETWORK,
        _TO_PARTED,
        _ISOLATED,
        _BETWEEN_TO,
        _BETWEEN,
        _TRUSTED,
        _OPENED,
        _SHIELD,
        _ACCEPT,
        _FORWARD,
    ),
}


def owned_rules(policy: Policy, family: int) -> tuple[Rule, ...]:
    """The rules of the family that belong to the policy's owner, in order."""
    return tuple(_owned(policy, family, owner_tag(policy.owner)))


def _owned(policy: Policy, family: int, tag: str) -> Iterator[Rule]:
    link = policy.link.link if policy.link is not None else ""
    for masquerade in policy.masquerade:
        if masquerade.address.version == family:
            yield from _masquerade(masquerade, tag)
    for publication in policy.publications:
        if publication.address.version == family:
            yield from _publication(publication, link, tag)
    for shield in policy.shields:
        if shield.address.version == family:
            yield from _shield(shield, tag)
    if policy.link is not None and not policy.link.shared:
        yield from _link(policy.link, tag)


def _masquerade(each: Masquerade, tag: str) -> Iterator[Rule]:
    for link in each.local_links:
        yield _rule("nat", MASQUERADE, tag, "RETURN", src=_host(each.address), out_interface=link)
    yield _rule("nat", MASQUERADE, tag, "MASQUERADE", src=_host(each.address))


def _publication(each: Publication, link: str, tag: str) -> Iterator[Rule]:
    """Rules for each port, or for all of them if they keep their numbers; on a condition, in a chain of their own."""
    address, protocol = each.address, each.protocol.value
    at = {"dst": _host(each.host_ip)} if each.host_ip is not None else {}
    target = f"[{address}]" if address.version == 6 else str(address)
    if each.host_port == each.container_port:
        pairs = [(_ports(each.host_port, each.count), str(address))]  # without a port there are no brackets
    else:
        numbers = range(each.count)
        pairs = [(str(each.host_port + each_), f"{target}:{each.container_port + each_}") for each_ in numbers]
    for ports, destination in pairs:
        match = {"protocol": protocol, protocol: {"dport": ports}, **at}
        for met in _alternatives(each):
            chain = CONDITIONAL if each.condition else _PUBLISH
            yield _rule("nat", chain, tag, {"DNAT": {"to-destination": destination}}, **match, **met)
    reached = {
        "dst": _host(address),
        "protocol": protocol,
        protocol: {"dport": _ports(each.container_port, each.count)},
    }
    if each.masquerade_all:
        yield _rule("nat", _SNAT, tag, "MASQUERADE", **reached)
    if each.snat:
        loopback = "127.0.0.0/8" if address.version == 4 else "::1/128"
        yield _rule("nat", _SNAT, tag, "MASQUERADE", src=_host(address), **reached)
        yield _rule("nat", _SNAT, tag, "MASQUERADE", src=loopback, **reached)
        if link:  # the host has none with the container if it is no gateway
            yield _rule("nat", _SNAT, tag, "MASQUERADE", out_interface=link, mark={"mark": _FROM_OWN_LINK}, **reached)


def _alternatives(each: Publication) -> Iterator[Words]:
    """What a rule looks at for the condition: a rule for each, as xtables has no sets; nothing without a condition."""
    matches = read_condition(each.condition, each.address.version).require_matches("condition")
    for chosen in product(*(tuple(_choices(match)) for match in matches)):
        words: dict[str, list[object]] = {}
        for name, value in chosen:
            words.setdefault(name, []).append(value)
        yield {name: values[0] if len(values) == 1 else values for name, values in words.items()}


def _choices(match: Match) -> Iterator[tuple[str, object]]:
    """The name and words of what says the match; of several, one has to hold.

    Addresses are ranges, for a rule has `src` and `dst` but once, and they tell whose it is (`is_of_address`).
    """

    def unless(words: str) -> str | list[str]:
        return ["!", words] if match.negated else words  # a list is how python-iptables reads it again

    match match:
        case AddressMatch():
            for each in match.ranges:
                yield "iprange", {f"{match.side}-range": unless(f"{each.first}-{each.last}")}
        case LinkMatch():
            yield f"{match.direction}-interface", f"{'!' if match.negated else ''}{match.name}"
        case MarkMatch():
            yield "mark", {"mark": unless(match.bits)}
        case StateMatch():
            yield "conntrack", {"ctstate": unless(",".join(match.states))}


def _shield(each: Shield, tag: str) -> Iterator[Rule]:
    dst = _host(each.address)
    for opened in each.opened if each.routed else ():
        name = opened.protocol.value
        match = {"protocol": name, name: {"dport": _ports(opened.port, opened.count)}}
        yield _rule("filter", _OPENED, tag, "ACCEPT", dst=dst, **match)
    if each.routed:
        four = {"protocol": "icmp", "icmp": {"icmp-type": "8"}}
        six = {"protocol": "icmpv6", "icmp6": {"icmpv6-type": "128"}}
        yield _rule("filter", _SHIELD, tag, "ACCEPT", dst=dst, **(four if each.address.version == 4 else six))
    yield _rule("filter", _SHIELD, tag, "DROP", dst=dst)


def link_rules(policy: Policy) -> tuple[Rule, ...]:
    """The rules of a link that a network's attachments share."""
    if policy.link is None or not policy.link.shared:
        return ()
    return tuple(_link(policy.link, network_tag(policy.owner.network)))


def denied_rules(policy: Policy) -> tuple[Rule, ...]:
    """The rules of the link that are not to be there; what the policy is silent about is as others say."""
    link = policy.link
    if link is None:
        return ()
    opposite = replace(
        link,
        isolated=link.isolated is False,
        parted=link.parted is False,
        internal=link.internal is False,
        icc=link.icc is not True,
        trusted=(),
    )
    tag = network_tag(policy.owner.network) if link.shared else owner_tag(policy.owner)
    wanted = tuple(_link(link, tag))
    return tuple(each for each in _link(opposite, tag) if each not in wanted)


def is_no_longer_trusted(rule: Rule, policy: Policy) -> bool:
    """Whether the rule is for a link from which the policy's own is no longer reached; which there are is not known."""
    link = policy.link
    if link is None or link.trusted is None or rule.chain != _TRUSTED or rule.words.get("out-interface") != link.link:
        return False
    return rule.words["in-interface"] not in link.trusted


def _link(policy: LinkPolicy, tag: str) -> Iterator[Rule]:
    link = policy.link
    within = {"in_interface": link, "out_interface": link}
    yield _rule("nat", _MARK, tag, {"MARK": {"set-xmark": _FROM_OWN_LINK}}, in_interface=link)
    yield _rule("filter", _SAME, tag, "ACCEPT", **within)
    yield _rule("filter", _TO_NETWORK, tag, "DROP", out_interface=link)
    yield _rule("filter", _FROM_NETWORK, tag, "DROP", in_interface=link)
    yield _rule("filter", _BETWEEN, tag, _BETWEEN_TO, in_interface=link)
    yield _rule("filter", _BETWEEN_TO, tag, "ACCEPT", out_interface=link)
    yield _rule("filter", _ACCEPT, tag, "ACCEPT", in_interface=link)
    if policy.icc is False:
        yield _rule("filter", _ICC, tag, "ACCEPT", **within, **_DNAT)
        yield _rule("filter", _ICC, tag, "DROP", **within)
    if policy.internal:
        yield _rule("filter", _INTERNAL, tag, "DROP", in_interface=link)
        yield _rule("filter", _INTERNAL, tag, "DROP", out_interface=link)
    if policy.isolated:
        yield _rule("filter", _ISOLATED, tag, _TO_NETWORK, in_interface=link)
        yield _rule("filter", _ISOLATED, tag, _FROM_NETWORK, out_interface=link)
    if policy.parted:
        yield _rule("filter", _ISOLATED, tag, _TO_PARTED, in_interface=link)
        yield _rule("filter", _TO_PARTED, tag, "DROP", out_interface=link)
    for each in policy.trusted or ():
        yield _rule("filter", _TRUSTED, tag, "ACCEPT", in_interface=each, out_interface=link)


def is_of_address(rule: Rule, addresses: frozenset[Address]) -> bool:
    """Whether the rule is for one of these addresses."""
    hosts = {_host(each) for each in addresses}
    if hosts & {rule.words.get("src"), rule.words.get("dst")}:
        return True
    target = rule.words.get("target")
    to = target.get("DNAT", {}).get("to-destination", "") if isinstance(target, Mapping) else ""
    return any(to == str(each) or to.startswith(f"{_shown(each)}:") for each in addresses)


def network_link(rule: Rule) -> str:
    """The link that the rule makes a network's; empty for a rule that does something else."""
    return str(rule.words["in-interface"]) if rule.chain == _SAME else ""


def published(rule: Rule) -> tuple[str, int, int, str] | None:
    """Protocol, first and last port, and host address or nothing, of a rule that leads host ports to a container."""
    target, protocol = rule.words.get("target"), str(rule.words.get("protocol", ""))
    if rule.chain != _PUBLISH or not isinstance(target, Mapping) or "DNAT" not in target:
        return None
    first, _, last = str(rule.words[protocol]["dport"]).partition(":")
    return protocol, int(first), int(last or first), str(rule.words.get("dst", "")).partition("/")[0]


def _host(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"


def _shown(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _ports(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}:{first + count - 1}"
