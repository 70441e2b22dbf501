"""Keys and data of every declared set and map are packed as the kernel has them, and unpacked to the same text."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_bridge.firewall.nftables_elements import declared_types
from cni_bridge.firewall.nftables_layout import TABLES
from cni_bridge.firewall.nftables_lookup import pack_key, unpack

PARTS = {
    "ifname": st.text(st.characters(codec="ascii", exclude_characters='"/ ', exclude_categories=["C", "Z"]))
    .filter(lambda name: 0 < len(name) < 16)
    .map('"{}"'.format),
    "inet_proto": st.sampled_from(["tcp", "udp", "sctp"]),
    "inet_service": st.integers(0, 65535).map(str),
    "ether_addr": st.binary(min_size=6, max_size=6).map(lambda mac: mac.hex(":")),
    "ipv4_addr": st.ip_addresses(v=4).map(str),
    "ipv6_addr": st.ip_addresses(v=6).map(str),
}
BYTES = {"ifname": 16, "inet_proto": 4, "inet_service": 4, "ether_addr": 8, "ipv4_addr": 4, "ipv6_addr": 16}
DECLARED = sorted(
    {
        tuple(types)
        for table in TABLES.values()
        for name in table.sets
        for types in declared_types(table.name, name)
        if types
    }
)


def test_every_type_of_the_layout_is_known_here() -> None:
    assert {kind for types in DECLARED for kind in types} == set(PARTS)


@pytest.mark.parametrize("types", DECLARED, ids=" . ".join)
@given(data=st.data())
def test_unpack_is_the_inverse_of_pack_key(types: tuple[str, ...], data: st.DataObject) -> None:
    parts = data.draw(st.tuples(*(PARTS[each] for each in types)))
    key, kinds = " . ".join(parts), list(types)
    packed = pack_key(key, kinds)
    assert unpack(packed, kinds) == key
    if len(kinds) > 1:
        assert len(packed) == sum(BYTES[each] for each in kinds)
        singles = [pack_key(part, [kind]) for part, kind in zip(parts, kinds, strict=True)]
        assert packed == b"".join(each + bytes(-len(each) % 4) for each in singles)


def test_a_run_is_packed_by_its_first_port() -> None:
    types = ["inet_proto", "inet_service"]
    assert pack_key("tcp . 7000-7019", types) == pack_key("tcp . 7000", types)


def test_a_protocol_that_is_none_of_ours_is_shown_by_its_number() -> None:
    assert unpack(bytes([47, 0, 0, 0, 0, 80]), ["inet_proto", "inet_service"]) == "47 . 80"


@given(st.ip_addresses(v=6))
def test_an_address_is_shown_as_everywhere_else(address: object) -> None:
    shown = unpack(pack_key(str(address), ["ipv6_addr"]), ["ipv6_addr"])
    assert ip_address(shown) == address
