"""Feeds one parser with bytes for as long as it is told, led by the branches that they reach.

`python -m tests.robustness.fuzz TARGET [libFuzzer's options]`, for one `configuration -max_total_time=60`. Needs atheris
(`pip install .[robustness]`).
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["cni_bridge", "ipam"]):
    from tests.support.fuzzing import TARGETS


def main() -> None:
    """Fuzz the target that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"one of these: {', '.join(TARGETS)}")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
