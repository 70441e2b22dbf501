"""`cni-bridgectl` puts the plugins into a directory, makes flushed rules anew, and shows where host ports lead."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.versions import SUPPORTED
from tests.support.attaching import attach, detach, unchanged
from tests.support.chain import CniDir
from tests.support.conflist import Runtime, assert_chain_gone, conflist
from tests.support.confs import DUAL_STACK, IPV4, add_outside, bridge_conf, with_result
from tests.support.ctl import ctl, ctl_json
from tests.support.host import BIN, Answer, Host, Json
from tests.support.probing import Probe, assert_answers, serve

NAMES = sorted(each.value for each in Plugin)
UPLINK = ("198.51.100.1", "2001:db8:51::1")


# install


def installed(path: Path) -> dict[str, Path]:
    """What leads where in the directory; a file leads to itself."""
    return {each.name: each.resolve() for each in path.iterdir()}


def test_install_makes_a_link_of_each_name(host: Host, tmp_path: Path) -> None:
    for _ in range(2):
        done = ctl(host, "install", tmp_path)
        assert done.stdout == f"{len(NAMES)} plugins are in {tmp_path}\n"
        assert done.stderr == "", "nothing is asked, for nothing of others is replaced"
        assert installed(tmp_path) == dict.fromkeys(NAMES, BIN / "cni-bridge")
        assert all(each.is_symlink() for each in tmp_path.iterdir())


def test_install_of_some_names_leaves_the_others(host: Host, tmp_path: Path) -> None:
    (tmp_path / "tuning").write_text("another's")
    assert ctl(host, "install", "--name", "portmap", "--name", "static", tmp_path).stdout.startswith("2 plugins ")
    assert installed(tmp_path) == {
        "portmap": BIN / "cni-bridge",
        "static": BIN / "cni-bridge",
        "tuning": tmp_path / "tuning",
    }


@pytest.mark.parametrize(
    ("words", "stdin", "status"), [((), "", 1), ((), "n\n", 1), ((), "y\n", 0), (("--yes",), "", 0)], ids=str
)
def test_install_names_what_it_replaces_and_asks(
    host: Host, tmp_path: Path, words: tuple[str, ...], stdin: str, status: int
) -> None:
    ctl(host, "install", "--name", "static", tmp_path)
    (tmp_path / "bridge").write_text("another's")
    (tmp_path / "tuning").symlink_to(tmp_path / "nowhere")
    (tmp_path / "portmap").symlink_to("/bin/true")
    (tmp_path / "ptp").write_text("none of ours")
    before = installed(tmp_path)
    done = ctl(host, "install", *words, tmp_path, stdin=stdin, status=status)
    said = [line for line in done.stderr.splitlines() if line.endswith(" is replaced")]
    assert sorted(said) == [f"{tmp_path / name} is replaced" for name in ("bridge", "portmap", "tuning")]
    assert ("Replace them?" in done.stderr) == (not words)
    if status:
        assert installed(tmp_path) == before
    else:
        assert installed(tmp_path) == dict.fromkeys(NAMES, BIN / "cni-bridge") | {"ptp": tmp_path / "ptp"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/missing"], "does not exist"),
        (["{}/file"], "is a file"),
        (["--name", "ptp", "{}"], "'ptp' is not one of"),
        ([], "Missing argument"),
    ],
)
def test_install_to_no_directory_or_of_no_plugin_of_ours(
    host: Host, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "file").write_text("")
    done = ctl(host, "install", *(each.format(tmp_path) for each in words), status=2)
    assert said in done.stderr
    assert installed(tmp_path) == {"file": tmp_path / "file"}


def test_install_where_nothing_can_be_written(host: Host, tmp_path: Path) -> None:
    host.shell(f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}")
    said = ctl(host, "install", tmp_path, status=1).stderr
    assert f"{tmp_path}/" in said
    assert "Read-only file system" in said


def test_install_over_a_directory_leaves_no_draft(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bridge").mkdir()
    said = ctl(host, "install", "--yes", "--name", "bridge", tmp_path, status=1).stderr
    assert f"{tmp_path}/bridge" in said
    assert [each.name for each in tmp_path.iterdir()] == ["bridge"]


def test_install_disturbs_no_program_that_runs(host: Host, tmp_path: Path) -> None:
    """Neither one that runs for long under such a name, nor one that is started again and again."""
    (tmp_path / "portmap").write_bytes(Path("/bin/sleep").resolve().read_bytes())
    other = Path("/bin/true").resolve().read_bytes()  # a script would be read by its name after it was started
    (tmp_path / "bridge").write_bytes(other)
    for each in ("portmap", "bridge"):
        (tmp_path / each).chmod(0o755)
    running = host.start(tmp_path / "portmap", "60")
    script = f'while :; do "{tmp_path}/bridge" < /dev/null > /dev/null && echo well || echo ill; done'
    starting = host.start("sh", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert starting.stdout.readline() == b"well\n"
    for _ in range(3):
        ctl(host, "install", "--yes", tmp_path)
        assert (tmp_path / "bridge").resolve() == BIN / "cni-bridge"
        (tmp_path / "new").write_bytes(other)
        (tmp_path / "new").chmod(0o755)
        time.sleep(0.3)
        (tmp_path / "new").rename(tmp_path / "bridge")
    assert running.poll() is None
    starting.terminate()
    said = starting.communicate()[0].split()
    assert len(said) > 10
    assert set(said) == {b"well"}


@pytest.mark.native("the Python client is not to be copied")
@pytest.mark.skipif((BIN / "cni-bridge").read_bytes()[:4] != b"\x7fELF", reason="there was no C compiler")
def test_install_of_copies_that_need_nothing_else(host: Host, tmp_path: Path) -> None:
    program = (BIN / "cni-bridge").read_bytes()
    for _ in range(2):
        assert ctl(host, "install", "--copy", tmp_path).stderr == "", "nothing is asked: it is the same program"
        assert installed(tmp_path) == {name: tmp_path / name for name in NAMES}
        assert all(each.read_bytes() == program and each.stat().st_mode == 0o100755 for each in tmp_path.iterdir())
    assert ctl(host, "install", tmp_path).stderr == ""
    assert installed(tmp_path) == dict.fromkeys(NAMES, BIN / "cni-bridge")


def test_install_copies_no_program_that_needs_python(host: Host, tmp_path: Path) -> None:
    (tmp_path / "cni-bridge").write_text("#!python")
    (tmp_path / "cni-bridgectl").write_bytes((BIN / "cni-bridgectl").read_bytes())
    (tmp_path / "cni-bridgectl").chmod(0o755)
    (tmp_path / "to").mkdir()
    done = host.run(tmp_path / "cni-bridgectl", "install", "--copy", tmp_path / "to", check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/cni-bridge was built without a C compiler" in done.stderr
    assert installed(tmp_path / "to") == {}


@pytest.fixture
def directory(host: Host, tmp_path: Path) -> CniDir:
    """A directory into which all plugins are installed."""
    ctl(host, "install", tmp_path)
    return CniDir(tmp_path)


def call(host: Host, directory: CniDir, command: str, name: str, **keys: object) -> Answer:
    """Call the plugin of that name for container `a`, with no other directory to find plugins in."""
    conf = {"cniVersion": "1.0.0", "name": "net1", "type": name, **keys}
    ifname = "lo" if name == "loopback" else "eth0"
    env = {"CNI_PATH": str(directory.path)}
    return host.plugin(command, conf, "a", plugin=directory.path / name, ifname=ifname, env=env)


def test_each_installed_name_tells_its_versions(host: Host, directory: CniDir) -> None:
    for name in NAMES:
        answer = call(host, directory, "VERSION", name).result
        assert answer["supportedVersions"] == [str(each) for each in SUPPORTED]
        assert f"CNI {name} plugin " in host.run(directory.path / name).stderr


def test_each_installed_name_acts_as_it_is_called(host: Host, directory: CniDir) -> None:
    host.add_netns("a")
    for name in ("portmap", "firewall", "bandwidth", "tuning"):
        error = call(host, directory, "ADD", name).error
        assert (error["code"], f"{name} must be called as a chained plugin" in str(error)) == (7, True), error
    keys: Json = {"bridge": "cni0", "isGateway": True, "ipMasq": True}
    for name, shielded in (("bridge", False), ("cni-bridge", True)):
        result = call(host, directory, "ADD", name, **keys, ipam={**IPV4, "type": "host-local"}).result
        assert [each["name"] for each in result["interfaces"]][::2] == ["cni0", "eth0"]
        assert any(each.startswith("shielded4") for each in host.nft_elements()) == shielded
        call(host, directory, "DEL", name, ipam={"type": "host-local"}).succeeded()
        host.assert_nothing_left()
    for name, ipam in (
        ("host-local", {**IPV4, "type": "host-local"}),
        ("cni-ipam", IPV4),
        ("static", {"type": "static", "addresses": [{"address": "10.88.0.7/24"}]}),
    ):
        result = call(host, directory, "ADD", name, ipam=ipam).result
        assert "interfaces" not in result
        leased = [each["address"] for each in host.leases()]
        assert ([each["address"] for each in result["ips"]], len(leased)) == (
            leased or ["10.88.0.7/24"],
            name != "static",
        )
        call(host, directory, "DEL", name, ipam=ipam).succeeded()
    host.run("ip", "link", "set", "lo", "down", netns="a")
    result = call(host, directory, "ADD", "loopback").result
    assert [each["name"] for each in result["interfaces"]] == ["lo"]
    assert "UP" in host.links("a")["lo"]["flags"]
    call(host, directory, "DEL", "loopback").succeeded()
    assert_chain_gone(host)


# repair


def ports(host_port: int, container_port: int, count: int = 1) -> list[Json]:
    """Mappings of as many neighbouring ports, of TCP and UDP."""
    return [
        {"hostPort": host_port + each, "containerPort": container_port + each, "protocol": protocol}
        for protocol in ("tcp", "udp")
        for each in range(count)
    ]


class Site:
    """Attachments of several networks that publish ports: alone, in a chain, on a condition, and in waiting."""

    def __init__(self, host: Host, directory: CniDir) -> None:
        self.host, self.directory = host, directory
        self.first = bridge_conf(
            ipam=DUAL_STACK,
            macspoofchk=True,
            ipspoofchk=True,
            runtimeConfig={"portMappings": ports(8080, 80) + ports(7000, 7000, 20)},
        )
        ranges = [[{"subnet": "10.89.0.0/24"}], [{"subnet": "fd00:89::/64"}]]
        later = [{"dst": each, "priority": 2000} for each in ("0.0.0.0/0", "::/0")]
        self.second = {
            **self.first,
            "name": "net2",
            "bridge": "cni1",
            "icc": False,
            "ipam": {**DUAL_STACK, "ranges": ranges, "routes": later},
        }
        self.chains = {}
        for name, number, keys in (("c", 3, {}), ("d", 4, {"conditionsV4": ["ip saddr 198.51.100.2"], "snat": False})):
            bridge = {
                "type": "bridge",
                "bridge": f"cni{number}",
                "isGateway": True,
                "ipMasq": True,
                "ipam": {**IPV4, "subnet": f"10.9{number}.0.0/24"},
            }
            portmap = {"type": "portmap", "capabilities": {"portMappings": True}, **keys}
            firewall = [{"type": "firewall", "ingressPolicy": "same-bridge"}] if name == "c" else []
            self.chains[name] = Runtime(
                host,
                directory,
                conflist(bridge, portmap, *firewall, name=f"net{number}", version="1.1.0"),
                runtime_config={"portMappings": ports(8000 + number, 80)},
            )

    def attach(self) -> None:
        """Attach `a` to two networks, of which the first serves, and `c` and `d` by chains."""
        self.results = {"net1": attach(self.host, self.first)}
        self.results["net2"] = self.host.plugin("ADD", self.second, "a", ifname="eth1").result
        for name, chain in self.chains.items():
            self.host.add_netns(name)
            self.results[name] = chain.add(name)
        serve(self.host, {"a": (80, 7000, 7019), "c": (80,), "d": (80,)})
        self.complete = self.rules()
        self.shown = ctl_json(self.host, "ports")
        assert {each["state"] for each in self.shown} == {"served", "waiting"}
        self.assert_reached(True)

    def rules(self) -> list[str]:
        """All elements and conditional rules that there are."""
        chains = self.host.run("nft", "--stateless", "list", "chain", "inet", "cni_bridge", "conditional", check=False)
        return sorted([*self.host.nft_elements(), *chains.stdout.splitlines()])

    def of(self, network: str) -> list[str]:
        """Those that belong to the network."""
        marks = {each["publication"]["address"] for each in self.shown if each["network"] == network}
        assert marks
        tag = next(each for each in self.complete if f" {network}/" in each).partition("cni-bridge:")[2][:12]
        return [each for each in self.complete if f"cni-bridge:{tag}:" in each]

    def flush(self) -> None:
        self.host.run("nft", "flush", "ruleset")
        self.assert_reached(False)

    def assert_reached(self, reached: bool) -> None:
        by_answer = {
            "a": [(address, port) for address in UPLINK for port in (8080, 7000, 7019)],
            "c": [(UPLINK[0], 8003)],
            "d": [(UPLINK[0], 8004)],
        }
        assert_answers(
            self.host,
            {
                Probe(source="outside", kind=kind, address=address, port=port): answer if reached else ""
                for answer, places in by_answer.items()
                for address, port in places
                for kind in ("tcp", "udp")
            },
        )

    def assert_restored(self) -> None:
        assert self.rules() == self.complete
        assert ctl_json(self.host, "ports") == self.shown
        self.assert_reached(True)
        self.host.plugin("CHECK", with_result(self.first, self.results["net1"]), "a").succeeded()
        self.host.plugin("CHECK", with_result(self.second, self.results["net2"]), "a", ifname="eth1").succeeded()
        for name, chain in self.chains.items():
            chain.check(name, self.results[name])

    def detach(self) -> None:
        for name, chain in self.chains.items():
            chain.delete(name, self.results[name])
        self.host.plugin("DEL", self.second, "a", ifname="eth1").succeeded()
        detach(self.host, self.first)
        assert_chain_gone(self.host)


@pytest.fixture
def site(host: Host, directory: CniDir) -> Site:
    """A host with all of these attachments."""
    add_outside(host)
    made = Site(host, directory)
    made.attach()
    return made


def test_repair_after_a_flush_makes_all_as_it_was(site: Site) -> None:
    site.flush()
    for _ in range(2):
        assert ctl(site.host, "repair").stdout == "the rules of 4 attachments are as recorded\n"
        site.assert_restored()
    site.detach()


def test_repair_of_one_network(site: Site) -> None:
    site.host.shell("nft flush set inet cni_bridge masquerade4")
    assert ctl(site.host, "repair", "--network", "net1").stdout == "the rules of 1 attachments are as recorded\n"
    found = [each for each in site.rules() if each.startswith("masquerade4 ")]
    assert found == [each for each in site.of("net1") if each.startswith("masquerade4 ")]
    ctl(site.host, "repair")
    site.assert_restored()
    site.flush()
    assert ctl(site.host, "repair", "--network", "net1").stdout == "the rules of 1 attachments are as recorded\n"
    site.assert_restored()
    site.detach()


def test_repair_puts_right_what_was_changed(site: Site) -> None:
    site.host.shell(
        "nft flush map inet cni_bridge publish4; nft delete chain inet cni_bridge postrouting;"
        "nft flush chain inet cni_bridge conditional; nft delete table bridge cni_bridge;"
        "nft add element inet cni_bridge internal '{ \"other0\" }'"
    )
    ctl(site.host, "repair")
    assert [each for each in site.rules() if "other0" not in each] == site.complete
    site.assert_reached(True)
    site.host.run("nft", "delete", "element", "inet", "cni_bridge", "internal", '{ "other0" }')
    site.assert_restored()
    site.detach()


def test_repair_where_nothing_is_attached(host: Host) -> None:
    with unchanged(host):
        assert ctl(host, "repair").stdout == "the rules of 0 attachments are as recorded\n"


@pytest.mark.parametrize("by", ["cni-bridge", "portmap", "firewall"])
def test_the_next_add_after_a_flush_makes_all_as_it_was(site: Site, by: str) -> None:
    """Of a further network, whichever plugin is the first to change rules."""
    host = site.host
    host.add_netns("e")
    ipam = {**IPV4, "subnet": "10.95.0.0/24"}
    bare = {"type": "bridge", "bridge": "cni5", "isGateway": True, "ipMasq": False, "ipam": ipam}
    further = Runtime(
        host,
        site.directory,
        conflist(
            bare if by != "cni-bridge" else {**bare, "type": "cni-bridge"},
            *([{"type": by, "capabilities": {"portMappings": True}}] if by != "cni-bridge" else []),
            name="net5",
        ),
        runtime_config={"portMappings": ports(8005, 80)},
    )
    previous: Json = {}
    for conf in further.conflist["plugins"]:
        if conf["type"] == by:
            site.flush()
        answer = further.call("ADD", conf, "e", previous)
        previous = answer.result
    assert "the nftables rules were flushed" in answer.stderr
    further.delete("e", previous)
    site.assert_restored()
    site.detach()


def test_gc_after_a_flush(site: Site) -> None:
    """Of one network; what holds for the others is not lost for that."""
    host = site.host
    site.flush()
    valid = [{"containerID": "a", "ifname": "eth0"}]
    host.plugin("GC", {**site.first, "cni.dev/valid-attachments": valid}).succeeded()
    assert set(site.of("net1")) <= set(site.rules())
    attach(host, bridge_conf(name="net5", bridge="cni5", ipam={**IPV4, "subnet": "10.95.0.0/24"}), "e")
    host.plugin("DEL", bridge_conf(name="net5", bridge="cni5"), "e").succeeded()
    site.assert_restored()
    site.detach()


def test_check_and_del_after_a_flush_make_nothing_anew(site: Site) -> None:
    site.flush()
    assert site.host.plugin("CHECK", with_result(site.first, site.results["net1"]), "a").code == 100
    site.detach()
    assert site.host.run("nft", "list", "ruleset").stdout == ""


# ports


def test_ports_are_shown_in_a_table_and_as_json(site: Site) -> None:
    host = site.host
    lines = ctl(host, "ports").stdout.splitlines()
    columns = ("host", "port", "leads to", "state", "network", "container", "interface", "by")
    starts = [lines[0].index(each) for each in columns]
    rows = [
        tuple(line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True))
        for line in lines[1:]
    ]
    expected = [
        (f"any IPv{version}", f"{host_ports}/{protocol}", f"{address}:{container_ports}", state, network, *rest)
        for network, state, addresses, rest in (
            ("net1", "served", ("10.88.0.2", "[fd00:88::2]"), ("a", "eth0", "cni-bridge")),
            ("net2", "waiting", ("10.89.0.2", "[fd00:89::2]"), ("a", "eth1", "cni-bridge")),
        )
        for version, address in zip((4, 6), addresses, strict=True)
        for protocol in ("tcp", "udp")
        for host_ports, container_ports in (("8080", "80"), ("7000-7019", "7000-7019"))
    ] + [
        ("any IPv4", f"{8000 + number}/{protocol}", f"10.9{number}.0.2:80", "served", f"net{number}", *rest)
        for number, rest in ((3, ("c", "eth0", "portmap")), (4, ("d", "eth0", "portmap")))
        for protocol in ("tcp", "udp")
    ]
    assert sorted(rows) == sorted(expected)
    assert len(ctl_json(host, "ports")) == len(expected)
    only = ctl_json(host, "ports", "--network", "net4")
    assert [(each["network"], each["container_id"], each["plugin"]) for each in only] == [("net4", "d", "portmap")] * 2
    assert only[0]["publication"] == {
        "protocol": "tcp",
        "host_ip": None,
        "host_port": 8004,
        "address": "10.94.0.2",
        "container_port": 80,
        "count": 1,
        "snat": False,
        "masquerade_all": False,
        "condition": "ip saddr 198.51.100.2",
    }
    assert ctl_json(host, "ports", "--network", "net9") == []
    host.plugin("DEL", site.first, "a").succeeded()
    assert {each["state"] for each in ctl_json(host, "ports", "--network", "net2")} == {"served"}
    host.plugin("ADD", site.first, "a").succeeded()
    host.plugin("DEL", site.second, "a", ifname="eth1").succeeded()
    for name, chain in site.chains.items():
        chain.delete(name, site.results[name])
    detach(host, site.first)
    assert ctl_json(host, "ports") == []


@pytest.mark.parametrize("ipam", [DUAL_STACK, IPV4], ids=["both families", "IPv4"])
def test_ports_tell_where_ipv6_loopback_does_not_serve(either_host: Host, ipam: Json) -> None:
    host = either_host
    publishing = bridge_conf(ipam=ipam, runtimeConfig={"portMappings": ports(8080, 80) + ports(7000, 7000, 20)})
    attach(host, publishing)
    serve(host, {"a": (80, 7019)})
    expected = {}
    for address, reached in (("127.0.0.1", True), ("::1", ipam == DUAL_STACK and not host.bridge_nf)):
        for kind in ("tcp", "udp"):
            for port in (8080, 7019):
                expected[Probe(source="", kind=kind, address=address, port=port)] = "a" if reached else ""
    assert_answers(host, expected)
    note = "not at [::1]: net.bridge.bridge-nf-call-ip6tables is 1 here\n"
    done = ctl(host, "ports")
    assert done.stderr == (note if ipam == DUAL_STACK and host.bridge_nf else "")
    assert note not in done.stdout
    assert json.loads(ctl(host, "ports", "--json").stdout) == ctl_json(host, "ports")
    detach(host, publishing)
