"""The elements of sets and maps that stand for a policy, as nftables text, and back from listings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cni_bridge.cni.conditions import read_condition
from cni_bridge.firewall.nftables_layout import BRIDGE, INET, TABLES
from cni_bridge.policy import LinkPolicy, Policy, Publication, Shield, SpoofCheck
from cni_bridge.tag import MAX_LENGTH, network_tag, owner_tag
from ipam.api import Address

_A_RUN = 16  # ports: from here on an interval is cheaper than single elements; it keeps the port's number


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """An element of a set, or of a map if it has `data`.

    `exclusive`: the first owner keeps it. Others are the last owner's.
    """

    table: str
    set_name: str
    key: str
    comment: str
    data: str = ""
    exclusive: bool = False

    @property
    def types(self) -> list[str]:
        """The types of the key's parts."""
        return declared_types(self.table, self.set_name)[0]

    @property
    def is_run(self) -> bool:
        """Whether it is an interval of ports."""
        return "flags interval" in TABLES[self.table].sets[self.set_name]

    @property
    def container(self) -> str:
        """Table and name of the set or map."""
        return f"{self.table} {self.set_name}"

    def add(self) -> Change:
        """What adds it."""
        return Change(element=self)

    def add_new(self) -> Change:
        """What adds it if nothing has its key; else the whole transaction is refused."""
        return Change(element=self, creates=True)

    def delete(self) -> Change:
        """What deletes it, which has to be there."""
        return Change(element=self, deletes=True)

    def replace(self) -> Iterator[Change]:
        """What lets it be there with this comment: it may be absent, present, or another owner's."""
        yield Change(element=replace(self, comment=""))
        yield self.delete()
        yield self.add()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An element added to its set or map, or deleted from there; as text, the command of nft."""

    element: Element
    deletes: bool = False
    creates: bool = False  # there must be no element with its key

    def __str__(self) -> str:
        each = self.element
        if self.deletes:
            return f"delete element {each.container} {{ {each.key} }}"
        comment = f' comment "{each.comment}"' if each.comment else ""
        data = f" : {each.data}" if each.data else ""
        return f"{'create' if self.creates else 'add'} element {each.container} {{ {each.key}{comment}{data} }}"


def owned_elements(policy: Policy) -> tuple[Element, ...]:
    """Every element that belongs to the policy's owner."""
    tag = owner_tag(policy.owner)
    return tuple(dict.fromkeys(_owned(policy, tag)))


def _owned(policy: Policy, tag: str) -> Iterator[Element]:
    for each in policy.masquerade:
        family = each.address.version
        yield Element(table=INET, set_name=f"masquerade{family}", key=str(each.address), comment=tag)
        for link in each.local_links:
            yield Element(table=INET, set_name=f"local{family}", key=f'{each.address} . "{link}"', comment=tag)
    if policy.spoof_check is not None:
        yield from _spoof_check(policy.spoof_check, tag)
    if policy.apart:
        yield Element(table=BRIDGE, set_name="apart", key=f'"{policy.apart}"', comment=tag)
    for publication in policy.publications:
        yield from _publication(publication, tag)
    for shield in policy.shields:
        yield from _shield(shield, tag)
    if policy.link is not None and not policy.link.shared:
        yield from _link(policy.link, tag)[0]


def _spoof_check(check: SpoofCheck, tag: str) -> Iterator[Element]:
    port = f'"{check.port}"'
    if check.mac:
        yield Element(table=BRIDGE, set_name="mac_checked", key=port, comment=tag)
        yield Element(table=BRIDGE, set_name="mac_allowed", key=f"{port} . {check.mac}", comment=tag)
    if check.addresses is not None:
        yield Element(table=BRIDGE, set_name="ip_checked", key=port, comment=tag)
        for address in check.addresses:
            name = f"ip{address.version}_allowed"
            yield Element(table=BRIDGE, set_name=name, key=f"{port} . {address}", comment=tag)


def is_run(publication: Publication) -> bool:
    """Whether the publication is one element of an interval map."""
    return publication.count >= _A_RUN and publication.host_port == publication.container_port


def publishing_elements(publication: Publication, tag: str) -> Iterator[Element]:
    """The elements that lead host ports to the container: one for each port, or one for a run."""
    family, protocol, address = publication.address.version, publication.protocol, publication.address
    at = "_at" if publication.host_ip is not None else ""
    where = f"{publication.host_ip} . {protocol}" if publication.host_ip is not None else str(protocol)
    if is_run(publication):
        ports = _ports(publication.host_port, publication.count)
        yield Element(
            table=INET,
            set_name=f"publish_run{at}{family}",
            key=f"{where} . {ports}",
            data=str(address),
            comment=tag,
            exclusive=True,
        )
        return
    for offset in range(publication.count):
        yield Element(
            table=INET,
            set_name=f"publish{at}{family}",
            key=f"{where} . {publication.host_port + offset}",
            data=f"{address} . {publication.container_port + offset}",
            comment=tag,
            exclusive=True,
        )


