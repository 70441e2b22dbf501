"""The `ipam` section: as the reference `host-local` reads it, and more; what a runtime requests and tells. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.fields import Fields, as_objects, parse_address, parse_interface, parse_network
from cni_bridge.cni.netconf import MAX_VLAN
from cni_bridge.cni.remembered import Remembered
from cni_bridge.cni.request import Request, blame_args
from cni_bridge.cni.result import parse_route
from ipam.api import (
    ANY_LINK,
    Address,
    AnySubnet,
    Dns,
    NetnsRef,
    Owner,
    Range,
    RangeSet,
    Route,
    Wanted,
)
from ipam.errors import BadRanges
from ipam.ranges import build_range, parse_subnet, require_apart

_BRIDGES = ("cni-bridge", "bridge")
_EXTEND_A_LINK = ("macvlan", "ipvlan", "vlan", "host-device", "sriov")  # that of the default route, if none is named


@dataclass(frozen=True, slots=True, kw_only=True)
class IpamConf:
    """What the configuration and the runtime say of addresses."""

    range_sets: tuple[RangeSet, ...] = ()
    gateways: frozenset[Address] | None = None  # that are configured; None if all are that an IPAM answers
    requested: tuple[Address, ...] = ()
    sticky: str = ""
    name: str = ""
    links: tuple[str, ...] = ()
    allow_overlap: bool = False
    routes: tuple[Route, ...] = ()
    resolv_conf: str = ""

    def wanted(self, owner: Owner, dns: Dns, *, netns: NetnsRef | None = None, mac: str = "") -> Wanted:
        """What the owner asks of an `Ipam`; `dns` is what `resolv_conf` says."""
        return Wanted(
            owner=owner,
            range_sets=self.range_sets,
            requested=self.requested,
            sticky=self.sticky,
            name=self.name,
            mac=mac,
            netns=netns,
            links=self.links,
            allow_overlap=self.allow_overlap,
            routes=self.routes,
            dns=dns,
        )


_known: Remembered[IpamConf] = Remembered()


def parse_ipam(request: Request, *, first_may_be_claimed: bool = False) -> IpamConf:
    """The request's `ipam` section; `first_may_be_claimed` as in `ipam.ranges.build_range`."""
    conf = _known.of(request, first_may_be_claimed, read=lambda: _parse_config(request.config, first_may_be_claimed))
    return _with_args(conf, request) if request.args else conf


def _parse_config(config: Fields, first_may_be_claimed: bool) -> IpamConf:
    if not config.has("ipam"):
        raise InvalidConfig("IPAM config missing 'ipam' key")
    section = config.object("ipam")
    from_runtime = _parse_sets(config.object("runtimeConfig"), "ipRanges")
    configured = [[section]] if section.has("subnet") else []
    configured += _parse_sets(section, "ranges")
    for position, ranges in enumerate((*from_runtime, *configured)):
        if not ranges:
            raise InvalidConfig(f"range set {position} is empty")
    sets = [_parse_set(each, first_may_be_claimed, runtime=True) for each in from_runtime]
    sets += [_parse_set(each, first_may_be_claimed) for each in configured]
    if not sets:
        sets = [RangeSet(any_subnet=AnySubnet(family=4))]
    gateways = (each.address("gateway") for ranges in (*from_runtime, *configured) for each in ranges)
    return IpamConf(
        range_sets=require_apart(tuple(sets)),
        gateways=frozenset(each for each in gateways if each is not None),
        requested=_requested(config),
        sticky=config.object("args").object("cni").string("sticky"),
        links=_own_links(config),
        allow_overlap=section.boolean("allowOverlap"),
        routes=tuple(parse_route(each) for each in section.objects("routes")),
        resolv_conf=section.string("resolvConf"),
    )


