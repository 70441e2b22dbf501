"""Runs one request in this process: environment and standard input in, one JSON document and an exit status out."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from cni_bridge.cni.errors import CniError, Code, as_cni_error, as_unavailable
from cni_bridge.cni.fields import parse_object
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import (
    STDIN_LIMIT,
    Command,
    Request,
    parse_environment,
    parse_request,
    parse_version,
    version_asked,
)
from cni_bridge.cni.result import Result, render
from cni_bridge.cni.versions import NEWEST, SUPPORTED
from ipam.settings import BadSettings, Settings, load

log = logging.getLogger(__name__)

Serve = Callable[[Settings, Request], Awaitable[Result | None]]


def bridge_main() -> int:
    """The executable `cni-bridge`, and every plugin that it stands in for by its file's name."""
    return run_as(Path(sys.argv[0]).name, Plugin.CNI_BRIDGE)


def ipam_main() -> int:
    """The executable `cni-ipam`, and every plugin that it stands in for by its file's name."""
    return run_as(Path(sys.argv[0]).name, Plugin.CNI_IPAM)


def run_as(called: str, otherwise: Plugin) -> int:
    """Serve as the plugin of that name, or, for a name that is none, as the other one."""
    name = Plugin(called) if called in list(Plugin) else otherwise
    return run(name, _SERVED[name])


def run(name: str, serve: Serve) -> int:
    """Serve the request of this process's environment; the exit status, 0 or 1."""
    command = os.environ.get("CNI_COMMAND", "")
    if not command:
        supported = ", ".join(SUPPORTED)
        print(f"CNI {name} plugin {distribution_version('cni-bridge')}", file=sys.stderr)
        print(f"CNI protocol versions supported: {supported}", file=sys.stderr)
        return 0
    stdin = b""
    try:
        parse_environment(os.environ)
        stdin = _read_stdin()
        if command == Command.VERSION:
            supported_versions = [str(each) for each in SUPPORTED]
            print(json.dumps({"cniVersion": version_asked(stdin), "supportedVersions": supported_versions}))
            return 0
        request = parse_request(os.environ, stdin)
        settings = _settings(name)
        result = asyncio.run(_within(settings.request_timeout, serve(settings, request)))
    except Exception as error:
        failure = as_cni_error(error)
        if failure.code == Code.INTERNAL:
            log.exception("%s failed for a reason that this program does not know", command)
        if command == Command.STATUS:
            failure = as_unavailable(failure)
        sys.stdout.write(json.dumps(_render_error(failure, stdin), indent=4))
        return 1
    if result is not None:
        sys.stdout.write(json.dumps(render(result, request.version), indent=4))
    return 0


async def _within(seconds: int, work: Awaitable[Result | None]) -> Result | None:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise CniError(
            Code.TRY_AGAIN_LATER, f"the request took longer than request_timeout, {seconds} s; try again"
        ) from None


async def _serve_bridge(settings: Settings, request: Request) -> Result | None:
    from cni_bridge import verbs, wiring  # the netlink library is expensive, and a refused request needs none

    with wiring.runtime(settings) as rt:
        return await verbs.OPERATIONS[request.command](rt, request)


async def _serve_ipam(settings: Settings, request: Request) -> Result | None:
    from cni_bridge import ipam_plugin, own_ipam
    from cni_bridge.ipam_host import KernelHost

    async with own_ipam.opened(settings, KernelHost()) as ipam:
        return await ipam_plugin.OPERATIONS[request.command](ipam, request)


async def _serve_static(settings: Settings, request: Request) -> Result | None:
    from cni_bridge import static_ipam

    return await static_ipam.serve(request)


async def _serve_chained(name: Plugin, settings: Settings, request: Request) -> Result | None:
    from cni_bridge import wiring
    from cni_bridge.chained.served import operations_of

    with wiring.runtime(settings) as rt:
        return await operations_of(name)[request.command](rt, request)


_SERVED: Mapping[Plugin, Serve] = {
    **{each: partial(_serve_chained, each) for each in Plugin},
    Plugin.CNI_BRIDGE: _serve_bridge,
    Plugin.BRIDGE: _serve_bridge,
    Plugin.CNI_IPAM: _serve_ipam,
    Plugin.HOST_LOCAL: _serve_ipam,
    Plugin.STATIC: _serve_static,
}


def _read_stdin() -> bytes:
    """Standard input, a little more than is allowed at most; nothing from a terminal."""
    try:
        return b"" if sys.stdin.isatty() else sys.stdin.buffer.read(STDIN_LIMIT + 1)
    except (OSError, AttributeError) as error:  # None where the caller closed it
        raise CniError(Code.IO_FAILURE, f"error reading from stdin: {error}") from None


def _settings(name: str) -> Settings:
    try:
        settings = load(os.environ)
    except BadSettings as error:
        raise CniError(Code.IO_FAILURE, str(error), "CNI_BRIDGE_CONFIG names the settings file") from None
    logging.basicConfig(
        stream=sys.stderr, level=settings.log_level.upper(), format=f"{name}: %(levelname)s: %(message)s"
    )
    return settings


def _render_error(error: CniError, stdin: bytes) -> dict[str, Any]:
    """The error as JSON (CNI SPEC, section 5, "Error"), in the configuration's version where that is known."""
    try:
        version = parse_version(parse_object(stdin, "stdin"))
    except CniError:
        version = NEWEST
    rendered = {"cniVersion": str(version), "code": int(error.code), "msg": error.msg}
    return {**rendered, "details": error.details} if error.details else rendered
