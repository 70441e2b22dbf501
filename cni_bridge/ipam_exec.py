"""The `Ipam` of another CNI plugin: runs its executable as the specification's section 4 says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from cni_bridge import trace
from cni_bridge.cni.errors import CniError, Code
from cni_bridge.cni.fields import parse_object
from cni_bridge.cni.request import Command, Request
from cni_bridge.cni.result import parse
from ipam import effects
from ipam.api import Allocation, Interface, Lease, Owner, Wanted

OUTPUT_LIMIT = 4 << 20  # bytes


def find_executable(name: str, path: tuple[str, ...], root: str = "") -> Path:
    """The plugin of that name in `CNI_PATH`, which starts from `root`."""
    for directory in path:
        candidate = Path(f"{root}{directory}") / name
        with suppress(OSError):  # a name that is too long for a file
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return candidate
    raise CniError(
        Code.IPAM_PLUGIN_FAILED,
        f'failed to find plugin "{name}" in path [{" ".join(path)}]',
        "ipam.type names an executable in CNI_PATH",
    )


class ExecIpam:
    """Asks an IPAM plugin with the request's own environment and configuration."""

    def __init__(self, executable: Path, request: Request) -> None:
        self._executable = executable
        self._request = request

    async def allocate(self, wanted: Wanted) -> Allocation:
        """See `Ipam.allocate`; ranges, routes and DNS are the plugin's own business."""
        printed = await self._run(Command.ADD, wanted.owner)
        text = printed if printed.strip() not in (b"", b"null") else b"{}"
        result = parse(parse_object(text, f"the result of IPAM plugin {self._executable.name}"), self._version)
        if not result.ips:
            raise CniError(Code.IPAM_PLUGIN_FAILED, "IPAM plugin returned missing IP config", str(self._executable))
        since = datetime.now(UTC).replace(microsecond=0)
        return Allocation(
            leases=tuple(
                Lease(owner=wanted.owner, address=each.address, gateway=each.gateway, since=since)
                for each in result.ips
            ),
            routes=result.routes,
            dns=result.dns,
        )

    async def release(self, owner: Owner) -> None:
        """See `Ipam.release`."""
        await self._run(Command.DEL, owner)

    async def held(self, owner: Owner) -> tuple[Lease, ...]:
        """See `Ipam.held`; there is no operation that asks a plugin."""
        return ()

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        """See `Ipam.check`."""
        await self._run(Command.CHECK, wanted.owner)

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Ipam.collect`; the configuration carries `keep` as the runtime sent it."""
        await self._run(Command.GC, None)

    async def status(self, wanted: Wanted) -> None:
        """See `Ipam.status`."""
        await self._run(Command.STATUS, None)

    @property
    def _version(self) -> Any:
        return self._request.version

    def _environment(self, command: Command, owner: Owner | None) -> Mapping[str, str]:
        environment = {**self._request.environ, "CNI_COMMAND": command}
        if owner is not None:  # GC releases for owners that are not the request's
            environment |= {"CNI_CONTAINERID": owner.container_id, "CNI_IFNAME": owner.ifname}
        return environment

    async def _run(self, command: Command, owner: Owner | None) -> bytes:
        trace.count("processes")
        effects.change(f"run {self._executable.name} for {command}")
        # A pipe of our own: asyncio waits for the end of its own ones, which a grandchild may keep open.
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", buffering=0) as stdout:
            try:
                process = await asyncio.create_subprocess_exec(
                    self._executable,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=writing,
                    env=self._environment(command, owner),
                    start_new_session=True,
                )
            except OSError as error:
                raise CniError(
                    Code.IPAM_PLUGIN_FAILED, f"cannot run IPAM plugin {self._executable}: {error.strerror}"
                ) from None
            finally:
                os.close(writing)
            try:
                printed = await _converse(process, self._request.stdin, stdout)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                assert process.stdin is not None
                if process.stdin.transport.get_write_buffer_size():  # it never read all of it
                    process.stdin.transport.abort()
                await process.wait()
                raise
        if process.returncode != 0:
            raise self._failure(printed, process.returncode or 0)
        return printed

    def _failure(self, printed: bytes, status: int) -> CniError:
        """The plugin's own error, passed on unchanged."""
        name = self._executable.name
        try:
            error = json.loads(printed)
            return CniError(int(error["code"]), str(error["msg"]), str(error.get("details", "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            said = printed.decode(errors="replace").strip()[:200]
            return CniError(
                Code.IPAM_PLUGIN_FAILED,
                f"IPAM plugin {name} failed with {f'status {status}' if status > 0 else f'signal {-status}'}",
                f"instead of an error it printed {said!r}" if said else "it printed no error; see its stderr",
            )


async def _converse(process: asyncio.subprocess.Process, stdin: bytes, stdout: IO[bytes]) -> bytes:
    """Give the plugin its configuration and take what it prints, until it ends."""
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()  # the event loop goes on sending while we read
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, stdout)
    try:
        printed = bytearray()
        while chunk := await reader.read(1 << 16):
            printed += chunk
            if len(printed) > OUTPUT_LIMIT:
                raise CniError(Code.IPAM_PLUGIN_FAILED, f"IPAM plugin printed more than {OUTPUT_LIMIT >> 20} MiB")
    finally:
        transport.close()
    await process.wait()
    return bytes(printed)
