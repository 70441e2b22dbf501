"""`cni-bridged` as a service: who it serves, what it bears, how it ends, and that nothing depends on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.support.bridged import RUN_DIR, SOCKET, Bridged, greets
from tests.support.chain import CniDir
from tests.support.confs import DUAL_STACK, bridge_conf, with_result
from tests.support.direct import Direct, at_once, frame
from tests.support.growth import SPARE_DELETERS
from tests.support.host import BIN, Answer, Host, Json
from tests.support.ipamd import SOCKET as IPAMD_SOCKET
from tests.support.ipamd import Ipamd, as_user, connected, outside_path, samples, wait_until

pytestmark = pytest.mark.oneshot("starts the daemon itself")

STATE = "/var/lib/cni-bridge"
CONF = bridge_conf(ipMasqBackend="nftables")
MANY = bridge_conf(ipMasqBackend="nftables", ipam={"type": "cni-ipam", "subnet": "10.88.0.0/16"})
STRANGER = as_user(12345, 12345)


def start(host: Host, *words: str | Path, arguments: tuple[str, ...] = ("--trace",), **env: str) -> Bridged:
    """A daemon that greets; it has to end well with the host."""
    host.daemon = Bridged(host, BIN / "cni-bridged", *words, arguments=arguments, env=env).started()
    return host.daemon


def add_containers(host: Host, *names: str) -> None:
    host.shell("".join(f"ip netns add {each};" for each in names))


def configure(host: Host, text: str) -> None:
    host.run("tee", "/etc/cni-bridge/config.yaml", stdin=text.encode())


def was_served(daemon: Bridged, call: str) -> bool:
    """Whether it was this daemon that did so, by its trace."""
    return any(f": {call}: " in each and "messages" in each for each in daemon.said().splitlines())


def children(daemon: Bridged) -> str:
    return "".join(each.read_text() for each in Path(f"/proc/{daemon.pid}/task").glob("*/children"))


# Its start and end


@contextmanager
def service_manager(host: Host) -> Iterator[socket.socket]:
    """Where a daemon tells its state."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.settimeout(20)
        told.bind(str(outside_path(host, "/run/notify.sock")))
        yield told


def test_what_the_service_manager_is_told(host: Host) -> None:
    with service_manager(host) as told:
        start(host, NOTIFY_SOCKET="/run/notify.sock", WATCHDOG_USEC="100000")
        said = [told.recv(100) for _ in range(4)]
        assert (said.count(b"READY=1"), said.count(b"WATCHDOG=1")) == (1, 3)
        host.stop_daemon()
        last = told.recv(100)
        while last == b"WATCHDOG=1":
            last = told.recv(100)
        assert last == b"STOPPING=1"


def test_it_is_not_ready_before_it_listens(host: Host) -> None:
    host.shell(f"mkdir -p {SOCKET}")  # where nobody can listen
    with service_manager(host) as told:
        complaint = Bridged(host, BIN / "cni-bridged", env={"NOTIFY_SOCKET": "/run/notify.sock"}).refused()
        assert f"cannot listen on {SOCKET}" in complaint
        told.setblocking(False)
        with pytest.raises(BlockingIOError):
            told.recv(100)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_and_takes_its_sockets_along(host: Host, number: signal.Signals) -> None:
    daemon = start(host)
    sockets = [outside_path(host, each) for each in (SOCKET, IPAMD_SOCKET)]
    assert [each.is_socket() for each in sockets] == [True, True]
    daemon.process.send_signal(number)
    daemon.ended()
    assert [each.exists() for each in sockets] == [False, False]
    assert host.files(RUN_DIR) == []


def test_a_socket_that_was_left_over_is_replaced(host: Host) -> None:
    outside_path(host, RUN_DIR).mkdir()
    for each in (SOCKET, IPAMD_SOCKET):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(outside_path(host, each)))
    start(host)
    with connected(host):
        pass


def test_one_that_was_killed_is_no_obstacle(host: Host) -> None:
    daemon = start(host)
    daemon.process.kill()
    daemon.process.wait()
    start(host)


SERVE_NO_ADDRESSES = "bridged: {serve_ipam: false}"


@pytest.mark.parametrize("first", ["cni-bridged", "ipamd"])
@pytest.mark.parametrize("second", ["cni-bridged", "ipamd"])
def test_who_comes_second_to_a_database_is_told_who_has_it(host: Host, first: str, second: str) -> None:
    holder = start(host).pid if first == "cni-bridged" else Ipamd(host).started().process.pid
    words = f"another daemon (process {holder}) serves the addresses in {STATE}"
    for env in ({}, {"CNI_BRIDGE_RUN_DIR": "/run/other"}):
        if second == "cni-bridged":
            assert words in Bridged(host, BIN / "cni-bridged", env=env).refused()
        else:
            other = host.start(BIN / "ipamd", stderr=subprocess.PIPE, env=env)
            assert words in other.communicate()[1].decode()
    assert greets(host) == (first == "cni-bridged")
    with connected(host):
        pass


