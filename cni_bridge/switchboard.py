"""Takes calls on the daemon's socket: who may call, how many at once, what rides along, and what goes back."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from cni_bridge.frames import BODY_LIMIT, DECLINED, HEADER, BadFrame, Call, parse_call, render_greeting, render_reply

log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 1024  # the rest waits in the socket's backlog
_CLIENT_PATIENCE = 10.0  # seconds that a client may take to send its request, or to read its reply
_PARTING_PATIENCE = 1.0  # seconds that one which was greeted may still take, once we are told to stop
_MOST_DESCRIPTORS = 2
_OTHER_DESCRIPTORS = 48  # that the rest of the process may need
_PAUSE = 0.05  # seconds
_PEER = struct.Struct("=iII")  # struct ucred


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, and the descriptors that came along; they are open as long as the call is served."""

    pid: int
    own_netns: int
    netns: int | None
    since: float  # when the connection was accepted, by the performance counter
    has_gone: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back: the exit status, and what is to be printed."""

    status: int
    stdout: str = ""
    stderr: str = ""


DECLINE = Reply(status=DECLINED)

Serve = Callable[[Call, Caller], Awaitable[Reply]]


class Switchboard:
    """Serves calls; `patience` tells how many seconds a client is to wait for its reply."""

    def __init__(self, serve: Serve, patience: Callable[[], int]) -> None:
        self._serve = serve
        self._patience = patience
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = (descriptors - _OTHER_DESCRIPTORS) // (1 + _MOST_DESCRIPTORS)
        self._most_connections = max(1, min(room, _MOST_CONNECTIONS))
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()  # those that were greeted, and have not asked yet

    async def run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve the listening socket until `stop` is set; then finish what was accepted."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        stopping = asyncio.create_task(stop.wait())
        loop.add_reader(listener, self._accept, listener)
        try:
            await stopping
        finally:
            loop.remove_reader(listener)
            listener.close()
        if self._tasks:
            log.info("finishing %d requests", len(self._tasks))
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=_PARTING_PATIENCE)
            for task in self._waiting:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, listener: socket.socket) -> None:
        if len(self._tasks) >= self._most_connections:
            self._pause(listener)
            return
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):  # it has left
            return
        except OSError as error:
            log.warning("no more connections for a while: %s", error.strerror)
            self._pause(listener)
            return
        connection.setblocking(False)
        pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != os.geteuid():
            log.info("process %d of user %d is not greeted: it has to serve itself", pid, uid)
            connection.close()
            return
        with suppress(OSError):
            connection.send(render_greeting(self._patience()))
        task = asyncio.get_running_loop().create_task(self._converse(connection, pid))
        self._tasks.add(task)
        self._waiting.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._waiting.discard)

    def _pause(self, listener: socket.socket) -> None:
        """Accept nothing for a moment: there is no room, and to try again at once would be all that is done."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # it is not closed
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def _converse(self, connection: socket.socket, pid: int) -> None:
        descriptors: list[int] = []
        since = time.perf_counter()
        try:
            try:
                async with asyncio.timeout(_CLIENT_PATIENCE):
                    body = await _receive_request(connection, descriptors)
            except (OSError, EOFError, BadFrame, TimeoutError) as error:
                if not isinstance(error, EOFError):  # it has left without a word: another daemon's client, or a probe
                    log.warning("process %d asked for nothing: %s", pid, error)
                return
            task = asyncio.current_task()
            assert task is not None
            self._waiting.discard(task)
            reply = await self._answer(body, pid, descriptors, since, partial(_has_gone, connection))
            with suppress(OSError, TimeoutError):  # it has left: its runtime will ask again
                await _send(connection, render_reply(reply.status, reply.stdout, reply.stderr))
        finally:
            connection.close()
            for each in descriptors:
                os.close(each)

    async def _answer(
        self, body: bytes, pid: int, descriptors: list[int], since: float, has_gone: Callable[[], bool]
    ) -> Reply:
        try:
            call = parse_call(body)
        except BadFrame as error:
            log.warning("process %d sent no request: %s", pid, error)
            return DECLINE
        if not descriptors:
            return DECLINE
        own_netns, *others = descriptors
        caller = Caller(
            pid=pid, own_netns=own_netns, netns=others[0] if others else None, since=since, has_gone=has_gone
        )
        return await self._serve(call, caller)


async def _send(connection: socket.socket, frame: bytes) -> None:
    try:
        sent = connection.send(frame)  # which mostly is all, so no time is kept
    except BlockingIOError:
        sent = 0
    if sent < len(frame):
        async with asyncio.timeout(_CLIENT_PATIENCE):
            await asyncio.get_running_loop().sock_sendall(connection, frame[sent:])


async def _receive_request(connection: socket.socket, descriptors: list[int]) -> bytes:
    """The body of the request; what rides along is appended to `descriptors`."""
    header = b""
    while len(header) < HEADER.size:
        await _until_readable(connection)
        data, ancillary, flags, _ = connection.recvmsg(
            HEADER.size - len(header), socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                descriptors += received
        if flags & socket.MSG_CTRUNC:
            raise BadFrame("more descriptors ride along than two")
        if not data:
            raise EOFError
        header += data
    (size,) = HEADER.unpack(header)
    if size > BODY_LIMIT:
        raise BadFrame(f"the request has {size} bytes, more than {BODY_LIMIT}")
    body = bytearray(size)
    view, position = memoryview(body), 0
    while position < size:
        count = await asyncio.get_running_loop().sock_recv_into(connection, view[position:])
        if not count:
            raise EOFError
        position += count
    return bytes(body)


def _has_gone(connection: socket.socket) -> bool:
    """Whether the client has closed the connection, or ended."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


async def _until_readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await readable
    finally:
        loop.remove_reader(connection)
