"""The host as address management sees it: addresses and routes by netlink, nameservers, namespaces by their paths."""

from __future__ import annotations

import logging
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

from cni_bridge.resolvconf import parse_resolv_conf
from ipam.api import Address, NetnsRef
from ipam.host import HostRoute, LinkAddress, Surroundings

log = logging.getLogger(__name__)

# What the host itself asks; systemd-resolved keeps the real nameservers apart from its own address.
_RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


class KernelHost:
    """The host that this process runs on."""

    def surroundings(self) -> Surroundings:
        """See `Host.surroundings`."""
        from cni_bridge.datapath.netlink import Netlink  # seldom needed, and the netlink library is expensive

        with closing(Netlink()) as netlink:
            names = {each.index: each.name for each in netlink.links()}
            return Surroundings(
                addresses=tuple(
                    LinkAddress(link=names.get(index, ""), address=address)
                    for index, address in netlink.all_addresses()
                ),
                routes=tuple(HostRoute(dst=dst, link=names.get(index, "")) for index, dst in netlink.all_routes()),
                nameservers=tuple(_nameservers()),
            )

    def lives(self, netns: NetnsRef) -> bool | None:
        """See `Host.lives`."""
        try:
            status = Path(netns.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError):  # ValueError for a path that the system cannot have
            return None
        return (status.st_dev, status.st_ino) == (netns.device, netns.inode)


def _nameservers() -> set[Address]:
    found: set[Address] = set()
    for path in _RESOLV_CONFS:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        for each in parse_resolv_conf(text).nameservers:
            try:
                found.add(ip_address(each.partition("%")[0]))
            except ValueError:
                log.info("%s names %s, which is no address", path, each)
    return found
