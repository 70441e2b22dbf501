"""The result of ADD, read and written in the shape of each specification version. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cni_bridge.cni.errors import CniError, DecodingFailure, InvalidConfig
from cni_bridge.cni.fields import Fields, parse_destination, parse_interface
from cni_bridge.cni.versions import Version
from ipam.api import Address, Dns, Interface, Route

MAX_U32 = (1 << 32) - 1
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceEntry:
    """A link of the result; `sandbox` is the container's namespace, empty on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpEntry:
    """An address of the result; `interface` is its link's position in `Result.interfaces`."""

    address: Interface
    gateway: Address | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an attachment is (CNI SPEC, section 5, "ADD Success")."""

    interfaces: tuple[InterfaceEntry, ...] = ()
    ips: tuple[IpEntry, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)

    def with_mac(self, ifname: str, mac: str) -> Result:
        """This result with another MAC address of the container's interface."""
        interfaces = tuple(
            replace(each, mac=mac) if each.name == ifname and each.sandbox else each for each in self.interfaces
        )
        return replace(self, interfaces=interfaces)

    def after(self, previous: Result) -> Result:
        """This result appended to that of an earlier plugin of the chain."""
        shift = len(previous.interfaces)
        moved = tuple(
            IpEntry(
                address=each.address,
                gateway=each.gateway,
                interface=each.interface + shift if each.interface is not None else None,
            )
            for each in self.ips
        )
        return Result(
            interfaces=previous.interfaces + self.interfaces,
            ips=previous.ips + moved,
            routes=previous.routes + self.routes,
            dns=self.dns or previous.dns,
        )


def require_renderable(families: list[int], version: Version) -> None:
    """Refuse, before anything is made, what a result of 0.2.0 or older cannot carry; one family for each address."""
    if version.family > 0:
        return
    if not families:
        raise InvalidConfig(
            f"CNI version {version} needs an address: its result has no place for a link without one",
            "configure ipam, or use cniVersion 0.3.0 or newer",
        )
    if len(set(families)) < len(families):
        raise InvalidConfig(f"CNI version {version} does not support more than 1 address per family")


def render(result: Result, version: Version) -> Json:
    """The result as JSON of that version."""
    if version.family == 0:
        return _render_oldest(result, version)
    interfaces = [_drop_empty(_render_interface(each, version)) for each in result.interfaces]
    rendered: Json = {
        "cniVersion": str(version),
        "interfaces": interfaces,
        "ips": [_drop_empty(_render_ip(each, version)) for each in result.ips],
        "routes": [_drop_empty(_render_route(each)) for each in result.routes],
        "dns": _drop_empty(_render_dns(result.dns)),
    }
    return _drop_empty(rendered) if version.family == 2 else {**_drop_empty(rendered), "dns": rendered["dns"]}


def _drop_empty(values: Json) -> Json:
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}


def _render_interface(each: InterfaceEntry, version: Version) -> Json:
    mtu = each.mtu if version.since(Version.V1_1_0) else 0
    return {"name": each.name, "mac": each.mac, "mtu": mtu or None, "sandbox": each.sandbox}


def _render_ip(each: IpEntry, version: Version) -> Json:
    return {
        "version": str(each.address.version) if version.family == 1 else None,
        "interface": each.interface,
        "address": str(each.address),
        "gateway": str(each.gateway) if each.gateway is not None else None,
    }


def _render_route(each: Route) -> Json:
    return {
        "dst": str(each.dst),
        "gw": str(each.gw) if each.gw is not None else None,
        "mtu": each.mtu,
        "advmss": each.advmss,
        "priority": each.priority,
        "table": each.table,
        "scope": each.scope,
    }


def _render_dns(dns: Dns) -> Json:
    return {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }


def _render_oldest(result: Result, version: Version) -> Json:
    """0.1.0 and 0.2.0: one address a family, each with its family's routes; no links."""
    rendered: Json = {"cniVersion": str(version)}
    for key, family in (("ip4", 4), ("ip6", 6)):
        first = next((each for each in result.ips if each.address.version == family), None)
        if first is not None:
            routes = [
                _drop_empty({"dst": str(route.dst), "gw": str(route.gw) if route.gw is not None else None})
                for route in result.routes
                if route.dst.version == family
            ]
            gateway = str(first.gateway) if first.gateway is not None else None
            rendered[key] = _drop_empty({"ip": str(first.address), "gateway": gateway, "routes": routes})
    rendered["dns"] = _drop_empty(_render_dns(result.dns))
    return rendered


def parse(fields: Fields, default: Version) -> Result:
    """The result in a JSON object of any version; one that names no version is of the default one."""
    text = fields.string("cniVersion") or default
    if text not in list(Version):
        raise DecodingFailure(f'unsupported CNI result version "{text}" in {fields.path or "the result"}')
    if Version(text).family == 0:
        return _parse_oldest(fields)
    return Result(
        interfaces=tuple(
            InterfaceEntry(
                name=each.string("name"),
                mac=each.string("mac"),
                mtu=each.integer("mtu", 0, low=0, high=MAX_U32),
                sandbox=each.string("sandbox"),
            )
            for each in fields.objects("interfaces")
        ),
        ips=tuple(
            IpEntry(
                address=parse_interface(each.string("address"), each.at("address")),
                gateway=each.address("gateway"),
                interface=each.optional_integer("interface", low=-MAX_U32, high=MAX_U32),
            )
            for each in fields.objects("ips")
        ),
        routes=tuple(parse_route(each) for each in fields.objects("routes")),
        dns=parse_dns(fields.object("dns")),
    )


def parse_previous(config: Fields, version: Version) -> Result | None:
    """The configuration's `prevResult`, which must be of its version's family."""
    if not config.has("prevResult"):
        return None
    fields = config.object("prevResult")
    text = fields.string("cniVersion") or version
    if text not in list(Version) or Version(text).family != version.family:
        raise DecodingFailure(
            f'could not parse prevResult: its cniVersion "{text}" does not go with the configuration\'s "{version}"'
        )
    try:
        return parse(fields, version)
    except CniError as error:
        raise DecodingFailure(f"could not parse prevResult: {error.msg}") from None


def _parse_oldest(fields: Fields) -> Result:
    ips: list[IpEntry] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        if fields.has(key):
            each = fields.object(key)
            ips.append(
                IpEntry(address=parse_interface(each.string("ip"), each.at("ip")), gateway=each.address("gateway"))
            )
            routes += [parse_route(route) for route in each.objects("routes")]
    return Result(ips=tuple(ips), routes=tuple(routes), dns=parse_dns(fields.object("dns")))


def parse_route(fields: Fields) -> Route:
    """A route; `table` and `scope` are the kernel's numbers (rtnetlink(7))."""
    dst = parse_destination(fields.string("dst"), fields.at("dst"))
    gw = fields.address("gw")
    if gw is not None and gw.version != dst.version:
        raise InvalidConfig(f"{fields.at('gw')} {gw} is not of the family of {fields.at('dst')} {dst}")
    return Route(
        dst=dst,
        gw=gw,
        mtu=fields.integer("mtu", 0, low=0, high=MAX_U32) or None,
        advmss=fields.integer("advmss", 0, low=0, high=MAX_U32) or None,
        priority=fields.integer("priority", 0, low=0, high=MAX_U32) or None,
        table=fields.optional_integer("table", low=0, high=MAX_U32),
        scope=fields.optional_integer("scope", low=0, high=255),
    )


def parse_dns(fields: Fields) -> Dns:
    """Resolver settings."""
    return Dns(
        nameservers=fields.strings("nameservers"),
        domain=fields.string("domain"),
        search=fields.strings("search"),
        options=fields.strings("options"),
    )


def parse_runtime_dns(runtime_config: Fields) -> Dns:
    """The resolver settings that the runtime passes (CNI CONVENTIONS, capability "dns")."""
    fields = runtime_config.object("dns")
    return Dns(
        nameservers=fields.strings("servers"), search=fields.strings("searches"), options=fields.strings("options")
    )
