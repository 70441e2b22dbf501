"""The operator's command on a host where things have happened, with the daemon and without: each test has networks of
its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cni_bridge.ctl.main import main
from tests.conftest import serve_ipam
from tests.support.attaching import attach
from tests.support.confs import bridge_conf
from tests.support.ctl import DATABASE, Operator, audit, ctl, ctl_json, found, sql
from tests.support.host import Host, Json
from tests.support.ipamd import ONLY_THROUGH_IPAMD
from tests.support.ways import Way

ID = "0123456789abcdef" * 4  # as long as those of runtimes
MARKUP = "[bold red]:smile:[/] [link]"
COMMANDS = {
    " ".join(words): command
    for name, command in main.commands.items()
    for words, command in (
        [([name, each], of) for each, of in command.commands.items()]
        if isinstance(command, click.Group)
        else [([name], command)]
    )
}
FULL = "\N{FULL BLOCK}"
_numbers = count(1)


@dataclass
class Network:
    """A network of a test's own: 10.200.N.0/29, of which containers get .2 to .6."""

    host: Host
    env: dict[str, str]
    operator: Operator
    name: str
    conf: Json
    subnet: str
    number: int

    def address(self, last: int) -> str:
        return f"10.200.{self.number}.{last}"

    def address6(self, last: int) -> str:
        return f"fd00:200:{self.number}::{last}"

    @property
    def subnet6(self) -> str:
        return f"fd00:200:{self.number}::/64"

    def add(self, *containers: str, **args: str) -> list[str]:
        """Lease addresses; `args` are those of CNI_ARGS."""
        variables = {"CNI_ARGS": ";".join(f"{key}={value}" for key, value in {"IgnoreUnknown": "1", **args}.items())}
        results = [
            self.host.plugin("ADD", self.conf, each, plugin="cni-ipam", env=self.env | variables).result
            for each in containers
        ]
        return [each["address"].split("/")[0] for result in results for each in result["ips"]]

    def delete(self, *containers: str) -> None:
        for each in containers:
            self.host.plugin("DEL", self.conf, each, plugin="cni-ipam", env=self.env).succeeded()

    def ctl(self, *words: str, status: int = 0, stdin: str = "") -> str:
        return self.operator.run(*words, status=status, stdin=stdin)

    def json(self, *words: str) -> Any:
        return self.operator.json(*words)

    def states(self) -> dict[str, str]:
        """What keeps the addresses from being free."""
        rows = self.json("leases", "--network", self.name, "--state", "all")
        return {each["address"].split("/")[0]: each["state"] for each in rows}

    def holders(self) -> dict[str, str]:
        rows = self.json("leases", "--network", self.name)
        return {each["address"].split("/")[0]: each["container_id"] for each in rows}


@dataclass
class Node:
    """A host and how it is asked."""

    host: Host
    env: dict[str, str]
    operator: Operator

    def network(self, **ipam: object) -> Network:
        """A network that nothing has asked for yet."""
        number = next(_numbers)
        name, subnet = f"net{number}", f"10.200.{number}.0/29"
        conf = {"cniVersion": "1.1.0", "name": name, "type": "bridge", "ipam": {"type": "cni-ipam", "subnet": subnet}}
        conf["ipam"] |= ipam  # type: ignore[operator]  # a dictionary
        return Network(self.host, self.env, self.operator, name, conf, subnet, number)

    def dual_stack(self) -> Network:
        """The same with a second range set."""
        made = self.network()
        made.conf["ipam"]["ranges"] = [[{"subnet": made.subnet6}]]
        return made


