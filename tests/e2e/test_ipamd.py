"""`ipamd` as a service: who it serves, what it bears, how it ends, and that nothing depends on whether it is there."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import count, cycle
from pathlib import Path

import pytest

from cni_bridge import own_ipam
from ipam import wire
from ipam.api import NetnsRef, RangeSet, Reservation, ReservedFor, Wanted
from ipam.client import receive
from ipam.host import ToldHost
from ipam.local import LocalIpam
from ipam.local_registry import LocalRegistry
from ipam.metrics import Metrics
from ipam.ranges import build_range, parse_subnet
from ipam.server import Server
from ipam.settings import Settings
from ipam.store import Store
from tests.support.calls import leases, owner
from tests.support.confs import bridge_conf
from tests.support.host import BIN, Answer, Host, Json
from tests.support.ipamd import (
    IN_PROCESS,
    ONLY_THROUGH_IPAMD,
    SOCKET,
    Client,
    Ipamd,
    as_user,
    connected,
    greets,
    in_its_place,
    outside_path,
    samples,
    start_ipamd,
    wait_until,
)

NOBODY, NOGROUP, DAEMON = 65534, 65534, 1  # as in every Debian
STATE = "/var/lib/cni-bridge"
POOL_GAUGES = ("capacity", "leased", "cooling", "reserved", "free")
CONF: Json = {
    "cniVersion": "1.1.0",
    "name": "net1",
    "type": "bridge",
    "ipam": {"type": "cni-ipam", "subnet": "10.88.0.0/24"},
}


def call(host: Host, command: str, container: str, env: dict[str, str] | None = None) -> Answer:
    return host.plugin(command, CONF, container, plugin="cni-ipam", env=env)


def address(answer: Answer) -> str:
    return str(answer.result["ips"][0]["address"])


def allocate(container: str, subnet: str = "10.88.0.0/24", end: str = "") -> wire.Allocate:
    each = build_range(parse_subnet(subnet), end=ip_address(end) if end else None)
    return wire.Allocate(wanted=Wanted(owner=owner(container), range_sets=(RangeSet(ranges=(each,)),)))


def given(answer: Json) -> str:
    (lease,) = answer["ok"]["leases"]
    return str(lease["address"])


def cooling(host: Host) -> int:
    """How many addresses of the only pool are at rest, as the daemon counts them."""
    with connected(host) as client:
        (use,) = client.ask(wire.ListPools())["ok"]["pools"]
    return int(use["cooling"])


def suspects(host: Host) -> dict[str, bool]:
    """Which containers have a lease, and whether it is suspect, as the daemon says."""
    with connected(host) as client:
        entries = client.ask(wire.ListEntries())["ok"]["entries"]
    return {each["lease"]["owner"]["container_id"]: each["suspect"] is not None for each in entries if each["lease"]}


def holders(host: Host) -> list[str]:
    return [each["container_id"] for each in host.leases()]


def configure(host: Host, text: str) -> None:
    host.run("tee", "/etc/cni-bridge/config.yaml", stdin=text.encode())


def heard(daemon: Ipamd, words: str) -> str:
    """The line on the daemon's standard error that has these words, once it is there."""
    assert daemon.process.stderr is not None
    line = next((line for line in daemon.process.stderr if words in line.decode()), None)
    assert line is not None, f"it ended and never said {words!r}"
    return line.decode()


def is_served(host: Host, user: list[str]) -> bool:
    said = json.loads(host.run(*user, sys.executable, "-IS", "-c", ASK, SOCKET).stdout)
    return wire.is_greeting(said)


MOVE_BOOT = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as connection:
    connection.execute("UPDATE addresses SET boot_id = 'an earlier one' WHERE container_id = ?", sys.argv[2:])
"""


def make_earlier(host: Host, container: str) -> None:
    """Have the container's lease be of an earlier boot."""
    host.run(sys.executable, "-IS", "-c", MOVE_BOOT, f"{STATE}/ipam.db", container)


