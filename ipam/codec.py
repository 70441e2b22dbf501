"""Turns the frozen dataclasses of this project into JSON values and back, by their type hints."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
Json = Any

_PARSERS: dict[frozenset[type], Callable[[str], object]] = {
    frozenset({IPv4Address, IPv6Address}): ip_address,
    frozenset({IPv4Interface, IPv6Interface}): ip_interface,
    frozenset({IPv4Network, IPv6Network}): ip_network,
}


def encode(value: object) -> Json:
    """A JSON value for a dataclass, or for what dataclasses here are made of."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value):
        return {each.name: encode(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, (tuple, list)):
        return [encode(each) for each in value]
    if isinstance(value, frozenset):
        return sorted((encode(each) for each in value), key=str)
    return str(value)


def decode(kind: type[T], value: Json) -> T:
    """The value of that type; `ValueError` names what does not fit."""
    return cast(T, _decode(kind, value, kind.__name__))


def _decode(kind: Any, value: Json, at: str) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = get_args(kind)
        if value is None and type(None) in options:
            return None
        rest = frozenset(each for each in options if each is not type(None))
        return _parse(_PARSERS[rest], value, at) if rest in _PARSERS else _decode(next(iter(rest)), value, at)
    if origin in (tuple, frozenset):
        if not isinstance(value, list):
            raise ValueError(f"{at} is not a list")
        inner = get_args(kind)[0]
        items = (_decode(inner, each, f"{at}[{i}]") for i, each in enumerate(value))
        return tuple(items) if origin is tuple else frozenset(items)
    if is_dataclass(kind):
        return _object(cast(type, kind), value, at)
    if kind is datetime:
        return _parse(datetime.fromisoformat, value, at)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _parse(kind, value, at)
    if kind in (IPv4Network, IPv6Network, IPv4Address, IPv6Address, IPv4Interface, IPv6Interface):
        return _parse(kind, value, at)
    if type(value) is not kind:
        raise ValueError(f"{at} is not of type {kind.__name__}")
    return cast(object, value)


def _object(kind: type, value: Json, at: str) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"{at} is not an object")
    known = _hints(kind)
    unknown = value.keys() - known.keys()
    if unknown:
        raise ValueError(f"{at} has unknown keys {sorted(map(str, unknown))}")
    try:
        return kind(**{name: _decode(known[name], each, f"{at}.{name}") for name, each in value.items()})
    except TypeError as error:
        raise ValueError(f"{at}: {error}") from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _parse(parse: Callable[[Any], object], value: Json, at: str) -> object:
    if not isinstance(value, str):
        raise ValueError(f"{at} is not a string")
    try:
        return parse(value)
    except ValueError:
        raise ValueError(f"{at} has a value that does not fit: {str(value)[:80]!r}") from None
