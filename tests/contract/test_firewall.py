"""What every `Firewall` does, whichever backend serves it, in the kernel of a host of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_bridge.cni.errors import Code
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.firewall.nftables_layout import TABLES
from cni_bridge.policy import LinkPolicy, Masquerade, OpenPorts, Policy, Publication, Shield, SpoofCheck
from cni_bridge.tag import MAX_LENGTH, network_tag, owner_key, owner_tag
from ipam.api import Owner
from ipam.codec import Json, encode
from tests.support.host import Host

CALL = Path(__file__).parents[1] / "support" / "firewall_call.py"
FORGET = """
import json, sys
from cni_bridge.firewall.iptables import IptablesFirewall
from cni_bridge.firewall.nftables import NftablesFirewall
from ipam.api import Owner
from ipam.codec import decode

backend, *owners = json.load(sys.stdin)
firewall = NftablesFirewall() if backend == "nftables" else IptablesFirewall()
for each in owners:
    firewall.forget(decode(Owner, each))
"""


class FirewallOf:
    """A backend at work on a host."""

    def __init__(self, host: Host, backend: str) -> None:
        self.host = host
        self.backend = Backend(backend)

    def policy(
        self,
        container: str,
        *addresses: str,
        network: str = "net1",
        links: tuple[str, ...] = ("cni0",),
        **parts: Any,
    ) -> Policy:
        return Policy(
            backend=self.backend,
            owner=Owner(network=network, container_id=container, ifname="eth0"),
            masquerade=tuple(Masquerade(address=ip_address(each), local_links=links) for each in addresses),
            **parts,
        )

    def apply(self, *policies: Policy) -> None:
        assert self.call(*(["apply", encode(each)] for each in policies)) == [None] * len(policies)

    def remove(self, *policies: Policy) -> None:
        assert self.call(*(["remove", encode(each)] for each in policies)) == [None] * len(policies)

    def missing(self, policy: Policy) -> list[str]:
        [found] = self.call(["missing", encode(policy)])
        assert isinstance(found, list), found
        return found

    def collect(self, network: str, *keep: Owner) -> None:
        assert self.call(["collect", [network, [encode(each) for each in keep]]]) == [None]

    def forget(self, *owners: Owner) -> None:
        asked = json.dumps([self.backend, *map(encode, owners)])
        self.host.run(sys.executable, "-c", FORGET, stdin=asked.encode())

    def evict(self, key: str) -> None:
        assert self.call(["evict", key]) == [None]

    def forget_link(self, network: str) -> list[str]:
        [links] = self.call(["forget_link", network])
        assert isinstance(links, list), links
        return links

    def claimed(self, policy: Policy) -> Json:
        """The tags of who else has the policy's publications, by their words."""
        [found] = self.call(["claimed", encode(policy)])
        return found

    def failure_to_apply(self, policy: Policy, *, patience: float = 10) -> Json:
        [failure] = self.call(["apply", encode(policy)], patience=patience)
        return failure

    def start_applying(self, *policies: Policy) -> subprocess.Popen[bytes]:
        process = self.host.start(sys.executable, CALL, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        process.stdin.write(self._request([["apply", encode(each)] for each in policies], 60))
        process.stdin.close()
        return process

    def held(self) -> list[str]:
        """Every element or rule that belongs to some attachment."""
        return self.host.nft_elements() if self.backend == Backend.NFTABLES else self.host.iptables_rules()

    def held_by(self, *policies: Policy) -> list[str]:
        return [each for each in self.held() if any(owner_tag(policy.owner) in each for policy in policies)]

    def everything(self) -> str:
        """The host's whole rule set, but for its counters."""
        if self.backend == Backend.NFTABLES:
            return self.host.shell("nft --stateless list ruleset")
        return self.host.shell("for each in iptables ip6tables; do $each-legacy -t nat -S; done")

    def break_with(self, *, nftables: str, iptables: str) -> None:
        self.host.shell(nftables if self.backend == Backend.NFTABLES else iptables)

    def call(self, *calls: list[Json], patience: float = 10) -> list[Json]:
        """What the backend answers to each."""
        answers: list[Json] = json.loads(
            self.host.run(sys.executable, CALL, stdin=self._request(list(calls), patience)).stdout
        )
        return answers

    def _request(self, calls: list[list[Json]], patience: float) -> bytes:
        return json.dumps({"backend": self.backend, "patience": patience, "calls": calls}).encode()


@pytest.fixture
def firewall(host: Host, backend: str) -> FirewallOf:
    return FirewallOf(host, backend)


@pytest.fixture
def nftables(host: Host) -> FirewallOf:
    return FirewallOf(host, "nftables")


@pytest.fixture
def iptables(host: Host) -> FirewallOf:
    return FirewallOf(host, "iptables")


DUAL_STACK = ("10.88.0.2", "fd00:88::2")


def publication(
    host_port: int,
    *,
    protocol: Protocol = Protocol.TCP,
    host_ip: str = "",
    address: str = "10.88.0.2",
    container_port: int = 80,
    **keys: Any,
) -> Publication:
    return Publication(
        protocol=protocol,
        host_ip=ip_address(host_ip) if host_ip else None,
        host_port=host_port,
        address=ip_address(address),
        container_port=container_port,
        **keys,
    )


def run(first: int, count: int, *, host_ip: str = "", address: str = "10.88.0.2") -> Publication:
    """A publication of ports that keep their numbers."""
    return publication(first, host_ip=host_ip, address=address, container_port=first, count=count)


def whole_policy(nftables: FirewallOf, container: str = "a", number: int = 2, network: str = "net1") -> Policy:
    """A policy with elements in every set and map."""
    four, six, ports = f"10.88.0.{number}", f"fd00:88::{number}", number * 100
    opened = tuple(OpenPorts(protocol=Protocol.UDP, port=53, count=count) for count in (1, 16))
    places = ((four, ""), (four, f"192.0.2.{number}"), (six, ""), (six, f"2001:db8::{number}"))
    return nftables.policy(
        container,
        four,
        six,
        network=network,
        spoof_check=SpoofCheck(
            port=f"port{number}",
            mac=f"02:00:00:00:00:{number:02x}",
            addresses=(ip_address(four), ip_address(six)),
        ),
        publications=tuple(
            replace(each, masquerade_all=True)
            for position, (address, host_ip) in enumerate(places)
            for each in (
                publication(ports + position, address=address, host_ip=host_ip, protocol=Protocol.SCTP),
                run(10_000 + ports + position * 20, 20, address=address, host_ip=host_ip),
            )
        ),
        shields=tuple(Shield(address=ip_address(each), routed=True, opened=opened) for each in (four, six)),
        apart=f"port{number}",
        link=LinkPolicy(link="cni0", isolated=True, parted=True, internal=True, icc=False, trusted=("eth1", "wg0")),
    )


def test_apply_is_idempotent_and_remove_takes_it_all(firewall: FirewallOf) -> None:
    policy = firewall.policy("a", *DUAL_STACK)
    assert firewall.missing(policy) != []
    firewall.apply(policy)
    once = firewall.everything()
    assert firewall.missing(policy) == []
    assert all(any(each in line for line in firewall.held_by(policy)) for each in DUAL_STACK)
    firewall.apply(policy, policy)
    assert firewall.everything() == once
    firewall.remove(policy, policy)
    assert firewall.held() == []


def test_remove_leaves_other_attachments_and_other_programs_alone(firewall: FirewallOf) -> None:
    stays, goes = firewall.policy("a", *DUAL_STACK), firewall.policy("b", "10.88.0.3", "fd00:88::3")
    firewall.break_with(
        nftables="nft add table ip other; nft 'add set ip other s { type ipv4_addr; elements = { 10.88.0.3 } }'",
        iptables="iptables-legacy -t nat -A POSTROUTING -s 10.88.0.3 -m comment --comment other -j MASQUERADE",
    )
    firewall.apply(stays)
    before = firewall.everything()
    firewall.apply(goes)
    firewall.remove(goes)
    assert firewall.everything() == before
    assert firewall.missing(stays) == []


def test_remove_where_nothing_was_made_makes_nothing(firewall: FirewallOf) -> None:
    untouched = firewall.everything()
    firewall.remove(firewall.policy("a", *DUAL_STACK))
    firewall.collect("net1")
    assert firewall.everything() == untouched


def test_a_flushed_base_is_reported_survived_by_remove_and_repaired_by_apply(firewall: FirewallOf) -> None:
    first, second = firewall.policy("a", *DUAL_STACK), firewall.policy("b", "10.88.0.3")
    firewall.apply(first, second)
    complete = firewall.everything()
    flush = {
        "nftables": "nft flush ruleset",
        "iptables": "for each in iptables ip6tables; do $each-legacy -t nat -F; $each-legacy -t nat -X; done",
    }
    firewall.break_with(**flush)
    flushed = firewall.everything()
    assert firewall.missing(first) != []
    assert firewall.everything() == flushed
    firewall.remove(first)
    firewall.apply(first, second)
    assert firewall.everything() == complete
    firewall.remove(first, second)
    assert firewall.held() == []


@pytest.mark.parametrize(
    ("nftables", "iptables", "named"),
    [
        (
            "nft delete element inet cni_bridge masquerade4 '{ 10.88.0.2 }'",
            "iptables-legacy -t nat -D CNI-BRIDGE 4",
            "10.88.0.2",
        ),
        (
            "nft delete element inet cni_bridge local6 '{ fd00:88::2 . \"cni0\" }'",
            "ip6tables-legacy -t nat -D CNI-BRIDGE 3",
            "fd00:88::2",
        ),
        (
            "nft flush set inet cni_bridge masquerade6",
            "ip6tables-legacy -t nat -F CNI-BRIDGE",
            "fd00:88::2",
        ),
        (
            "nft flush chain inet cni_bridge postrouting",
            "iptables-legacy -t nat -D CNI-BRIDGE 1",
            "IPv4",
        ),
        (
            "nft delete chain inet cni_bridge postrouting",
            "ip6tables-legacy -t nat -F POSTROUTING",
            "IPv6",
        ),
    ],
    ids=["masquerade", "local link", "all of a family", "rules", "hook"],
)
def test_missing_names_what_is_gone_and_changes_nothing(
    firewall: FirewallOf, nftables: str, iptables: str, named: str
) -> None:
    policy = firewall.policy("a", *DUAL_STACK)
    firewall.apply(policy)
    complete = firewall.everything()
    firewall.break_with(nftables=nftables, iptables=iptables)
    broken = firewall.everything()
    assert broken != complete
    found = firewall.missing(policy)
    assert named in " ".join(found)
    assert firewall.everything() == broken
    firewall.apply(policy)
    assert firewall.missing(policy) == []
    assert firewall.everything() == complete


def test_collect_removes_what_is_not_kept_in_this_network(firewall: FirewallOf) -> None:
    kept = firewall.policy("a", *DUAL_STACK)
    gone = [firewall.policy(f"b{number}", f"10.88.0.{number}", f"fd00:88::{number:x}") for number in range(10, 14)]
    other = firewall.policy("b10", "10.99.0.2", "fd00:99::2", network="net2")
    firewall.apply(kept, other)
    before = firewall.everything()
    firewall.apply(*gone)
    firewall.collect("net1", kept.owner)
    assert firewall.held_by(*gone) == []
    assert firewall.everything() == before
    firewall.collect("net1")
    firewall.collect("net2", kept.owner)
    assert firewall.held() == []


def test_forget_removes_one_owners_and_nobody_elses(firewall: FirewallOf) -> None:
    gone = firewall.policy("a", *DUAL_STACK, links=("cni0", "dotted.100"))
    others = [
        firewall.policy("b", "10.88.0.3", "fd00:88::3"),
        firewall.policy("aa", "10.88.0.4"),
        firewall.policy("a", "10.99.0.2", "fd00:99::2", network="net2"),
        replace(firewall.policy("a", "10.88.0.5"), owner=replace(gone.owner, ifname="eth1")),
    ]
    firewall.apply(*others)
    before = firewall.everything()
    firewall.apply(gone)
    firewall.forget(gone.owner, gone.owner)
    assert firewall.held_by(gone) == []
    assert firewall.everything() == before
    firewall.forget(*(each.owner for each in others))
    assert firewall.held() == []


def test_forget_takes_what_an_earlier_configuration_made(firewall: FirewallOf) -> None:
    former, present = firewall.policy("a", "10.88.0.9", links=("lan0",)), firewall.policy("a", *DUAL_STACK)
    firewall.apply(former, present)
    firewall.forget(present.owner)
    assert firewall.held() == []


def test_forget_where_nothing_is_there_changes_nothing(firewall: FirewallOf) -> None:
    owner = firewall.policy("a").owner
    untouched = firewall.everything()
    firewall.forget(owner)
    assert firewall.everything() == untouched
    firewall.apply(firewall.policy("b", "10.88.0.3"))
    before = firewall.everything()
    firewall.forget(owner)
    assert firewall.everything() == before


def test_forget_leaves_an_address_that_another_owner_has_by_now(firewall: FirewallOf) -> None:
    former, present = firewall.policy("former", *DUAL_STACK), firewall.policy("present", *DUAL_STACK)
    firewall.apply(former, present)
    firewall.forget(former.owner)
    assert firewall.missing(present) == []
    assert firewall.held_by(former) == []


@pytest.mark.parametrize("method", ["collect", "forget"])
def test_a_sweep_loads_no_iptables_table(iptables: FirewallOf, method: str) -> None:
    owner = iptables.policy("a").owner
    iptables.collect("net1") if method == "collect" else iptables.forget(owner)
    assert iptables.host.shell("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names", check=False) == ""


def test_an_address_that_changes_hands_belongs_to_its_new_owner(firewall: FirewallOf) -> None:
    former, present = firewall.policy("former", *DUAL_STACK), firewall.policy("present", *DUAL_STACK)
    firewall.apply(former)
    firewall.apply(present)
    assert firewall.missing(present) == []
    firewall.remove(former)  # a DEL that comes late
    assert firewall.missing(present) == []
    firewall.collect("net1", present.owner)
    assert firewall.missing(present) == []
    assert firewall.held_by(former) == []
    firewall.remove(present)
    assert firewall.held() == []


def test_what_a_former_owner_left_does_no_harm(firewall: FirewallOf) -> None:
    host = firewall.host
    for name, link, subnet in (("a", "lan0", "10.88.0"), ("b", "lan1", "10.88.1")):
        host.add_netns(name)
        host.shell(
            f"ip link add {link} type veth peer name eth0 netns {name}; ip link set {link} up; "
            f"ip address add {subnet}.1/24 dev {link}"
        )
        host.shell(
            f"ip link set eth0 up; ip address add {subnet}.2/24 dev eth0; ip route add default via {subnet}.1", name
        )
    host.sysctl("net.ipv4.ip_forward", "1")
    host.start_whoami(7000, "b")
    firewall.apply(firewall.policy("former", "10.88.0.2", links=("lan1",)))
    assert host.whoami("10.88.1.2", 7000, "a") == "10.88.0.2"
    firewall.apply(firewall.policy("later", "10.88.0.2", links=("lan0",)))
    assert host.whoami("10.88.1.2", 7000, "a") == "10.88.1.1"
    firewall.apply(firewall.policy("latest", "10.88.0.2", links=("lan1",)))
    assert host.whoami("10.88.1.2", 7000, "a") == "10.88.0.2"


def test_forget_takes_the_mac_check(nftables: FirewallOf) -> None:
    checks = {name: SpoofCheck(port=f"port{name}", mac=f"02:00:00:00:00:0{name}") for name in "ab"}
    first, second = (nftables.policy(name, spoof_check=check) for name, check in checks.items())
    nftables.apply(second)
    before = nftables.everything()
    nftables.apply(first)
    assert nftables.everything() != before
    nftables.forget(first.owner)
    assert nftables.held_by(first) == []
    assert nftables.missing(second) == []
    nftables.forget(second.owner)
    assert nftables.held() == []


def test_several_local_links_and_the_longest_names(firewall: FirewallOf) -> None:
    policy = firewall.policy("c" * 200, *DUAL_STACK, network="n" * 200, links=("cni0", "l" * 15, "dotted.100"))
    policy = replace(policy, owner=replace(policy.owner, ifname="i" * 15))
    firewall.apply(policy, policy)
    assert firewall.missing(policy) == []
    assert len(owner_tag(policy.owner)) == MAX_LENGTH
    assert len(firewall.held_by(policy)) == len(firewall.held()) == 8
    firewall.collect("n" * 200, policy.owner)
    assert firewall.missing(policy) == []
    firewall.remove(policy)
    assert firewall.held() == []


def test_sixteen_processes_at_once_lose_nothing(firewall: FirewallOf) -> None:
    """Each applies five: without the xtables lock, 32 of 80 such rules were lost."""
    policies = [
        [firewall.policy(f"c{worker}-{number}", f"10.88.{worker}.{number + 2}") for number in range(5)]
        for worker in range(16)
    ]
    workers = [firewall.start_applying(*each) for each in policies]
    assert [each.wait(60) for each in workers] == [0] * 16
    assert len(firewall.held()) == 16 * 5 * 2
    for number, each in enumerate(policies):
        assert len(firewall.held_by(*each)) == 10, f"of worker {number}"


def test_the_number_of_nftables_rules_does_not_grow(nftables: FirewallOf) -> None:
    def rules() -> int:
        ruleset = json.loads(nftables.host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
        return sum("rule" in each for each in ruleset)

    def policy(number: int, ports: int) -> Policy:
        return nftables.policy(
            f"c{number}",
            f"10.88.0.{number}",
            f"fd00:88::{number}",
            spoof_check=SpoofCheck(port=f"veth{number}", mac=f"02:00:00:00:00:{number:02x}"),
            publications=(publication(number * 100, address=f"10.88.0.{number}", container_port=1, count=ports),),
            shields=(Shield(address=ip_address(f"10.88.0.{number}")),),
            link=LinkPolicy(link="cni0", isolated=True),
        )

    nftables.apply(policy(2, 1))
    of_one = rules()
    nftables.apply(*(policy(number, 10) for number in range(3, 40)))
    assert rules() == of_one
    assert len(nftables.held()) == 38 * 8 + 2 * (1 + 37 * 10) + 3  # each port twice, the link's once


def test_every_set_and_map_of_nftables_is_filled_missed_when_empty_and_refilled(nftables: FirewallOf) -> None:
    policy = whole_policy(nftables)
    nftables.apply(policy)
    complete = nftables.everything()
    nftables.apply(policy)
    assert nftables.everything() == complete
    assert nftables.missing(policy) == []
    filled = {each.partition(" ")[0] for each in nftables.held()}
    assert filled == {name for table in TABLES.values() for name in table.sets}
    flush = [
        f"flush {text.split()[0]} {table.name} {name}" for table in TABLES.values() for name, text in table.sets.items()
    ]
    nftables.host.run("nft", "; ".join(flush))
    emptied = nftables.everything()
    missed = " ".join(nftables.missing(policy)) + " "
    assert all(f"_bridge {name} " in missed.replace(" nftables", " ") for name in filled), missed
    assert nftables.everything() == emptied
    nftables.apply(policy)
    assert nftables.everything() == complete


@pytest.mark.parametrize("method", ["remove", "forget", "collect", "evict"])
def test_what_is_an_attachments_goes_with_it_and_what_is_the_links_with_the_last(
    nftables: FirewallOf, method: str
) -> None:
    gone, stays = whole_policy(nftables), whole_policy(nftables, "b", 3)
    nftables.apply(stays)
    before = nftables.everything()
    nftables.apply(gone)
    if method == "collect":
        nftables.collect("net1", stays.owner)
    elif method == "evict":
        nftables.evict(owner_key(gone.owner))
    else:
        getattr(nftables, method)(gone if method == "remove" else gone.owner)
    assert nftables.everything() == before
    nftables.collect("net1")
    of_link = {each.partition(" ")[0] for each in nftables.held()}
    assert of_link == {"networks", "same", "isolated", "parted", "internal", "no_icc", "trusted"}
    assert all(network_tag("net1") in each for each in nftables.held())
    nftables.forget_link("net2")
    assert len(nftables.held()) == 8
    nftables.forget_link("net1")
    assert nftables.held() == []


def test_of_several_policies_for_one_link_the_last_that_says_something_counts(nftables: FirewallOf) -> None:
    strict = nftables.policy("a", link=LinkPolicy(link="cni0", isolated=True, internal=True, icc=False))
    loose = nftables.policy("b", link=LinkPolicy(link="cni0", isolated=False, internal=False, icc=True))
    silent = nftables.policy("c", link=LinkPolicy(link="cni0"))
    nftables.apply(strict)
    of_strict = nftables.everything()
    assert len(nftables.missing(loose)) == 3
    nftables.apply(silent)
    assert nftables.everything() == of_strict
    nftables.apply(loose, silent)
    assert {each.partition(" ")[0] for each in nftables.held()} == {"networks", "same"}
    assert nftables.missing(loose) == nftables.missing(silent) == []
    assert len(nftables.missing(strict)) == 3
    nftables.apply(strict)
    assert nftables.everything() == of_strict


def test_a_link_of_ones_own_goes_with_its_owner(nftables: FirewallOf) -> None:
    policy = nftables.policy("a", link=LinkPolicy(link="veth1", isolated=True, icc=False, shared=False))
    nftables.apply(policy, policy)
    assert nftables.missing(policy) == []
    assert len(nftables.held_by(policy)) == len(nftables.held()) == 4
    nftables.forget_link("net1")
    assert nftables.missing(policy) == []
    nftables.remove(policy)
    assert nftables.held() == []


def test_what_holds_for_a_link_is_the_last_networks_and_told_when_it_goes(nftables: FirewallOf) -> None:
    first, second = (
        nftables.policy("a", network=network, link=LinkPolicy(link="cni0", isolated=True))
        for network in ("net1", "net2")
    )
    nftables.apply(first, second)
    assert nftables.forget_link("net1") == []
    assert nftables.missing(first) == []
    assert nftables.forget_link("net2") == ["cni0"]
    nftables.apply(first)
    assert nftables.missing(first) == []
    assert nftables.forget_link("net1") == ["cni0"]
    assert nftables.held() == []


def test_a_plugin_that_knows_nothing_of_trusted_links_leaves_them(firewall: FirewallOf) -> None:
    trusting = firewall.policy("a", "10.88.0.2", link=LinkPolicy(link="cni0", isolated=True, trusted=("eth1",)))
    silent = firewall.policy("a", link=LinkPolicy(link="cni0", trusted=None), publications=(publication(85),))
    firewall.apply(trusting, silent)
    assert firewall.missing(trusting) == firewall.missing(silent) == []
    firewall.apply(replace(trusting, link=LinkPolicy(link="cni0", isolated=True)))
    assert firewall.missing(trusting) != []


@pytest.mark.parametrize("name", ["ip", "0br", "br{1}", "a;b", "l" * 15])
def test_links_of_any_name_are_swept(nftables: FirewallOf, name: str) -> None:
    policy = nftables.policy("a", "10.88.0.2", links=(name,), link=LinkPolicy(link=name, trusted=(name,)))
    policy = replace(policy, spoof_check=SpoofCheck(port=name, mac="02:00:00:00:00:0a", addresses=()))
    nftables.apply(policy)
    assert nftables.missing(policy) == []
    nftables.collect("net1")
    nftables.forget_link("net1")
    assert nftables.held() == []


AT, ELSEWHERE = "192.0.2.1", "192.0.2.2"
CLAIMS = (
    publication(85),
    publication(84, count=3),
    publication(99),
    publication(100),
    publication(85, protocol=Protocol.UDP),
    publication(85, host_ip=AT),
    publication(85, host_ip=ELSEWHERE),
    publication(79, host_ip=AT, count=2),
    publication(80, count=20),  # no run, for the ports change their numbers
    publication(80, count=20, host_ip=AT),
    run(80, 20),
    run(80, 20, host_ip=AT),
    run(80, 20, host_ip=ELSEWHERE),
    run(99, 16),
    run(100, 16),
    run(64, 16, host_ip=AT),
    publication(85, address="fd00:88::2"),
    publication(85, address="fd00:88::2", host_ip="2001:db8::1"),
    run(80, 20, address="fd00:88::2"),
    run(80, 20, address="fd00:88::2", host_ip="2001:db8::1"),
)


def collide(one: Publication, other: Publication) -> bool:
    """Whether some packet would be for both, port by port."""
    ports = [set(range(each.host_port, each.host_port + each.count)) for each in (one, other)]
    same_place = one.host_ip is None or other.host_ip is None or one.host_ip == other.host_ip
    return (
        one.protocol == other.protocol
        and one.address.version == other.address.version
        and same_place
        and bool(ports[0] & ports[1])
    )


def test_a_host_port_is_claimed_by_whoever_has_it_at_any_address_that_both_mean(nftables: FirewallOf) -> None:
    holders = [nftables.policy("holder", publications=(each,)) for each in CLAIMS]
    asker = nftables.policy("asker", publications=CLAIMS)
    rounds = nftables.call(
        *(
            [method, encode(policy)]
            for holder in holders
            for method, policy in (("apply", holder), ("claimed", asker), ("claimed", holder), ("remove", holder))
        )
    )
    tag = owner_tag(holders[0].owner)
    for position, held in enumerate(CLAIMS):
        _, claimed, own, _ = rounds[position * 4 : position * 4 + 4]
        assert claimed == {str(each): tag for each in CLAIMS if collide(each, held)}, f"{held} is held"
        assert own == {}
    assert nftables.held() == []


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        (publication(85), publication(85, address="10.88.0.3")),
        (publication(85, host_ip=AT), publication(85, host_ip=AT, address="10.88.0.3")),
        (run(80, 20), run(80, 20, address="10.88.0.3")),
        (run(80, 20), run(90, 20, address="10.88.0.3")),
        (run(80, 20, host_ip=AT), run(90, 20, host_ip=AT, address="10.88.0.3")),
    ],
    ids=str,
)
def test_a_host_port_that_another_has_is_not_taken_from_it(
    nftables: FirewallOf, held: Publication, asked: Publication
) -> None:
    holder = nftables.policy("holder", publications=(held,))
    nftables.apply(holder)
    before = nftables.everything()
    failure = nftables.failure_to_apply(nftables.policy("asker", "10.88.0.3", publications=(asked,)))
    assert failure["code"] == Code.FIREWALL_FAILED
    assert nftables.everything() == before
    assert nftables.missing(holder) == []


