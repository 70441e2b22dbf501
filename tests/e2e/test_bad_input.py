"""Unknown, malformed and hostile input: one error that names what is wrong, and nothing changed; DEL is lenient."""

from __future__ import annotations

import json

import pytest

from tests.conftest import serve_ipam
from tests.support.attaching import attach, detach, unchanged
from tests.support.confs import DUAL_STACK, IPV4, bridge_conf, with_result
from tests.support.host import BIN, Host, Json

STATE = "/var/lib/cni-bridge"


def ipam(**keys: object) -> Json:
    return {"ipam": {"type": "cni-ipam", **keys}}


def refused(
    host: Host,
    conf: Json | bytes | str,
    code: int,
    *words: str,
    netns: str | None = None,
    ifname: str = "eth0",
    env: dict[str, str] | None = None,
    container: str = "a",
) -> None:
    """ADD fails with that code and these words, and changes nothing."""
    if not host.files("/run/netns/a"):
        host.add_netns("a")
    with unchanged(host, "a"):
        error = host.plugin("ADD", conf, container, netns=netns, ifname=ifname, env=env).error
    said = f"{error['msg']}\n{error.get('details', '')}"
    assert error["code"] == code, said
    for word in words:
        assert word in said


# Standard input


@pytest.mark.parametrize(
    ("stdin", "word"),
    [
        (b"", "not JSON"),
        (json.dumps(bridge_conf()).encode()[:-20], "not JSON"),
        (json.dumps(bridge_conf()).encode() + b"{}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"name": "net1", "mtu": NaN}', "NaN"),
        (b'{"name": "\xff"}', "UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" * 100_000, "nested"),
        (b'{"name": "net1", "mtu": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b" " * (20 << 20), "16 MiB"),
        (json.dumps(bridge_conf(padding="x" * (20 << 20))).encode(), "16 MiB"),
    ],
    ids=[
        "empty",
        "truncated",
        "two documents",
        "list",
        "null",
        "NaN",
        "not UTF-8",
        "byte order mark",
        "deep",
        "endless number",
        "20 MB of nothing",
        "20 MB",
    ],
)
def test_stdin_that_is_no_configuration(host: Host, stdin: bytes, word: str) -> None:
    refused(host, stdin, 6, word)


def test_closed_stdin(host: Host) -> None:
    words = f"CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=/run/netns/a CNI_IFNAME=eth0 CNI_PATH=/ {BIN}/cni-bridge <&-"
    done = host.run("sh", "-c", words, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 5


# Types and values


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        *(
            ({key: "true"}, key)
            for key in (
                "isGateway",
                "isDefaultGateway",
                "forceAddress",
                "ipMasq",
                "hairpinMode",
                "promiscMode",
                "preserveDefaultVlan",
                "macspoofchk",
                "enabledad",
                "disableContainerInterface",
                "portIsolation",
            )
        ),
        ({"isGateway": 1}, "isGateway"),
        ({"mtu": "1500"}, "mtu"),
        ({"mtu": 1500.0}, "mtu"),
        ({"mtu": True}, "mtu"),
        ({"vlan": "7"}, "vlan"),
        ({"vlanTrunk": {"id": 7}}, "vlanTrunk"),
        ({"vlanTrunk": [None]}, "vlanTrunk[0]"),
        ({"bridge": 7}, "bridge"),
        ({"name": 7}, "name"),
        ({"cniVersion": 1.1}, "cniVersion"),
        ({"ipMasqBackend": ["nftables"]}, "ipMasqBackend"),
        ({"dns": []}, "dns"),
        ({"dns": {"nameservers": "10.88.0.53"}}, "dns.nameservers"),
        ({"dns": {"search": [7]}}, "dns.search[0]"),
        ({"runtimeConfig": []}, "runtimeConfig"),
        ({"runtimeConfig": {"mac": 7}}, "runtimeConfig.mac"),
        ({"args": {"cni": "mac"}}, "args.cni"),
        ({"ipam": "cni-ipam"}, "ipam"),
        (ipam(ranges=[["10.88.0.0/24"]]), "ipam.ranges[0][0]"),
        (ipam(subnet=10), "ipam.subnet"),
        (ipam(subnet="10.88.0.0/24", routes=[{"dst": "0.0.0.0/0", "mtu": "1400"}]), "ipam.routes[0].mtu"),
    ],
    ids=str,
)
def test_wrong_type_names_the_key(host: Host, keys: Json, path: str) -> None:
    refused(host, bridge_conf(**keys), 6, path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": ""}, ["network name"]),
        ({"name": ".."}, ["network name", ".."]),
        ({"name": "../net1"}, ["network name", "../net1"]),
        ({"name": "a/b"}, ["network name", "a/b"]),
        ({"name": "net1\n"}, ["network name"]),
        ({"bridge": ".."}, ["bridge", ".."]),
        ({"bridge": "../../etc"}, ["bridge", "../../etc"]),
        ({"bridge": "sixteen-letters-"}, ["bridge", "sixteen-letters-"]),
        ({"bridge": "br*"}, ["bridge", "br*"]),
        ({"bridge": "br+"}, ["bridge", "br+"]),
        ({"bridge": 'br"0'}, ["bridge", 'br"0']),
        ({"bridge": 'b"}; flush'}, ["bridge", "flush"]),
        ({"bridge": "br%d"}, ["bridge", "br%d"]),
        ({"bridge": "brücke"}, ["bridge", "brücke"]),
        ({"mtu": -1}, ["mtu", "-1"]),
        ({"mtu": 20}, ["mtu", "20"]),
        ({"mtu": 1 << 16}, ["mtu", "65536"]),
        ({"vlan": 4095}, ["vlan", "4095"]),
        ({"vlanTrunk": [{"minID": 5}]}, ["vlanTrunk[0]", "maxID"]),
        ({"vlanTrunk": [{"minID": 5, "maxID": 4}]}, ["vlanTrunk[0]", "minID 5", "maxID 4"]),
        ({"hairpinMode": True, "promiscMode": True}, ["hairpinMode", "promiscMode"]),
        ({"disableContainerInterface": True}, ["disableContainerInterface", "ipam"]),
        ({"ipMasqBackend": "ipfw"}, ["ipMasqBackend", "ipfw"]),
        ({"runtimeConfig": {"mac": "zz"}}, ["runtimeConfig.mac", "zz"]),
        ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, ["runtimeConfig.mac", "01:00:5e:00:00:01"]),
        ({"ipam": {"type": "../cni-ipam"}}, ["ipam.type", "../cni-ipam"]),
        (ipam(subnet="nonsense"), ["ipam", "nonsense"]),
        (ipam(subnet="10.88.0.0"), ["ipam", "10.88.0.0"]),
        (ipam(subnet="10.88.0.0/33"), ["ipam", "10.88.0.0/33"]),
        (ipam(subnet="10.88.0.5/24"), ["host bits", "10.88.0.5/24"]),
        (ipam(subnet="fd00:88::5/64"), ["host bits", "fd00:88::5/64"]),
        (ipam(ranges=[[]]), ["range set 0"]),
        (ipam(ranges=[[{"subnet": "10.88.0.0/24"}, {"subnet": "fd00:88::/64"}]]), ["range set 0", "mixes"]),
        (ipam(ranges=[[{"subnet": "10.88.0.0/16"}, {"subnet": "10.88.5.0/24"}]]), ["range set 0", "overlap"]),
        (ipam(ranges=[[{"subnet": "10.88.0.0/16"}], [{"subnet": "10.88.5.0/24"}]]), ["overlaps", "10.88.5.1"]),
        (ipam(subnet="10.88.0.0/24", rangeStart="10.89.0.1"), ["rangeStart", "10.89.0.1"]),
        (ipam(subnet="10.88.0.0/24", rangeStart="10.88.0.9", rangeEnd="10.88.0.5"), ["rangeStart", "10.88.0.9"]),
        (ipam(subnet="10.88.0.0/24", gateway="fd00:88::1"), ["gateway", "fd00:88::1"]),
        (ipam(subnet="10.88.0.0/24", routes=[{"dst": "nonsense"}]), ["ipam.routes[0].dst", "nonsense"]),
        (
            ipam(subnet="10.88.0.0/24", routes=[{"dst": "10.0.0.0/8", "gw": "fd00::1"}]),
            ["ipam.routes[0].gw", "fd00::1"],
        ),
        (ipam(subnet="10.88.0.0/24", resolvConf="/nonesuch"), ["ipam.resolvConf", "/nonesuch"]),
        ({"runtimeConfig": {"ips": ["10.88.0.300"]}}, ["runtimeConfig.ips[0]", "10.88.0.300"]),
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.1/24"}]]}}, ["runtimeConfig.ipRanges", "10.9.0.1/24"]),
    ],
    ids=str,
)
def test_value_that_cannot_be_used_is_named_with_its_key(host: Host, keys: Json, words: list[str]) -> None:
    refused(host, bridge_conf(**keys), 7, *words)


