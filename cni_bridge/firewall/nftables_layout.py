"""The nftables base: the tables, sets, maps and rules that are there whoever is attached, as text. Pure.

The rules never change: who is attached is told by elements, each with its owner's tag as comment. Each rule has a
comment, by which `missing` finds it. `docs/nftables.md` shows the same for people, and a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

INET = "inet cni_bridge"
BRIDGE = "bridge cni_bridge"
ADMIN_CHAIN = "admin"
CONDITIONAL_CHAIN = "conditional"  # what `portmap` publishes on a condition, a rule each

PUBLISHED_MARK = "0x40"  # on a bridged packet to a published port, for the chain of frames to let it through
_PORT = "meta l4proto . th dport"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain, its hook if it has one, and its rules in order."""

    name: str
    hook: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table: its sets and maps with their declarations, and its chains."""

    name: str
    sets: dict[str, str]
    chains: tuple[Chain, ...]


def _both(template: str, comment: str) -> tuple[str, str]:
    """A rule for each family; `IP` stands for its keyword, `N` for its number."""
    rules = [template.replace("IP", ip).replace("N", number) for ip, number in (("ip", "4"), ("ip6", "6"))]
    return (f'{rules[0]} comment "IPv4 {comment}"', f'{rules[1]} comment "IPv6 {comment}"')


def _interleaved(*pairs: tuple[str, str]) -> tuple[str, ...]:
    """All rules of IPv4, then all of IPv6: a packet passes few that are not for it."""
    return (*(four for four, _ in pairs), *(six for _, six in pairs))


# What holds for the link of a network, whoever is attached.
LINK_SETS = {
    "same": "set { type ifname . ifname; }",
    "trusted": "set { type ifname . ifname; }",
    "no_icc": "set { type ifname . ifname; }",
    "networks": "set { type ifname; }",
    "isolated": "set { type ifname; }",
    "parted": "set { type ifname; }",
    "internal": "set { type ifname; }",
}

_NAT = Table(
    name=INET,
    sets={
        f"{name}{number}": declaration.replace("ADDRESS", f"ipv{number}_addr")
        for number in (4, 6)
        for name, declaration in {
            "masquerade": "set { type ADDRESS; }",
            "local": "set { type ADDRESS . ifname; }",
            "publish": "map { type inet_proto . inet_service : ADDRESS . inet_service; }",
            "publish_at": "map { type ADDRESS . inet_proto . inet_service : ADDRESS . inet_service; }",
            "publish_run": "map { type inet_proto . inet_service : ADDRESS; flags interval; }",
            "publish_run_at": "map { type ADDRESS . inet_proto . inet_service : ADDRESS; flags interval; }",
            "snat": "set { type ADDRESS . inet_proto . inet_service; }",
            "snat_run": "set { type ADDRESS . inet_proto . inet_service; flags interval; }",
            "snat_all": "set { type ADDRESS . inet_proto . inet_service; }",
            "snat_all_run": "set { type ADDRESS . inet_proto . inet_service; flags interval; }",
            "self": "set { type ADDRESS . ADDRESS; }",
            "shielded": "set { type ADDRESS; }",
            "routed": "set { type ADDRESS; }",
            "opened": "set { type ADDRESS . inet_proto . inet_service; }",
            "opened_run": "set { type ADDRESS . inet_proto . inet_service; flags interval; }",
        }.items()
    }
    | LINK_SETS,
    chains=(
        Chain(name=ADMIN_CHAIN, hook="", rules=()),
        Chain(name=CONDITIONAL_CHAIN, hook="", rules=()),
        Chain(
            name="raw",
            hook="type filter hook prerouting priority raw; policy accept;",
            rules=(
                'iifname != "lo" ip daddr 127.0.0.0/8 counter drop comment "to a loopback address of this host"',
                'iifname != "lo" ip saddr 127.0.0.0/8 counter drop comment "as if from this host itself"',
            ),
        ),
        Chain(
            name="publish",
            hook="",
            rules=(
                f'jump {CONDITIONAL_CHAIN} comment "published on a condition"',
                *_interleaved(
                    _both(f"dnat IP to IP daddr . {_PORT} map @publish_atN", "published at one address"),
                    _both(f"dnat IP to {_PORT} map @publishN", "published at every address"),
                    _both(f"dnat IP to IP daddr . {_PORT} map @publish_run_atN", "run published at one address"),
                    _both(f"dnat IP to {_PORT} map @publish_runN", "run published at every address"),
                ),
            ),
        ),
        Chain(
            name="prerouting",
            hook="type nat hook prerouting priority dstnat; policy accept;",
            rules=('fib daddr type local jump publish comment "to this host"',),
        ),
        Chain(
            name="output",
            hook="type nat hook output priority -100; policy accept;",
            rules=('fib daddr type local jump publish comment "from this host to itself"',),
        ),
        Chain(
            name="forward",
            hook="type filter hook forward priority filter; policy accept;",
            rules=(
                f'jump {ADMIN_CHAIN} comment "the administrator first"',
                f"iifname . oifname @no_icc ct status dnat meta mark set meta mark or {PUBLISHED_MARK} "
                'comment "marked for the chain of frames"',
                'ct state established,related accept comment "what was let in before"',
                'iifname . oifname @no_icc ct status dnat accept comment "to a published port of the same network"',
                "iifname . oifname @no_icc icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept "
                'comment "neighbour discovery, of bridged packets"',
                'iifname . oifname @no_icc counter drop comment "between containers of a network without icc"',
                'iifname . oifname @same accept comment "within a network"',
                'iifname @internal counter drop comment "out of an internal network"',
                'oifname @internal counter drop comment "into an internal network"',
                'ct status dnat accept comment "to a published port"',
                *_interleaved(
                    _both(f"IP daddr . {_PORT} @openedN accept", "open to routing"),
                    _both(f"IP daddr . {_PORT} @opened_runN accept", "run open to routing"),
                ),
                'iifname @isolated oifname @networks counter drop comment "from an isolated network to another"',
                'iifname @networks oifname @isolated counter drop comment "from another network to an isolated one"',
                'iifname @parted oifname @parted counter drop comment "between networks that are parted"',
                'iifname @networks oifname @networks accept comment "between networks that are not isolated"',
                'iifname . oifname @trusted accept comment "from a trusted link"',
                'ip daddr @routed4 icmp type echo-request accept comment "IPv4 ping by routing"',
                'ip6 daddr @routed6 icmpv6 type echo-request accept comment "IPv6 ping by routing"',
                *_both("IP daddr @shieldedN counter drop", "from elsewhere to a container"),
            ),
        ),
        Chain(
            name="postrouting",
            hook="type nat hook postrouting priority srcnat; policy accept;",
            rules=(
                'ip daddr 224.0.0.0/4 return comment "IPv4 multicast keeps its source"',
                'ip6 daddr ff00::/8 return comment "IPv6 multicast keeps its source"',
                *_both(
                    "ct status dnat IP saddr . IP daddr @selfN counter masquerade",
                    "to a published port of the same container",
                ),
                *(
                    rule
                    for run, words in (("", ""), ("_run", " of a run"))
                    for rule in (
                        *_both(
                            f"ct status dnat IP daddr . {_PORT} @snat_all{run}N counter masquerade",
                            f"to a published port{words}, whoever asks",
                        ),
                        *_both(
                            f"iifname . oifname @same ct status dnat IP daddr . {_PORT} @snat{run}N counter masquerade",
                            f"to a published port{words} of the same network",
                        ),
                        f"ip saddr 127.0.0.0/8 ct status dnat ip daddr . {_PORT} @snat{run}4 counter masquerade "
                        f'comment "IPv4 from loopback to a published port{words}"',
                        f"ip6 saddr ::1 ct status dnat ip6 daddr . {_PORT} @snat{run}6 counter masquerade "
                        f'comment "IPv6 from loopback to a published port{words}"',
                    )
                ),
                *_both("IP saddr . oifname @localN return", "within its own network"),
                *_both("IP saddr @masqueradeN counter masquerade", "that leaves its network"),
            ),
        ),
    ),
)

_SPOOF = Table(
    name=BRIDGE,
    sets={
        "mac_checked": "set { type ifname; }",
        "mac_allowed": "set { type ifname . ether_addr; }",
        "ip_checked": "set { type ifname; }",
        "ip4_allowed": "set { type ifname . ipv4_addr; }",
        "ip6_allowed": "set { type ifname . ipv6_addr; }",
        "apart": "set { type ifname; }",
    },
    chains=(
        Chain(
            name="prerouting",
            hook="type filter hook prerouting priority -300; policy accept;",
            rules=(
                "iifname @mac_checked iifname . ether saddr != @mac_allowed counter drop "
                'comment "any other source MAC"',
                "iifname @ip_checked arp saddr ip != 0.0.0.0 iifname . arp saddr ip != @ip4_allowed counter drop "
                'comment "ARP for any other address"',
                "iifname @ip_checked ip saddr != 0.0.0.0 iifname . ip saddr != @ip4_allowed counter drop "
                'comment "any other IPv4 source"',
                "iifname @ip_checked ip6 saddr != { ::, fe80::/10 } iifname . ip6 saddr != @ip6_allowed counter drop "
                'comment "any other IPv6 source"',
            ),
        ),
        # After br_netfilter, whose packets then have their mark (linux/netfilter_bridge.h, NF_BR_PRI_FILTER_OTHER).
        Chain(
            name="forward",
            hook="type filter hook forward priority 200; policy accept;",
            rules=(
                'meta protocol arp accept comment "ARP: who answers from a published port asks"',
                'icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept comment "neighbour discovery likewise"',
                f"iifname @apart oifname @apart meta mark and {PUBLISHED_MARK} != {PUBLISHED_MARK} counter drop "
                'comment "between containers of a network without icc"',
            ),
        ),
    ),
)

TABLES = {each.name: each for each in (_NAT, _SPOOF)}


def render_base(table: Table) -> str:
    """The commands that make the table as it is to be, whatever of it is there; the administrator's chain stays."""
    return "\n".join(_base(table))


def _base(table: Table) -> Iterator[str]:
    yield f"add table {table.name}"
    for name, declaration in table.sets.items():
        kind, _, rest = declaration.partition(" ")
        yield f"add {kind} {table.name} {name} {rest}"
    for chain in table.chains:
        yield f"add chain {table.name} {chain.name}" + (f" {{ {chain.hook} }}" if chain.hook else "")
        if chain.name not in (ADMIN_CHAIN, CONDITIONAL_CHAIN):
            yield f"flush chain {table.name} {chain.name}"
    for chain in table.chains:
        for rule in chain.rules:
            yield f"add rule {table.name} {chain.name} {rule}"


def rule_comment(rule: str) -> str:
    """The comment of a rule of the base."""
    return rule.rpartition('comment "')[2].rstrip('"')
