"""Asks `ipamd` over its Unix socket: one connection a request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

from ipam import wire
from ipam.codec import Json
from ipam.errors import IpamError, RequestRefused, ServiceBroken, ServiceUnavailable

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """Asks the IPAM service that listens on `path`; `patience`: seconds for one request.

    `ServiceUnavailable` says that nothing was handed over: no daemon is there, or it does not greet in time.
    """

    def __init__(self, path: Path, *, patience: float) -> None:
        self._path = path
        self._patience = patience

    async def is_served(self) -> bool:
        """Whether a daemon greets there."""
        try:
            _, writer = await self._connect()
        except ServiceUnavailable:
            return False
        writer.close()
        return True

    async def ask(self, kind: type[T], request: wire.Request) -> T:
        """The answer, which is of that kind, to the request."""
        frame = wire.pack(wire.render_request(request))
        reader, writer = await self._connect()
        try:
            async with asyncio.timeout(self._patience):
                writer.write(frame)
                await writer.drain()
                return wire.parse_answer(kind, await receive(reader))
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            raise ServiceBroken(
                f"ipamd at {self._path} took the request and gave no answer "
                f"({type(error).__name__}); whether it took effect is unknown, repeat it"
            ) from None
        finally:
            writer.close()

    async def _connect(self) -> Streams:
        """A connection on which the daemon has greeted."""
        try:
            async with asyncio.timeout(wire.GREETING_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise ServiceUnavailable(f"ipamd at {self._path} is not there: {error}") from None
        try:
            async with asyncio.timeout(wire.GREETING_PATIENCE):
                greeting = await receive(reader)
        except (OSError, EOFError, RequestRefused) as error:
            writer.close()
            raise ServiceUnavailable(f"ipamd at {self._path} does not greet: {type(error).__name__}") from None
        if not wire.is_greeting(greeting):
            writer.close()
            raise ServiceUnavailable(f"ipamd at {self._path}: {_refusal(greeting)}")
        return reader, writer


def _refusal(greeting: Json) -> str:
    """Why a daemon did not greet."""
    try:
        wire.parse_answer(wire.Done, greeting)
    except IpamError as error:
        return str(error)
    return "it speaks another protocol"


async def receive(reader: asyncio.StreamReader) -> Json:
    """The next message; `EOFError` when the other side has closed."""
    header = await reader.readexactly(wire.HEADER_SIZE)
    return wire.unpack(await reader.readexactly(wire.body_size(header)))
