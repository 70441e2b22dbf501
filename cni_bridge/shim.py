"""The fast path of every plugin where no C compiler was: native/client.c in Python, step for step, of builtins only.

Run as a script by `python3 -IS`, which starts in 8 ms because it imports next to nothing; so does this. The reasons for
each step are told there.
"""

import _socket
import posix
import sys
import time

DECLINED = 255
PATIENCE = 0.3  # seconds for the greeting
SEND_PATIENCE = 0.05  # seconds after which to look whether the daemon answered without reading on
STDIN_LIMIT = 16 << 20
REPLY_LIMIT = 64 << 20
CHUNK = 1 << 16
MFD_NOEXEC_SEAL = 8  # Python 3.11 does not name it

UNASKED, UNANSWERED, DECLINING = range(3)  # why the one-shot program is to run; the module enum is not for free

ENVIRON = posix.environ
SCRIPT = sys.argv[0].encode(sys.getfilesystemencoding(), "surrogateescape")
NAME = SCRIPT.rpartition(b"/")[2] or b"cni-bridge"
RUN_DIR = ENVIRON.get(b"CNI_BRIDGE_RUN_DIR") or b"/run/cni-bridge"
SOCKET = RUN_DIR + b"/cni-bridged.sock"


def main() -> int:
    """Serve one call by the daemon or by the one-shot program; the exit status."""
    fill_standard_descriptors()
    if not ENVIRON.get(b"CNI_COMMAND"):
        return fall_back(UNASKED, None)
    connected = connect_to_daemon()
    own_netns = open_own_netns()
    if connected is None or own_netns is None:
        return fall_back(UNANSWERED, None)

    daemon, seconds = connected
    stdin = read_stdin()
    request = build_request(stdin)
    frame = len(request).to_bytes(4, "big") + request
    handed_over = send(daemon, frame, [own_netns, *open_netns()], time.monotonic() + seconds)
    deadline = time.monotonic() + (seconds if handed_over else PATIENCE)
    status = relay_reply(daemon, deadline)
    if status == DECLINED:
        return fall_back(DECLINING, stdin)
    if status is not None:
        return status
    if not handed_over:
        return fall_back(UNANSWERED, stdin)
    if time.monotonic() >= deadline:
        return fail(b"cni-bridged took the request and did not answer within %d s; try again" % seconds)
    return fail(b"cni-bridged took the request and ended before it answered; try again")


def fill_standard_descriptors() -> None:
    """Leave no closed one of them to the socket; what is opened here is closed again on exec."""
    with Suppressed():
        while (fd := posix.open("/dev/null", posix.O_RDWR)) <= 2:
            pass
        posix.close(fd)


def connect_to_daemon() -> tuple[_socket.socket, int] | None:
    """A connection on which the daemon greeted, with its seconds."""
    deadline = time.monotonic() + PATIENCE
    daemon = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    daemon.settimeout(PATIENCE)
    while True:
        try:
            daemon.connect(SOCKET)
            break
        except BlockingIOError:  # the backlog is full
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.005)
        except OSError:
            return None
    greeting = receive(daemon, 8, deadline)
    if greeting is None or not greeting.startswith(b"cnib\1"):
        return None
    return daemon, int.from_bytes(greeting[6:], "big")


def receive(daemon: _socket.socket, count: int, deadline: float) -> bytes | None:
    """That many bytes, if they come in time."""
    received = bytearray()
    try:
        while len(received) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            daemon.settimeout(left)
            piece = daemon.recv(min(count - len(received), CHUNK))
            if not piece:
                return None
            received += piece
    except OSError:
        return None
    return bytes(received)


def open_own_netns() -> int | None:
    """The namespace of this process, by which the daemon tells whether they are on the same host."""
    try:
        return posix.open("/proc/self/ns/net", posix.O_RDONLY)
    except OSError:
        return None


def open_netns() -> list[int]:
    """The container's namespace; none where it is gone, or is anything that opening might wake."""
    try:
        place = posix.open(ENVIRON.get(b"CNI_NETNS", b""), posix.O_PATH)
        if posix.fstat(place).st_mode & 0o170000 != 0o100000:  # S_ISREG
            return []
        return [posix.open(f"/proc/self/fd/{place}", posix.O_RDONLY | posix.O_NONBLOCK)]
    except OSError:
        return []


def read_stdin() -> bytes:
    """Standard input, one byte more than is allowed at most; nothing from a terminal."""
    read, most = bytearray(), 0 if posix.isatty(0) else STDIN_LIMIT + 1
    while len(read) < most:
        try:
            piece = posix.read(0, min(most - len(read), CHUNK))
        except BlockingIOError:
            time.sleep(0.001)
            continue
        except OSError:
            break
        if not piece:
            break
        read += piece
    return bytes(read)


def build_request(stdin: bytes) -> bytes:
    """The request without its length: the name, the environment, standard input."""
    return b"\0".join([NAME, *(b"%s=%s" % each for each in ENVIRON.items()), b"", stdin])


def send(daemon: _socket.socket, frame: bytes, descriptors: list[int], deadline: float) -> bool:
    """Whether the kernel took the whole of it. The descriptors ride with its first bytes."""
    rights = [
        (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(each.to_bytes(4, sys.byteorder) for each in descriptors))
    ]
    unsent = memoryview(frame)
    while unsent:
        daemon.settimeout(SEND_PATIENCE)
        try:
            sent = daemon.sendmsg([unsent], rights)
        except TimeoutError:
            if time.monotonic() >= deadline or has_answered(daemon):
                return False
        except OSError:
            return False
        else:
            unsent, rights = unsent[sent:], []
    return True


