"""Deletes links of the host, those that go at the same time together.

The kernel answers when it has freed them, for which it waits for every CPU, 10 to 20 ms. But nobody can find them any
more after half a millisecond, which it says at once to whoever listens.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from cni_bridge.cni.errors import CniError, KernelRefused, as_cni_error
from cni_bridge.datapath.departures import Departures
from cni_bridge.datapath.messages import Link
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.tag import MARK

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 128  # links: the kernel's big lock is held meanwhile
_THREADS = 8  # that may wait for the kernel at a time, which costs it no more than one does


@dataclass(slots=True, eq=False)
class _Wish:
    """What one caller wants to be gone; `names` are those links of which that is not known yet."""

    names: set[str]
    done: asyncio.Future[None]

    def is_gone(self, name: str) -> None:
        """One of them is."""
        self.names.discard(name)
        if not self.names:
            self.end(None)

    def end(self, failure: CniError | None) -> None:
        """Tell the caller, unless he knows."""
        if self.done.done():
            return
        if failure is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(failure)


class LinkDeleter:
    """Threads that delete links. What comes while all of them wait is deleted with one message by the next.

    They have sockets of their own, so that others need not wait for the kernel with them.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="deleter")
        self._sockets: list[Netlink] = []  # that no thread is using
        self._names: dict[int, str] = {}  # by index, of the links that threads delete
        self._waiting: list[_Wish] = []
        self._going: list[_Wish] = []
        self._working: set[asyncio.Task[None]] = set()
        self._departures: Departures | None = None
        self._listening: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> LinkDeleter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown()
        self._listen_no_more()
        for each in self._sockets:
            each.close()
        if self._departures is not None:
            self._departures.close()

    async def delete(self, names: Sequence[str]) -> None:
        """Return when nobody can find the links of the host with these names any more; gone already is success.

        What was begun is ended, though the caller's time is over: those who come after may make such links anew.
        """
        wish = _Wish(set(names), asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        if len(self._working) < _THREADS:
            task = asyncio.create_task(self._delete_waiting())
            self._working.add(task)
            task.add_done_callback(self._working.discard)
        try:
            await asyncio.shield(wish.done)
        except asyncio.CancelledError:
            if wish in self._waiting:
                self._waiting.remove(wish)
            else:
                await asyncio.wait([wish.done])
            raise

    async def _delete_waiting(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
                await self._delete_batch(batch)
        finally:
            self._working.discard(task)  # at once: who comes now has to find another
            if not self._working:
                self._listen_no_more()

    async def _delete_batch(self, batch: list[_Wish]) -> None:
        loop = asyncio.get_running_loop()
        names = list(dict.fromkeys(name for each in batch for name in each.names))
        self._going += batch
        try:
            self._listen(loop)
            refused = await loop.run_in_executor(self._threads, self._delete, names)
        except Exception as error:  # each caller is told, whatever it is
            refused = dict.fromkeys(names, as_cni_error(error))
        for each in batch:
            self._going.remove(each)
            each.end(next((refused[name] for name in each.names if name in refused), None))

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear what goes; where that is not to be had, the threads tell in the end."""
        if self._listening is not None:
            return
        try:
            if self._departures is None:
                self._departures = Departures()
            loop.add_reader(self._departures, self._hear)
        except OSError as error:
            log.info("the kernel does not tell which links are gone: %s", error.strerror)
            return
        self._listening = loop

    def _listen_no_more(self) -> None:
        if self._listening is not None and not self._listening.is_closed() and self._departures is not None:
            self._listening.remove_reader(self._departures)
        self._listening = None

    def _hear(self) -> None:
        assert self._departures is not None
        for index in self._departures.indexes():
            name = self._names.pop(index, None)
            for each in self._going if name is not None else ():
                if name in each.names:
                    each.is_gone(name)

    def _delete(self, names: Sequence[str]) -> dict[str, CniError]:
        """The links that the kernel refuses to delete, each with its reason; in one of the threads."""
        try:
            netlink = self._sockets.pop()
        except IndexError:
            netlink = Netlink()
        refused: dict[str, CniError] = {}
        links: list[Link] = []
        try:
            for name in names:
                try:
                    link = netlink.link(name)
                except CniError as error:
                    refused[name] = error
                else:
                    links += [link] if link is not None else []
            # From here on by index: as soon as a link is gone, its name may be another one's.
            self._names.update({each.index: each.name for each in links})
            return {**refused, **_delete(netlink, links)}
        finally:
            for each in links:
                self._names.pop(each.index, None)
            self._sockets.append(netlink)


def _delete(netlink: Netlink, links: Sequence[Link]) -> dict[str, CniError]:
    if len(links) > 1:
        try:
            _delete_together(netlink, links)
            return {}
        except CniError as error:
            log.info("deleting %d links one by one: %s", len(links), error.msg)
    refused: dict[str, CniError] = {}
    for link in links:
        try:
            netlink.delete_this(link)
        except CniError as error:
            refused[link.name] = error
    return refused


def _delete_together(netlink: Netlink, links: Sequence[Link]) -> None:
    """Delete the links as one group, which takes as long as one of them.

    It hits whatever is in the group, so the group is a number that nobody else has drawn, the links are put into it
    by their indexes, and those that do not carry our mark are left out.
    """
    group = 1 << 30 | secrets.randbits(30)
    members = [each for each in links if each.alias.startswith(MARK)]
    for link in links:
        if link not in members:
            netlink.delete_this(link)
    for link in members:
        netlink.set_link(link.index, group=group)
    for link in members:
        found = netlink.link_at(link.index)
        if found is not None and (found.name, found.alias, found.group) != (link.name, link.alias, group):
            raise KernelRefused(f"link {link.name} was changed while it was to be deleted")
    if members:
        netlink.delete_group(group)
