"""The network configuration of `cni-bridge`: every key of the reference `bridge`, validated. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.fields import Fields
from cni_bridge.cni.mac import parse_mac
from cni_bridge.cni.ports import PortMapping, parse_port_mappings
from cni_bridge.cni.remembered import Remembered
from cni_bridge.cni.request import Request
from cni_bridge.cni.result import Result, parse_dns, parse_previous, parse_runtime_dns
from cni_bridge.cni.shaping import Shaping, parse_shaping
from cni_bridge.cni.tuning import Tuning, parse_tuning
from cni_bridge.cni.versions import Version
from ipam.api import Dns, Owner

_LINK_NAME = re.compile(r"[!-~]{1,15}\Z")  # printable ASCII
_NOT_IN_LINK_NAME = frozenset('/:%*+"\\')  # the kernel's separators and patterns, the firewalls' wildcards, a quote
MAX_VLAN = 4094
MIN_IPV6_MTU = 1280  # RFC 8200, section 5
MAX_LINK_NAME = 15  # IFNAMSIZ less the terminating zero


class GatewayMode(StrEnum):
    """How a network's addresses may be reached from beyond its host (as Docker's `gateway_mode`)."""

    NAT = "nat"  # at published ports of the host only
    NAT_UNPROTECTED = "nat-unprotected"  # by routing too, at any port
    ROUTED = "routed"  # by routing, at published ports of the container; the host's ports are not used


class Backend(StrEnum):
    """Which of the kernel's firewalls holds an attachment's rules."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetConf:
    """One network's configuration.

    `as_reference`: it was written for the reference `bridge`, which protects nothing by itself. `mtu` 0 means that of
    the default route's link; `vlan` 0 means untagged. `isolated` and `gateway_mode` are None where nothing is said:
    what protects most, but for `direct_routing`.
    """

    version: Version
    as_reference: bool
    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    ip_masq: bool
    ip_masq_backend: Backend | None
    mtu: int
    hairpin: bool
    promisc: bool
    vlan: int
    vlan_trunk: tuple[int, ...]
    vlan_aware: bool
    preserve_default_vlan: bool
    mac_spoof_check: bool
    enable_dad: bool
    disable_container_interface: bool
    port_isolation: bool
    icc: bool
    isolated: bool | None
    internal: bool
    gateway_mode: GatewayMode | None
    direct_routing: bool
    trusted_interfaces: tuple[str, ...]
    ip_spoof_check: bool
    ports: tuple[PortMapping, ...]
    snat: bool
    masquerade_all: bool
    shaping: Shaping
    tuning: Tuning
    dns: Dns
    mac: str
    ipam_type: str
    prev_result: Result | None


_known: Remembered[NetConf] = Remembered()


def parse_netconf(request: Request) -> NetConf:
    """The request's configuration; a value that cannot be used is refused with its key."""
    asked = (request.owner.ifname, request.args.get("MAC", ""))
    return _known.of(request, *asked, read=lambda: _parse_netconf(request))


def _parse_netconf(request: Request) -> NetConf:
    config = request.config
    ipam_type = parse_ipam_type(config)
    conf = NetConf(
        version=request.version,
        as_reference=_is_reference(config),
        bridge=parse_bridge_name(config),
        is_gateway=config.boolean("isGateway") or config.boolean("isDefaultGateway"),
        is_default_gateway=config.boolean("isDefaultGateway"),
        force_address=config.boolean("forceAddress"),
        ip_masq=config.boolean("ipMasq") and bool(ipam_type) and not config.boolean("internal"),
        ip_masq_backend=_parse_backend(config),
        mtu=_parse_mtu(config),
        hairpin=config.boolean("hairpinMode"),
        promisc=config.boolean("promiscMode"),
        vlan=config.integer("vlan", 0, low=0, high=MAX_VLAN),
        vlan_trunk=_parse_trunk(config),
        vlan_aware=config.has("vlanTrunk") or config.integer("vlan", 0, low=0, high=MAX_VLAN) != 0,
        preserve_default_vlan=config.boolean("preserveDefaultVlan"),
        mac_spoof_check=config.boolean("macspoofchk"),
        enable_dad=config.boolean("enabledad"),
        disable_container_interface=config.boolean("disableContainerInterface"),
        port_isolation=config.boolean("portIsolation"),
        icc=config.boolean("icc", True),
        isolated=config.boolean("isolated") if config.has("isolated") or _is_reference(config) else None,
        internal=config.boolean("internal"),
        gateway_mode=_parse_gateway_mode(config),
        # Where nothing is masqueraded, whoever routes to the addresses means to.
        direct_routing=config.boolean("allowDirectRouting") or not config.boolean("ipMasq") or _is_reference(config),
        trusted_interfaces=tuple(
            _require_link_name(each, f"{config.at('trustedInterfaces')}[{i}]")
            for i, each in enumerate(config.strings("trustedInterfaces"))
        ),
        ip_spoof_check=config.boolean("ipspoofchk"),
        ports=parse_port_mappings(config),
        snat=config.boolean("snat", True),
        masquerade_all=config.boolean("masqAll"),
        # The reference `bridge` leaves these to chained plugins, and so does who writes for it.
        shaping=Shaping() if _is_reference(config) else parse_shaping(config),
        tuning=Tuning() if _is_reference(config) else parse_tuning(request, link=False),
        dns=parse_runtime_dns(config.object("runtimeConfig")) or parse_dns(config.object("dns")),
        mac=parse_mac(request),
        ipam_type=ipam_type,
        prev_result=parse_previous(config, request.version),
    )
    if conf.vlan and conf.is_gateway and len(f"{conf.bridge}.{conf.vlan}") > MAX_LINK_NAME:
        raise InvalidConfig(
            f'bridge "{conf.bridge}" is too long for vlan {conf.vlan} with isGateway',
            f'the gateway lives on link "{conf.bridge}.{conf.vlan}", and a link name has at most {MAX_LINK_NAME} bytes',
        )
    if conf.gateway_mode == GatewayMode.ROUTED and conf.ip_masq:
        raise InvalidConfig('gatewayMode "routed" and ipMasq true exclude each other: what is routed keeps its address')
    if conf.internal and conf.ports:
        raise InvalidConfig("runtimeConfig.portMappings has ports, and internal is true: nothing is published there")
    if conf.ports and not ipam_type:
        raise InvalidConfig("runtimeConfig.portMappings has ports, and there is no ipam: the container has no address")
    if conf.hairpin and conf.promisc:
        raise InvalidConfig(
            "cannot set hairpin mode and promiscuous mode at the same time", "hairpinMode and promiscMode are both true"
        )
    if conf.disable_container_interface and ipam_type:
        raise InvalidConfig(
            "cannot use IPAM when DisableContainerInterface flag is set",
            f'disableContainerInterface is true and ipam.type is "{ipam_type}"',
        )
    return conf


