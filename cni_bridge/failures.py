"""Several failures as one, for operations that do all they can."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from cni_bridge.cni.errors import CniError, as_cni_error

T = TypeVar("T")


class Failures:
    """Collects failures, so that one does not keep the rest from being done."""

    def __init__(self) -> None:
        self._errors: list[CniError] = []

    async def collect(self, action: Awaitable[T]) -> T | None:
        """The action's outcome; None if it failed."""
        try:
            return await action
        except Exception as error:
            self._errors.append(as_cni_error(error))
            return None

    async def did(self, action: Awaitable[object]) -> bool:
        """Whether the action succeeded."""
        known = len(self._errors)
        await self.collect(action)
        return len(self._errors) == known

    def note(self, error: CniError) -> None:
        """One more failure."""
        self._errors.append(error)

    def raise_any(self, what: str) -> None:
        """Fail with all failures in one, the first one's code, if there were any."""
        if self._errors:
            first, *others = self._errors
            details = "\n".join(filter(None, [first.details, *(each.msg for each in others)]))
            raise CniError(first.code, f"{what} is incomplete: {first.msg}", details)
