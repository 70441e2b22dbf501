"""docs/ipamd-protocol.md is true to the code: its examples are asked of a real server, its lists are complete."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any, get_args, get_type_hints

import pytest

from cni_bridge.cni.errors import as_cni_error
from ipam import connection, wire
from ipam.client import Client
from ipam.errors import IpamError
from ipam.metrics import Metrics
from ipam.registry import PAGE
from ipam.server import Server
from ipam.settings import Settings
from tests.support.calls import owner, range_sets
from tests.support.node import Node, node_on

TEXT = (Path(__file__).parents[2] / "docs" / "ipamd-protocol.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", TEXT, re.M | re.S))
OPERATIONS = {each.__name__: each for each in get_args(wire.Request)}


def examples(text: str) -> list[Any]:
    return [json.loads(each) for each in re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)]


def kind_of_answer(section: str) -> type[wire.Answer]:
    """The kind that the section names; `Done` if it names none."""
    kinds = {each.__name__: each for each in get_args(wire.Answer)}
    named = re.search(r"^Answer: `(\w+)`", section, re.M)
    return kinds[named[1]] if named else wire.Done


def kinds_of_error(root: type[IpamError] = IpamError) -> list[type[IpamError]]:
    return [root, *(kind for each in root.__subclasses__() for kind in kinds_of_error(each))]


def field_names(kind: Any) -> set[str]:
    """The names of all fields of the type and of what it is made of."""
    names = {each.name for each in fields(kind)} if is_dataclass(kind) else set()
    inner = get_type_hints(kind).values() if is_dataclass(kind) else get_args(kind)
    return names.union(*(field_names(each) for each in inner))


def test_every_operation_has_a_section_and_no_other() -> None:
    assert list(SECTIONS) == list(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_section_shows_its_request_with_all_arguments_and_a_whole_answer(name: str) -> None:
    (message, *answers) = examples(SECTIONS[name])
    request = wire.parse_request(message)
    assert type(request) is OPERATIONS[name]
    assert message[name].keys() == {each.name for each in fields(OPERATIONS[name])}
    for each in answers:
        assert wire.render_answer(wire.parse_answer(kind_of_answer(SECTIONS[name]), each)) == each


def test_the_first_request_shows_every_key() -> None:
    (message, _) = examples(SECTIONS["Allocate"])
    assert wire.render_request(wire.parse_request(message)) == message


def test_the_greeting_and_an_error_are_shown_as_they_are() -> None:
    found = examples(TEXT)
    assert found[0] == wire.GREETING
    with pytest.raises(IpamError) as caught:
        wire.parse_answer(wire.Done, found[-1])
    assert wire.render_failure(caught.value) == found[-1]


def test_every_kind_of_error_is_told_with_its_code_and_no_other() -> None:
    told = {kind: int(code) for kind, code in re.findall(r"^\| `(\w+)` \| (\d+) \|", TEXT, re.M)}
    assert told == {each.__name__: as_cni_error(each("")).code for each in kinds_of_error()}


def test_every_key_is_told() -> None:
    asked = set().union(*(field_names(each) for each in (*get_args(wire.Request), *get_args(wire.Answer))))
    shown = set(re.findall(r'[`"](\w+)[`"]', TEXT))
    assert asked <= shown


def test_the_limits_are_those_of_the_code() -> None:
    table = TEXT.partition("## Times and limits\n")[2].partition("\n## ")[0]
    defaults = Settings()
    for row in (
        f"greeting | {wire.GREETING_PATIENCE:g} s",
        f"{defaults.request_timeout} s by default",
        f"{connection.IDLE_PATIENCE:g} s; then the daemon closes",
        f"{defaults.ipamd.max_clients} by default",
        f"a frame | {wire.FRAME_LIMIT} bytes",
        f"entries or events in an answer | {PAGE} |",
    ):
        assert row in table


def test_a_daemon_answers_the_requests_of_the_page_in_their_order(tmp_path: Path) -> None:
    async def converse(node: Node) -> None:
        stop, path = asyncio.Event(), tmp_path / "ipamd.sock"
        everybody = {"allowed": lambda uid, groups: True, "max_clients": 128, "request_timeout": 30}
        daemon = Server(node.ipam, node.registry, Metrics(node.registry), **everybody)  # type: ignore[arg-type]
        listener = socket(AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        serving = asyncio.create_task(daemon.serve(listener, stop))
        for section in SECTIONS.values():
            kind, request = kind_of_answer(section), wire.parse_request(examples(section)[0])
            assert type(await Client(path, patience=30).ask(kind, request)) is kind
        stop.set()
        await serving

    with node_on(tmp_path) as node:
        node.add(owner("c0", "net0"), sets=range_sets(["10.90.0.0/24"]))
        node.delete(owner("c0", "net0"))  # a network to be forgotten
        node.run(converse(node))
