"""The mark by which a rule or a link can be traced to its owner, and names that follow from an owner. Pure."""

from __future__ import annotations

import re
from hashlib import sha256

from ipam.api import Owner

MARK = "cni-bridge"
MAX_LENGTH = 127  # NFTNL_UDATA_COMMENT_MAXLEN is 128 with the terminating zero; iptables and IFLA_IFALIAS take more
_UNPRINTABLE = re.compile(r"[^A-Za-z0-9_.\-]")


def network_tag(network: str) -> str:
    """What the tags of all owners in the network begin with."""
    return f"{MARK}:{_digest(network)[:12]}:"


def owner_tag(owner: Owner) -> str:
    """The owner's tag: unique by its digests, which come first, and readable by its names, which may be cut."""
    names = "/".join(_UNPRINTABLE.sub("?", each) for each in (owner.network, owner.container_id, owner.ifname))
    return f"{owner_key(owner)} {names}"[:MAX_LENGTH]


def owner_key(owner: Owner) -> str:
    """The part of the owner's tag that is unique to it."""
    return f"{network_tag(owner.network)}{_owner_digest(owner)[:16]}"


def key_of_tag(tag: str) -> str:
    """The unique part of a tag that was found on a rule or a link."""
    return tag.partition(" ")[0]


def host_ifname(owner: Owner) -> str:
    """The name of the owner's veth end on the host: the same for every request of this owner."""
    return f"veth{_owner_digest(owner)[:11]}"


def ifb_ifname(owner: Owner) -> str:
    """The name of the link that delays what the owner's container sends."""
    return f"bwp{_owner_digest(owner)[:12]}"


def vlan_port_ifname(link: str) -> str:
    """The name of the bridge port behind the gateway link of an access VLAN."""
    return f"veth{_digest(link)[:11]}"


def host_mac(owner: Owner) -> str:
    """The MAC address of the owner's veth end on the host."""
    return _mac(f"host {_owner_digest(owner)}")


def container_mac(owner: Owner) -> str:
    """The MAC address of the owner's veth end in the container, where none is requested."""
    return _mac(f"container {_owner_digest(owner)}")


def _owner_digest(owner: Owner) -> str:
    return _digest("\0".join((owner.network, owner.container_id, owner.ifname)))


def _mac(seed: str) -> str:
    octets = bytearray.fromhex(_digest(seed)[:12])
    octets[0] = octets[0] & 0xFC | 0x02  # unicast, locally administered (IEEE 802, section 8.4)
    return octets.hex(":")


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
