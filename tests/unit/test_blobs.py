"""Addresses as numbers and as the blobs of the database."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.blobs import blob_number, from_blob, from_number, number_blob, to_blob, to_number, with_prefix

few = settings(max_examples=100, deadline=None, database=None)


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "10.0.0.1", "255.255.255.255", "::", "::1", "fd00::ffff", "::10.0.0.1", "ffff::"]
)
def test_an_address_survives_its_blob_and_its_number(text: str) -> None:
    address = ip_address(text)
    assert len(to_blob(address)) == 16
    assert from_blob(to_blob(address)) == address
    assert from_number(to_number(address)) == address
    assert number_blob(to_number(address)) == to_blob(address)


@pytest.mark.parametrize("text", ["10.0.0.1/24", "0.0.0.1/32", "fd00::1/64", "::1/128", "::/0"])
def test_an_address_with_its_prefix(text: str) -> None:
    expected = ip_interface(text)
    assert with_prefix(ip_address(str(expected.ip)), expected.network.prefixlen) == expected


@pytest.mark.parametrize(
    "texts",
    [
        ["10.0.0.2", "10.0.0.10", "10.0.1.0", "192.0.2.1"],
        ["::2", "::ff", "::100", "fd00::", "fd00::1:0"],
        ["::fffe:ffff:ffff", "0.0.0.0", "255.255.255.255", "::1:0:0:0"],
    ],
    ids=["IPv4", "IPv6", "IPv4 in its place among IPv6"],
)
def test_blobs_and_numbers_sort_as_addresses_do(texts: list[str]) -> None:
    blobs, numbers = ([convert(ip_address(each)) for each in texts] for convert in (to_blob, to_number))
    assert (blobs, numbers) == (sorted(blobs), sorted(numbers))


def test_neighbours_have_neighbouring_numbers() -> None:
    assert to_number(ip_address("10.0.1.0")) - to_number(ip_address("10.0.0.255")) == 1
    assert to_number(ip_address("fd00::1:0")) - to_number(ip_address("fd00::ffff")) == 1


@given(st.lists(st.integers(0, 1 << 128), min_size=1))
@few
def test_number_blobs_are_exact_and_in_order(some: list[int]) -> None:
    assert [blob_number(number_blob(each)) for each in some] == some
    assert [blob_number(each) for each in sorted(map(number_blob, some))] == sorted(some)


def test_the_end_of_the_last_run_sorts_behind_every_address() -> None:
    last = to_number(ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
    assert number_blob(last + 1) > number_blob(last)
    assert blob_number(number_blob(last + 1)) == last + 1