def has_answered(daemon: _socket.socket) -> bool:
    """Whether there is something to read, or the end."""
    daemon.settimeout(0)
    try:
        daemon.recv(1, _socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def relay_reply(daemon: _socket.socket, deadline: float) -> int | None:
    """The status of the reply, which is printed once it is complete."""
    start = receive(daemon, 9, deadline)
    if start is None:
        return None
    out, err, status = int.from_bytes(start[:4], "big"), int.from_bytes(start[4:8], "big"), start[8]
    texts = receive(daemon, out + err, deadline) if out + err <= REPLY_LIMIT else None
    if texts is None or status == DECLINED:
        return status if texts is not None else None
    printed = write_all(1, texts[:out])
    write_all(2, texts[out:])
    return status if printed else 1


def write_all(fd: int, content: bytes) -> bool:
    """Whether all of it was written."""
    left = memoryview(content)
    while left:
        try:
            left = left[posix.write(fd, left) :]
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:
            return False
    return True


def fall_back(why: int, stdin: bytes | None) -> int:
    """Become the one-shot program; the exit status where that cannot be. `stdin` is what was read of it."""
    path = directory() + b"cni-bridge-oneshot"
    if stdin is not None and (error := rewind(stdin)):
        return fail(b"standard input cannot be handed on to %s: %s; try again" % (path, error))
    try:
        posix.execv(path, [path, NAME])
    except FileNotFoundError:
        reason = b"is not there"
    except OSError as error:
        reason = b"cannot be executed (%s)" % str(error.strerror).encode()
    kept = why == UNANSWERED and ENVIRON.get(b"CNI_COMMAND") == b"DEL" and keep(stdin)
    then = b"the DEL is kept and done when the daemon is back" if kept else b"try again"
    if why == UNASKED:
        return fail(b"CNI_COMMAND is not set, and %s %s to tell more" % (path, reason))
    did = b"declines" if why == DECLINING else b"does not answer"
    return fail(
        b"cni-bridged %s at %s, and %s %s to serve the request without it; %s" % (did, SOCKET, path, reason, then)
    )


def directory() -> bytes:
    """Where the file of this script is, whatever links lead to it; ends with a slash."""
    path = SCRIPT
    while True:
        place, slash, _ = path.rpartition(b"/")
        place = place + slash or b"./"
        try:
            target = posix.readlink(path)
        except OSError:
            return place
        path = target if target.startswith(b"/") else place + target


def rewind(stdin: bytes) -> bytes:
    """Make this the standard input of the one-shot program; what went wrong, if anything did."""
    try:
        try:
            file = posix.memfd_create("stdin", posix.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
        except OSError:
            file = posix.memfd_create("stdin", posix.MFD_CLOEXEC)
        if not write_all(file, stdin):
            return b"no memory for it"
        posix.lseek(file, 0, 0)
        posix.dup2(file, 0)
    except OSError as error:
        return str(error.strerror).encode()
    return b""


def keep(stdin: bytes | None) -> bool:
    """Leave the request where the daemon finds it when it is back. Returns whether it is there."""
    container, ifname = ENVIRON.get(b"CNI_CONTAINERID", b""), ENVIRON.get(b"CNI_IFNAME", b"")
    if not is_file_name(container) or not is_file_name(ifname):
        return False
    stdin = read_stdin() if stdin is None else stdin
    kept = b"%s:%s:%016x" % (container, ifname, fnv1a(stdin))
    draft = b"." + kept
    posix.umask(0)
    make_directory(RUN_DIR, 0o755)
    make_directory(RUN_DIR + b"/undelivered", 0o700)
    try:
        place = posix.open(RUN_DIR + b"/undelivered", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW)
    except OSError:
        return False
    discard(draft, place)
    with Suppressed():
        file = posix.open(draft, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW, 0o600, dir_fd=place)
        if write_all(file, build_request(stdin)):
            posix.rename(draft, kept, src_dir_fd=place, dst_dir_fd=place)
            return True
    discard(draft, place)
    return False


def make_directory(path: bytes, mode: int) -> None:
    """Make it, if it can be and is not there."""
    with Suppressed():
        posix.mkdir(path, mode)


def discard(name: bytes, place: int) -> None:
    """Remove the file, if it is there."""
    with Suppressed():
        posix.unlink(name, dir_fd=place)


def is_file_name(text: bytes) -> bool:
    """Whether it can be part of a file's name, and the first."""
    return text != b"" and not text.startswith(b".") and b"/" not in text


def fnv1a(content: bytes) -> int:
    """The 64-bit FNV-1a hash."""
    value = 0xCBF29CE484222325
    for each in content:
        value = (value ^ each) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


class Suppressed:
    """`contextlib.suppress(OSError)` without its import."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        return kind is not None and issubclass(kind, OSError)


def fail(message: bytes) -> int:
    """Print a CNI error of code 11, "try again later"; the exit status."""
    text = b'{"cniVersion": "1.1.0", "code": 11, "msg": "%s", "details": "%s"}\n'
    details = b"see its log: journalctl -u cni-bridged; " + SOCKET
    write_all(1, text % (printable(message), printable(details)))
    return 1


def printable(text: bytes) -> bytes:
    """Each character that JSON would want escaped, or that may be no UTF-8, becomes a question mark."""
    return bytes(each if 32 <= each <= 126 and each not in b'"\\' else ord("?") for each in text)


if __name__ == "__main__":
    posix._exit(main())
