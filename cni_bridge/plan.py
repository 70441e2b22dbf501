"""Turns a configuration, an owner and its addresses into the desired state of the attachment. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.netconf import Backend, NetConf
from cni_bridge.cni.result import InterfaceEntry, IpEntry, Result
from cni_bridge.cni.shaping import Shaping
from cni_bridge.cni.tuning import Tuning
from cni_bridge.policies import plan_policies
from cni_bridge.policy import Policy, Publication
from cni_bridge.tag import container_mac, host_ifname, host_mac, ifb_ifname, owner_tag
from ipam.api import Address, Allocation, Interface, NetnsRef, Network, Owner, Route

SCOPE_LINK = 253  # RT_SCOPE_LINK, rtnetlink(7)
_MAIN_TABLE = (None, 0, 254)  # unspecified or RT_TABLE_MAIN
DEFAULT_ROUTES: dict[int, Network] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSpec:
    """The bridge. `mtu` is set where the bridge is made, and raised to where `mtu_configured`.

    `nf_call`: what it bridges passes the hooks of iptables, whatever net.bridge.bridge-nf-call-iptables says later.
    """

    name: str
    mtu: int
    mtu_configured: bool
    promisc: bool
    vlan_filtering: bool
    nf_call: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSpec:
    """The veth end on the host, a port of the bridge."""

    name: str
    alias: str
    mac: str
    mtu: int
    hairpin: bool
    isolated: bool
    vlan: int
    vlan_trunk: tuple[int, ...]
    preserve_default_vlan: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """The veth end in the container. `link_local`: it may make IPv6 addresses of its own."""

    ifname: str
    mac: str
    mtu: int
    up: bool
    dad: bool
    addresses: tuple[Interface, ...]
    routes: tuple[Route, ...]
    link_local: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySpec:
    """The host's own addresses in the network, on the bridge or on a link of the access VLAN."""

    link: str
    vlan: int
    addresses: tuple[Interface, ...]
    force: bool

    @property
    def families(self) -> list[int]:
        """Those of the addresses, 4 and 6."""
        return sorted({each.version for each in self.addresses})


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpecs:
    """What is made before the addresses are known; the container's end has none yet, and no routes."""

    bridge: BridgeSpec
    port: PortSpec
    container: ContainerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What only the kernel knows of an attachment that was made: MAC addresses, and what was changed, in words.

    It is `ready` once its frames pass and its addresses are its own; until then routes are missing.
    """

    bridge_mac: str
    gateway_mac: str
    container_mac: str
    ready: bool
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """The desired state of one attachment: what ADD makes, CHECK compares and DEL removes.

    `request` is the digest of what was asked for, `allocation` what IPAM answered; `own_ipam`: it was this project's,
    under whatever name; `waiting` are publications that another attachment of the same container serves as long as it
    is there; `changed` tells what ADD changed on the host beside the attachment's own links and rules.
    """

    owner: Owner
    request: str
    allocation: Allocation
    netns: NetnsRef
    ipam_type: str
    own_ipam: bool
    bridge: BridgeSpec
    port: PortSpec
    container: ContainerSpec
    gateway: GatewaySpec | None
    shaping: Shaping
    tuning: Tuning
    policies: tuple[Policy, ...]
    waiting: tuple[Publication, ...] = ()
    changed: tuple[str, ...] = ()


def links_of(attachment: Attachment) -> tuple[str, ...]:
    """The names of the links on the host that are the attachment's own."""
    ifb = (ifb_ifname(attachment.owner),) if attachment.shaping.egress is not None else ()
    return (attachment.port.name, *ifb)


def plan_links(conf: NetConf, owner: Owner, *, backend: Backend, uplink_mtu: int, nf_call: bool = False) -> LinkSpecs:
    """The links of the owner's attachment, as far as they do not depend on its addresses.

    `backend` is the firewall where none is named; `uplink_mtu` is the MTU in bytes of the host's default route;
    `nf_call` tells whether bridged frames pass the hooks of iptables here.
    """
    mtu = conf.mtu or uplink_mtu
    kept_apart_by_iptables = not conf.icc and backend == Backend.IPTABLES
    return LinkSpecs(
        bridge=BridgeSpec(
            name=conf.bridge,
            mtu=mtu,
            mtu_configured=bool(conf.mtu),
            promisc=conf.promisc,
            vlan_filtering=conf.vlan_aware,
            nf_call=kept_apart_by_iptables and nf_call,
        ),
        port=PortSpec(
            name=host_ifname(owner),
            alias=owner_tag(owner),
            mac=host_mac(owner),
            mtu=mtu,
            # Bridged frames that pass the firewall may be led back to where they came from (bridge-nf-call-iptables).
            hairpin=conf.hairpin or bool(conf.ports),
            # nftables keeps the ports of a network without icc apart, and lets through what is for published ports; so
            # does iptables, but where bridged frames do not pass it the port's flag has to, and published is routed.
            isolated=conf.port_isolation or (kept_apart_by_iptables and not nf_call),
            vlan=conf.vlan,
            vlan_trunk=conf.vlan_trunk,
            preserve_default_vlan=conf.preserve_default_vlan,
        ),
        container=ContainerSpec(
            ifname=owner.ifname,
            mac=conf.mac or container_mac(owner),
            mtu=mtu,
            up=not conf.disable_container_interface,
            dad=conf.enable_dad,
            addresses=(),
            routes=(),
        ),
    )