def test_beside_ipamd_it_serves_plugins_and_asks_there(host: Host) -> None:
    configure(host, SERVE_NO_ADDRESSES)
    ipamd = Ipamd(host).started()
    daemon = start(host)
    host.add_netns("a")
    host.plugin("ADD", CONF, "a").succeeded()
    assert was_served(daemon, "ADD a")
    metrics = samples(host.run(BIN / "cni-bridgectl", "metrics").stdout)
    assert metrics["ipam_requests_total", "Allocate", "ok"] == 1
    ipamd.stop()
    host.plugin("DEL", CONF, "a").succeeded()
    assert was_served(daemon, "DEL a")
    host.assert_nothing_left()


def test_two_that_serve_no_addresses_do_not_take_each_others_place(host: Host) -> None:
    configure(host, SERVE_NO_ADDRESSES)
    first = start(host)
    assert f"{first.pid}" in Bridged(host, BIN / "cni-bridged").refused()
    host.add_netns("a")
    host.plugin("ADD", CONF, "a").succeeded()
    assert was_served(first, "ADD a")


@pytest.mark.parametrize(
    ("script", "named"),
    [
        pytest.param("echo '{' > /etc/cni-bridge/config.yaml", "/etc/cni-bridge/config.yaml", id="bad settings"),
        pytest.param("mount -o remount,ro /run", RUN_DIR, id="no run directory"),
        pytest.param(f"mount -o remount,ro {STATE}", STATE, id="no state directory"),
        pytest.param(f"echo garbage > {STATE}/ipam.db", f"{STATE}/ipam.db", id="no database"),
    ],
)
def test_why_it_does_not_start_is_one_line(host: Host, script: str, named: str) -> None:
    host.shell(script)
    assert named in Bridged(host, BIN / "cni-bridged").refused()


def test_it_ends_well_although_its_sockets_cannot_be_removed(host: Host) -> None:
    start(host)
    host.shell("mount -o remount,ro /run")
    host.stop_daemon()


def test_socket_activation(host: Host) -> None:
    host.add_netns("a")
    activator = ["systemd-socket-activate", f"--listen={SOCKET}", f"--listen={IPAMD_SOCKET}"]
    host.daemon = Bridged(host, BIN / "cni-bridged", *activator, arguments=("--trace",))
    wait_until(outside_path(host, IPAMD_SOCKET).exists, "systemd-socket-activate does not listen")
    assert not outside_path(host, f"{STATE}/ipam.db").exists(), "nothing runs before the first client"
    host.daemon.started()
    with connected(host):
        pass
    host.plugin("ADD", CONF, "a").succeeded()
    host.plugin("DEL", CONF, "a").succeeded()
    assert was_served(host.daemon, "ADD a") and was_served(host.daemon, "DEL a")
    host.stop_daemon()
    assert outside_path(host, SOCKET).exists(), "the sockets are the service manager's, who listens on"
    assert outside_path(host, IPAMD_SOCKET).exists()
    host.assert_nothing_left()


def test_health_is_whether_it_greets(host: Host) -> None:
    daemon = start(host)
    assert SOCKET in host.run(BIN / "cni-bridgectl", "health").stdout
    daemon.process.send_signal(signal.SIGSTOP)
    assert host.run(BIN / "cni-bridgectl", "health", check=False).returncode == 1
    daemon.process.send_signal(signal.SIGCONT)
    host.stop_daemon()
    done = host.run(BIN / "cni-bridgectl", "health", check=False)
    assert (done.returncode, SOCKET in done.stderr) == (1, True)


# Who is served

