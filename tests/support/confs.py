"""Network configurations that many tests start from."""

from __future__ import annotations

from ipaddress import ip_network

from tests.support.host import Host, Json

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

DUAL_STACK = {
    "type": "cni-ipam",
    "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
IPV4 = {"type": "cni-ipam", "subnet": "10.88.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}


def bridge_conf(version: str = "1.1.0", **keys: object) -> Json:
    """A network with a gateway and masquerading, with what is given put in; None takes a key out."""
    conf: Json = {
        "cniVersion": version,
        "name": "net1",
        "type": "cni-bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": IPV4,
    }
    merged = {**conf, **keys}
    return {key: value for key, value in merged.items() if value is not None}


def with_result(conf: Json, result: Json) -> Json:
    """The configuration as a runtime sends it for CHECK and DEL."""
    return {**conf, "prevResult": result}


def add_outside(host: Host, *, neighbour: bool = False) -> None:
    """A namespace `outside` behind the host's uplink, with no route back to any container.

    With `neighbour`, a second one of that name is on the same link.
    """
    host.add_netns("outside")
    if neighbour:
        _add_neighbour(host)
    else:
        host.shell("ip link add uplink type veth peer name eth0 netns outside")
    for netns, link, number in (("", "uplink", 1), ("outside", "eth0", 2), ("neighbour", "eth0", 3))[: 2 + neighbour]:
        host.shell(
            f"echo 0 > /proc/sys/net/ipv6/conf/{link}/accept_dad; "  # tentative addresses would have IPv6 wait
            f"ip address add 198.51.100.{number}/24 dev {link}; ip address add 2001:db8:51::{number}/64 dev {link}; "
            f"ip link set {link} up",
            netns=netns,
        )
    for netns, link in (("", "uplink"), ("outside", "eth0")):  # IPv6 is ready once the carrier was seen
        host.shell(f"until ip -6 address show dev {link} | grep -q fe80; do sleep 0.02; done", netns=netns)
    host.shell("ip route add default via 198.51.100.2; ip -6 route add default via 2001:db8:51::2")


def _add_neighbour(host: Host) -> None:
    """A bridge, in a namespace of its own, that joins the links of the host, `outside` and `neighbour`."""
    host.add_netns("neighbour")
    host.add_netns("switch")
    host.shell(
        "ip link add lan type bridge; ip link set lan up; ip link add port0 type veth peer name uplink; "
        "ip link add port1 type veth peer name eth0 netns outside; "
        "ip link add port2 type veth peer name eth0 netns neighbour; "
        "for each in port0 port1 port2; do ip link set $each master lan up; done",
        netns="switch",
    )
    host.shell(f"ip -n switch link set uplink netns {host.holder.pid}")


def route_from_outside(host: Host, *subnets: str) -> None:
    """Have both outside hosts send what is for these subnets to the host."""
    via = {4: "198.51.100.1", 6: "2001:db8:51::1"}
    for name in ("outside", "neighbour"):
        host.shell("".join(f"ip route add {each} via {via[ip_network(each).version]};" for each in subnets), name)
