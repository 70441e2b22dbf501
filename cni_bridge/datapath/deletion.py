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
        self._waiting: list[_Wish] = []
        self._going: list[_Wish] = []
        self._working: set[asyncio.Task[None]] = set()
        self._departures: Departures | None = None

    def __enter__(self) -> LinkDeleter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown()
        for each in self._sockets:
            each.close()
        if self._departures is not None:
            self._departures.close()

    async def delete(self, names: Sequence[str]) -> None:
        """Return when nobody can find links of the host with these names any more; gone already is success.

        A caller that leaves does not stop it.
        """
        wish = _Wish(set(names), asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        if len(self._working) < _THREADS:
            task = asyncio.create_task(self._delete_waiting())
            self._working.add(task)
            task.add_done_callback(self._working.discard)
        await asyncio.shield(wish.done)

    async def _delete_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
            names = list(dict.fromkeys(name for each in batch for name in each.names))
            self._listen(loop)
            self._going += batch
            try:
                refused = await loop.run_in_executor(self._threads, self._delete, names)
            except Exception as error:  # each caller is told, whatever it is
                refused = dict.fromkeys(names, as_cni_error(error))
            for each in batch:
                self._going.remove(each)
                each.end(next((refused[name] for name in each.names if name in refused), None))
            if not self._going and self._departures is not None:
                loop.remove_reader(self._departures)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear what goes from now on; where that is not to be had, the threads tell in the end."""
        try:
            if self._departures is None:
                self._departures = Departures()
        except OSError as error:
            log.info("the kernel does not tell which links are gone: %s", error.strerror)
            return
        self._hear()  # what went before, and may have been made anew, is not meant
        loop.add_reader(self._departures, self._hear)

    def _hear(self) -> None:
        assert self._departures is not None
        for name in self._departures.names():
            for each in self._going:
                if name in each.names:
                    each.is_gone(name)

    def _delete(self, names: Sequence[str]) -> dict[str, CniError]:
        """The links that the kernel refuses to delete, each with its reason; in one of the threads."""
        netlink = self._sockets.pop() if self._sockets else Netlink()
        try:
            return _delete(netlink, names)
        finally:
            self._sockets.append(netlink)


def _delete(netlink: Netlink, names: Sequence[str]) -> dict[str, CniError]:
    if len(names) > 1:
        try:
            _delete_together(netlink, names)
            return {}
        except CniError as error:
            log.info("deleting %d links one by one: %s", len(names), error.msg)
    refused: dict[str, CniError] = {}
    for name in names:
        try:
            netlink.delete_link(name)
        except CniError as error:
            refused[name] = error
    return refused


def _delete_together(netlink: Netlink, names: Sequence[str]) -> None:
    """Delete the links as one group, which takes as long as one of them.

    It hits whatever is in the group, so the group is a number that nobody else has drawn, the links are put into it
    by their indexes, and those that do not carry our mark are left out.
    """
    group = 1 << 30 | secrets.randbits(30)
    members = []
    for name in names:
        link = netlink.link(name)
        if link is None:
            continue
        if not link.alias.startswith(MARK):
            netlink.delete_link(name)
            continue
        netlink.set_link(link.index, group=group)
        members.append(link)
    for link in members:
        found = netlink.link_at(link.index)
        if found is not None and (found.name, found.alias, found.group) != (link.name, link.alias, group):
            raise KernelRefused(f"link {link.name} was changed while it was to be deleted")
    if members:
        netlink.delete_group(group)
