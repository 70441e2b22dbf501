"""Netlink attributes come back from bytes as they went in, whatever else the bytes are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_bridge.netlink_messages import attribute, iterate_attributes, nested, parse_attributes

KINDS = st.integers(0, 0x3FFF)
ATTRIBUTES = st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=8)


def packed(attributes: list[tuple[int, bytes]]) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in attributes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "0400 0700"),
        (b"\x01", "0500 0700 01000000"),
        (b"\x01\x02\x03\x04", "0800 0700 01020304"),
        (b"\x01\x02\x03\x04\x05", "0900 0700 01020304 05000000"),
    ],
)
def test_an_attribute_tells_its_length_without_the_padding(value: bytes, expected: str) -> None:
    assert attribute(7, value) == bytes.fromhex(expected)


def test_a_nested_attribute_is_marked_and_its_kind_is_found_without_the_mark() -> None:
    made = nested(3, attribute(1, b"\x01"), attribute(2, b""))
    assert made == bytes.fromhex("1000 0380  0500 0100 01000000  0400 0200")
    assert parse_attributes(made) == {3: made[4:]}


@given(ATTRIBUTES)
def test_attributes_are_found_in_order_with_their_values(attributes: list[tuple[int, bytes]]) -> None:
    assert list(iterate_attributes(packed(attributes))) == attributes
    assert parse_attributes(packed(attributes)) == dict(attributes)


@given(KINDS, ATTRIBUTES, ATTRIBUTES)
def test_what_is_nested_is_found_at_its_depth(
    kind: int, inner: list[tuple[int, bytes]], beside: list[tuple[int, bytes]]
) -> None:
    made = nested(kind, *(attribute(*each) for each in inner)) + packed(beside)
    (found_kind, value), *others = iterate_attributes(made)
    assert (found_kind, others) == (kind, beside)
    assert list(iterate_attributes(value)) == inner


@given(st.binary(max_size=200))
def test_any_bytes_end(payload: bytes) -> None:
    found = list(iterate_attributes(payload))
    assert sum(4 + len(value) for _, value in found) <= len(payload)


@given(ATTRIBUTES, st.binary(max_size=3))
def test_what_is_too_short_for_an_attribute_is_none(attributes: list[tuple[int, bytes]], rest: bytes) -> None:
    assert list(iterate_attributes(packed(attributes) + rest)) == attributes
