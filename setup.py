"""Builds what runtimes execute, `cni-bridge` and `cni-ipam`: the native client, or without a C compiler the Python one.

The rest of the package is told in pyproject.toml. `CC` names the compiler; `CNI_BRIDGE_CLIENT=python` does without.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, setup

NAMES = ("cni-bridge", "cni-ipam")
NATIVE = Path("cni_bridge/native/client.c")
PYTHON = Path("cni_bridge/shim.py")
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Os", "-s")


class BuildClients(Command):
    """Stands in for setuptools' `build_scripts`, which would give the Python client another interpreter line."""

    user_options = ()

    def initialize_options(self) -> None:
        """The directory is that of the command `build`."""
        self.build_dir = ""

    def finalize_options(self) -> None:
        """Take it from there."""
        self.build_dir = self.build_dir or self.get_finalized_command("build").build_scripts

    def get_source_files(self) -> list[str]:
        """What a source distribution needs."""
        return [str(NATIVE), str(PYTHON)]

    def get_outputs(self) -> list[str]:
        """The executables."""
        return [str(Path(self.build_dir, name)) for name in NAMES]

    def run(self) -> None:
        """Make the one client, under each of its names."""
        first, *others = map(Path, self.get_outputs())
        first.parent.mkdir(parents=True, exist_ok=True)
        if not compiled(first):
            first.write_text(f"#!{interpreter()} -IS\n{PYTHON.read_text()}")
        first.chmod(0o755)
        for each in others:
            shutil.copy(first, each)


def compiled(target: Path) -> bool:
    """Compile the native client; static where the C library can be, for it starts sooner and runs on any host."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or ""]
    if os.environ.get("CNI_BRIDGE_CLIENT") == "python" or not shutil.which(compiler[0]):
        return False
    command = [*compiler, *FLAGS, "-o", str(target), str(NATIVE)]
    return any(subprocess.run([*command, *more], check=False).returncode == 0 for more in (["-static"], []))


def interpreter() -> str:
    """The interpreter behind a virtual environment: the client needs nothing of the latter."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


setup(
    scripts=list(NAMES),
    cmdclass={"build_scripts": BuildClients},
    # The modules are for any system, but a wheel also holds this one's machine code, or the path of its interpreter.
    options={"bdist_wheel": {"plat_name": sysconfig.get_platform()}},
)
