"""Ends this process at a chosen effect, or has the effect fail: for processes that were started with a control file.

The file says at which one, counted from now on over all processes that watch it; when it is reached, what it was.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from ipam import effects

VARIABLE = "CNI_BRIDGE_TEST_CONTROL"
KILL = "kill"
CHANGES, QUESTIONS = "changes", "questions"

_one_at_a_time = threading.Lock()


def install() -> None:
    """Watch this process's effects, if it was given a control file."""
    path = os.environ.get(VARIABLE)
    if path:
        effects.watch(
            changes=partial(_reached, Path(path), CHANGES), questions=partial(_reached, Path(path), QUESTIONS)
        )


def kind_of(what: str, file: str, function: str) -> str:
    """Whose failure an effect's would be, by the module that says it and, where that has several, its function."""
    match Path(file).stem, function:
        case ("database", _) | ("store", "_prepare"):
            return "sqlite"
        case "nftables_ruleset", "run_changes":
            return "told"  # the question that follows is what fails
        case (("nftables_ruleset" | "libnftables"), _):
            return "nftables"
        case "iptables", _:
            return "iptables"
        case "netlink", ("change_tc" | "add_vlan" | "delete_vlan"):
            return "pyroute2"
        case (("netlink" | "conntrack"), _):
            return "told"  # likewise
        case "netlink_messages", _:
            return "look" if what.startswith(("read ", "list ", "look ")) else "netlink"
        case (("forward_accept" | "ipam_exec"), _):
            return "program"
        case (("armed" | "forks"), _):
            return "answer"
    return "file"


def _reached(path: Path, watched: str, what: str) -> None:
    with _one_at_a_time:
        try:
            order = json.loads(path.read_text())
        except FileNotFoundError:
            return
        frame = sys._getframe(2)
        function, kind = _place(frame), kind_of(what, frame.f_code.co_filename, frame.f_code.co_name)
        if order["watch"] != watched or (order["kinds"] and kind not in order["kinds"]):
            return
        if order["left"] > 1:
            path.write_text(json.dumps({**order, "left": order["left"] - 1}))
            return
        path.with_suffix(".fired").write_text(json.dumps(f"{what} ({function})"))
        path.unlink()
        if order["act"] == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
    raise _FAILURES[kind](order["act"])


def _place(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


def _os_error(name: str) -> Exception:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def _sqlite_error(name: str) -> Exception:
    failure = sqlite3.OperationalError(f"injected {name}")
    failure.sqlite_errorcode, failure.sqlite_errorname = getattr(sqlite3, name), name
    return failure


def _nftables_error(name: str) -> Exception:
    from cni_bridge.firewall.libnftables import NftError

    return NftError(f"Error: Could not process rule: {os.strerror(getattr(errno, name))}")


def _iptables_error(name: str) -> Exception:
    from cni_bridge.firewall.apart import ChildFailed

    return ChildFailed(f"injected {name}")


def _pyroute2_error(name: str) -> Exception:
    from pyroute2.netlink.exceptions import NetlinkError

    failure: Exception = NetlinkError(getattr(errno, name))
    return failure


_FAILURES: dict[str, Callable[[str], Exception]] = {
    "sqlite": _sqlite_error,
    "nftables": _nftables_error,
    "iptables": _iptables_error,
    "pyroute2": _pyroute2_error,
    "netlink": _os_error,
    "look": _os_error,
    "program": _os_error,
    "file": _os_error,
}
