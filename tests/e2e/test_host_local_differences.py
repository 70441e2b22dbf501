"""Debian's `host-local` and `cni-ipam` side by side: each row of docs/host-local.md, and that all else is the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import FunctionType

import pytest

from tests.support.confs import VERSIONS
from tests.support.host import Host, Json
from tests.support.host_local import IPV4, RANGES, REFUSED, Both

PAGE = Path(__file__).parents[2] / "docs" / "host-local.md"
FIRST = "10.88.0.2/24"
THREE = {**IPV4, "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.12"}
FOUR = {**IPV4, "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.13"}
SECOND_SET_FULL = {"ranges": [[IPV4], [{"subnet": "10.89.0.0/30"}]]}
GC: Json = {"cni.dev/valid-attachments": []}


@pytest.fixture
def both(host: Host) -> Both:
    return Both(host)


def same(answer: str) -> tuple[str, str]:
    return answer, answer


# What differs: the docstring of each test is the first cell of its row on the page.


def test_a_repeat_is_answered_again(both: Both) -> None:
    """ADD again"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("ADD a", IPV4) == (999, FIRST)
    assert both("ADD a/eth1", IPV4) == same("10.88.0.3/24")


def test_a_repeat_that_requests_an_address_exchanges_it(both: Both) -> None:
    """ADD again, with a requested address"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("ADD a IP=10.88.0.50", IPV4) == same("10.88.0.50/24")
    assert both("ADD b IP=10.88.0.2", IPV4) == (999, FIRST)


def test_a_repeat_after_the_range_moved_exchanges_the_address(both: Both) -> None:
    """ADD again, when the address is in no range any more"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("ADD a", {**IPV4, "rangeStart": "10.88.0.100"}) == same("10.88.0.100/24")
    assert both("ADD b IP=10.88.0.2", IPV4) == (999, FIRST)


def test_a_failed_request_leaves_no_trace(both: Both) -> None:
    """ADD that fails in a later range set"""
    assert both("ADD a", SECOND_SET_FULL) == same(f"{FIRST} 10.89.0.2/30")
    assert both("ADD b", SECOND_SET_FULL) == (999, 101)
    assert both("DEL a", SECOND_SET_FULL) == same("")
    assert both("ADD b", SECOND_SET_FULL) == ("10.88.0.4/24 10.89.0.2/30", "10.88.0.3/24 10.89.0.2/30")


def test_check_compares_the_addresses(both: Both) -> None:
    """CHECK"""
    assert both("ADD a", IPV4) == same(FIRST)
    for address, outcome in ((FIRST, same("")), ("10.88.0.99/24", ("", 100))):
        result = {"cniVersion": "1.0.0", "ips": [{"address": address}]}
        assert both("CHECK a", IPV4, prevResult=result) == outcome


def test_version_1_1_0_is_spoken(both: Both) -> None:
    """CNI 1.1.0"""
    assert both("ADD a", IPV4, "1.1.0") == (1, FIRST)


def test_status_tells_whether_an_address_is_free(both: Both) -> None:
    """STATUS"""
    one = {**IPV4, "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.10"}
    assert both("STATUS", one, "1.1.0") == (3, "")
    assert both("ADD a", one) == same("10.88.0.10/24")
    assert both("STATUS", one, "1.1.0") == (3, 50)


def test_gc_takes_back_what_is_not_valid(both: Both) -> None:
    """GC"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("GC", IPV4, "1.1.0", **GC) == (3, "")
    assert both("CHECK a", IPV4) == ("", 100)


@pytest.mark.parametrize("ipam", [{"subnet": "nonsense"}, {"ranges": [[]]}, {}], ids=str)
def test_del_needs_no_valid_configuration(both: Both, ipam: Json) -> None:
    """DEL with a configuration that has become invalid"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("DEL a", ipam) == (999, "")
    assert both("CHECK a", IPV4) == ("", 100)


@pytest.mark.parametrize("args", ["MAC=02:00:00:00:00:05", "GATEWAY=10.88.0.1", "STICKY=db"])
def test_args_of_other_plugins_are_known(both: Both, args: str) -> None:
    """`CNI_ARGS` with `MAC`, `GATEWAY` or `STICKY`, without `IgnoreUnknown`"""
    assert both(f"ADD a {args}", IPV4) == (999, FIRST)


