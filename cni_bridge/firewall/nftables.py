"""The nftables backend: a fixed set of rules over hash sets, one element an address or port, whoever is attached.

    table inet cni_bridge     masquerade4/6: addresses to masquerade; local4/6: address . link it stays unmasqueraded on
    table bridge cni_bridge   spoof_ports: ports that are checked; spoof_allowed: port . source MAC that may enter

Every element's comment is its owner's tag. The base is declared in every transaction, so a flush is repaired by the
next attachment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from cni_bridge.cni.errors import FirewallFailed
from cni_bridge.firewall.libnftables import Nftables, NftError
from cni_bridge.policy import Policy
from cni_bridge.tag import key_of_tag, network_tag, owner_key, owner_tag
from ipam.api import Owner

_NAT = "inet cni_bridge"
_SPOOF = "bridge cni_bridge"

# Each rule's comment is also what `missing` looks for.
_NAT_RULES = (
    'ip daddr 224.0.0.0/4 return comment "IPv4 multicast keeps its source"',
    'ip6 daddr ff00::/8 return comment "IPv6 multicast keeps its source"',
    'ip saddr . oifname @local4 return comment "IPv4 within its own network"',
    'ip6 saddr . oifname @local6 return comment "IPv6 within its own network"',
    'ip saddr @masquerade4 counter masquerade comment "IPv4 that leaves its network"',
    'ip6 saddr @masquerade6 counter masquerade comment "IPv6 that leaves its network"',
)
_SPOOF_RULES = (
    'iifname . ether saddr @spoof_allowed accept comment "source MAC as attached"',
    'iifname @spoof_ports counter drop comment "any other source MAC"',
)

_NAT_BASE = "\n".join(
    (
        f"add table {_NAT}",
        f"add set {_NAT} masquerade4 {{ type ipv4_addr; }}",
        f"add set {_NAT} masquerade6 {{ type ipv6_addr; }}",
        f"add set {_NAT} local4 {{ type ipv4_addr . ifname; }}",
        f"add set {_NAT} local6 {{ type ipv6_addr . ifname; }}",
        f"add chain {_NAT} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}",
        f"flush chain {_NAT} postrouting",
        *(f"add rule {_NAT} postrouting {rule}" for rule in _NAT_RULES),
    )
)
_SPOOF_BASE = "\n".join(
    (
        f"add table {_SPOOF}",
        f"add set {_SPOOF} spoof_ports {{ type ifname; }}",
        f"add set {_SPOOF} spoof_allowed {{ type ifname . ether_addr; }}",
        f"add chain {_SPOOF} prerouting {{ type filter hook prerouting priority -300; policy accept; }}",
        f"flush chain {_SPOOF} prerouting",
        *(f"add rule {_SPOOF} prerouting {rule}" for rule in _SPOOF_RULES),
    )
)
# Each table's sets, with the position of the link name in their elements.
_SETS: dict[str, dict[str, int | None]] = {
    _NAT: {"masquerade4": None, "masquerade6": None, "local4": 1, "local6": 1},
    _SPOOF: {"spoof_ports": 0, "spoof_allowed": 0},
}
_RULES = {_NAT: ("postrouting", _NAT_RULES), _SPOOF: ("prerouting", _SPOOF_RULES)}


class NftablesFirewall:
    """See `Firewall`."""

    def __init__(self) -> None:
        self._nft: Nftables | None = None

    def apply(self, policy: Policy) -> None:
        """See `Firewall.apply`."""
        tag = owner_tag(policy.owner)
        self._evict_former_owners(policy)
        commands = [*_base(policy)]
        for container, element in _elements(policy):
            # Added, deleted and added again in one transaction: it is there afterwards with this owner's comment,
            # whether it was absent, present, or left there by another owner.
            commands += [
                f"add element {container} {{ {element} }}",
                f"delete element {container} {{ {element} }}",
                f'add element {container} {{ {element} comment "{tag}" }}',
            ]
        self._run("\n".join(commands), f"apply the rules of {policy.owner}")

    def remove(self, policy: Policy) -> None:
        """See `Firewall.remove`."""
        own = owner_key(policy.owner)
        commands = [
            f"delete element {container} {{ {element} }}"
            for container, element in _elements(policy)
            if key_of_tag(self._comment(container, element)) == own  # it may be another owner's by now
        ]
        if commands:
            self._run("\n".join(commands), f"remove the rules of {policy.owner}")

    def missing(self, policy: Policy) -> list[str]:
        """See `Firewall.missing`."""
        found = []
        for table, (chain, rules) in _RULES.items():
            if not any(container.startswith(table) for container, _ in _elements(policy)):
                continue
            present = {each["rule"].get("comment") for each in self._list(f"chain {table} {chain}") if "rule" in each}
            comments = [rule.rpartition('comment "')[2].rstrip('"') for rule in rules]
            found += [f'nftables rule "{each}" of table {table}' for each in comments if each not in present]
        own = owner_key(policy.owner)
        return found + [
            f"nftables element {element} of set {container}"
            for container, element in _elements(policy)
            if key_of_tag(self._comment(container, element)) != own
        ]

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Firewall.collect`."""
        prefix, kept = network_tag(network), {owner_key(each) for each in keep}
        self._sweep(lambda key: key.startswith(prefix) and key not in kept)

    def forget(self, owner: Owner) -> None:
        """See `Firewall.forget`."""
        own = owner_key(owner)
        self._sweep(lambda key: key == own)

    def unusable(self) -> str:
        """See `Firewall.unusable`."""
        try:
            self._connect().run("list tables")
        except (FirewallFailed, NftError) as error:
            return str(error)
        return ""

    def _sweep(self, stale: Callable[[str], bool]) -> None:
        """Remove the elements by whose owner's key they are stale; where nftables does not work there are none."""
        if self.unusable():
            return
        for table, names in _SETS.items():
            for name, link_position in names.items():
                elements = [
                    element
                    for element, comment in _listed(self._list(f"set {table} {name}"), link_position)
                    if stale(key_of_tag(comment))
                ]
                if elements:
                    self._run(f"delete element {table} {name} {{ {', '.join(elements)} }}", "remove stale rules")

    def _evict_former_owners(self, policy: Policy) -> None:
        """Remove what another owner left for an address of this policy: it may name other links than this one's."""
        for each in policy.masquerade:
            family = each.address.version
            former = key_of_tag(self._comment(f"{_NAT} masquerade{family}", str(each.address)))
            if former and former != owner_key(policy.owner):
                stale = [
                    element
                    for element, comment in _listed(self._list(f"set {_NAT} local{family}"), 1)
                    if key_of_tag(comment) == former and element.startswith(f"{each.address} ")
                ]
                if stale:
                    self._run(f"delete element {_NAT} local{family} {{ {', '.join(stale)} }}", f"evict {former}")

    def _comment(self, container: str, element: str) -> str:
        """The comment of an element, found by its key; empty if it is not there."""
        try:
            printed = self._connect().run(f"get element {container} {{ {element} }}")  # as text: it ignores JSON
        except NftError as error:
            if error.missing:
                return ""
            raise FirewallFailed(f"nftables: cannot read set {container}: {error}") from None
        found = re.search(r'comment "([^"]*)"', printed)
        return found[1] if found is not None else ""

    def _list(self, what: str) -> list[dict[str, Any]]:
        """The listing of a table's part; empty if it is not there."""
        try:
            return self._connect().query(f"list {what}")
        except NftError as error:
            if error.missing:
                return []
            raise FirewallFailed(f"nftables: cannot list {what}: {error}") from None

    def _run(self, commands: str, purpose: str) -> None:
        try:
            self._connect().run(commands)
        except NftError as error:
            raise FirewallFailed(f"nftables: cannot {purpose}: {error}") from None

    def _connect(self) -> Nftables:
        if self._nft is None:
            try:
                self._nft = Nftables()
            except OSError as error:
                raise FirewallFailed(
                    f"nftables: {error}; install libnftables1, or set ipMasqBackend to iptables"
                ) from None
        return self._nft


