"""What one attachment costs the kernel, nftables and the disk: the same messages in a loop, and nothing else.

No program can attach faster by the same means; what an attachment takes beyond it is ours. It does not wait for the
bridge port to get its carrier.
"""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from uuid import uuid4

from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.datapath import netns
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.datapath.netns import Netns
from cni_bridge.firewall.nftables_elements import Element, owned_elements
from cni_bridge.firewall.nftables_lookup import Lookup
from cni_bridge.policy import Masquerade, Policy, Publication, Shield
from cni_bridge.tag import container_mac, host_ifname, host_mac, owner_tag
from ipam.api import Owner, Route
from tests.perf.calling import inside
from tests.perf.runtimes import Network, bridge_name, subnet

_IFNAME = "eth0"
_MTU = 1500
_PORT = 7000  # of the host
_CREATE = "CREATE TABLE addresses (network TEXT, address BLOB, container TEXT, PRIMARY KEY (network, address))"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attached:
    """One attachment of the loop."""

    owner: Owner
    address: IPv4Interface
    bridge: str

    @property
    def elements(self) -> tuple[Element, ...]:
        """The elements that a full attachment has."""
        ip = self.address.ip
        publication = Publication(protocol=Protocol.TCP, host_ip=None, host_port=_PORT, address=ip, container_port=80)
        policy = Policy(
            backend=Backend.NFTABLES,
            owner=self.owner,
            masquerade=(Masquerade(address=ip, local_links=(self.bridge,)),),
            publications=(publication,),
            shields=(Shield(address=ip),),
        )
        return owned_elements(policy)


class Limit:
    """The loop, on the bridge and in the tables of a network that there is, with a database in the directory."""

    def __init__(self, network: Network, directory: Path) -> None:
        host, name = network.place.host, f"limit{network.number}"
        network.place.add_netns([name])
        self._netns = f"/proc/{host.holder.pid}/root/run/netns/{name}"
        self._subnet = subnet(network.number)
        self._number = 0
        self._attached: _Attached | None = None
        self._database = sqlite3.connect(directory / f"{uuid4()}.db", isolation_level=None)
        for statement in ("PRAGMA journal_mode = PERSIST", "PRAGMA synchronous = FULL", _CREATE):
            self._database.execute(statement)
        with inside(host):
            self._netlink = Netlink()
            self._nftables = Lookup()
        bridge = self._netlink.link(bridge_name(network.number))
        assert bridge is not None
        self._bridge = bridge

    def close(self) -> None:
        """Close what was opened; the rest goes with the host."""
        self._netlink.close()
        self._nftables.close()
        self._database.close()

    def add(self) -> float:
        """Milliseconds of one attachment."""
        self._attached = attached = self._next()
        changes = [each.add_new() for each in attached.elements]
        row = ("limit", attached.address.ip.packed, attached.owner.container_id)
        began = time.perf_counter()
        self._database.execute("INSERT INTO addresses VALUES (?, ?, ?)", row)
        self._link(attached)
        self._nftables.make_changes(changes, "change elements")
        return (time.perf_counter() - began) * 1000

    def delete(self) -> float:
        """Milliseconds of taking it away again."""
        assert self._attached is not None
        attached, self._attached = self._attached, None
        changes = [each.delete() for each in attached.elements]
        began = time.perf_counter()
        self._netlink.delete_link(host_ifname(attached.owner))
        self._nftables.make_changes(changes, "change elements")
        self._database.execute("DELETE FROM addresses WHERE address = ?", (attached.address.ip.packed,))
        return (time.perf_counter() - began) * 1000

    def _link(self, attached: _Attached) -> None:
        """Make the link as `Joining` does."""
        owner, host = attached.owner, self._netlink
        mac = container_mac(owner)
        fd = os.open(self._netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            host.add_veth(
                host_ifname(owner),
                mac=host_mac(owner),
                mtu=_MTU,
                master=self._bridge.index,
                peer=_IFNAME,
                peer_mac=mac,
                peer_netns=fd,
            )
            host.set_up_port(host_ifname(owner), alias=owner_tag(owner), hairpin=True, isolated=False)
            with netns.opened(self._netns, fd) as target:
                self._configure(target, attached.address, mac)
        finally:
            os.close(fd)

    def _configure(self, target: Netns, address: IPv4Interface, mac: str) -> None:
        with netns.entered(target):
            there = Netlink()
        try:
            link = there.link(_IFNAME)
            assert link is not None
            there.add_address(link.index, address, dad=False)
            there.set_arp_notify(link.index, up=True, link_local=False)
            there.append_route(link.index, Route(dst=IPv4Network("0.0.0.0/0"), gw=self._subnet.network_address + 1))
            there.set_link(link.index, mac=mac)  # announces the address
        finally:
            there.close()

    def _next(self) -> _Attached:
        self._number += 1
        owner = Owner(network="limit", container_id=f"{self._number:064x}", ifname=_IFNAME)
        address = IPv4Interface((self._subnet.broadcast_address - self._number, self._subnet.prefixlen))
        return _Attached(owner=owner, address=address, bridge=self._bridge.name)