def test_errors_have_codes_of_their_own(both: Both) -> None:
    """the code of an error"""
    one = {**IPV4, "rangeEnd": "10.88.0.2"}
    assert both("ADD a", one) == same(FIRST)
    assert both("ADD b", one) == (999, 101)
    assert both("ADD b IP=10.88.0.2", one) == (999, 102)
    assert both("ADD b IP=10.99.0.9", one) == (999, 102)
    assert both("ADD b IP=nonsense", one) == (999, 4)
    assert both("ADD b", {"subnet": "nonsense"}) == (999, 7)
    assert both("ADD b", {"subnet": 5}) == (999, 6)
    assert both("CHECK b", one) == (999, 100)


def test_a_released_address_rests(both: Both) -> None:
    """an address after its release"""
    for request in ("ADD x IP=10.88.0.13", "ADD a", "DEL a", "DEL x", "ADD x IP=10.88.0.13"):
        both.agree(request, FOUR)  # theirs is now about to come to .10, which has just been released
    assert both("ADD b", FOUR) == ("10.88.0.10/24", "10.88.0.11/24")


def test_the_longest_rest_ends_first(both: Both) -> None:
    """released addresses, when there are no others"""
    for request in ("ADD a", "ADD b", "ADD c", "DEL b", "DEL a"):
        both.agree(request, THREE)
    assert both("ADD d", THREE) == ("10.88.0.10/24", "10.88.0.11/24")
    assert both("ADD e", THREE) == ("10.88.0.11/24", "10.88.0.10/24")


def test_a_requested_address_does_not_move_the_turn(both: Both) -> None:
    """the address after a requested one"""
    assert both("ADD a IP=10.88.0.50", IPV4) == same("10.88.0.50/24")
    assert both("ADD b", IPV4) == ("10.88.0.51/24", FIRST)


@pytest.mark.parametrize(
    ("ipam", "theirs", "ours"),
    [
        ({**IPV4, "rangeStart": "10.88.0.0"}, "10.88.0.0/24", FIRST),
        ({**IPV4, "rangeStart": "10.88.0.255", "rangeEnd": "10.88.0.255"}, "10.88.0.255/24", 101),
        ({"subnet": "fd00:88::/64", "rangeStart": "fd00:88::"}, "fd00:88::/64", "fd00:88::2/64"),
    ],
    ids=["network", "broadcast", "subnet-router anycast"],
)
def test_the_subnets_own_addresses_are_not_handed_out(both: Both, ipam: Json, theirs: str, ours: str | int) -> None:
    """network and broadcast address, when they are in the range"""
    assert both("ADD a", ipam) == (theirs, ours)


@pytest.mark.parametrize(
    ("subnet", "first"),
    [
        ("10.88.0.0/31", "10.88.0.1/31"),
        ("10.88.0.5/32", "10.88.0.5/32"),
        ("fd00:88::/127", "fd00:88::1/127"),
        ("fd00:88::5/128", "fd00:88::5/128"),
    ],
)
def test_the_smallest_subnets_are_used_in_full(both: Both, subnet: str, first: str) -> None:
    """subnets of /31, /32, /127 and /128"""
    assert both("ADD a", {"subnet": subnet}) == (999, first)
    assert both("ADD b", {"subnet": subnet}) == (999, 101)


def test_what_is_excluded_is_not_handed_out(both: Both) -> None:
    """`exclude`"""
    ipam = {**IPV4, "exclude": ["10.88.0.2", "10.88.0.4/30"]}
    assert both("ADD a", ipam) == (FIRST, "10.88.0.3/24")
    assert both("ADD b", ipam) == ("10.88.0.3/24", "10.88.0.8/24")


def test_a_sticky_address_waits(both: Both) -> None:
    """`args.cni.sticky`"""
    key: Json = {"args": {"cni": {"sticky": "db"}}}
    assert both("ADD a", THREE, **key) == same("10.88.0.10/24")
    for request in ("DEL a", "ADD b", "ADD c"):
        both.agree(request, THREE)
    assert both("ADD d", THREE) == ("10.88.0.10/24", 101)
    assert both("ADD e", THREE, **key) == (999, "10.88.0.10/24")


def test_a_lease_does_not_outlive_a_reboot(both: Both) -> None:
    """leases of before a reboot"""
    one = {**IPV4, "rangeEnd": "10.88.0.2"}
    assert both("ADD a", one) == same(FIRST)
    reboot = """sqlite3.connect("/var/lib/cni-bridge/ipam.db", isolation_level=None).execute(
        "UPDATE addresses SET boot_id = 'an earlier one'")"""
    both.host.run("python3", "-c", f"import sqlite3; {reboot}")
    assert both("ADD b", one) == (999, FIRST)


