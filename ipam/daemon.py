"""`ipamd`: the IPAM service as a process. Listens on its socket, or on one that systemd passes."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys

from ipam.errors import IpamError
from ipam.host import Host
from ipam.service import CannotStart, listen, opened
from ipam.settings import BadSettings, Settings, load
from ipam.systemd import notify, passed_sockets


def main(host: Host) -> int:
    """Serve on this host. Run until SIGTERM or SIGINT; 0 after a clean stop, 1 when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="ipamd",
        description="Serves leases of cni-bridge's address database on a Unix socket. "
        "Settings: /etc/cni-bridge/config.yaml, or the file named by CNI_BRIDGE_CONFIG.",
    )
    parser.parse_args()
    try:
        settings = load(os.environ)
        logging.basicConfig(
            stream=sys.stderr, level=settings.log_level.upper(), format="%(name)s: %(levelname)s: %(message)s"
        )
        gc.freeze()  # the modules stay: there is no garbage to look for among them
        asyncio.run(_serve(settings, host))
    except (CannotStart, BadSettings, IpamError) as error:
        print(f"ipamd: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings, host: Host) -> None:
    async with opened(settings, host) as service:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, service.reload)
        passed = passed_sockets()
        listener = passed[0] if passed else listen(settings.ipamd_socket)
        try:
            notify("READY=1")
            await service.serve(listener, stop)
            notify("STOPPING=1")
        finally:
            if not passed:
                settings.ipamd_socket.unlink(missing_ok=True)
