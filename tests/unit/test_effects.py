"""Whatever changes something outside of the process says so before (`ipam.effects`): found in the code, not listed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("cni_bridge", "ipam")

# What changes something, as calls are written: the receiver, or module, and the function.
_OF_PATHS = {"unlink", "rename", "mkdir", "rmdir", "write_text", "write_bytes", "symlink_to", "hardlink_to", "chmod"}
_OF_OS = {
    *("write", "pwrite", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "makedirs", "symlink", "link"),
    *("posix_fallocate", "truncate", "ftruncate", "chown", "fchown", "chmod", "fchmod", "mkfifo", "mknod"),
    *("kill", "killpg", "fork", "execv", "execve", "posix_spawn"),
}
_OF_SHUTIL = {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"}
_PROCESSES = {"run", "Popen", "call", "check_call", "check_output"}
_READING = re.compile(r"_?(RTM|CT)_GET|_?GET_")  # kinds of questions

# Who changes something and need not say so: a file, or a function of one, and why.
_EXEMPT = {
    "cni_bridge/ctl/": "the operator's command, which people repeat and no runtime calls",
    "ipam/host_local.py": "likewise: only that command reads and writes host-local's directory",
    "cni_bridge/shim.py": "imports nothing of ours; what it keeps is done when the daemon is back (test_clients)",
    "cni_bridge/daemon.py": "the daemon's start and end: a socket's file that is left is replaced by the next start",
    "ipam/daemon.py": "likewise",
    "ipam/service.py": "likewise; and the lock that keeps a second daemon out",
    "cni_bridge/firewall/apart.py": "a process that does what its caller has said before, and the pipe to it",
    "cni_bridge/firewall/iptables.py:__exit__": "runs in such a process, of which `_run` has said so",
    "cni_bridge/firewall/xtables_lock.py": "the lock that all programs of iptables share; its file stays for good",
    "cni_bridge/firewall/nftables_lookup.py:_ask_one": "asks what it is told to, in this class of looks",
    "cni_bridge/locks.py:_try_lock": "the owner's lock, which is there at every later point of the request",
}


@dataclass(kw_only=True)
class Function:
    """A function of the code: where it says that it changes something, what changes, and whom it calls."""

    file: str
    name: str
    said: list[int] = field(default_factory=list)  # the lines
    changes: list[tuple[int, str]] = field(default_factory=list)
    calls: list[tuple[int, str]] = field(default_factory=list)

    @property
    def place(self) -> str:
        """For messages, and for `_EXEMPT`."""
        return f"{self.file}:{self.name}"

    def has_said(self, line: int) -> bool:
        """Whether it said so before that line."""
        return any(each <= line for each in self.said)


def _functions(file: str, text: str) -> Iterator[Function]:
    """The functions of a module, methods and those within others too; its own code is one without a name."""

    def visit(node: ast.AST, function: Function) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = Function(file=file, name=child.name)
                found.append(inner)
                visit(child, inner)
                continue
            if isinstance(child, ast.Call):
                _note(child, function, imported)
            visit(child, function)

    tree = ast.parse(text)
    imported = {
        name.asname or name.name: f"{each.module}.{name.name}"
        for each in ast.walk(tree)
        if isinstance(each, ast.ImportFrom)
        for name in each.names
    }
    found = [Function(file=file, name="")]
    visit(tree, found[0])
    yield from found


def _note(call: ast.Call, function: Function, imported: dict[str, str]) -> None:
    written = ast.unparse(call.func)
    receiver, _, name = written.rpartition(".")
    if written in ("effects.change", "change"):
        function.said.append(call.lineno)
    elif _changes(call, receiver, name, imported):
        function.changes.append((call.lineno, f"{ast.unparse(call)[:80]}"))
    function.calls.append((call.lineno, name))
    # Handed on to be called: `partial(work, …)`, `rt.on_host(end_connections, …)`.
    for each in (*call.args, *(keyword.value for keyword in call.keywords)):
        if isinstance(each, ast.Name | ast.Attribute):
            function.calls.append((call.lineno, ast.unparse(each).rpartition(".")[2]))


def _changes(call: ast.Call, receiver: str, name: str, imported: dict[str, str]) -> bool:
    """Whether the call changes something outside of the process."""
    words = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    first = ast.unparse(call.args[0]) if call.args else ""
    match receiver.rpartition(".")[2], name:
        case (("os" | "posix"), "open"):
            flags = set(re.findall(r"O_[A-Z]+", ast.unparse(call.args[1])))
            return not flags or bool(flags & {"O_CREAT", "O_TRUNC"})
        case (("os" | "posix"), _):
            return name in _OF_OS
        case "shutil", _:
            return name in _OF_SHUTIL
        case "subprocess", _:
            return name in _PROCESSES
        case "asyncio", _:
            return name.startswith("create_subprocess")
        case _, "open":  # a file by its name
            modes = {*words, *(ast.unparse(each.value).strip("'") for each in call.keywords if each.arg == "mode")}
            return any(re.fullmatch(r"[wxa]b?\+?|r\+b?", each) for each in modes)
        case _, "replace":  # of a path, which has one argument; a text's has two, that of a dataclass has names
            return bool(receiver) and len(call.args) == 1 and not call.keywords
        case _, "bind":
            return "path" in ast.unparse(call)
        case _, ("execute" | "executescript"):
            return any(re.match("COMMIT|END", each) for each in words)
        case (("_connect()" | "nft"), "run"):
            return True
        case _, "run_apart":
            return first != "question"
        case (("_socket" | ""), "ask") if receiver or imported.get("ask", "").endswith("netlink_messages.ask"):
            kind, flags = map(ast.unparse, call.args[0 if receiver else 1 :][:2])
            return not _READING.match(kind) and flags != "NLM_F_DUMP"
        case "_socket", "transact":
            return True
        case "_ip", _:
            return not name.startswith("get_")
        case _, "commit":
            return True
    return bool(receiver) and name in _OF_PATHS


def _code() -> list[Function]:
    return [
        function
        for package in _PACKAGES
        for path in sorted((_ROOT / package).rglob("*.py"))
        for function in _functions(str(path.relative_to(_ROOT)), path.read_text())
    ]


def _is_exempt(function: Function) -> bool:
    return any(_names(each, function) for each in _EXEMPT)


def _names(exempt: str, function: Function) -> bool:
    return function.place == exempt or (exempt.endswith(("/", ".py")) and function.file.startswith(exempt))


def _unsaid(code: list[Function]) -> list[str]:
    """The changes of which nobody says before that they come: neither the function nor everybody who calls it."""
    called: dict[str, list[tuple[Function, int]]] = {}
    for function in code:
        for line, name in function.calls:
            called.setdefault(name, []).append((function, line))

    def is_said(function: Function, line: int, seen: frozenset[str]) -> bool:
        if function.has_said(line):
            return True
        callers = [(each, at) for each, at in called.get(function.name, ()) if each is not function]
        return bool(callers) and all(
            _is_exempt(each) or (each.place not in seen and is_said(each, at, seen | {function.place}))
            for each, at in callers
        )

    return [
        f"{function.file}:{line} in {function.name}: {what}"
        for function in code
        if not _is_exempt(function)
        for line, what in function.changes
        if not is_said(function, line, frozenset())
    ]


def test_whatever_changes_something_says_so_before() -> None:
    assert _unsaid(_code()) == []


def test_every_exemption_is_needed() -> None:
    code = _code()
    changing = [each for each in code if each.changes]
    assert [each for each in _EXEMPT if not any(_names(each, function) for function in changing)] == []


@pytest.mark.parametrize(
    "statement",
    [
        "path.unlink(missing_ok=True)",
        "self._path.with_suffix('.x').rename(path)",
        "draft.replace(path)",
        "directory.mkdir()",
        "path.write_text('1')",
        "os.write(fd, text)",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "os.open(path, flags, 0o600)",
        "open(path, 'w')",
        "path.open('ab')",
        "shutil.rmtree(path)",
        "subprocess.run(words)",
        "await asyncio.create_subprocess_exec(*words)",
        "connection.execute('COMMIT')",
        "self._connect().run(commands)",
        "run_apart(transaction)",
        "self._socket.ask(_RTM_NEWLINK, flags, payload, what='')",
        "ask(_NETLINK_NETFILTER, _CT_DELETE, NLM_F_ACK, message, what='')",
        "self._ip.tc('replace')",
        "self._table.commit()",
    ],
)
def test_a_change_is_found(statement: str) -> None:
    before = "from cni_bridge.netlink_messages import ask\nasync def new():\n    "
    (found,) = _unsaid(list(_functions("new.py", before + statement)))
    assert found.startswith("new.py:3 in new")
    assert _unsaid(list(_functions("new.py", f"{before}effects.change('a new one')\n    {statement}"))) == []


@pytest.mark.parametrize(
    "statement",
    [
        "text.replace('a', 'b')",
        "moment.replace(tzinfo=UTC)",
        "replace(attachment, policies=())",
        "path.read_text()",
        "os.open(path, os.O_RDONLY)",
        "open(path)",
        "connection.execute('SELECT 1')",
        "self._socket.ask(_RTM_GETLINK, flags, payload, what='')",
        "ask(_NETLINK_NETFILTER, _CT_GET, NLM_F_DUMP, question, what='')",
        "self._ip.get_qdiscs(index=index)",
        "asyncio.run(main())",
    ],
)
def test_a_look_is_none(statement: str) -> None:
    before = "from cni_bridge.netlink_messages import ask\ndef new():\n    "
    assert _unsaid(list(_functions("new.py", before + statement))) == []


def test_a_function_may_rely_on_all_who_call_it() -> None:
    text = "def _make():\n    path.mkdir()\ndef one():\n    effects.change('make')\n    _make()\n"
    assert _unsaid(list(_functions("new.py", text))) == []
    assert len(_unsaid(list(_functions("new.py", text + "def two():\n    _make()\n")))) == 1
