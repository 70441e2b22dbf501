"""What the daemon does with one call: whether it may serve it, its turn, its log, its measures."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Histogram

from cni_bridge import trace, waiting
from cni_bridge.cni.plugins import Plugin
from cni_bridge.datapath import netns
from cni_bridge.frames import Call
from cni_bridge.serving import Declined, answer, plugin_called
from cni_bridge.switchboard import DECLINE, Caller, Reply
from cni_bridge.undelivered import Undelivered
from cni_bridge.warm import WarmEngine

log = logging.getLogger(__name__)

# What tells programs of this project where things are; a caller with other values serves itself.
_PLACES = ("CNI_BRIDGE_CONFIG", "CNI_BRIDGE_STATE_DIR", "CNI_BRIDGE_RUN_DIR")
_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)  # seconds


class Attendant:
    """Serves calls with the engine; `metrics` is where its measures are collected, its own place if None."""

    def __init__(self, engine: WarmEngine, *, metrics: CollectorRegistry | None) -> None:
        self._engine = engine
        self._own_netns = netns.own()
        self._places = {each: os.environ.get(each) or None for each in _PLACES}
        self._mounts = _inode("/proc/self/ns/mnt")
        self._kept = Undelivered(engine.settings.run_dir / "undelivered")
        registry = metrics or CollectorRegistry()
        self._seconds = Histogram(
            "cni_bridge_request_seconds",
            "Time from request to reply.",
            ["plugin", "command", "status"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._steps = Histogram(
            "cni_bridge_step_seconds",
            "Time that a step of a request took.",
            ["command", "step"],
            registry=registry,
            buckets=_BUCKETS,
        )
        root = logging.getLogger()
        root.addHandler(_Relay())

    async def catch_up(self) -> None:
        """Do the DELs that clients could not deliver."""
        await self._kept.replay(self._serve_kept)

    async def serve(self, call: Call, caller: Caller) -> Reply:
        """The reply to the call; one that a process in another place made is declined."""
        status = os.fstat(caller.own_netns)
        if (status.st_dev, status.st_ino) != (self._own_netns.device, self._own_netns.inode):
            return DECLINE  # rootless, or on another host than ours
        if self._is_elsewhere(call):
            return DECLINE
        if not self._engine.follow_settings():
            return DECLINE
        await self.catch_up()
        reply = await self._answer(call, caller)
        if reply.status == 0 and call.environ.get("CNI_COMMAND") in ("ADD", "DEL"):
            self._kept.forget(call.environ, call.stdin)
        return reply

    async def _serve_kept(self, call: Call) -> str:
        """Do a DEL that was kept; why it failed, or nothing."""
        if self._is_elsewhere(call):
            return f"it has other {', '.join(_PLACES)} than this daemon"
        reply = await self._answer(call, None)
        return reply.stdout if reply.status else ""

    async def _answer(self, call: Call, caller: Caller | None) -> Reply:
        plugin, command = plugin_called(call.name, Plugin.CNI_BRIDGE), call.environ.get("CNI_COMMAND", "")
        tracing = trace.begin(received_since=caller.since if caller is not None else None)
        pid = caller.pid if caller is not None else None
        if caller is not None:
            waiting.expect(caller.has_gone)
        with _relayed(plugin) as lines:
            try:
                given = await answer(
                    self._engine,
                    plugin,
                    call.environ,
                    call.stdin,
                    tracing,
                    netns_fd=caller.netns if caller is not None else None,
                    caller=pid,
                    caller_root=self._root_of(pid),
                )
            except Declined:
                return DECLINE
        took = time.perf_counter() - tracing.began
        # Once the reply is on its way.
        asyncio.get_running_loop().call_soon(self._observe, plugin, command, given.status, took, tracing.steps)
        return Reply(status=given.status, stdout=given.stdout, stderr="".join(lines))

    def _observe(self, plugin: Plugin, command: str, status: int, took: float, steps: Mapping[str, float]) -> None:
        self._seconds.labels(plugin, command, status).observe(took)
        for name, seconds in steps.items():
            self._steps.labels(command, name).observe(seconds)

    def _is_elsewhere(self, call: Call) -> bool:
        return any((call.environ.get(each) or None) != own for each, own in self._places.items())

    def _root_of(self, pid: int | None) -> str:
        """The root directory of a caller that sees other files; empty for one that sees ours."""
        if not pid:  # of none that we see
            return ""
        mounts = _inode(f"/proc/{pid}/ns/mnt")
        return "" if mounts in (0, self._mounts) else f"/proc/{pid}/root"


_lines: ContextVar[tuple[str, list[str]] | None] = ContextVar("lines", default=None)


@contextmanager
def _relayed(plugin: Plugin) -> Iterator[list[str]]:
    """What is logged in the block, as the plugin would print it."""
    found: list[str] = []
    token = _lines.set((plugin, found))
    try:
        yield found
    finally:
        _lines.reset(token)


class _Relay(logging.Handler):
    """Gives what is logged for a request to its caller too, who would have seen it from a plugin of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        relayed = _lines.get()
        if relayed is not None:
            plugin, found = relayed
            found.append(f"{plugin}: {record.levelname}: {record.getMessage()}\n")


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - each request looks
    except OSError:
        return 0
