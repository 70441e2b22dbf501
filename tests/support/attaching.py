"""Attach and detach in one line, and see whether a host has changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.host import Host, Json

_KERNELS_OWN = re.compile("table local|fe80|ff00|dev lo")  # routes that come and go with a link's state


def attach(host: Host, conf: Json, name: str = "a", env: Mapping[str, str] | None = None) -> Json:
    """Make a container's namespace and attach it; the result."""
    host.add_netns(name)
    return host.plugin("ADD", conf, name, env=env).result


def detach(host: Host, conf: Json, *names: str) -> None:
    """Detach all of the host's containers, after which nothing is left."""
    for name in names or ("a",):
        host.plugin("DEL", conf, name).succeeded()
    host.assert_nothing_left()


def host_veth(result: Json) -> str:
    """The name of the veth end on the host."""
    return str(result["interfaces"][1]["name"])


def footprint(host: Host, *containers: str) -> Json:
    """What a plugin can have changed on the host and in these containers."""
    seen: Json = {
        "leases": host.leased(),
        "iptables": host.iptables_rules(),
        "nftables": host.shell("nft --stateless list ruleset"),
        "files": host.shell("find /run/cni-bridge /var/lib/cni -type f -exec sha1sum {} + 2>/dev/null", check=False),
    }
    for netns in ("", *containers):
        seen[f"links of {netns}"] = {
            name: [link.get(key) for key in ("ifindex", "address", "mtu", "master", "ifalias")]
            + sorted({"UP", "PROMISC"} & set(link["flags"]))
            for name, link in host.links(netns).items()
        }
        seen[f"addresses of {netns}"] = {link: host.addresses(link, netns) for link in host.links(netns)}
        everything = host.shell("ip route show table all; ip -6 route show table all", netns=netns)
        seen[f"routes of {netns}"] = [
            line.replace(" linkdown", "") for line in everything.splitlines() if not _KERNELS_OWN.search(line)
        ]
    return seen


@contextmanager
def unchanged(host: Host, *containers: str) -> Iterator[None]:
    """Fail if the block changes the host or these containers."""
    before = footprint(host, *containers)
    yield
    after = footprint(host, *containers)
    changed = {what: (before[what], after[what]) for what in before if before[what] != after[what]}
    assert not changed, changed
