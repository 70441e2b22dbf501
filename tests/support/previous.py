"""The project as it was one commit ago, beside the one that is installed: exported, not installed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.ways import interpreter

_ROOT = Path(__file__).parents[2]
_MAINS = {
    "cni-bridge-oneshot": "cni_bridge.oneshot",
    "cni-bridged": "cni_bridge.daemon",
    "ipamd": "cni_bridge.ipamd",
}
_OTHER_NAMES = ("portmap", "firewall", "tuning", "bandwidth")  # that a client goes by
_CODE = ("cni_bridge", "ipam")


class NoPrevious(Exception):
    """There is no earlier version at hand; the message says why."""


@dataclass(frozen=True, slots=True)
class Previous:
    """Its commit, and the directory with its executables, to be called as runtimes call them."""

    commit: str
    bin: Path


def previous(directory: Path) -> Previous:
    """The version of the commit before this one, or of UPGRADE_FROM, made to run from the directory."""
    commit = os.environ.get("UPGRADE_FROM") or _earlier_commit()
    tree, programs = directory / "tree", directory / "bin"
    exported = _git("archive", "--format=tar", commit, *_CODE)
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        archive.extractall(tree, filter="data")
    programs.mkdir()
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tree)!r}); import ipam; print(ipam.__file__)"],
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert found.startswith(str(tree)), f"{found} is not the earlier version"
    for name, module in _MAINS.items():
        _write(
            programs / name,
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(tree)!r})\n"
            f"from {module} import main\nsys.exit(main())\n",
        )
    client = (tree / "cni_bridge/shim.py").read_text()
    _write(programs / "cni-bridge", f"#!{interpreter()} -IS\n{client}")
    for name in _OTHER_NAMES:
        (programs / name).symlink_to("cni-bridge")
    return Previous(commit, programs)


def _earlier_commit() -> str:
    """The last commit that differs from this one in the code: most commits change something else too."""
    try:
        shallow = _git("rev-parse", "--is-shallow-repository").decode().strip() == "true"
        top = Path(_git("rev-parse", "--show-toplevel").decode().strip())
        commits = _git("log", "--format=%H", "-n", "2", "--", *_CODE).decode().split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoPrevious(f"no git history: {error}") from None
    if not top.samefile(_ROOT):
        raise NoPrevious(f"no git history: the repository at {top} is another one")
    changed = _git("status", "--porcelain", "--", *_CODE).decode().strip()
    if changed and commits:  # what is installed from this tree is not what was committed last
        return commits[0]
    if len(commits) < 2:
        raise NoPrevious("no earlier commit is at hand" + (": the clone is shallow" if shallow else ""))
    return commits[1]


def _git(*words: str) -> bytes:
    command = ["git", "-c", f"safe.directory={_ROOT}", "-C", str(_ROOT), *words]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
