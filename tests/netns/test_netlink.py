"""The kernel's links and addresses through `Netlink`, in namespaces of a host of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_interface

import pytest

from cni_bridge.cni.errors import KernelRefused
from cni_bridge.datapath import netns
from cni_bridge.datapath.messages import NO_NSID, Link
from cni_bridge.datapath.netlink import Netlink
from cni_bridge.datapath.netns import Netns
from tests.support.host import Host
from tests.support.ipamd import outside_path


class Sockets:
    """Netlink sockets of a host and of its containers, which this thread enters to open them."""

    def __init__(self, host: Host, closing: ExitStack) -> None:
        self.host = host
        self._closing = closing
        self.own_netns = closing.enter_context(netns.opened(f"/proc/{host.holder.pid}/ns/net"))
        self.own = self._open(self.own_netns)

    def add_container(self, name: str) -> tuple[Netlink, Netns]:
        """Make a container's namespace and open it."""
        path = outside_path(self.host, self.host.add_netns(name))
        target = self._closing.enter_context(netns.opened(str(path)))
        return self._open(target), target

    def _open(self, target: Netns) -> Netlink:
        with netns.entered(target):
            made = Netlink()
        self._closing.callback(made.close)
        return made


@pytest.fixture
def sockets(host: Host) -> Iterator[Sockets]:
    with ExitStack() as closing:
        yield Sockets(host, closing)


def found(socket: Netlink, name: str) -> Link:
    link = socket.link(name)
    assert link is not None, name
    return link


def add_bridge(sockets: Sockets) -> Link:
    sockets.own.add_bridge("br0", mac="02:00:00:00:00:aa", mtu=0)
    return found(sockets.own, "br0")


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00:01"], ids=["kernel's", "given"])
@pytest.mark.parametrize("peer_mac", ["", "02:00:00:00:00:02"], ids=["kernel's peer", "given peer"])
def test_the_kernel_chooses_the_mac_addresses_that_are_not_given(sockets: Sockets, mac: str, peer_mac: str) -> None:
    bridge = add_bridge(sockets)
    inside, target = sockets.add_container("a")
    sockets.own.add_veth(
        "port", mac=mac, mtu=0, master=bridge.index, peer="eth0", peer_mac=peer_mac, peer_netns=target.fd
    )
    port, eth0 = found(sockets.own, "port"), found(inside, "eth0")
    assert (port.master, port.up, port.mtu, eth0.mtu) == (bridge.index, True, 1500, 1500)
    for link, given in ((port, mac), (eth0, peer_mac)):
        if given:
            assert link.mac == given
        else:
            first = int(link.mac[:2], 16)
            assert (first & 1, first & 2) == (0, 2), "unicast, locally administered"
    assert port.mac != eth0.mac


def test_both_ends_of_a_veth_in_one_namespace(sockets: Sockets) -> None:
    bridge = add_bridge(sockets)
    sockets.own.add_veth("port", mac="", mtu=1400, master=bridge.index, peer="other", peer_mac="", peer_netns=None)
    port, other = found(sockets.own, "port"), found(sockets.own, "other")
    assert (port.mtu, other.mtu, port.peer_nsid) == (1400, 1400, NO_NSID)
    assert sockets.own.leads_to(port, sockets.own, sockets.own_netns.fd, "other")


@pytest.mark.parametrize("address", ["10.88.0.1/24", "fd00:88::1/64", "10.88.0.1/31", "10.88.0.1/32"])
def test_an_address_is_added_once_and_removed_once(sockets: Sockets, address: str) -> None:
    bridge, wanted = add_bridge(sockets), ip_interface(address)
    sockets.own.delete_address(bridge.index, wanted)
    assert [sockets.own.add_address(bridge.index, wanted, dad=False) for _ in range(2)] == [True, False]
    assert wanted in [each.address for each in sockets.own.addresses(bridge.index)]
    for _ in range(2):
        sockets.own.delete_address(bridge.index, wanted)
        assert wanted not in [each.address for each in sockets.own.addresses(bridge.index)]


