"""The fast path, native and in Python, against a daemon and a one-shot program that are the test's."""

from __future__ import annotations

import json
import os
import pty
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD

import pytest

from cni_bridge import shim
from tests.support.host import BIN

LIMIT = 16 << 20
# The locale keeps Python from adding LC_CTYPE to the environment.
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "a",
    "CNI_IFNAME": "eth0",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
}
# Says what it was told: how many arguments, the first of them, standard input.
ONESHOT = '#!/bin/sh\necho "$#:$1"\nexec cat\n'

Stdin = bytes | int  # what comes on it, or a descriptor
Serve = Callable[[socket.socket], object]


@dataclass(frozen=True, slots=True)
class Heard:
    """A request as the daemon got it, with the inodes of the descriptors that came with it."""

    name: str
    environ: dict[str, str]
    stdin: bytes
    inodes: list[int]


@dataclass
class Caller:
    """A runtime with a client of one kind, in a directory with a one-shot program."""

    client: Path
    run_dir: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        return self.run_dir / "cni-bridged.sock"

    @property
    def oneshot(self) -> Path:
        return self.client.with_name("cni-bridge-oneshot")

    @property
    def undelivered(self) -> Path:
        return self.run_dir / "undelivered"

    def start(
        self, stdin: int = subprocess.PIPE, client: Path | None = None, **environ: str
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [client or self.client],
            env={**ENVIRON, "CNI_BRIDGE_RUN_DIR": str(self.run_dir), **self.environ, **environ},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def call(self, stdin: Stdin = b"{}", client: Path | None = None, **environ: str) -> tuple[int, bytes, bytes]:
        """Status, standard output and error of one call."""
        given = stdin if isinstance(stdin, int) else subprocess.PIPE
        with self.start(given, client, **environ) as running:
            out, err = running.communicate(stdin if isinstance(stdin, bytes) else None, timeout=10)
            return running.returncode, out, err

    def error(self, stdin: Stdin = b"{}", **environ: str) -> str:
        """The message of a call that fails, with one document of code 11 and nothing else."""
        status, out, err = self.call(stdin, **environ)
        document = json.loads(out)
        assert (status, err, document["cniVersion"], document["code"]) == (1, b"", "1.1.0", 11)
        assert document["details"].startswith("see its log: journalctl -u cni-bridged; /")
        return str(document["msg"])

    def falls_back(self, stdin: bytes = b"{}", **environ: str) -> None:
        """Make a call that the one-shot program serves, with all that came on standard input."""
        assert self.call(stdin, **environ) == (0, b"1:cni-bridge\n" + stdin[: LIMIT + 1], b"")


@pytest.fixture(params=["native", "python"])
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Caller:
    (tmp_path / "bin").mkdir()
    (tmp_path / "run").mkdir()
    made = Caller(client=tmp_path / "bin/cni-bridge", run_dir=tmp_path / "run")
    if request.param == "native":
        program = (BIN / "cni-bridge").read_bytes()
        if not program.startswith(b"\x7fELF"):
            pytest.skip("there was no C compiler")
    else:
        interpreter = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
        program = f"#!{interpreter} -IS\n{Path(shim.__file__).read_text()}".encode()
    for path, content in ((made.client, program), (made.oneshot, ONESHOT.encode())):
        path.write_bytes(content)
        path.chmod(0o755)
    return made


@contextmanager
def daemon(caller: Caller, serve: Serve) -> Iterator[list[object]]:
    """A daemon that serves one connection so; yields a list that gets what `serve` returns."""
    served: list[object] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(caller.socket))
        listening.listen()
        listening.settimeout(10)

        def run() -> None:
            with listening.accept()[0] as connection:
                connection.settimeout(10)
                served.append(serve(connection))

        thread = threading.Thread(target=run)
        thread.start()
        yield served
        thread.join()
        assert served, "the daemon failed"
    caller.socket.unlink()


def greet(connection: socket.socket, seconds: int = 5) -> None:
    connection.sendall(struct.pack("!4sBxH", b"cnib", 1, seconds))