LOCK = """
import sqlite3, sys
sqlite3.connect(sys.argv[1], isolation_level=None).execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_database(host: Host) -> Iterator[None]:
    """Another program is writing."""
    words = (sys.executable, "-c", LOCK, f"{STATE}/ipam.db")
    program = host.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout.readline() == b"locked\n"
    yield
    program.stdin.close()
    assert program.wait(10) == 0


def test_serves_both_plugins(host: Host) -> None:
    daemon = start_ipamd(host)
    host.add_netns("a")
    conf = bridge_conf()
    host.plugin("ADD", conf, "a", env=ONLY_THROUGH_IPAMD).succeeded()
    assert address(call(host, "ADD", "b", ONLY_THROUGH_IPAMD)) == "10.88.0.3/24"
    assert holders(host) == ["a", "b"]
    assert call(host, "ADD", "c", ONLY_THROUGH_IPAMD | IN_PROCESS).code == 5  # which shows who served the others
    call(host, "DEL", "b", ONLY_THROUGH_IPAMD).succeeded()
    host.plugin("DEL", conf, "a", env=ONLY_THROUGH_IPAMD).succeeded()
    host.assert_nothing_left()
    daemon.stop()
    assert host.files("/run/cni-bridge") == []
    assert not outside_path(host, SOCKET).exists()


def test_socket_activation_and_what_the_service_manager_is_told(host: Host) -> None:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.settimeout(20)
    told.bind(str(outside_path(host, "/run/notify.sock")))
    activator = ["systemd-socket-activate", f"--listen={SOCKET}", "--setenv=NOTIFY_SOCKET"]
    daemon = Ipamd(host, *activator, env={"NOTIFY_SOCKET": "/run/notify.sock"})
    wait_until(outside_path(host, SOCKET).exists, "systemd-socket-activate does not listen")
    assert not outside_path(host, f"{STATE}/ipam.db").exists()  # nothing runs before the first client
    with told, connected(host) as first:
        assert told.recv(100) == b"READY=1"
        assert "ok" in first.ask(allocate("a"))
        assert address(call(host, "ADD", "b", ONLY_THROUGH_IPAMD)) == "10.88.0.3/24"
        daemon.signal(signal.SIGTERM)
        assert told.recv(100) == b"STOPPING=1"
    assert daemon.process.wait(20) == 0
    assert outside_path(host, SOCKET).exists(), "the socket is the service manager's, who listens on"


def test_runs_as_another_user_who_owns_the_state_directory(host: Host) -> None:
    host.shell(f"install -d /run/cni-bridge; chown {NOBODY}:{NOGROUP} /run/cni-bridge {STATE}")
    assert address(call(host, "ADD", "a")) == "10.88.0.2/24"  # by root, who makes the database
    daemon = start_ipamd(host, *as_user(NOBODY, NOGROUP))
    assert address(call(host, "ADD", "b", ONLY_THROUGH_IPAMD)) == "10.88.0.3/24"
    assert address(call(host, "ADD", "c", IN_PROCESS)) == "10.88.0.4/24"
    assert address(call(host, "ADD", "d", ONLY_THROUGH_IPAMD)) == "10.88.0.5/24"
    daemon.stop()
    for name in "abcd":
        call(host, "DEL", name).succeeded()
    host.assert_nothing_left()


def test_takes_over_from_a_daemon_that_ran_as_root(host: Host) -> None:
    host.shell(f"install -d /run/cni-bridge; chown {NOBODY}:{NOGROUP} /run/cni-bridge {STATE}")
    start_ipamd(host).stop()
    start_ipamd(host, *as_user(NOBODY, NOGROUP)).stop()
    start_ipamd(host).stop()


ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    stream = client.makefile("rb")
    print(stream.read(int.from_bytes(stream.read(4), "big")).decode())
"""


@pytest.mark.parametrize(
    ("user", "served"),
    [
        (as_user(NOBODY, NOGROUP), False),
        (as_user(NOBODY, DAEMON), True),
        (as_user(NOBODY, NOGROUP, 4, DAEMON), True),
        (as_user(NOBODY, NOGROUP, 0), False),
    ],
    ids=["another user", "of the group", "with the group among others", "with root's group"],
)
def test_who_is_served(host: Host, user: list[str], served: bool) -> None:
    configure(host, "ipamd: {group: daemon}")
    start_ipamd(host)
    said = json.loads(host.run(*user, sys.executable, "-IS", "-c", ASK, SOCKET).stdout)
    if served:
        assert wire.is_greeting(said)
    else:
        assert said["error"]["kind"] == "RequestRefused"
        assert f"user {NOBODY} may not ask" in said["error"]["message"]


