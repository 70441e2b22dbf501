"""The store compared with namespaces and attachments: what differs, what would put it right, and what is no difference.

The survey leaves link-local and loopback addresses and the host's own namespace out already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cni_bridge.audit import Adopt, Problem, Repair, TakeBack, Withhold, compare
from cni_bridge.cni.netconf import Backend, parse_netconf
from cni_bridge.datapath.survey import LiveAddress
from cni_bridge.plan import Attachment, plan, plan_links
from ipam.api import Allocation, Lease, NetnsRef, Owner, Reservation, ReservedFor
from ipam.clock import Moment
from ipam.ranges import build_range
from ipam.registry import Entry, Origin, Pool, Weight
from tests.support.calls import owner, request
from tests.support.node import netns

HERE, ELSEWHERE = netns("a", 1), netns("b", 2)


def lease(address: str, of: Owner, at: NetnsRef | None = HERE, boot: str = "1") -> Lease:
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Lease(owner=of, address=ip_interface(f"{address}/24"), gateway=None, since=since, boot_id=boot, netns=at)


def leased(address: str, of: Owner | None = None, at: NetnsRef | None = HERE, boot: str = "1") -> Entry:
    of = of or owner("a")
    return Entry(network=of.network, address=ip_address(address), lease=lease(address, of, at, boot))


def reserved(address: str, network: str = "net1", kind: ReservedFor = ReservedFor.NOBODY) -> Entry:
    reservation = Reservation(kind=kind, value="" if kind == ReservedFor.NOBODY else "x")
    return Entry(network=network, address=ip_address(address), reservation=reservation)


def cooling(address: str) -> Entry:
    return Entry(network="net1", address=ip_address(address), released=Moment(boot_id="1", seconds=5))


def pool(subnet: str, network: str = "net1", **changes: object) -> Pool:
    each = build_range(ip_network(subnet), **changes)  # type: ignore[arg-type]  # whatever the test changes
    since = datetime(2026, 1, 2, tzinfo=UTC)
    return Pool(
        network=network,
        subnet=each.subnet,
        ranges=(each,),
        origin=Origin.CONFIGURED,
        reason="",
        shared=True,
        since=since,
    )


def live(address: str, at: NetnsRef = HERE, ifname: str = "eth0") -> LiveAddress:
    return LiveAddress(netns=at, ifname=ifname, mac="02:00:00:00:00:07", address=ip_interface(f"{address}/24"))


def attached(*addresses: str, of: Owner | None = None, ipam: str = "cni-ipam", own: bool = True) -> Attachment:
    """What is recorded of an attachment with these addresses.

    `own`: the plugin of that type was ours.
    """
    of = of or owner("a")
    conf = parse_netconf(request(ipam={"type": ipam}))
    return plan(
        conf,
        of,
        HERE,
        plan_links(conf, of, backend=Backend.NFTABLES, uplink_mtu=1500),
        Allocation(leases=tuple(lease(each, of) for each in addresses)),
        request="digest",
        own_ipam=own,
        configured_gateways=None,
        backend=Backend.NFTABLES,
    )


V4, V6 = pool("10.0.0.0/24"), pool("fd00::/120")
SHARED = (pool("10.0.0.0/24"), pool("10.0.0.0/24", "net2"))


def compared(
    entries: Sequence[Entry] = (),
    seen: Sequence[LiveAddress] = (),
    attachments: Iterable[Attachment] = (),
    pools: Sequence[Pool] = (V4, V6),
    gone: Sequence[NetnsRef] = (),
    blind: bool = False,
) -> list[Problem]:
    return list(compare(entries, pools, seen, attachments, lambda each: None if blind else each not in gone, "1"))


NO_DIFFERENCE = {
    "nothing at all": {},
    "a lease that is in use": {"entries": [leased("10.0.0.2")], "seen": [live("10.0.0.2")]},
    "on another link of its namespace": {"entries": [leased("10.0.0.2")], "seen": [live("10.0.0.2", ifname="net1")]},
    "by another path of its namespace": {
        "entries": [leased("10.0.0.2")],
        "seen": [live("10.0.0.2", replace(HERE, path="/proc/7/ns/net"))],
    },
    "IPv6": {"entries": [leased("fd00::2")], "seen": [live("fd00::2")]},
    "a lease of this boot that tells no namespace": {"entries": [leased("10.0.0.2", at=None)]},
    "a lease of an earlier boot whose namespace has it": {
        "entries": [leased("10.0.0.2", boot="0")],
        "seen": [live("10.0.0.2")],
    },
    "on two links of its namespace": {
        "entries": [leased("10.0.0.2")],
        "seen": [live("10.0.0.2"), live("10.0.0.2", ifname="net1")],
    },
    "by two paths of its namespace": {
        "entries": [leased("10.0.0.2")],
        "seen": [live("10.0.0.2"), live("10.0.0.2", replace(HERE, path="/proc/7/ns/net"))],
    },
    "a namespace that cannot be looked for": {
        "entries": [leased("10.0.0.2")],
        "blind": True,
    },
    "reserved for nobody, and in use": {"entries": [reserved("10.0.0.2")], "seen": [live("10.0.0.2")]},
    "reserved for somebody, and in use": {
        "entries": [reserved("10.0.0.2", kind=ReservedFor.NAME)],
        "seen": [live("10.0.0.2")],
    },
    "reserved or cooling, and not in use": {"entries": [reserved("10.0.0.2"), cooling("10.0.0.3")]},
    "a lease of another network that shares the subnet": {
        "entries": [leased("10.0.0.2", owner("a", "net2"))],
        "seen": [live("10.0.0.2")],
        "pools": SHARED,
    },
    "an address of no pool": {"seen": [live("192.0.2.9"), live("2001:db8::9")]},
    "outside of the range": {
        "seen": [live("10.0.0.9")],
        "pools": [pool("10.0.0.0/24", start=ip_address("10.0.0.10"))],
    },
    "the gateway": {"seen": [live("10.0.0.1"), live("fd00::1")]},
    "the subnet's own and broadcast address": {"seen": [live("10.0.0.0"), live("10.0.0.255")]},
    "what is excluded": {
        "seen": [live("10.0.0.9")],
        "pools": [pool("10.0.0.0/24", exclude=(ip_network("10.0.0.8/31"),))],
    },
    "link-local, and no pool holds it": {"seen": [live("169.254.0.9"), live("fe80::9")]},
    "an attachment without addresses": {"attachments": [attached()]},
    "an address that another IPAM plugin gave": {
        "seen": [live("10.9.0.2")],
        "attachments": [attached("10.9.0.2", ipam="static", own=False)],
    },
    "an address that the reference's host-local gave": {
        "seen": [live("10.9.0.2")],
        "attachments": [attached("10.9.0.2", ipam="host-local", own=False)],
    },
    "an attachment of which nothing is left": {"attachments": [attached("10.0.0.2")]},
}


@pytest.mark.parametrize("seen", NO_DIFFERENCE.values(), ids=NO_DIFFERENCE.keys())
def test_no_difference(seen: dict[str, object]) -> None:
    assert compared(**seen) == []  # type: ignore[arg-type]


def the_only(problems: list[Problem]) -> tuple[Weight, str, Repair | None]:
    (problem,) = problems
    assert not problem.finding.mendable
    return problem.finding.weight, problem.finding.what, problem.repair


def test_a_lease_whose_namespace_is_gone_is_taken_back() -> None:
    weight, what, repair = the_only(compared([leased("10.0.0.2")], gone=[HERE]))
    assert (weight, repair) == (Weight.WARNING, TakeBack(owner=owner("a"), address=ip_address("10.0.0.2")))
    assert what == "10.0.0.2 of net1/a/eth0 is leased, and its namespace /run/netns/a is gone"
    assert str(repair) == "release 10.0.0.2 of net1/a/eth0"


@pytest.mark.parametrize("seen", [[], [live("10.0.0.2")]], ids=["not in use", "in use"])
def test_a_lease_of_an_earlier_boot_that_tells_no_namespace_is_taken_back(seen: list[LiveAddress]) -> None:
    entries = [leased("10.0.0.2", at=None, boot="0"), leased("10.0.0.3", owner("b"), at=None)]
    weight, what, repair = the_only(compared(entries, seen))
    assert (weight, repair) == (Weight.WARNING, TakeBack(owner=owner("a"), address=ip_address("10.0.0.2")))
    assert what == "10.0.0.2 of net1/a/eth0 was leased before this boot, which no namespace outlives"


def test_a_leased_address_in_use_in_two_namespaces_is_named_with_both_and_left_to_people() -> None:
    seen = [live("10.0.0.2"), live("10.0.0.3"), live("10.0.0.2", ELSEWHERE, ifname="net1")]
    weight, what, repair = the_only(compared([leased("10.0.0.2"), leased("10.0.0.3", owner("b"))], seen))
    assert (weight, repair) == (Weight.ERROR, None)
    assert what == (
        "10.0.0.2 is leased and in use on eth0 in /run/netns/a and on net1 in /run/netns/b; remove one of them"
    )


@pytest.mark.parametrize("elsewhere", [[], [live("10.0.0.2", ELSEWHERE)], [live("192.0.2.1")]])
def test_a_lease_whose_namespace_lacks_the_address_is_left_alone(elsewhere: list[LiveAddress]) -> None:
    weight, what, repair = the_only(compared([leased("10.0.0.2")], elsewhere))
    assert (weight, repair) == (Weight.WARNING, None)
    assert what == "10.0.0.2 of net1/a/eth0 is leased, and no link in /run/netns/a has it"


@pytest.mark.parametrize("entries", [[], [cooling("10.0.0.2")]], ids=["free", "cooling"])
@pytest.mark.parametrize("attachments", [[], [attached("10.0.0.3")], [attached()]])
def test_an_address_in_use_that_nobody_has_is_withheld(entries: list[Entry], attachments: list[Attachment]) -> None:
    weight, what, repair = the_only(compared(entries, [live("10.0.0.2")], attachments))
    assert (weight, repair) == (Weight.ERROR, Withhold(network="net1", address=ip_address("10.0.0.2")))
    assert what == "10.0.0.2 is in use on eth0 in /run/netns/a and has no lease"
    assert str(repair) == "reserve 10.0.0.2 of network net1 for nobody, since an unknown container has it"


@pytest.mark.parametrize("entries", [[], [cooling("fd00::2")], [leased("10.0.0.2")]], ids=["free", "cooling", "half"])
def test_an_attachment_that_lost_its_lease_gets_it_again(entries: list[Entry]) -> None:
    seen = [live("10.0.0.2"), live("fd00::2")] if entries and entries[0].lease else [live("fd00::2")]
    weight, what, repair = the_only(compared(entries, seen, [attached("fd00::2")]))
    assert (weight, repair) == (Weight.ERROR, Adopt(owner=owner("a"), address=ip_address("fd00::2")))
    assert what == "fd00::2 is in use on eth0 in /run/netns/a and has no lease"
    assert str(repair) == "lease fd00::2 to net1/a/eth0, who has it"


@pytest.mark.parametrize(("own", "kind"), [(True, Adopt), (False, Withhold)], ids=["ours", "the reference's"])
def test_an_attachment_has_leases_here_if_its_host_local_is_ours(own: bool, kind: type[Repair]) -> None:
    _, _, repair = the_only(compared([], [live("10.0.0.2")], [attached("10.0.0.2", ipam="host-local", own=own)]))
    assert isinstance(repair, kind)


def test_a_lost_lease_goes_to_the_network_it_was_of_where_two_share_a_subnet() -> None:
    second = owner("a", "net2")
    _, _, repair = the_only(compared([], [live("10.0.0.2")], [attached("10.0.0.2", of=second)], SHARED))
    assert repair == Adopt(owner=second, address=ip_address("10.0.0.2"))


def test_attachments_get_their_leases_again_after_the_whole_database_was_lost() -> None:
    """Nothing is known of any pool then, and the next request would be given an address that is in use."""
    _, _, repair = the_only(compared([], [live("10.0.0.2")], [attached("10.0.0.2")], pools=[]))
    assert repair == Adopt(owner=owner("a"), address=ip_address("10.0.0.2"))


def test_an_unknown_address_is_withheld_in_all_networks_that_share_its_subnet() -> None:
    problems = compared([], [live("10.0.0.2")], [], SHARED)
    networks = {each.repair.network for each in problems if isinstance(each.repair, Withhold)}
    assert networks == {"net1", "net2"}


def test_what_differs_is_told_in_one_list() -> None:
    problems = compared(
        [leased("10.0.0.2", at=ELSEWHERE), leased("10.0.0.3"), reserved("10.0.0.4")],
        [live(f"10.0.0.{last}") for last in (3, 4, 5, 6)],
        [attached("10.0.0.6")],
        gone=[ELSEWHERE],
    )
    assert [type(each.repair) for each in problems] == [TakeBack, Withhold, Adopt]