def test_without_a_subnet_one_is_chosen(both: Both) -> None:
    """no `subnet` and no `ranges`"""
    assert both("ADD a", {}) == (999, "10.168.0.2/24")


def test_a_subnet_of_a_size_is_chosen(both: Both) -> None:
    """`subnet` `0.0.0.0/26`"""
    assert both("ADD a", {"subnet": "0.0.0.0/26"}) == (999, "10.168.0.2/26")


@pytest.mark.parametrize(
    ("subnet", "first"),
    [("10.88.0.0/24", FIRST), ("10.88.0.0/16", "10.88.0.2/16"), ("10.88.0.128/25", "10.88.0.130/25")],
)
def test_networks_may_not_overlap_unless_they_say_so(both: Both, subnet: str, first: str) -> None:
    """a subnet that overlaps another network's"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("ADD a", {"subnet": subnet}, name="net2") == (first, 104)
    assert both("ADD b", {"subnet": subnet, "allowOverlap": True}, name="net2")[1] == first


def test_the_hosts_own_addresses_are_in_the_way(both: Both) -> None:
    """a subnet that overlaps an address of another link of the host"""
    for link, address in (("cni0", "10.88.0.1/24"), ("lan0", "10.89.0.9/24")):
        both.host.shell(f"ip link add {link} type bridge; ip address add {address} dev {link}; ip link set {link} up")
    assert both("ADD a", IPV4) == same(FIRST), "the address of the network's own bridge is not in the way"
    assert both("ADD a", {"subnet": "10.89.0.0/24"}, name="net2") == ("10.89.0.2/24", 104)


def test_a_subnet_with_leases_is_not_left(both: Both) -> None:
    """a change that leaves leases outside of all subnets"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("ADD b", {"subnet": "10.89.0.0/24"}) == ("10.89.0.2/24", 104)


def test_a_gateway_does_not_move_onto_a_lease(both: Both) -> None:
    """a change that makes a leased address the gateway"""
    assert both("ADD a", IPV4) == same(FIRST)
    assert both("ADD b", {**IPV4, "gateway": "10.88.0.2"}) == ("10.88.0.3/24", 104)


@pytest.mark.parametrize(
    ("keys", "theirs"),
    [
        ({"gateway": "fd00::1"}, "10.88.0.1/24"),
        ({"routes": [{"dst": "192.0.2.0/24", "gw": "fd00::1"}]}, FIRST),
        ({"routes": [{"gw": "10.88.0.1"}]}, FIRST),
    ],
    ids=["gateway", "route", "route without dst"],
)
def test_what_contradicts_itself_is_refused(both: Both, keys: Json, theirs: str) -> None:
    """a gateway of the other family, a route without `dst`"""
    assert both("ADD a", {**IPV4, **keys}) == (theirs, 7)


def test_the_data_directory_is_the_settings_business(both: Both) -> None:
    """`dataDir`"""
    assert both("ADD a", {**IPV4, "dataDir": "/run/one"}) == same(FIRST)
    assert both("ADD b", {**IPV4, "dataDir": "/run/other"}) == (FIRST, "10.88.0.3/24")


def test_routes_keep_all_their_attributes(both: Both) -> None:
    """`mtu`, `advmss`, `priority`, `table` and `scope` of a route"""
    route = {"dst": "192.0.2.0/24", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 100, "scope": 0}
    theirs, ours = both.answers("ADD a", {**IPV4, "routes": [route]})
    assert (theirs.result["routes"], ours.result["routes"]) == ([{"dst": "192.0.2.0/24"}], [route])


def test_a_destination_is_a_subnet(both: Both) -> None:
    """a route's `dst` with host bits"""
    theirs, ours = both.answers("ADD a", {**IPV4, "routes": [{"dst": "192.0.2.9/24"}]})
    assert (theirs.result["routes"], ours.result["routes"]) == ([{"dst": "192.0.2.9/24"}], [{"dst": "192.0.2.0/24"}])


def test_an_empty_dns_is_left_out(both: Both) -> None:
    """`dns` of a result of version 1.0.0, when there is nothing in it"""
    theirs, ours = both.answers("ADD a", IPV4)
    assert (theirs.result["dns"], "dns" in ours.result) == ({}, False)