CONDITIONS = {
    "10.88.0.2": (
        "-s 10.0.0.0/8",
        "! -d 192.0.2.0/24",
        "-s 0.0.0.0/0 ! -d 192.0.2.1",
        "-d 10.10.10.10,127.0.0.1 -s 192.0.2.0/25,198.51.100.0/24",
        "! -d 127.0.0.0/8 -m iprange ! --dst-range 198.19.254.253-198.19.254.254",
    ),
    "fd00:88::2": (
        "! -s fc00::/7",
        "-s ::/0 -d 2001:db8::1,2001:db8:1::/48",
        "-m iprange --src-range 2001:db8::1-2001:db8::5",
    ),
}
IN_EITHER_FAMILY = (
    "-i eth+ ! -o wg0",
    "! -i eth0.100 -o eth+",
    "-m mark --mark 0x1",
    "-m mark ! --mark 0x1/0xff -m mark --mark 0x0/0x100 -m mark --mark 0x0/0x0",
    "-m mark --mark 0x2/0x1",
    "-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED",
    "-m conntrack ! --ctstate UNTRACKED",
    "-m conntrack ! --ctstate INVALID,RELATED",
)


def conditional(*, host_ips: tuple[str, str]) -> tuple[Publication, ...]:
    """A publication on each of these conditions, at the host's address of its family."""
    return tuple(
        publication(8000 + port, address=address, host_ip=host_ip, condition=condition)
        for (address, conditions), host_ip in zip(CONDITIONS.items(), host_ips, strict=True)
        for port, condition in enumerate((*conditions, *IN_EITHER_FAMILY))
    )


