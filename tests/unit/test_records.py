"""The desired state of each attachment, kept in files."""

from __future__ import annotations

import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_bridge.cni.errors import Code
from cni_bridge.cni.netconf import Backend
from cni_bridge.cni.ports import Protocol
from cni_bridge.cni.shaping import Rate, Shaping
from cni_bridge.cni.tuning import Sysctl, Tuning
from cni_bridge.plan import Attachment, BridgeSpec, ContainerSpec, GatewaySpec, PortSpec
from cni_bridge.policy import LinkPolicy, Masquerade, OpenPorts, Policy, Publication, Shield, SpoofCheck
from cni_bridge.records import Records
from cni_bridge.tag import owner_key
from ipam.api import Allocation, Dns, Interface, Lease, NetnsRef, Owner, Route
from ipam.codec import decode, encode
from tests.support.calls import OWNER, owner, refusal

ATTACHMENT = Attachment(
    owner=OWNER,
    request="0123456789abcdef",
    allocation=Allocation(
        leases=(
            Lease(
                owner=OWNER,
                address=ip_interface("10.88.0.2/24"),
                gateway=ip_address("10.88.0.1"),
                since=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
                boot_id="11111111-2222-3333-4444-555555555555",
            ),
        ),
        routes=(Route(dst=ip_network("0.0.0.0/0"), mtu=1400),),
        dns=Dns(nameservers=("10.88.0.1",), domain="a.test"),
    ),
    netns=NetnsRef(path="/run/netns/c1", device=4, inode=4026532000),
    ipam_type="cni-ipam",
    own_ipam=True,
    bridge=BridgeSpec(name="cni0", mtu=1500, mtu_configured=False, promisc=False, vlan_filtering=True),
    port=PortSpec(
        name="veth0123456789a",
        alias="cni-bridge:x:y net1/c1/eth0",
        mac="02:00:00:00:00:01",
        mtu=1500,
        hairpin=True,
        isolated=False,
        vlan=7,
        vlan_trunk=(8, 9),
        preserve_default_vlan=False,
    ),
    container=ContainerSpec(
        ifname="eth0",
        mac="02:00:00:00:00:02",
        mtu=1500,
        up=True,
        dad=False,
        addresses=(ip_interface("10.88.0.2/24"), ip_interface("fd00:88::2/64")),
        routes=(Route(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.88.0.1")), Route(dst=ip_network("::/0"), table=0)),
    ),
    gateway=GatewaySpec(link="cni0.7", vlan=7, addresses=(ip_interface("10.88.0.1/24"),), force=False),
    changed=("made cni0",),
    shaping=Shaping(ingress=Rate(rate=8_000_000, burst=80_000)),
    tuning=Tuning(sysctls=(Sysctl(name="ipv4/ip_forward", value="1", key="net.ipv4.ip_forward"),), allmulti=True),
    waiting=(
        Publication(
            protocol=Protocol.UDP,
            host_ip=ip_address("::1"),
            host_port=53,
            address=ip_address("fd00::2"),
            container_port=1,
        ),
    ),
    policies=(
        Policy(
            backend=Backend.IPTABLES,
            owner=OWNER,
            masquerade=(Masquerade(address=ip_address("fd00:88::2"), local_links=("cni0", "cni0.7")),),
        ),
        Policy(
            backend=Backend.NFTABLES,
            owner=OWNER,
            spoof_check=SpoofCheck(port="veth0", mac="02:00:00:00:00:02", addresses=(ip_address("10.88.0.2"),)),
            publications=(
                Publication(
                    protocol=Protocol.TCP,
                    host_ip=None,
                    host_port=80,
                    address=ip_address("10.88.0.2"),
                    container_port=8080,
                ),
            ),
            shields=(
                Shield(
                    address=ip_address("10.88.0.2"), routed=True, opened=(OpenPorts(protocol=Protocol.SCTP, port=5),)
                ),
            ),
            link=LinkPolicy(link="cni0", isolated=True, icc=False, trusted=("eth1",)),
        ),
    ),
)


def of(owner: Owner) -> Attachment:
    return replace(ATTACHMENT, owner=owner)


@pytest.fixture
def records(tmp_path: Path) -> Records[Attachment]:
    return Records(tmp_path / "attachments", Attachment)


def files(tmp_path: Path) -> list[Path]:
    return sorted(each for each in tmp_path.rglob("*") if each.is_file())


def test_what_was_written_is_read(records: Records[Attachment]) -> None:
    records.write(ATTACHMENT)
    assert records.read(OWNER) == ATTACHMENT
    assert records.read(owner("c2")) is None
    changed = replace(ATTACHMENT, gateway=None, policies=(), allocation=Allocation(leases=()))
    records.write(changed)
    assert records.read(OWNER) == changed


@given(
    names=st.tuples(st.text("ab.-_0", min_size=1), st.text("ab.-_0", min_size=1), st.text(min_size=1, max_size=15)),
    addresses=st.lists(st.builds(ip_interface, st.ip_addresses()), max_size=3),
    trunk=st.lists(st.integers(1, 4094)),
    flag=st.booleans(),
)
@settings(max_examples=20, deadline=None, database=None)
def test_any_attachment_survives_json(
    names: tuple[str, str, str], addresses: list[Interface], trunk: list[int], flag: bool
) -> None:
    network, container_id, ifname = names
    made = replace(
        of(Owner(network=network, container_id=container_id, ifname=ifname)),
        container=replace(ATTACHMENT.container, addresses=tuple(addresses), up=flag),
        port=replace(ATTACHMENT.port, vlan_trunk=tuple(trunk), hairpin=flag),
        gateway=ATTACHMENT.gateway if flag else None,
        allocation=ATTACHMENT.allocation if flag else Allocation(leases=()),
    )
    assert decode(Attachment, encode(made)) == made


def test_removing_leaves_no_file_and_no_folder(records: Records[Attachment], tmp_path: Path) -> None:
    records.write(ATTACHMENT)
    records.write(of(owner("c2")))
    records.remove(OWNER)
    assert [each.owner for each in records.all()] == [owner("c2")]
    records.remove(owner("c2"))
    records.remove(owner("c2"))
    assert list((tmp_path / "attachments").iterdir()) == []


def test_all_of_one_network_or_of_every(records: Records[Attachment]) -> None:
    kept = [
        owner("c1"),
        owner("c1", ifname="eth1"),
        owner("c2"),
        owner("c1", network="net2"),
        owner("c1", network="net11"),
    ]
    for each in kept:
        records.write(of(each))
    assert {each.owner for each in records.all("net1")} == set(kept[:3])
    assert {each.owner for each in records.all("net2")} == {kept[3]}
    assert {each.owner for each in records.all()} == set(kept)
    assert list(records.all("net")) == []


@pytest.mark.parametrize("container", ["c1", "c[1]*", "c" * 400])
def test_those_of_one_container_or_of_a_key(records: Records[Attachment], container: str) -> None:
    own = [owner(container), owner(container, ifname="eth1"), owner(container, network="net2")]
    others = [owner(f"{container}1"), owner("c"), owner(container[:-1] or "x", network="net3")]
    for each in (*own, *others):
        records.write(of(each))
    assert {each.owner for each in records.of_container(container)} == set(own)
    assert [records.find(owner_key(each)) for each in own] == [of(each) for each in own]
    assert records.find(owner_key(owner("never seen"))) is None
    assert list(records.of_container("never seen")) == []


def test_a_network_is_empty_before_the_first_and_after_the_last(records: Records[Attachment]) -> None:
    assert records.is_empty("net1")
    records.write(ATTACHMENT)
    assert not records.is_empty("net1")
    assert records.is_empty("net")
    records.remove(OWNER)
    assert records.is_empty("net1")


@pytest.mark.parametrize("network", ["x.json", "x*", "[x]", "?", "x.json.new"])
def test_a_network_named_like_a_file_or_a_pattern(records: Records[Attachment], network: str) -> None:
    named, other = of(owner("c1", network=network)), of(owner("c1", network="x"))
    for each in (named, other):
        records.write(each)
    assert list(records.all(network)) == [named]
    assert list(records.all("x")) == [other]
    assert {each.owner for each in records.all()} == {named.owner, other.owner}
    records.forget_unreadable(network, frozenset())
    records.remove(named.owner)
    assert list(records.all()) == [other]


def test_unreadable_records_of_the_network_are_forgotten_but_for_the_kept(
    records: Records[Attachment], tmp_path: Path
) -> None:
    readable, kept, gone, elsewhere = owner("c1"), owner("c2"), owner("c3"), owner("c3", network="net2")
    paths = {}
    for each in (readable, kept, gone, elsewhere):
        before = files(tmp_path)
        records.write(of(each))
        (paths[each],) = set(files(tmp_path)) - set(before)
    for each in (kept, gone, elsewhere):
        paths[each].write_text("{")
    assert [each.owner for each in records.all()] == [readable]
    records.forget_unreadable("net1", frozenset({kept}))
    assert set(files(tmp_path)) == {paths[each] for each in (readable, kept, elsewhere)}
    records.forget_unreadable("never seen", frozenset())


def test_nothing_is_there_before_the_first(records: Records[Attachment]) -> None:
    assert list(records.all()) == []
    assert records.read(OWNER) is None
    records.remove(OWNER)


def test_long_names(records: Records[Attachment]) -> None:
    kept = [
        owner("c" * 400, network="n" * 400),
        owner("c" * 401, network="n" * 400),
        owner("c" * 400, network="n" * 401),
    ]
    for each in kept:
        records.write(of(each))
    assert [records.read(each) for each in kept] == [of(each) for each in kept]
    assert {each.owner for each in records.all("n" * 400)} == set(kept[:2])


def test_a_record_is_for_its_owner_only(records: Records[Attachment], tmp_path: Path) -> None:
    records.write(ATTACHMENT)
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 1}',
        b'{"format": 2, "attachment": {}}',
        b'{"format": 1, "attachment": {}}',
        b'{"format": 1, "attachment": []}',
        b'{"format": 1, "attachment": {"owner": 5}}',
        b'{"format": 1, "attachment": ' + b"[" * 100_000,
    ],
)
def test_a_corrupt_record_is_named(records: Records[Attachment], tmp_path: Path, text: bytes) -> None:
    records.write(ATTACHMENT)
    (path,) = files(tmp_path)
    path.write_bytes(text)
    error = refusal(records.read, OWNER)
    assert error.code == Code.IO_FAILURE
    assert str(path) in error.msg
    records.remove(OWNER)
    assert records.read(OWNER) is None