GREETING = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    print(client.recv(8)[:4].decode())
"""


@pytest.mark.parametrize(("user", "greeting"), [([], "cnib"), (STRANGER, "")], ids=["root", "another user"])
def test_only_its_own_user_is_greeted(host: Host, user: list[str], greeting: str) -> None:
    start(host)
    assert host.run(*user, sys.executable, "-IS", "-c", GREETING, SOCKET).stdout.strip() == greeting


@pytest.mark.parametrize(
    ("netns", "env"),
    [
        pytest.param("elsewhere", {}, id="in another network namespace"),
        pytest.param("", {"CNI_BRIDGE_STATE_DIR": "/run/other"}, id="with another state directory"),
        pytest.param("", {"CNI_BRIDGE_CONFIG": "/run/other"}, id="with other settings"),
    ],
)
def test_who_is_elsewhere_serves_himself(host: Host, netns: str, env: dict[str, str]) -> None:
    daemon = start(host)
    add_containers(host, "a", "elsewhere")
    called = {"CNI_CONTAINERID": "a", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0", "CNI_PATH": str(BIN), **env}
    for command in ("ADD", "DEL"):
        stdin = json.dumps(CONF).encode()
        host.run(BIN / "cni-bridge", netns=netns, stdin=stdin, env={**called, "CNI_COMMAND": command})
        assert ("eth0" in host.links("a")) == (command == "ADD")
        assert not was_served(daemon, f"{command} a")
    assert "cni0" in host.links(netns)
    host.assert_nothing_left()


def test_an_ipam_plugin_that_only_the_caller_sees_is_run_by_the_caller(host: Host, tmp_path: Path) -> None:
    daemon = start(host)
    plugins = CniDir(tmp_path)
    plugins.script("their-ipam", """echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.9/24"}]}'""")
    host.add_netns("a")
    called = {"CNI_CONTAINERID": "a", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0", "CNI_PATH": "/run/hidden"}
    # The directory is mounted where only this caller sees it.
    script = f"mkdir -p /run/hidden; mount --bind {tmp_path} /run/hidden; exec {BIN}/cni-bridge"
    for command in ("ADD", "DEL"):
        for ipam, served in (({"type": "their-ipam"}, False), (CONF["ipam"], True)):
            stdin = json.dumps({**CONF, "ipam": ipam}).encode()
            words = ("unshare", "--mount", "sh", "-c", script)
            host.run(*words, stdin=stdin, env={**called, "CNI_COMMAND": command})
            assert was_served(daemon, f"{command} a") == served
    host.assert_nothing_left()


# Requests that take their time

SLOW = """
if test $CNI_COMMAND = ADD; then
    echo $CNI_CONTAINERID >> /run/asked
    while ! test -e /run/go; do sleep 0.02; done
    echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.9/24"}]}'
fi
"""


@dataclass(frozen=True, slots=True)
class Slow:
    """Calls for containers whose IPAM plugin takes as long as it is let."""

    host: Host
    pool: ThreadPoolExecutor
    env: dict[str, str]

    def call(self, command: str, container: str) -> Future[Answer]:
        """An answer to come."""
        conf = bridge_conf(ipMasqBackend="nftables", ipam={"type": "slow-ipam"})
        return self.pool.submit(self.host.plugin, command, conf, container, env=self.env)

    def wait(self, container: str) -> None:
        """Until its plugin runs."""
        asked = outside_path(self.host, "/run/asked")
        wait_until(lambda: asked.exists() and container in asked.read_text().split(), f"{container} is not served")

    def let_go(self) -> None:
        """Let the plugin answer from now on."""
        self.host.shell("touch /run/go")


@pytest.fixture
def slow(host: Host, tmp_path: Path) -> Iterator[Slow]:
    plugins = CniDir(tmp_path)
    plugins.script("slow-ipam", SLOW)
    with ThreadPoolExecutor(4) as pool:
        made = Slow(host, pool, plugins.env)
        yield made
        made.let_go()


def test_what_was_begun_is_finished_before_it_ends(host: Host, slow: Slow) -> None:
    daemon = start(host)
    add_containers(host, "a", "b")
    begun = slow.call("ADD", "a")
    slow.wait("a")
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not greets(host), "it goes on listening")
    for command in ("ADD", "DEL"):
        host.plugin(command, CONF, "b").succeeded()
        assert not was_served(daemon, f"{command} b")
    assert daemon.process.poll() is None
    assert not begun.done()
    slow.let_go()
    begun.result().succeeded()
    daemon.ended()
    slow.call("DEL", "a").result().succeeded()
    host.assert_nothing_left()


def test_killed_during_a_request_it_is_code_11_and_a_retry_works(host: Host, slow: Slow) -> None:
    daemon = start(host)
    host.add_netns("a")
    begun = slow.call("ADD", "a")
    slow.wait("a")
    daemon.process.kill()
    assert begun.result().code == 11
    assert "ended before it answered" in begun.result().error["msg"]
    slow.let_go()
    daemon.process.wait()
    for served in (False, True):
        later = start(host) if served else daemon
        for command in ("ADD", "DEL"):
            slow.call(command, "a").result().succeeded()
            assert was_served(later, f"{command} a") == served
        host.assert_nothing_left()


def test_one_container_that_waits_keeps_no_other_waiting(host: Host, slow: Slow) -> None:
    daemon = start(host)
    add_containers(host, "a", "b")
    begun = slow.call("ADD", "a")
    slow.wait("a")
    for command in ("ADD", "DEL"):
        host.plugin(command, CONF, "b").succeeded()
    later = slow.call("DEL", "a")
    time.sleep(0.3)
    assert (begun.done(), later.done()) == (False, False), "its own have to wait for each other"
    slow.let_go()
    begun.result().succeeded()
    later.result().succeeded()
    assert was_served(daemon, "DEL a")
    host.assert_nothing_left()


def test_an_ipam_plugin_that_calls_one_of_ours_needs_no_turn_of_its_own(host: Host, tmp_path: Path) -> None:
    """Or those who wait for it would be who keeps it waiting."""
    configure(host, "{request_timeout: 6, bridged: {max_requests: 2}}")
    start(host)
    plugins = CniDir(tmp_path)
    plugins.script("their-ipam", f"exec {BIN}/cni-ipam")
    names = [f"c{number}" for number in range(4)]
    add_containers(host, *names)
    conf = {**MANY, "ipam": {**MANY["ipam"], "type": "their-ipam"}}
    with ThreadPoolExecutor(len(names)) as pool:
        for command in ("ADD", "DEL"):
            calls = [pool.submit(host.plugin, command, conf, each, env=plugins.env) for each in names]
            for each in calls:
                each.result().succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("first", ["ADD", "DEL"])