def conditional_rules(policy: Policy) -> Iterator[str]:
    """The rules that publish on a condition; what else they look at cannot be told by an element."""
    tag = owner_tag(policy.owner)
    for each in policy.publications:
        if each.condition:
            ip = "ip" if each.address.version == 4 else "ip6"
            condition = read_condition(each.condition, each.address.version).nftables()
            words = [condition, *([f"{ip} daddr {each.host_ip}"] if each.host_ip is not None else [])]
            where = f"[{each.address}]" if each.address.version == 6 else str(each.address)
            for offset in range(each.count):
                match = " ".join([*words, f"{each.protocol} dport {each.host_port + offset}"])
                lead = f"dnat {ip} to {where}:{each.container_port + offset}"
                yield f'meta nfproto ipv{each.address.version} {match} {lead} comment "{tag}"'


def _publication(publication: Publication, tag: str) -> Iterator[Element]:
    if not publication.condition:
        yield from publishing_elements(publication, tag)
    if publication.snat:
        address = publication.address
        yield Element(table=INET, set_name=f"self{address.version}", key=f"{address} . {address}", comment=tag)
    names = [name for name, wanted in (("snat", publication.snat), ("snat_all", publication.masquerade_all)) if wanted]
    for name in names:
        yield from _of_ports(
            name, publication.address, publication.protocol, publication.container_port, publication.count, tag
        )


def _shield(shield: Shield, tag: str) -> Iterator[Element]:
    family = shield.address.version
    yield Element(table=INET, set_name=f"shielded{family}", key=str(shield.address), comment=tag)
    if shield.routed:
        yield Element(table=INET, set_name=f"routed{family}", key=str(shield.address), comment=tag)
        for each in shield.opened:
            yield from _of_ports("opened", shield.address, each.protocol, each.port, each.count, tag)


def _of_ports(name: str, address: Address, protocol: str, port: int, count: int, tag: str) -> Iterator[Element]:
    """Elements for ports of an address: one for each, or one for a run in the set of runs."""
    if count >= _A_RUN:
        key = f"{address} . {protocol} . {_ports(port, count)}"
        yield Element(table=INET, set_name=f"{name}_run{address.version}", key=key, comment=tag)
        return
    for each in range(port, port + count):
        key = f"{address} . {protocol} . {each}"
        yield Element(table=INET, set_name=f"{name}{address.version}", key=key, comment=tag)


def _ports(first: int, count: int) -> str:
    return f"{first}-{first + count - 1}"


def link_elements(policy: Policy) -> tuple[tuple[Element, ...], tuple[Element, ...]]:
    """The elements of a link that a network's attachments share: those that are to be there, and those that are not."""
    if policy.link is None or not policy.link.shared:
        return (), ()
    network = policy.owner.network
    return _link(policy.link, f"{network_tag(network)} {network}"[:MAX_LENGTH])


def _link(policy: LinkPolicy, tag: str) -> tuple[tuple[Element, ...], tuple[Element, ...]]:
    link = f'"{policy.link}"'

    def element(set_name: str, key: str) -> Element:
        return Element(table=INET, set_name=set_name, key=key, comment=tag)

    itself = f"{link} . {link}"
    choices = {
        element("networks", link): True,
        element("same", itself): True,
        element("isolated", link): policy.isolated,
        element("parted", link): policy.parted,
        element("internal", link): policy.internal,
        element("no_icc", itself): None if policy.icc is None else not policy.icc,
        **{element("trusted", f'"{each}" . {link}'): True for each in policy.trusted or ()},
    }
    wanted = tuple(each for each, there in choices.items() if there)
    return wanted, tuple(each for each, there in choices.items() if there is False)


def declared_types(table: str, set_name: str) -> tuple[list[str], list[str]]:
    """The types of the key's parts, and of the data's."""
    declared = TABLES[table].sets[set_name].partition("type ")[2].partition(";")[0]
    key, _, data = declared.partition(" : ")
    return key.split(" . "), data.split(" . ") if data else []


class Claims:
    """Who has which host port, by the elements of the publishing maps of one family."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._single: dict[tuple[str, int], list[tuple[str, str]]] = {}
        self._runs: list[tuple[str, int, int, str, str]] = []
        for each in elements:
            *host_ip, protocol, ports = each.key.split(" . ")
            where = host_ip[0] if host_ip else ""
            first, _, last = ports.partition("-")
            if last:
                self._runs.append((protocol, int(first), int(last), where, each.comment))
            else:
                self._single.setdefault((protocol, int(first)), []).append((where, each.comment))

    def meeting(self, publication: Publication) -> Iterator[str]:
        """The comments of the elements that are for one of the publication's ports, at one of its addresses."""
        at, end = str(publication.host_ip or ""), publication.host_port + publication.count
        for port in range(publication.host_port, end):
            for where, comment in self._single.get((publication.protocol, port), ()):
                if not at or where in ("", at):
                    yield comment
        for protocol, first, last, where, comment in self._runs:
            overlaps = protocol == publication.protocol and first < end and publication.host_port <= last
            if overlaps and (not at or where in ("", at)):
                yield comment