def test_ipam_plugin_that_is_not_there(host: Host) -> None:
    refused(host, bridge_conf(ipam={"type": "nonesuch"}), 107, "nonesuch", "CNI_PATH")


def test_ipam_type_too_long_for_a_file(host: Host) -> None:
    refused(host, bridge_conf(ipam={"type": "x" * 300}), 107, "x" * 300)


def test_unknown_version(host: Host) -> None:
    refused(host, bridge_conf("2.0.0"), 1, "2.0.0", "1.1.0")


@pytest.mark.parametrize("address", ["10.88.0.1", "10.88.0.0", "10.88.0.255", "10.99.0.1"])
def test_requested_address_that_no_range_offers(host: Host, address: str) -> None:
    refused(host, bridge_conf(runtimeConfig={"ips": [address]}), 102, address)


def test_requested_address_that_another_container_holds(host: Host) -> None:
    attach(host, bridge_conf(), "holder")
    refused(host, bridge_conf(runtimeConfig={"ips": ["10.88.0.2"]}), 102, "10.88.0.2", "holder")


# The environment


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("CNI_CONTAINERID", each) for each in ("", "..", "../a", "a/b", "-a", "a b", "a\n", "ä")),
        *(("CNI_IFNAME", each) for each in ("", ".", "..", "a/b", "a:b", "a b", "a%d", "sixteen-letters-", "a\u2003b")),
        ("CNI_NETNS", ""),
        ("CNI_PATH", ""),
        *(("CNI_ARGS", each) for each in ("IP", "IP=10.88.0.9;", "IP=10.88.0.9=10", "mac=02:00:00:00:00:0a", "K8S=1")),
        ("CNI_COMMAND", "EXPLODE"),
    ],
)
def test_bad_environment_names_the_variable(host: Host, variable: str, value: str) -> None:
    refused(host, bridge_conf(), 4, variable, value.strip(), env={variable: value})


