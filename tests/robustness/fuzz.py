"""Feeds one parser with bytes for as long as it is told, led by the branches that they reach.

`python -m tests.robustness.fuzz configuration -max_total_time=60`, with libFuzzer's options. Needs atheris
(`pip install .[robustness]`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cni_bridge", "ipam"]):
    from tests.support.fuzzing import SEEDS, TARGETS


def main() -> None:
    """Fuzz the target that the first argument names; `--list` names them all."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--list":
        sys.exit(print(*TARGETS))
    if name not in TARGETS:
        sys.exit(f"one of these: {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS):
            (Path(corpus) / str(number)).write_text(json.dumps(seed))
        atheris.Setup([sys.argv[0], *sys.argv[2:], corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
