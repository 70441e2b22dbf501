"""Two things that are waited for at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar, cast

T = TypeVar("T")
U = TypeVar("U")


async def both(one: Awaitable[T], other: Awaitable[U]) -> tuple[T, U]:
    """The answers of both; a failure, of two the first one's, is told after both have ended."""
    answers = await asyncio.gather(one, other, return_exceptions=True)
    for each in answers:
        if isinstance(each, BaseException):
            raise each
    return cast(tuple[T, U], tuple(answers))
