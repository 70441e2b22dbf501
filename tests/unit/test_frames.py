"""Calls and replies as bytes: what a client sends comes out as it was, and what is no call is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_bridge.frames import (
    GREETING_SIZE,
    BadFrame,
    is_greeting,
    parse_call,
    render_greeting,
    render_reply,
)

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1, max_size=20)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def body(name: str, variables: list[tuple[str, str]], stdin: bytes) -> bytes:
    """A request as a client puts it together."""
    texts = [name, *(f"{key}={value}" for key, value in variables)]
    return b"".join(each.encode() + b"\0" for each in texts) + b"\0" + stdin


@given(VALUES.filter(bool), st.lists(st.tuples(KEYS, VALUES), unique_by=lambda each: each[0]), st.binary())
def test_a_call_comes_out_as_it_was_sent(name: str, variables: list[tuple[str, str]], stdin: bytes) -> None:
    call = parse_call(body(name, variables, stdin))
    assert (call.name, dict(call.environ), call.stdin) == (name, dict(variables), stdin)


def test_of_a_variable_given_twice_the_first_counts_as_with_getenv() -> None:
    assert parse_call(body("n", [("A", "1"), ("A", "2")], b"")).environ == {"A": "1"}


@given(st.binary().filter(lambda each: b"\0\0" not in each and not each.startswith(b"\0")))
def test_an_environment_without_an_end_is_refused(data: bytes) -> None:
    with pytest.raises(BadFrame):
        parse_call(data)


@given(st.binary())
def test_any_bytes_are_a_call_or_refused(data: bytes) -> None:
    try:
        parse_call(data)
    except BadFrame:
        return


@pytest.mark.parametrize(("patience", "sent"), [(32, 32), (0, 0), (100_000, 0xFFFF)])
def test_the_greeting_tells_how_long_to_wait(patience: int, sent: int) -> None:
    greeting = render_greeting(patience)
    assert is_greeting(greeting)
    assert greeting == b"cnib\x01\0" + struct.pack("!H", sent)


@pytest.mark.parametrize("data", [b"", b"cnib\x02\0\0\x20", b"CNIB\x01\0\0\x20", b"cnib\x01", b"cnib\x01\0\0\x20\0"])
def test_what_is_no_greeting(data: bytes) -> None:
    assert not is_greeting(data)
    assert GREETING_SIZE == 8


@given(st.integers(0, 255), st.text(), st.text())
def test_a_reply_has_both_texts_by_their_lengths(status: int, stdout: str, stderr: str) -> None:
    reply = render_reply(status, stdout, stderr)
    out, err, sent = struct.unpack_from("!IIB", reply)
    assert sent == status
    assert reply[9:] == stdout.encode() + stderr.encode()
    assert (out, err) == (len(stdout.encode()), len(stderr.encode()))
