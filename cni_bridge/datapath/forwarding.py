"""Makes the host a router, without costing it the routes that it learnt from routers itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cni_bridge.datapath import sysctl
from cni_bridge.datapath.netlink import Netlink

log = logging.getLogger(__name__)

_SETTING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def ensure_forwarding(netlink: Netlink, families: Iterable[int], changed: list[str]) -> None:
    """Turn on forwarding of the families, 4 and 6; what had to be changed is told in words."""
    for family in families:
        if sysctl.read(_SETTING[family]) == "1":
            continue
        if family == 6:
            _keep_router_advertisements(netlink, changed)
        changed.append(f"turned on net.{_SETTING[family].replace('/', '.')}")
        sysctl.write(_SETTING[family], "1")


def missing_forwarding(families: Iterable[int]) -> list[str]:
    """The families whose forwarding is off, in words."""
    return [
        f"forwarding: net.{_SETTING[family].replace('/', '.')} is off"
        for family in families
        if sysctl.read(_SETTING[family]) != "1"
    ]


def _keep_router_advertisements(netlink: Netlink, changed: list[str]) -> None:
    """With forwarding on, `accept_ra` 1 means no, and routes learnt from advertisements are dropped; 2 means yes.

    It is raised on uplinks: links that learnt a route, and all that are neither bridge ports nor a container's veth.
    """
    for name in sysctl.link_names("ipv6"):
        setting = f"ipv6/conf/{name}/accept_ra"
        if name == "lo" or sysctl.read(setting) != "1":
            continue
        link = netlink.link(name)
        if link is None or link.master:
            continue
        if link.kind != "veth" or netlink.has_ra_route(link.index):
            changed.append(f"set net.ipv6.conf.{name}.accept_ra from 1 to 2")
            sysctl.write(setting, "2")
            log.warning(
                "set net.ipv6.conf.%s.accept_ra to 2, so that %s keeps learning routes while this host forwards IPv6",
                name,
                name,
            )