def hear(connection: socket.socket) -> Heard:
    start, rights, _, _ = connection.recvmsg(4, 64)
    (size,) = struct.unpack("!I", start)
    body = bytearray()
    while len(body) < size:
        piece = connection.recv(size - len(body))
        assert piece, "the request ends too soon"
        body += piece
    return heard(bytes(body), array("i", b"".join(data for _, _, data in rights)))


def heard(body: bytes, descriptors: Iterable[int] = ()) -> Heard:
    """The request in a body; the descriptors are closed."""
    inodes = [os.fstat(each).st_ino for each in descriptors]
    for each in descriptors:
        os.close(each)
    texts, _, stdin = body.partition(b"\0\0")
    name, *variables = texts.decode().split("\0")
    return Heard(name, dict(each.split("=", 1) for each in variables), stdin, inodes)


def reply(connection: socket.socket, status: int = 0, out: bytes = b"", err: bytes = b"") -> None:
    connection.sendall(struct.pack("!IIB", len(out), len(err), status) + out + err)


def wait_for_end(connection: socket.socket) -> None:
    """Until the client is gone."""
    with suppress(ConnectionResetError):
        while connection.recv(1 << 20):
            pass


def answering(status: int = 0, out: bytes = b"", err: bytes = b"") -> Callable[[socket.socket], Heard]:
    """What a daemon does that answers so."""

    def serve(connection: socket.socket) -> Heard:
        greet(connection)
        request = hear(connection)
        reply(connection, status, out, err)
        return request

    return serve


# The daemon serves


@pytest.mark.parametrize(
    ("status", "out", "err"),
    [(0, b"{}\n", b"a\n"), (1, b"\0\xff", b""), (0, b"", b""), (0, b"x" * 999999, b"y" * 999999)],
)
def test_the_reply_is_printed(caller: Caller, status: int, out: bytes, err: bytes) -> None:
    with daemon(caller, answering(status, out, err)):
        assert caller.call() == (status, out, err)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reply_to_who_listens_no_more(caller: Caller, closed: str) -> None:
    with daemon(caller, answering(0, b"out", b"err")), caller.start() as running:
        pipe = getattr(running, closed)
        pipe.close()
        setattr(running, closed, None)
        running.communicate(b"{}")
    assert running.returncode == (1 if closed == "stdout" else 0)


@pytest.mark.parametrize("size", [0, 2000, 10_000_000, LIMIT + 1, 17_000_000])
def test_the_request_is_whole(caller: Caller, size: int) -> None:
    link = caller.run_dir / "host-local"
    link.symlink_to("../bin/cni-bridge")
    environ = {**ENVIRON, "CNI_BRIDGE_RUN_DIR": str(caller.run_dir), "ODD": "a=b\nc", "EMPTY": "", "NAMES": "é"}
    stdin = os.urandom(size)
    with daemon(caller, answering(0, b"well")) as served:
        assert caller.call(stdin, link, **environ)[:2] == (0, b"well")
    own = Path("/proc/self/ns/net").stat().st_ino
    assert served == [Heard("host-local", environ, stdin[: LIMIT + 1], [own])]


@pytest.mark.parametrize("kind", ["namespace", "file", "missing", "fifo", "device", "directory"])
def test_the_namespace_rides_along(caller: Caller, kind: str) -> None:
    place = caller.run_dir / kind
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "file":
        place.write_text("for the daemon to refuse")
    elif kind == "directory":
        place.mkdir()
    elif kind == "device":
        place = Path("/dev/null")
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        if kind == "namespace":
            other.stdin.write(b"\n")
            other.stdin.flush()
            other.stdout.read(1)  # it is there
            place = Path(f"/proc/{other.pid}/ns/net")
        expected = [Path("/proc/self/ns/net").stat().st_ino]
        expected += [place.stat().st_ino] if kind in ("namespace", "file") else []
        with daemon(caller, answering()) as served:
            assert caller.call(CNI_NETNS=str(place))[0] == 0
        other.stdin.close()
    (request,) = served
    assert isinstance(request, Heard)
    assert request.inodes == expected


def test_nothing_is_said_or_read_before_the_greeting(caller: Caller) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"12345")
    os.close(writing)

    def serve(connection: socket.socket) -> Heard:
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        left = array("i", [0])
        ioctl(reading, FIONREAD, left)
        assert left[0] == 5
        connection.settimeout(10)
        return answering()(connection)

    with daemon(caller, serve) as served:
        assert caller.call(reading) == (0, b"", b"")
    os.close(reading)
    assert [each.stdin for each in served if isinstance(each, Heard)] == [b"12345"]