def parse_bridge_name(config: Fields) -> str:
    """The name of the bridge, `cni0` where none is given."""
    return _require_link_name(config.string("bridge") or "cni0", config.at("bridge"))


def _require_link_name(name: str, path: str) -> str:
    if not _LINK_NAME.match(name) or name in (".", "..") or _NOT_IN_LINK_NAME & set(name):
        raise InvalidConfig(
            f'{path} "{name}" is not a link name: 1 to 15 ASCII characters, none / : % * + " \\ or space'
        )
    return name


def _is_reference(config: Fields) -> bool:
    """Whether the configuration was written for the reference plugin, which protects nothing by itself."""
    return config.string("type") == "bridge"


def _parse_gateway_mode(config: Fields) -> GatewayMode | None:
    name = config.string("gatewayMode")
    if name and name not in list(GatewayMode):
        raise InvalidConfig(f'{config.at("gatewayMode")} "{name}" is none of {", ".join(GatewayMode)}')
    if name and config.boolean("allowDirectRouting") and name != GatewayMode.NAT_UNPROTECTED:
        raise InvalidConfig(f'allowDirectRouting true and gatewayMode "{name}" exclude each other')
    return GatewayMode(name) if name else None


def parse_ipam_type(config: Fields) -> str:
    """The executable name of the IPAM plugin; empty for a network without addresses."""
    section = config.object("ipam")
    name = section.string("type")
    if "/" in name or name in (".", ".."):
        raise InvalidConfig(f'{section.at("type")} "{name}" is not the name of an executable')
    return name


def parse_valid_attachments(request: Request) -> frozenset[Owner]:
    """The attachments that GC has to keep; the key itself must be there (CNI SPEC, section 2, "GC")."""
    config = request.config
    key = next((each for each in ("cni.dev/valid-attachments", "cni.dev/attachments") if each in config), None)
    if key is None:
        raise InvalidConfig(
            "cni.dev/valid-attachments is missing, so nothing was removed", "send [] to say that no attachment is valid"
        )
    owners = set()
    for each in config.objects(key):
        container_id, ifname = each.string("containerID"), each.string("ifname")
        if not container_id or not ifname:
            raise InvalidConfig(f"{each.path} lacks containerID or ifname, so nothing was removed")
        owners.add(Owner(network=request.owner.network, container_id=container_id, ifname=ifname))
    return frozenset(owners)


def _parse_backend(config: Fields) -> Backend | None:
    name = config.string("ipMasqBackend")
    if name and name not in list(Backend):
        raise InvalidConfig(f'{config.at("ipMasqBackend")} "{name}" is none of {", ".join(Backend)}')
    return Backend(name) if name else None


def _parse_mtu(config: Fields) -> int:
    mtu = config.integer("mtu", 0, low=0, high=65535)
    if 0 < mtu < 68:
        raise InvalidConfig(f"{config.at('mtu')} {mtu} is below 68, the least that IPv4 works with (RFC 791)")
    return mtu


def _parse_trunk(config: Fields) -> tuple[int, ...]:
    """The VLAN ids of `vlanTrunk`, sorted, each once."""
    ids: set[int] = set()
    for each in config.objects("vlanTrunk"):
        low = each.optional_integer("minID", low=1, high=MAX_VLAN)
        high = each.optional_integer("maxID", low=1, high=MAX_VLAN)
        single = each.optional_integer("id", low=1, high=MAX_VLAN)
        if (low is None) != (high is None):
            missing = "minID" if low is None else "maxID"
            raise InvalidConfig(f"{each.path}: minID and maxID go together, {missing} is missing")
        if low is None and single is None:
            raise InvalidConfig(f"{each.path} has neither id nor minID and maxID")
        if low is not None and high is not None:
            if low > high:
                raise InvalidConfig(f"{each.path}: minID {low} is greater than maxID {high}")
            ids.update(range(low, high + 1))
        if single is not None:
            ids.add(single)
    return tuple(sorted(ids))