def _own_links(config: Fields) -> tuple[str, ...]:
    """The host's links on which this network's subnets belong: its bridge, or the link that it extends."""
    kind = config.string("type")
    if config.has("bridge") or kind in _BRIDGES:
        bridge, vlan = config.string("bridge") or "cni0", config.integer("vlan", 0, low=0, high=MAX_VLAN)
        return (bridge, f"{bridge}.{vlan}") if vlan else (bridge,)
    if config.string("master"):
        return (config.string("master"),)
    return (ANY_LINK,) if kind in _EXTEND_A_LINK else ()


def _parse_sets(section: Fields, key: str) -> list[list[Fields]]:
    """A list of lists of range objects, as lists of objects."""
    sets = []
    for position, each in enumerate(section.items(key)):
        path = f"{section.at(key)}[{position}]"
        if not isinstance(each, list):
            raise InvalidConfig(f"{path} is not a list of ranges; {section.at(key)} is a list of lists")
        sets.append(list(as_objects(each, path)))
    return sets


def _parse_set(ranges: list[Fields], first_may_be_claimed: bool, *, runtime: bool = False) -> RangeSet:
    """One range set; a subnet with the address 0 says how large one the IPAM is to choose."""
    if len(ranges) == 1 and (wish := _any_subnet(ranges[0])) is not None:
        return RangeSet(any_subnet=wish, runtime=runtime)
    return RangeSet(ranges=tuple(_build(each, first_may_be_claimed) for each in ranges), runtime=runtime)


def _any_subnet(fields: Fields) -> AnySubnet | None:
    try:
        subnet = parse_subnet(fields.string("subnet"))
    except BadRanges:
        return None  # whoever builds the range says why
    if int(subnet.network_address) or subnet.prefixlen > subnet.max_prefixlen - 2:
        return None
    for key in ("rangeStart", "rangeEnd", "gateway", "exclude"):
        if fields.has(key):
            raise InvalidConfig(f"{fields.at(key)} goes with a subnet of its own, {subnet} is any of that size")
    return AnySubnet(family=subnet.version, prefixlen=subnet.prefixlen or None)


def _build(fields: Fields, first_may_be_claimed: bool) -> Range:
    if not fields.string("subnet"):
        raise InvalidConfig(f"{fields.at('subnet')} is missing")
    start, end = fields.address("rangeStart"), fields.address("rangeEnd")
    gateway = fields.address("gateway")
    try:
        return build_range(
            parse_subnet(fields.string("subnet")),
            start=start,
            end=end,
            gateway=gateway,
            exclude=tuple(
                parse_network(each, f"{fields.at('exclude')}[{i}]") for i, each in enumerate(fields.strings("exclude"))
            ),
            first_may_be_claimed=first_may_be_claimed,
        )
    except BadRanges as error:
        raise InvalidConfig(f"{fields.path}: {error}") from None


def _requested(config: Fields) -> tuple[Address, ...]:
    """Requested addresses of two of three sources, in the reference's order; a prefix length is ignored, as there."""
    from_args = config.object("args").object("cni")
    return tuple(
        _parse_requested(text, f"{fields.at('ips')}[{i}]")
        for fields in (from_args, config.object("runtimeConfig"))
        for i, text in enumerate(fields.strings("ips"))
    )


def _with_args(conf: IpamConf, request: Request) -> IpamConf:
    """With what `CNI_ARGS` says too: an address goes before all others."""
    address, sticky = request.args.get("IP", ""), request.args.get("STICKY", "")
    return replace(
        conf,
        requested=(*((_parse_requested(address, "CNI_ARGS IP"),) if address else ()), *conf.requested),
        sticky=conf.sticky or sticky,
        name="/".join(filter(None, (request.args.get(f"K8S_POD_{key}", "") for key in ("NAMESPACE", "NAME")))),
    )


def _parse_requested(text: str, path: str) -> Address:
    try:
        return parse_interface(text, path).ip if "/" in text else parse_address(text, path)
    except InvalidConfig as error:
        raise blame_args(error, path) from None
