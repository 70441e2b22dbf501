"""Published ports lead to their container from wherever they should, nowhere else, and as long as it is there."""

from __future__ import annotations

import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from tests.support import packets, probing
from tests.support.attaching import attach, detach, unchanged
from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, with_result
from tests.support.ctl import ctl
from tests.support.host import BIN, Host, Json
from tests.support.probing import Probe, assert_answers, hear, serve

UPLINK = ("198.51.100.1", "2001:db8:51::1")
GATEWAY = ("10.88.0.1", "fd00:88::1")
SUBNETS2 = ("10.89.0.0/24", "fd00:89::/64")
BOTH = ("tcp", "udp")


def conf(*mappings: str, **keys: object) -> Json:
    """A network of both families that publishes these ports: "[HOSTIP ]PORT[-PORT]:CONTAINERPORT/PROTOCOL"."""
    found = [each for mapping in mappings for each in port_mappings(mapping)]
    given: Json = {"ipam": DUAL_STACK, "runtimeConfig": {"portMappings": found}, **keys}
    return bridge_conf(**given)


def port_mappings(text: str) -> list[Json]:
    host_ip, _, rest = text.rpartition(" ")
    ports, _, protocol = rest.partition("/")
    host, _, container = ports.partition(":")
    first, _, last = host.partition("-")
    return [
        {"hostPort": port, "containerPort": int(container) + port - int(first), "protocol": protocol}
        | ({"hostIP": host_ip} if host_ip else {})
        for port in range(int(first), int(last or first) + 1)
    ]


def second(*mappings: str) -> Json:
    """Another network, whose default routes yield to the first one's."""
    ipam = {
        "type": "cni-ipam",
        "ranges": [[{"subnet": each}] for each in SUBNETS2],
        "routes": [{"dst": each, "priority": 2000} for each in ("0.0.0.0/0", "::/0")],
    }
    return conf(*mappings, name="net2", bridge="cni1", ipam=ipam)


def both(source: str, addresses: tuple[str, ...], *ports: int) -> list[Probe]:
    """TCP and UDP to each of the ports at each of the addresses."""
    return [
        Probe(source=source, kind=kind, address=address, port=port)
        for kind, address, port in product(BOTH, addresses, ports)
    ]


def mac(host: Host, link: str, netns: str = "") -> str:
    return str(host.links(netns)[link]["address"])


# Where they lead, and from where

EVERY_KIND = [
    "8080:80/{}",
    "198.51.100.1 8081:81/{}",
    "2001:db8:51::1 8081:81/{}",
    "127.0.0.1 9000:90/{}",
    "7000-7019:7000/{}",
    "6000-6019:5000/{}",
]


def test_reached_from_everywhere(either_host: Host) -> None:
    host = either_host
    add_outside(host, neighbour=True)
    publishing = conf(*(each.format(protocol) for each in EVERY_KIND for protocol in BOTH))
    attach(host, publishing, "a")
    attach(host, conf(), "b")
    attach(host, second(), "c")
    # It listens next to what is published too, so that what must not be reached is there.
    serve(host, {"a": (80, 81, 90, 4999, 5000, 5019, 5020, 5999, 6020, 6999, 7000, 7019, 7020)})
    everybody = ("", "outside", "neighbour", "a", "b", "c")
    inside, at_every_address = ("", "a", "b", "c"), (8080, 7000, 7019, 6000, 6019)
    expected = {
        probe: "a"
        for source in everybody
        for probe in [
            *both(source, UPLINK, *at_every_address, 8081),
            *(both(source, GATEWAY, *at_every_address) if source in inside else []),
        ]
    }
    expected |= dict.fromkeys(both("", ("127.0.0.1", "127.0.0.2"), *at_every_address), "a")
    expected |= dict.fromkeys(both("", ("127.0.0.1",), 9000), "a")
    expected |= dict.fromkeys(both("", ("127.0.0.1",), 8081), "")
    expected |= dict.fromkeys(both("", ("127.0.0.2",), 8081, 9000), "")
    for source in everybody:
        expected |= dict.fromkeys(both(source, UPLINK, 5999, 6020, 6999, 7020, 9000), "")
        if source in inside:
            expected |= dict.fromkeys(both(source, GATEWAY, 8081, 9000), "")
    assert_answers(host, expected)
    for each, of in (("a", publishing), ("b", conf()), ("c", second())):
        host.plugin("DEL", of, each).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize(
    ("keys", "outside", "loopback"),
    [
        pytest.param({}, None, GATEWAY[0], id="kept from outside"),
        pytest.param({"masqAll": True}, GATEWAY, GATEWAY[0], id="masqAll"),
        pytest.param({"snat": False}, None, "", id="no snat"),
        pytest.param({"ipMasq": False}, None, GATEWAY[0], id="no masquerading"),
    ],
)
def test_source_address(either_host: Host, keys: Json, outside: tuple[str, str] | None, loopback: str) -> None:
    host = either_host
    add_outside(host, neighbour=True)
    publishing = conf(
        *(each.format(protocol) for each in ("8080:80/{}", "8100-8119:80/{}") for protocol in BOTH), **keys
    )
    attach(host, publishing, "a")
    serve(host, {"a": (80, 81)})
    expected = dict.fromkeys(both("", ("127.0.0.1",), 8080, 8101), f"a {loopback}" if loopback else "")
    for source, number in (("outside", 2), ("neighbour", 3)):
        own = (f"198.51.100.{number}", f"2001:db8:51::{number}")
        for address, seen in zip(UPLINK, outside or own, strict=True):
            expected |= dict.fromkeys(both(source, (address,), 8080, 8101), f"a {seen}")
    assert_answers(host, expected)
    detach(host, publishing)


