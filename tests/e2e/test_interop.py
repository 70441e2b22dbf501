"""Works together with Debian's reference plugins, on either side, and with IPAM plugins that misbehave."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import serve_ipam
from tests.support.attaching import detach, unchanged
from tests.support.chain import Chain, CniDir
from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, with_result
from tests.support.host import REFERENCE, Host, Json

REFERENCE_IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
STATIC = {
    "type": "static",
    "addresses": [
        {"address": "10.88.0.77/24", "gateway": "10.88.0.1"},
        {"address": "fd00:88::77/64", "gateway": "fd00:88::1"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    "dns": {"nameservers": ["10.88.0.1"]},
}


def leased(host: Host) -> list[str]:
    """The addresses that the reference's `host-local` has given away."""
    names = [Path(each).name for each in host.files("/var/lib/cni/networks/net1")]
    return [each for each in names if each.startswith(("10.", "fd00:"))]


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "0.4.0", "1.0.0"])
def test_their_bridge_with_our_ipam(host: Host, ipam_path: str, version: str) -> None:
    serve_ipam(host, ipam_path)
    host.add_netns("a")
    conf = bridge_conf(version, type="bridge", ipMasq=False, ipam=DUAL_STACK)
    bridge = REFERENCE / "bridge"
    result = host.plugin("ADD", conf, "a", plugin=bridge).result
    assert host.addresses("eth0", "a") == ["10.88.0.2/24", "fd00:88::2/64"]
    host.ping("10.88.0.1", "a")
    assert [lease["address"] for lease in host.leases()] == ["10.88.0.2/24", "fd00:88::2/64"]
    if version in ("0.4.0", "1.0.0"):
        host.plugin("CHECK", with_result(conf, result), "a", plugin=bridge).succeeded()
    host.plugin("DEL", conf, "a", plugin=bridge).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize(
    ("ipam", "addresses"),
    [
        pytest.param(REFERENCE_IPAM, ["10.88.0.2/24", "fd00:88::2/64"], id="host-local"),
        pytest.param(STATIC, ["10.88.0.77/24", "fd00:88::77/64"], id="static"),
    ],
)
def test_our_bridge_with_their_ipam(host: Host, version: str, ipam: Json, addresses: list[str]) -> None:
    add_outside(host)
    host.add_netns("a")
    conf = bridge_conf(version, ipam=ipam)
    result = host.plugin("ADD", conf, "a").result
    assert host.addresses("eth0", "a") == addresses
    for address in ("10.88.0.1", "fd00:88::1", "198.51.100.2", "2001:db8:51::2"):
        host.ping(address, "a")
    if ipam is STATIC:
        assert result["dns"] == {"nameservers": ["10.88.0.1"]}
    if version in ("0.4.0", "1.0.0"):
        host.plugin("CHECK", with_result(conf, result), "a").succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


def test_repeated_add_asks_their_ipam_only_once(host: Host) -> None:
    conf = bridge_conf("1.0.0", ipam=REFERENCE_IPAM)
    host.add_netns("a")
    result = host.plugin("ADD", conf, "a").result
    with unchanged(host, "a"):
        assert host.plugin("ADD", conf, "a").result == result
    detach(host, conf)


def test_add_that_asks_for_something_else_of_their_ipam(host: Host) -> None:
    conf = bridge_conf("1.0.0", ipam=REFERENCE_IPAM)
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    other = {**conf, "mtu": 1400}
    result = host.plugin("ADD", other, "a").result
    held = [each["address"] for each in result["ips"]]
    assert sorted(host.addresses("eth0", "a")) == sorted(held)
    assert len(leased(host)) == len(held) == 2
    host.plugin("CHECK", with_result(other, result), "a").succeeded()
    detach(host, other)


@pytest.mark.oneshot("it is the plugin's process that is killed; tests/e2e/test_daemon.py kills the daemon")
def test_add_after_one_that_was_killed_when_their_ipam_had_answered(host: Host, tmp_path: Path) -> None:
    plugins = CniDir(tmp_path)
    plugins.script(
        "host-local",
        f"printed=$({REFERENCE}/host-local); status=$?\n"
        "if test $CNI_COMMAND = ADD && test -e /run/deadly; then kill -KILL $PPID; fi\n"
        'echo "$printed"; exit $status',
    )
    conf = bridge_conf("1.0.0", ipam=REFERENCE_IPAM)
    host.add_netns("a")
    host.shell("touch /run/deadly")
    assert host.plugin("ADD", conf, "a", env=plugins.env).status == -9
    assert len(leased(host)) == 2
    host.shell("rm /run/deadly")
    result = host.plugin("ADD", conf, "a", env=plugins.env).result
    assert sorted(host.addresses("eth0", "a")) == sorted(each["address"] for each in result["ips"])
    assert len(leased(host)) == 2
    host.ping("10.88.0.1", "a")
    detach(host, conf)


