"""The conditions on which `portmap` publishes ports: options of iptables(8), or words of nft(8). Pure.

The reference has its iptables backend take the ones and its nftables backend the others. Here those of iptables are
read and mean the same to both firewalls; those of nftables are opaque, and for nftables alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from ipaddress import collapse_addresses, ip_address, ip_network

from cni_bridge.cni.errors import InvalidConfig
from ipam.api import Address, Network

_OPAQUE = re.compile(r"[A-Za-z0-9_./:,@=<>{}\"!&|* -]+")  # nothing that would end a rule or begin a comment
_LINK = re.compile(r"(?!.{16})[A-Za-z0-9_.@-]+\+?")  # IFNAMSIZ; no wildcard of nftables, nothing to be quoted
_MAX_MARK = 0xFFFFFFFF


class Side(StrEnum):
    """Which of a packet's addresses."""

    SOURCE = "src"
    DESTINATION = "dst"


class Direction(StrEnum):
    """By which link a packet comes, or goes."""

    IN = "in"
    OUT = "out"


class State(StrEnum):
    """A connection's state, as iptables calls it, in its order; nftables has the same in lower case."""

    INVALID = "INVALID"
    NEW = "NEW"
    RELATED = "RELATED"
    ESTABLISHED = "ESTABLISHED"
    UNTRACKED = "UNTRACKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRange:
    """The addresses from `first` to `last`, of one family; as text a subnet if they are one."""

    first: Address
    last: Address

    def __str__(self) -> str:
        subnet = self.subnet
        return f"{self.first}-{self.last}" if subnet is None else str(subnet).removesuffix(f"/{subnet.max_prefixlen}")

    @property
    def subnet(self) -> Network | None:
        """The subnet that it is, if it is one."""
        differing = (int(self.first) ^ int(self.last)).bit_length()
        around = ip_network(f"{self.first}/{self.first.max_prefixlen - differing}", strict=False)
        return around if (around[0], around[-1]) == (self.first, self.last) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressMatch:
    """The address is in one of the ranges; `negated`, in that one it is not."""

    side: Side
    ranges: tuple[AddressRange, ...]
    negated: bool = False

    def __str__(self) -> str:
        shown = ",".join(map(str, self.ranges))
        if all(each.subnet for each in self.ranges):
            return f"{_unless(self.negated)}-{self.side[0]} {shown}"
        return f"-m iprange {_unless(self.negated)}--{self.side}-range {shown}"

    def nftables(self) -> str:
        """The same in nftables' words."""
        ip = "ip" if self.ranges[0].first.version == 4 else "ip6"
        shown = ", ".join(map(str, self.ranges))
        return f"{ip} {self.side[0]}addr {_unequal(self.negated)}{shown if len(self.ranges) == 1 else f'{{ {shown} }}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMatch:
    """The link has that name, or one that begins so if it ends in `+`."""

    direction: Direction
    name: str
    negated: bool = False

    def __str__(self) -> str:
        return f"{_unless(self.negated)}-{self.direction[0]} {self.name}"

    def nftables(self) -> str:
        """The same in nftables' words."""
        return f'{self.direction[0]}ifname {_unequal(self.negated)}"{self.name.replace("+", "*")}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkMatch:
    """The bits of the packet's mark that are in `mask` are `value`."""

    value: int
    mask: int = _MAX_MARK
    negated: bool = False

    def __str__(self) -> str:
        return f"-m mark {_unless(self.negated)}--mark {self.bits}"

    @property
    def bits(self) -> str:
        """Value and mask, as iptables writes them."""
        return f"{self.value:#x}" if self.mask == _MAX_MARK else f"{self.value:#x}/{self.mask:#x}"

    def nftables(self) -> str:
        """The same in nftables' words."""
        masked = "" if self.mask == _MAX_MARK else f"and {self.mask:#x} "
        return f"meta mark {masked}{'!=' if self.negated else '=='} {self.value:#x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMatch:
    """The connection is in one of the states; `negated`, in none of them."""

    states: tuple[State, ...]
    negated: bool = False

    def __str__(self) -> str:
        return f"-m conntrack {_unless(self.negated)}--ctstate {','.join(self.states)}"

    def nftables(self) -> str:
        """The same in nftables' words."""
        return f"ct state {_unequal(self.negated)}{{ {', '.join(self.states).lower()} }}"


Match = AddressMatch | LinkMatch | MarkMatch | StateMatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """All of the matches hold, or what `opaque` says to nftables; as text, what `read_condition` reads again."""

    matches: tuple[Match, ...] = ()
    opaque: str = ""

    def __str__(self) -> str:
        return self.opaque or " ".join(map(str, self.matches))

    def nftables(self) -> str:
        """The condition in nftables' words."""
        return self.opaque or " ".join(each.nftables() for each in self.matches)

    def require_matches(self, path: str) -> tuple[Match, ...]:
        """The matches; words of nftables are refused, with the key at `path`, for iptables has no use for them."""
        if self.opaque:
            raise InvalidConfig(
                f'{path} "{self.opaque}" is in words of nftables, and this host has only iptables',
                "options of iptables, such as -s 192.0.2.0/24, are understood with both",
            )
        return self.matches


def parse_condition(words: Sequence[str], path: str, family: int) -> Condition:
    """The condition in the configuration, the key at `path`; `family`: 4 or 6."""
    if words and words[0][:1] in ("-", "!"):  # that is how the reference tells them apart
        return Condition(matches=tuple(_matches(words, path, family)))
    for position, each in enumerate(words):
        if not _OPAQUE.fullmatch(each):
            raise InvalidConfig(
                f'{path}[{position}] "{each}" has characters that are no part of a condition of nftables'
            )
    return Condition(opaque=" ".join(words))


