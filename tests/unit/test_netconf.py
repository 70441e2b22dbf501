"""Every key of the network configuration: default, value, and what a bad value gets."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_address

import pytest

from cni_bridge.cni.errors import Code
from cni_bridge.cni.netconf import Backend, GatewayMode, parse_netconf, parse_valid_attachments
from cni_bridge.cni.ports import PortMapping, Protocol
from cni_bridge.cni.shaping import Shaping
from cni_bridge.cni.tuning import Tuning
from cni_bridge.cni.versions import Version
from ipam.api import Dns
from tests.support.calls import owner, refusal, request

DEFAULTS = {
    "version": Version.V1_1_0,
    "as_reference": False,
    "bridge": "cni0",
    "is_gateway": False,
    "is_default_gateway": False,
    "force_address": False,
    "ip_masq": False,
    "ip_masq_backend": None,
    "mtu": 0,
    "hairpin": False,
    "promisc": False,
    "vlan": 0,
    "vlan_trunk": (),
    "vlan_aware": False,
    "preserve_default_vlan": False,
    "mac_spoof_check": False,
    "enable_dad": False,
    "disable_container_interface": False,
    "port_isolation": False,
    "icc": True,
    "isolated": None,
    "internal": False,
    "gateway_mode": None,
    "direct_routing": True,  # for nothing is masqueraded
    "trusted_interfaces": (),
    "ip_spoof_check": False,
    "ports": (),
    "snat": True,
    "masquerade_all": False,
    "shaping": asdict(Shaping()),
    "tuning": asdict(Tuning()),
    "dns": asdict(Dns()),
    "mac": "",
    "ipam_type": "",
    "prev_result": None,
}
KEYS = (
    *("bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode"),
    *("promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad"),
    *("disableContainerInterface", "portIsolation", "dns", "ipam", "runtimeConfig", "args", "prevResult"),
    *("icc", "isolated", "internal", "gatewayMode", "allowDirectRouting", "trustedInterfaces", "ipspoofchk"),
    *("snat", "masqAll"),
)
NOT_NUMBERS = ("bridge", "ipMasqBackend", "mtu", "vlan", "gatewayMode")


@pytest.mark.parametrize("keys", [{}, dict.fromkeys(KEYS)], ids=["absent", "null"])
def test_defaults(keys: dict[str, object]) -> None:
    assert asdict(parse_netconf(request(**keys))) == DEFAULTS


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"bridge": "br-lan.7"}, {"bridge": "br-lan.7"}),
        ({"bridge": "fifteen-bytes-0"}, {"bridge": "fifteen-bytes-0"}),
        ({"bridge": ""}, {"bridge": "cni0"}),
        ({"BRIDGE": "br1"}, {"bridge": "br1"}),
        ({"isGateway": True}, {"is_gateway": True}),
        ({"isDefaultGateway": True}, {"is_gateway": True, "is_default_gateway": True}),
        ({"isDefaultGateway": True, "isGateway": False}, {"is_gateway": True, "is_default_gateway": True}),
        ({"forceAddress": True}, {"force_address": True}),
        ({"ipMasq": True}, {"ip_masq": False, "direct_routing": False}),  # nothing to masquerade without addresses
        ({"ipMasq": True, "ipam": {"type": "x"}}, {"ip_masq": True, "ipam_type": "x", "direct_routing": False}),
        (
            {"ipMasq": True, "ipam": {"type": "x"}, "internal": True},
            {"ip_masq": False, "ipam_type": "x", "direct_routing": False, "internal": True},
        ),
        ({"ipMasqBackend": "iptables"}, {"ip_masq_backend": Backend.IPTABLES}),
        ({"ipMasqBackend": "nftables"}, {"ip_masq_backend": Backend.NFTABLES}),
        ({"ipMasqBackend": ""}, {"ip_masq_backend": None}),
        ({"mtu": 68}, {"mtu": 68}),
        ({"mtu": 65535}, {"mtu": 65535}),
        ({"hairpinMode": True}, {"hairpin": True}),
        ({"promiscMode": True}, {"promisc": True}),
        ({"vlan": 4094}, {"vlan": 4094, "vlan_aware": True}),
        ({"vlanTrunk": []}, {"vlan_aware": True}),
        ({"preserveDefaultVlan": True}, {"preserve_default_vlan": True}),
        ({"macspoofchk": True}, {"mac_spoof_check": True}),
        ({"macSpoofChk": True}, {"mac_spoof_check": True}),
        ({"enabledad": True}, {"enable_dad": True}),
        ({"disableContainerInterface": True}, {"disable_container_interface": True}),
        ({"disableContainerInterface": True, "ipam": {}}, {"disable_container_interface": True}),
        ({"portIsolation": True}, {"port_isolation": True}),
        ({"icc": False}, {"icc": False}),
        ({"isolated": True}, {"isolated": True}),
        ({"isolated": False}, {"isolated": False}),
        ({"internal": True}, {"internal": True}),
        ({"gatewayMode": ""}, {}),
        ({"gatewayMode": "nat"}, {"gateway_mode": GatewayMode.NAT}),
        ({"gatewayMode": "nat-unprotected"}, {"gateway_mode": GatewayMode.NAT_UNPROTECTED}),
        ({"gatewayMode": "routed", "ipMasq": False}, {"gateway_mode": GatewayMode.ROUTED}),
        ({"gatewayMode": "nat-unprotected", "allowDirectRouting": True}, {"gateway_mode": GatewayMode.NAT_UNPROTECTED}),
        ({"allowDirectRouting": True, "ipMasq": True}, {"direct_routing": True}),
        ({"trustedInterfaces": ["eth1", "wg0"]}, {"trusted_interfaces": ("eth1", "wg0")}),
        ({"ipspoofchk": True}, {"ip_spoof_check": True}),
        ({"snat": False, "masqAll": True}, {"snat": False, "masquerade_all": True}),
        ({"type": "bridge"}, {"as_reference": True, "isolated": False}),
        (
            {"type": "bridge", "isolated": True, "ipMasq": True},
            {"as_reference": True, "isolated": True, "direct_routing": True},
        ),
        (
            {"type": "bridge", "gatewayMode": "nat"},
            {"as_reference": True, "isolated": False, "gateway_mode": GatewayMode.NAT},
        ),
        ({"ipam": {"TYPE": "host-local"}}, {"ipam_type": "host-local"}),
        ({"unknown": {"whatever": []}}, {}),
    ],
)
def test_values(keys: dict[str, object], expected: dict[str, object]) -> None:
    assert asdict(parse_netconf(request(**keys))) == {**DEFAULTS, **expected}


def test_dns() -> None:
    section = {"nameservers": ["10.0.0.53"], "domain": "a.test", "search": ["b.test"], "options": ["ndots:2"]}
    assert parse_netconf(request(dns=section)).dns == Dns(
        nameservers=("10.0.0.53",), domain="a.test", search=("b.test",), options=("ndots:2",)
    )


def test_dns_of_the_runtime_replaces_that_of_the_network() -> None:
    runtime = {"dns": {"servers": ["10.0.0.54"], "searches": ["c.test"], "options": ["use-vc"]}}
    asked = Dns(nameservers=("10.0.0.54",), search=("c.test",), options=("use-vc",))
    network = {"nameservers": ["10.0.0.53"], "domain": "a.test"}
    assert parse_netconf(request(runtimeConfig=runtime, dns=network)).dns == asked


@pytest.mark.parametrize("runtime", [{"dns": None}, {"dns": {}}, {"dns": {"servers": []}}])
def test_dns_of_a_runtime_that_has_none_is_the_networks(runtime: object) -> None:
    conf = parse_netconf(request(runtimeConfig=runtime, dns={"nameservers": ["10.0.0.53"]}))
    assert conf.dns == Dns(nameservers=("10.0.0.53",))


def test_ports() -> None:
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}
    [port] = parse_netconf(request(ipam={"type": "cni-ipam"}, runtimeConfig={"portMappings": [mapping]})).ports
    assert port == PortMapping(
        protocol=Protocol.UDP, host_ip=ip_address("127.0.0.1"), host_port=8080, container_port=80
    )


@pytest.mark.parametrize("key", [key for key in KEYS if key not in NOT_NUMBERS])
def test_a_number_is_of_no_use_for_most_keys(key: str) -> None:
    error = refusal(parse_netconf, request(**{key: 5}))
    assert error.code == Code.DECODING_FAILURE
    assert f"{key} is 5, expected " in error.msg


@pytest.mark.parametrize("key", NOT_NUMBERS)
def test_a_boolean_is_of_no_use_for_the_others(key: str) -> None:
    error = refusal(parse_netconf, request(**{key: True}))
    assert error.code == Code.DECODING_FAILURE
    assert f"{key} is true, expected " in error.msg


@pytest.mark.parametrize(
    "name",
    [
        "sixteen-bytes-00",
        ".",
        "..",
        "a/b",
        "a:b",
        "br%d",
        "br*",
        'b"r',
        "b\\r",
        "b r",
        "br\n",
        "bü",
        "b\x00r",
        "\ud800",
    ],
)
def test_bad_bridge_names(name: str) -> None:
    error = refusal(parse_netconf, request(bridge=name))
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith(f'bridge "{name}" is not a link name')


@pytest.mark.parametrize(
    ("keys", "msg"),
    [
        ({"mtu": -1}, "mtu -1 is not between 0 and 65535"),
        ({"mtu": 65536}, "mtu 65536 is not between 0 and 65535"),
        ({"mtu": 67}, "mtu 67 is below 68"),
        ({"vlan": -100}, "vlan -100 is not between 0 and 4094"),
        ({"vlan": 5000}, "vlan 5000 is not between 0 and 4094"),
        ({"ipMasqBackend": "ebtables"}, 'ipMasqBackend "ebtables" is none of nftables, iptables'),
        ({"gatewayMode": "NAT"}, 'gatewayMode "NAT" is none of nat, nat-unprotected, routed'),
        (
            {"gatewayMode": "nat", "allowDirectRouting": True},
            'allowDirectRouting true and gatewayMode "nat" exclude each other',
        ),
        (
            {"gatewayMode": "routed", "allowDirectRouting": True},
            'allowDirectRouting true and gatewayMode "routed" exclude each other',
        ),
        (
            {"gatewayMode": "routed", "ipMasq": True, "ipam": {"type": "x"}},
            'gatewayMode "routed" and ipMasq true exclude each other',
        ),
        (
            {"internal": True, "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}},
            "runtimeConfig.portMappings has ports, and internal is true",
        ),
        ({"trustedInterfaces": ["eth0", "a b"]}, 'trustedInterfaces[1] "a b" is not a link name'),
        ({"trustedInterfaces": [""]}, 'trustedInterfaces[0] "" is not a link name'),
        (
            {"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}},
            "runtimeConfig.portMappings[0].hostPort 0 is not between 1 and 65535",
        ),
        ({"ipam": {"type": "../x"}}, 'ipam.type "../x" is not the name of an executable'),
        ({"ipam": {"type": ".."}}, 'ipam.type ".." is not the name of an executable'),
        (
            {"hairpinMode": True, "promiscMode": True},
            "cannot set hairpin mode and promiscuous mode at the same time",
        ),
        (
            {"disableContainerInterface": True, "ipam": {"type": "x"}},
            "cannot use IPAM when DisableContainerInterface flag is set",
        ),
        ({"bridge": "bridge-0123", "vlan": 4000, "isGateway": True}, 'bridge "bridge-0123" is too long for vlan 4000'),
    ],
)
def test_values_that_cannot_be_used(keys: dict[str, object], msg: str) -> None:
    error = refusal(parse_netconf, request(**keys))
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith(msg)


@pytest.mark.parametrize(
    ("keys", "msg"),
    [
        ({"trustedInterfaces": "eth0"}, 'trustedInterfaces is "eth0", expected a list'),
        ({"trustedInterfaces": ["eth0", 5]}, "trustedInterfaces[1] is 5, expected a string"),
        ({"isolated": "yes"}, 'isolated is "yes", expected true or false'),
        ({"runtimeConfig": {"portMappings": {}}}, "runtimeConfig.portMappings is {}, expected a list"),
        ({"runtimeConfig": {"portMappings": [80]}}, "runtimeConfig.portMappings[0] is 80, expected an object"),
        ({"runtimeConfig": {"dns": []}}, "runtimeConfig.dns is [], expected an object"),
        ({"runtimeConfig": {"dns": {"servers": [5]}}}, "runtimeConfig.dns.servers[0] is 5, expected a string"),
    ],
)
def test_values_of_the_wrong_type(keys: dict[str, object], msg: str) -> None:
    error = refusal(parse_netconf, request(**keys))
    assert (error.code, error.msg) == (Code.DECODING_FAILURE, msg)


@pytest.mark.parametrize(
    ("section", "at"), [({"domain": 5}, "dns.domain"), ({"nameservers": ["10.0.0.1", 5]}, "dns.nameservers[1]")]
)
def test_bad_dns(section: dict[str, object], at: str) -> None:
    error = refusal(parse_netconf, request(dns=section))
    assert error.code == Code.DECODING_FAILURE
    assert error.msg.startswith(f"{at} is 5")


@pytest.mark.parametrize(
    ("trunk", "ids"),
    [
        ([{"id": 42}], (42,)),
        ([{"minID": 1, "maxID": 3}], (1, 2, 3)),
        ([{"minID": 7, "maxID": 7}], (7,)),
        ([{"minID": 4, "maxID": 5, "id": 2}], (2, 4, 5)),
        ([{"id": 9}, {"minID": 8, "maxID": 10}, {"id": 9}], (8, 9, 10)),
        ([{"ID": 4094, "MinId": None, "maxid": None}], (4094,)),
    ],
)
def test_vlan_trunk(trunk: list[object], ids: tuple[int, ...]) -> None:
    conf = parse_netconf(request(vlanTrunk=trunk))
    assert (conf.vlan_trunk, conf.vlan_aware) == (ids, True)


@pytest.mark.parametrize(
    ("trunk", "code", "msg"),
    [
        ([None], Code.DECODING_FAILURE, "vlanTrunk[0] is null, expected an object"),
        ([{"id": 1}, 5], Code.DECODING_FAILURE, "vlanTrunk[1] is 5, expected an object"),
        ([{"id": "5"}], Code.DECODING_FAILURE, 'vlanTrunk[0].id is "5", expected a whole number'),
        ([{}], Code.INVALID_CONFIG, "vlanTrunk[0] has neither id nor minID and maxID"),
        ([{"id": 0}], Code.INVALID_CONFIG, "vlanTrunk[0].id 0 is not between 1 and 4094"),
        ([{"id": 4095}], Code.INVALID_CONFIG, "vlanTrunk[0].id 4095 is not between 1 and 4094"),
        ([{"minID": -1, "maxID": 5}], Code.INVALID_CONFIG, "vlanTrunk[0].minID -1 is not between 1 and 4094"),
        ([{"minID": 1, "maxID": 5000}], Code.INVALID_CONFIG, "vlanTrunk[0].maxID 5000 is not between 1 and 4094"),
        ([{"maxID": 5}], Code.INVALID_CONFIG, "vlanTrunk[0]: minID and maxID go together, minID is missing"),
        ([{"minID": 5, "id": 6}], Code.INVALID_CONFIG, "vlanTrunk[0]: minID and maxID go together, maxID is missing"),
        ([{"minID": 6, "maxID": 5}], Code.INVALID_CONFIG, "vlanTrunk[0]: minID 6 is greater than maxID 5"),
    ],
)
def test_bad_vlan_trunk(trunk: list[object], code: Code, msg: str) -> None:
    error = refusal(parse_netconf, request(vlanTrunk=trunk))
    assert (error.code, error.msg) == (code, msg)


def test_mac_of_the_runtime_goes_before_args_and_those_before_cni_args() -> None:
    environ = {"CNI_ARGS": "MAC=02:00:00:00:00:0A"}
    args = {"cni": {"mac": "02-00-00-00-00-0B"}}
    runtime = {"MAC": "02:00:00:00:00:0c"}
    assert parse_netconf(request(environ)).mac == "02:00:00:00:00:0a"
    assert parse_netconf(request(environ, args=args)).mac == "02:00:00:00:00:0b"
    assert parse_netconf(request(environ, args=args, runtimeConfig=runtime)).mac == "02:00:00:00:00:0c"
    assert parse_netconf(request(environ, args={"cni": {"mac": ""}}, runtimeConfig={})).mac == "02:00:00:00:00:0a"


@pytest.mark.parametrize(
    "mac",
    ["zz", "02:00:00:00:00", "02:00:00:00:00:00:01", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00:1\n"],
)
def test_bad_mac(mac: str) -> None:
    for keys, at in (
        ({"runtimeConfig": {"mac": mac}}, "runtimeConfig.mac"),
        ({"args": {"cni": {"mac": mac}}}, "args.cni.mac"),
    ):
        error = refusal(parse_netconf, request(**keys))
        assert error.code == Code.INVALID_CONFIG
        assert error.msg.startswith(f'{at} "{mac}" is not a unicast MAC address')


def test_bad_mac_in_cni_args_is_a_bad_environment() -> None:
    error = refusal(parse_netconf, request({"CNI_ARGS": "MAC=zz"}))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert error.msg.startswith('CNI_ARGS MAC "zz" is not a unicast MAC address')


def test_a_bad_prev_result_is_refused() -> None:
    error = refusal(parse_netconf, request(prevResult={"cniVersion": "0.4.0"}))
    assert error.code == Code.DECODING_FAILURE
    assert error.msg.startswith("could not parse prevResult")


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments", "CNI.dev/Valid-Attachments"])
@pytest.mark.parametrize("nothing", [None, []])
def test_no_valid_attachment(key: str, nothing: object) -> None:
    assert parse_valid_attachments(request(**{key: nothing})) == frozenset()


@pytest.mark.parametrize(
    "keys",
    [("cni.dev/valid-attachments",), ("cni.dev/attachments",), ("cni.dev/attachments", "cni.dev/valid-attachments")],
)
def test_valid_attachments_are_of_the_network(keys: tuple[str, ...]) -> None:
    sent = [{"containerID": "a", "ifname": "eth0"}, {"ContainerID": "b", "IfName": "eth1"}]
    assert parse_valid_attachments(request(**dict.fromkeys(keys, sent))) == {owner("a"), owner("b", ifname="eth1")}


def test_no_list_of_valid_attachments_is_refused() -> None:
    error = refusal(parse_valid_attachments, request())
    assert (error.code, error.msg) == (
        Code.INVALID_CONFIG,
        "cni.dev/valid-attachments is missing, so nothing was removed",
    )


@pytest.mark.parametrize(
    ("sent", "code", "msg"),
    [
        ({}, Code.DECODING_FAILURE, "cni.dev/valid-attachments is {}, expected a list"),
        ("all", Code.DECODING_FAILURE, 'cni.dev/valid-attachments is "all", expected a list'),
        ([None], Code.DECODING_FAILURE, "cni.dev/valid-attachments[0] is null, expected an object"),
        (["a"], Code.DECODING_FAILURE, 'cni.dev/valid-attachments[0] is "a", expected an object'),
        (
            [{"containerID": "a", "ifname": 5}],
            Code.DECODING_FAILURE,
            "cni.dev/valid-attachments[0].ifname is 5, expected a string",
        ),
        (
            [{"containerID": "a"}],
            Code.INVALID_CONFIG,
            "cni.dev/valid-attachments[0] lacks containerID or ifname, so nothing was removed",
        ),
        (
            [{"containerID": "a", "ifname": "eth0"}, {"ifname": "eth0"}],
            Code.INVALID_CONFIG,
            "cni.dev/valid-attachments[1] lacks containerID or ifname, so nothing was removed",
        ),
    ],
)
def test_malformed_valid_attachments(sent: object, code: Code, msg: str) -> None:
    error = refusal(parse_valid_attachments, request(**{"cni.dev/valid-attachments": sent}))
    assert (error.code, error.msg) == (code, msg)