def test_without_a_group_other_users_are_refused_and_the_rest_served(host: Host) -> None:
    start_ipamd(host)
    said = json.loads(host.run(*as_user(NOBODY, NOGROUP), sys.executable, "-IS", "-c", ASK, SOCKET).stdout)
    assert f"user {NOBODY} may not ask" in said["error"]["message"]
    assert greets(host)


def test_sighup_takes_new_settings(host: Host) -> None:
    configure(host, "addresses: {cooldown: 3600}")
    daemon, member = start_ipamd(host), as_user(NOBODY, DAEMON)
    with connected(host) as client:
        for name, expected in (("a", "10.88.0.2/24"), ("b", "10.88.0.3/24")):
            assert given(client.ask(allocate(name, end="10.88.0.3"))) == expected
        for name in "ba":
            client.ask(wire.Release(owner=owner(name)))
    assert (cooling(host), is_served(host, member)) == (2, False)
    configure(host, "{log_level: info, addresses: {cooldown: 0}, ipamd: {group: daemon, max_clients: 3}}")
    daemon.signal(signal.SIGHUP)
    heard(daemon, "the settings were read again")  # in a line of the new log level
    assert (cooling(host), is_served(host, member)) == (0, True)
    with connected(host) as client:
        # The next in turn; while both rest it would be b's, who left first.
        assert given(client.ask(allocate("c", end="10.88.0.3"))) == "10.88.0.2/24"
    with ExitStack() as held:
        clients = [Client(host) for _ in range(4)]
        for each in clients:
            held.enter_context(each.socket)
        said = [each.receive() or {} for each in clients]
    assert [each["error"]["kind"] for each in said if "error" in each][:1] == ["StoreBusy"]


def test_sighup_shortens_the_wait_for_other_writers(host: Host) -> None:
    configure(host, "log_level: info")  # with a timeout of 30 s
    daemon = start_ipamd(host)
    with connected(host) as client:
        assert given(client.ask(allocate("a"))) == "10.88.0.2/24"
        configure(host, "{log_level: info, request_timeout: 4}")
        daemon.signal(signal.SIGHUP)
        heard(daemon, "the settings were read again")
        with locked_database(host):
            began = time.monotonic()
            error = client.ask(allocate("b"))["error"]
            assert 1 < time.monotonic() - began < 4
        assert (error["kind"], "is locked by another process" in error["message"]) == ("StoreBusy", True)
        assert given(client.ask(allocate("b"))) == "10.88.0.3/24"
    daemon.stop()


def test_sighup_names_the_settings_that_need_a_restart(host: Host) -> None:
    daemon = start_ipamd(host)
    configure(host, "{state_dir: /run/other, run_dir: /run/other, ipamd: {metrics_port: 9464}}")
    daemon.signal(signal.SIGHUP)
    for name, value in (("state_dir", STATE), ("run_dir", "/run/cni-bridge"), ("ipamd.metrics_port", "0")):
        assert f"{name} is {value} until the next start" in heard(daemon, f"{name} ")
    assert greets(host)
    daemon.stop()
    assert not outside_path(host, SOCKET).exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{addresses: {cooldown: 0}, ipamd: {group: nosuchgroup}}", "nosuchgroup"),
        ("{addresses: {cooldown: 0, warmup: 1}, ipamd: {group: ''}}", "addresses.warmup"),
        ("{", "/etc/cni-bridge/config.yaml"),
    ],
    ids=["no group", "unknown key", "no YAML"],
)
def test_bad_settings_on_sighup_are_told_and_change_nothing(host: Host, text: str, named: str) -> None:
    configure(host, "{addresses: {cooldown: 3600}, ipamd: {group: daemon}}")
    daemon = start_ipamd(host)
    call(host, "ADD", "a").succeeded()
    call(host, "DEL", "a").succeeded()
    configure(host, text)
    daemon.signal(signal.SIGHUP)
    assert named in heard(daemon, "the settings stay as they were")
    assert (cooling(host), is_served(host, as_user(NOBODY, DAEMON))) == (1, True)