def read_condition(text: str, family: int) -> Condition:
    """The condition of which this is the text, as it is recorded."""
    return parse_condition(text.split(), "condition", family) if text[:1] in ("-", "!") else Condition(opaque=text)


def _matches(words: Sequence[str], path: str, family: int) -> Iterator[Match]:
    """What the options of iptables say, in order; `InvalidConfig` names what is not known, or known to be useless."""
    links: set[Direction] = set()
    modules: dict[str, bool] = {"": True}  # those named so far, and whether an option of theirs was given
    rest = iter(enumerate(words))
    for position, word in rest:
        negated = word == "!"
        if negated:
            position, word = next(rest, (position, word))
        try:
            if word in ("-m", "--match") and not negated:
                _, module = next(rest, (0, ""))
                if module not in _MODULES:
                    raise ValueError(f'"{module}" is none of {", ".join(_MODULES)}, which are understood here')
                modules.setdefault(module, False)
                continue
            if word not in _OPTIONS:
                raise ValueError("is no option of iptables that is understood here")
            option = _OPTIONS[word]
            if option.module not in modules:
                raise ValueError(f"needs -m {option.module} before it")
            modules[option.module] = True
            _, value = next(rest, (0, ""))
            match = option.parse(value, negated, family)
            if isinstance(match, LinkMatch):
                if match.direction in links:
                    raise ValueError("is given twice")
                links.add(match.direction)
        except ValueError as error:
            raise InvalidConfig(f'{path}[{position}] "{word}" {error}') from None
        if match is not None:
            yield match
    for module, said in modules.items():
        if not said:
            raise InvalidConfig(f"{path}: -m {module} has no option of its own behind it")


def _subnets(side: Side, text: str, negated: bool, family: int) -> AddressMatch:
    subnets = [_subnet(each.strip(), family) for each in text.split(",")]
    if negated and len(subnets) > 1:
        raise ValueError(f'"{text}": several cannot be negated, as in iptables')
    ranges = tuple(
        AddressRange(first=each.network_address, last=each.broadcast_address)
        for each in collapse_addresses(subnets)  # type: ignore[type-var]
    )
    return AddressMatch(side=side, ranges=ranges, negated=negated)


def _subnet(text: str, family: int) -> Network:
    """An address, with a prefix length or a netmask if it is a subnet; its host bits do not count."""
    try:
        subnet = ip_network(text, strict=False)
    except ValueError:
        subnet = None
    mask = text.partition("/")[2]
    inverse = "." in mask and subnet is not None and str(subnet.netmask) != mask  # which means another to iptables
    if subnet is None or subnet.version != family or inverse or "%" in text:
        raise ValueError(f'"{text}" is no IPv{family} address or subnet')
    return subnet


def _range(side: Side, text: str, negated: bool, family: int) -> AddressMatch:
    first, _, last = text.partition("-")
    found = AddressRange(first=_address(first, family), last=_address(last or first, family))
    if int(found.first) > int(found.last):
        raise ValueError(f'"{text}" ends before it begins')
    return AddressMatch(side=side, ranges=(found,), negated=negated)


def _address(text: str, family: int) -> Address:
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != family or "%" in text:
        raise ValueError(f'"{text}" is no IPv{family} address')
    return address


def _link(direction: Direction, text: str, negated: bool, family: int) -> LinkMatch:
    if not _LINK.fullmatch(text):
        raise ValueError(f'"{text}" is no name of a link')
    return LinkMatch(direction=direction, name=text, negated=negated)


def _mark(text: str, negated: bool, family: int) -> MarkMatch:
    value, slash, mask = text.partition("/")
    return MarkMatch(value=_bits(value), mask=_bits(mask) if slash else _MAX_MARK, negated=negated)


def _bits(text: str) -> int:
    try:
        bits = int(text, 0)
    except ValueError:
        bits = -1
    if not 0 <= bits <= _MAX_MARK:
        raise ValueError(f'"{text}" is no mark of 32 bits')
    return bits


def _states(text: str, negated: bool, family: int) -> StateMatch:
    asked = text.upper().split(",")
    for each in asked:
        if each not in list(State):
            raise ValueError(f'"{each}" is none of {", ".join(State)}')
    return StateMatch(states=tuple(each for each in State if each in asked), negated=negated)


def _comment(text: str, negated: bool, family: int) -> None:
    """Nothing: our rules have a comment of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """An option that takes a value, and the module that iptables must be told first, if any."""

    module: str
    parse: Callable[[str, bool, int], Match | None]


_OPTIONS = {
    name: _Option(module=module, parse=parse)
    for module, names, parse in (
        ("", ("-s", "--src", "--source"), partial(_subnets, Side.SOURCE)),
        ("", ("-d", "--dst", "--destination"), partial(_subnets, Side.DESTINATION)),
        ("", ("-i", "--in-interface"), partial(_link, Direction.IN)),
        ("", ("-o", "--out-interface"), partial(_link, Direction.OUT)),
        ("iprange", ("--src-range",), partial(_range, Side.SOURCE)),
        ("iprange", ("--dst-range",), partial(_range, Side.DESTINATION)),
        ("mark", ("--mark",), _mark),
        ("conntrack", ("--ctstate",), _states),
        ("state", ("--state",), _states),
        ("comment", ("--comment",), _comment),
    )
    for name in names
}
_MODULES = tuple(dict.fromkeys(each.module for each in _OPTIONS.values() if each.module))


def _unless(negated: bool) -> str:
    return "! " if negated else ""


def _unequal(negated: bool) -> str:
    return "!= " if negated else ""
