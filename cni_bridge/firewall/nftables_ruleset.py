"""The nftables rules of this host: what is there, what is known to be as we left it, and transactions that change them.

What somebody else has changed shows by the number of the rules' generation. Elements are changed by netlink messages of
our own, and only what is no element, or too many of them, by libnftables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from cni_bridge.cni.errors import CniError, FirewallFailed, KernelRefused
from cni_bridge.firewall.forward_accept import legacy_tables
from cni_bridge.firewall.libnftables import Nftables, NftError
from cni_bridge.firewall.nftables_elements import Change, Element, declared_types
from cni_bridge.firewall.nftables_layout import CONDITIONAL_CHAIN, INET, TABLES, rule_comment
from cni_bridge.firewall.nftables_lookup import Lookup
from cni_bridge.policy import LinkPolicy
from cni_bridge.tag import MARK, key_of_tag
from ipam import effects

_FEW_CHANGES = 200  # that fit into one datagram; more are libnftables' to send

Command = Change | str  # text of nft for what is no element


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is another after somebody has changed rules."""

    generation: int
    legacy_tables: tuple[str, ...]


@dataclass(slots=True)
class Known:
    """What is known to be as we left it, as long as the host's rules are in that state."""

    state: State | None = None
    tables: set[str] = field(default_factory=set)
    links: set[tuple[str, LinkPolicy]] = field(default_factory=set)  # what holds for a network's link
    listed: dict[str, list[Element]] = field(default_factory=dict)  # by the set's name

    def forget(self) -> None:
        """Know nothing."""
        self.state = None
        self.tables.clear()
        self.links.clear()
        self.listed.clear()


class Ruleset:
    """In the network namespace of the thread that uses it first; `known` is for its user to keep, see `Known`."""

    def __init__(self) -> None:
        self._nft: Nftables | None = None
        self._lookup: Lookup | None = None
        self.known = Known()

    def close(self) -> None:
        """Close what was opened; in the thread that used it."""
        if self._lookup is not None:
            self._lookup.close()
            self._lookup = None

    def unusable(self) -> str:
        """Why no rules can be made here; empty if they can."""
        if self._lookup is None or self._nft is None:  # what a kernel can do does not change
            try:
                self.libnftables()
                self.look.has_table(INET)
            except CniError as error:
                self.close()
                return error.msg
        return ""

    def missing_base(self, table: str) -> Iterator[str]:
        """The rules of the base that are missing, in words."""
        for chain in TABLES[table].chains:
            present = self.look.rule_comments(table, chain.name)
            for comment in map(rule_comment, chain.rules):
                if comment not in present:
                    yield f'nftables rule "{comment}" of chain {chain.name} in table {table}'

    def listed(self, table: str, name: str) -> Iterator[Element]:
        """The elements of the set or map that are ours."""
        for key, data, comment in self.look.elements(table, name, *declared_types(table, name)):
            if comment.startswith(MARK):
                yield Element(table=table, set_name=name, key=key, comment=comment, data=data)

    def listed_once(self, name: str, state: State) -> list[Element]:
        """The same of the table `inet`, listed only if anybody may have changed it since the last time."""
        known = self.known
        if state != known.state:
            return list(self.listed(INET, name))
        if name not in known.listed:
            known.listed[name] = list(self.listed(INET, name))
        return known.listed[name]

    def comment_of(self, element: Element) -> str:
        """The comment of an element, found by its key; empty if it is not there."""
        return self.look.element_comment(element.table, element.set_name, element.key, element.types)

    def deletions(self, key: str) -> list[str]:
        """The commands that delete the conditional rules of the owner with that key (`tag.owner_key`)."""
        return [
            f"delete rule {INET} {CONDITIONAL_CHAIN} handle {handle}"
            for handle, comment in self.look.rule_handles(INET, CONDITIONAL_CHAIN)
            if key_of_tag(comment) == key
        ]

    def run(self, commands: Sequence[Command], purpose: str, before: State) -> None:
        """Run the commands as one transaction; `before` is the state that they were chosen in.

        `FirewallFailed` if that cannot be done, and then nothing is.
        """
        if not commands:
            return
        changes = [each for each in commands if isinstance(each, Change)]
        try:
            if len(changes) == len(commands) and are_few(changes):
                self.run_changes(changes, purpose, before)
                return
            effects.change(purpose)
            self.libnftables().run("\n".join(map(str, commands)))
        except (NftError, KernelRefused) as error:
            self.known.forget()
            raise FirewallFailed(f"nftables: cannot {purpose}: {error}") from None
        self._note(changes, before)

    def run_changes(self, changes: Sequence[Change], purpose: str, before: State) -> None:
        """Make the changes, which `are_few`, as one transaction without libnftables, whose text takes long to read.

        `KernelRefused` where the kernel does not agree.
        """
        effects.change(purpose)
        self.look.make_changes(changes, purpose)
        self._note(changes, before)

    def _note(self, changes: Iterable[Change], before: State) -> None:
        """Know what the transaction has changed."""
        known = self.known
        for each in changes:
            known.listed.pop(each.element.set_name, None)
        if before != known.state:
            return
        # Unless somebody else came between, which shows next time. What only adds may have changed nothing.
        surely = not changes or any(each.deletes or each.creates for each in changes)
        known.state = replace(before, generation=before.generation + 1) if surely else None

    def state(self) -> State:
        """What the rules are in now."""
        return State(generation=self.look.generation(), legacy_tables=legacy_tables())

    @property
    def look(self) -> Lookup:
        """What asks the kernel; `KernelRefused` where there is no nftables."""
        if self._lookup is None:
            self._lookup = Lookup()
        return self._lookup

    def libnftables(self) -> Nftables:
        """What takes text; `FirewallFailed` where it is not installed."""
        if self._nft is None:
            try:
                self._nft = Nftables()
            except OSError as error:
                raise FirewallFailed(
                    f"nftables: {error}; install libnftables1, or set ipMasqBackend to iptables"
                ) from None
        return self._nft


def are_few(changes: Sequence[Change]) -> bool:
    """Whether there are changes, and few enough for one message to the kernel."""
    return 0 < len(changes) <= _FEW_CHANGES