@pytest.mark.parametrize("host_ips", [("", ""), ("192.0.2.1", "2001:db8::1")], ids=["everywhere", "at an address"])
def test_conditions_are_applied_once_missed_and_taken_back(firewall: FirewallOf, host_ips: tuple[str, str]) -> None:
    policy = firewall.policy("a", publications=conditional(host_ips=host_ips), link=LinkPolicy(link="cni0"))
    others = (publication(9000, address="10.88.0.3", condition="-s 10.0.0.1"),)
    other = firewall.policy("b", "10.88.0.3", publications=others)
    firewall.apply(other)
    alone = firewall.held()
    firewall.apply(policy)
    once = firewall.everything()
    assert firewall.missing(policy) == []
    firewall.apply(policy, policy)
    assert sorted(firewall.everything().splitlines()) == sorted(once.splitlines())
    firewall.break_with(
        nftables="nft flush chain inet cni_bridge conditional",
        iptables="for each in iptables ip6tables; do $each-legacy -t nat -F CNI-BRIDGE-COND; done",
    )
    assert firewall.missing(policy) != []
    assert firewall.missing(other) != []
    firewall.apply(policy, other)
    assert firewall.missing(policy) == firewall.missing(other) == []
    firewall.remove(policy)
    assert firewall.missing(other) == []
    assert firewall.held_by(policy) == []
    firewall.forget_link("net1")
    assert sorted(firewall.held()) == sorted(alone)
    firewall.collect("net1")
    assert firewall.held() == []


