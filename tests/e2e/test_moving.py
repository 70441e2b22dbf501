"""Leases move from Debian's `host-local` on a running host to ours and back, and from one database to another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import serve_ipam
from tests.support.chain import CniDir
from tests.support.confs import with_result
from tests.support.ctl import DATABASE, STATE, ctl, ctl_json
from tests.support.host import REFERENCE, Answer, Host, Json
from tests.support.ipamd import ONLY_THROUGH_IPAMD, outside_path, start_ipamd

NETWORKS = "/var/lib/cni/networks"
CONFIGURATION = "/etc/cni/net.d/10-net1.conflist"
BRIDGE, HOST_LOCAL = REFERENCE / "bridge", REFERENCE / "host-local"
IPV4 = {"subnet": "10.201.0.0/29"}  # .2 to .6
IPV6 = {"subnet": "fd00:201::/125", "rangeEnd": "fd00:201::6"}
CONF: Json = {
    "cniVersion": "1.0.0",
    "name": "net1",
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipam": {"type": "host-local", "ranges": [[IPV4], [IPV6]]},
}


@pytest.fixture
def ours(tmp_path: Path) -> CniDir:
    """Where a runtime finds ours under the name `host-local`."""
    plugins = CniDir(tmp_path)
    plugins.link("host-local", "cni-ipam")
    return plugins


def at(last: int) -> list[str]:
    """An address of each range set."""
    return [f"10.201.0.{last}", f"fd00:201::{last}"]


def given(answer: Answer) -> list[str]:
    return [each["address"].split("/")[0] for each in answer.result["ips"]]


def ask(host: Host, command: str, container: str, plugins: CniDir | None = None, conf: Json = CONF) -> Answer:
    """Call the IPAM plugin `host-local`: ours if it is found there, else Debian's."""
    return host.plugin(command, conf, container, plugin=plugins.find("host-local") if plugins else HOST_LOCAL)


def holders(host: Host) -> dict[str, str]:
    return {each["address"].split("/")[0]: each["container_id"] for each in ctl_json(host, "leases")}


def files(host: Host, network: str = "net1") -> dict[str, str]:
    """What Debian's `host-local` has noted."""
    directory = outside_path(host, f"{NETWORKS}/{network}")
    return {each.name: each.read_bytes().decode() for each in directory.iterdir() if each.name != "lock"}


def containers(noted: dict[str, str]) -> dict[str, str]:
    """Which container has which address, by such files."""
    return {name: text.split("\r\n")[0] for name, text in noted.items() if not name.startswith("last_")}


