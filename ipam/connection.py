"""One client's connection to the daemon: its frames in, the answers out, and how long it may keep silent."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable

from ipam import wire
from ipam.errors import RequestRefused

IDLE_PATIENCE = 10.0  # seconds that a client may take to send its next request, or to read an answer


class Connection(asyncio.Protocol):
    """Greets, then answers one request after another until the client leaves, is silent, or we are told to finish.

    A protocol and no streams: those cost a third of the daemon's time when each request has a connection of its own.
    """

    def __init__(
        self,
        greet: Callable[[Connection, socket.socket], tuple[bytes, bool]],
        answer: Callable[[bytes], Awaitable[bytes]],
        gone: Callable[[Connection], None],
    ) -> None:
        """`greet`: the first frame, and whether requests may follow; `answer`: the frame for a request's body."""
        self._greet = greet
        self._answer = answer
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._answering: asyncio.Task[None] | None = None
        self._last = False  # what is being done now is the last thing
        self._ended = False  # the client asks for nothing more
        self._reads = True  # what is sent to it
        self._active = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = self._loop.call_later(IDLE_PATIENCE, self._look_at_the_clock)
        frame, may_ask = self._greet(self, transport.get_extra_info("socket"))
        self._send(frame)
        if not may_ask:
            self.finish()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._active = self._loop.time()
        self._received += data
        self._next()

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`. The answers to what was asked still go out."""
        self._ended = True
        return self._answering is not None

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`. A client that does not read is asked nothing more, and its silence counts."""
        self._reads = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._reads = True
        self._active = self._loop.time()
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`. A request that is under way goes to its end all the same."""
        self._timer.cancel()
        self._last = True
        if self._answering is None:
            self._gone(self)

    def finish(self) -> None:
        """Close after the answer to the request that is under way, or now if there is none."""
        self._last = True
        if self._answering is None:
            self._transport.close()

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._answering is not None

    def _next(self) -> None:
        """Answer the next request, if it is here and its turn has come."""
        if self._answering is not None:
            if len(self._received) > wire.FRAME_LIMIT:
                self._transport.pause_reading()  # it does not wait for answers, so we wait for it
            return
        if self._last or not self._reads:
            return
        if len(self._received) < wire.HEADER_SIZE:
            self._finish_if_ended()
            return
        try:
            end = wire.HEADER_SIZE + wire.body_size(bytes(self._received[: wire.HEADER_SIZE]))
        except RequestRefused as error:
            self._send(wire.pack(wire.render_failure(error)))
            self.finish()
            return
        if len(self._received) >= end:
            body = bytes(self._received[wire.HEADER_SIZE : end])
            del self._received[:end]
            self._answering = self._loop.create_task(self._respond(body))
        else:
            self._finish_if_ended()

    def _finish_if_ended(self) -> None:
        if self._ended:
            self._transport.close()

    async def _respond(self, body: bytes) -> None:
        if self._has_gone():  # whoever asked has asked elsewhere since: to do it now would undo that
            self._answering = None
            self._transport.abort()
            return
        frame = await self._answer(body)
        self._answering = None
        if self._transport.is_closing():
            self._gone(self)
            return
        self._send(frame)
        if self._last:
            self._transport.close()
            return
        if self._reads:
            self._transport.resume_reading()
        self._next()

    def _has_gone(self) -> bool:
        """Whether the client has closed its connection, not only its own direction."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def _send(self, frame: bytes) -> None:
        self._active = self._loop.time()
        self._transport.write(frame)

    def _look_at_the_clock(self) -> None:
        """Drop a client that has been silent, or has read nothing, for too long; there is nobody to tell."""
        silent = self._loop.time() - self._active
        if self._answering is None and silent >= IDLE_PATIENCE:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(max(IDLE_PATIENCE - silent, IDLE_PATIENCE / 10), self._look_at_the_clock)
