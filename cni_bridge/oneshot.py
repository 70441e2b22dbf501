"""Runs one request in this process, where no daemon serves it: the executable `cni-bridge-oneshot`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from cni_bridge import trace
from cni_bridge.cni.errors import CniError, Code
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import STDIN_LIMIT, Command, Request
from cni_bridge.cni.versions import SUPPORTED
from cni_bridge.serving import Answer, answer, plugin_called, render_failure, render_versions
from ipam.api import Ipam
from ipam.settings import BadSettings, Settings, load

if TYPE_CHECKING:
    from cni_bridge.runtime import Runtime


def main() -> int:
    """Serve as the plugin that the first argument names; 0, or 1 after a failure, which is on standard output."""
    plugin = plugin_called(sys.argv[1] if len(sys.argv) > 1 else "", Plugin.CNI_BRIDGE)
    if not os.environ.get("CNI_COMMAND"):
        from importlib.metadata import version as distribution_version  # for people only, and expensive

        print(f"CNI {plugin} plugin {distribution_version('cni-bridge')}", file=sys.stderr)
        print(f"CNI protocol versions supported: {', '.join(SUPPORTED)}", file=sys.stderr)
        return 0
    given = _answer(plugin, os.environ)
    sys.stdout.write(given.stdout)
    return given.status


class OneShot:
    """An `Engine` for one request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def request_timeout(self) -> int:
        """See `Engine.request_timeout`."""
        return self._settings.request_timeout

    @property
    def traced(self) -> bool:
        """See `Engine.traced`."""
        return self._settings.trace

    def serves(self, request: Request) -> bool:
        """See `Engine.serves`; there is nobody else."""
        return True

    def turn(self, plugin: Plugin) -> AbstractAsyncContextManager[object]:
        """See `Engine.turn`; this is the only request."""
        return nullcontext()

    def runtime(self) -> AbstractContextManager[Runtime]:
        """See `Engine.runtime`."""
        from cni_bridge import wiring  # the netlink library is expensive, and a refused request needs none

        return wiring.runtime(self._settings)

    def ipam(self) -> AbstractAsyncContextManager[Ipam]:
        """See `Engine.ipam`."""
        from cni_bridge import own_ipam
        from cni_bridge.ipam_host import KernelHost

        return own_ipam.opened(self._settings, KernelHost())


def _answer(plugin: Plugin, environ: Mapping[str, str]) -> Answer:
    stdin, command = b"", environ["CNI_COMMAND"]
    try:
        stdin = _read_stdin()
        if command == Command.VERSION:  # needs no settings
            return render_versions(stdin)
        settings = _settings(plugin)
    except CniError as error:
        return render_failure(error, command, stdin)
    return asyncio.run(answer(OneShot(settings), plugin, environ, stdin, trace.begin()))


def _read_stdin() -> bytes:
    """Standard input, a little more than is allowed at most; nothing from a terminal."""
    try:
        return b"" if sys.stdin.isatty() else sys.stdin.buffer.read(STDIN_LIMIT + 1)
    except (OSError, AttributeError) as error:  # None where the caller closed it
        raise CniError(Code.IO_FAILURE, f"error reading from stdin: {error}") from None


def _settings(plugin: Plugin) -> Settings:
    try:
        settings = load(os.environ)
    except BadSettings as error:
        raise CniError(Code.IO_FAILURE, str(error), "CNI_BRIDGE_CONFIG names the settings file") from None
    logging.basicConfig(
        stream=sys.stderr, level=settings.log_level.upper(), format=f"{plugin}: %(levelname)s: %(message)s"
    )
    return settings
