"""The nftables backend: fixed rules over sets and maps, to which each attachment adds elements (`nftables_layout`).

Every element's comment is its owner's tag, or its network's for what holds for a link. The base is declared in every
transaction, so a flush is repaired by the next attachment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cni_bridge.cni.errors import FirewallFailed
from cni_bridge.firewall.forward_accept import (
    ensure_forward_accepted,
    forget_forward_accept,
    missing_forward_accept,
)
from cni_bridge.firewall.libnftables import Nftables, NftError
from cni_bridge.firewall.nftables_elements import (
    Element,
    is_run,
    link_elements,
    listed,
    owned_elements,
    publishing_elements,
)
from cni_bridge.firewall.nftables_layout import INET, LINK_SETS, TABLES, render_base, rule_comment
from cni_bridge.policy import Policy, Publication
from cni_bridge.tag import key_of_tag, network_tag, owner_key
from ipam.api import Address, Owner


class NftablesFirewall:
    """See `Firewall`."""

    def __init__(self) -> None:
        self._nft: Nftables | None = None

    def apply(self, policy: Policy) -> None:
        """See `Firewall.apply`."""
        self._evict_former_owners(policy)
        self._run(_render([policy]), f"apply the rules of {policy.owner}")
        if policy.link is not None:
            ensure_forward_accepted(self._connect(), policy.owner.network, policy.link.link)

    def restore(self, policies: Sequence[Policy]) -> None:
        """See `Firewall.restore`."""
        taken = [
            replace(each, publications=tuple(one for one in each.publications if one not in held))
            for each in policies
            for held in [self.claimed(each.publications, each.owner)]
        ]
        self._run(_render(taken), f"restore the rules of {len(policies)} attachments")
        for network, link in {(each.owner.network, each.link.link) for each in policies if each.link is not None}:
            ensure_forward_accepted(self._connect(), network, link)

    def is_flushed(self) -> bool:
        """See `Firewall.is_flushed`."""
        return not self.unusable() and f"table {INET}\n" not in self._connect().run("list tables")

    def remove(self, policy: Policy) -> None:
        """See `Firewall.remove`."""
        own = owner_key(policy.owner)
        # It may be another owner's by now.
        commands = [each.delete() for each in owned_elements(policy) if key_of_tag(self._comment(each)) == own]
        if commands:
            self._run("\n".join(commands), f"remove the rules of {policy.owner}")

    def missing(self, policy: Policy) -> list[str]:
        """See `Firewall.missing`."""
        owned, (wanted, unwanted) = owned_elements(policy), link_elements(policy)
        found = [
            words for name in dict.fromkeys(each.table for each in (*owned, *wanted)) for words in self._base(name)
        ]
        own, network = owner_key(policy.owner), network_tag(policy.owner.network)
        differing = [each for each in owned if key_of_tag(self._comment(each)) != own]
        differing += [each for each in wanted if not self._comment(each)]
        found += [f"nftables element {each.key} of {each.container}" for each in differing]
        if policy.link is not None:
            found += missing_forward_accept(self._connect(), policy.owner.network, policy.link.link)
        surplus = [each for each in unwanted if key_of_tag(self._comment(each)) == network]
        return found + [
            f"nftables element {each.key} of {each.container} is there and should not be" for each in surplus
        ]

    def claimed(self, publications: Iterable[Publication], owner: Owner) -> dict[Publication, str]:
        """See `Firewall.claimed`."""
        own = owner_key(owner)
        found = (
            (each, next((tag for tag in self._holders(each) if key_of_tag(tag) != own), "")) for each in publications
        )
        return {each: tag for each, tag in found if tag}

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Firewall.collect`."""
        prefix, kept = network_tag(network), {owner_key(each) for each in keep}
        kept.add(prefix)  # what holds for the network's link: see `forget_link`
        self._sweep(lambda each: key_of_tag(each.comment).startswith(prefix) and key_of_tag(each.comment) not in kept)

    def forget(self, owner: Owner) -> None:
        """See `Firewall.forget`."""
        self.evict(owner_key(owner))

    def forget_link(self, network: str) -> None:
        """See `Firewall.forget_link`."""
        if self.unusable():
            return
        own = network_tag(network)
        listed_links = self._listed(INET, "networks", LINK_SETS["networks"])
        links = [each.key.strip('"') for each in listed_links if key_of_tag(each.comment) == own]
        self._sweep(lambda each: key_of_tag(each.comment) == own, only=LINK_SETS)
        if links:
            forget_forward_accept(self._connect(), network, links)

    def evict(self, key: str) -> None:
        """See `Firewall.evict`."""
        self._sweep(lambda each: key_of_tag(each.comment) == key)

    def unusable(self) -> str:
        """See `Firewall.unusable`."""
        try:
            self._connect().run("list tables")
        except (FirewallFailed, NftError) as error:
            return str(error)
        return ""

    def _base(self, table: str) -> Iterator[str]:
        """The rules of the base that are missing, in words."""
        for chain in TABLES[table].chains:
            listing = self._list(f"chain {table} {chain.name}") if chain.rules else []
            present = {each["rule"].get("comment") for each in listing if "rule" in each}
            for comment in map(rule_comment, chain.rules):
                if comment not in present:
                    yield f'nftables rule "{comment}" of chain {chain.name} in table {table}'

    def _sweep(self, stale: Callable[[Element], bool], only: Collection[str] = ()) -> None:
        """Remove what is stale, of `only` these sets if any are named; where nftables does not work, nothing is."""
        if self.unusable():
            return
        for table in TABLES.values():
            commands = [
                each.delete()
                for name, declaration in table.sets.items()
                if not only or name in only
                for each in self._listed(table.name, name, declaration)
                if stale(each)
            ]
            if commands:
                self._run("\n".join(commands), "remove stale rules")

    def _evict_former_owners(self, policy: Policy) -> None:
        """Remove what another owner left for an address of this policy: nobody else has it now."""
        for address in _addresses(policy):
            for name in ("masquerade", "shielded"):
                element = Element(table=INET, set_name=f"{name}{address.version}", key=str(address), comment="")
                former = key_of_tag(self._comment(element))
                if former and former != owner_key(policy.owner):
                    self._sweep(partial(_is_about, former, address))

    def _holders(self, publication: Publication) -> Iterator[str]:
        """The tags of who has a port of the publication.

        What is published at every address has it at each, and the other way round.
        """
        for element in publishing_elements(publication, ""):
            if comment := self._comment(element):
                yield comment
        for other in self._overlapping(publication, publication.address.version):
            yield other.comment

    def _overlapping(self, publication: Publication, family: int) -> Iterator[Element]:
        """The elements of other maps than its own that lead one of the publication's ports somewhere."""
        listed_maps = {f"publish{run}{at}{family}" for run in ("", "_run") for at in ("", "_at")}
        if not is_run(publication):
            # By the key where it is known; only what is published at one address each has keys that are not.
            listed_maps = (
                set() if publication.host_ip is not None else {f"publish_at{family}", f"publish_run_at{family}"}
            )
            for port in range(publication.host_port, publication.host_port + publication.count):
                key = f"{publication.protocol} . {port}"
                looks = [(f"publish_run{family}", key)]
                if publication.host_ip is not None:
                    looks += [(f"publish{family}", key), (f"publish_run_at{family}", f"{publication.host_ip} . {key}")]
                for name, look in looks:
                    element = Element(table=INET, set_name=name, key=look, comment="")
                    if comment := self._comment(element):
                        yield replace(element, comment=comment)
        for name in sorted(listed_maps):
            for each in self._listed(INET, name, "map"):
                if _meets(each.key, publication):
                    yield each

    def _listed(self, table: str, name: str, declaration: str) -> Iterator[Element]:
        return listed(table, name, self._list(f"{declaration.split()[0]} {table} {name}"))

    def _comment(self, element: Element) -> str:
        """The comment of an element, found by its key; empty if it is not there."""
        try:
            # As text: it ignores JSON.
            printed = self._connect().run(f"get element {element.container} {{ {element.key} }}")
        except NftError as error:
            if error.missing:
                return ""
            raise FirewallFailed(f"nftables: cannot read set {element.container}: {error}") from None
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


