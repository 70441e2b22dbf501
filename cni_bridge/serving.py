"""Answers one call of a plugin: environment and standard input in, one JSON document and an exit status out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cni_bridge import waiting
from cni_bridge.cni.errors import CniError, Code, as_cni_error, as_unavailable
from cni_bridge.cni.fields import parse_object
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import (
    Command,
    Request,
    parse_environment,
    parse_request,
    parse_version,
    version_asked,
)
from cni_bridge.cni.result import Result, render
from cni_bridge.cni.versions import NEWEST, SUPPORTED
from cni_bridge.trace import Trace, step
from ipam.api import Ipam

if TYPE_CHECKING:
    from cni_bridge.runtime import Runtime  # imports the netlink library, which not every request needs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the plugin is to print on standard output, and its exit status, 0 or 1."""

    status: int
    stdout: str = ""


class Engine(Protocol):
    """What requests are served with, made for one of them or warm."""

    @property
    def request_timeout(self) -> int:
        """Seconds that a request may take."""

    @property
    def traced(self) -> bool:
        """Whether it is logged where the time of each request went."""

    def serves(self, request: Request) -> bool:
        """Whether this process is the one to serve the request."""

    def turn(self, plugin: Plugin) -> AbstractAsyncContextManager[object]:
        """The request's turn, among those that are served at the same time."""

    def runtime(self) -> AbstractContextManager[Runtime]:
        """What the interface and chained plugins work with."""

    def ipam(self) -> AbstractAsyncContextManager[Ipam]:
        """What the IPAM plugin works with."""


class Declined(Exception):
    """The caller has to serve the request itself; nothing was done."""


def plugin_called(path: str, otherwise: Plugin) -> Plugin:
    """The plugin that an executable of that name stands for; `otherwise` for a name that is none."""
    name = Path(path).name
    return Plugin(name) if name in list(Plugin) else otherwise


async def answer(
    engine: Engine,
    plugin: Plugin,
    environ: Mapping[str, str],
    stdin: bytes,
    tracing: Trace,
    *,
    netns_fd: int | None = None,
    caller: int | None = None,
    caller_root: str = "",
) -> Answer:
    """Serve the call, or raise `Declined`; the last three as in `Request`."""
    command = environ.get("CNI_COMMAND", "")
    waiting.begin()
    try:
        parse_environment(environ)
        if command == Command.VERSION:
            return render_versions(stdin)
        with step("parse"):
            request = parse_request(environ, stdin, netns_fd=netns_fd, caller=caller, caller_root=caller_root)
        if not engine.serves(request):
            raise Declined
        result = await _within(engine, plugin, request)
        with step("reply"):
            stdout = json.dumps(render(result, request.version)) if result is not None else ""
        return Answer(status=0, stdout=stdout)
    except Declined:
        raise
    except Exception as error:
        return render_failure(error, command, stdin)
    finally:
        if engine.traced:
            log.warning("%s %s: %s", command, environ.get("CNI_CONTAINERID", ""), tracing)


def render_versions(stdin: bytes) -> Answer:
    """The answer to VERSION."""
    supported = [str(each) for each in SUPPORTED]
    return Answer(status=0, stdout=json.dumps({"cniVersion": version_asked(stdin), "supportedVersions": supported}))


def render_failure(error: Exception, command: str, stdin: bytes) -> Answer:
    """The failure as JSON (CNI SPEC, section 5, "Error"), in the configuration's version where that is known."""
    failure = as_cni_error(error)
    if failure.code == Code.INTERNAL:
        log.error("%s failed for a reason that this program does not know", command, exc_info=error)
    if command == Command.STATUS:
        failure = as_unavailable(failure)
    try:
        version = parse_version(parse_object(stdin, "stdin"))
    except CniError:
        version = NEWEST
    rendered: dict[str, Any] = {"cniVersion": str(version), "code": int(failure.code), "msg": failure.msg}
    details = {"details": failure.details} if failure.details else {}
    return Answer(status=1, stdout=json.dumps({**rendered, **details}, indent=4))


async def _within(engine: Engine, plugin: Plugin, request: Request) -> Result | None:
    seconds = engine.request_timeout
    try:
        async with asyncio.timeout(seconds):
            async with engine.turn(plugin):
                waiting.require()
                return await _serve(engine, plugin, request)
    except TimeoutError:
        raise CniError(
            Code.TRY_AGAIN_LATER, f"the request took longer than request_timeout, {seconds} s; try again"
        ) from None


# Imports within: the netlink library is expensive, and a one-shot process should read only what its request needs.
async def _serve(engine: Engine, plugin: Plugin, request: Request) -> Result | None:
    match plugin:
        case Plugin.CNI_BRIDGE | Plugin.BRIDGE:
            from cni_bridge import verbs

            with engine.runtime() as rt:
                return await verbs.OPERATIONS[request.command](rt, request)
        case Plugin.CNI_IPAM | Plugin.HOST_LOCAL:
            from cni_bridge import ipam_plugin

            async with engine.ipam() as ipam:
                return await ipam_plugin.OPERATIONS[request.command](ipam, request)
        case Plugin.STATIC:
            from cni_bridge import static_ipam

            return await static_ipam.serve(request)
        case _:
            from cni_bridge.chained.served import operations_of

            with engine.runtime() as rt:
                return await operations_of(plugin)[request.command](rt, request)