def test_requests_of_one_container_do_not_mix(host: Host, first: str) -> None:
    start(host)
    host.add_netns("a")
    other = "DEL" if first == "ADD" else "ADD"
    for _ in range(10):
        with Direct(host) as one, Direct(host) as two:
            one.call(first, CONF, "a")
            two.call(other, CONF, "a")
            one.answer().succeeded()
            two.answer().succeeded()
        if "eth0" in host.links("a"):
            result = host.plugin("ADD", CONF, "a").result
            host.plugin("CHECK", with_result(CONF, result), "a").succeeded()
            host.plugin("DEL", CONF, "a").succeeded()
        host.assert_nothing_left()


def test_one_that_waits_for_another_programs_lock_keeps_no_other_waiting(host: Host) -> None:
    start(host)
    add_containers(host, "a", "b")
    ipam = {"type": "cni-ipam", "subnet": "10.99.0.0/24"}
    iptables = bridge_conf(name="net2", bridge="cni1", ipMasqBackend="iptables", ipam=ipam)
    published = {
        **CONF,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    }
    holder = host.start("flock", "--no-fork", "/run/xtables.lock", "sh", "-c", "echo; exec sleep infinity", stdout=-1)
    assert holder.stdout.readline() == b"\n"
    with Direct(host) as waiting:
        waiting.call("ADD", iptables, "b")
        time.sleep(0.2)
        began = time.monotonic()
        for conf in (CONF, published):
            host.plugin("ADD", conf, "a").succeeded()
            host.plugin("DEL", conf, "a").succeeded()
        assert time.monotonic() - began < 5, "it has ten seconds for the lock"
        holder.kill()
        holder.wait()
        waiting.answer().succeeded()
    host.plugin("DEL", iptables, "b").succeeded()
    host.assert_nothing_left()


def test_a_del_comes_after_the_add_whose_client_was_killed(host: Host) -> None:
    """Although another request waits meanwhile, for a lock that another program holds."""
    start(host)
    add_containers(host, "a", "b")
    ipam = {"type": "cni-ipam", "subnet": "10.99.0.0/24"}
    iptables = bridge_conf(name="net2", bridge="cni1", ipMasqBackend="iptables", ipam=ipam)
    holder = host.start("flock", "--no-fork", "/run/xtables.lock", "sh", "-c", "echo; exec sleep infinity", stdout=-1)
    assert holder.stdout.readline() == b"\n"
    with Direct(host) as busy, Direct(host) as deleting:
        busy.call("ADD", iptables, "b")
        time.sleep(0.2)
        with Direct(host) as killed:
            killed.call("ADD", CONF, "a")
            time.sleep(0.1)
        deleting.call("DEL", CONF, "a")
        time.sleep(0.1)
        holder.kill()
        holder.wait()
        busy.answer().succeeded()
        deleting.answer().succeeded()
    host.plugin("DEL", iptables, "b").succeeded()
    host.stop_daemon()  # which ends what it still does
    host.assert_nothing_left()


def timed(host: Host, conf: Json, added: str, deleted: str) -> tuple[float, Json]:
    """The seconds of an ADD and a DEL, and the result of the former."""
    began = time.monotonic()
    result = host.plugin("ADD", conf, added).result
    host.plugin("DEL", conf, deleted).succeeded()
    return time.monotonic() - began, result


def test_stopped_by_a_signal_it_is_done_without_until_it_goes_on(host: Host) -> None:
    add_containers(host, "a", "b")
    alone, _ = timed(host, CONF, "b", "b")
    daemon = start(host)
    host.plugin("ADD", CONF, "a").succeeded()
    daemon.process.send_signal(signal.SIGSTOP)
    beside, result = timed(host, CONF, "b", "a")
    print(f"{beside:.2f} s for an ADD and a DEL beside a daemon that does nothing, {alone:.2f} s without one")
    assert beside - alone < 4, "four greetings are waited for, 300 ms each, and no answer"
    daemon.process.send_signal(signal.SIGCONT)
    assert not was_served(daemon, "ADD b") and not was_served(daemon, "DEL a")
    host.plugin("CHECK", with_result(CONF, result), "b").succeeded()
    host.plugin("ADD", CONF, "a").succeeded()
    for name in "ab":
        host.plugin("DEL", CONF, name).succeeded()
        assert was_served(daemon, f"DEL {name}")
    host.assert_nothing_left()


