"""What was read of configurations: those of a network's containers are the same bytes, time and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cni_bridge.cni.request import Request

T = TypeVar("T")

_MOST = 64  # networks of a node
_LONGEST = 1 << 14  # bytes of a configuration; longer ones are not kept


class Remembered(Generic[T]):
    """What was read of the last configurations, a value that nobody changes."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def of(self, request: Request, *rest: Hashable, read: Callable[[], T]) -> T:
        """What `read` says of the request's configuration and of the `rest`, and of nothing else; it is asked once."""
        if len(request.stdin) > _LONGEST:
            return read()
        key = (request.stdin, *rest)
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = read()
            if len(self._values) > _MOST:
                self._values.popitem(last=False)
        else:
            self._values.move_to_end(key)
        return value