def test_a_port_on_a_condition_is_nobodys_alone(firewall: FirewallOf) -> None:
    held, asked = publication(8080, condition="-s 10.0.0.0/8"), publication(8080, address="10.88.0.3")
    both = (firewall.policy("a", publications=(held,)), firewall.policy("b", publications=(asked,)))
    firewall.apply(*both)
    assert [firewall.missing(each) for each in both] == [[], []]
    for asker in ("c", "a"):
        assert firewall.claimed(firewall.policy(asker, publications=(held,))) == {}
    assert firewall.claimed(firewall.policy("c", publications=(asked,))) == {str(asked): owner_tag(both[1].owner)}
    firewall.remove(*both)
    assert firewall.held() == []


def test_iptables_does_not_publish_on_words_of_nftables(iptables: FirewallOf) -> None:
    failure = iptables.failure_to_apply(
        iptables.policy("a", publications=(publication(8080, condition="ip saddr 10.0.0.0/8"),))
    )
    assert (failure["code"], "ip saddr 10.0.0.0/8" in failure["msg"]) == (Code.FIREWALL_FAILED, True)
    assert iptables.held() == []


def test_an_address_that_changes_hands_takes_its_former_owners_ports_along(nftables: FirewallOf) -> None:
    former, present = whole_policy(nftables, "former"), whole_policy(nftables, "present")
    nftables.apply(former, present)
    assert nftables.held_by(former) == []
    assert nftables.missing(present) == []
    nftables.remove(former)
    assert nftables.missing(present) == []


