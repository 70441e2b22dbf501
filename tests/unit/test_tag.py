"""Tags and names that follow from an owner: unique, short, and harmless wherever they are written."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cni_bridge.tag import (
    MAX_LENGTH,
    container_mac,
    host_ifname,
    host_mac,
    key_of_tag,
    network_tag,
    owner_key,
    owner_tag,
    vlan_port_ifname,
)
from ipam.api import Owner
from tests.support.calls import OWNER, owner

OWNERS = (
    OWNER,
    owner("c2"),
    owner("c1", ifname="eth1"),
    owner("c1", network="net2"),
    owner("1c1", network="net"),  # the same characters, cut elsewhere
    owner("c1e", ifname="th0"),
    owner("c" * 300),
    owner("c" * 299 + "d"),
    owner("c1", network="n" * 300),
    owner("c1", ifname='q"uote'),
    owner("c1", ifname="q'uote"),
    owner("c1", ifname="ethä"),
    owner("c1", ifname="a\\b"),
)


@pytest.mark.parametrize("name_of", [owner_tag, owner_key, host_ifname, host_mac, container_mac])
def test_every_owner_has_its_own(name_of: Callable[[Owner], str]) -> None:
    assert len({name_of(each) for each in OWNERS}) == len(OWNERS)


@pytest.mark.parametrize("each", OWNERS, ids=str)
def test_a_tag_is_short_and_needs_no_quoting(each: Owner) -> None:
    tag = owner_tag(each)
    assert len(tag.encode()) <= MAX_LENGTH
    assert re.fullmatch(r"[A-Za-z0-9_.:/?\- ]+", tag)
    assert tag.startswith(network_tag(each.network))
    assert key_of_tag(tag) == owner_key(each)


def test_a_tag_is_readable() -> None:
    assert owner_tag(OWNER).endswith(" net1/c1/eth0")
    assert owner_tag(owner("c1", ifname='a"\n')).endswith(" net1/c1/a??")


def test_a_network_is_not_the_beginning_of_another() -> None:
    assert not owner_tag(owner("c1", network="net11")).startswith(network_tag("net1"))


@pytest.mark.parametrize("each", OWNERS, ids=str)
def test_link_names_fit_the_kernel(each: Owner) -> None:
    for name in (host_ifname(each), vlan_port_ifname(f"{each.network[:10]}.7")):
        assert re.fullmatch(r"veth[0-9a-f]{11}", name)


@pytest.mark.parametrize("each", OWNERS, ids=str)
def test_macs_are_unicast_and_locally_administered(each: Owner) -> None:
    for mac in (host_mac(each), container_mac(each)):
        assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac)
        assert int(mac[:2], 16) & 0b11 == 0b10
    assert host_mac(each) != container_mac(each)