class Worker:
    """Attaches and detaches containers one after another until told to stop; what was wrong is in `wrong`."""

    held: dict[str, str] = {}  # noqa: RUF012 - by all workers: whose each address is

    def __init__(self, host: Host, number: int, enough: threading.Event) -> None:
        self._host, self._netns, self._enough = host, f"w{number}", enough
        self.rounds, self.retries = 0, 0

    def run(self) -> None:
        for number in count():
            container = f"{self._netns}-{number}"
            answer = self._call("ADD", MANY, container)
            address = answer.result["ips"][0]["address"]
            assert self.held.setdefault(address, container) == container, f"{address} is given twice"
            sent = with_result(MANY, answer.result) if number % 2 else MANY
            del self.held[address]  # from here on it may be another's
            self._call("DEL", sent, container)
            self.rounds += 1
            if self._enough.is_set():
                return

    def _call(self, command: str, conf: Json, container: str) -> Answer:
        for _ in range(10):
            answer = self._host.plugin(command, conf, container, netns=f"/run/netns/{self._netns}")
            if answer.status == 0:
                return answer
            assert answer.code == 11, answer
            self.retries += 1
        raise AssertionError(f"{command} {container} never succeeds: {answer}")


@pytest.mark.timeout(300)
def test_restarts_under_load_lose_nothing(host: Host) -> None:
    enough = threading.Event()
    workers = [Worker(host, number, enough) for number in range(8)]
    add_containers(host, *(f"w{number}" for number in range(8)))
    start(host)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(each.run) for each in workers]
        try:
            for _ in range(5):
                time.sleep(0.5)
                host.stop_daemon()
                time.sleep(0.1)
                start(host)
            time.sleep(0.5)
        finally:
            enough.set()
        for each in running:
            each.result()
    print(f"{sum(each.rounds for each in workers)} rounds, {sum(each.retries for each in workers)} retries")
    host.assert_nothing_left()


# DELs that nobody took


@pytest.fixture
def lone(tmp_path: Path) -> Path:
    """A client without a one-shot program."""
    return Path(shutil.copy(BIN / "cni-bridge", tmp_path / "cni-bridge"))


def test_a_kept_del_is_done_at_the_next_start(host: Host, lone: Path) -> None:
    add_containers(host, "a", "b")
    for name in "ab":
        host.plugin("ADD", CONF, name).succeeded()
        answer = host.plugin("DEL", CONF, name, plugin=lone)
        assert (answer.code, "the DEL is kept" in answer.error["msg"]) == (11, True)
    assert len(host.files(f"{RUN_DIR}/undelivered")) == 2
    start(host)
    host.assert_nothing_left()
    assert host.files(f"{RUN_DIR}/undelivered") == []


def test_a_kept_del_is_done_before_the_next_call(host: Host, lone: Path) -> None:
    daemon = start(host)
    add_containers(host, "a", "b")
    host.plugin("ADD", CONF, "a").succeeded()
    for command in ("STATUS", "ADD"):  # of whatever container; the last one of its own
        daemon.process.send_signal(signal.SIGSTOP)
        assert "the DEL is kept" in host.plugin("DEL", CONF, "a", plugin=lone).error["msg"]
        daemon.process.send_signal(signal.SIGCONT)
        assert len(host.files(f"{RUN_DIR}/undelivered")) == 1
        host.plugin(command, CONF, "a", plugin=lone).succeeded()
        assert ("eth0" in host.links("a")) == (command == "ADD")
        assert host.files(f"{RUN_DIR}/undelivered") == []
    host.plugin("DEL", CONF, "a").succeeded()
    host.assert_nothing_left()


UNWELL = """
if test $CNI_COMMAND = ADD; then
    echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.9/24"}]}'
elif test ! -e /run/well; then
    echo '{"code": 50, "msg": "no lease server answers"}'
    exit 1
fi
"""


def test_a_kept_del_that_fails_is_told_and_tried_again_at_the_next_start(
    host: Host, lone: Path, tmp_path: Path
) -> None:
    plugins = CniDir(tmp_path)
    plugins.script("unwell-ipam", UNWELL)
    conf = bridge_conf(ipam={"type": "unwell-ipam"})
    host.add_netns("a")
    host.plugin("ADD", conf, "a", env=plugins.env).succeeded()
    host.plugin("DEL", conf, "a", plugin=lone, env=plugins.env)
    daemon = start(host)
    (kept,) = host.files(f"{RUN_DIR}/undelivered")
    host.plugin("STATUS", CONF).succeeded()
    assert daemon.said().count("DEL a: ") == 1, "it is tried once"
    assert Path(kept).name in daemon.said()
    assert "no lease server answers" in daemon.said()
    host.stop_daemon()
    host.shell("touch /run/well")
    start(host)
    assert host.files(f"{RUN_DIR}/undelivered") == []
    host.assert_nothing_left()


