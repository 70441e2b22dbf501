"""The nftables backend: fixed rules over sets and maps, to which each attachment adds elements (`nftables_layout`).

Every element's comment is its owner's tag, or its network's for what holds for a link. The base is looked at whenever
somebody else may have changed rules, and declared where it is not whole, so a flush is repaired by the next attachment.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from cni_bridge.cni.errors import FirewallFailed, KernelRefused
from cni_bridge.firewall.forward_accept import (
    ensure_forward_accepted,
    forget_forward_accept,
    missing_forward_accept,
)
from cni_bridge.firewall.nftables_elements import (
    Claims,
    Element,
    conditional_rules,
    is_run,
    link_elements,
    owned_elements,
)
from cni_bridge.firewall.nftables_layout import CONDITIONAL_CHAIN, INET, LINK_SETS, TABLES, render_base
from cni_bridge.firewall.nftables_ruleset import Command, Ruleset, State, are_few
from cni_bridge.policy import LinkPolicy, Policy, Publication
from cni_bridge.tag import key_of_tag, network_tag, owner_key
from ipam.api import Address, Owner

_FEW = 32  # ports that are looked up one by one; for more, the maps are listed


class NftablesFirewall:
    """See `Firewall`."""

    def __init__(self) -> None:
        self._rules = Ruleset()

    def close(self) -> None:
        """Close what was opened; in the thread that used it."""
        self._rules.close()

    def apply(self, policy: Policy) -> None:
        """See `Firewall.apply`."""
        if self._apply_anew(policy):
            return
        self._evict_former_owners(policy)
        stale = self._rules.deletions(owner_key(policy.owner)) if any(conditional_rules(policy)) else []
        self._declare([policy], stale, f"apply the rules of {policy.owner}")

    def restore(self, policies: Sequence[Policy]) -> None:
        """See `Firewall.restore`."""
        taken = [
            replace(each, publications=tuple(one for one in each.publications if one not in held))
            for each in policies
            for held in [self.claimed(each.publications, each.owner)]
        ]
        keys = {owner_key(each.owner) for each in policies if any(conditional_rules(each))}
        stale = [command for key in keys for command in self._rules.deletions(key)]
        self._rules.known.forget()
        self._declare(taken, stale, f"restore the rules of {len(policies)} attachments")

    def is_flushed(self) -> bool:
        """See `Firewall.is_flushed`."""
        return not self.unusable() and not self._rules.look.has_table(INET)

    def remove(self, policy: Policy) -> None:
        """See `Firewall.remove`."""
        own = owner_key(policy.owner)
        # It may be another owner's by now.
        commands: list[Command] = [
            each.delete() for each in owned_elements(policy) if key_of_tag(self._rules.comment_of(each)) == own
        ]
        commands += self._rules.deletions(own) if any(conditional_rules(policy)) else []
        if commands:
            self._rules.run(commands, f"remove the rules of {policy.owner}", self._rules.state())

    def missing(self, policy: Policy) -> list[str]:
        """See `Firewall.missing`."""
        owned, (wanted, unwanted) = owned_elements(policy), link_elements(policy)
        found = [
            words
            for name in dict.fromkeys(each.table for each in (*owned, *wanted))
            for words in self._rules.missing_base(name)
        ]
        own, network = owner_key(policy.owner), network_tag(policy.owner.network)
        differing = [each for each in owned if key_of_tag(self._rules.comment_of(each)) != own]
        differing += [each for each in wanted if not self._rules.comment_of(each)]
        found += [f"nftables element {each.key} of {each.container}" for each in differing]
        if policy.link is not None:
            found += missing_forward_accept(
                self._rules.libnftables(), self._rules.look, policy.owner.network, policy.link.link
            )
        conditional = list(conditional_rules(policy))
        if conditional and len(self._rules.deletions(own)) != len(conditional):
            found.append(f"nftables rules in chain {CONDITIONAL_CHAIN} that publish on a condition")
        surplus = [each for each in unwanted if key_of_tag(self._rules.comment_of(each)) == network]
        surplus += self._links_not_trusted(policy)
        return found + [
            f"nftables element {each.key} of {each.container} is there and should not be" for each in surplus
        ]

    def claimed(self, publications: Collection[Publication], owner: Owner) -> dict[Publication, str]:
        """See `Firewall.claimed`."""
        own, found = owner_key(owner), {}
        for family in {each.address.version for each in publications}:
            asked = [each for each in publications if each.address.version == family and not each.condition]
            few = sum(each.count for each in asked) <= _FEW and not any(map(is_run, asked))
            claims = Claims(self._looked_up(asked, family) if few else self._listed_publications(family))
            for each in asked:
                tags = (tag for tag in claims.meeting(each) if key_of_tag(tag) != own)
                if tag := next(tags, ""):
                    found[each] = tag
        return found

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Firewall.collect`."""
        prefix, kept = network_tag(network), {owner_key(each) for each in keep}
        kept.add(prefix)  # what holds for the network's link: see `forget_link`
        self._sweep(lambda each: key_of_tag(each.comment).startswith(prefix) and key_of_tag(each.comment) not in kept)

    def forget(self, owner: Owner) -> None:
        """See `Firewall.forget`."""
        self.evict(owner_key(owner))

    def network_links(self, network: str) -> Collection[str]:
        """See `Firewall.network_links`."""
        if self.unusable():
            return ()
        own = network_tag(network)
        return [each.key.strip('"') for each in self._rules.listed(INET, "networks") if key_of_tag(each.comment) == own]

    def forget_link(self, network: str) -> Collection[str]:
        """See `Firewall.forget_link`."""
        links = self.network_links(network)
        if self.unusable():
            return ()
        own = network_tag(network)
        self._rules.known.forget()
        self._sweep(lambda each: key_of_tag(each.comment) == own, only=LINK_SETS)
        if links:
            forget_forward_accept(self._rules.libnftables(), self._rules.look, network, links)
        return links

    def evict(self, key: str) -> None:
        """See `Firewall.evict`."""
        self._sweep(lambda each: key_of_tag(each.comment) == key)

    def unusable(self) -> str:
        """See `Firewall.unusable`."""
        return self._rules.unusable()

    def _sweep(self, stale: Callable[[Element], bool], only: Collection[str] = ()) -> None:
        """Remove what is stale, of `only` these sets if any are named; where nftables does not work, nothing is."""
        if self.unusable():
            return
        for handle, comment in self._rules.look.rule_handles(INET, CONDITIONAL_CHAIN) if not only else ():
            element = Element(table=INET, set_name=CONDITIONAL_CHAIN, key="", comment=comment)
            if stale(element):
                command = f"delete rule {INET} {CONDITIONAL_CHAIN} handle {handle}"
                self._rules.run([command], "remove stale rules", self._rules.state())
        for table in TABLES.values():
            commands = [
                each.delete()
                for name in table.sets
                if not only or name in only
                for each in self._rules.listed(table.name, name)
                if stale(each)
            ]
            if commands:
                self._rules.run(commands, "remove stale rules", self._rules.state())

    def _evict_former_owners(self, policy: Policy) -> None:
        """Remove what another owner left for an address of this policy: nobody else has it now."""
        for address in _addresses(policy):
            for element in _traces_of(address):
                former = key_of_tag(self._rules.comment_of(element))
                if former and former != owner_key(policy.owner):
                    self._sweep(partial(_is_about, former, address))

    def _looked_up(self, publications: Iterable[Publication], family: int) -> Iterator[Element]:
        """The elements that lead one of these ports somewhere, found by their keys where those are known.

        What is published at every address has a port at each, and the other way round.
        """
        for publication in publications:
            for port in range(publication.host_port, publication.host_port + publication.count):
                key = f"{publication.protocol} . {port}"
                looks = [(f"publish{family}", key), (f"publish_run{family}", key)]
                if publication.host_ip is not None:
                    at = f"{publication.host_ip} . {key}"
                    looks += [(f"publish_at{family}", at), (f"publish_run_at{family}", at)]
                for name, look in looks:
                    element = Element(table=INET, set_name=name, key=look, comment="")
                    if comment := self._rules.comment_of(element):
                        yield replace(element, comment=comment)
        if any(each.host_ip is None for each in publications):
            state = self._rules.state()
            for name in (f"publish_at{family}", f"publish_run_at{family}"):  # at which addresses is not known
                yield from self._rules.listed_once(name, state)

    def _listed_publications(self, family: int) -> Iterator[Element]:
        """Every element that leads a port somewhere."""
        for name in (f"publish{run}{at}{family}" for run in ("", "_run") for at in ("", "_at")):
            yield from self._rules.listed(INET, name)

    def _links_not_trusted(self, policy: Policy) -> list[Element]:
        """The elements for links that this network trusted and no longer does."""
        if policy.link is None or policy.link.trusted is None:
            return []
        wanted = {each.key for each in link_elements(policy)[0]}
        own, link = network_tag(policy.owner.network), f'"{policy.link.link}"'
        return [
            each
            for each in self._rules.listed(INET, "trusted")
            if key_of_tag(each.comment) == own and each.key.endswith(link) and each.key not in wanted
        ]

    def _apply_anew(self, policy: Policy) -> bool:
        """Make the policy hold where nobody has had any of it yet, and all that it rests on is as we left it.

        Whether that was so: if not, nothing was done.
        """
        known, state = self._rules.known, self._rules.state()
        if state != known.state or any(conditional_rules(policy)):
            return False
        if policy.link is not None and _place(policy) not in self._lasting_links(state):
            return False
        changes = [each.add_new() for each in owned_elements(policy)]
        if not are_few(changes) or not {each.element.table for each in changes} <= known.tables:
            return False
        created = {(each.element.set_name, each.element.key) for each in changes}
        traces = [each for address in _addresses(policy) for each in _traces_of(address)]
        if any(self._rules.comment_of(each) for each in traces if (each.set_name, each.key) not in created):
            return False
        try:
            self._rules.run_changes(changes, f"apply the rules of {policy.owner}", state)
        except KernelRefused as error:
            if error.errno in (errno.EEXIST, errno.ENOENT):  # or somebody has flushed the base just now
                return False
            known.forget()
            raise FirewallFailed(f"nftables: cannot apply the rules of {policy.owner}: {error.msg}") from None
        return True

    def _lasting_links(self, state: State) -> set[tuple[str, LinkPolicy]]:
        """What holds for a link and need not be said again.

        Nothing tells whether somebody changed legacy iptables: where it filters, its chains are looked at each time.
        """
        return self._rules.known.links if not any("filter" in each.split() for each in state.legacy_tables) else set()

    def _declare(self, policies: Sequence[Policy], stale: Sequence[str], purpose: str) -> None:
        """Make the policies hold in one transaction; what was `stale` goes before.

        As long as nobody else has changed any rules, the base and what holds for a link are as we left them, and need
        not be said again. Otherwise the base is looked at, which takes less than to declare it.
        """
        known, state = self._rules.known, self._rules.state()
        if state != known.state:
            known.forget()
        owned = [each for policy in policies for each in owned_elements(policy)]
        places = {_place(each): each for each in policies if each.link is not None}
        lasting = self._lasting_links(state)
        links = {place: each for place, each in places.items() if place not in lasting}
        shared = [link_elements(each) for each in links.values()]
        tables = {each.table for each in owned} | {each.table for there, _ in shared for each in there}
        torn = [table for table in tables - known.tables if any(self._rules.missing_base(table))]
        distrusted = [each.delete() for policy in links.values() for each in self._links_not_trusted(policy)]
        base = (render_base(TABLES[table]) for table in torn)
        known.state = state
        self._rules.run([*base, *stale, *distrusted, *_commands(policies, owned, shared)], purpose, state)
        for network, link in links:
            ensure_forward_accepted(self._rules.libnftables(), self._rules.look, network, link.link)
        known.tables.update(tables)
        known.links.update(links)


