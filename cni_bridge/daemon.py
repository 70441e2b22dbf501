"""`cni-bridged`: serves plugins, and the IPAM if it owns the database, from a process that stays warm."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from cni_bridge import warm
from cni_bridge.attending import Attendant
from cni_bridge.cni.errors import CniError
from cni_bridge.ipam_host import KernelHost
from cni_bridge.switchboard import Switchboard
from ipam import service as ipam_service
from ipam.errors import IpamError
from ipam.service import CannotStart, Service, listen
from ipam.settings import BadSettings, Settings, load
from ipam.systemd import notify, passed_sockets, watchdog_interval

log = logging.getLogger("cni-bridged")

_MARGIN = 10  # seconds that a client waits longer than a request may take: one that failed is undone first


def main() -> int:
    """Serve on this host. Run until SIGTERM or SIGINT; 0 after a clean stop, 1 when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="cni-bridged",
        description="Serves cni-bridge's plugins and its address database on Unix sockets. "
        "Settings: /etc/cni-bridge/config.yaml, or the file named by CNI_BRIDGE_CONFIG.",
    )
    parser.add_argument("--trace", action="store_true", help="log where the time of each request went")
    arguments = parser.parse_args()
    try:
        settings = load(os.environ)
        logging.basicConfig(
            stream=sys.stderr, level=settings.log_level.upper(), format="%(name)s: %(levelname)s: %(message)s"
        )
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a call needs three, and many come at once
        asyncio.run(_serve(settings, traced=arguments.trace))
    except (CannotStart, BadSettings, IpamError, CniError) as error:
        print(f"cni-bridged: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings, *, traced: bool) -> None:
    passed = {Path(each.getsockname()).name: each for each in passed_sockets()}
    async with _addresses(settings) as service:
        with warm.opened(settings, service, traced=traced) as engine:
            await engine.warm_up()
            gc.collect()
            gc.freeze()  # what is there now stays: there is no garbage to look for in it
            attendant = Attendant(engine, metrics=service.metrics.collected if service is not None else None)
            await attendant.catch_up()
            stop = asyncio.Event()

            def end() -> None:
                notify("STOPPING=1")
                stop.set()

            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, end)
            loop.add_signal_handler(signal.SIGHUP, engine.follow_settings)
            with ExitStack() as listening:
                switchboard = Switchboard(attendant.serve, lambda: engine.request_timeout + _MARGIN)
                calls = listening.enter_context(_listener(settings.bridged_socket, passed))
                serving = [switchboard.run(calls, stop)]
                if service is not None:
                    questions = listening.enter_context(_listener(settings.ipamd_socket, passed))
                    serving.append(service.serve(questions, stop))
                notify("READY=1")
                living = asyncio.create_task(_show_life(engine))
                try:
                    await asyncio.gather(*serving)
                finally:
                    living.cancel()


@asynccontextmanager
async def _addresses(settings: Settings) -> AsyncIterator[Service | None]:
    """The IPAM service, if this process is to be it."""
    if not settings.bridged.serve_ipam:
        yield None
        return
    async with ipam_service.opened(settings, KernelHost()) as service:
        yield service


@contextmanager
def _listener(path: Path, passed: dict[str, socket.socket]) -> Iterator[socket.socket]:
    """The socket that was passed for that path, or one of our own, which goes with us."""
    if path.name in passed:
        yield passed[path.name]
        return
    _require_nobody(path)
    own = listen(path)
    inode = path.stat().st_ino
    try:
        yield own
    finally:
        try:
            if path.exists() and path.stat().st_ino == inode:  # not that of who took our place
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", path, error.strerror)


def _require_nobody(path: Path) -> None:
    """Refuse to take the place of a process that lives."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:  # nobody listens there, or nothing is there
            return
        pid, _, _ = struct.unpack("=iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    raise CannotStart(f"another process ({pid}) listens on {path} already")


async def _show_life(engine: warm.WarmEngine) -> None:
    """Tell the service manager that requests would be served, as often as it wants to know."""
    interval = watchdog_interval()
    while interval is not None:
        if await engine.is_alive():
            notify("WATCHDOG=1")
        await asyncio.sleep(interval)
