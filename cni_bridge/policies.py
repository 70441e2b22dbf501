"""Turns a configuration and addresses into what the firewall is to do for the attachment. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from cni_bridge.cni.conditions import Condition
from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.netconf import Backend, GatewayMode, NetConf
from cni_bridge.cni.ports import PortMapping
from cni_bridge.policy import LinkPolicy, Masquerade, OpenPorts, Policy, Publication, Shield, SpoofCheck
from cni_bridge.tag import container_mac, host_ifname
from ipam.api import Address, Allocation, Owner


def plan_policies(
    conf: NetConf, owner: Owner, allocation: Allocation, backend: Backend, gateway_link: str, firewall_works: bool
) -> Iterator[Policy]:
    """The policies of the attachment, one for each backend that has something to hold."""
    addresses = tuple(lease.address.ip for lease in allocation.leases)
    mode = conf.gateway_mode
    if mode is None:
        mode = GatewayMode.NAT if conf.is_gateway and not conf.direct_routing else GatewayMode.NAT_UNPROTECTED
    links = tuple(dict.fromkeys((conf.bridge, gateway_link)))
    publications = tuple(plan_publications(conf.ports, addresses, snat=conf.snat, masquerade_all=conf.masquerade_all))
    # What masquerades may be chosen; all else is the same backend's that masquerades where nothing is.
    nothing = Policy(backend=backend, owner=owner)
    masquerade = replace(
        nothing,
        backend=conf.ip_masq_backend or backend,
        masquerade=tuple(Masquerade(address=each, local_links=links) for each in addresses) if conf.ip_masq else (),
    )
    filtered = replace(
        nothing,
        publications=publications if mode != GatewayMode.ROUTED else (),
        shields=tuple(_shields(conf, mode, addresses)),
        link=_link_policy(conf, gateway_link, firewall_works) if conf.is_gateway or conf.ports else None,
        apart="" if conf.icc or backend == Backend.IPTABLES else host_ifname(owner),
    )
    checked = replace(nothing, backend=Backend.NFTABLES, spoof_check=_spoof_check(conf, owner, addresses))
    yield from _merged(masquerade, filtered, checked)


def _merged(*policies: Policy) -> Iterator[Policy]:
    """The policies, those of one backend as one, so that it takes one transaction; none that says nothing."""
    for backend in dict.fromkeys(each.backend for each in policies):
        whole = Policy(backend=backend, owner=policies[0].owner)
        for each in policies:
            if each.backend == backend:
                whole = replace(
                    whole,
                    masquerade=whole.masquerade or each.masquerade,
                    publications=whole.publications or each.publications,
                    shields=whole.shields or each.shields,
                    link=whole.link or each.link,
                    apart=whole.apart or each.apart,
                    spoof_check=whole.spoof_check or each.spoof_check,
                )
        if whole != Policy(backend=backend, owner=whole.owner):
            yield whole


def _spoof_check(conf: NetConf, owner: Owner, addresses: tuple[Address, ...]) -> SpoofCheck | None:
    if not conf.mac_spoof_check and not conf.ip_spoof_check:
        return None
    mac = (conf.mac or container_mac(owner)) if conf.mac_spoof_check else ""
    return SpoofCheck(port=host_ifname(owner), mac=mac, addresses=addresses if conf.ip_spoof_check else None)


def plan_publications(
    mappings: Iterable[PortMapping],
    addresses: Iterable[Address],
    *,
    snat: bool,
    masquerade_all: bool,
    conditions: Mapping[int, Condition] | None = None,
) -> Iterator[Publication]:
    """Each mapping for the container's first address of each family that it is meant for, and on its condition."""
    first = {each.version: each for each in reversed(tuple(addresses))}
    for mapping in mappings:
        families = (4, 6) if mapping.host_ip is None else (mapping.host_ip.version,)
        served = [family for family in families if family in first]
        if first and not served:  # before IPAM has answered there is none
            raise InvalidConfig(f"runtimeConfig.portMappings: {mapping} is for a family of which there is no address")
        for family in served:
            yield Publication(
                protocol=mapping.protocol,
                host_ip=mapping.host_ip if mapping.host_ip is not None and not mapping.host_ip.is_unspecified else None,
                host_port=mapping.host_port,
                address=first[family],
                container_port=mapping.container_port,
                count=mapping.count,
                snat=snat,
                masquerade_all=masquerade_all,
                condition=str((conditions or {}).get(family, "")),
            )


def _shields(conf: NetConf, mode: GatewayMode, addresses: Iterable[Address]) -> Iterator[Shield]:
    routed = mode == GatewayMode.ROUTED
    if conf.internal or mode == GatewayMode.NAT_UNPROTECTED:
        return
    opened = tuple(OpenPorts(protocol=each.protocol, port=each.container_port, count=each.count) for each in conf.ports)
    for address in addresses:
        yield Shield(address=address, routed=routed, opened=opened if routed else ())


def _link_policy(conf: NetConf, link: str, firewall_works: bool) -> LinkPolicy | None:
    """What holds for the bridge; None if that is nothing."""
    isolated = conf.isolated if conf.isolated is not None else firewall_works
    asked = isolated or conf.internal or not conf.icc or conf.trusted_interfaces or conf.ports or conf.gateway_mode
    if not asked and (conf.as_reference or not firewall_works):
        return None
    return LinkPolicy(
        link=link, isolated=isolated, internal=conf.internal, icc=conf.icc, trusted=conf.trusted_interfaces
    )