def _place(policy: Policy) -> tuple[str, LinkPolicy]:
    assert policy.link is not None
    return policy.owner.network, policy.link


def _commands(
    policies: Sequence[Policy],
    owned: Sequence[Element],
    shared: Sequence[tuple[tuple[Element, ...], tuple[Element, ...]]],
) -> list[Command]:
    """The commands that make the policies hold: what belongs to owners, and what holds for links."""
    wanted = list(dict.fromkeys(each for there, _ in shared for each in there))
    unwanted = dict.fromkeys(each for _, gone in shared for each in gone if each not in wanted)
    commands: list[Command] = []
    for each in unwanted:
        commands += list(each.replace())[:2]  # added and deleted: gone, whether it was there or not
    for each in (*owned, *wanted):
        commands += [each.add()] if each.exclusive else each.replace()
    commands += [
        f"add rule {INET} {CONDITIONAL_CHAIN} {rule}" for policy in policies for rule in conditional_rules(policy)
    ]
    return commands


def _traces_of(address: Address) -> Iterator[Element]:
    """By what a former owner of the address is found."""
    for name in ("masquerade", "shielded"):
        yield Element(table=INET, set_name=f"{name}{address.version}", key=str(address), comment="")


def _addresses(policy: Policy) -> set[Address]:
    return {each.address for each in policy.masquerade} | {each.address for each in policy.shields}


def _is_about(key: str, address: Address, element: Element) -> bool:
    """Whether the element is of the owner with that key and for the address."""
    parts = {element.key.partition(" ")[0], element.data.partition(" ")[0]}
    return key_of_tag(element.comment) == key and str(address) in parts
