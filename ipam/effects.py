"""The places at which something outside of this process is asked or changed: where tests end it, or have it fail.

Every such place calls `change` or `ask` before; a test of the code sees to it (tests/unit/test_effects.py).
"""

from __future__ import annotations

from collections.abc import Callable

Hook = Callable[[str], None]

_before_change: Hook | None = None
_before_question: Hook | None = None


def change(what: str) -> None:
    """Something is changed next; `what` says it in a few words."""
    if _before_change is not None:
        _before_change(what)


def ask(what: str) -> None:
    """Something is asked next that may fail."""
    if _before_question is not None:
        _before_question(what)


def watch(*, changes: Hook | None = None, questions: Hook | None = None) -> None:
    """Have these called before each change and each question; what they raise, the place raises."""
    global _before_change, _before_question
    _before_change, _before_question = changes, questions
