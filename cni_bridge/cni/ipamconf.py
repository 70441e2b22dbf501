"""The `ipam` section as the reference `host-local` reads it, and addresses requested by a runtime. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.fields import Fields, as_objects, parse_address, parse_interface
from cni_bridge.cni.request import Request, blame_args
from cni_bridge.cni.result import parse_route
from ipam.api import Address, Dns, Owner, Range, RangeSet, Route, Wanted
from ipam.errors import BadRanges
from ipam.ranges import build_range, build_sets, parse_subnet


@dataclass(frozen=True, slots=True, kw_only=True)
class IpamConf:
    """What the configuration and the runtime say of addresses."""

    range_sets: tuple[RangeSet, ...] = ()
    implied_gateways: frozenset[Address] = frozenset()  # not configured, only assumed to be the subnet's first host
    requested: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    resolv_conf: str = ""

    def wanted(self, owner: Owner, dns: Dns) -> Wanted:
        """What the owner asks of an `Ipam`; `dns` is what `resolv_conf` says."""
        return Wanted(owner=owner, range_sets=self.range_sets, requested=self.requested, routes=self.routes, dns=dns)


def parse_ipam(request: Request, *, first_may_be_claimed: bool = False) -> IpamConf:
    """The request's `ipam` section; `first_may_be_claimed` as in `ipam.ranges.build_range`."""
    config = request.config
    if not config.has("ipam"):
        raise InvalidConfig("IPAM config missing 'ipam' key")
    section = config.object("ipam")
    runtime = config.object("runtimeConfig")
    sets = _parse_sets(runtime, "ipRanges")
    if section.has("subnet"):
        sets.append([section])
    sets += _parse_sets(section, "ranges")
    if not sets:
        raise InvalidConfig(f"no IP ranges specified: set {section.at('ranges')} or {section.at('subnet')}")
    built = [[_build(each, first_may_be_claimed) for each in ranges] for ranges in sets]
    return IpamConf(
        range_sets=build_sets(built),
        implied_gateways=frozenset(
            made.gateway
            for fields, ranges in zip(sets, built, strict=True)
            for each, made in zip(fields, ranges, strict=True)
            if made.gateway is not None and not each.string("gateway")
        ),
        requested=_requested(request),
        routes=tuple(parse_route(each) for each in section.objects("routes")),
        resolv_conf=section.string("resolvConf"),
    )


def _parse_sets(section: Fields, key: str) -> list[list[Fields]]:
    """A list of lists of range objects, as lists of objects."""
    sets = []
    for position, each in enumerate(section.items(key)):
        path = f"{section.at(key)}[{position}]"
        if not isinstance(each, list):
            raise InvalidConfig(f"{path} is not a list of ranges; {section.at(key)} is a list of lists")
        sets.append(list(as_objects(each, path)))
    return sets


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
            first_may_be_claimed=first_may_be_claimed,
        )
    except BadRanges as error:
        raise InvalidConfig(f"{fields.path}: {error}") from None


def _requested(request: Request) -> tuple[Address, ...]:
    """Requested addresses of all three sources, in the reference's order; a prefix length is ignored, as there."""
    config = request.config
    from_args = config.object("args").object("cni")
    sources = [("CNI_ARGS IP", text) for text in filter(None, [request.args.get("IP", "")])]
    for fields in (from_args, config.object("runtimeConfig")):
        sources += [(f"{fields.at('ips')}[{i}]", text) for i, text in enumerate(fields.strings("ips"))]
    return tuple(_parse_requested(text, path) for path, text in sources)


def _parse_requested(text: str, path: str) -> Address:
    try:
        return parse_interface(text, path).ip if "/" in text else parse_address(text, path)
    except InvalidConfig as error:
        raise blame_args(error, path) from None