def test_metrics_over_the_socket_and_on_a_tcp_port_of_the_loopback_address(host: Host) -> None:
    configure(host, "ipamd: {metrics_port: 9464}")
    start_ipamd(host)
    with connected(host) as client:
        for name in "abc":  # the third finds none
            client.ask(allocate(name, "10.88.0.0/29", end="10.88.0.3"))
        client.ask(wire.Release(owner=owner("a")))
        client.send({"Drop": {}})
        client.receive()
    for words in (
        [BIN / "cni-bridgectl", "metrics"],
        ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:9464/metrics"],
    ):
        found = samples(host.run(*words).stdout)
        pool = {name: found[f"ipam_pool_{name}", "net1", "10.88.0.0/29"] for name in POOL_GAUGES}
        assert pool == {"capacity": 2, "leased": 1, "cooling": 1, "reserved": 0, "free": 0}
        assert found["ipam_requests_total", "Allocate", "ok"] == 2
        assert found["ipam_requests_total", "Allocate", "PoolExhausted"] == 1
        assert found["ipam_requests_total", "Release", "ok"] == 1
        assert found["ipam_requests_total", "unknown", "RequestRefused"] == 1
        assert found["ipam_request_seconds_bucket", "+Inf", "Allocate"] == 3
        assert found["ipam_request_seconds_count", "Allocate"] == 3
        assert found["ipam_request_seconds_sum", "Allocate"] > 0
    host.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    assert host.run("busybox", "wget", "-q", "-O", "-", "http://192.0.2.1:9464/metrics", check=False).returncode == 1


def test_a_metrics_port_in_use_is_named_in_a_line_and_nothing_is_left(host: Host) -> None:
    configure(host, "ipamd: {metrics_port: 9464}")
    host.start_whoami(9464)
    assert "127.0.0.1:9464" in Ipamd(host).refused()
    assert not outside_path(host, SOCKET).exists()


@pytest.mark.parametrize(
    ("user", "grace", "ended"),
    [([], 0, True), ([], 3600, False), (as_user(NOBODY, NOGROUP), 0, False)],
    ids=["root after the grace", "root within the grace", "another user"],
)
def test_who_ends_a_lease_of_an_earlier_boot(host: Host, user: list[str], grace: int, ended: bool) -> None:
    """The daemon looks when it starts. In one look it first ends leases and then marks others as suspect."""
    configure(host, f"addresses: {{suspect_grace: {grace}}}")
    host.shell(f"install -d /run/cni-bridge; chown {NOBODY}:{NOGROUP} /run/cni-bridge {STATE}")
    host.add_netns("living")  # the only one that has a namespace
    for name in ("first", "second", "living", "of_this_boot"):
        call(host, "ADD", name).succeeded()
    for name in ("first", "living"):
        make_earlier(host, name)
    daemon = start_ipamd(host, *user)
    wait_until(lambda: suspects(host)["first"], "the first look marks nothing")
    assert suspects(host) == {"first": True, "second": False, "living": False, "of_this_boot": False}
    daemon.stop()
    make_earlier(host, "second")
    daemon = start_ipamd(host, *user)
    wait_until(lambda: suspects(host)["second"], "the second look marks nothing")
    assert suspects(host) == {
        **({} if ended else {"first": True}),
        "second": True,
        "living": False,
        "of_this_boot": False,
    }
    assert address(call(host, "ADD", "second", ONLY_THROUGH_IPAMD)) == "10.88.0.3/24"  # it lives, and asks again
    assert suspects(host)["second"] is False
    daemon.stop()


