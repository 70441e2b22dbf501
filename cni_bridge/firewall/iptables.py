"""The iptables backend: legacy xtables through python-iptables, for kernels without nftables.

    nat  POSTROUTING -> CNI-BRIDGE: for each address, RETURN on its own links, MASQUERADE elsewhere

Every rule's comment is its owner's tag. xtables has no sets, so there are two rules an address; a rule is found by
the kernel library's own comparison, not by reading the chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cni_bridge.cni.errors import FirewallFailed
from cni_bridge.firewall.xtables_lock import xtables_lock
from cni_bridge.policy import Masquerade, Policy
from cni_bridge.tag import MARK, key_of_tag, network_tag, owner_key, owner_tag
from ipam.api import Owner

_CHAIN = "CNI-BRIDGE"
_HOOK = "POSTROUTING"
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


class IptablesFirewall:
    """See `Firewall`. `patience`: seconds to wait for the xtables lock."""

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._loaded: Any = None

    def apply(self, policy: Policy) -> None:
        """See `Firewall.apply`."""
        with self._changing(f"apply the rules of {policy.owner}") as tables:
            for family in sorted({each.address.version for each in policy.masquerade}):
                chain = self._ensure_base(tables[family], family)
                for each in policy.masquerade:
                    if each.address.version == family:
                        self._drop_others(chain, each)
                        for rule in self._rules(each, policy.owner):
                            self._delete(chain, rule)
                            chain.append_rule(rule)

    def remove(self, policy: Policy) -> None:
        """See `Firewall.remove`."""
        with self._changing(f"remove the rules of {policy.owner}") as tables:
            for each in policy.masquerade:
                chain = self._chain(tables[each.address.version])
                if chain is not None:
                    for rule in self._rules(each, policy.owner):
                        self._delete(chain, rule)

    def missing(self, policy: Policy) -> list[str]:
        """See `Firewall.missing`."""
        found = []
        with self._changing("read the rules") as tables:
            for family in sorted({each.address.version for each in policy.masquerade}):
                chain = self._chain(tables[family])
                if chain is None:
                    found.append(f"iptables chain {_CHAIN} of the IPv{family} nat table")
                    continue
                hook = self._iptc.Chain(tables[family], _HOOK)
                if self._jump(family) not in hook.rules:
                    found.append(f"iptables jump from {_HOOK} to {_CHAIN} in the IPv{family} nat table")
                present = chain.rules
                found += [
                    f"iptables rule {rule.target.name} for {each.address}"
                    for each in policy.masquerade
                    if each.address.version == family
                    for rule in self._rules(each, policy.owner)
                    if rule not in present
                ]
        return found

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Firewall.collect`."""
        prefix, kept = network_tag(network), {owner_key(each) for each in keep}
        with self._changing(f'collect in network "{network}"') as tables:
            for table in tables.values():
                chain = self._chain(table)
                for rule in list(chain.rules) if chain is not None else ():
                    tag = _tag(rule)
                    if tag.startswith(prefix) and key_of_tag(tag) not in kept:
                        self._delete(chain, rule)

    def unusable(self) -> str:
        """See `Firewall.unusable`."""
        try:
            with self._changing("read the nat table"):
                return ""
        except FirewallFailed as error:
            return str(error)

    @property
    def _iptc(self) -> Any:
        """python-iptables, imported where it is needed: its import runs a compiler and takes 300 ms."""
        if self._loaded is None:
            try:
                import iptc
            except Exception as error:  # it raises what it likes where libxtables or libiptc is missing
                raise FirewallFailed(f"iptables: python-iptables cannot be loaded: {error}") from None
            self._loaded = iptc
        return self._loaded

    @contextmanager
    def _changing(self, purpose: str) -> Iterator[dict[int, Any]]:
        """The nat tables of both families, read under the lock and committed at the end."""
        iptc = self._iptc
        with xtables_lock(self._patience):
            try:
                tables = {4: iptc.Table(iptc.Table.NAT), 6: iptc.Table6(iptc.Table6.NAT)}
                for table in tables.values():
                    table.autocommit = False
                    table.refresh()
                yield tables
                for table in tables.values():
                    table.commit()
            except (iptc.IPTCError, iptc.xtables.XTablesError) as error:
                raise FirewallFailed(f"iptables: cannot {purpose}: {error}") from None

    def _chain(self, table: Any) -> Any:
        """The chain of this program, or None."""
        return self._iptc.Chain(table, _CHAIN) if table.is_chain(_CHAIN) else None

    def _ensure_base(self, table: Any, family: int) -> Any:
        chain = self._chain(table)
        if chain is None:
            chain = table.create_chain(_CHAIN)
            multicast = self._rule(family, "RETURN", MARK)
            multicast.dst = _MULTICAST[family]
            chain.append_rule(multicast)
        hook = self._iptc.Chain(table, _HOOK)
        jump = self._jump(family)
        if jump not in hook.rules:
            hook.append_rule(jump)
        return chain

    def _jump(self, family: int) -> Any:
        return self._rule(family, _CHAIN, MARK)

    def _rules(self, each: Masquerade, owner: Owner) -> list[Any]:
        family, tag = each.address.version, owner_tag(owner)
        rules = []
        for link in each.local_links:
            local = self._rule(family, "RETURN", tag)
            local.out_interface = link
            rules.append(local)
        rules.append(self._rule(family, "MASQUERADE", tag))
        for rule in rules:
            rule.src = f"{each.address}/{each.address.max_prefixlen}"
        return rules

    def _rule(self, family: int, target: str, comment: str) -> Any:
        rule = self._iptc.Rule() if family == 4 else self._iptc.Rule6()
        rule.create_match("comment").comment = comment
        rule.target = rule.create_target(target)
        return rule

    def _drop_others(self, chain: Any, each: Masquerade) -> None:
        """Delete rules that another owner left for the same address."""
        source = self._rules(each, Owner(network="", container_id="", ifname=""))[0].src
        for rule in list(chain.rules):
            if rule.src == source:
                self._delete(chain, rule)

    def _delete(self, chain: Any, rule: Any) -> None:
        """Delete the rule as often as it is there."""
        while True:
            try:
                chain.delete_rule(rule)
            except self._iptc.IPTCError:
                return


def _tag(rule: Any) -> str:
    return next((str(match.comment) for match in rule.matches if match.name == "comment"), "")