def note(host: Host, name: str, text: str, network: str = "net1") -> None:
    """Have a file there as other versions of `host-local`, or a crash, left it."""
    path = outside_path(host, f"{NETWORKS}/{network}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def configure(host: Host, conf: Json = CONF, path: str = CONFIGURATION) -> None:
    """Write the network's configuration as runtimes read it, behind a plugin that has nothing to do with addresses."""
    plugin = {key: value for key, value in conf.items() if key not in ("name", "cniVersion")}
    of_all = {key: conf[key] for key in ("name", "cniVersion")}
    outside_path(host, path).parent.mkdir(exist_ok=True)
    outside_path(host, path).write_text(json.dumps({**of_all, "plugins": [{"type": "loopback"}, plugin]}))


def move_in(host: Host, *words: str, status: int = 0, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """What the import says."""
    done = ctl(host, "import", "host-local", "net1", *words, status=status, stdin=stdin, env=env)
    return done.stdout + done.stderr


def test_a_running_host_moves_to_ours_and_back(host: Host, ours: CniDir, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    env = ONLY_THROUGH_IPAMD if ipam_path == "ipamd" else {}
    results = {}
    for name in "abcd":
        host.add_netns(name)
        results[name] = host.plugin("ADD", CONF, name, plugin=BRIDGE).result
    host.plugin("DEL", CONF, "b", plugin=BRIDGE).succeeded()
    note(host, "10.201.0.6", "")
    before = files(host)
    configure(host, path="/run/net1.conflist")
    words = ("--directory", NETWORKS, "--conf", "/run/net1.conflist")
    said = move_in(host, *words, "--yes", env=env)
    assert "passed over 10.201.0.6: its file is empty, no container got it" in said
    assert "6 leases of network net1 are imported" in said
    moved = dict.fromkeys(at(2), "a") | dict.fromkeys(at(4), "c") | dict.fromkeys(at(5), "d")
    assert holders(host) == moved
    move_in(host, *words, "--yes", env=env)
    assert (holders(host), files(host)) == (moved, before)

    for name, last in (("a", 2), ("c", 4), ("d", 5)):
        assert given(ask(host, "ADD", name, ours)) == at(last)
        host.plugin("CHECK", with_result(CONF, results[name]), name, plugin=BRIDGE, env=ours.env).succeeded()
    host.ping("10.201.0.1", "a")
    for name, last in (("e", 6), ("f", 3)):  # behind the last one, and round to the one that is free
        host.add_netns(name)
        assert given(host.plugin("ADD", CONF, name, plugin=BRIDGE, env=ours.env)) == at(last)
    assert ask(host, "ADD", "g", ours).code == 101
    host.plugin("DEL", with_result(CONF, results["d"]), "d", plugin=BRIDGE, env=ours.env).succeeded()
    assert given(ask(host, "ADD", "g", ours)) == at(5)
    held = holders(host)
    assert "10.201.0.5 of net1/d/eth0 is held by net1/g/eth0" in move_in(host, *words, "--yes", status=1, env=env)
    assert holders(host) == held

    where = ("--directory", NETWORKS)
    assert f"{NETWORKS}/net1/" in ctl(host, "export", "net1", *where, status=1, env=env).stderr
    host.shell(f"mv {NETWORKS}/net1 {NETWORKS}/net1.old")
    assert "10 leases" in ctl(host, "export", "net1", *where, env=env).stdout
    assert containers(files(host)) == held == holders(host)
    for name in "ace":
        host.plugin("DEL", CONF, name, plugin=BRIDGE).succeeded()
    assert set(containers(files(host))) == {*at(3), *at(5)}
    assert given(ask(host, "ADD", "h")) == at(6)  # behind the last one that ours gave, which is .5


def test_what_former_versions_left_is_moved_too(host: Host, ours: CniDir) -> None:
    configure(host)
    for address in at(3):
        note(host, address, "a")  # without the interface
    note(host, "last_reserved_ip.0", "10.201.0.4")
    note(host, "remarks", "a")
    assert "passed over remarks: this is no address" in move_in(host, "--yes")
    result = ask(host, "ADD", "a", ours)
    assert given(result) == at(3)
    ask(host, "CHECK", "a", ours, with_result(CONF, result.result)).succeeded()
    assert given(ask(host, "ADD", "b", ours)) == ["10.201.0.5", "fd00:201::2"]
    ask(host, "DEL", "a", ours).succeeded()
    assert set(holders(host).values()) == {"b"}


def test_an_import_shows_no_progress_where_nobody_looks(host: Host) -> None:
    configure(host)
    note(host, "10.201.0.3", "a\r\neth0")
    done = ctl(host, "import", "host-local", "net1", "--yes")
    assert done.stderr == "1 leases of network net1\n"
    assert done.stdout == "1 leases of network net1 are imported\n"


def test_an_import_may_be_repeated_after_the_first_of_our_answers(host: Host, ours: CniDir) -> None:
    configure(host)
    note(host, "10.201.0.3", "a")  # without the interface, which ours knows from then on
    move_in(host, "--yes")
    ask(host, "ADD", "a", ours).succeeded()
    before = holders(host)
    move_in(host, "--yes")
    assert holders(host) == before


def test_an_old_lease_goes_back_as_it_came(host: Host) -> None:
    configure(host)
    note(host, "10.201.0.3", "a")
    move_in(host, "--yes")
    host.shell(f"rm -r {NETWORKS}/net1")
    ctl(host, "export", "net1")
    assert files(host) == {"10.201.0.3": "a\r\n"}
    ask(host, "DEL", "a").succeeded()
    assert containers(files(host)) == {}


@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param([[IPV4], [IPV6]], id="in order of address"),
        pytest.param([[IPV6], [IPV4]], id="in another order"),
        pytest.param([[{"subnet": "10.201.9.0/29"}], [IPV4]], id="a higher subnet before a lower"),
        pytest.param([[{"subnet": "10.201.9.0/29"}, IPV4], [IPV6]], id="with a second range before"),
    ],
)
def test_every_range_set_goes_on_behind_its_last_address(host: Host, ours: CniDir, ranges: list[Json]) -> None:
    conf = {**CONF, "ipam": {"type": "host-local", "ranges": ranges}}
    for name in "ab":
        ask(host, "ADD", name, ours, conf).succeeded()
    ask(host, "DEL", "b", ours, conf).succeeded()
    ctl(host, "export", "net1")
    assert all(each.endswith((".4", ":4")) for each in given(ask(host, "ADD", "c", conf=conf)))


def test_where_range_sets_stand_is_written_in_the_order_of_the_configuration(host: Host, ours: CniDir) -> None:
    high = {"subnet": "10.201.9.0/29"}
    conf = {**CONF, "ipam": {"type": "host-local", "ranges": [[high], [IPV6], [IPV4]]}}
    requested = {**conf, "args": {"cni": {"ips": ["fd00:201::5"]}}}
    assert given(ask(host, "ADD", "a", ours, requested)) == ["10.201.9.2", "fd00:201::5", "10.201.0.2"]
    ctl(host, "export", "net1")
    last = {name: text for name, text in files(host).items() if name.startswith("last_")}
    assert last == {"last_reserved_ip.0": "10.201.9.2", "last_reserved_ip.2": "10.201.0.2"}, "the second gave nothing"
    assert given(ask(host, "ADD", "b", conf=conf)) == ["10.201.9.3", "fd00:201::2", "10.201.0.3"]
    host.shell(f"rm -r {NETWORKS}/net1")
    assert given(ask(host, "ADD", "c", ours, conf)) == ["10.201.9.3", "fd00:201::2", "10.201.0.3"]
    ctl(host, "export", "net1")
    assert {name: text for name, text in files(host).items() if name.startswith("last_")} == {
        "last_reserved_ip.0": "10.201.9.3",
        "last_reserved_ip.1": "fd00:201::2",
        "last_reserved_ip.2": "10.201.0.3",
    }


def test_what_cannot_be_moved(host: Host) -> None:
    assert 'no plugin with ipam of a network "net1" in /etc/cni/net.d' in move_in(host, status=1)
    outside_path(host, "/run/bad.json").write_text("{")
    assert "/run/bad.json" in move_in(host, "--conf", "/run/bad.json", status=1)
    move_in(host, "--conf", "/run/nothing", status=2)
    configure(host)
    assert f"{NETWORKS}/net1" in move_in(host, status=1)
    note(host, "10.201.0.2", "a\r\neth0")
    said = move_in(host, stdin="n\n", status=1)
    assert "1 leases of network net1" in said and "Import them?" in said
    assert ctl_json(host, "pools") == []
    assert 'network "net1" has no pool' in ctl(host, "export", "net1", status=1).stderr


@pytest.mark.parametrize("plugins", [None, 5, {}, [None]])
def test_a_configuration_that_is_no_network_is_named(host: Host, plugins: object) -> None:
    text = json.dumps({"name": "net1", "cniVersion": "1.0.0", "plugins": plugins})
    outside_path(host, "/run/bad.json").write_text(text)
    assert "/run/bad.json" in move_in(host, "--conf", "/run/bad.json", status=1)


def test_a_dump_is_loaded_into_an_empty_database_while_no_daemon_runs(host: Host, ours: CniDir) -> None:
    daemon = start_ipamd(host)
    for name in "abc":
        ask(host, "ADD", name, ours).succeeded()
    ask(host, "DEL", "b", ours).succeeded()
    ctl(host, "reserve", "10.201.0.5", "--name", "[red]")
    ctl(host, "dump", "/run/dump.json")
    text = outside_path(host, "/run/dump.json").read_text()
    assert json.loads(text)["format"] == "cni-bridge-ipam"
    assert "ipamd runs; stop it first" in ctl(host, "load", "/run/dump.json", status=1).stderr
    daemon.stop()
    assert "is not empty" in ctl(host, "load", "/run/dump.json", status=1).stderr
    assert ctl(host, "dump").stdout == text
    outside_path(host, "/run/newer.json").write_text(text.replace('"version": 1', '"version": 7', 1))
    host.shell(f"mv {DATABASE} /run/ipam.db.old; rm {STATE}/ipam.db-journal")
    for source, reason in (("newer.json", "version 7, this program knows version 1"), ("ipam.db.old", "is not JSON")):
        assert reason in ctl(host, "load", f"/run/{source}", status=1).stderr
    ctl(host, "load", "/run/nothing", status=2)
    loaded = ctl(host, "load", "-", stdin=text)
    assert ("7 addresses" in loaded.stdout, loaded.stderr) == (True, "")
    assert ctl(host, "dump").stdout == text
    assert given(ask(host, "ADD", "a", ours)) == at(2)
    assert given(ask(host, "ADD", "d", ours)) == ["10.201.0.6", "fd00:201::5"]