def test_an_answered_lease_is_in_the_database_although_the_daemon_is_killed(host: Host) -> None:
    daemon, answered, enough = start_ipamd(host), dict[str, str](), threading.Event()

    def keep_asking(name: str) -> None:
        with connected(host) as client, suppress(ConnectionError):
            for container in (f"{name}-{number}" for number in count()):
                answer = client.ask(allocate(container, "10.88.0.0/16"))
                if answer is None:
                    break
                answered[container] = given(answer)
                if len(answered) >= 100:
                    enough.set()

    with ThreadPoolExecutor(16) as clients:
        asking = [clients.submit(keep_asking, f"c{number}") for number in range(16)]
        assert enough.wait(60)
        daemon.signal(signal.SIGKILL)
    assert [each.result() for each in asking] == [None] * 16
    assert len(set(answered.values())) == len(answered)
    stored = {each["container_id"]: each["address"] for each in host.leases()}
    assert answered.items() <= stored.items()


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"\xff\xff\xff\xff", "exceeds the limit"),
        ((wire.FRAME_LIMIT + 1).to_bytes(4, "big"), "exceeds the limit"),
        (b"\0\0\0\0", "does not hold JSON"),
        (b"\0\0\0\4\xff\xfe\0\1", "does not hold JSON"),
        (b"\0\1\x86\xa0" + b"[" * 100_000, "does not hold JSON"),
        (wire.pack([]), "an object with one key"),
        (wire.pack({"Allocate": {}, "Release": {}}), "an object with one key"),
        (wire.pack({"Drop": {}}), "unknown operation 'Drop'"),
        (wire.pack({"Release": {}}), "malformed request"),
        (wire.pack({"Release": {"owner": {"network": "n", "container_id": 7, "ifname": "e"}}}), "container_id"),
        (
            wire.pack({"Release": {"owner": {"network": "n", "container_id": "c", "ifname": "e", "x": 1}}}),
            "unknown keys",
        ),
        (wire.pack({"Allocate": {"wanted": {"owner": None, "range_sets": [{"ranges": []}]}}}), "owner"),
        (b"GET / HTTP/1.1\r\n\r\n", "exceeds the limit"),
    ],
)
def test_garbage_is_answered_in_words_and_harms_nobody(host: Host, frame: bytes, words: str) -> None:
    start_ipamd(host)
    with connected(host) as client, connected(host) as other:
        client.socket.sendall(frame)
        answer = client.receive()
        assert answer is not None and answer["error"]["kind"] == "RequestRefused"
        assert words in answer["error"]["message"]
        assert "ok" in other.ask(allocate("a"))


HUGE, LONE = 2**70, "\ud800"


@pytest.mark.parametrize(
    "request_",
    [
        wire.Allocate(
            wanted=replace(allocate("bad").wanted, netns=NetnsRef(path="/run/netns/bad", device=4, inode=HUGE))
        ),
        allocate(LONE),
        wire.Allocate(wanted=replace(allocate("bad").wanted, owner=owner("bad", LONE))),
        wire.Release(owner=owner(LONE)),
        wire.Reserve(
            network="net1",
            address=ip_address("10.88.0.9"),
            reservation=Reservation(kind=ReservedFor.NAME, value=LONE),
        ),
        wire.Held(owner=owner(LONE)),
        wire.ListEntries(network=LONE),
        wire.History(before=HUGE),
        wire.History(before=-HUGE),
    ],
    ids=[
        "inode",
        "container to be given an address",
        "new network",
        "container to be released",
        "reservation",
        "container that is looked up",
        "network that is looked up",
        "event",
        "negative number",
    ],
)
def test_a_value_that_no_database_takes_is_refused_and_harms_nobody(host: Host, request_: wire.Request) -> None:
    daemon = start_ipamd(host)
    with ExitStack() as held:
        first, bad, other, later = (held.enter_context(connected(host)) for _ in range(4))
        assert given(first.ask(allocate("a"))) == "10.88.0.2/24"
        with locked_database(host):  # the first waits for it, and the others for one transaction behind that
            for client, each in ((first, allocate("b")), (bad, request_), (other, allocate("c"))):
                client.send(wire.render_request(each))
                later.send({})  # its answer shows that the daemon has read what came before
                assert later.receive() is not None
        said = bad.receive()
        assert said is not None and said["error"]["kind"] == "RequestRefused"
        assert "does not fit into the lease database" in said["error"]["message"]
        assert [given(each.receive() or {}) for each in (first, other)] == ["10.88.0.3/24", "10.88.0.4/24"]
        assert given(bad.ask(allocate("d"))) == "10.88.0.5/24"
    daemon.stop()
    assert holders(host) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"range_sets": [{"ranges": []}]},
        {"range_sets": [{"ranges": [{"subnet": "10.88.0.0/24", "first": "fd00::1", "last": "fd00::2"}]}]},
        {"range_sets": [{"ranges": [{"subnet": "10.88.0.0/24", "first": "10.88.0.9", "last": "10.88.0.1"}]}]},
        {"range_sets": [{"ranges": [{"subnet": "::/0", "first": "::", "last": "ffff::"}]}], "requested": ["::1"] * 999},
    ],
    ids=["empty set", "mixed families", "last before first", "many requested"],
)
def test_ranges_that_no_plugin_sends_are_refused_and_harm_nobody(host: Host, wanted: Json) -> None:
    start_ipamd(host)
    owner = {"network": "net2", "container_id": "a", "ifname": "eth0"}
    with connected(host) as client:
        client.send({"Allocate": {"wanted": {"owner": owner, **wanted}}})
        answer = client.receive()
        assert answer is not None
        assert "internal failure" not in answer.get("error", {}).get("message", ""), answer
        assert "ok" in client.ask(allocate("b"))