@pytest.fixture
def xtables_lock_holder(host: Host) -> Iterator[subprocess.Popen[bytes]]:
    """Another program that holds the lock: iptables-restore takes it at its first table and waits for more."""
    program = host.start("iptables-legacy-restore", "--noflush", stdin=subprocess.PIPE)
    program.stdin.write(b"*nat\n:OTHER - [0:0]\n")
    program.stdin.flush()
    deadline = time.monotonic() + 10
    while host.run("flock", "--nonblock", "/run/xtables.lock", "true", check=False).returncode == 0:
        assert time.monotonic() < deadline, "iptables-restore does not take the lock"
    yield program
    program.stdin.close()


def test_an_xtables_lock_that_another_program_holds_is_code_11(
    iptables: FirewallOf, xtables_lock_holder: subprocess.Popen[bytes]
) -> None:
    policy = iptables.policy("a", *DUAL_STACK)
    failure = iptables.failure_to_apply(policy, patience=0.1)
    assert (failure["code"], "/run/xtables.lock" in failure["msg"]) == (Code.TRY_AGAIN_LATER, True)
    assert iptables.held() == []
    waiting = iptables.start_applying(policy)
    assert xtables_lock_holder.stdin is not None
    xtables_lock_holder.stdin.write(b"COMMIT\n")
    xtables_lock_holder.stdin.close()
    assert (xtables_lock_holder.wait(10), waiting.wait(10)) == (0, 0)
    assert iptables.missing(policy) == []
    assert "-N OTHER" in iptables.everything()


