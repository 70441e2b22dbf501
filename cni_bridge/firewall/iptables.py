"""The iptables backend: legacy xtables through python-iptables, for kernels without nftables (`iptables_rules`).

libxtables serves one address family in a process, and its targets cannot be loaded for a second; it also ends the
process when it is displeased. So each family's transaction runs in a forked child, the lock being held outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cni_bridge.cni.errors import CniError, FirewallFailed
from cni_bridge.firewall.apart import ChildFailed, run_apart
from cni_bridge.firewall.iptables_rules import (
    CHAINS,
    CONDITIONAL,
    MASQUERADE,
    Rule,
    base,
    denied_rules,
    hooks,
    is_no_longer_trusted,
    is_of_address,
    link_rules,
    network_link,
    owned_rules,
    published,
)
from cni_bridge.firewall.xtables_lock import xtables_lock
from cni_bridge.policy import Policy, Publication
from cni_bridge.tag import MARK, key_of_tag, network_tag, owner_key
from ipam import effects
from ipam.api import Address, Owner

_FAMILIES = (4, 6)
# The tables that this network namespace has loaded; reading them loads none.
_TABLE_NAMES = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}


class IptablesFirewall:
    """See `Firewall`. Each change is `LockBusy`, as a whole, while another program has the xtables lock."""

    def __init__(self) -> None:
        self._is_locked = False

    def apply(self, policy: Policy) -> None:
        """See `Firewall.apply`."""
        self._each_family(policy, _apply, f"apply the rules of {policy.owner}")

    def restore(self, policies: Sequence[Policy]) -> None:
        """See `Firewall.restore`."""
        _load()
        with self._locked():
            for each in policies:
                self.apply(each)

    def is_flushed(self) -> bool:
        """See `Firewall.is_flushed`; to look would take as long as to apply one's own, and CHECK tells."""
        return False

    def remove(self, policy: Policy) -> None:
        """See `Firewall.remove`."""
        self._each_family(policy, _remove, f"remove the rules of {policy.owner}")

    def missing(self, policy: Policy) -> list[str]:
        """See `Firewall.missing`."""
        return self._each_family(policy, _missing, f"read the rules of {policy.owner}")

    def claimed(self, publications: Collection[Publication], owner: Owner) -> dict[Publication, str]:
        """See `Firewall.claimed`."""
        found: dict[Publication, str] = {}
        for family in {each.address.version for each in publications}:
            asked = [each for each in publications if each.address.version == family and not each.condition]
            answers = self._look(partial(_claimed, family, asked, owner_key(owner)), "read the published ports")
            found |= {each: tag for each, tag in zip(asked, answers, strict=True) if tag}
        return found

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Firewall.collect`."""
        prefix, kept = network_tag(network), {owner_key(each) for each in keep}
        kept.add(prefix)  # what holds for the network's link: see `forget_link`
        self._sweep(lambda key: key.startswith(prefix) and key not in kept)

    def forget(self, owner: Owner) -> None:
        """See `Firewall.forget`."""
        self.evict(owner_key(owner))

    def network_links(self, network: str) -> Collection[str]:
        """See `Firewall.network_links`."""
        stale = partial(str.__eq__, network_tag(network))
        return sorted(
            {
                link
                for family, tables in _loaded_tables()
                for link in self._look(partial(_links_of, family, tables, stale), "look for a network's links")
            }
        )

    def forget_link(self, network: str) -> Collection[str]:
        """See `Firewall.forget_link`."""
        return sorted(self._sweep(lambda each: each == network_tag(network)))

    def evict(self, key: str) -> None:
        """See `Firewall.evict`."""
        self._sweep(lambda each: each == key)

    def unusable(self) -> str:
        """See `Firewall.unusable`."""
        try:
            for family in _FAMILIES:
                self._look(partial(_probe, family), "read the nat table")  # which needs no lock
        except CniError as error:
            return error.msg
        return ""

    def _sweep(self, stale: Callable[[str], bool]) -> set[str]:
        """Remove the rules by whose owner's key they are stale, without loading iptables where nobody uses it.

        The links that they named.
        """
        links: set[str] = set()
        for family, tables in _loaded_tables():
            # To look needs no lock, so nobody who holds it is waited for in vain.
            if self._look(partial(_stale_tags, family, tables, stale), "look for stale rules"):
                links |= set(self._run(partial(_remove_stale, family, tables, stale), "remove stale rules"))
        return links

    def _each_family(self, policy: Policy, transaction: Callable[[int, Policy], list[str]], purpose: str) -> list[str]:
        addresses = _addresses(policy)
        families = sorted({each.version for each in addresses}) or _FAMILIES
        _load()
        with self._locked():
            return [words for family in families for words in self._run(partial(transaction, family, policy), purpose)]

    def _look(self, question: Callable[[], list[str]], purpose: str) -> list[str]:
        _load()
        try:
            effects.ask(purpose)
            return run_apart(question)
        except ChildFailed as error:
            raise FirewallFailed(f"iptables: cannot {purpose}: {error}") from None

    def _run(self, transaction: Callable[[], list[str]], purpose: str) -> list[str]:
        """Run one family's transaction in a child, under the lock."""
        _load()  # here, so that the children need not: it takes 300 ms, in which others may want the lock
        try:
            with self._locked():
                effects.change(purpose)
                return run_apart(transaction)
        except ChildFailed as error:
            raise FirewallFailed(f"iptables: cannot {purpose}: {error}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, once for all that is done within."""
        if self._is_locked:
            yield
            return
        with xtables_lock():
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False


def _addresses(policy: Policy) -> frozenset[Address]:
    masqueraded, shielded = (each.address for each in policy.masquerade), (each.address for each in policy.shields)
    return frozenset((*masqueraded, *shielded, *(each.address for each in policy.publications)))


def _load() -> Any:
    """python-iptables, imported by this backend only, for its import runs a compiler."""
    try:
        import iptc
        import iptc.easy
    except Exception as error:  # it raises what it likes where libxtables or libiptc is missing
        raise FirewallFailed(f"iptables: python-iptables cannot be loaded: {error}") from None
    return iptc


# What follows runs in the child.


def _apply(family: int, policy: Policy) -> list[str]:
    wanted, denied = (*owned_rules(policy, family), *link_rules(policy)), denied_rules(policy)
    own, network, addresses = owner_key(policy.owner), network_tag(policy.owner.network), _addresses(policy)

    def is_replaced(rule: Rule) -> bool:
        """Wanted, and made again in its order; not to be; or left there by a former owner of the address.

        What else is the owner's or the link's is of another plugin of the chain.
        """
        if key_of_tag(rule.comment) in (own, network):
            return rule in wanted or rule in denied or is_no_longer_trusted(rule, policy)
        return rule.comment != MARK and is_of_address(rule, addresses)

    for name in _tables_of(family, wanted):
        with _Table(family, name) as table:
            table.ensure_base()
            table.delete(is_replaced)
            for rule in wanted:
                if rule.table == name:
                    table.append(rule)
    return []


def _remove(family: int, policy: Policy) -> list[str]:
    own = owner_key(policy.owner)
    wanted = owned_rules(policy, family)
    for name in _tables_of(family, wanted):
        with _Table(family, name) as table:
            table.delete(lambda rule: key_of_tag(rule.comment) == own and rule in wanted)
    return []


def _missing(family: int, policy: Policy) -> list[str]:
    wanted = (*owned_rules(policy, family), *link_rules(policy))
    found = []
    for name in _tables_of(family, wanted):
        with _Table(family, name) as table:
            fixed = [each for each in (*hooks(family), *base(family)) if each.table == name]
            present = [*table.rules(), *(rule for each in fixed for rule in table.rules_of(each.chain))]
            found += [_words(each, family) for each in (*fixed, *wanted) if each.table == name and each not in present]
    return found


def _claimed(family: int, asked: Sequence[Publication], own: str) -> list[str]:
    """For each publication the tag of another owner that has one of its ports, or nothing."""
    with _Table(family, "nat") as table:
        held = [(found, each.comment) for each in table.rules() if (found := published(each))]
    answers = []
    for each in asked:
        at, end = str(each.host_ip or ""), each.host_port + each.count
        tags = (
            tag
            for (protocol, first, last, where), tag in held
            if protocol == each.protocol and first < end and each.host_port <= last
            if (not at or where in ("", at)) and key_of_tag(tag) != own
        )
        answers.append(next(tags, ""))
    return answers


def _stale_tags(family: int, tables: Iterable[str], stale: Callable[[str], bool]) -> list[str]:
    found = []
    for name in tables:
        with _Table(family, name) as table:
            found += [each.comment for each in table.rules() if stale(key_of_tag(each.comment))]
    return found


def _loaded_tables() -> Iterator[tuple[int, list[str]]]:
    """Each family with those of its tables that somebody uses, if there are any: to look into one loads it."""
    for family, names in _TABLE_NAMES.items():
        loaded = names.read_text().split() if names.exists() else []
        tables = [each for each in CHAINS if each in loaded]
        if tables:
            yield family, tables


def _links_of(family: int, tables: Iterable[str], wanted: Callable[[str], bool]) -> list[str]:
    links: set[str] = set()
    for name in tables:
        with _Table(family, name) as table:
            found = (each for each in table.rules() if wanted(key_of_tag(each.comment)))
            links |= {link for each in found if (link := network_link(each))}
    return sorted(links)


def _remove_stale(family: int, tables: Iterable[str], stale: Callable[[str], bool]) -> list[str]:
    links: set[str] = set()
    for name in tables:
        with _Table(family, name) as table:
            going = [each for each in table.rules() if stale(key_of_tag(each.comment))]
            links |= {link for each in going if (link := network_link(each))}
            table.delete(lambda rule: stale(key_of_tag(rule.comment)))
    return sorted(links)


def _probe(family: int) -> list[str]:
    with _Table(family, "nat"):
        return []


def _tables_of(family: int, rules: Iterable[Rule]) -> list[str]:
    """The tables that these rules need; with host ports, that which keeps loopback addresses apart too."""
    names = {each.table for each in rules}
    if family == 4 and "filter" in names:
        names.add("raw")
    return [each for each in CHAINS if each in names]


def _words(rule: Rule, family: int) -> str:
    target = rule.words["target"]
    shown = target if isinstance(target, str) else next(iter(target))
    names = [each for each in ("src", "dst", "in-interface", "out-interface") if each in rule.words]
    about = f" for {', '.join(f'{each} {rule.words[each]}' for each in names)}" if names else ""
    return f"iptables rule {shown}{about} in chain {rule.chain} of the IPv{family} {rule.table} table"


class _Table:
    """A table as it is when the block begins; what was changed is committed when it ends."""

    def __init__(self, family: int, name: str) -> None:
        self._family = family
        self._name = name
        self._changed = False

    def __enter__(self) -> _Table:
        iptc = _load()
        self._table = (iptc.Table if self._family == 4 else iptc.Table6)(self._name)
        self._table.autocommit = False
        self._table.refresh()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._changed and kind is None:
            self._table.commit()

    def ensure_base(self) -> None:
        """Make our chains, what they begin with, and the jumps into them."""
        iptc = _load()
        for name in CHAINS[self._name]:
            if not self._table.is_chain(name):
                self._changed = True
                self._table.create_chain(name)
        fixed = [each for each in base(self._family) if each.table == self._name]
        for name in dict.fromkeys(each.chain for each in fixed):
            wanted = [each for each in fixed if each.chain == name]
            if self.rules_of(name)[: len(wanted)] != wanted:
                self._changed = True
                chain = iptc.Chain(self._table, name)
                for each in [rule for rule in chain.rules if self._parse(name, rule).comment == MARK]:
                    chain.delete_rule(each)
                for position, each in enumerate(wanted):
                    chain.insert_rule(self._render(each), position)
        for each in hooks(self._family):
            if each.table == self._name and each not in self.rules_of(each.chain):
                self._changed = True
                chain = iptc.Chain(self._table, each.chain)
                if each.words["target"] == MASQUERADE:
                    chain.append_rule(self._render(each))
                else:
                    chain.insert_rule(self._render(each))

    def rules(self) -> list[Rule]:
        """The rules of our chains that carry a comment."""
        return [rule for name in CHAINS[self._name] for rule in self.rules_of(name)]

    def rules_of(self, name: str) -> list[Rule]:
        """The rules of the chain that carry a comment, in order; none if it is not there."""
        if not self._table.is_chain(name):
            return []
        parsed = (self._parse(name, each) for each in _load().Chain(self._table, name).rules)
        return [each for each in parsed if "comment" in each.words]

    def append(self, rule: Rule) -> None:
        """Add the rule at the end of its chain."""
        self._changed = True
        made = self._render(rule)
        # python-iptables leaves out what it cannot encode, without a word: then everybody would be let through.
        if rule.chain == CONDITIONAL and self._parse(rule.chain, made) != rule:
            raise FirewallFailed(f"python-iptables cannot encode the condition of {rule.comment}")
        _load().Chain(self._table, rule.chain).append_rule(made)

    def delete(self, which: Callable[[Rule], bool]) -> None:
        """Delete those of the rules of our chains."""
        for name in CHAINS[self._name]:
            for found, rule in list(self._iterate(name)):
                if "comment" in rule.words and which(rule):
                    self._changed = True
                    _load().Chain(self._table, name).delete_rule(found)

    def _iterate(self, name: str) -> Iterator[tuple[Any, Rule]]:
        if self._table.is_chain(name):
            for each in _load().Chain(self._table, name).rules:
                yield each, self._parse(name, each)

    def _parse(self, chain: str, found: Any) -> Rule:
        words = _load().easy.decode_iptc_rule(found, ipv6=self._family == 6)
        words.pop("counters", None)
        return Rule(table=self._name, chain=chain, words=words)

    def _render(self, rule: Rule) -> Any:
        made = _load().easy.encode_iptc_rule(dict(rule.words), ipv6=self._family == 6)
        if self._family == 6:
            # python-iptables 1.2 has this kernel compare one bit of each character of a link's name, not all.
            entry = made.entry.ipv6
            entry.iniface_mask = entry.iniface_mask.replace(b"\x01", b"\xff")
            entry.outiface_mask = entry.outiface_mask.replace(b"\x01", b"\xff")
        return made
