"""Turns the frozen dataclasses of this project into JSON values and back, by their type hints.

The hints of each type are read once: what encodes and decodes its values is kept.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache, lru_cache
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
from operator import attrgetter
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
Json = Any
_Decoder = Callable[[Json], object]  # may raise `_Misfit`

_EITHER_FAMILY: dict[frozenset[type], Callable[[str], object]] = {
    frozenset({IPv4Address, IPv6Address}): ip_address,
    frozenset({IPv4Interface, IPv6Interface}): ip_interface,
    frozenset({IPv4Network, IPv6Network}): ip_network,
}
_ONE_FAMILY = {each for both in _EITHER_FAMILY for each in both}
_TEXTS_KEPT = 1024  # of each type: the subnets and gateways of a configuration come with every request


class _Misfit(ValueError):
    """What does not fit in a value, and where in it: that is put together on the way out, for most values fit."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where

    def within(self, part: str) -> _Misfit:
        """The same of a value that has this one as that part."""
        return _Misfit(self.what, part + self.where)


def encode(value: object) -> Json:
    """A JSON value for a dataclass, or for what dataclasses here are made of."""
    return _encoder(cast(Hashable, type(value)))(value)


def decode(kind: type[T], value: Json) -> T:
    """The value of that type; `ValueError` names what does not fit."""
    try:
        return cast(T, _decoder(cast(Hashable, kind))(value))
    except _Misfit as error:
        raise ValueError(f"{kind.__name__}{error.where}{error.what}") from None


@cache
def _encoder(kind: type) -> Callable[[Any], Json]:
    if kind in (type(None), bool, int, float):
        return lambda value: value
    if issubclass(kind, Enum):
        return attrgetter("value")
    if issubclass(kind, datetime):
        return datetime.isoformat
    if is_dataclass(kind):
        names = [each.name for each in fields(kind)]
        return lambda value: {name: encode(getattr(value, name)) for name in names}
    if issubclass(kind, (tuple, list)):
        return lambda value: [encode(each) for each in value]
    if issubclass(kind, frozenset):
        return lambda value: sorted(map(encode, value), key=str)
    return str


@cache
def _decoder(kind: Any) -> _Decoder:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind))
    if origin in (tuple, frozenset):
        return _many(origin, _decoder(get_args(kind)[0]))
    if is_dataclass(kind):
        return _object(cast(type, kind))
    if kind is datetime:
        return _text(datetime.fromisoformat)
    if kind in _ONE_FAMILY or issubclass(kind, Enum):
        return _text(kind)
    return _exactly(kind)


def _one_of(options: tuple[Any, ...]) -> _Decoder:
    rest = frozenset(each for each in options if each is not type(None))
    decoder = _text(_EITHER_FAMILY[rest]) if rest in _EITHER_FAMILY else _decoder(next(iter(rest)))
    if len(rest) == len(options):
        return decoder
    return lambda value: None if value is None else decoder(value)


def _many(collection: Callable[[Any], object], decoder: _Decoder) -> _Decoder:
    def decode_many(value: Json) -> object:
        if not isinstance(value, list):
            raise _Misfit(" is not a list")
        found: list[object] = []
        try:
            for each in value:
                found.append(decoder(each))
        except _Misfit as error:
            raise error.within(f"[{len(found)}]") from None
        return collection(found)

    return decode_many


def _object(kind: type) -> _Decoder:
    decoders = {name: _decoder(hint) for name, hint in get_type_hints(kind).items()}

    def decode_object(value: Json) -> object:
        if not isinstance(value, dict):
            raise _Misfit(" is not an object")
        if not value.keys() <= decoders.keys():
            raise _Misfit(f" has unknown keys {sorted(map(str, value.keys() - decoders.keys()))}")
        found: dict[str, object] = {}
        for name, each in value.items():
            try:
                found[name] = decoders[name](each)
            except _Misfit as error:
                raise error.within(f".{name}") from None
        try:
            return kind(**found)
        except TypeError as error:
            raise _Misfit(f": {error}") from None

    return decode_object


def _text(parse: Callable[[str], object]) -> _Decoder:
    parse = lru_cache(_TEXTS_KEPT)(parse)

    def decode_text(value: Json) -> object:
        if not isinstance(value, str):
            raise _Misfit(" is not a string")
        try:
            return parse(value)
        except ValueError:
            raise _Misfit(f" has a value that does not fit: {value[:80]!r}") from None

    return decode_text


def _exactly(kind: type) -> _Decoder:
    def decode_exactly(value: Json) -> object:
        if type(value) is not kind:
            raise _Misfit(f" is not of type {kind.__name__}")
        return value

    return decode_exactly
