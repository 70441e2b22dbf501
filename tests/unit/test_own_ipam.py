"""What a root process ends for a daemon that may only mark: leases of earlier boots whose namespaces are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_bridge import own_ipam
from ipam.api import Address, NetnsRef, Owner
from ipam.local_registry import LocalRegistry
from ipam.registry import Registry, State
from tests.support.calls import owner, range_sets
from tests.support.node import Node, netns, node_on, wanted

GRACE = 60
SETS = range_sets(["10.0.0.0/29"], ["fd00::/125"])
A, B = ["10.0.0.2", "fd00::2"], ["10.0.0.3", "fd00::3"]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Where `a` and `b` have addresses, and the address management only marks."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with node_on(tmp_path, suspect_grace=GRACE) as made:
        monkeypatch.setattr(own_ipam, "now", made.clock)
        for name in "ab":
            made.add(name, sets=SETS, netns=netns(name))
        yield made


def rebooted(node: Node, *gone: NetnsRef) -> None:
    """The host is booted anew without these namespaces, and a first look has marked what was in them."""
    node.clock.reboot()
    node.host.gone = set(gone)
    node.run(node.ipam.reconcile())


def end_marked(node: Node, registry: Registry | None = None, network: str = "net1") -> None:
    node.run(own_ipam.end_marked(registry or node.registry, network, node.host, GRACE))


@pytest.mark.parametrize(("seconds", "stay"), [(GRACE - 1, [*A, *B]), (GRACE, B)], ids=["too recently", "long ago"])
def test_a_marked_lease_of_an_earlier_boot_ends_when_the_grace_is_over(
    node: Node, seconds: float, stay: list[str]
) -> None:
    rebooted(node, netns("a"))
    node.clock.seconds += seconds
    end_marked(node)
    assert sorted(node.holders()) == sorted(stay)
    assert {node.states()[each] for each in A} == {State.LEASED if A[0] in stay else State.COOLING}


def test_a_marked_lease_whose_namespace_is_seen_again_stays(node: Node) -> None:
    rebooted(node, netns("a"), netns("b"))
    node.clock.seconds += GRACE
    node.host.gone = {netns("b")}
    end_marked(node)
    assert set(node.holders().values()) == {"a"}


def test_a_lease_that_nobody_has_marked_stays_unmarked(node: Node) -> None:
    node.clock.reboot()
    node.host.gone = {netns("a"), netns("b")}
    node.clock.seconds += 1000
    before = node.dump()
    end_marked(node)
    assert node.dump() == before


def test_a_lease_that_was_confirmed_in_this_boot_stays(node: Node) -> None:
    rebooted(node, netns("a"), netns("b"))
    node.add("a", sets=SETS, netns=netns("a", inode=2))
    node.host.gone |= {netns("a", inode=2)}
    node.clock.seconds += GRACE
    end_marked(node)
    assert set(node.holders().values()) == {"a"}


def test_only_the_leases_of_the_network_are_ended(node: Node) -> None:
    node.add(owner("a", "net2"), sets=range_sets(["10.1.0.0/29"]), netns=netns("a"))
    rebooted(node, netns("a"))
    node.clock.seconds += GRACE
    end_marked(node, network="net2")
    assert (node.holders("net2"), sorted(node.holders())) == ({}, sorted([*A, *B]))


def test_a_lease_that_ends_while_it_is_looked_at_hinders_no_other(node: Node) -> None:
    class Overtaken(LocalRegistry):
        """Before the first lease is taken back, its owner releases it and another gets its address."""

        overtaken = False

        async def take_back(self, owner: Owner, address: Address) -> None:
            if not self.overtaken:
                self.overtaken = True
                await super().take_back(owner, address)
                await node.ipam.allocate(wanted("c", str(address), sets=SETS[:1], netns=netns("c")))
            await super().take_back(owner, address)

    rebooted(node, netns("a"), netns("b"))
    node.clock.seconds += GRACE
    end_marked(node, Overtaken(node.store, node.settings, node.host, clock=node.clock))
    assert node.holders() == {"10.0.0.2": "c"}
