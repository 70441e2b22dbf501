"""Links are deleted together where several go at once, and never one that is not ours."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from cni_bridge.cni.errors import CniError
from cni_bridge.datapath import netns
from cni_bridge.datapath.deletion import LinkDeleter, _Wish
from cni_bridge.datapath.departures import Departures
from cni_bridge.datapath.messages import Link
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

    delete_this = Netlink.delete_this

    def refuse_b(netlink: Netlink, link: Link) -> bool:
        if link.name == "b":
            raise CniError(105, "b is refused")
        return delete_this(netlink, link)

    monkeypatch.setattr(Netlink, "delete_group", refuse)
    replace_deletion(monkeypatch, refuse_b)
    told = place.delete(("a",), ("b",), ("c",))
    assert [str(each) if each else None for each in told] == [None, "b is refused", None]
    assert place.names() == {"b", "bp"}


def replace_deletion(monkeypatch: pytest.MonkeyPatch, work: Callable[[Netlink, Link], bool]) -> None:
    monkeypatch.setattr(Netlink, "delete_this", work)


def test_a_caller_is_told_when_nobody_finds_it_not_when_it_is_freed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.make("a", "b")
    delete_this, freed, waited = Netlink.delete_this, threading.Event(), list[bool]()

    def free_late(netlink: Netlink, link: Link) -> bool:
        was_there = delete_this(netlink, link)
        waited.append(freed.wait(30))
        return was_there

    replace_deletion(monkeypatch, free_late)
    assert place.delete(("a",)) == [None]
    assert place.names() == {"b", "bp"}
    assert place.delete(("b",)) == [None]  # though the first thread is not free yet
    assert (place.names(), waited) == (set(), [])
    freed.set()


def test_nothing_else_counts_as_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that had its name before, not another one, not a port that leaves its bridge."""
    place.make("first", "a", "other")
    place.delete(("first",))
    place.netlink.delete_link("a")
    place.make("a")
    place.netlink.add_bridge("br", mac="02:00:00:00:00:01", mtu=0)
    bridge, port = place.netlink.link("br"), place.netlink.link("a")
    assert bridge is not None and port is not None
    place.netlink.set_link(port.index, master=bridge.index)

    def refuse(netlink: Netlink, link: Link) -> bool:
        netlink.set_link(port.index, master=0)
        netlink.delete_link("other")
        raise CniError(105, "refused")

    replace_deletion(monkeypatch, refuse)
    (told,) = place.delete(("a",))
    assert str(told) == "refused"
    assert place.names() == {"a", "ap", "br"}


def test_where_the_kernel_tells_nothing_its_answer_counts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("cni_bridge.datapath.deletion.Departures", refuse)
    place.make("a", "b")
    assert place.delete(("a",), ("b",)) == [None, None]
    assert place.names() == set()


def test_more_news_than_fit_do_no_harm(place: Place) -> None:
    names = [f"v{number}" for number in range(400)]
    place.make("first", *names)
    place.delete(("first",))
    for each in place.netlink.links():
        if each.name in names:
            place.netlink.set_link(each.index, group=7)
    place.netlink.delete_group(7)  # and nobody reads that they are gone
    place.make("a")
    assert place.delete(("a",)) == [None]
    assert place.names() == set()


def test_a_caller_that_leaves_takes_what_was_not_begun_with_him(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("a", "b")
    delete_this, begun = Netlink.delete_this, asyncio.Event()
    loop: list[asyncio.AbstractEventLoop] = []

    def slowly(netlink: Netlink, link: Link) -> bool:
        loop[0].call_soon_threadsafe(begun.set)
        time.sleep(0.2)
        return delete_this(netlink, link)

    replace_deletion(monkeypatch, slowly)
    monkeypatch.setattr("cni_bridge.datapath.deletion._THREADS", 1)

    async def leave() -> None:
        loop.append(asyncio.get_running_loop())
        going = asyncio.create_task(place.deleter.delete(("a",)))
        await begun.wait()
        queued = asyncio.create_task(place.deleter.delete(("b",)))
        await asyncio.sleep(0)
        for each in (queued, going):
            each.cancel()
            await asyncio.wait([each])
            assert each.cancelled()
        assert place.names() == {"b", "bp"}, "what was begun is ended before its caller leaves"

    asyncio.run(leave())


def test_a_name_that_another_link_has_by_now_is_not_meant(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("a", "b")

    def make_anew_then_refuse(netlink: Netlink, group: int) -> None:
        for _ in range(2):
            place.netlink.delete_link("a")
            place.make("a")
        raise CniError(105, "refused")

    monkeypatch.setattr(Netlink, "delete_group", make_anew_then_refuse)
    assert place.delete(("a",), ("b",)) == [None, None]
    assert place.names() == {"a", "ap"}


def test_nobody_is_forgotten_who_comes_when_all_threads_have_just_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    place.make("a", "b")
    monkeypatch.setattr("cni_bridge.datapath.deletion.Departures", refuse)  # so that it is the thread's end that tells
    monkeypatch.setattr("cni_bridge.datapath.deletion._THREADS", 1)
    end = _Wish.end

    async def work() -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end_and_tell(wish: _Wish, failure: CniError | None) -> None:
            if not ended.done():
                ended.set_result(None)
            end(wish, failure)

        async def then() -> None:
            await ended
            await place.deleter.delete(("b",))

        monkeypatch.setattr(_Wish, "end", end_and_tell)
        await asyncio.wait_for(asyncio.gather(then(), place.deleter.delete(("a",))), 10)

    asyncio.run(work())
    assert place.names() == set()


@pytest.mark.timeout(10)
def test_there_is_no_news_after_the_end(place: Place) -> None:
    departures = Departures()
    place.make("a")
    gone = place.netlink.link("a")
    assert gone is not None
    place.netlink.delete_link("a")
    assert gone.index in departures.indexes()
    departures.close()
    assert list(departures.indexes()) == []