@pytest.mark.parametrize(
    "make",
    [
        "",
        "mkdir /run/x",
        "echo text > /run/x",
        "mkfifo /run/x",
        "mknod /run/x c 1 3",
        "ln -s /run/fifo /run/x; mkfifo /run/fifo",
        "ln -s /run/x /run/x",
        "ln -s /proc/self/ns/mnt /run/x",
        "ln -s /proc/self/ns/user /run/x",
        "ln -s /dev/tty /run/x",
    ],
    ids=lambda script: script or "missing",
)
def test_path_that_is_no_network_namespace(host: Host, make: str) -> None:
    host.shell(make)
    refused(host, bridge_conf(), 8, "/run/x", netns="/run/x")


def test_hosts_own_namespace_needs_the_override(host: Host) -> None:
    conf, path = bridge_conf(ipam=None), "/proc/self/ns/net"
    refused(host, conf, 8, "CNI_NETNS", netns=path)
    override = {"CNI_NETNS_OVERRIDE": "1"}
    host.plugin("ADD", conf, "a", netns=path, env=override).succeeded()
    assert host.links()["eth0"]["linkinfo"]["info_kind"] == "veth"
    host.plugin("DEL", conf, "a", netns=path, env=override).succeeded()
    assert "eth0" not in host.links()
    host.assert_nothing_left()