def test_sctp_arrives_with_its_port_translated(either_host: Host) -> None:
    host = either_host
    add_outside(host)
    publishing = conf("9899:9000/sctp")
    attach(host, publishing, "a")
    macs = (mac(host, "eth0", "outside"), mac(host, "uplink"))
    ends = list(zip(("198.51.100.2", "2001:db8:51::2"), UPLINK, strict=True))
    frames = [packets.sctp_init(macs, each, port) for each in ends for port in (9899, 9000)]
    heard = [(frame[12:14].hex(), *packets.transport(frame)) for frame in hear(host, "outside", frames, at="a")]
    arrived = {kind: packet for kind, protocol, packet in heard if protocol == packets.SCTP}
    assert arrived.keys() == {"0800", "86dd"}
    for packet in arrived.values():
        assert struct.unpack_from("!HH", packet) == (5000, 9000)
        assert packet[8:12] == packets.sctp_checksum(packet)
    detach(host, publishing)


# The host's loopback addresses stay its own


@pytest.mark.parametrize("sender", ["neighbour", "b"])
def test_nobody_reaches_the_host_at_its_loopback_address_or_in_its_name(either_host: Host, sender: str) -> None:
    host = either_host
    add_outside(host, neighbour=True)
    publishing = conf(*(f"{each}/{protocol}" for each in ("127.0.0.1 9000:90", "8080:80") for protocol in BOTH))
    attach(host, publishing, "a")
    attach(host, conf(), "b")
    assert host.sysctl("net.ipv4.conf.cni0.route_localnet") == "1", "or there is nothing to protect"
    serve(host, {"a": (80, 90)})
    serve(host, {"": (5555,)}, "127.0.0.1")
    recorders = [record(host, "127.0.0.1", 5556), record(host, "0.0.0.0", 5557)]
    own, to, link = {"neighbour": ("198.51.100.3", UPLINK[0], "uplink"), "b": ("10.88.0.3", GATEWAY[0], "cni0")}[sender]
    macs = (mac(host, "eth0", sender), mac(host, link))
    frames = [
        *(packets.udp(macs, (own, "127.0.0.1"), port, b"to loopback") for port in (5555, 5556, 5557, 8080, 9000)),
        *(packets.tcp_syn(macs, (own, "127.0.0.1"), port) for port in (5555, 8080, 9000)),
        *(packets.udp(macs, ("127.0.0.1", to), port, b"as loopback") for port in (5557, 8080)),
        packets.udp(macs, ("127.0.0.1", "127.0.0.1"), 5556, b"between loopback addresses"),
        *(packets.udp(macs, (own, to), port, b"in its own name") for port in (5557, 8080)),
        packets.tcp_syn(macs, (own, to), 8080),
    ]
    heard = [packets.transport(each) for each in hear(host, sender, frames, at=sender)]
    answers = sorted(
        (protocol, *struct.unpack_from("!HH", packet)) for protocol, packet in heard if protocol in (6, 17)
    )
    assert answers == [(6, 8080, 5000), (17, 8080, 5000)]
    # Only the host itself reaches them, as it may.
    silent = dict.fromkeys([Probe(source="", kind="udp", address="127.0.0.1", port=port) for port in (5556, 5557)], "")
    assert_answers(host, dict.fromkeys(both("", ("127.0.0.1",), 5555), "host") | silent)
    said = [each.communicate()[0].decode().splitlines() for each in recorders]
    assert said == [["who am I?"], ["in its own name", "who am I?"]]


