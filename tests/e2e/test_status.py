"""STATUS tells before an ADD that it could not be served, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import serve_ipam
from tests.support.chain import CniDir
from tests.support.confs import add_outside, bridge_conf, with_result
from tests.support.host import Host, Json

NFTABLES = "/usr/lib/*/libnftables.so.1"
IPTABLES = "/usr/lib/*/libip4tc.so.2"


def hide(host: Host, library: str) -> None:
    """Put an empty file in the library's place, on this host only."""
    host.shell(f": > /run/empty; for each in {library}; do mount --bind /run/empty $each || exit; done")


def reveal(host: Host, library: str) -> None:
    host.shell(f"for each in {library}; do umount $each || exit; done")


@pytest.mark.parametrize("plugin", ["cni-bridge", "cni-ipam"])
def test_status_is_well_and_changes_nothing(host: Host, ipam_path: str, plugin: str) -> None:
    serve_ipam(host, ipam_path)
    host.plugin("STATUS", bridge_conf(), plugin=plugin).succeeded()
    assert list(host.links()) == ["lo"]
    host.assert_nothing_left()


@pytest.mark.parametrize("plugin", ["cni-bridge", "cni-ipam"])
def test_status_of_an_older_version_is_refused(host: Host, plugin: str) -> None:
    assert host.plugin("STATUS", bridge_conf("1.0.0"), plugin=plugin).code == 1


@pytest.mark.parametrize("plugin", ["cni-bridge", "cni-ipam"])
def test_exhausted_pool(host: Host, ipam_path: str, plugin: str) -> None:
    serve_ipam(host, ipam_path)
    ipam = {"type": "cni-ipam", "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.9"}
    conf = bridge_conf(ipam=ipam)
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    answer = host.plugin("STATUS", conf, plugin=plugin)
    assert answer.code == 50
    assert "10.88.0.9-10.88.0.9" in answer.error["msg"]
    host.plugin("DEL", conf, "a").succeeded()
    host.plugin("STATUS", conf, plugin=plugin).succeeded()


def test_full_bridge(host: Host) -> None:
    pairs = "\n".join(
        f"link add port{number} master cni0 type veth peer name peer{number} netns ports" for number in range(1023)
    )
    host.shell("ip link add cni0 type bridge; ip netns add ports")
    host.run("ip", "-batch", "-", stdin=pairs.encode())
    conf = bridge_conf(ipMasqBackend="nftables")
    status = host.plugin("STATUS", conf)
    assert (status.code, "1023 ports" in status.error["msg"]) == (50, True)
    host.add_netns("a")
    refused = host.plugin("ADD", conf, "a")
    assert "bridge cni0 is full" in refused.error["msg"]
    assert list(host.links("a")) == ["lo"]
    host.assert_nothing_left()
    host.run("ip", "link", "del", "port7")
    host.plugin("STATUS", conf).succeeded()
    host.plugin("ADD", conf, "a").succeeded()


@pytest.mark.oneshot("a daemon keeps the file system of its database from becoming read-only")
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize(
    ("plugin", "directory"),
    [("cni-bridge", "/var/lib/cni-bridge"), ("cni-ipam", "/var/lib/cni-bridge"), ("cni-bridge", "/run")],
)
def test_directory_that_cannot_be_written(host: Host, plugin: str, directory: str, used: bool) -> None:
    conf = bridge_conf(ipMasqBackend="nftables")
    if used:
        host.add_netns("a")
        host.plugin("ADD", conf, "a").succeeded()
        host.plugin("DEL", conf, "a").succeeded()
    host.run("mount", "-o", "remount,ro", directory)
    answer = host.plugin("STATUS", conf, plugin=plugin)
    assert (answer.code, directory in str(answer.error)) == (50, True)


