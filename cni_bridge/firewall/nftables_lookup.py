"""Looks single things of nftables up, and changes elements, by netlink: libnftables takes a text to parse for each
change, and reads every set of the host before it answers.

The messages are those of include/uapi/linux/netfilter/nf_tables.h; comments are kept as libnftnl does.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from cni_bridge import trace
from cni_bridge.cni.errors import KernelRefused
from cni_bridge.firewall.nftables_elements import Change, declared_types
from cni_bridge.netlink_messages import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NetlinkSocket,
    TransactionRefused,
    attribute,
    iterate_attributes,
    nested,
    parse_attributes,
)

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_ELEMENT, _GET_GENERATION = (_SUBSYSTEM | each for each in (1, 4, 7, 13, 16))
_NEW_ELEMENT, _DELETE_ELEMENT = _SUBSYSTEM | 12, _SUBSYSTEM | 14
_GENERATION_ID = 1
_ATTEMPTS = 50  # at a listing that others change
_FAMILY = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
_TABLE, _SECOND = 1, 2  # NFTA_RULE_TABLE and others; NFTA_RULE_CHAIN, NFTA_SET_ELEM_LIST_SET
_CHAIN_NAME, _CHAIN_POLICY = 3, 5
_RULE_HANDLE, _RULE_USERDATA, _ELEMENT_USERDATA = 3, 7, 6
_DATA, _KEY_END = 2, 10
_ELEMENTS, _ELEMENT, _KEY, _VALUE = 3, 1, 1, 1  # NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM, …_KEY, NFTA_DATA_VALUE
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT, NFTNL_UDATA_SET_ELEM_COMMENT
_POLICY_DROP = bytes(4)
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_LINK_NAME_SIZE = 16
_SIZES = {"ifname": 16, "inet_proto": 1, "inet_service": 2, "ether_addr": 6, "ipv4_addr": 4, "ipv6_addr": 16}


class Lookup:
    """Asks in the network namespace of the thread that makes it. `KernelRefused` where there is no nftables."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(_NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def has_table(self, table: str) -> bool:
        """Whether the table, such as `inet filter`, is there."""
        family, name = table.split()
        question = _header(family) + attribute(_TABLE, _string(name))
        return bool(self._ask_one(_GET_TABLE, question, f"look for nftables table {table}"))

    def drops_by_default(self, table: str, chain: str) -> bool:
        """Whether the chain is there and has the policy drop."""
        family, name = table.split()
        question = _header(family) + attribute(_TABLE, _string(name)) + attribute(_CHAIN_NAME, _string(chain))
        answers = self._ask_one(_GET_CHAIN, question, f"read chain {chain} of {table}")
        return any(parse_attributes(each[4:]).get(_CHAIN_POLICY) == _POLICY_DROP for each in answers)

    def rule_comments(self, table: str, chain: str) -> list[str]:
        """The comments of the chain's rules, in order; none if it is not there."""
        return [_comment(each.get(_RULE_USERDATA, b"")) for each in self._rules(table, chain)]

    def rule_handles(self, table: str, chain: str) -> list[tuple[int, str]]:
        """The handles of the chain's rules, by which they are deleted, and their comments; none if it is not there."""
        return [
            (int.from_bytes(each[_RULE_HANDLE], "big"), _comment(each.get(_RULE_USERDATA, b"")))
            for each in self._rules(table, chain)
        ]

    def _rules(self, table: str, chain: str) -> list[dict[int, bytes]]:
        family, name = table.split()
        question = _header(family) + attribute(_TABLE, _string(name)) + attribute(_SECOND, _string(chain))
        answers = self._list(_GET_RULE, question, f"list chain {chain} of {table}")
        return [parse_attributes(each[4:]) for each in answers]

    def element_comment(self, table: str, set_name: str, key: str, types: list[str]) -> str:
        """The comment of the element with that key, as nftables text, of a set of these types; empty without one."""
        family, name = table.split()
        question = _header(family) + attribute(_TABLE, _string(name)) + attribute(_SECOND, _string(set_name))
        question += nested(_ELEMENTS, nested(_ELEMENT, nested(_KEY, attribute(_VALUE, pack_key(key, types)))))
        answers = self._ask_one(_GET_ELEMENT, question, f"read set {set_name} of {table}")
        for each in answers:
            elements = parse_attributes(each[4:]).get(_ELEMENTS, b"")
            element = parse_attributes(parse_attributes(elements).get(_ELEMENT, b""))
            return _comment(element.get(_ELEMENT_USERDATA, b""))
        return ""

    def elements(
        self, table: str, set_name: str, types: list[str], data_types: list[str]
    ) -> Iterator[tuple[str, str, str]]:
        """Every element of the set or map: its key and its data as nftables text, and its comment."""
        family, name = table.split()
        question = _header(family) + attribute(_TABLE, _string(name)) + attribute(_SECOND, _string(set_name))
        for answer in self._list(_GET_ELEMENT, question, f"list set {set_name} of {table}"):
            for _, packed in iterate_attributes(parse_attributes(answer[4:]).get(_ELEMENTS, b"")):
                element = parse_attributes(packed)
                key = _value(element.get(_KEY, b""))
                end = _value(element.get(_KEY_END, b"")) or key
                data = unpack(_value(element.get(_DATA, b"")), data_types)
                yield (
                    _range(unpack(key, types), unpack(end, types)),
                    data,
                    _comment(element.get(_ELEMENT_USERDATA, b"")),
                )

    def make_changes(self, changes: Sequence[Change], what: str) -> None:
        """Make all of the changes or none; `KernelRefused` names the one that cannot be made."""
        try:
            self._socket.transact(_SUBSYSTEM >> 8, [render_change(each) for each in changes], what=what)
        except TransactionRefused as error:
            refused = f"{changes[error.position]}: {error}" if error.position >= 0 else str(error)
            raise KernelRefused(refused, errno=error.errno) from None

    def _list(self, kind: int, question: bytes, what: str) -> list[bytes]:
        """A listing of one moment; nothing if what is to be listed is not there.

        One of several messages is torn when somebody changes the rules meanwhile, and not every kernel says so.
        """
        trace.count("listings")
        answers: list[bytes] = []
        for _ in range(_ATTEMPTS):
            before = self.generation()
            try:
                answers = self._socket.ask(kind, NLM_F_DUMP, question, what=what)
            except KernelRefused as error:
                if error.errno == errno.ENOENT:
                    return []
                raise
            if len(answers) < 2 or self.generation() == before:
                break
        return answers

    def generation(self) -> int:
        """The number of the rules' last change."""
        (answer,) = self._ask_one(_GET_GENERATION, _header("inet"), "read the generation of the rules")
        return int.from_bytes(parse_attributes(answer[4:])[_GENERATION_ID], "big")

    def _ask_one(self, kind: int, question: bytes, what: str) -> list[bytes]:
        try:
            return self._socket.ask(kind, NLM_F_ACK, question, what=what)
        except KernelRefused as error:
            if error.errno == errno.ENOENT:
                return []
            raise