def plan(
    conf: NetConf,
    owner: Owner,
    netns: NetnsRef,
    links: LinkSpecs,
    allocation: Allocation,
    *,
    request: str,
    own_ipam: bool,
    configured_gateways: frozenset[Address] | None,
    backend: Backend,
    firewall_works: bool = True,
) -> Attachment:
    """The attachment of the owner, with the links that were planned.

    `configured_gateways` are those that somebody chose, None if all that IPAM answers are; `backend` is the firewall
    where none is named, and if not `firewall_works` only for what is asked for.
    """
    gateways = tuple(_gateways(allocation)) if conf.is_gateway else ()
    gateway_link = f"{conf.bridge}.{conf.vlan}" if conf.vlan and conf.is_gateway else conf.bridge
    return Attachment(
        owner=owner,
        request=request,
        allocation=allocation,
        netns=netns,
        ipam_type=conf.ipam_type,
        own_ipam=own_ipam,
        bridge=links.bridge,
        port=links.port,
        container=replace(
            links.container,
            addresses=tuple(each.address for each in allocation.leases),
            routes=tuple(_resolved_routes(conf, allocation, configured_gateways)),
            # On a bridge of a thousand, each of its multicasts is a thousand frames.
            link_local=conf.as_reference or {each.address.version for each in allocation.leases} != {4},
        ),
        gateway=GatewaySpec(
            link=gateway_link, vlan=conf.vlan, addresses=tuple(dict.fromkeys(gateways)), force=conf.force_address
        )
        if gateways
        else None,
        shaping=conf.shaping,
        tuning=conf.tuning,
        policies=tuple(plan_policies(conf, owner, allocation, backend, gateway_link, firewall_works)),
    )


def build_result(conf: NetConf, attachment: Attachment, made: Made, netns: str) -> Result:
    """The result of ADD; `netns` is the path as the runtime wrote it."""
    bridge, port, container, gateway = attachment.bridge, attachment.port, attachment.container, attachment.gateway
    allocation = attachment.allocation
    gateways = tuple(_gateways(allocation)) if conf.is_gateway else ()
    own_link = (InterfaceEntry(name=gateway.link, mac=made.gateway_mac),) if gateway and gateway.vlan else ()
    result = Result(
        interfaces=(
            InterfaceEntry(name=bridge.name, mac=made.bridge_mac),
            InterfaceEntry(name=port.name, mac=port.mac, mtu=port.mtu),
            InterfaceEntry(name=container.ifname, mac=made.container_mac, mtu=container.mtu, sandbox=netns),
            *own_link,
        ),
        ips=tuple(
            IpEntry(
                address=lease.address,
                gateway=gateways[position].ip if gateways else lease.gateway,
                interface=2,
            )
            for position, lease in enumerate(allocation.leases)
        ),
        routes=tuple(_routes(conf, allocation)),
        dns=conf.dns or allocation.dns,
    )
    return result.after(conf.prev_result) if conf.prev_result is not None else result


def _gateways(allocation: Allocation) -> Iterator[Interface]:
    """The gateway of each lease, in its subnet; the subnet's first host where IPAM names none."""
    for lease in allocation.leases:
        network = lease.address.network
        address = lease.gateway
        if address is None:
            if network.prefixlen == network.max_prefixlen:
                raise InvalidConfig(
                    f"isGateway is true, and {lease.address} leaves no room for a gateway", "set gateway in ipam"
                )
            address = type(lease.address.ip)(int(network.network_address) + 1)
        yield type(lease.address)(f"{address}/{network.prefixlen}")


def _routes(conf: NetConf, allocation: Allocation) -> Iterator[Route]:
    """What IPAM answers and what the configuration adds; an internal network has no default route."""
    for route in (*allocation.routes, *_added_default_routes(conf, allocation)):
        if not (conf.internal and route.dst.prefixlen == 0):
            yield route


def _added_default_routes(conf: NetConf, allocation: Allocation) -> Iterator[Route]:
    """What `isDefaultGateway` adds: a default route for each family that has none."""
    if not conf.is_default_gateway:
        return
    for family, default in DEFAULT_ROUTES.items():
        gateway = next((each.ip for each in _gateways(allocation) if each.version == family), None)
        present = any(route.dst == default and route.table in _MAIN_TABLE for route in allocation.routes)
        if gateway is not None and not present:
            yield Route(dst=default, gw=gateway)


def _resolved_routes(
    conf: NetConf, allocation: Allocation, configured_gateways: frozenset[Address] | None
) -> Iterator[Route]:
    """Every route with the gateway it gets.

    One without a gateway of its own takes its family's first. Where this host is not the gateway and none is
    configured, there may be none at all: then only a default route, which means nothing else, goes there.
    """
    for route in _routes(conf, allocation):
        on_link = route.scope is not None and route.scope >= SCOPE_LINK
        gw = route.gw
        if gw is None and not on_link:
            gw = _family_gateway(conf, allocation, route.dst.version)
            implied = configured_gateways is not None and gw not in configured_gateways
            if implied and not conf.is_gateway and route.dst != DEFAULT_ROUTES[route.dst.version]:
                gw = None
        yield Route(
            dst=route.dst,
            gw=gw,
            mtu=route.mtu,
            advmss=route.advmss,
            priority=route.priority,
            table=route.table,
            scope=route.scope,
        )


def _family_gateway(conf: NetConf, allocation: Allocation, family: int) -> Address | None:
    if conf.is_gateway:
        return next((each.ip for each in _gateways(allocation) if each.version == family), None)
    return next(
        (each.gateway for each in allocation.leases if each.gateway is not None and each.address.version == family),
        None,
    )