@pytest.mark.parametrize(
    ("keys", "hidden"),
    [
        pytest.param({"ipMasqBackend": "nftables"}, NFTABLES, id="nftables asked for"),
        pytest.param({"ipMasq": False, "macspoofchk": True}, NFTABLES, id="macspoofchk"),
        pytest.param({"ipMasq": False, "ipspoofchk": True}, NFTABLES, id="ipspoofchk"),
        pytest.param({"ipMasqBackend": "iptables"}, IPTABLES, id="iptables asked for"),
        pytest.param({}, f"{NFTABLES} {IPTABLES}", id="neither works"),
    ],
)
def test_missing_firewall_backend(host: Host, keys: Json, hidden: str) -> None:
    hide(host, hidden)
    conf = bridge_conf(**keys)
    answer = host.plugin("STATUS", conf)
    assert answer.code == 50
    assert any(name in answer.error["msg"] for name in ("nftables", "iptables"))
    host.add_netns("a")
    assert host.plugin("ADD", conf, "a").code == 106
    assert list(host.links("a")) == ["lo"]
    reveal(host, hidden)
    host.assert_nothing_left()


@pytest.mark.oneshot("a daemon keeps the libraries that it has loaded")
@pytest.mark.parametrize(
    ("keys", "hidden"),
    [
        pytest.param({"ipMasqBackend": "nftables"}, NFTABLES, id="nftables"),
        pytest.param({"ipMasq": False, "macspoofchk": True}, NFTABLES, id="macspoofchk"),
        pytest.param({"ipMasqBackend": "iptables"}, IPTABLES, id="iptables"),
    ],
)
def test_attachments_whose_firewall_has_gone_are_named(host: Host, keys: Json, hidden: str) -> None:
    conf, other = bridge_conf(**keys), bridge_conf(**keys, name="net2")
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    host.plugin("STATUS", conf).succeeded()
    hide(host, hidden)
    error = host.plugin("STATUS", conf).error
    assert (error["code"], "net1/a/eth0" in error["details"]) == (51, True)
    assert host.plugin("STATUS", other).code == 50, "nothing of this network rests on it"
    reveal(host, hidden)
    host.plugin("STATUS", conf).succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


@pytest.mark.oneshot("a daemon keeps the libraries that it has loaded")
def test_attachments_that_rest_on_another_firewall_do_not_count(host: Host) -> None:
    host.add_netns("a")
    conf = bridge_conf(ipMasqBackend="iptables", type="bridge")  # which asks for no isolation
    host.plugin("ADD", conf, "a").succeeded()
    hide(host, NFTABLES)
    assert host.plugin("STATUS", bridge_conf(ipMasqBackend="nftables")).code == 50
    host.plugin("STATUS", conf).succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    reveal(host, NFTABLES)
    host.assert_nothing_left()


def test_firewall_that_is_not_needed_is_not_asked_for(host: Host) -> None:
    hide(host, f"{NFTABLES} {IPTABLES}")
    host.plugin("STATUS", bridge_conf(ipMasq=False)).succeeded()


def test_iptables_serves_where_there_is_no_nftables(host: Host) -> None:
    hide(host, NFTABLES)
    add_outside(host)
    host.add_netns("a")
    conf = bridge_conf()
    host.plugin("STATUS", conf).succeeded()
    result = host.plugin("ADD", conf, "a").result
    host.ping("198.51.100.2", "a")
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    reveal(host, NFTABLES)
    assert host.nft_elements() == []
    host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


def test_delegated_ipam_that_is_missing(host: Host) -> None:
    answer = host.plugin("STATUS", bridge_conf(ipam={"type": "no-such-ipam"}))
    assert (answer.code, "no-such-ipam" in answer.error["msg"]) == (50, True)


def test_delegated_ipam_that_is_unwell(host: Host, tmp_path: Path) -> None:
    plugins = CniDir(tmp_path)
    plugins.script("unwell-ipam", """echo '{"code": 50, "msg": "no lease server answers"}'; exit 1""")
    answer = host.plugin("STATUS", bridge_conf(ipam={"type": "unwell-ipam"}), env=plugins.env)
    assert (answer.code, "no lease server answers" in answer.error["msg"]) == (50, True)


def test_delegated_ipam_that_is_well(host: Host, tmp_path: Path) -> None:
    plugins = CniDir(tmp_path)
    plugins.script("well-ipam", 'test "$CNI_COMMAND" = STATUS')
    host.plugin("STATUS", bridge_conf(ipam={"type": "well-ipam"}), env=plugins.env).succeeded()
