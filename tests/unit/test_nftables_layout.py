"""The fixed part of the nftables rules: it hangs together, and declaring it keeps what is the administrator's."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from cni_bridge.firewall.nftables_layout import ADMIN_CHAIN, INET, TABLES, Chain, Table, render_base, rule_comment

CHAINS = [(table, chain) for table in TABLES.values() for chain in table.chains]
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


def used_by(table: Table) -> set[str]:
    """The sets and maps that the table's rules name."""
    return {name for chain in table.chains for rule in chain.rules for name in re.findall(r"@(\w+)", rule)}


@pytest.mark.parametrize(("table", "chain"), CHAINS, ids=[f"{chain.name} of {table.name}" for table, chain in CHAINS])
def test_each_rule_of_a_chain_has_a_comment_of_its_own(table: Table, chain: Chain) -> None:
    comments = [rule_comment(rule) for rule in chain.rules]
    assert len(set(comments)) == len(comments)
    assert all(
        re.search(f'comment "{re.escape(each)}"$', rule) for each, rule in zip(comments, chain.rules, strict=True)
    )
    assert all(0 < len(each) <= 127 for each in comments)  # nftables takes no longer one
    assert not re.search(r"\b(IP|N|ADDRESS)\b|@\w+N\b", "\n".join(chain.rules))


@each_table
def test_every_set_is_used_by_a_rule_and_every_one_used_is_declared(table: Table) -> None:
    assert used_by(table) == set(table.sets)


@each_table
def test_a_map_gives_an_address_to_dnat_and_a_set_is_looked_into(table: Table) -> None:
    for chain in table.chains:
        for rule in chain.rules:
            for before, name in re.findall(r"(\S+) @(\w+)", rule):
                assert (before == "map") == table.sets[name].startswith("map "), rule


@each_table
def test_every_jump_leads_to_a_chain_and_every_chain_without_hook_is_jumped_to(table: Table) -> None:
    jumps = {name for chain in table.chains for rule in chain.rules for name in re.findall(r"jump (\w+)", rule)}
    assert jumps == {chain.name for chain in table.chains if not chain.hook}


@pytest.mark.parametrize(("family", "other"), [("4", "6"), ("6", "4")])
@each_table
def test_what_one_family_has_the_other_has_too(table: Table, family: str, other: str) -> None:
    one = {name: text for name, text in table.sets.items() if family in name}
    both = {name.replace(family, other): text.replace(f"ipv{family}", f"ipv{other}") for name, text in one.items()}
    assert both.items() <= table.sets.items()


@each_table
def test_rules_of_a_family_look_into_that_familys_sets(table: Table) -> None:
    for chain in table.chains:
        for rule in chain.rules:
            families = set(re.findall(r"@\w*([46])", rule))
            keywords = set(re.findall(r"\b(ip6?) [sd]addr", rule)) | set(re.findall(r"dnat (ip6?) to", rule))
            assert len(families) < 2, rule
            assert not (families == {"4"} and "ip6" in keywords), rule
            assert not (families == {"6"} and "ip" in keywords), rule


@each_table
def test_only_runs_are_in_interval_sets(table: Table) -> None:
    assert {name for name, text in table.sets.items() if "interval" in text} == {
        name for name in table.sets if "_run" in name
    }


@each_table
def test_declaring_the_base_rewrites_the_chains_with_rules_of_ours_and_keeps_those_of_others(table: Table) -> None:
    commands = render_base(table).splitlines()
    flushed = {command.rpartition(" ")[2] for command in commands if command.startswith("flush ")}
    assert flushed == {chain.name for chain in table.chains if chain.rules}
    assert all(command.split()[0] in ("add", "flush") for command in commands)  # `add` leaves elements as they are
    assert not any(command.startswith(f"add rule {table.name} {ADMIN_CHAIN} ") for command in commands)
    kinds = ["table", "set map", "chain", "rule"]
    order = [next(i for i, kind in enumerate(kinds) if each.split()[1] in kind) for each in commands]
    assert all(one <= following for one, following in pairwise(order))  # what a rule names is there before it


@pytest.fixture
def forward() -> tuple[str, ...]:
    """The rules that forwarded packets pass."""
    [chain] = [chain for chain in TABLES[INET].chains if chain.name == "forward"]
    return chain.rules


def test_the_administrators_chain_comes_before_every_rule_of_ours(forward: tuple[str, ...]) -> None:
    assert forward[0].startswith(f"jump {ADMIN_CHAIN} ")


def test_what_was_let_in_by_an_earlier_packet_passes_before_what_may_drop_it(forward: tuple[str, ...]) -> None:
    drops = [position for position, rule in enumerate(forward) if " drop " in rule]
    [established] = [position for position, rule in enumerate(forward) if "established" in rule]
    assert established < min(drops)


def test_the_shields_come_last(forward: tuple[str, ...]) -> None:
    assert ["@shielded" in rule for rule in forward] == [False] * (len(forward) - 2) + [True] * 2