def test_removing_an_address_leaves_the_others(sockets: Sockets) -> None:
    bridge = add_bridge(sockets)
    stays, goes = ip_interface("10.88.0.1/24"), ip_interface("10.89.0.1/24")
    for each in (stays, goes):
        sockets.own.add_address(bridge.index, each, dad=False)
    sockets.own.delete_address(bridge.index, ip_interface("10.89.0.2/24"))
    sockets.own.delete_address(bridge.index, goes)
    assert [str(each.address) for each in sockets.own.addresses(bridge.index) if each.address.version == 4] == [
        str(stays)
    ]


def test_an_address_of_a_link_that_is_gone_cannot_be_removed(sockets: Sockets) -> None:
    with pytest.raises(KernelRefused, match="from link 4711"):
        sockets.own.delete_address(4711, ip_interface("10.88.0.1/24"))


def test_a_link_is_deleted_once(sockets: Sockets) -> None:
    add_bridge(sockets)
    assert [sockets.own.delete_link("br0") for _ in range(2)] == [True, False]
    assert sockets.own.link("br0") is None


def test_a_namespace_has_a_number_once_a_link_leads_there(sockets: Sockets) -> None:
    bridge = add_bridge(sockets)
    numbers = []
    for name in ("a", "b"):
        _, target = sockets.add_container(name)
        assert sockets.own.nsid(target.fd) == NO_NSID
        sockets.own.add_veth(
            f"port{name}", mac="", mtu=0, master=bridge.index, peer="eth0", peer_mac="", peer_netns=target.fd
        )
        numbers.append(sockets.own.nsid(target.fd))
        assert found(sockets.own, f"port{name}").peer_nsid == numbers[-1] != NO_NSID
    assert len(set(numbers)) == 2


def test_what_is_no_namespace_has_no_number(sockets: Sockets) -> None:
    with open(os.devnull) as other, pytest.raises(KernelRefused):
        sockets.own.nsid(other.fileno())


def test_a_veth_leads_to_its_own_peer_only(sockets: Sockets) -> None:
    bridge = add_bridge(sockets)
    inside, target = sockets.add_container("a")
    for name, peer in (("port0", "eth0"), ("port1", "eth1")):
        sockets.own.add_veth(name, mac="", mtu=0, master=bridge.index, peer=peer, peer_mac="", peer_netns=target.fd)
    first = found(sockets.own, "port0")
    assert sockets.own.leads_to(first, inside, target.fd, "eth0")
    for other in ("eth1", "lo", "none"):
        assert not sockets.own.leads_to(first, inside, target.fd, other)
    assert not sockets.own.leads_to(bridge, inside, target.fd, "eth0")


@pytest.mark.parametrize("numbered", [False, True], ids=["without a number", "numbered"])
@pytest.mark.parametrize("in_one", [False, True], ids=["leads into a container", "both ends on the host"])
def test_indexes_that_match_by_chance_do_not_deceive(sockets: Sockets, in_one: bool, numbered: bool) -> None:
    host = sockets.host
    right, right_target = sockets.add_container("right")
    wrong, wrong_target = sockets.add_container("wrong")
    sockets.add_container("elsewhere")
    peer = "name eth0 index 78" if in_one else "name eth0 index 78 netns right"
    host.shell(
        f"ip link add port index 77 type veth peer {peer};"
        "ip -n elsewhere link add port index 77 type veth peer name eth0 index 78 netns wrong"
    )
    if numbered:
        host.run("ip", "netns", "set", "wrong", "42")
    port = found(sockets.own, "port")
    assert (port.peer, found(wrong, "eth0").peer) == (found(wrong, "eth0").index, port.index), "they match"
    assert not sockets.own.leads_to(port, wrong, wrong_target.fd, "eth0")
    there = (sockets.own, sockets.own_netns) if in_one else (right, right_target)
    assert sockets.own.leads_to(port, there[0], there[1].fd, "eth0")