def test_a_container_that_changes_its_mac_address_is_cut_off(nftables: FirewallOf) -> None:
    host = nftables.host
    macs = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b", "unchecked": "02:00:00:00:00:0c"}
    host.shell("ip link add br0 type bridge; ip address add 10.88.0.1/24 dev br0; ip link set br0 up")
    for number, (name, mac) in enumerate(macs.items(), 2):
        host.add_netns(name)
        host.shell(
            f"ip link add port{number} type veth peer name eth0 address {mac} netns {name}; "
            f"ip link set port{number} master br0 up"
        )
        host.shell(f"ip link set eth0 up; ip address add 10.88.0.{number}/24 dev eth0", name)
    checked = {
        name: nftables.policy(name, spoof_check=SpoofCheck(port=f"port{number}", mac=macs[name]))
        for number, name in enumerate(("a", "b"), 2)
    }
    nftables.apply(*checked.values())
    for name in macs:
        host.ping("10.88.0.1", name)
    for name in ("a", "unchecked"):
        host.shell(f"ip link set eth0 address {macs[name].replace('00', '02')}", name)
    host.shell("ip neighbour flush all")
    host.ping("10.88.0.1", "a", reached=False)
    host.ping("10.88.0.3", "a", reached=False)
    host.ping("10.88.0.1", "b")
    host.shell(f"ip link set eth0 address {macs['b']}", "a")
    host.ping("10.88.0.1", "a", reached=False)
    host.ping("10.88.0.1", "unchecked")
    host.shell(f"ip link set eth0 address {macs['a'].replace('00', '04')}", "a")
    nftables.remove(checked["a"])
    host.ping("10.88.0.1", "a")
    assert nftables.missing(checked["b"]) == []
    nftables.remove(checked["b"])
    assert nftables.held() == []


@pytest.mark.parametrize(
    ("broken_by", "named"),
    [
        ("nft delete element bridge cni_bridge mac_checked '{ \"port2\" }'", "mac_checked"),
        ("nft flush set bridge cni_bridge mac_allowed", "02:00:00:00:00:0a"),
        ("nft flush chain bridge cni_bridge prerouting", "any other source mac"),
        ("nft delete table bridge cni_bridge", "mac_checked"),
    ],
)
def test_a_lost_mac_check_is_missed_and_collected(nftables: FirewallOf, broken_by: str, named: str) -> None:
    policy = nftables.policy("a", spoof_check=SpoofCheck(port="port2", mac="02:00:00:00:00:0a"))
    nftables.apply(policy)
    assert nftables.missing(policy) == []
    nftables.host.shell(broken_by)
    assert named in " ".join(nftables.missing(policy)).lower()
    nftables.apply(policy)
    assert nftables.missing(policy) == []
    nftables.collect("net1")
    assert nftables.held() == []
