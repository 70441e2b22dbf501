"""`shim.py` imports next to nothing: each module that it does import is paid for by every request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cni_bridge import shim

SHIM = Path(shim.__file__)
INTERPRETER = (sys.executable, "-IS")


def modules_of(program: str) -> set[str]:
    """The modules that are there when it ends."""
    printing = f"{program}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run([*INTERPRETER, "-c", printing], check=True, capture_output=True, text=True).stdout.split()
    )


def test_it_imports_sockets_and_nothing_else() -> None:
    running = (
        f"import sys\nsys.argv = ['x/cni-bridge']\nexec(compile(open({str(SHIM)!r}).read(), 'shim', 'exec'), {{}})"
    )
    assert modules_of(running) - modules_of("") == {"_socket"}


def test_a_call_imports_no_more(tmp_path: Path) -> None:
    """Without a daemon and a one-shot program, which goes through most of it."""
    (tmp_path / "cni-bridge").write_bytes(SHIM.read_bytes())
    environ = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0", "CNI_BRIDGE_RUN_DIR": str(tmp_path)}
    command = [*INTERPRETER, "-X", "importtime", str(tmp_path / "cni-bridge")]
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert "the DEL is kept" in done.stdout
    bare = subprocess.run([*INTERPRETER, "-X", "importtime", "-c", ""], capture_output=True, text=True, check=True)

    def imported(lines: str) -> set[str]:
        return {each.rpartition("|")[2].strip() for each in lines.splitlines()}

    assert imported(done.stderr) - imported(bare.stderr) <= {"_socket"}


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
def test_fnv1a_is_as_published(content: bytes, value: int) -> None:
    assert shim.fnv1a(content) == value


def test_printable_is_json_as_it_stands() -> None:
    assert shim.printable(b'a "b\\c"\n\x7f~ \xff') == b"a ?b?c???~ ?"