@pytest.mark.parametrize("kind", ["closed", "terminal", "non-blocking"])
def test_stdin_of_another_kind(caller: Caller, kind: str) -> None:
    with daemon(caller, answering(0, b"well")) as served:
        if kind == "closed":
            script = caller.run_dir / "script"
            script.write_text(f"#!/bin/sh\nexec {caller.client} <&-\n")
            script.chmod(0o755)
            assert caller.call(client=script)[:2] == (0, b"well")
        elif kind == "terminal":
            controlling, terminal = pty.openpty()
            assert caller.call(terminal) == (0, b"well", b"")
            os.close(controlling)
            os.close(terminal)
        else:
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            with caller.start(reading) as running:
                time.sleep(0.1)
                os.write(writing, b"late")
                os.close(writing)
                assert running.communicate()[0] == b"well"
            os.close(reading)
    assert [each.stdin for each in served if isinstance(each, Heard)] == [b"late" if kind == "non-blocking" else b""]


# Nothing was handed over


def greet_late(connection: socket.socket) -> None:
    time.sleep(0.45)
    with suppress(BrokenPipeError):
        greet(connection)


def greet_in_part(connection: socket.socket) -> None:
    connection.sendall(b"cnib\1")
    wait_for_end(connection)


@pytest.mark.parametrize(
    ("serve", "patience"),
    [
        pytest.param(greet_late, 0.3, id="late"),
        pytest.param(greet_in_part, 0.3, id="in part"),
        pytest.param(wait_for_end, 0.3, id="never"),
        pytest.param(lambda connection: connection.sendall(b"cnib\2\0\0\5"), 0.0, id="of another version"),
        pytest.param(lambda connection: connection.sendall(b"HTTP/1.1"), 0.0, id="of another kind"),
        pytest.param(lambda connection: None, 0.0, id="end"),
    ],
)
def test_no_greeting(caller: Caller, serve: Serve, patience: float) -> None:
    with daemon(caller, serve):
        began = time.monotonic()
        caller.falls_back()
        assert patience <= time.monotonic() - began < patience + 0.25


