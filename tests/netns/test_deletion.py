"""Links are deleted together where several go at once, and never one that is not ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cni_bridge.cni.errors import CniError
from cni_bridge.datapath import netns
from cni_bridge.datapath.deletion import LinkDeleter
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.tag import MARK
from tests.support.host import Host


class Place:
    """A host's namespace that this thread is in, with a deleter and what it was asked by netlink."""

    def __init__(self, host: Host, closing: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        target = closing.enter_context(netns.opened(f"/proc/{host.holder.pid}/ns/net"))
        closing.enter_context(netns.entered(target))
        self.netlink = Netlink()
        closing.callback(self.netlink.close)
        self.deleter = closing.enter_context(LinkDeleter())
        self.groups: list[int] = []
        delete_group = Netlink.delete_group

        def record(netlink: Netlink, group: int) -> None:
            self.groups.append(group)
            delete_group(netlink, group)

        monkeypatch.setattr(Netlink, "delete_group", record)

    def make(self, *names: str, alias: str = f"{MARK}x y") -> None:
        """Make veth pairs with these names and that alias."""
        for name in names:
            self.netlink.add_veth(name, mac="", mtu=0, master=0, peer=f"{name}p", peer_mac="", peer_netns=None)
            self.netlink.set_alias(name, alias)

    def delete(self, *wanted: tuple[str, ...]) -> list[BaseException | None]:
        """Delete these at the same time; what each caller was told."""

        async def work() -> list[BaseException | None]:
            return await asyncio.gather(*map(self.deleter.delete, wanted), return_exceptions=True)

        return asyncio.run(work())

    def names(self) -> set[str]:
        return {each.name for each in self.netlink.links()} - {"lo"}


@pytest.fixture
def place(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with ExitStack() as closing:
        yield Place(host, closing, monkeypatch)


def test_a_single_link_needs_no_group(place: Place) -> None:
    place.make("a", "b")
    assert place.delete(("a",)) == [None]
    assert place.names() == {"b", "bp"}
    assert place.groups == []


def test_links_that_go_at_the_same_time_go_together(place: Place) -> None:
    names = [f"v{number}" for number in range(8)]
    place.make(*names, "stays")
    assert place.delete(*((each,) for each in names)) == [None] * 8
    assert place.names() == {"stays", "staysp"}
    assert len(place.groups) == 1  # all are waiting before the first deletion begins


def test_each_group_is_another_one_that_nobody_chose(place: Place) -> None:
    for _ in range(3):
        place.make("a", "b")
        place.delete(("a", "b"))
    assert len(set(place.groups)) == 3
    assert min(place.groups) >= 1 << 30


def test_a_link_that_is_not_ours_is_not_put_into_the_group(place: Place) -> None:
    place.make("a", "b")
    place.make("other", alias="somebody's")
    index = place.netlink.link("other")
    assert index is not None
    place.netlink.set_link(index.index, group=77)
    place.delete(("a", "b"))
    assert place.names() == {"other", "otherp"}


def test_what_is_gone_already_is_success(place: Place) -> None:
    place.make("a")
    assert place.delete(("a", "gone"), ("gone too",)) == [None, None]
    assert place.names() == set()


def test_what_the_kernel_refuses_is_told_to_its_caller_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("a", "b", "c")

    def refuse(netlink: Netlink, group: int) -> None:
        raise CniError(105, "refused")

    delete_link = Netlink.delete_link

    def refuse_b(netlink: Netlink, name: str) -> bool:
        if name == "b":
            raise CniError(105, "b is refused")
        return delete_link(netlink, name)

    monkeypatch.setattr(Netlink, "delete_group", refuse)
    monkeypatch.setattr(Netlink, "delete_link", refuse_b)
    told = place.delete(("a",), ("b",), ("c",))
    assert [str(each) if each else None for each in told] == [None, "b is refused", None]
    assert place.names() == {"b", "bp"}


def test_a_caller_that_leaves_does_not_stop_the_deletion(place: Place) -> None:
    place.make("a")

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await place.deleter.delete(("a",))
        await asyncio.sleep(0.2)

    asyncio.run(leave())
    assert place.names() == set()
