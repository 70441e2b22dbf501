"""Takes back the effects of a request that failed, the last first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds for one effect; the request may be past its own time already

Effect = Callable[[], Awaitable[object]]


class Undo:
    """A context: what was pushed is run when the block raises, and dropped when it ends well or it is not `active`."""

    def __init__(self, *, active: bool = True) -> None:
        self._active = active
        self._effects: list[Effect] = []

    def push(self, effect: Effect) -> None:
        """Remember how to take an effect back; call it before the effect."""
        self._effects.append(effect)

    async def __aenter__(self) -> Undo:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._active:
            return
        for effect in reversed(self._effects):
            try:
                async with asyncio.timeout(_PATIENCE):
                    await effect()
            except Exception as failure:  # the others still have their turn; DEL and GC can take this one back
                log.warning(
                    "could not take back an effect of the failed request: %s", failure or type(failure).__name__
                )