def test_slow_and_silent_clients_hold_up_nobody_and_are_dropped(host: Host) -> None:
    start_ipamd(host)
    with connected(host) as silent, connected(host) as slow:
        slow.socket.sendall(b"\0\0\1")
        assert address(call(host, "ADD", "a", ONLY_THROUGH_IPAMD)) == "10.88.0.2/24"
        assert silent.receive() is None
        assert slow.receive() is None


def test_more_clients_than_allowed_are_told_to_come_again(host: Host) -> None:
    configure(host, "ipamd: {max_clients: 3}")
    start_ipamd(host)
    with ExitStack() as held:
        clients = [held.enter_context(connected(host)) for _ in range(3)]
        refused = Client(host)
        with refused.socket:
            said = refused.receive()
            assert said is not None and said["error"]["kind"] == "StoreBusy"
            assert "try again" in said["error"]["message"]
            assert refused.receive() is None
        assert address(call(host, "ADD", "a")) == "10.88.0.2/24"  # in process meanwhile
        clients[0].socket.close()
        wait_until(lambda: greets(host), "nobody is served although one has left")


def test_a_request_has_a_deadline_and_leaves_nothing_behind(host: Host) -> None:
    configure(host, "request_timeout: 1")
    start_ipamd(host)
    with connected(host) as client:
        with locked_database(host):
            said = client.ask(allocate("a"))
            assert said["error"]["kind"] == "StoreBusy", said
            assert call(host, "ADD", "b").code == 11
            assert call(host, "ADD", "b", IN_PROCESS).code == 11
        assert "ok" in client.ask(allocate("c"))
    assert holders(host) == ["c"]
    assert address(call(host, "ADD", "b")) == "10.88.0.3/24"


def test_one_daemon_for_a_state_directory(host: Host) -> None:
    first = start_ipamd(host)
    second = Ipamd(host, env={"CNI_BRIDGE_RUN_DIR": "/run/second"})
    complaint = second.refused()
    assert STATE in complaint
    assert f"process {first.process.pid})" in complaint
    assert greets(host)
    first.signal(signal.SIGKILL)
    first.process.wait()
    start_ipamd(host)  # the lock and the socket of the dead one are no obstacle


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (f"rm -rf {STATE}/*; mount --bind /run/netns {STATE}; mount -o remount,bind,ro {STATE}", STATE),
        ("touch /run/cni-bridge", "/run/cni-bridge"),
        ("mkdir -p /run/cni-bridge/ipamd.sock", SOCKET),
        (f"mkdir {STATE}/ipamd.lock", "ipamd.lock"),
        (f"echo garbage > {STATE}/ipam.db", f"{STATE}/ipam.db"),
        ("touch /run/f; echo 'state_dir: /run/f/state' > /etc/cni-bridge/config.yaml", "/run/f"),
        ("echo 'ipamd: {group: nosuchgroup}' > /etc/cni-bridge/config.yaml", "nosuchgroup"),
        ("echo 'ipamd: {grp: daemon}' > /etc/cni-bridge/config.yaml", "ipamd.grp"),
        ("echo 'state_dir: var' > /etc/cni-bridge/config.yaml", "state_dir"),
        ("echo '{' > /etc/cni-bridge/config.yaml", "/etc/cni-bridge/config.yaml"),
    ],
    ids=[
        "read-only state",
        "run directory is a file",
        "socket is a directory",
        "lock is a directory",
        "no database",
        "state below a file",
        "no group",
        "unknown key",
        "relative directory",
        "no YAML",
    ],
)
def test_says_in_a_line_why_it_cannot_start(host: Host, script: str, named: str) -> None:
    host.shell(script)
    assert named in Ipamd(host).refused()


