"""Serves an `Ipam` and its `Registry` on a Unix socket: who may ask, how many, how long, and what they get."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Callable

from ipam import wire
from ipam.api import Ipam
from ipam.connection import Connection
from ipam.errors import IpamError, RequestRefused, StoreBusy
from ipam.metrics import Metrics
from ipam.registry import PAGE, Registry

log = logging.getLogger(__name__)

SO_PEERGROUPS = 59  # unix(7)
_MAX_GROUPS = 256  # as many as socket.getsockopt() takes
_GREETING = wire.pack(wire.GREETING)


class Server:
    """Answers clients until it is told to stop; requests that were accepted are finished first."""

    def __init__(
        self,
        ipam: Ipam,
        registry: Registry,
        metrics: Metrics,
        *,
        allowed: Callable[[int, set[int]], bool],
        max_clients: int,
        request_timeout: float,
    ) -> None:
        self._ipam = ipam
        self._registry = registry
        self._metrics = metrics
        self.configure(allowed=allowed, max_clients=max_clients, request_timeout=request_timeout)
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()

    def configure(self, *, allowed: Callable[[int, set[int]], bool], max_clients: int, request_timeout: float) -> None:
        """Serve by these rules from now on."""
        self._allowed = allowed
        self._max_clients = max_clients
        self._request_timeout = request_timeout

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve the listening socket until `stop` is set, then drain."""
        loop = asyncio.get_running_loop()
        # Not `create_unix_server`: it would unlink the socket.
        server = await loop.create_server(lambda: Connection(self._greet, self._answer, self._forget), sock=listener)
        await stop.wait()
        server.close()
        for connection in list(self._connections):
            connection.finish()
        if busy := sum(each.is_busy for each in self._connections):
            log.info("finishing %d requests", busy)
        while self._connections:
            self._changed.clear()
            await self._changed.wait()

    def _greet(self, connection: Connection, peer: socket.socket) -> tuple[bytes, bool]:
        self._connections.add(connection)
        refusal = self._refusal(peer)
        return (wire.pack(wire.render_failure(refusal)), False) if refusal is not None else (_GREETING, True)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._changed.set()

    def _refusal(self, peer: socket.socket) -> IpamError | None:
        pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if not self._allowed(uid, {gid}) and not self._allowed(uid, set(_supplementary_groups(peer))):
            log.warning("refused process %d of user %d", pid, uid)
            return RequestRefused(f"user {uid} may not ask ipamd: root, user {os.getuid()} and its group may")
        if len(self._connections) > self._max_clients:
            return StoreBusy(f"ipamd serves {self._max_clients} clients already; try again")
        return None

    async def _answer(self, body: bytes) -> bytes:
        began, operation, outcome = time.perf_counter(), "unknown", "ok"
        try:
            request = wire.parse_request(wire.unpack(body))
            operation = type(request).__name__
            async with asyncio.timeout(self._request_timeout):
                return wire.pack(wire.render_answer(await self._perform(request)))
        except IpamError as error:
            outcome = type(error).__name__
            log.info("%s: %s", outcome, error)
            return _failure(error)
        except TimeoutError:
            outcome = StoreBusy.__name__
            return _failure(StoreBusy(f"no answer within {self._request_timeout:g} s; try again"))
        except Exception as error:
            outcome = IpamError.__name__
            log.exception("a request failed for a reason that this program does not know")
            return _failure(IpamError(f"internal failure: {type(error).__name__}: {error}"))
        finally:
            self._metrics.count(operation, outcome, time.perf_counter() - began)

    async def _perform(self, request: wire.Request) -> wire.Answer:
        ipam, registry = self._ipam, self._registry
        match request:
            case wire.Allocate(wanted=wanted):
                return wire.Leases(leases=(await ipam.allocate(wanted)).leases)
            case wire.Release(owner=owner):
                await ipam.release(owner)
            case wire.Held(owner=owner):
                return wire.Leases(leases=await ipam.held(owner))
            case wire.Check(wanted=wanted, addresses=addresses):
                await ipam.check(wanted, addresses)
            case wire.Collect(network=network, keep=keep):
                await ipam.collect(network, keep)
            case wire.Status(wanted=wanted):
                await ipam.status(wanted)
            case wire.ListPools():
                return wire.Pools(pools=await registry.pools(request.network))
            case wire.ListEntries(after=after):
                limit = max(0, min(request.limit, PAGE))
                return wire.Entries(entries=await registry.entries(request.network, after=after, limit=limit))
            case wire.History():
                return wire.Events(
                    events=await registry.history(
                        network=request.network,
                        address=request.address,
                        container=request.container,
                        before=request.before,
                        limit=max(0, min(request.limit, PAGE)),
                    )
                )
            case wire.Reserve(network=network, address=address, reservation=reservation):
                await registry.reserve(network, address, reservation)
            case wire.Unreserve(network=network, address=address):
                await registry.unreserve(network, address)
            case wire.TakeBack(owner=owner, address=address):
                await registry.take_back(owner, address)
            case wire.Forget(network=network):
                await registry.forget(network)
            case wire.Adopt(wanted=wanted, moved=moved, last=last):
                await registry.adopt(wanted, moved, last)
            case wire.Verify():
                return wire.Findings(findings=await registry.verify())
            case wire.Mend():
                await registry.mend()
            case wire.Metrics():
                return wire.Text(text=await self._metrics.render())
        return wire.Done()


def _failure(error: IpamError) -> bytes:
    return wire.pack(wire.render_failure(error))


def _supplementary_groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _MAX_GROUPS * 4)
    except OSError:  # of somebody in more groups, the primary one counts
        return ()
    return struct.unpack(f"{len(groups) // 4}I", groups)