def _base(policy: Policy) -> Iterator[str]:
    if policy.masquerade:
        yield _NAT_BASE
    if policy.spoof_check is not None:
        yield _SPOOF_BASE


def _elements(policy: Policy) -> Iterator[tuple[str, str]]:
    """Every element of the policy, with the set that it belongs to."""
    for each in policy.masquerade:
        family = each.address.version
        yield f"{_NAT} masquerade{family}", str(each.address)
        for link in each.local_links:
            yield f"{_NAT} local{family}", f'{each.address} . "{link}"'
    if policy.spoof_check is not None:
        yield f"{_SPOOF} spoof_ports", f'"{policy.spoof_check.port}"'
        yield f"{_SPOOF} spoof_allowed", f'"{policy.spoof_check.port}" . {policy.spoof_check.mac}'


def _listed(objects: list[dict[str, Any]], link_position: int | None) -> Iterator[tuple[str, str]]:
    """The elements of a listed set as nftables text, with their comments."""
    for each in objects:
        for wrapped in each.get("set", {}).get("elem", ()):
            element = wrapped.get("elem", {}) if isinstance(wrapped, dict) else {}  # one without a comment is not ours
            value = element.get("val")
            parts = value["concat"] if isinstance(value, dict) else [value]
            text = (f'"{part}"' if position == link_position else str(part) for position, part in enumerate(parts))
            yield " . ".join(text), str(element.get("comment", ""))
