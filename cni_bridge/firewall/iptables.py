"""The iptables backend: legacy xtables through python-iptables, for kernels without nftables.

    nat  POSTROUTING -> CNI-BRIDGE: for each address, RETURN on its own links, MASQUERADE elsewhere

Every rule's comment is its owner's tag. xtables has no sets, so there are two rules an address; a rule is found by
the kernel library's own comparison, not by reading the chain.

libxtables serves one address family in a process, and its MASQUERADE cannot be loaded for a second; it also ends the
process when it is displeased. So each family's transaction runs in a forked child, the lock being held outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cni_bridge.cni.errors import CniError, Code, FirewallFailed
from cni_bridge.firewall.apart import ChildFailed, run_apart
from cni_bridge.firewall.xtables_lock import xtables_lock
from cni_bridge.policy import Masquerade, Policy, Publication
from cni_bridge.tag import MARK, key_of_tag, network_tag, owner_key, owner_tag
from ipam.api import Owner

_CHAIN = "CNI-BRIDGE"
_HOOK = "POSTROUTING"
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_FAMILIES = (4, 6)
# The tables that this network namespace has loaded; reading them loads none.
_TABLE_NAMES = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}


class IptablesFirewall:
    """See `Firewall`. `patience`: seconds to wait for the xtables lock."""

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._last_timeout = float("-inf")

    def apply(self, policy: Policy) -> None:
        """See `Firewall.apply`."""
        self._each_family(policy, _apply, f"apply the rules of {policy.owner}")

    def restore(self, policies: Sequence[Policy]) -> None:
        """See `Firewall.restore`."""
        for each in policies:
            self.apply(each)

    def is_flushed(self) -> bool:
        """See `Firewall.is_flushed`; to look would take longer than to apply one's own, and CHECK tells."""
        return False

    def remove(self, policy: Policy) -> None:
        """See `Firewall.remove`."""
        self._each_family(policy, _remove, f"remove the rules of {policy.owner}")

    def missing(self, policy: Policy) -> list[str]:
        """See `Firewall.missing`."""
        return self._each_family(policy, _missing, f"read the rules of {policy.owner}")

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Firewall.collect`."""
        prefix, kept = network_tag(network), {owner_key(each) for each in keep}
        self._sweep(lambda key: key.startswith(prefix) and key not in kept)

    def forget(self, owner: Owner) -> None:
        """See `Firewall.forget`."""
        self.evict(owner_key(owner))

    def claimed(self, publications: Collection[Publication], owner: Owner) -> dict[Publication, str]:
        """See `Firewall.claimed`; ports are published by nftables only."""
        return {}

    def forget_link(self, network: str) -> None:
        """See `Firewall.forget_link`; there are none in iptables."""

    def evict(self, key: str) -> None:
        """See `Firewall.evict`."""
        self._sweep(lambda each: each == key)

    def unusable(self) -> str:
        """See `Firewall.unusable`."""
        try:
            for family in _FAMILIES:
                self._run(partial(_probe, family), "read the nat table")
        except CniError as error:
            return error.msg
        return ""

    def _sweep(self, stale: Callable[[str], bool]) -> None:
        """Remove the rules by whose owner's key they are stale, without loading iptables where nobody uses it."""
        for family, tables in _TABLE_NAMES.items():
            if tables.exists() and "nat" in tables.read_text().split() and self._find_stale(family, stale):
                self._run(partial(_remove_stale, family, stale), "remove stale rules")

    def _find_stale(self, family: int, stale: Callable[[str], bool]) -> bool:
        """Whether there is a stale rule; to look needs no lock, so nobody who holds it is waited for in vain."""
        _load()
        try:
            return bool(run_apart(partial(_stale_tags, family, stale)))
        except ChildFailed as error:
            raise FirewallFailed(f"iptables: cannot look for stale rules: {error}") from None

    def _each_family(self, policy: Policy, transaction: Callable[[int, Policy], list[str]], purpose: str) -> list[str]:
        families = sorted({each.address.version for each in policy.masquerade})
        return [words for family in families for words in self._run(partial(transaction, family, policy), purpose)]

    def _run(self, transaction: Callable[[], list[str]], purpose: str) -> list[str]:
        """Run one family's transaction in a child, under the lock."""
        _load()  # here, so that the children need not: it takes 300 ms
        # Who has just waited for the lock in vain does not wait again: the request has other work to do.
        waited_lately = time.monotonic() < self._last_timeout + self._patience
        try:
            with xtables_lock(0 if waited_lately else self._patience):
                return run_apart(transaction)
        except ChildFailed as error:
            raise FirewallFailed(f"iptables: cannot {purpose}: {error}") from None
        except CniError as error:
            if error.code == Code.TRY_AGAIN_LATER:
                self._last_timeout = time.monotonic()
            raise


def _load() -> Any:
    """python-iptables, imported by this backend only, for its import runs a compiler."""
    try:
        import iptc
    except Exception as error:  # it raises what it likes where libxtables or libiptc is missing
        raise FirewallFailed(f"iptables: python-iptables cannot be loaded: {error}") from None
    return iptc


# What follows runs in the child.


def _apply(family: int, policy: Policy) -> list[str]:
    table = _table(family)
    chain = _ensure_base(table, family)
    for each in policy.masquerade:
        if each.address.version == family:
            rules = _rules(each, policy.owner)
            for other in list(chain.rules):
                if other.src == rules[0].src:  # of an earlier request, or left there by a former owner
                    chain.delete_rule(other)
            for rule in rules:
                chain.append_rule(rule)
    table.commit()
    return []


def _remove(family: int, policy: Policy) -> list[str]:
    table = _table(family)
    if table.is_chain(_CHAIN):
        chain = _load().Chain(table, _CHAIN)
        for each in policy.masquerade:
            if each.address.version == family:
                for rule in _rules(each, policy.owner):
                    _delete_if_there(chain, rule)
        table.commit()
    return []


def _missing(family: int, policy: Policy) -> list[str]:
    table = _table(family)
    if not table.is_chain(_CHAIN):
        return [f"iptables chain {_CHAIN} of the IPv{family} nat table"]
    found = []
    if not _has_jump(table):
        found.append(f"iptables jump from {_HOOK} to {_CHAIN} in the IPv{family} nat table")
    rules = _load().Chain(table, _CHAIN).rules
    if not _begins_with_multicast(rules, family):
        found.append(f"iptables rule for multicast at the head of {_CHAIN} in the IPv{family} nat table")
    present = {_signature(rule) for rule in rules}
    return found + [
        f"iptables rule {rule.target.name} for {each.address}"
        for each in policy.masquerade
        if each.address.version == family
        for rule in _rules(each, policy.owner)
        if _signature(rule) not in present
    ]


def _stale_tags(family: int, stale: Callable[[str], bool]) -> list[str]:
    table = _table(family)
    rules = _load().Chain(table, _CHAIN).rules if table.is_chain(_CHAIN) else ()
    return [tag for tag in map(_tag, rules) if stale(key_of_tag(tag))]


def _remove_stale(family: int, stale: Callable[[str], bool]) -> list[str]:
    table = _table(family)
    if table.is_chain(_CHAIN):
        chain = _load().Chain(table, _CHAIN)
        for rule in list(chain.rules):
            if stale(key_of_tag(_tag(rule))):
                chain.delete_rule(rule)
        table.commit()
    return []


def _probe(family: int) -> list[str]:
    _table(family)
    return []


def _table(family: int) -> Any:
    """The nat table as it is now; changes wait for its commit."""
    iptc = _load()
    table = iptc.Table(iptc.Table.NAT) if family == 4 else iptc.Table6(iptc.Table6.NAT)
    table.autocommit = False
    table.refresh()
    return table


def _ensure_base(table: Any, family: int) -> Any:
    iptc = _load()
    if not table.is_chain(_CHAIN):
        table.create_chain(_CHAIN)
    chain = iptc.Chain(table, _CHAIN)
    if not _begins_with_multicast(chain.rules, family):
        chain.insert_rule(_multicast(family))
    if not _has_jump(table):
        iptc.Chain(table, _HOOK).append_rule(_rule(family, _CHAIN, MARK))
    return chain


def _multicast(family: int) -> Any:
    rule = _rule(family, "RETURN", MARK)
    rule.dst = _MULTICAST[family]
    return rule


def _begins_with_multicast(rules: list[Any], family: int) -> bool:
    return bool(rules) and rules[0].dst == _multicast(family).dst and _tag(rules[0]) == MARK


def _has_jump(table: Any) -> bool:
    return any(rule.target.name == _CHAIN for rule in _load().Chain(table, _HOOK).rules)


def _rules(each: Masquerade, owner: Owner) -> list[Any]:
    family, tag = each.address.version, owner_tag(owner)
    rules = []
    for link in each.local_links:
        local = _rule(family, "RETURN", tag)
        local.out_interface = link
        rules.append(local)
    rules.append(_rule(family, "MASQUERADE", tag))
    for rule in rules:
        rule.src = f"{each.address}/{each.address.max_prefixlen}"
    return rules


def _rule(family: int, target: str, comment: str) -> Any:
    iptc = _load()
    rule = iptc.Rule() if family == 4 else iptc.Rule6()
    rule.create_match("comment").comment = comment
    rule.target = rule.create_target(target)
    return rule


def _delete_if_there(chain: Any, rule: Any) -> None:
    try:
        chain.delete_rule(rule)
    except _load().IPTCError:
        return


def _signature(rule: Any) -> tuple[str, ...]:
    return (rule.src, rule.out_interface or "", rule.target.name, _tag(rule))


def _tag(rule: Any) -> str:
    return next((str(match.comment) for match in rule.matches if match.name == "comment"), "")