def record(host: Host, address: str, port: int) -> subprocess.Popen[bytes]:
    """A UDP service of the host that prints what it is told."""
    script = Path(probing.__file__).with_name("record.py")
    process: subprocess.Popen[bytes] = host.start(
        *(sys.executable, "-IS", script, address, str(port), "3"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


# Who may have a port


ID1, ID2 = "0123456789ab", "ba9876543210"  # as long as to be in no command line by chance


REFUSED = {  # by what another container holds
    "8001:80/tcp": "8001:81/tcp",
    "8002:80/tcp": "198.51.100.1 8002:80/tcp",
    "198.51.100.1 8003:80/tcp": "8003:80/tcp",
    "198.51.100.1 8004:80/udp": "198.51.100.1 8004:80/udp",
    "2001:db8:51::1 8005:80/tcp": ":: 8005:80/tcp",
    "8100-8199:8100/tcp": "8150:80/tcp",
    "8200-8299:8200/tcp": "127.0.0.1 8250:80/tcp",
    "127.0.0.1 8350:80/tcp": "8300-8399:8300/tcp",
    "8450:80/sctp": "8400-8499:9000/sctp",
    "8500-8599:9000/udp": "8580-8700:8580/udp",
    "198.51.100.1 8700-8799:8700/tcp": "198.51.100.1 8799-8820:8799/tcp",
}


@pytest.mark.every_way
def test_port_of_another_container_is_refused(host: Host) -> None:
    add_outside(host)
    attach(host, conf(*REFUSED), ID1)
    host.add_netns(ID2)
    with unchanged(host, ID1, ID2):
        for wanted in REFUSED.values():
            error = host.plugin("ADD", conf(wanted), ID2).error
            assert (error["code"], ID1 in error["msg"]) == (109, True), f"{wanted}: {error}"
    detach(host, conf(*REFUSED), ID1)
    host.plugin("ADD", conf(*REFUSED.values()), ID2).succeeded()
    detach(host, conf(*REFUSED.values()), ID2)


def test_ports_that_differ_in_anything_are_no_conflict(host: Host) -> None:
    add_outside(host)
    apart = {
        "8001:80/tcp": "8001:80/udp",
        "198.51.100.1 8002:80/{}": "127.0.0.1 8002:80/{}",
        "0.0.0.0 8003:80/{}": ":: 8003:80/{}",
        "8100-8119:8100/{}": "8120-8139:8120/{}",
        "8200-8219:8200/tcp": "8200-8219:8200/udp",
        "198.51.100.1 8300-8319:8300/{}": "127.0.0.1 8300-8319:8300/{}",
    }
    one, other = (
        conf(*dict.fromkeys(each.format(protocol) for each in side for protocol in BOTH))
        for side in (apart, apart.values())
    )
    attach(host, one, ID1)
    attach(host, other, ID2)
    serve(host, dict.fromkeys((ID1, ID2), (80, 8119, 8120, 8200, 8300)))
    expected = {
        **dict.fromkeys(both("", UPLINK, 8119), ID1),
        **dict.fromkeys(both("", UPLINK, 8120), ID2),
        **dict.fromkeys(both("", UPLINK[:1], 8002, 8003, 8300), ID1),
        **dict.fromkeys([*both("", ("127.0.0.1",), 8002, 8300), *both("", UPLINK[1:], 8003)], ID2),
        **{each: {"tcp": ID1, "udp": ID2}[each.kind] for each in both("", UPLINK, 8001, 8200)},
    }
    assert_answers(host, expected)
    host.plugin("DEL", one, ID1).succeeded()
    detach(host, other, ID2)


@pytest.mark.every_way
def test_port_at_which_a_process_listens_is_refused(host: Host) -> None:
    add_outside(host)
    refused = {  # by address and port of the listener
        ("::", 8001): ["8001:80/tcp", "0.0.0.0 8001:80/udp", "198.51.100.1 8001:80/udp", "2001:db8:51::1 8001:80/tcp"],
        ("0.0.0.0", 8002): ["8002:80/udp", "127.0.0.1 8002:80/tcp"],
        ("127.0.0.1", 8050): ["8050:80/tcp", "8040-8099:8040/udp", "127.0.0.1 8050:80/udp"],
        ("2001:db8:51::1", 8003): ["8003:80/udp", ":: 8003:80/tcp"],
    }
    for address, port in refused:
        serve(host, {"": (port,)}, address)
    listeners = dict(zip(refused, host.processes, strict=True))
    host.add_netns(ID1)
    with unchanged(host, ID1):
        for listener, mappings in refused.items():
            for wanted in mappings:
                error = host.plugin("ADD", conf(wanted), ID1).error
                named = f"process {listeners[listener].pid} ({Path(sys.executable).name}" in error["msg"]
                assert (error["code"], named) == (109, True), f"{wanted}: {error}"
    for each in listeners.values():
        each.kill()
        each.wait()
    ended = conf("8001-8099:80/tcp")
    host.plugin("ADD", ended, ID1).succeeded()
    detach(host, ended, ID1)


def test_listener_elsewhere_is_no_conflict(host: Host) -> None:
    add_outside(host)
    elsewhere = {
        ("127.0.0.1", 8001): "198.51.100.1 8001:80/{}",
        ("198.51.100.1", 8002): "127.0.0.1 8002:80/{}",
        ("198.51.100.1", 8003): "2001:db8:51::1 8003:80/{}",
        ("0.0.0.0", 8004): ":: 8004:80/{}",
        ("::", 8005): "8006:80/{}",
        ("127.0.0.1", 8007): "8008-8099:80/{}",
    }
    for address, port in elsewhere:
        serve(host, {"": (port,)}, address)
    publishing = conf(*(each.format(protocol) for each in elsewhere.values() for protocol in BOTH))
    attach(host, publishing, ID1)
    serve(host, {ID1: (80, 81)})
    expected = dict.fromkeys([each for place, port in elsewhere for each in both("", (place,), port)], "host")
    assert_answers(host, expected | dict.fromkeys(both("outside", UPLINK, 8006, 8009), ID1))
    detach(host, publishing, ID1)


@pytest.mark.every_way
def test_port_held_for_the_container_is_served(host: Host, tmp_path: Path) -> None:
    """As Podman and conmon do it: the runtime itself, or a process that names the container, listens."""
    add_outside(host)
    script = Path(probing.__file__).with_name("serve.py")
    holder = host.start(sys.executable, "-IS", script, f"for-{ID1}", "::", "8080", stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"ready\n"
    runtime = tmp_path / "runtime"
    runtime.write_text(
        f"#!{sys.executable}\nimport socket, subprocess, sys\n"
        "with socket.create_server(('', 8081)):\n"
        f"    sys.exit(subprocess.run(['{BIN}/cni-bridge']).returncode)\n"
    )
    runtime.chmod(0o755)
    publishing = conf("8080:80/tcp", "8081:80/tcp")
    host.add_netns(ID1)
    host.plugin("ADD", publishing, ID1, plugin=runtime).succeeded()
    serve(host, {ID1: (80,)})
    probes = [Probe(source="outside", kind="tcp", address=each, port=port) for each in UPLINK for port in (8080, 8081)]
    assert_answers(host, dict.fromkeys(probes, ID1))
    detach(host, publishing, ID1)


@pytest.mark.every_way
def test_one_networks_attachment_serves_and_the_others_takes_over(either_host: Host) -> None:
    """Podman passes the mappings to each network of a container."""
    host = either_host
    add_outside(host)
    mappings = [f"{each}/{protocol}" for each in ("8080:80", "7000-7019:7000") for protocol in BOTH]
    attach(host, conf(*mappings), ID1)
    served = len(host.nft_elements())
    host.plugin("ADD", second(*mappings), ID1, ifname="eth1").succeeded()
    serve(host, {ID1: (80, 7000, 7019)})
    reached = dict.fromkeys(
        [each for source in ("outside", "") for each in both(source, UPLINK, 8080, 7000, 7019)], ID1
    )
    assert_answers(host, reached)
    host.plugin("DEL", conf(*mappings), ID1).succeeded()
    assert_answers(host, reached)
    # With both there again, a server of UDP would answer from the address of its default route, to nobody's question.
    by_tcp = {probe: answer for probe, answer in reached.items() if probe.kind == "tcp"}
    host.plugin("ADD", conf(*mappings), ID1).succeeded()
    assert_answers(host, by_tcp)
    host.plugin("DEL", second(*mappings), ID1, ifname="eth1").succeeded()
    assert_answers(host, reached)
    assert len(host.nft_elements()) == served
    detach(host, conf(*mappings), ID1)


def test_ports_of_an_owner_without_record_are_taken(host: Host) -> None:
    add_outside(host)
    publishing = conf("8080:80/tcp", "7000-7019:7000/tcp")
    attach(host, publishing, ID1)
    host.shell("rm -r /run/cni-bridge/attachments/*")
    attach(host, publishing, ID2)
    serve(host, {ID1: (80, 7000), ID2: (80, 7000)})
    probes = [Probe(source="outside", kind="tcp", address=each, port=port) for each in UPLINK for port in (8080, 7000)]
    assert_answers(host, dict.fromkeys(probes, ID2))
    host.plugin("DEL", publishing, ID1).succeeded()
    assert_answers(host, dict.fromkeys(probes, ID2))
    detach(host, publishing, ID2)


@pytest.mark.parametrize("address", ["198.51.100.2", "2001:db8:51::2"])
def test_host_ip_of_another_host_is_refused(host: Host, address: str) -> None:
    add_outside(host)
    host.add_netns("a")
    with unchanged(host, "a"):
        error = host.plugin("ADD", conf(f"{address} 8080:80/tcp"), "a").error
    assert error["code"] == 7
    assert "hostIP" in error["msg"]
    assert address in error["msg"]
    host.assert_nothing_left()


# As long as the container is there


def test_udp_flows_reach_the_new_container_at_once(either_host: Host) -> None:
    host = either_host
    add_outside(host)
    attach(host, conf(), "other")  # from now on the host tracks flows
    ports = (8080, 8081, 8105, 8205)
    serve(host, {"": ports}, UPLINK[0])
    flows = [
        Probe(source=source, kind="udp", address=UPLINK[0], port=port, own_port=5000 + port)
        for source in ("", "outside")
        for port in ports
    ]
    assert_answers(host, dict.fromkeys(flows, "host"))
    host.processes[-1].kill()
    host.processes[-1].wait()
    publishing = conf("8080:80/udp", "198.51.100.1 8081:80/udp", "8100-8119:8100/udp", "8200-8219:80/udp")
    for each in ("a", "b"):
        attach(host, publishing, each)
        serve(host, {each: (80, 85, 8105)})
        assert_answers(host, dict.fromkeys(flows, each))
        host.plugin("DEL", publishing, each).succeeded()
        assert_answers(host, dict.fromkeys(flows, ""))
    detach(host, conf(), "other")


KINDS = [
    "8080:80/tcp",
    "8080:80/udp",
    "8080:80/sctp",
    "127.0.0.1 8081:81/tcp",
    "7000-7019:7000/udp",
    "6000-6019:5000/tcp",
]


def test_del_that_is_told_little_removes_this_attachments_ports(host: Host) -> None:
    attach(host, conf("8090:80/tcp", "7020-7039:7020/udp"), "b")
    attach(host, second("8091:80/tcp"), "c")
    before = sorted(host.nft_elements())
    host.add_netns("a")
    tellings: list[tuple[Json, str | None]] = [
        ({"runtimeConfig": None}, None),
        ({}, ""),
        ({"runtimeConfig": None, "ipam": {"type": "cni-ipam"}, "ipMasq": None}, ""),
        ({"runtimeConfig": {"portMappings": port_mappings("8090:80/tcp")}}, None),
    ]
    for keys, netns in tellings:
        host.plugin("ADD", conf(*KINDS, macspoofchk=True, masqAll=True), "a").succeeded()
        assert sorted(host.nft_elements()) != before
        host.plugin("DEL", bridge_conf(**keys), "a", netns=netns).succeeded()
        assert sorted(host.nft_elements()) == before, f"after {keys}"
    host.plugin("DEL", conf(), "b").succeeded()
    detach(host, second(), "c")


def test_repeated_add_duplicates_nothing(host: Host) -> None:
    add_outside(host)
    result = attach(host, conf(*KINDS))
    with unchanged(host, "a"):
        assert host.plugin("ADD", conf(*KINDS), "a").result == result
        host.plugin("CHECK", with_result(conf(*KINDS), result), "a").succeeded()
    detach(host, conf(*KINDS))


def test_repeated_add_after_its_address_was_taken_away_leads_to_the_new_one(host: Host, backend: str) -> None:
    add_outside(host)
    publishing = conf("8080:80/tcp", ipMasqBackend=backend)
    before = attach(host, publishing)
    ctl(host, "release", "a", "--yes")
    after = host.plugin("ADD", publishing, "a").result
    assert [each["address"] for each in after["ips"]] != [each["address"] for each in before["ips"]]
    host.plugin("CHECK", with_result(publishing, after), "a").succeeded()
    serve(host, {"a": (80,)})
    assert_answers(host, {probe: "a" for probe in both("outside", UPLINK, 8080) if probe.kind == "tcp"})
    detach(host, publishing)


@pytest.mark.timeout(300)
def test_sixteen_at_once_from_an_empty_ruleset(host: Host) -> None:
    add_outside(host)
    host_ports = {f"c{number}": 8000 + number for number in range(16)}
    for name in host_ports:
        host.add_netns(name)
    assert host.shell("nft list ruleset") == ""

    def call(command: str, name: str) -> None:
        publishing = conf(f"{host_ports[name]}:80/tcp", f"{host_ports[name]}:80/udp")
        host.plugin(command, publishing, name, timeout=200).succeeded()

    with ThreadPoolExecutor(len(host_ports)) as pool:
        list(pool.map(partial(call, "ADD"), host_ports))
        serve(host, dict.fromkeys(host_ports, (80,)))
        expected = {
            probe: name
            for name, port in host_ports.items()
            for source in ("outside", "")
            for probe in both(source, UPLINK, port)
        }
        assert_answers(host, expected)
        list(pool.map(partial(call, "DEL"), host_ports))
    host.assert_nothing_left()


def test_flush_is_told_by_check_and_repaired_by_add(either_host: Host) -> None:
    host = either_host
    add_outside(host)
    publishing = conf(*KINDS, ipspoofchk=True, macspoofchk=True, icc=False)
    result = attach(host, publishing)
    serve(host, {"a": (80, 5000, 7000)})
    elements = host.nft_elements()
    probes = [
        Probe(source="outside", kind=kind, address=address, port=port)
        for address in UPLINK
        for kind, port in (("tcp", 8080), ("udp", 8080), ("udp", 7000), ("tcp", 6000))
    ]
    assert_answers(host, dict.fromkeys(probes, "a"))
    host.run("nft", "flush", "ruleset")
    with unchanged(host, "a"):
        error = host.plugin("CHECK", with_result(publishing, result), "a").error
    assert error["code"] == 100
    for name in ("publish4", "publish_run6", "masquerade4", "shielded6", "no_icc", "mac_allowed", "ip4_allowed"):
        assert f"cni_bridge {name}\n" in error["details"] + "\n"
    for rule in ("to this host", "from elsewhere to a container", "any other source MAC"):
        assert rule in error["details"]
    assert_answers(host, dict.fromkeys(probes, ""))
    assert host.plugin("ADD", publishing, "a").result == result
    assert sorted(host.nft_elements()) == sorted(elements)
    assert_answers(host, dict.fromkeys(probes, "a"))
    host.plugin("CHECK", with_result(publishing, result), "a").succeeded()
    detach(host, publishing)


# What a container sends


@pytest.mark.parametrize("check", ["macspoofchk", "ipspoofchk", ""])
def test_spoofed_frames_are_dropped_where_that_is_asked_for(either_host: Host, check: str) -> None:
    host = either_host
    checked = conf(**({check: True} if check else {}))
    attach(host, checked, "a")
    attach(host, conf(), "b")
    own, to, other = mac(host, "eth0", "a"), mac(host, "eth0", "b"), "02:00:00:00:00:99"
    four, six = ("10.88.0.2", "10.88.0.3"), ("fd00:88::2", "fd00:88::3")
    frames = {  # by what forbids them
        (packets.udp((own, to), four, 9, b"own IPv4")): "",
        (packets.udp((own, to), six, 9, b"own IPv6")): "",
        (packets.udp((own, to), ("0.0.0.0", "10.88.0.3"), 9, b"no IPv4 yet")): "",
        (packets.udp((own, to), ("fe80::99", "fd00:88::3"), 9, b"link-local")): "",
        packets.arp(own, "10.88.0.2", "10.88.0.3"): "",
        packets.arp(own, "0.0.0.0", "10.88.0.3"): "",
        packets.ethernet(own, to, 0x88B5, b"no IP at all".ljust(46)): "",
        (packets.udp((own, to), ("10.88.0.7", "10.88.0.3"), 9, b"other IPv4")): "ipspoofchk",
        (packets.udp((own, to), ("fd00:88::7", "fd00:88::3"), 9, b"other IPv6")): "ipspoofchk",
        packets.arp(own, "10.88.0.7", "10.88.0.3"): "ipspoofchk",
        packets.arp(own, "10.88.0.1", "10.88.0.3"): "ipspoofchk",
        (packets.udp((other, to), four, 9, b"other MAC, IPv4")): "macspoofchk",
        (packets.udp((other, to), six, 9, b"other MAC, IPv6")): "macspoofchk",
        packets.ethernet(other, to, 0x88B5, b"other MAC, no IP at all".ljust(46)): "macspoofchk",
    }
    heard = hear(host, "a", frames, at="b")
    assert [each for each in frames if each in heard] == [each for each, by in frames.items() if by != check or not by]
    host.plugin("DEL", checked, "a").succeeded()
    detach(host, conf(), "b")


def test_runtimes_dns_is_in_the_result(host: Host) -> None:
    dns = {"servers": ["192.0.2.53", "2001:db8::53"], "searches": ["a.example"], "options": ["ndots:2"]}
    given = conf(dns={"nameservers": ["192.0.2.1"], "domain": "b.example"}, runtimeConfig={"dns": dns})
    assert attach(host, given)["dns"] == {
        "nameservers": dns["servers"],
        "search": dns["searches"],
        "options": dns["options"],
    }
    detach(host, given)


def let_out(host: Host) -> tuple[str, bool]:
    """Whether the host's loopback addresses leave by the bridge: its `route_localnet`, and a local route to ::1."""
    routes = host.routes(family=6, table="local")
    here = any((each["dst"], each["dev"]) == ("::1", "cni0") for each in routes)
    return host.sysctl("net.ipv4.conf.cni0.route_localnet"), here


def test_loopback_leaves_by_the_bridge_as_long_as_a_port_is_published_there(host: Host) -> None:
    first = conf("8080:80/tcp")
    host.add_netns("a")
    host.add_netns("b")
    host.plugin("ADD", bridge_conf(ipam=DUAL_STACK), "b").succeeded()
    assert let_out(host) == ("0", False)
    result = host.plugin("ADD", first, "a").result
    assert let_out(host) == ("1", True)
    host.sysctl("net.ipv4.conf.cni0.route_localnet", "0")
    failed = host.plugin("CHECK", with_result(first, result), "a")
    assert (failed.code, "net.ipv4.conf.cni0.route_localnet is not 1" in failed.error["msg"]) == (100, True)
    assert let_out(host) == ("0", True)
    host.plugin("ADD", first, "a").succeeded()
    host.plugin("CHECK", with_result(first, result), "a").succeeded()
    for name in ("a", "b"):
        host.plugin("DEL", first, name).succeeded()
    assert let_out(host) == ("0", False)
    host.assert_nothing_left()
