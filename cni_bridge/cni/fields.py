"""Reads JSON the way CNI's Go programs do: keys match whatever their case, types are strict, null is absent.

Every failure names the key by its path from the top, such as `ipam.ranges[0][1].subnet`. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import (
    IPv4Network,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, TypeVar

from cni_bridge.cni.errors import DecodingFailure, InvalidConfig
from ipam.api import Address, Interface

T = TypeVar("T")


class Fields:
    """One JSON object, as `parse_object` reads it: with its keys in lower case."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self._values = values
        self.path = path

    def __contains__(self, key: str) -> bool:
        return key.lower() in self._values

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._get(key) is not None

    def without(self, key: str) -> dict[str, Any]:
        """All values but that one."""
        return {name: value for name, value in self._values.items() if name != key.lower()}

    def at(self, key: str) -> str:
        """The key's full path, for messages."""
        return f"{self.path}.{key}" if self.path else key

    def string(self, key: str, default: str = "") -> str:
        """A string."""
        return self._typed(key, str, default, "a string")

    def boolean(self, key: str, default: bool = False) -> bool:
        """A boolean."""
        return self._typed(key, bool, default, "true or false")

    def integer(self, key: str, default: int, *, low: int, high: int) -> int:
        """A whole number from low to high."""
        number = self._typed(key, int, default, "a whole number")
        if self.has(key) and not low <= number <= high:
            raise InvalidConfig(f"{self.at(key)} {number} is not between {low} and {high}")
        return number

    def optional_integer(self, key: str, *, low: int, high: int) -> int | None:
        """A whole number from low to high, or None where the key is absent."""
        return self.integer(key, 0, low=low, high=high) if self.has(key) else None

    def object(self, key: str) -> Fields:
        """An object; an empty one where the key is absent."""
        return Fields(self._typed(key, dict, {}, "an object"), self.at(key))

    def items(self, key: str) -> list[Any]:
        """A list of anything; an empty one where the key is absent."""
        return self._typed(key, list, [], "a list")

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        for position, each in enumerate(self.items(key)):
            if not isinstance(each, str):
                raise _wrong_type(f"{self.at(key)}[{position}]", each, "a string")
        return tuple(self.items(key))

    def objects(self, key: str) -> tuple[Fields, ...]:
        """A list of objects."""
        return as_objects(self.items(key), self.at(key))

    def address(self, key: str) -> Address | None:
        """An IP address."""
        return parse_address(self.string(key), self.at(key)) if self.string(key) else None

    def _get(self, key: str) -> Any:
        return self._values.get(key.lower())

    def _typed(self, key: str, kind: type[T], default: T, words: str) -> T:
        value = self._get(key)
        if value is None:
            return default
        if type(value) is not kind:
            raise _wrong_type(self.at(key), value, words)
        return value


def as_objects(values: list[Any], path: str) -> tuple[Fields, ...]:
    """The list's members as objects; `path` is the list's."""
    for position, each in enumerate(values):
        if not isinstance(each, dict):
            raise _wrong_type(f"{path}[{position}]", each, "an object")
    return tuple(Fields(each, f"{path}[{position}]") for position, each in enumerate(values))


def parse_object(text: bytes, what: str) -> Fields:
    """The JSON object in the text; `what` names the text in messages."""
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_lower_keys)
    except UnicodeDecodeError as error:
        raise DecodingFailure(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise DecodingFailure(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise DecodingFailure(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DecodingFailure(f"{what} is not a JSON object")
    return Fields(value)


def parse_address(text: str, path: str) -> Address:
    """An IP address without zone or prefix length."""
    return _parse(ip_address, text, path, "an IP address")


def parse_interface(text: str, path: str) -> Interface:
    """An IP address with a prefix length."""
    if "/" not in text:
        raise InvalidConfig(f'{path} "{text}" is not an address in CIDR notation')
    return _parse(ip_interface, text, path, "an address in CIDR notation")


def parse_destination(text: str, path: str) -> IPv4Network | IPv6Network:
    """A route's destination in CIDR notation; host bits are dropped, as the kernel does."""
    if "/" not in text:
        raise InvalidConfig(f'{path} "{text}" is not a destination in CIDR notation')
    return _parse(lambda value: ip_network(value, strict=False), text, path, "a destination in CIDR notation")


def parse_network(text: str, path: str) -> IPv4Network | IPv6Network:
    """An address or a subnet without host bits."""
    return _parse(ip_network, text, path, "an address or a subnet without host bits")


def _parse(parse: Callable[[str], T], text: str, path: str, words: str) -> T:
    try:
        if "%" in text or (not text.partition("/")[2].isdecimal() and "/" in text):  # a zone, or a netmask
            raise ValueError(text)
        return parse(text)
    except ValueError:
        raise InvalidConfig(f'{path} "{text}" is not {words}') from None


def _lower_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with its keys in lower case, the last of those that are then alike counting."""
    return {key.lower(): value for key, value in pairs}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _wrong_type(path: str, value: object, words: str) -> DecodingFailure:
    shown = json.dumps(value)
    return DecodingFailure(f"{path} is {shown if len(shown) <= 60 else shown[:57] + '...'}, expected {words}")
