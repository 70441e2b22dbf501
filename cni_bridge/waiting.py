"""Whether somebody still waits for what is being done: a daemon may find a request whose caller has long gone.

Such a caller's runtime has asked again, and somebody else has served it. To do the old request then would undo that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from cni_bridge.cni.errors import CniError, Code

_has_gone: ContextVar[Callable[[], bool] | None] = ContextVar("has_gone", default=None)


_in_vain: ContextVar[set[str] | None] = ContextVar("in_vain", default=None)


def begin() -> None:
    """What this task does from now on is another request: it has waited for nothing yet."""
    _in_vain.set(set())


def in_vain() -> set[str]:
    """The locks that this request has waited for in vain; it has other work to do than to wait again."""
    found = _in_vain.get()
    return found if found is not None else set()


def expect(has_gone: Callable[[], bool]) -> None:
    """What this task does is for a caller of whom this tells whether he has gone."""
    _has_gone.set(has_gone)


def require() -> None:
    """Fail if nobody waits any more. Within a lock that whoever serves a repeat has to take too, this is exact."""
    has_gone = _has_gone.get()
    if has_gone is not None and has_gone():
        raise CniError(Code.TRY_AGAIN_LATER, "the caller has gone before its request was begun")
