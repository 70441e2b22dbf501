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
_Decoder = Callable[[Json, str], object]  # of a value and where it stands

_EITHER_FAMILY: dict[frozenset[type], Callable[[str], object]] = {
    frozenset({IPv4Address, IPv6Address}): ip_address,
    frozenset({IPv4Interface, IPv6Interface}): ip_interface,
    frozenset({IPv4Network, IPv6Network}): ip_network,
}
_ONE_FAMILY = {each for both in _EITHER_FAMILY for each in both}
_TEXTS_KEPT = 1024  # of each type: the subnets and gateways of a configuration come with every request


def encode(value: object) -> Json:
    """A JSON value for a dataclass, or for what dataclasses here are made of."""
    return _encoder(cast(Hashable, type(value)))(value)


def decode(kind: type[T], value: Json) -> T:
    """The value of that type; `ValueError` names what does not fit."""
    return cast(T, _decoder(cast(Hashable, kind))(value, kind.__name__))


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
    return lambda value, at: None if value is None else decoder(value, at)


def _many(collection: Callable[[Any], object], decoder: _Decoder) -> _Decoder:
    def decode_many(value: Json, at: str) -> object:
        if not isinstance(value, list):
            raise ValueError(f"{at} is not a list")
        return collection(decoder(each, f"{at}[{i}]") for i, each in enumerate(value))

    return decode_many


def _object(kind: type) -> _Decoder:
    decoders = {name: _decoder(hint) for name, hint in get_type_hints(kind).items()}

    def decode_object(value: Json, at: str) -> object:
        if not isinstance(value, dict):
            raise ValueError(f"{at} is not an object")
        if unknown := value.keys() - decoders.keys():
            raise ValueError(f"{at} has unknown keys {sorted(map(str, unknown))}")
        try:
            return kind(**{name: decoders[name](each, f"{at}.{name}") for name, each in value.items()})
        except TypeError as error:
            raise ValueError(f"{at}: {error}") from None

    return decode_object


def _text(parse: Callable[[str], object]) -> _Decoder:
    parse = lru_cache(_TEXTS_KEPT)(parse)

    def decode_text(value: Json, at: str) -> object:
        if not isinstance(value, str):
            raise ValueError(f"{at} is not a string")
        try:
            return parse(value)
        except ValueError:
            raise ValueError(f"{at} has a value that does not fit: {value[:80]!r}") from None

    return decode_text


def _exactly(kind: type) -> _Decoder:
    def decode_exactly(value: Json, at: str) -> object:
        if type(value) is not kind:
            raise ValueError(f"{at} is not of type {kind.__name__}")
        return value

    return decode_exactly