def test_the_first_address_may_be_claimed_in_cni_bridge(both: Both) -> None:
    """under `cni-bridge`: a range that starts at the first address, `isGateway` false"""
    given = []
    for name, kind in (("theirs", "host-local"), ("ours", "cni-ipam")):
        both.host.add_netns(name)
        ipam = {**IPV4, "type": kind, "rangeStart": "10.88.0.1"}
        conf = {"cniVersion": "1.0.0", "name": name, "type": "cni-bridge", "bridge": name, "ipam": ipam}
        given.append([each["address"] for each in both.host.plugin("ADD", conf, name).result["ips"]])
    assert given == [[FIRST], ["10.88.0.1/24"]]


def test_each_row_of_the_page_has_its_test() -> None:
    rows = re.findall(r"^\| (.+?) \| .+ \| .+ \|$", PAGE.read_text(), re.M)
    tests = [
        each.__doc__
        for each in globals().values()
        if isinstance(each, FunctionType) and each.__name__.startswith("test_") and each.__doc__
    ]
    assert rows == tests


# What is the same

CONFIGURATIONS: dict[str, Json] = {
    "flat subnet": IPV4,
    "flat IPv6 subnet": {"subnet": "fd00:88::/64"},
    "a /8": {"subnet": "10.0.0.0/8"},
    "keys in other case": {"SUBNET": "10.88.0.0/24", "RangeStart": "10.88.0.5"},
    "unknown keys": {**IPV4, "unknown": [1]},
    "IPv6 in another spelling": {"subnet": "FD00:88:0::/64", "rangeStart": "fd00:0088::00FF"},
    "ends of the range": {**IPV4, "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.11"},
    "one address": {**IPV4, "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.10"},
    "gateway within the range": {**IPV4, "rangeStart": "10.88.0.9", "gateway": "10.88.0.10"},
    "gateway at the start of the range": {**IPV4, "rangeStart": "10.88.0.9", "gateway": "10.88.0.9"},
    "gateway is the whole range": {
        **IPV4,
        "rangeStart": "10.88.0.9",
        "rangeEnd": "10.88.0.9",
        "gateway": "10.88.0.9",
    },
    "gateway outside of the subnet": {**IPV4, "gateway": "192.0.2.1"},
    "range starts at the default gateway": {**IPV4, "rangeStart": "10.88.0.1"},
    "last IPv6 address": {"subnet": "fd00:88::/64", "rangeStart": "fd00:88::ffff:ffff:ffff:ffff"},
    "smallest subnets": {"ranges": [[{"subnet": "10.88.0.0/30"}, {"subnet": "10.88.0.4/30"}]]},
    "smallest IPv6 subnet": {"subnet": "fd00:88::/126"},
    "one set of two subnets": {
        "ranges": [[{**IPV4, "rangeStart": "10.88.0.11", "rangeEnd": "10.88.0.11"}, {"subnet": "10.89.0.0/24"}]]
    },
    "two ranges of one subnet": {"ranges": [[{**IPV4, "rangeEnd": "10.88.0.3"}, {**IPV4, "rangeStart": "10.88.0.9"}]]},
    "two sets of one subnet": {"ranges": [[{**IPV4, "rangeEnd": "10.88.0.9"}], [{**IPV4, "rangeStart": "10.88.0.20"}]]},
    "dual stack": {"ranges": RANGES},
    "flat subnet beside sets": {"subnet": "10.90.0.0/24", "ranges": RANGES},
    "flat subnet beside no sets": {**IPV4, "ranges": []},
    "three sets": {"ranges": [*RANGES, [{"subnet": "10.91.0.0/16", "rangeStart": "10.91.7.7"}]]},
    "routes": {
        "ranges": RANGES,
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "192.0.2.0/24", "gw": "10.88.0.7"},
            {"dst": "::/0", "gw": "fd00:88::7"},
        ],
    },
    "a route of the other family": {**IPV4, "routes": [{"dst": "::/0"}]},
    "resolvConf": {**IPV4, "resolvConf": "/etc/cni/resolv.conf"},
}

IN_TURN = ("ADD a", "ADD b", "DEL a", "ADD c")  # the last shows where a search begins
REQUESTS: dict[str, tuple[str, ...]] = {
    "round and round": ("ADD a", "DEL a", "ADD a", "DEL a", "ADD a", "ADD b", "DEL a", "DEL b", "ADD c"),
    "exhausted": ("ADD a", "ADD b", "ADD c", "ADD d", "CHECK d", "DEL b", "ADD d", "ADD b"),
    "interfaces": ("ADD a/eth0", "ADD a/eth1", "DEL a/eth0", "CHECK a/eth0", "CHECK a/eth1", "DEL a/eth2", "ADD b"),
    "never added": ("DEL a", "CHECK a", "DEL a", "ADD a"),
    "requested": ("ADD a IP=10.88.0.12", "CHECK a", "ADD b IP=10.88.0.12", "DEL a", "ADD b IP=10.88.0.12/16"),
    "requested what cannot be": ("ADD a IP=10.88.0.1", "ADD a IP=10.88.0.0", "ADD a IP=10.99.0.1", "ADD a IP=x"),
    "args": ("ADD a IgnoreUnknown=1;K8S_POD_NAME=x", "ADD b K8S_POD_NAME=x", "ADD c IP=", "ADD d IP", "ADD d ip=1"),
    "bad environment": ("ADD", "ADD a@b", "ADD a/an-interface-name-too-long", "EXPLODE a"),
}