# What stands in the way


def test_interface_name_that_is_taken(host: Host) -> None:
    host.add_netns("a")
    host.shell("ip link add eth0 type veth peer name other", netns="a")
    refused(host, bridge_conf(), 103, "eth0", "already exists")


@pytest.mark.parametrize("name", ["lo", "pair"])
def test_bridge_name_of_another_kind_of_link(host: Host, name: str) -> None:
    host.shell("ip link add pair type veth peer name other")
    refused(host, bridge_conf(bridge=name), 103, name, "not a bridge")


def test_exhausted_pool(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = bridge_conf(**ipam(subnet="10.88.0.0/30"))
    attach(host, conf, "holder")
    refused(host, conf, 101, "10.88.0.1-10.88.0.2", "net1")
    host.ping("10.88.0.1", "holder")
    host.plugin("DEL", conf, "holder").succeeded()
    host.plugin("ADD", conf, "a").succeeded()
    detach(host, conf)


def test_one_exhausted_pool_of_two_takes_no_address_of_the_other(host: Host) -> None:
    conf = bridge_conf(**ipam(ranges=[[{"subnet": "fd00:88::/64"}], [{"subnet": "10.88.0.0/30"}]]))
    attach(host, conf, "holder")
    refused(host, conf, 101, "10.88.0.1-10.88.0.2")


@pytest.mark.oneshot("no daemon starts on such a directory, and one that runs keeps it as it is")
@pytest.mark.parametrize(
    ("spoil", "directory", "codes"),
    [
        (f"mount -o remount,ro {STATE}", STATE, {5}),
        (f"mount -o remount,size=64k {STATE}; cat /dev/zero > {STATE}/fill", STATE, {5, 11}),
        ("mount -o remount,ro /run", "/run/cni-bridge", {5}),
        ("mount -o remount,size=64k /run; cat /dev/zero > /run/fill", "/run", {5}),
    ],
    ids=["state read-only", "state full", "run read-only", "run full"],
)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "in use"])
def test_directory_that_cannot_be_written(host: Host, spoil: str, directory: str, codes: set[int], used: bool) -> None:
    conf = bridge_conf(ipam=DUAL_STACK)
    if used:
        attach(host, conf, "holder")
    host.add_netns("a")
    host.shell(f"{spoil} 2>/dev/null", check=False)
    links, veths = host.links().keys(), host.links("a").keys()
    error = host.plugin("ADD", conf, "a").error
    assert error["code"] in codes, error
    assert directory in error["msg"] + error.get("details", "")
    assert (host.links().keys(), host.links("a").keys()) == (links, veths)
    host.shell(f"rm -f {STATE}/fill /run/fill; mount -o remount,rw,size=50% {STATE}; mount -o remount,rw,size=50% /run")
    if used:
        assert {each["container_id"] for each in host.leases()} == {"holder"}
        host.ping("10.88.0.1", "holder")
    host.plugin("ADD", conf, "a").succeeded()
    detach(host, conf, "a", *(["holder"] if used else []))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("log_level: [", "config.yaml"),
        ("- a list", "mapping"),
        ("nonesuch: 1", "nonesuch"),
        ("log_level: loud", "loud"),
        ("request_timeout: soon", "request_timeout"),
        ("request_timeout: 0", "request_timeout"),
        ("state_dir: relative", "relative"),
        ("ipamd: 7", "ipamd"),
        ("ipamd: {port: 7}", "ipamd.port"),
        ("!!python/object/apply:os.system ['touch /run/hacked']", "config.yaml"),
    ],
)
def test_malformed_settings(host: Host, text: str, word: str) -> None:
    host.start_daemon()  # which would not start with them
    host.run("tee", "/etc/cni-bridge/config.yaml", stdin=text.encode())
    host.add_netns("a")
    error = host.plugin("ADD", bridge_conf(), "a").error
    assert (error["code"], "/etc/cni-bridge/config.yaml" in error["msg"], word in error["msg"]) == (5, True, True), (
        error
    )
    assert list(host.links()) == list(host.links("a")) == ["lo"]
    assert not host.files("/run/hacked")


