"""The `ipam` section as `host-local` reads it, and addresses requested by a runtime."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from cni_bridge.cni.errors import Code, as_cni_error
from cni_bridge.cni.ipamconf import IpamConf, parse_ipam
from ipam.api import ANY_LINK, AnySubnet, Dns, NetnsRef, RangeSet, Route
from tests.support.calls import OWNER, refusal, request

SUBNET = {"subnet": "10.88.0.0/24"}
MASKS = ("255.255.255.0", "0.0.0.255")  # which Python reads as prefix lengths, and the reference does not


def parse(ipam: object, **keys: object) -> IpamConf:
    return parse_ipam(request(ipam=ipam, **keys))


def test_the_old_form_has_the_subnet_in_the_section() -> None:
    section = {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.20", "gateway": "10.88.0.8"}
    (offer,) = parse(section).range_sets
    (each,) = offer.ranges
    assert (each.subnet, str(each), each.gateway) == (
        ip_network("10.88.0.0/24"),
        "10.88.0.9-10.88.0.20",
        ip_address("10.88.0.8"),
    )


def test_range_sets_come_from_the_runtime_then_the_old_form_then_the_new_one() -> None:
    conf = parse(
        {
            "Subnet": "10.1.0.0/24",
            "RANGES": [[{"subnet": "10.2.0.0/30"}, {"Subnet": "10.3.0.0/30"}], [{"subnet": "fd00::/64"}]],
        },
        runtimeConfig={"IpRanges": [[{"subnet": "10.4.0.0/30", "rangeStart": "10.4.0.2"}]]},
    )
    assert [str(each) for each in conf.range_sets] == [
        "10.4.0.2-10.4.0.2",
        "10.1.0.1-10.1.0.254",
        "10.2.0.1-10.2.0.2,10.3.0.1-10.3.0.2",
        "fd00::1-fd00::ffff:ffff:ffff:ffff",
    ]


@pytest.mark.parametrize("ipam", [{}, {"ranges": None}, {"ranges": []}])
def test_ranges_of_the_runtime_are_enough(ipam: object) -> None:
    conf = parse(ipam, runtimeConfig={"ipRanges": [[SUBNET]]})
    assert [str(each) for each in conf.range_sets] == ["10.88.0.1-10.88.0.254"]


def test_what_the_runtime_passes_is_told_from_what_is_configured() -> None:
    conf = parse(SUBNET, runtimeConfig={"ipRanges": [[{"subnet": "10.89.0.0/24"}], [{"subnet": "::/80"}]]})
    assert [each.runtime for each in conf.range_sets] == [True, True, False]


@pytest.mark.parametrize("ipam", [{}, {"subnet": None}, {"ranges": None}, {"ranges": []}, {"type": "cni-ipam"}])
def test_without_a_subnet_the_ipam_chooses_one(ipam: object) -> None:
    conf = parse(ipam)
    assert conf.range_sets == (RangeSet(any_subnet=AnySubnet(family=4)),)
    assert conf.gateways == frozenset()


@pytest.mark.parametrize(
    ("subnet", "wish"),
    [
        ("0.0.0.0/25", AnySubnet(family=4, prefixlen=25)),
        ("0.0.0.0/30", AnySubnet(family=4, prefixlen=30)),
        ("0.0.0.0/1", AnySubnet(family=4, prefixlen=1)),
        ("0.0.0.0/0", AnySubnet(family=4)),
        ("::/80", AnySubnet(family=6, prefixlen=80)),
        ("0::/126", AnySubnet(family=6, prefixlen=126)),
        ("::/0", AnySubnet(family=6)),
    ],
)
def test_a_subnet_of_the_zero_address_is_any_of_that_size(subnet: str, wish: AnySubnet) -> None:
    expected = RangeSet(any_subnet=wish)
    assert parse({"subnet": subnet}).range_sets == (expected,)
    both = parse({"ranges": [[{"subnet": subnet}], [{"Subnet": "10.88.0.0/24"}]]}).range_sets
    assert (both[0], str(both[1])) == (expected, "10.88.0.1-10.88.0.254")


@pytest.mark.parametrize("subnet", ["0.0.0.0/31", "0.0.0.0/32", "::/127", "::/128"])
def test_a_subnet_without_room_for_a_gateway_is_meant_as_it_is(subnet: str) -> None:
    (offer,) = parse({"subnet": subnet}).range_sets
    assert [each.subnet for each in offer.ranges] == [ip_network(subnet)]


def test_excluded_are_addresses_and_subnets() -> None:
    conf = parse({"ranges": [[{**SUBNET, "EXCLUDE": ["10.88.0.9", "10.88.0.64/26"]}], [{"subnet": "fd00::/64"}]]})
    (first,), (second,) = (each.ranges for each in conf.range_sets)
    assert first.exclude == (ip_network("10.88.0.9/32"), ip_network("10.88.0.64/26"))
    assert second.exclude == ()
    (offer,) = parse({**SUBNET, "exclude": ["10.88.0.9"]}).range_sets
    assert offer.ranges[0].exclude == first.exclude[:1]


def test_gateways_are_those_that_somebody_configured() -> None:
    conf = parse(
        {"ranges": [[SUBNET], [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}], [{"subnet": "fd00::/64"}]]},
        runtimeConfig={"ipRanges": [[{"subnet": "10.90.0.0/24", "gateway": "10.90.0.9"}]]},
    )
    given = [str(each.ranges[0].gateway) for each in conf.range_sets]
    assert given == ["10.90.0.9", "10.88.0.1", "10.89.0.1", "fd00::1"]
    assert conf.gateways == {ip_address("10.89.0.1"), ip_address("10.90.0.9")}


def test_a_range_that_starts_at_the_first_host_may_claim_it() -> None:
    sent = request(ipam={**SUBNET, "rangeStart": "10.88.0.1"})
    for allowed, gateway in ((False, "10.88.0.1"), (True, "None")):
        (offer,) = parse_ipam(sent, first_may_be_claimed=allowed).range_sets
        assert str(offer.ranges[0].gateway) == gateway


def test_requested_addresses_of_all_sources_in_order_with_or_without_prefix_length() -> None:
    sent = request(
        {"CNI_ARGS": "IP=10.88.0.5/24"},
        ipam={"ranges": [[SUBNET], [{"subnet": "fd00::/64"}]]},
        args={"cni": {"ips": ["10.88.0.6"]}},
        runtimeConfig={"IPs": ["10.88.0.7/16", "FD00::7"]},
    )
    assert [str(each) for each in parse_ipam(sent).requested] == ["10.88.0.5", "10.88.0.6", "10.88.0.7", "fd00::7"]


@pytest.mark.parametrize(
    "keys", [{}, {"args": {"cni": {"ips": []}}}, {"args": {"cni": None}, "runtimeConfig": {"ips": None}}]
)
def test_nothing_requested(keys: dict[str, object]) -> None:
    assert parse_ipam(request({"CNI_ARGS": "IP="}, ipam=SUBNET, **keys)).requested == ()


@pytest.mark.parametrize(
    "text",
    [
        "10.88.0",
        "10.88.0.256",
        "10.88.0.5/33",
        "10.88.0.5/x",
        "10.88.0.5/",
        "",
        "fe80::1%eth0",
        *(f"10.88.0.5/{mask}" for mask in MASKS),
    ],
)
def test_bad_requested_addresses(text: str) -> None:
    for keys, at in (
        ({"args": {"cni": {"ips": ["10.88.0.9", text]}}}, "args.cni.ips[1]"),
        ({"runtimeConfig": {"ips": [text]}}, "runtimeConfig.ips[0]"),
    ):
        error = refusal(parse_ipam, request(ipam=SUBNET, **keys))
        assert error.code == Code.INVALID_CONFIG
        assert at in error.msg
        assert text in error.msg


def test_bad_requested_address_in_cni_args_is_a_bad_environment() -> None:
    error = refusal(parse_ipam, request({"CNI_ARGS": "IP=nonsense"}, ipam=SUBNET))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert error.msg.startswith('CNI_ARGS IP "nonsense"')


@pytest.mark.parametrize(
    ("ipam", "code", "msg"),
    [
        (None, Code.INVALID_CONFIG, "IPAM config missing 'ipam' key"),
        ({"ranges": [[]]}, Code.INVALID_CONFIG, "range set 0 is empty"),
        ({"ranges": [SUBNET]}, Code.INVALID_CONFIG, "ipam.ranges[0] is not a list of ranges"),
        ({"ranges": [[None]]}, Code.DECODING_FAILURE, "ipam.ranges[0][0] is null, expected an object"),
        ({"ranges": SUBNET}, Code.DECODING_FAILURE, 'ipam.ranges is {"subnet": "10.88.0.0/24"}, expected a list'),
        ({"ranges": [[{}]]}, Code.INVALID_CONFIG, "ipam.ranges[0][0].subnet is missing"),
        ({"subnet": ""}, Code.INVALID_CONFIG, "ipam.subnet is missing"),
        ({"subnet": 10}, Code.DECODING_FAILURE, "ipam.subnet is 10, expected a string"),
        ({"subnet": "10.88.0.0"}, Code.INVALID_CONFIG, 'ipam: subnet "10.88.0.0" has no prefix length'),
        ({"subnet": "nonsense/24"}, Code.INVALID_CONFIG, 'ipam: subnet "nonsense/24" is not'),
        (
            {"ranges": [[SUBNET, {"subnet": "10.88.1.5/24"}]]},
            Code.INVALID_CONFIG,
            'ipam.ranges[0][1]: subnet "10.88.1.5/24" has host bits set',
        ),
        ({**SUBNET, "gateway": "nonsense"}, Code.INVALID_CONFIG, 'ipam.gateway "nonsense" is not an IP address'),
        ({**SUBNET, "rangeStart": "10.89.0.1"}, Code.INVALID_CONFIG, "ipam: rangeStart 10.89.0.1 is not in subnet"),
        ({**SUBNET, "ranges": [[SUBNET]]}, Code.INVALID_CONFIG, "range set 0 overlaps with range set 1"),
        ({"ranges": [[SUBNET, SUBNET]]}, Code.INVALID_CONFIG, "range set 0: ranges"),
        ({"ranges": [[SUBNET, {"subnet": "fd00::/64"}]]}, Code.INVALID_CONFIG, "range set 0 mixes IPv4 and IPv6"),
        ({**SUBNET, "exclude": "10.88.0.9"}, Code.DECODING_FAILURE, 'ipam.exclude is "10.88.0.9", expected a list'),
        ({**SUBNET, "exclude": [9]}, Code.DECODING_FAILURE, "ipam.exclude[0] is 9, expected a string"),
        (
            {"ranges": [[{**SUBNET, "exclude": ["10.88.0.9", "10.88.0.1/24"]}]]},
            Code.INVALID_CONFIG,
            'ipam.ranges[0][0].exclude[1] "10.88.0.1/24" is not an address or a subnet without host bits',
        ),
        (
            {"subnet": "fe80::/64", "exclude": ["fe80::1%eth0"]},
            Code.INVALID_CONFIG,
            'ipam.exclude[0] "fe80::1%eth0" is not an address or a subnet without host bits',
        ),
        (
            {**SUBNET, "exclude": ["10.89.0.9"]},
            Code.INVALID_CONFIG,
            "ipam: exclude 10.89.0.9/32 is not in subnet 10.88.0.0/24",
        ),
        *(
            (
                {"subnet": "0.0.0.0/24", key: value},
                Code.INVALID_CONFIG,
                f"ipam.{key} goes with a subnet of its own, 0.0.0.0/24 is any of that size",
            )
            for key, value in {**dict.fromkeys(("rangeStart", "rangeEnd", "gateway"), "0.0.0.9"), "exclude": []}.items()
        ),
        *(
            ({**SUBNET, **keys}, Code.INVALID_CONFIG, f'{at} "10.88.0.0/{mask}" is not ')
            for mask in MASKS
            for keys, at in (
                ({"subnet": f"10.88.0.0/{mask}"}, "ipam: subnet"),
                ({"exclude": [f"10.88.0.0/{mask}"]}, "ipam.exclude[0]"),
                ({"routes": [{"dst": f"10.88.0.0/{mask}"}]}, "ipam.routes[0].dst"),
            )
        ),
        ({**SUBNET, "allowOverlap": "yes"}, Code.DECODING_FAILURE, 'ipam.allowOverlap is "yes", expected true or'),
        ({**SUBNET, "routes": {}}, Code.DECODING_FAILURE, "ipam.routes is {}, expected a list"),
        ({**SUBNET, "routes": [{"dst": "x"}]}, Code.INVALID_CONFIG, 'ipam.routes[0].dst "x" is not a destination'),
        ({**SUBNET, "routes": [{}]}, Code.INVALID_CONFIG, 'ipam.routes[0].dst "" is not a destination'),
        (
            {**SUBNET, "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]},
            Code.INVALID_CONFIG,
            "ipam.routes[0].gw fd00::1 is not of the family of ipam.routes[0].dst 0.0.0.0/0",
        ),
        (
            {**SUBNET, "routes": [{"dst": "0.0.0.0/0", "scope": 256}]},
            Code.INVALID_CONFIG,
            "ipam.routes[0].scope 256 is not between 0 and 255",
        ),
    ],
)
def test_bad_sections(ipam: object, code: Code, msg: str) -> None:
    with pytest.raises(Exception) as caught:
        parse(ipam)
    error = as_cni_error(caught.value)
    assert error.code == code
    assert error.msg.startswith(msg)


def test_routes_and_dns_come_back_as_configured() -> None:
    route = {
        "dst": "10.9.0.0/16",
        "gw": "10.88.0.7",
        "mtu": 1400,
        "advmss": 1360,
        "priority": 5,
        "table": 100,
        "scope": 0,
    }
    conf = parse({**SUBNET, "routes": [{"dst": "0.0.0.0/0"}, route], "resolvConf": "/etc/resolv.conf"})
    assert conf.resolv_conf == "/etc/resolv.conf"
    wanted = conf.wanted(OWNER, Dns(nameservers=("10.88.0.53",)))
    assert wanted.owner == OWNER
    assert wanted.range_sets == conf.range_sets
    assert wanted.dns == Dns(nameservers=("10.88.0.53",))
    assert wanted.routes == (
        Route(dst=ip_network("0.0.0.0/0")),
        Route(
            dst=ip_network("10.9.0.0/16"),
            gw=ip_address("10.88.0.7"),
            mtu=1400,
            advmss=1360,
            priority=5,
            table=100,
            scope=0,
        ),
    )


@pytest.mark.parametrize(
    ("section", "allowed"), [({}, False), ({"allowOverlap": False}, False), ({"AllowOverlap": True}, True)]
)
def test_a_subnet_overlaps_others_only_if_that_is_allowed(section: dict[str, object], allowed: bool) -> None:
    assert parse({**SUBNET, **section}).allow_overlap is allowed


@pytest.mark.parametrize(
    ("args", "keys", "sticky"),
    [
        ("", {}, ""),
        ("", {"args": {"cni": {"sticky": "db"}}}, "db"),
        ("STICKY=db", {}, "db"),
        ("STICKY=of the runtime", {"args": {"cni": {"sticky": "db"}}}, "db"),
        ("STICKY=db", {"args": {"cni": {"sticky": ""}}}, "db"),
        ("STICKY=", {"args": {"cni": None}}, ""),
    ],
)
def test_a_sticky_key_of_the_configuration_goes_before_that_of_cni_args(
    args: str, keys: dict[str, object], sticky: str
) -> None:
    assert parse_ipam(request({"CNI_ARGS": args}, ipam=SUBNET, **keys)).sticky == sticky


def test_a_sticky_key_is_a_string() -> None:
    error = refusal(parse_ipam, request(ipam=SUBNET, args={"cni": {"sticky": True}}))
    assert (error.code, error.msg) == (Code.DECODING_FAILURE, "args.cni.sticky is true, expected a string")


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ("", ""),
        ("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1", "shop/web-0"),
        ("IgnoreUnknown=1;K8S_POD_NAME=web-0", "web-0"),
    ],
)
def test_the_name_is_that_of_the_pod(args: str, name: str) -> None:
    assert parse_ipam(request({"CNI_ARGS": args}, ipam=SUBNET)).name == name


@pytest.mark.parametrize(
    ("keys", "links"),
    [
        ({"type": "cni-bridge"}, ("cni0",)),
        ({"type": "bridge", "bridge": ""}, ("cni0",)),
        ({"type": "bridge", "Bridge": "br1"}, ("br1",)),
        ({"type": "bridge", "bridge": "br1", "vlan": 7}, ("br1", "br1.7")),
        ({"type": "bridge", "vlan": 0}, ("cni0",)),
        ({"type": "some-other", "bridge": "br1"}, ("br1",)),
        ({"type": "macvlan", "master": "eth0"}, ("eth0",)),
        ({"type": "some-other", "master": "eth0"}, ("eth0",)),
        *(({"type": each}, (ANY_LINK,)) for each in ("macvlan", "ipvlan", "vlan", "host-device", "sriov")),
        ({"type": "macvlan", "master": ""}, (ANY_LINK,)),
        ({"type": "ptp"}, ()),
    ],
    ids=str,
)
def test_the_networks_own_links(keys: dict[str, object], links: tuple[str, ...]) -> None:
    assert parse(SUBNET, **keys).links == links


def test_what_is_wanted_has_all_that_was_said() -> None:
    args = "IgnoreUnknown=1;STICKY=db;IP=10.88.0.5;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    conf = parse_ipam(request({"CNI_ARGS": args}, bridge="br1", ipam={**SUBNET, "allowOverlap": True}))
    netns = NetnsRef(path="/run/netns/c1", device=4, inode=7)
    wanted = conf.wanted(OWNER, Dns(), netns=netns, mac="02:00:00:00:00:01")
    assert (wanted.requested, wanted.sticky, wanted.name) == ((ip_address("10.88.0.5"),), "db", "shop/web-0")
    assert (wanted.links, wanted.allow_overlap) == (("br1",), True)
    assert (wanted.netns, wanted.mac) == (netns, "02:00:00:00:00:01")