def test_a_state_directory_of_somebody_else_is_refused_in_a_line(host: Host) -> None:
    host.shell("install -d -o nobody /run/cni-bridge")
    assert STATE in Ipamd(host, *as_user(NOBODY, NOGROUP)).refused()


def test_sigterm_finishes_the_request_under_way(host: Host) -> None:
    daemon = start_ipamd(host)
    with connected(host) as idle, connected(host) as client, connected(host) as later:
        with locked_database(host):
            client.send(wire.render_request(allocate("a")))
            later.send({})  # its answer shows that the daemon has read what came before
            assert later.receive() is not None
            daemon.signal(signal.SIGTERM)
            assert idle.receive() is None
            assert daemon.process.poll() is None
        said = client.receive()
        assert said is not None and "ok" in said
    assert daemon.process.wait(20) == 0
    assert holders(host) == ["a"]


def test_sigterm_ends_it_although_a_client_never_reads(host: Host) -> None:
    daemon = start_ipamd(host)
    with connected(host) as client:
        client.socket.settimeout(1)
        with pytest.raises(TimeoutError):  # nothing more fits in: the daemon waits for its answers to be read
            while True:
                client.send({"Unknown": {}})
        assert address(call(host, "ADD", "a", ONLY_THROUGH_IPAMD)) == "10.88.0.2/24"
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0


def test_a_killed_daemon_costs_nothing_and_its_socket_is_replaced(host: Host) -> None:
    daemon = start_ipamd(host)
    assert address(call(host, "ADD", "a")) == "10.88.0.2/24"
    daemon.signal(signal.SIGKILL)
    daemon.process.wait()
    assert outside_path(host, SOCKET).exists()
    assert address(call(host, "ADD", "b")) == "10.88.0.3/24"
    start_ipamd(host)
    assert address(call(host, "ADD", "c", ONLY_THROUGH_IPAMD)) == "10.88.0.4/24"


def test_a_stopped_daemon_costs_a_short_wait(host: Host) -> None:
    daemon = start_ipamd(host)
    daemon.signal(signal.SIGSTOP)
    assert address(call(host, "ADD", "a")) == "10.88.0.2/24"
    call(host, "DEL", "a").succeeded()
    daemon.signal(signal.SIGCONT)
    assert address(call(host, "ADD", "b", ONLY_THROUGH_IPAMD)) == "10.88.0.3/24"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\7garbage",
        b"\0\0\0\2[]",
        wire.pack({**wire.GREETING, "protocol": wire.PROTOCOL + 1}),
        wire.pack({"ok": {}}),
        wire.pack({"error": {"kind": "StoreBusy", "message": "come again"}}),
    ],
    ids=["hangs up", "HTTP", "garbage", "no object", "another protocol", "no greeting", "refusal"],
)
def test_what_is_no_ipamd_is_passed_over(host: Host, said: bytes) -> None:
    with in_its_place(host, lambda connection, _: connection.sendall(said)):
        assert address(call(host, "ADD", "a")) == "10.88.0.2/24"


def test_lost_after_the_hand_over_is_code_11_and_a_retry_works(host: Host) -> None:
    def greet_take_and_die(connection: socket.socket, _: int) -> None:
        connection.sendall(wire.pack(wire.GREETING))
        connection.recv(1)

    host.add_netns("a")
    conf = bridge_conf()
    with in_its_place(host, greet_take_and_die):
        error = call(host, "ADD", "b").error
        assert (error["code"], SOCKET in error["msg"]) == (11, True)
        assert host.plugin("ADD", conf, "a").code == 11
        assert call(host, "DEL", "b").code == 11
    assert address(call(host, "ADD", "b")) == "10.88.0.2/24"
    host.plugin("ADD", conf, "a").succeeded()
    for plugin, name in (("cni-bridge", "a"), ("cni-ipam", "b")):
        host.plugin("DEL", conf, name, plugin=plugin).succeeded()
    host.assert_nothing_left()


