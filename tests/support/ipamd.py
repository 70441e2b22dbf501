"""A host's `ipamd` seen from outside: its process, raw connections to its socket, and others in its place."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from ipam import wire
from tests.support.host import BIN, Host, Json

SOCKET = "/run/cni-bridge/ipamd.sock"
# With it a plugin cannot open the database itself, so that its success is the daemon's.
ONLY_THROUGH_IPAMD = {"CNI_BRIDGE_STATE_DIR": "/dev/null"}
IN_PROCESS = {"CNI_BRIDGE_RUN_DIR": "/run/without-ipamd"}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within 10 s"
        time.sleep(0.01)


def outside_path(host: Host, path: str) -> Path:
    """A path of the host's mount namespace, for system calls of the test's own process; not for a library that resolves
    symbolic links itself, as SQLite does, for /proc/PID/root reads as /."""
    return Path(f"/proc/{host.holder.pid}/root{path}")


def as_user(user: int, group: int, *groups: int) -> list[str]:
    """The words that run a command as that user. It may read everything, for the interpreter of a virtual environment
    is often below a home directory that only root may enter; it may write only what is its own."""
    supplementary = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={user}", f"--regid={group}", supplementary, *capability]


class Ipamd:
    """A running daemon."""

    def __init__(self, host: Host, *words: str | Path, env: Mapping[str, str] | None = None) -> None:
        host.do_without_daemon()
        self.host = host
        self.process: subprocess.Popen[bytes] = host.start(*words, BIN / "ipamd", stderr=subprocess.PIPE, env=env)

    def started(self) -> Ipamd:
        """This daemon, when it greets."""
        wait_until(lambda: self.process.poll() is not None or greets(self.host), "ipamd does not greet")
        assert self.process.poll() is None, self.complaint()
        return self

    def refused(self) -> str:
        """Why it did not start: one line on standard error, and exit status 1."""
        complaint = self.complaint()
        assert self.process.returncode == 1, complaint
        assert complaint.startswith("ipamd: ") and complaint.count("\n") == 1, complaint
        return complaint

    def complaint(self) -> str:
        return self.process.communicate(timeout=20)[1].decode()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it as a service manager does."""
        self.signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.complaint()


def start_ipamd(host: Host, *words: str | Path, env: Mapping[str, str] | None = None) -> Ipamd:
    return Ipamd(host, *words, env=env).started()


class Client:
    """A connection to the daemon, and whatever bytes one wants to send it."""

    def __init__(self, host: Host) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(outside_path(host, SOCKET)))

    def send(self, message: Json) -> None:
        self.socket.sendall(wire.pack(message))

    def receive(self) -> Json | None:
        """The next message; None when the daemon has closed the connection."""
        header = self._exactly(wire.HEADER_SIZE)
        return json.loads(self._exactly(wire.body_size(header))) if header else None

    def ask(self, request: wire.Request) -> Any:
        self.send(wire.render_request(request))
        return self.receive()

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            try:
                more = self.socket.recv(size - len(found))
            except ConnectionResetError:
                return b""
            if not more:
                return b""
            found += more
        return found


@contextmanager
def connected(host: Host) -> Iterator[Client]:
    """A client that was greeted."""
    client = Client(host)
    with client.socket:
        assert wire.is_greeting(client.receive())
        yield client


def greets(host: Host) -> bool:
    try:
        with connected(host):
            return True
    except OSError:
        return False


def samples(text: str) -> dict[tuple[str, ...], float]:
    """The values in a text of metrics, each by its name and the values of its labels, in order of the labels' names."""
    families = text_string_to_metric_families(text)
    return {
        (each.name, *(each.labels[label] for label in sorted(each.labels))): each.value
        for family in families
        for each in family.samples
    }


@contextmanager
def in_its_place(host: Host, serve: Callable[[socket.socket, int], object]) -> Iterator[None]:
    """Something else on the daemon's socket; `serve` gets each connection and its number, from 0."""
    host.do_without_daemon()
    path = outside_path(host, SOCKET)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            number = 0
            while (connection := _accepted(listener)) is not None:
                with connection:
                    serve(connection, number)
                number += 1

        thread = threading.Thread(target=accept)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    path.unlink(missing_ok=True)


def _accepted(listener: socket.socket) -> socket.socket | None:
    try:
        return listener.accept()[0]
    except OSError:  # shut down
        return None
