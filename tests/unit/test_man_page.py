"""packaging/man/cni-bridgectl.1 tells of every command and option of `cni-bridgectl`, and of nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cni_bridge.ctl.main import main

TEXT = (Path(__file__).parents[2] / "packaging" / "man" / "cni-bridgectl.1").read_text()
# A command is a list item that begins with its words, and shows its options as `Fl -option`.
ITEMS = re.findall(r"^\.It Ic ([a-z-]+(?: [a-z-]+)?)(?= (?:Ar|O[op])|$)(.*)\n((?:(?!\.It|\.El).*\n)*)", TEXT, re.M)
SYNOPSES = {name: synopsis for name, synopsis, _ in ITEMS}
TEXTS = {name: text for name, _, text in ITEMS}


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, each in group.commands.items():
        if isinstance(each, click.Group):
            yield from commands(each, f"{before}{name} ")
        else:
            yield f"{before}{name}", each


COMMANDS = dict(commands(main))


def options_of(command: click.Command) -> set[str]:
    return {name for each in command.params if isinstance(each, click.Option) for name in each.opts}


def shown(text: str) -> set[str]:
    return {f"-{each}" for each in re.findall(r"\bFl (-[a-z-]+)", text)}


def test_every_command_has_an_item_and_no_other() -> None:
    assert len(ITEMS) == len(SYNOPSES)
    assert SYNOPSES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_item_shows_the_options_and_arguments_of_its_command(name: str) -> None:
    command = COMMANDS[name]
    assert shown(SYNOPSES[name]) == options_of(command)
    assert shown(TEXTS[name]) <= options_of(command)
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    outside = re.sub(r"Fl -\S+ Ar \S+", "", SYNOPSES[name])
    assert ("Ar " in outside) == bool(arguments)
    assert all(bool(re.search(r"O[op] Ar ", outside)) != each.required for each in arguments)


def test_every_option_is_one_of_the_program() -> None:
    assert shown(TEXT) == {"--help"} | options_of(main).union(*map(options_of, COMMANDS.values()))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_value_that_is_to_be_chosen_from_is_named(command: click.Command) -> None:
    for each in command.params:
        for choice in each.type.choices if isinstance(each.type, click.Choice) else ():
            assert re.search(rf"^\.Li {choice}\b", TEXTS[str(command.name)], re.M)