def test_half_through_ipamd_and_half_in_process(host: Host) -> None:
    start_ipamd(host)
    names = [f"c{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        added = pool.map(lambda name, env: call(host, "ADD", name, env), names, cycle([ONLY_THROUGH_IPAMD, IN_PROCESS]))
        assert len({address(each) for each in added}) == len(names)
        assert len(host.leases()) == len(names)
        deleted = pool.map(
            lambda name, env: call(host, "DEL", name, env), names, cycle([IN_PROCESS, ONLY_THROUGH_IPAMD])
        )
        assert [each.status for each in deleted] == [0] * len(names)
    host.assert_nothing_left()


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """What stops the daemon, its task, and the user of each connection so far."""

    stop: asyncio.Event
    serving: asyncio.Task[None]
    users: list[int]


@asynccontextmanager
async def in_process_daemon(settings: Settings, max_clients: int = 8) -> AsyncIterator[InProcess]:
    """A daemon in this process."""
    users: list[int] = []

    def allowed(user: int, _: set[int]) -> bool:
        users.append(user)
        return True

    store, host, stop = await Store.open(settings.database, patience=10), ToldHost(), asyncio.Event()
    ipam, registry = LocalIpam(store, settings, host), LocalRegistry(store, settings, host)
    rules = {"allowed": allowed, "max_clients": max_clients, "request_timeout": 10}
    server = Server(ipam, registry, Metrics(registry), **rules)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(settings.ipamd_socket))
    listener.listen()  # from here on clients get in: the task has not begun yet
    serving = asyncio.create_task(server.serve(listener, stop))
    yield InProcess(stop=stop, serving=serving, users=users)
    stop.set()
    await serving
    await store.close()


def settings_in(directory: Path) -> Settings:
    return Settings(state_dir=directory / "state", run_dir=directory)


@pytest.mark.parametrize("asked", ["release", "held", "allocate", "collect", "check", "status"])
def test_a_daemon_that_goes_during_a_request_is_replaced_by_the_database(tmp_path: Path, asked: str) -> None:
    settings, wanted = settings_in(tmp_path), allocate("a").wanted

    async def story() -> None:
        async with in_process_daemon(settings) as daemon, own_ipam.opened(settings, ToldHost()) as ipam:
            given = await ipam.allocate(wanted)
            assert len(daemon.users) == 1, "by the daemon"
            daemon.stop.set()
            await daemon.serving
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "release": lambda: ipam.release(wanted.owner),
                "held": lambda: ipam.held(wanted.owner),
                "allocate": lambda: ipam.allocate(wanted),
                "collect": lambda: ipam.collect("net1", frozenset()),
                "check": lambda: ipam.check(wanted, tuple(each.address for each in given.leases)),
                "status": lambda: ipam.status(wanted),
            }
            said = await calls[asked]()
            assert len(daemon.users) == 1, "not by the daemon"
        assert said == {"held": given.leases, "allocate": given}.get(asked)

    asyncio.run(story())
    assert len(leases(settings.database)) == (0 if asked in ("release", "collect") else 1)


def test_a_request_that_a_full_daemon_refuses_is_served_by_the_database(tmp_path: Path) -> None:
    settings, wanted = settings_in(tmp_path), allocate("a").wanted

    async def story() -> None:
        async with in_process_daemon(settings, max_clients=1) as daemon:
            reader, writer = await asyncio.open_unix_connection(settings.ipamd_socket)
            assert wire.is_greeting(await receive(reader))
            async with own_ipam.opened(settings, ToldHost()) as ipam:
                given = await ipam.allocate(wanted)
                assert tuple(leases(settings.database)) == given.leases
                await ipam.release(wanted.owner)
                assert leases(settings.database) == []
            assert len(daemon.users) == 2, "the daemon was asked, and not again after its refusal"
            writer.close()

    asyncio.run(story())


def test_help_needs_no_root_and_no_directory(host: Host) -> None:
    said = host.run(*as_user(NOBODY, NOGROUP), BIN / "ipamd", "--help", env={"CNI_BRIDGE_STATE_DIR": "/none"}).stdout
    assert "/etc/cni-bridge/config.yaml" in said