def test_their_portmap_and_tuning_behind_our_bridge(either_host: Host, tmp_path: Path, backend: str) -> None:
    host = either_host
    add_outside(host)
    host.add_netns("a")
    chain = Chain(
        host,
        CniDir(tmp_path),
        {
            "cniVersion": "1.0.0",
            "name": "net1",
            "plugins": [
                bridge_conf("1.0.0", ipam=DUAL_STACK, ipMasqBackend=backend),
                {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
                {"type": "tuning", "mac": "02:0a:0b:0c:0d:0e", "mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}},
            ],
        },
        runtime_config={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    )
    result = chain.add("a")
    link = host.links("a")["eth0"]
    assert (link["address"], link["mtu"]) == ("02:0a:0b:0c:0d:0e", 1400)
    host.start_whoami(80, "a")
    assert host.whoami("198.51.100.1", 8080, "outside") == "198.51.100.2"
    assert host.whoami("2001:db8:51::1", 8080, "outside") == "2001:db8:51::2"
    bridge, _, tuning = chain.conflist["plugins"]  # this portmap's CHECK mixes up the families
    for conf in (bridge, tuning):
        chain.call("CHECK", conf, "a", result).succeeded()
    chain.delete("a", result)
    assert host.whoami("198.51.100.1", 8080, "outside") == ""
    assert list(host.links("a")) == ["lo"]
    host.assert_nothing_left()


@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        pytest.param("exit 3", 107, "status 3", id="fails in silence"),
        pytest.param("kill -SEGV $$", 107, "signal 11", id="crashes"),
        pytest.param("echo 'panic: nil map'; exit 2", 107, "panic: nil map", id="fails with garbage"),
        pytest.param("echo '{'", 6, "bad-ipam", id="succeeds with garbage"),
        pytest.param("head -c 10000000 /dev/zero", 107, "4 MiB", id="prints without end"),
        pytest.param("echo '[]'", 6, "bad-ipam", id="succeeds with a list"),
        pytest.param("", 107, "missing IP config", id="succeeds in silence"),
        pytest.param(
            """echo '{"cniVersion": "1.0.0", "ips": []}'""", 107, "missing IP config", id="gives no addresses"
        ),
        pytest.param("""echo '{"cniVersion": "9.9.9", "ips": []}'""", 6, "9.9.9", id="speaks an unknown version"),
    ],
)
def test_ipam_plugin_that_misbehaves(host: Host, tmp_path: Path, behaviour: str, code: int, said: str) -> None:
    plugins = CniDir(tmp_path)
    plugins.script("bad-ipam", f"test $CNI_COMMAND = ADD || exit 0\n{behaviour}")
    host.add_netns("a")
    answer = host.plugin("ADD", bridge_conf("1.0.0", ipam={"type": "bad-ipam"}), "a", env=plugins.env)
    assert answer.code == code
    assert said in str(answer.error)
    assert list(host.links("a")) == ["lo"]
    assert list(host.links()) == ["lo"]
    host.assert_nothing_left()


def test_error_of_the_ipam_plugin_is_passed_on_unchanged(host: Host, tmp_path: Path) -> None:
    plugins = CniDir(tmp_path)
    said = '{"code": 11, "msg": "no lease server answers", "details": "asked 3 times"}'
    plugins.script("busy-ipam", f"""echo '{said}'; exit 1""")
    host.add_netns("a")
    error = host.plugin("ADD", bridge_conf(ipam={"type": "busy-ipam"}), "a", env=plugins.env).error
    assert error == {
        "cniVersion": "1.1.0",
        "code": 11,
        "msg": "no lease server answers",
        "details": "asked 3 times",
    }
    assert list(host.links()) == ["lo"]
    host.assert_nothing_left()


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0"])
def test_result_of_another_version(host: Host, tmp_path: Path, version: str) -> None:
    plugins = CniDir(tmp_path)
    old = '{"cniVersion": "0.2.0", "ip4": {"ip": "10.88.0.9/24", "gateway": "10.88.0.1"}}'
    newer = '{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.88.0.9/24", "gateway": "10.88.0.1"}]}'
    plugins.script("old-ipam", f"""test $CNI_COMMAND = ADD || exit 0; echo '{old if version == "0.2.0" else newer}'""")
    host.add_netns("a")
    conf = bridge_conf("1.1.0", ipam={"type": "old-ipam"})
    result = host.plugin("ADD", conf, "a", env=plugins.env).result
    assert result["ips"] == [{"address": "10.88.0.9/24", "gateway": "10.88.0.1", "interface": 2}]
    host.plugin("DEL", conf, "a", env=plugins.env).succeeded()
    host.assert_nothing_left()


@pytest.mark.every_way
@pytest.mark.parametrize("hangs", ["test $CNI_COMMAND = ADD || exit 0", ":"], ids=["on ADD", "on every verb"])
def test_ipam_plugin_that_hangs_is_ended(host: Host, tmp_path: Path, hangs: str) -> None:
    plugins = CniDir(tmp_path)
    plugins.script("hanging-ipam", f"{hangs}\nexec 9> /run/hangs; flock --shared 9; sleep infinity")
    host.shell("echo 'request_timeout: 2' > /etc/cni-bridge/config.yaml")
    host.add_netns("a")
    conf = bridge_conf(ipam={"type": "hanging-ipam"})
    answer = host.plugin("ADD", conf, "a", env=plugins.env, timeout=15)
    assert (answer.code, "request_timeout" in answer.error["msg"]) == (11, True)
    free = host.run("flock", "--wait", "5", "/run/hangs", "true", check=False)
    assert free.returncode == 0, "the plugin and what it started hold no lock, so they are gone"
    assert list(host.links()) == ["lo"]
    host.assert_nothing_left()