def render_change(change: Change) -> tuple[int, int, bytes]:
    """The type, flags and payload of the message that makes the change."""
    element, (family, name) = change.element, change.element.table.split()
    key_types, data_types = declared_types(element.table, element.set_name)
    parts = [nested(_KEY, attribute(_VALUE, pack_key(element.key, key_types)))]
    if element.is_run:
        parts.append(nested(_KEY_END, attribute(_VALUE, pack_key(_end_of_range(element.key), key_types))))
    if element.data and not change.deletes:
        parts.append(nested(_DATA, attribute(_VALUE, pack_key(element.data, data_types))))
    if element.comment and not change.deletes:
        comment = _string(element.comment)
        parts.append(attribute(_ELEMENT_USERDATA, bytes([_COMMENT, len(comment)]) + comment))
    payload = b"".join(
        (
            _header(family),
            attribute(_TABLE, _string(name)),
            attribute(_SECOND, _string(element.set_name)),
            nested(_ELEMENTS, nested(_ELEMENT, *parts)),
        )
    )
    if change.deletes:
        return _DELETE_ELEMENT, 0, payload
    return _NEW_ELEMENT, NLM_F_CREATE | (NLM_F_EXCL if change.creates else 0), payload


def _value(nested_value: bytes) -> bytes:
    return parse_attributes(nested_value).get(_VALUE, b"")


def _range(first: str, last: str) -> str:
    """A key of an interval set: the parts that differ as ranges."""
    pairs = zip(first.split(" . "), last.split(" . "), strict=True)
    return " . ".join(one if one == other else f"{one}-{other}" for one, other in pairs)


def _end_of_range(key: str) -> str:
    """The last of the keys that a key of an interval set stands for."""
    return " . ".join(part.rpartition("-")[2] if part[0].isdigit() else part for part in key.split(" . "))


def unpack(value: bytes, types: list[str]) -> str:
    """A key or data of these types as nftables text: the inverse of `pack_key`."""
    parts, position = [], 0
    for kind in types if value else ():
        size = _SIZES[kind]
        parts.append(_unpack(value[position : position + size], kind))
        position += size + (-size % 4)
    return " . ".join(parts)


def _unpack(part: bytes, kind: str) -> str:
    match kind:
        case "ifname":
            return f'"{_text(part)}"'
        case "inet_proto":
            return next((name for name, number in _PROTOCOLS.items() if number == part[0]), str(part[0]))
        case "inet_service":
            return str(int.from_bytes(part, "big"))
        case "ether_addr":
            return part.hex(":")
    return str(ip_address(part))


def pack_key(key: str, types: list[str]) -> bytes:
    """The key as the kernel has it: each part of several padded to 4 bytes."""
    parts = key.split(" . ")
    packed = [_pack(part, kind) for part, kind in zip(parts, types, strict=True)]
    return packed[0] if len(packed) == 1 else b"".join(each + bytes(-len(each) % 4) for each in packed)


def _pack(part: str, kind: str) -> bytes:
    match kind:
        case "ifname":
            return part.strip('"').encode().ljust(_LINK_NAME_SIZE, b"\0")
        case "inet_proto":
            return bytes([_PROTOCOLS[part]])
        case "inet_service":
            return int(part.partition("-")[0]).to_bytes(2, "big")
        case "ether_addr":
            return bytes.fromhex(part.replace(":", ""))
    return ip_address(part).packed


def _header(family: str) -> bytes:
    return bytes([_FAMILY[family], 0, 0, 0])


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _comment(userdata: bytes) -> str:
    """The comment in the user data of a rule or an element: entries of type, length and value."""
    position = 0
    while position + 2 <= len(userdata):
        kind, length = userdata[position], userdata[position + 1]
        if kind == _COMMENT:
            return _text(userdata[position + 2 : position + 2 + length])
        position += 2 + length
    return ""
