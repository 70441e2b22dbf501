"""What was read of a configuration is what would be read again."""

from __future__ import annotations

from dataclasses import replace

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.ipamconf import parse_ipam
from cni_bridge.cni.netconf import parse_netconf
from cni_bridge.cni.remembered import Remembered
from cni_bridge.cni.request import Request
from tests.support.calls import owner, refusal, request

SYSCTL = {"net.ipv4.conf.IFNAME.arp_filter": "1"}


def asked(number: int, size: int = 0) -> Request:
    return replace(request(), stdin=f"{number}".encode().ljust(size))


def test_it_is_read_once_while_it_is_among_the_last() -> None:
    known, reads = Remembered[str](), list[int]()

    def look(number: int, rest: str = "", size: int = 0) -> str:
        def read() -> str:
            reads.append(number)
            return f"{number}{rest}"

        return known.of(asked(number, size), rest, read=read)

    assert [look(1), look(1), look(1, "other"), look(2)] == ["1", "1", "1other", "2"]
    assert reads == [1, 1, 2]
    for number in range(100, 200):
        look(number)
    reads.clear()
    assert (look(1), reads) == ("1", [1])
    reads.clear()
    assert [look(9, size=1 << 15) for _ in range(2)] == ["9", "9"]
    assert reads == [9, 9], "long ones are not kept"


def test_what_is_beside_the_configuration_counts_too() -> None:
    given = request(sysctl=SYSCTL, ipam={"type": "cni-ipam", "subnet": "10.88.0.0/24"})
    same = [replace(given, owner=owner("c1", ifname=name)) for name in ("eth0", "eth1", "eth0")]
    names = [[each.name for each in parse_netconf(one).tuning.sysctls] for one in same]
    assert names == [[f"ipv4/conf/{name}/arp_filter"] for name in ("eth0", "eth1", "eth0")]
    macs = ["02:00:00:00:00:07", "", "02:00:00:00:00:08"]
    assert [parse_netconf(replace(given, args={"MAC": each})).mac for each in macs] == macs
    told = [parse_ipam(replace(given, args=args)) for args in ({}, {"STICKY": "a", "IP": "10.88.0.9"}, {})]
    assert [(each.sticky, len(each.requested)) for each in told] == [("", 0), ("a", 1), ("", 0)]
    assert told[0] == told[2]


def test_a_refusal_is_told_each_time() -> None:
    for _ in range(2):
        assert isinstance(refusal(parse_netconf, request(mtu=-1)), InvalidConfig)
