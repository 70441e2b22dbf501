"""Looks into every network namespace of the host for the addresses that are in use there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cni_bridge.cni.errors import CniError
from cni_bridge.datapath import netns
from cni_bridge.datapath.netlink import Netlink
from ipam.api import Interface, NetnsRef

log = logging.getLogger(__name__)

_NAMED = Path("/run/netns")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAddress:
    """An address on a link in a network namespace other than the host's."""

    netns: NetnsRef
    ifname: str
    mac: str
    address: Interface


def survey() -> list[LiveAddress]:
    """The addresses of all namespaces that have a name in /run/netns or a process; this thread enters each of them."""
    own = netns.own()
    seen = {(own.device, own.inode)}
    found: list[LiveAddress] = []
    for path in _paths():
        try:
            with netns.opened(str(path)) as target:
                key = (target.ref.device, target.ref.inode)
                if key not in seen:
                    seen.add(key)
                    found += _addresses(target)
        except CniError as error:  # gone meanwhile, or no namespace
            log.debug("%s", error.msg)
    return found


def _paths() -> Iterator[Path]:
    if _NAMED.is_dir():
        yield from sorted(_NAMED.iterdir())
    for process in Path("/proc").glob("[0-9]*"):
        yield process / "ns/net"


def _addresses(target: netns.Netns) -> list[LiveAddress]:
    with netns.entered(target), closing(Netlink()) as inside:
        links = {each.index: each for each in inside.links()}
        return [
            LiveAddress(netns=target.ref, ifname=links[index].name, mac=links[index].mac, address=address)
            for index, address in inside.all_addresses()
            if index in links and not address.ip.is_loopback and not address.ip.is_link_local
        ]