# The IPAM plugin by itself


@pytest.mark.parametrize(
    ("conf", "code", "word"),
    [
        ("{", 6, "not JSON"),
        (bridge_conf(ipam=None), 7, "ipam"),
        (bridge_conf(ipam={**IPV4, "subnet": "10.88.0.5/24"}), 7, "host bits"),
        (bridge_conf(name="a/b"), 7, "a/b"),
    ],
    ids=["truncated", "no section", "host bits", "name"],
)
def test_ipam_plugin_refuses_alike(host: Host, conf: Json | str, code: int, word: str) -> None:
    error = host.plugin("ADD", conf, "a", plugin="cni-ipam").error
    assert error["code"] == code
    assert word in error["msg"] + error.get("details", "")
    assert host.leases() == []


# DEL does all it can


@pytest.mark.parametrize(
    "make",
    ["", "touch /run/netns/a", "mkfifo /run/netns/a", "ip netns add a", "ln -s /proc/self/ns/mnt /run/netns/a"],
    ids=["missing", "regular file", "FIFO", "another namespace", "another kind of namespace"],
)
def test_del_with_a_stale_netns_path(host: Host, backend: str, make: str) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend)
    result = attach(host, conf)
    host.run("mount", "--bind", "/run/netns/a", host.add_netns("keep"))  # so that the veth does not go with the path
    host.shell(f"umount /run/netns/a; rm /run/netns/a; {make}")
    for _ in range(2):
        host.plugin("DEL", with_result(conf, result), "a").succeeded()
        host.assert_nothing_left()


@pytest.mark.parametrize(
    "keys",
    [
        {"mtu": 20},
        {"mtu": "1500"},
        {"vlan": 5000},
        {"bridge": "br*"},
        {"bridge": 7},
        {"ipMasqBackend": "ipfw"},
        {"isGateway": "yes"},
        {"hairpinMode": True, "promiscMode": True},
        {"runtimeConfig": {"mac": "zz"}},
        {"prevResult": {"ips": 7}},
        {"prevResult": {"cniVersion": "0.1.0"}},
        {"ipam": None},
        {"ipam": 7},
        {"ipam": {"type": "cni-ipam", "subnet": "10.88.0.5/24"}},
        {"ipam": {"type": 7}},
        {"ipam": {**IPV4, "type": "nonesuch"}},
        {"ipam": {**IPV4, "type": "host-local"}},
    ],
    ids=str,
)
def test_del_with_a_configuration_that_was_spoilt_since(host: Host, keys: Json) -> None:
    attach(host, bridge_conf("1.0.0"))
    detach(host, bridge_conf("1.0.0", **keys))


@pytest.mark.parametrize("cni_args", ["nonsense", "unknown=1"])
def test_del_does_not_mind_its_arguments(host: Host, cni_args: str) -> None:
    attach(host, bridge_conf())
    host.plugin("DEL", bridge_conf(), "a", env={"CNI_ARGS": cni_args}).succeeded()
    host.assert_nothing_left()


def test_del_without_its_record(host: Host, backend: str) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend)
    result = attach(host, conf)
    host.shell("rm -r /run/cni-bridge/attachments")
    detach(host, with_result(conf, result))