RESOLV_CONF = """\
# a comment
; another
nameserver 10.88.0.1 10.88.0.2
nameserver
  nameserver\tfd00:88::1
NAMESERVER 10.88.0.9
domain first.example
domain example.com second
search a.example b.example
search c.example # no comment
options ndots:5 rotate
sortlist 10.0.0.0
"""


@pytest.fixture
def resolv_conf(host: Host) -> None:
    host.run("tee", "/etc/cni/resolv.conf", stdin=RESOLV_CONF.encode())


@pytest.mark.usefixtures("resolv_conf")
@pytest.mark.parametrize(
    ("ipam", "requests"),
    [
        *(pytest.param(ipam, IN_TURN, id=name) for name, ipam in CONFIGURATIONS.items()),
        *(pytest.param(ipam, ("ADD a", "CHECK a"), id=name) for name, ipam in REFUSED.items()),
        *(pytest.param(THREE, requests, id=name) for name, requests in REQUESTS.items()),
    ],
)
def test_everything_else_is_the_same(both: Both, ipam: Json, requests: tuple[str, ...]) -> None:
    for request in requests:
        both.agree(request, ipam)


@pytest.mark.parametrize(
    ("request_", "keys"),
    [
        ("ADD a", {"args": {"cni": {"ips": ["10.88.0.77", "fd00:88::77/64"]}}}),
        ("ADD a", {"args": {"cni": {"labels": [{"key": "a", "value": "b"}]}}}),
        ("ADD a", {"args": {"cni": None}}),
        ("ADD a", {"runtimeConfig": {"ips": ["fd00:88::77"]}}),
        ("ADD a", {"runtimeConfig": {"ips": ["fd00:88::77", "fd00:88::77"]}}),
        ("ADD a", {"runtimeConfig": {"ips": [""]}}),
        ("ADD a", {"runtimeConfig": {"ips": "10.88.0.77"}}),
        ("ADD a IP=10.88.0.77", {"args": {"cni": {"ips": ["fd00:88::77"]}}}),
        ("ADD a IP=10.88.0.77", {"runtimeConfig": {"ips": ["fd00:88::77"]}}),
        ("ADD a IP=10.88.0.77", {"runtimeConfig": {"ips": ["10.88.0.78"]}}),
        ("ADD a", {"runtimeConfig": {"ipRanges": [[{"subnet": "10.99.0.0/24"}]], "ips": ["10.99.0.9", "10.88.0.9"]}}),
        ("ADD a", {"runtimeConfig": {"ipRanges": [[{"subnet": "10.88.0.0/25"}]]}}),
        ("ADD a", {"runtimeConfig": {"ipRanges": [[]]}}),
        ("ADD a", {"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.1/24"}]}}),
        ("ADD a", {"name": "n.e-t_1"}),
        ("ADD a", {"name": "a/b"}),
        ("ADD a", {"name": ""}),
    ],
    ids=str,
)
def test_what_a_runtime_passes_has_the_same_effect(both: Both, request_: str, keys: Json) -> None:
    both.agree(request_, {"ranges": RANGES}, **keys)


@pytest.mark.usefixtures("resolv_conf")
@pytest.mark.parametrize("version", [*VERSIONS[:-1], "", "9.9.9"])  # theirs knows no 1.1.0
def test_every_version_has_the_same_result(both: Both, version: str) -> None:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "2001:db8::/32", "gw": "fd00:88::7"}]
    ipam = {"ranges": RANGES, "routes": routes, "resolvConf": "/etc/cni/resolv.conf"}
    both.agree("ADD a", ipam, version)
    both.agree("CHECK a", ipam, version)
    both.agree("ADD b", {"ranges": [[{"subnet": "10.89.0.0/24"}], [{"subnet": "10.90.0.0/24"}]]}, version, name="net2")