@pytest.fixture(scope="module", params=["in process", "ipamd"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    host = Host(way=Way.ONESHOT)
    serve_ipam(host, request.param)
    env = ONLY_THROUGH_IPAMD if request.param == "ipamd" else {}
    yield Node(host, env, Operator(host, env))
    host.close()


@pytest.fixture
def net(node: Node) -> Network:
    return node.network()


def line_with(text: str, *words: str) -> str:
    """The only line with all of these words."""
    (line,) = (line for line in text.splitlines() if all(word in line for word in words))
    return line


def test_pools_and_how_full_they_are(node: Node, net: Network) -> None:
    other = node.dual_stack()
    net.add("a", "b", "c")
    net.delete("c")
    other.add("a")
    net.ctl("reserve", net.address(6))
    line = line_with(net.ctl("pools"), net.name, net.subnet)
    assert (line.count(FULL), " 2 " in line, "named in the configuration" in line) == (16, True, True)  # of 20
    assert line_with(net.ctl("pools"), other.name, other.subnet6).count(FULL) == 0
    (row,) = net.json("pools", "--network", net.name)
    numbers = {key: row[key] for key in ("capacity", "leased", "cooling", "reserved", "free")}
    assert numbers == {"capacity": 5, "leased": 2, "cooling": 1, "reserved": 1, "free": 1}
    assert (row["network"], row["subnet"], row["origin"], row["shared"]) == (net.name, net.subnet, "configured", False)
    assert [each["gateway"] for each in row["ranges"]] == [net.address(1)]
    assert [each["subnet"] for each in net.json("pools", "--network", other.name)] == [other.subnet, other.subnet6]
    assert other.name not in net.ctl("pools", "--network", net.name)
    assert net.json("pools", "--network", "nothing") == []


def test_leases_by_network_container_name_and_state(node: Node, net: Network) -> None:
    twin = node.network()
    net.add(ID, K8S_POD_NAMESPACE="space", K8S_POD_NAME=f"pod-{net.name}")
    net.add("b", "c")
    net.delete("c")
    net.ctl("reserve", net.address(6), "--name", "x")
    twin.add(ID)
    states = {2: "leased", 3: "leased", 4: "cooling", 6: "reserved"}
    assert net.states() == {net.address(last): state for last, state in states.items()}
    (row,) = net.json("leases", "--network", net.name, "--container", ID[:12])
    assert {key: row[key] for key in ("network", "address", "state", "container_id", "ifname", "name", "gateway")} == {
        "network": net.name,
        "address": f"{net.address(2)}/29",
        "state": "leased",
        "container_id": ID,
        "ifname": "eth0",
        "name": f"space/pod-{net.name}",
        "gateway": net.address(1),
    }
    for words, expected in (
        (["--container", ID], {net.name, twin.name}),
        (["--name", f"pod-{net.name}"], {net.name}),
        (["--name", f"space/pod-{net.name}"], {net.name}),
        (["--name", f"other/pod-{net.name}"], set()),
        (["--container", ID[1:]], set()),
    ):
        rows = net.json("leases", *words)
        assert {each["network"] for each in rows} == expected, words
    for state, addresses in (("leased", [2, 3]), ("cooling", [4]), ("reserved", [6])):
        rows = net.json("leases", "--network", net.name, "--state", state)
        assert [each["address"].split("/")[0] for each in rows] == list(map(net.address, addresses))
        assert [each["reserved_for"] for each in rows] == ["name x" if state == "reserved" else ""] * len(rows)
    shown = net.ctl("leases", "--network", net.name)
    line_with(shown, net.name, f"{net.address(2)}/29", "leased", ID, "eth0", f"space/pod-{net.name}")
    assert net.address(4) not in shown


def test_show_an_address_a_container_and_a_network(node: Node) -> None:
    net = node.dual_stack()
    net.add(f"{ID[:-1]}{net.number}", K8S_POD_NAME=f"pod{net.number}")
    container = f"{ID[:-1]}{net.number}"
    for what in (net.address(2), net.address6(2)):
        shown = net.json("show", what)
        (row,) = shown["addresses"]
        assert (row["container_id"], len(shown["pools"]), len(shown["history"])) == (container, 1, 1), what
    for what in (container, f"pod{net.number}"):
        shown = net.json("show", what)
        assert [each["address"].split("/")[0] for each in shown["addresses"]] == [net.address(2), net.address6(2)]
        assert [each["happened"] for each in shown["history"]] == ["leased", "leased"]
        assert f"container_id: {container}" in net.ctl("show", what)
    assert [each["subnet"] for each in net.json("show", net.name)["pools"]] == [net.subnet, net.subnet6]
    assert f"subnet: {net.subnet6}" in net.ctl("show", net.name)
    assert net.json("show", net.address(5))["addresses"] == []
    net.delete(container)
    happened = [each["happened"] for each in net.json("show", container)["history"]]
    assert happened == ["released", "released", "leased", "leased"]
    for what in ("nothing", "192.0.2.1", "2001:db8::1"):
        assert f"nothing is known of {what}" in net.ctl("show", what, status=1)


@pytest.mark.parametrize(
    ("option", "value", "args"),
    [
        ("--name", "space/pod", {"K8S_POD_NAMESPACE": "space", "K8S_POD_NAME": "pod"}),
        ("--name", "pod", {"K8S_POD_NAMESPACE": "space", "K8S_POD_NAME": "pod"}),
        ("--mac", "02:00:00:00:AB:CD", {"MAC": "02:00:00:00:ab:cd"}),
        ("--sticky", "key", {"STICKY": "key"}),
        ("", "", {}),
    ],
    ids=["name", "short name", "mac", "sticky", "nobody"],
)
def test_a_reserved_address_goes_to_whom_it_is_for(net: Network, option: str, value: str, args: dict[str, str]) -> None:
    net.add("a")
    words = [option, value] if option else []
    assert f"{net.address(3)} of network {net.name} is reserved for" in net.ctl("reserve", net.address(3), *words)
    net.ctl("reserve", net.address(3), *words)
    assert net.add("b") == [net.address(4)]
    if args:
        assert net.add("c", **args) == [net.address(3)]
        net.delete("c")
    assert net.states()[net.address(3)] == "reserved"
    (row,) = net.json("leases", "--network", net.name, "--state", "reserved")
    assert row["reserved_for"] == (f"{option[2:]} {value.lower()}" if args else "nobody")
    assert f"{net.address(3)} of network {net.name} is no longer" in net.ctl("unreserve", net.address(3))
    assert net.states().get(net.address(3)) == ("cooling" if args else None)


def test_what_cannot_be_reserved(node: Node, net: Network) -> None:
    net.add("a")
    shares = [node.network(subnet=net.subnet, allowOverlap=True) for _ in range(2)]
    for each in shares:
        each.add("a")
    address = net.address(6)
    for words in (["--name", "x", "--mac", "02:00:00:00:00:01"], ["--sticky", "x", "--name", "y"]):
        assert "exclude each other" in net.ctl("reserve", address, *words, status=2)
    for words in ([], ["10.0.0.300"], ["10.0.0.0/24"]):
        net.ctl("reserve", *words, status=2)
    for command in ("reserve", "unreserve"):
        said = net.ctl(command, address, status=2)
        assert all(each.name in said for each in (net, *shares)) and "--network" in said
        assert "192.0.2.1 is in no pool" in net.ctl(command, "192.0.2.1", status=1)
    of_one = ["--network", shares[1].name]
    assert "never handed out" in net.ctl("reserve", net.address(1), *of_one, status=1)
    assert net.subnet in net.ctl("reserve", "192.0.2.1", *of_one, status=1)
    assert "not reserved" in net.ctl("unreserve", address, *of_one, status=1)
    net.ctl("reserve", address, *of_one, "--name", "x")
    assert "name x" in net.ctl("reserve", address, *of_one, "--name", "y", status=1)
    assert [each.states().get(address) for each in (net, *shares)] == [None, None, "reserved"]
    net.ctl("unreserve", address, *of_one)
    assert shares[1].states().get(address) is None


def test_release_names_what_it_hits_and_asks(node: Node) -> None:
    net = node.dual_stack()
    container, other = f"{ID}{net.number}", f"{ID}{net.number}b"
    net.add(container, other)
    before = net.holders()
    for answer in ("n\n", "\n", ""):
        said = net.ctl("release", container, status=1, stdin=answer)
        for each in (f"{net.address(2)}/29", f"{net.address6(2)}/64"):
            assert f"{each} of {net.name}/{container}/eth0" in said
        assert (net.address(3) in said, "Release 2 addresses?" in said) == (False, True)
        assert net.holders() == before
    assert "1 addresses are released" in net.ctl("release", net.address(2), stdin="y\n")
    assert "1 addresses are released" in net.ctl("release", container, "--yes")
    assert net.holders() == {net.address(3): other, net.address6(3): other}
    assert f"{container} has no lease" in net.ctl("release", container, "--yes", status=1)
    assert "has no lease" in net.ctl("release", other, "--network", "nothing", "--yes", status=1)
    net.ctl("release", other, "--network", net.name, "--yes")
    assert net.holders() == {}


def test_an_address_is_found_however_it_is_written(node: Node) -> None:
    net = node.dual_stack()
    net.add("a")
    written = f"FD00:200:{net.number}:0::2"
    assert [each["address"] for each in net.json("show", written)["addresses"]] == [f"{net.address6(2)}/64"]
    assert [each["address"] for each in net.json("history", written)] == [net.address6(2)]
    net.ctl("reserve", written)
    net.ctl("unreserve", written)
    net.ctl("release", written, "--yes")
    assert net.holders() == {net.address(2): "a"}


def test_forget_a_network_that_is_no_longer_used(net: Network) -> None:
    net.add("a", "b")
    net.ctl("reserve", net.address(6))
    assert "3 leases and reservations" in net.ctl("forget", net.name, "--yes", status=1)
    net.delete("a", "b")
    net.ctl("unreserve", net.address(6))
    said = net.ctl("forget", net.name, stdin="n\n", status=1)
    assert f"{net.subnet} of network {net.name}" in said
    assert [each["subnet"] for each in net.json("pools", "--network", net.name)] == [net.subnet]
    net.ctl("forget", net.name, stdin="y\n")
    assert (net.json("pools", "--network", net.name), net.states()) == ([], {})
    assert net.json("history", "--network", net.name), "what happened stays known"
    assert net.name in net.ctl("forget", net.name, "--yes", status=1)


def test_history_and_who_had_an_address(net: Network) -> None:
    address = net.address(2)
    net.add("a")
    net.delete("a")
    net.add("b", IP=address)
    net.ctl("reserve", address, "--name", "x")
    net.delete("b")
    net.add("c")
    events = net.json("history", address)
    assert [(each["happened"], each["container_id"]) for each in reversed(events)] == [
        ("leased", "a"),
        ("released", "a"),
        ("leased", "b"),
        ("reserved", "b"),
        ("released", "b"),
    ]
    for position, each in enumerate(reversed(events)):
        at = f"2026-01-01T00:00:{10 * (position + 1)}+00:00"
        sql(net.host, "UPDATE events SET at = ? WHERE number = ?", at, each["number"])

    def had(at: str, *more: str) -> list[str]:
        return [each["container_id"] for each in net.json("history", address, "--at", at, *more)]

    assert [had(f"2026-01-01 00:00:{second}") for second in (10, 15, 30, 45)] == [["a"], ["a"], ["b"], ["b"]]
    assert had("2026-01-01T00:00:45", "--limit", "1") == ["b"]
    line_with(net.ctl("history", address, "--at", "2026-01-01 00:00:11"), "leased", net.name, "a", "eth0")
    for at in ("2026-01-01", "2026-01-01 00:00:25", "2026-01-01 00:00:50", "2026-01-02"):
        assert f"nobody had {address}" in net.ctl("history", address, "--at", at, status=1)
    assert len(net.json("history", "--network", net.name, "--limit", "2")) == 2
    assert [each["container_id"] for each in net.json("history", "--network", net.name, "--container", "c")] == ["c"]
    assert net.json("history", "--network", "nothing") == []
    for words in (["no address"], ["--at", "2026-01-01"], [address, "--at", "yesterday"], ["--limit", "0"]):
        net.ctl("history", *words, status=2)


def test_text_with_markup_is_printed_as_it_is(net: Network) -> None:
    net.add("a", "b", K8S_POD_NAME=MARKUP)
    net.ctl("reserve", net.address(2), "--name", MARKUP)
    for words in (["leases", "--name", MARKUP], ["show", net.address(2)], ["history"], ["show", net.name]):
        shown = net.ctl(*words)
        assert f" {MARKUP}" in shown
        assert f"name {MARKUP}" in shown
    assert f"is reserved for name {MARKUP}" in net.ctl("reserve", net.address(2), "--name", MARKUP)
    assert {each["name"] for each in net.json("leases", "--network", net.name)} == {MARKUP}


def test_attachments_of_all_networks_or_one(node: Node, net: Network) -> None:
    ranges = [[{"subnet": net.subnet}], [{"subnet": net.subnet6}]]
    conf = bridge_conf(name=net.name, bridge=f"br{net.number}", ipam={"type": "cni-ipam", "ranges": ranges})
    name = f"att{net.number}"
    attach(node.host, conf, name, node.env)
    (shown,) = net.json("attachments", "--network", net.name)
    assert (shown["owner"], shown["ipam_type"]) == (
        {"network": net.name, "container_id": name, "ifname": "eth0"},
        "cni-ipam",
    )
    line_with(net.ctl("attachments"), net.name, name, f"br{net.number}", f"{net.address(2)}/29", f"/run/netns/{name}")
    assert net.json("attachments", "--network", "nothing") == []
    for what in (net.address(2), net.address6(2), f"FD00:200:{net.number}:0::2", name, net.name):
        assert [each["owner"]["container_id"] for each in net.json("show", what)["attachments"]] == [name]
        assert f"attachment: {net.name}/{name}/eth0" in net.ctl("show", what)
    assert "nothing differs" in audit(node.host, env=net.env).stdout
    assert found(node.host, status=0, env=net.env) == []
    node.host.plugin("DEL", conf, name, env=net.env).succeeded()
    assert net.json("attachments", "--network", net.name) == []


def test_every_json_is_json(net: Network) -> None:
    arguments = {"show": [net.name]}
    net.add("a")
    commands = [name for name, each in COMMANDS.items() if any(param.name == "as_json" for param in each.params)]
    assert set(commands) == {"pools", "leases", "show", "history", "attachments", "ports", "audit"}
    for name in commands:
        assert isinstance(net.json(name, *arguments.get(name, [])), list | dict)


def test_metrics_are_the_daemons(node: Node, net: Network) -> None:
    net.add("a")
    if node.env:
        assert f'network="{net.name}"' in net.ctl("metrics")
    else:
        assert "ipamd" in net.ctl("metrics", status=1)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_and_option_says_what_it_does(name: str) -> None:
    command = COMMANDS.get(name, main)
    done = CliRunner().invoke(main, [*name.split(), "--help"], env={"CNI_BRIDGE_CONFIG": "/dev/null"})
    assert (done.exit_code, done.output.startswith("Usage: ")) == (0, True)
    assert command.help
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert all(each.help for each in options)
    assert all(each.opts[0] in done.output for each in options)


COMPLETE = """
set -eu
script=$(cni-bridgectl completion bash)
bash -n <<< "$script"
eval "$script"
complete -p cni-bridgectl | grep -q _cni_bridgectl_completion
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _cni_bridgectl_completion cni-bridgectl
    echo "${COMPREPLY[@]}"
}
complete_words cni-bridgectl unre
complete_words cni-bridgectl import ''
complete_words cni-bridgectl leases --state co
complete_words cni-bridgectl pools --net
"""


def test_shells_complete(host: Host) -> None:
    assert host.run("bash", "-c", COMPLETE).stdout.splitlines() == ["unreserve", "host-local", "cooling", "--network"]
    script = ctl(host, "completion", "zsh").stdout
    assert script.startswith("#compdef cni-bridgectl\n") and "_CNI_BRIDGECTL_COMPLETE=zsh_complete" in script
    assert "csh" in ctl(host, "completion", "csh", status=2).stderr


def test_exit_status(host: Host) -> None:
    assert "cni-bridgectl" in ctl(host, "--version").stdout
    assert ctl_json(host, "pools") == []
    for words in (["no-such-command"], ["leases", "--state", "lost"], ["show"]):
        assert "Usage: " in ctl(host, *words, status=2).stderr
    host.shell(f"echo garbage > {DATABASE}")
    for words in (["leases"], ["forget", "net1", "--yes"], ["dump"]):
        said = ctl(host, *words, status=1).stderr
        assert said.startswith("Error: ") and DATABASE in said, words
    host.shell("echo 'state_dir: 5' > /etc/cni-bridge/config.yaml")
    assert "state_dir" in ctl(host, "leases", status=1).stderr