def test_a_kept_del_that_failed_is_not_done_to_who_comes_later(host: Host, lone: Path, tmp_path: Path) -> None:
    """A container of the same name, once the first one was detached after all."""
    plugins = CniDir(tmp_path)
    plugins.script("unwell-ipam", UNWELL)
    conf = bridge_conf(ipam={"type": "unwell-ipam"})
    host.add_netns("a")
    host.plugin("ADD", conf, "a", env=plugins.env).succeeded()
    host.plugin("DEL", conf, "a", plugin=lone, env=plugins.env)
    start(host)
    host.shell("touch /run/well")
    for command in ("DEL", "ADD"):
        host.plugin(command, conf, "a", env=plugins.env).succeeded()
    host.stop_daemon()
    start(host)
    assert "eth0" in host.links("a")
    host.plugin("DEL", conf, "a", env=plugins.env).succeeded()
    host.assert_nothing_left()


def request_of(command: str, **env: str) -> bytes:
    return frame(command, CONF, "a", env)[4:]


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        pytest.param("cat /run/add > kept", True, id="no DEL"),
        pytest.param("echo garbage > kept", True, id="garbage"),
        pytest.param(": > kept", True, id="empty"),
        pytest.param("ln -s /run/delete kept", True, id="link"),
        pytest.param("mkfifo kept", True, id="FIFO"),
        pytest.param("mkdir kept", True, id="directory"),
        pytest.param("cp /run/delete kept; chown 12345 kept", True, id="another user's"),
        pytest.param("cp /run/elsewhere kept", True, id="of another state directory"),
        pytest.param("cp /run/delete .kept", False, id="draft"),
    ],
)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_no_kept_del_is_left_alone(host: Host, planted: str, told: bool, when: str) -> None:
    host.add_netns("a")
    host.plugin("ADD", CONF, "a").succeeded()
    elsewhere = request_of("DEL", CNI_BRIDGE_STATE_DIR="/run/other")
    for name, request in (("add", request_of("ADD")), ("delete", request_of("DEL")), ("elsewhere", elsewhere)):
        outside_path(host, f"/run/{name}").write_bytes(request)
    plant = f"mkdir -p {RUN_DIR}/undelivered; cd {RUN_DIR}/undelivered; {planted}"
    if when == "before":
        host.shell(plant)
    daemon = start(host)
    if when == "meanwhile":
        host.shell(plant)
    for _ in range(2):
        host.plugin("STATUS", CONF).succeeded()
    assert was_served(daemon, "STATUS ")
    assert len([each for each in daemon.said().splitlines() if f"{RUN_DIR}/undelivered/kept" in each]) == told
    assert len(list(outside_path(host, f"{RUN_DIR}/undelivered").iterdir())) == 1
    assert "eth0" in host.links("a")
    host.plugin("DEL", CONF, "a").succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("planted", ["touch", "ln -s nowhere"])
def test_it_serves_where_nothing_can_be_kept(host: Host, planted: str) -> None:
    host.shell(f"mkdir {RUN_DIR}; {planted} {RUN_DIR}/undelivered")
    daemon = start(host)
    host.plugin("STATUS", CONF).succeeded()
    assert was_served(daemon, "STATUS ")


# Many at once


def test_many_at_once_share_what_takes_long(host: Host) -> None:
    start(host)
    names = [f"c{number}" for number in range(24)]
    add_containers(host, *names)
    host.shell("ip link add veth00000001 group 7 type veth peer name other; ip link set veth00000001 alias 'not ours'")
    added = at_once(host, "ADD", MANY, names)
    assert len({each.result["ips"][0]["address"] for each in added}) == len(names)
    monitor = host.start("ip", "monitor", "link", stdout=subprocess.PIPE)
    time.sleep(0.2)
    for answer in at_once(host, "DEL", MANY, names):
        answer.succeeded()
    monitor.terminate()
    events = [each.split() for each in monitor.communicate()[0].decode().splitlines()]
    groups = {each[each.index("group") + 1] for each in events if "group" in each} - {"default"}
    deleted = {each[2] for each in events if each[0] == "Deleted"}
    print(f"{len(deleted)} links in {len(groups)} groups")
    assert len(groups) <= len(names) / 4, "their links were not deleted together"
    assert "veth00000001" in host.links()
    host.shell("ip link del veth00000001")
    host.assert_nothing_left()


def test_nothing_is_said_of_rules_that_were_flushed_when_none_were(host: Host) -> None:
    """The first attachments of a host, at once: each is recorded before there are rules."""
    daemon = start(host)
    names = [f"c{number}" for number in range(16)]
    add_containers(host, *names)
    for command in ("ADD", "DEL"):
        for answer in at_once(host, command, MANY, names):
            answer.succeeded()
    assert "flushed" not in daemon.said()
    host.assert_nothing_left()