def _render(policies: Sequence[Policy]) -> str:
    """The commands that make the policies hold: the base, what belongs to owners, and what holds for links."""
    owned = [element for policy in policies for element in owned_elements(policy)]
    shared = [link_elements(policy) for policy in policies]
    wanted = list(dict.fromkeys(each for there, _ in shared for each in there))
    unwanted = dict.fromkeys(each for _, gone in shared for each in gone if each not in wanted)
    tables = dict.fromkeys(each.table for each in (*owned, *wanted))
    commands = [render_base(TABLES[name]) for name in tables]
    for each in unwanted:
        commands += list(each.replace())[:2]  # added and deleted: gone, whether it was there or not
    for each in (*owned, *wanted):
        commands += [each.add()] if each.exclusive else each.replace()
    return "\n".join(commands)


def _addresses(policy: Policy) -> set[Address]:
    return {each.address for each in policy.masquerade} | {each.address for each in policy.shields}


def _is_about(key: str, address: Address, element: Element) -> bool:
    """Whether the element is of the owner with that key and for the address."""
    parts = {element.key.partition(" ")[0], element.data.partition(" ")[0]}
    return key_of_tag(element.comment) == key and str(address) in parts


def _meets(key: str, publication: Publication) -> bool:
    """Whether the key of a publishing map is for one of the publication's ports."""
    *host_ip, protocol, ports = key.split(" . ")
    if protocol != publication.protocol or (
        host_ip and publication.host_ip is not None and host_ip[0] != str(publication.host_ip)
    ):
        return False
    first, _, last = ports.partition("-")
    end = publication.host_port + publication.count
    return int(first) < end and publication.host_port <= int(last or first)