def test_a_draft_left_by_a_crash_is_in_nobodys_way(records: Records[Attachment], tmp_path: Path) -> None:
    records.write(ATTACHMENT)
    (path,) = files(tmp_path)
    path.with_name(f".{path.name}.new").write_text("{")
    assert [each.owner for each in records.all()] == [OWNER]
    records.write(ATTACHMENT)
    assert files(tmp_path) == [path]


def test_a_record_that_cannot_be_written_leaves_the_former_one(records: Records[Attachment], tmp_path: Path) -> None:
    records.write(ATTACHMENT)
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as on a full file system, for this process only
    try:
        error = refusal(records.write, replace(ATTACHMENT, gateway=None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.code == Code.IO_FAILURE
    assert str(tmp_path) in error.msg
    assert files(tmp_path) == before
    assert records.read(OWNER) == ATTACHMENT


def test_a_missing_directory_is_not_writable(records: Records[Attachment], tmp_path: Path) -> None:
    error = refusal(records.require_writable)
    assert error.code == Code.IO_FAILURE
    assert str(tmp_path / "attachments") in error.msg
    Records(tmp_path, Attachment).require_writable()


@pytest.mark.parametrize("container", ["c", "c" * 250])
def test_what_was_announced_is_known_until_there_is_a_record(
    records: Records[Attachment], tmp_path: Path, container: str
) -> None:
    owner = replace(OWNER, container_id=container)
    assert records.announced(owner) is None
    records.announce(owner, "host-local")
    assert (records.announced(owner), records.drafts(owner.network), records.read(owner)) == (
        "host-local",
        [owner],
        None,
    )
    assert records.is_empty(owner.network)
    records.write(replace(ATTACHMENT, owner=owner))
    assert (records.announced(owner), records.drafts(owner.network)) == (None, [])
    records.announce(owner, "")
    records.remove(owner)
    assert (records.announced(owner), files(tmp_path)) == (None, [])


def test_a_record_that_retires_is_a_draft_that_names_the_ipam(records: Records[Attachment], tmp_path: Path) -> None:
    records.write(ATTACHMENT)
    for _ in range(2):
        records.retire(OWNER)
        assert (records.read(OWNER), list(records.all()), records.is_empty(OWNER.network)) == (None, [], True)
        assert (records.announced(OWNER), records.drafts(OWNER.network)) == (ATTACHMENT.ipam_type, [OWNER])
    records.write(ATTACHMENT)
    assert (records.announced(OWNER), records.read(OWNER)) == (None, ATTACHMENT)
    records.retire(OWNER)
    records.remove(OWNER)
    assert files(tmp_path) == []


def test_a_folder_that_others_take_away_is_made_again(records: Records[Attachment], tmp_path: Path) -> None:
    def come_and_go(number: int) -> None:
        owner = replace(OWNER, container_id=f"c{number}")
        for _ in range(200):
            records.write(replace(ATTACHMENT, owner=owner))
            records.remove(owner)

    with ThreadPoolExecutor() as threads:
        list(threads.map(come_and_go, range(4)))
    assert files(tmp_path) == []