@pytest.mark.parametrize("place", ["missing", "left over", "file", "far too long", "full"])
def test_no_connection(caller: Caller, place: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as waiting:
        if place == "file":
            caller.socket.touch()
        elif place == "far too long":
            caller.run_dir /= "x" * 120
        elif place != "missing":
            listening.bind(str(caller.socket))
        if place == "full":
            listening.listen(0)
            waiting.connect(str(caller.socket))
        began = time.monotonic()
        caller.falls_back()
        assert time.monotonic() - began < 0.55


def test_a_full_backlog_is_waited_for(caller: Caller) -> None:
    """A burst of calls is no reason to do without the daemon."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as waiting:
        listening.bind(str(caller.socket))
        listening.listen(0)
        waiting.connect(str(caller.socket))
        with caller.start(subprocess.DEVNULL) as running:
            time.sleep(0.1)
            listening.accept()[0].close()
            with listening.accept()[0] as connection:
                answering(0, b"well")(connection)
            assert running.communicate()[0] == b"well"


def test_the_one_shot_program_gets_what_the_client_got(caller: Caller) -> None:
    """By whatever links that was called; and no descriptors."""
    caller.oneshot.write_text('#!/bin/sh\necho "$0 $@"\ncat\nls /proc/self/fd | wc -l\ncat /proc/$$/environ\n')
    (caller.run_dir / "cni").mkdir()
    (caller.run_dir / "cni/portmap").symlink_to("../link")
    (caller.run_dir / "link").symlink_to(caller.client)
    with daemon(caller, answering(255)):
        _, out, _ = caller.call(
            b"stdin\n", caller.run_dir / "cni/portmap", CNI_ARGS="a=b", CNI_NETNS="/proc/self/ns/net"
        )
    called, stdin, count, environ = out.decode().split("\n", 3)
    assert (called, stdin, count) == (f"{caller.oneshot} portmap", "stdin", "4")  # `ls` opens the fourth
    expected = {
        **ENVIRON,
        "CNI_BRIDGE_RUN_DIR": str(caller.run_dir),
        "CNI_ARGS": "a=b",
        "CNI_NETNS": "/proc/self/ns/net",
    }
    assert dict(each.split("=", 1) for each in environ.rstrip("\0").split("\0")) == expected


def test_without_a_command_the_daemon_is_not_asked(caller: Caller) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(caller.socket))
        listening.listen()
        listening.setblocking(False)
        caller.falls_back(CNI_COMMAND="")
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("size", [0, 3_000_000, 17_000_000])
def test_declined(caller: Caller, size: int) -> None:
    with daemon(caller, answering(255)):
        caller.falls_back(os.urandom(size))


@pytest.mark.parametrize("read", [0, 100_000])
def test_the_daemon_ends_before_it_has_the_whole_request(caller: Caller, read: int) -> None:
    def serve(connection: socket.socket) -> None:
        greet(connection)
        connection.recv(read)

    with daemon(caller, serve):
        caller.falls_back(os.urandom(10_000_000))


def test_the_daemon_ends_before_there_is_a_request(caller: Caller) -> None:
    def serve(connection: socket.socket) -> None:
        greet(connection)
        connection.close()

    with daemon(caller, serve) as served, caller.start() as running:
        while not served:
            time.sleep(0.01)
        assert running.communicate(b"{}")[0] == b"1:cni-bridge\n{}"


def test_the_daemon_stops_reading(caller: Caller) -> None:
    def serve(connection: socket.socket) -> None:
        greet(connection, seconds=1)
        time.sleep(1.2)

    with daemon(caller, serve):
        caller.falls_back(bytes(10_000_000))


@pytest.mark.parametrize("then", [lambda connection: None, wait_for_end], ids=["ends", "stays"])
@pytest.mark.parametrize("status", [1, 255])
def test_the_daemon_answers_without_reading_on(caller: Caller, status: int, then: Serve) -> None:
    def serve(connection: socket.socket) -> None:
        greet(connection)
        connection.recv(4)
        reply(connection, status, b"too long" if status == 1 else b"")
        if then is wait_for_end:
            time.sleep(0.3)
        then(connection)

    stdin = os.urandom(10_000_000)
    with daemon(caller, serve):
        if status == 1:
            assert caller.call(stdin) == (1, b"too long", b"")
        else:
            caller.falls_back(stdin)


# It was handed over


def hear_and_reply_in_part(connection: socket.socket) -> None:
    greet(connection)
    hear(connection)
    connection.sendall(struct.pack("!IIB", 10, 0, 0) + b"{}")


def hear_and_reply_beyond_reason(connection: socket.socket) -> None:
    greet(connection)
    hear(connection)
    connection.sendall(struct.pack("!IIB", 0xFFFFFFFF, 0xFFFFFFFF, 0) + b"{}")


def hear_and_end(connection: socket.socket) -> None:
    greet(connection)
    hear(connection)


def hear_and_wait(connection: socket.socket) -> None:
    greet(connection, seconds=1)
    hear(connection)
    wait_for_end(connection)


def leave_unread(connection: socket.socket) -> None:
    greet(connection)
    time.sleep(0.1)  # the kernel has it all by then


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (hear_and_end, "ended before it answered"),
        (hear_and_reply_in_part, "ended before it answered"),
        (hear_and_reply_beyond_reason, "ended before it answered"),
        (leave_unread, "ended before it answered"),
        (hear_and_wait, "did not answer within 1 s"),
    ],
)
def test_a_request_that_was_handed_over_is_not_served_again(caller: Caller, serve: Serve, words: str) -> None:
    with daemon(caller, serve):
        assert caller.error(CNI_COMMAND="DEL") == f"cni-bridged took the request and {words}; try again"
    assert not caller.undelivered.exists()


# There is no one-shot program


@pytest.fixture
def lone(caller: Caller) -> Caller:
    """A client without a one-shot program, that is to delete."""
    caller.oneshot.unlink()
    caller.environ["CNI_COMMAND"] = "DEL"
    return caller


KEPT = "a:eth0:85944171f73967e8"  # with the published FNV-1a of `foobar`


def refusal(caller: Caller, then: str, did: str = "does not answer") -> str:
    without = f"{caller.oneshot} is not there to serve the request without it"
    return f"cni-bridged {did} at {caller.socket}, and {without}; {then}"


def kept(caller: Caller, made: bool = True) -> str:
    return refusal(caller, "the DEL is kept and done when the daemon is back" if made else "try again")


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS", "VERSION"])
def test_nobody_serves_what_cannot_be_kept(lone: Caller, command: str) -> None:
    assert lone.error(CNI_COMMAND=command) == kept(lone, False)
    assert list(lone.run_dir.iterdir()) == []


def test_a_delete_is_kept(lone: Caller) -> None:
    lone.run_dir.rmdir()
    for _ in range(2):
        assert lone.error(b"foobar") == kept(lone)
        assert [each.name for each in lone.undelivered.iterdir()] == [KEPT]
    lone.error(b"other")
    lone.error(b"foobar", CNI_IFNAME="eth1")
    assert len(list(lone.undelivered.iterdir())) == 3
    modes = [each.stat().st_mode & 0o7777 for each in (lone.run_dir, lone.undelivered, lone.undelivered / KEPT)]
    assert modes == [0o755, 0o700, 0o600]
    environ = {**ENVIRON, "CNI_BRIDGE_RUN_DIR": str(lone.run_dir), **lone.environ}
    assert heard((lone.undelivered / KEPT).read_bytes()) == Heard("cni-bridge", environ, b"foobar", [])


def test_a_delete_that_was_read_is_kept_whole(lone: Caller) -> None:
    stdin = os.urandom(1_000_000)
    with daemon(lone, greet):
        assert lone.error(stdin) == kept(lone)
    (path,) = lone.undelivered.iterdir()
    assert heard(path.read_bytes()).stdin == stdin


def test_a_delete_that_was_declined_is_not_kept(lone: Caller) -> None:
    with daemon(lone, answering(255)):
        assert lone.error() == refusal(lone, "try again", "declines")
    assert not lone.undelivered.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "x" * 240])
@pytest.mark.parametrize("key", ["CNI_CONTAINERID", "CNI_IFNAME"])
def test_names_under_which_nothing_is_kept(lone: Caller, key: str, name: str) -> None:
    assert lone.error(**{key: name}) == kept(lone, False)
    assert [each for each in lone.run_dir.rglob("*") if each.is_file()] == []


@pytest.mark.parametrize("planted", [KEPT, f".{KEPT}"])
def test_what_was_planted_where_a_delete_is_kept_is_replaced(lone: Caller, planted: str) -> None:
    victim = lone.run_dir / "victim"
    victim.write_text("whole")
    lone.undelivered.mkdir()
    (lone.undelivered / planted).symlink_to(victim)
    assert lone.error(b"foobar") == kept(lone)
    assert victim.read_text() == "whole"
    assert [(each.name, each.is_symlink()) for each in lone.undelivered.iterdir()] == [(KEPT, False)]


@pytest.mark.parametrize("kind", ["link", "file", "full"])
def test_a_place_where_nothing_can_be_kept(lone: Caller, kind: str) -> None:
    elsewhere = lone.run_dir / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        lone.undelivered.symlink_to(elsewhere)
    elif kind == "file":
        lone.undelivered.touch()
    else:
        (lone.undelivered / KEPT).mkdir(parents=True)
    assert lone.error(b"foobar") == kept(lone, False)
    assert list(elsewhere.iterdir()) == []
    assert not list(lone.run_dir.glob("undelivered/.*"))


def test_other_failures_are_told(lone: Caller) -> None:
    lone.oneshot.write_text("")
    assert "cni-bridge-oneshot cannot be executed (Permission denied)" in lone.error(CNI_COMMAND="ADD")
    lone.oneshot.unlink()
    assert lone.error(CNI_COMMAND="") == f"CNI_COMMAND is not set, and {lone.oneshot} is not there to tell more"


def test_an_error_is_json_whatever_the_paths(lone: Caller) -> None:
    lone.run_dir /= 'a "b\\c\n\udcffé'
    assert "/a ?b?c????/cni-bridged.sock" in lone.error(CNI_COMMAND="ADD")
