"""Deletes links of the host, those that go at the same time together: the kernel waits for every CPU each time."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from cni_bridge.cni.errors import CniError, KernelRefused
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.tag import MARK

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 128  # links: the kernel's big lock is held meanwhile


class LinkDeleter:
    """A thread that deletes links. What comes while it works is deleted with one message when it is done.

    It has a socket and a thread of its own, so that others need not wait for the kernel's grace period with it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deleter")
        self._waiting: list[tuple[Sequence[str], asyncio.Future[None]]] = []
        self._work: asyncio.Task[None] | None = None
        self._netlink: Netlink | None = None

    def __enter__(self) -> LinkDeleter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    async def delete(self, names: Sequence[str]) -> None:
        """Delete the links of the host with these names; gone already is success.

        A caller that leaves does not stop it.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((names, done))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._delete_waiting())
        await asyncio.shield(done)

    async def _delete_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
            names = list(dict.fromkeys(name for each, _ in batch for name in each))
            refused = await asyncio.get_running_loop().run_in_executor(self._thread, self._delete, names)
            for wanted, done in batch:
                failure = next((refused[name] for name in wanted if name in refused), None)
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)

    def _delete(self, names: Sequence[str]) -> dict[str, CniError]:
        """The links that the kernel refuses to delete, each with its reason."""
        if self._netlink is None:
            self._netlink = Netlink()
        if len(names) > 1:
            try:
                _delete_together(self._netlink, names)
                return {}
            except CniError as error:
                log.info("deleting %d links one by one: %s", len(names), error.msg)
        refused: dict[str, CniError] = {}
        for name in names:
            try:
                self._netlink.delete_link(name)
            except CniError as error:
                refused[name] = error
        return refused

    def _close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()


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
