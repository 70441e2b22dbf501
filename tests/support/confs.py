"""Network configurations that many tests start from."""

from __future__ import annotations

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


def add_outside(host: Host) -> None:
    """A namespace `outside` behind the host's uplink, with no route back to any container."""
    host.add_netns("outside")
    host.shell(
        "ip link add uplink type veth peer name eth0 netns outside; "
        "ip address add 198.51.100.1/24 dev uplink; ip -6 address add 2001:db8:51::1/64 dev uplink nodad; "
        "ip link set uplink up"
    )
    host.shell(
        "ip address add 198.51.100.2/24 dev eth0; ip -6 address add 2001:db8:51::2/64 dev eth0 nodad; "
        "ip link set eth0 up",
        netns="outside",
    )
    host.shell(
        "ip route add default via 198.51.100.2; ip -6 route add default via 2001:db8:51::2; "
        # the link-local addresses of a new link are tentative for a while, and IPv6 waits for them
        "while ip -6 address show dev uplink | grep -q tentative; do sleep 0.05; done"
    )
