"""The interface of the firewall backends: whole attachments, never single rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from cni_bridge.policy import Policy, Publication
from ipam.api import Owner


class Firewall(Protocol):
    """One backend; each change is made as a whole, and failures are `FirewallFailed`."""

    def apply(self, policy: Policy) -> None:
        """Make the policy hold; a repeat changes nothing, and what a former owner of the address left does no harm."""

    def restore(self, policies: Sequence[Policy]) -> None:
        """Make all of these policies hold, as they did before; ports that somebody else has by now stay his."""

    def is_flushed(self) -> bool:
        """Whether the base that all policies share is gone, or has never been there."""

    def remove(self, policy: Policy) -> None:
        """Remove what `apply` made; what is gone already is success."""

    def missing(self, policy: Policy) -> list[str]:
        """What of the policy, or of the base that all policies share, is not there; changes nothing."""

    def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """Remove the rules of owners in this network that are not in `keep`."""

    def forget(self, owner: Owner) -> None:
        """Remove the owner's rules, found by their marks: for when nothing tells what they are."""

    def claimed(self, publications: Collection[Publication], owner: Owner) -> dict[Publication, str]:
        """The publications of whose host ports another owner has one, with that owner's tag."""

    def network_links(self, network: str) -> Collection[str]:
        """The links that something holds for in this network's name."""

    def forget_link(self, network: str) -> Collection[str]:
        """Remove what holds for the network's links; nobody is attached to it any more. The links that it was for."""

    def evict(self, key: str) -> None:
        """Remove the rules that carry an owner's key, of which nothing else is known."""

    def unusable(self) -> str:
        """Why this backend cannot work on this host; empty if it can."""