@pytest.mark.parametrize("conf", [CONF, bridge_conf(ipMasqBackend="nftables", ipam=DUAL_STACK)], ids=["v4", "dual"])
def test_an_attachment_to_a_warm_daemon_lists_nothing_and_executes_nothing(host: Host, conf: Json) -> None:
    daemon = start(host)
    names = [f"c{number}" for number in range(51)]
    add_containers(host, *names)
    host.plugin("ADD", conf, names[0]).succeeded()
    enough, seen = threading.Event(), set[str]()

    def watch() -> None:
        while not enough.is_set():
            seen.add(children(daemon))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        for name in names[1:]:
            host.plugin("ADD", conf, name).succeeded()
        enough.set()
        watching.result()
    assert seen == {""}
    waited_for = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[8]  # cminflt, proc(5)
    assert waited_for == "0", "a child has ended"
    traced = [each for each in daemon.said().splitlines() if ": ADD c" in each][1:]
    assert len(traced) == 50
    for each in traced:
        assert re.fullmatch(r"\d+ messages", each.rpartition("; ")[2]), each
    for answer in at_once(host, "DEL", conf, names):
        answer.succeeded()
    host.assert_nothing_left()


def test_metrics_tell_how_long_requests_and_their_steps_took(host: Host) -> None:
    start(host)
    host.add_netns("a")
    host.plugin("ADD", CONF, "a").succeeded()
    assert host.plugin("ADD", {**CONF, "bridge": ""}, "a", ifname="/").status == 1
    host.plugin("DEL", CONF, "a").succeeded()
    found = samples(host.run(BIN / "cni-bridgectl", "metrics").stdout)
    for command, status in (("ADD", "0"), ("ADD", "1"), ("DEL", "0")):
        assert found["cni_bridge_request_seconds_count", command, "cni-bridge", status] == 1
    for command, step in (("ADD", "ipam"), ("ADD", "links"), ("ADD", "rules"), ("DEL", "links"), ("DEL", "rules")):
        assert found["cni_bridge_step_seconds_count", command, step] == 1
        assert 0 < found["cni_bridge_step_seconds_sum", command, step] < 30
    host.assert_nothing_left()


def resident(daemon: Bridged) -> float:
    """Its memory in MiB, proc(5)."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_memory_with_200_attachments(host: Host) -> None:
    daemon = start(host)
    names = [f"c{number}" for number in range(200)]
    add_containers(host, *names)
    fresh = resident(daemon)
    for first in range(0, 200, 20):
        for answer in at_once(host, "ADD", MANY, names[first : first + 20]):
            answer.succeeded()
    print(f"{fresh:.1f} MiB after the start, {resident(daemon):.1f} MiB with 200 attachments")
    assert resident(daemon) <= 64
    for answer in at_once(host, "DEL", MANY, names):
        answer.succeeded()
    host.assert_nothing_left()


def descriptors(daemon: Bridged) -> int:
    """How many it has open, once it has closed those of calls that were answered."""
    found = []
    for _ in range(10):
        found.append(len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())))
        time.sleep(0.01)
    return min(found)


def test_nothing_grows_with_requests(host: Host) -> None:
    daemon = start(host)
    names = [f"c{number}" for number in range(8)]
    add_containers(host, *names)

    def rounds(number: int) -> tuple[int, int, float]:
        for _ in range(number):
            for command in ("ADD", "DEL"):
                for answer in at_once(host, command, MANY, names):
                    answer.succeeded()
        return descriptors(daemon), len(list(Path(f"/proc/{daemon.pid}/task").iterdir())), resident(daemon)

    *first, before = rounds(5)
    *then, after = rounds(25)
    print(f"{then[0]} descriptors, {then[1]} threads, {before:.1f} MiB, then {after:.1f} MiB")
    assert all(now <= former + SPARE_DELETERS for now, former in zip(then, first, strict=True))
    assert after - before < 4
    host.assert_nothing_left()


# Clients that are none


def body(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


@pytest.mark.parametrize(
    ("sent", "descriptors_sent"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 0, id="of another protocol"),
        pytest.param(b"\xff\xff\xff\xff" + bytes(100_000), 0, id="of a length beyond reason"),
        pytest.param(body(b""), 1, id="empty"),
        pytest.param(body(b"no environment"), 1, id="without an environment"),
        pytest.param(body(os.urandom(100_000).replace(b"\0", b"x")), 1, id="random"),
        pytest.param(frame("ADD", CONF, "a"), 0, id="without descriptors"),
        pytest.param(frame("ADD", CONF, "a"), 1, id="with a descriptor of something else"),
        pytest.param(frame("ADD", CONF, "a"), 3, id="with three descriptors"),
        pytest.param(frame("ADD", CONF, "a"), 200, id="with many descriptors"),
        pytest.param(frame("ADD", CONF, "a")[:-1], 1, id="not whole"),
        pytest.param(b"\0", 2, id="not even a length"),
    ],
)
def test_what_is_no_request_is_not_served_and_harms_nobody(host: Host, sent: bytes, descriptors_sent: int) -> None:
    daemon = start(host)
    host.add_netns("a")
    for command in ("ADD", "DEL", "ADD"):
        host.plugin(command, CONF, "a").succeeded()
    before = descriptors(daemon)
    with open("/dev/null") as null, Direct(host) as hostile:
        with suppress(BrokenPipeError):  # it reads no further
            hostile.send(sent, [null.fileno()] * descriptors_sent)
            hostile.socket.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            assert hostile.socket.recv(100) in (b"", bytes(8) + b"\xff"), "declined, if anything is said"
    host.plugin("DEL", CONF, "a").succeeded()
    assert was_served(daemon, "DEL a")
    assert descriptors(daemon) == before
    host.assert_nothing_left()


def test_300_that_say_nothing_keep_nobody_waiting(host: Host) -> None:
    daemon = start(host)
    host.add_netns("a")
    with ExitStack() as idle:
        connections = [idle.enter_context(Direct(host)) for _ in range(300)]
        for each in connections[::3]:
            each.send(b"\0\0")
        for command in ("ADD", "DEL"):
            host.plugin(command, CONF, "a").succeeded()
            assert was_served(daemon, f"{command} a")
        host.stop_daemon()
        assert all(each.is_closed() for each in connections)
    host.assert_nothing_left()


def test_as_many_calls_at_once_as_a_service_has_descriptors(host: Host) -> None:
    """Which are 1024 at first, as systemd has it, and three for each call."""
    start(host, "prlimit", "--nofile=1024:")
    answers = at_once(host, "STATUS", CONF, [f"c{number}" for number in range(600)])
    assert [each.status for each in answers] == [0] * 600


def states(daemon: Bridged) -> str:
    """What its main thread was found to do, proc(5): S when it waits."""
    found = ""
    for _ in range(20):
        found += Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(") ")[2][0]
        time.sleep(0.01)
    return found


def test_more_connections_than_it_may_have_descriptors(host: Host) -> None:
    daemon = start(host, "prlimit", "--nofile=64:64")
    host.add_netns("a")
    host.plugin("ADD", CONF, "a").succeeded()
    with ExitStack() as idle:
        for _ in range(100):
            client = idle.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(outside_path(host, SOCKET)))
        time.sleep(0.2)
        assert "S" in states(daemon), "it does nothing but try"
        host.plugin("DEL", CONF, "a").succeeded()
        host.plugin("ADD", CONF, "a").succeeded()
    host.plugin("DEL", CONF, "a").succeeded()
    assert was_served(daemon, "DEL a")
    host.assert_nothing_left()


def test_a_client_that_leaves_without_its_answer(host: Host) -> None:
    daemon = start(host)
    names = [f"c{number}" for number in range(10)]
    add_containers(host, *names)
    for name in names:
        with Direct(host) as client:
            client.call("ADD", CONF, name)
    daemon.hears(": ADD c", len(names))
    for answer in at_once(host, "DEL", CONF, names):
        answer.succeeded()
    host.assert_nothing_left()


# Settings that change


def cooling(host: Host) -> int:
    """How many addresses of the only pool are at rest, as the daemon counts them."""
    (pool,) = json.loads(host.run(BIN / "cni-bridgectl", "pools", "--json").stdout)
    return int(pool["cooling"])


@pytest.mark.parametrize("told_by", ["the next call", "SIGHUP"])
def test_settings_are_followed(host: Host, told_by: str) -> None:
    daemon = start(host)
    host.add_netns("a")
    for command in ("ADD", "DEL"):
        host.plugin(command, CONF, "a").succeeded()
    assert cooling(host) == 1
    configure(host, "{log_level: info, addresses: {cooldown: 0}}")
    if told_by == "SIGHUP":
        daemon.process.send_signal(signal.SIGHUP)
        daemon.hears("the settings were read again")
    else:
        said = host.plugin("STATUS", CONF).succeeded().stderr
        assert "the settings were read again" in daemon.said()
        assert "STATUS" in said
    assert cooling(host) == 0
    host.assert_nothing_left()


def test_settings_that_cannot_be_used_are_answered_as_without_a_daemon(host: Host) -> None:
    daemon = start(host)
    host.add_netns("a")
    host.plugin("ADD", CONF, "a").succeeded()
    configure(host, "addresses: {warmup: 1}")
    error = host.plugin("DEL", CONF, "a").error
    assert (error["code"], "addresses.warmup" in error["msg"]) == (5, True)
    assert "addresses.warmup" in daemon.said()
    assert not was_served(daemon, "DEL a")
    configure(host, "")
    host.plugin("DEL", CONF, "a").succeeded()
    assert was_served(daemon, "DEL a")
    host.assert_nothing_left()


@pytest.mark.parametrize("text", ["bridged: {max_requests: 2}", "state_dir: /run/other"])
def test_settings_that_need_a_restart_are_the_callers_own(host: Host, text: str) -> None:
    daemon = start(host)
    host.add_netns("a")
    host.plugin("ADD", CONF, "a").succeeded()
    configure(host, text)
    host.plugin("DEL", CONF, "a").succeeded()
    assert not was_served(daemon, "DEL a")
    assert "need a restart" in daemon.said()
    host.stop_daemon()
    start(host)
    host.plugin("DEL", CONF, "a").succeeded()
    assert was_served(host.daemon, "DEL a")
    configure(host, "")
    host.stop_daemon()
    host.assert_nothing_left()
