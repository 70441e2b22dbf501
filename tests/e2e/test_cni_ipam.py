"""`cni-ipam` as an interface plugin calls it, by the daemon and without; tests/e2e/test_host_local_differences.py
compares it with the reference."""

from __future__ import annotations

import json
import time

import pytest

from tests.conftest import serve_ipam
from tests.support.confs import with_result
from tests.support.host import Answer, Host, Json
from tests.support.host_local import IPV4, RANGES, REFUSED, call, conf_of
from tests.support.ipamd import IN_PROCESS

STATE = "/var/lib/cni-bridge"
TWO_ADDRESSES = {**IPV4, "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.11"}


def addresses(answer: Answer) -> list[str]:
    return [each["address"] for each in answer.result["ips"]]


def holders(host: Host) -> list[str]:
    return [each["container_id"] for each in host.leases()]


@pytest.mark.parametrize("ipam", REFUSED.values(), ids=REFUSED.keys())
def test_a_configuration_that_cannot_be_used_is_refused(host: Host, ipam: Json) -> None:
    conf = conf_of(ipam)
    assert call(host, "ADD", conf, "a").code in (6, 7)
    assert host.leases() == []


def test_a_repeat_gives_the_same_result(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    first = call(host, "ADD", conf, "a").result
    call(host, "ADD", conf, "b").succeeded()
    assert call(host, "ADD", conf, "a").result == first
    assert len(host.leases()) == 4
    for _ in range(2):
        for name in ("a", "b"):
            call(host, "DEL", with_result(conf, first), name).succeeded()
    host.assert_nothing_left()


def test_exhausted_taken_and_free_again(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of(TWO_ADDRESSES)
    call(host, "STATUS", conf).succeeded()
    for name in ("a", "b"):
        call(host, "ADD", conf, name).succeeded()
    exhausted = call(host, "ADD", conf, "c").error
    assert (exhausted["code"], "10.88.0.10-10.88.0.11" in exhausted["msg"]) == (101, True)
    assert call(host, "STATUS", conf).code == 50
    taken = call(host, "ADD", conf, "c", "IP=10.88.0.10").error
    assert (taken["code"], "10.88.0.10" in taken["msg"], "container a " in taken["msg"]) == (102, True, True)
    assert holders(host) == ["a", "b"]
    call(host, "DEL", conf, "b").succeeded()
    assert addresses(call(host, "ADD", conf, "c")) == ["10.88.0.11/24"]


def test_check_compares_with_the_result(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    result = call(host, "ADD", conf, "a").result
    call(host, "CHECK", with_result(conf, result), "a").succeeded()
    call(host, "CHECK", conf, "a").succeeded()
    by_another_plugin = {**result, "ips": [*result["ips"], {"address": "192.0.2.1/24"}]}
    call(host, "CHECK", with_result(conf, by_another_plugin), "a").succeeded()
    differing = json.loads(json.dumps(result).replace("fd00:88::2", "fd00:88::9"))
    assert call(host, "CHECK", with_result(conf, differing), "a").code == 100
    assert call(host, "CHECK", with_result(conf, result), "b").code == 100
    call(host, "DEL", conf, "a").succeeded()
    assert call(host, "CHECK", with_result(conf, result), "a").code == 100


def test_gc_keeps_what_is_valid_and_other_networks(host: Host, ipam_path: str) -> None:
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    other = conf_of({"ranges": RANGES, "allowOverlap": True}, name="net2")
    for name in ("a", "b"):
        call(host, "ADD", conf, name).succeeded()
    call(host, "ADD", conf, "a", ifname="eth1").succeeded()
    call(host, "ADD", other, "b").succeeded()
    assert call(host, "GC", conf).code == 7
    assert len(host.leases()) == 8
    key, valid = "cni.dev/valid-attachments", [{"containerID": "a", "ifname": "eth0"}]
    call(host, "GC", {**conf, key: valid}).succeeded()
    assert {(each["network"], each["container_id"], each["ifname"]) for each in host.leases()} == {
        ("net1", "a", "eth0"),
        ("net2", "b", "eth0"),
    }
    call(host, "GC", {**conf, "cni.dev/attachments": None}).succeeded()
    call(host, "GC", {**other, key: []}).succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("ipam", [*REFUSED.values(), None], ids=[*REFUSED.keys(), "no ipam section"])
def test_del_with_a_configuration_that_has_become_invalid(host: Host, ipam: Json | None) -> None:
    call(host, "ADD", conf_of({"ranges": RANGES}), "a").succeeded()
    conf = conf_of(ipam or {})
    call(host, "DEL", conf if ipam is not None else {**conf, "ipam": None}, "a").succeeded()
    host.assert_nothing_left()


@pytest.mark.oneshot("a file system in use cannot be made read-only")
def test_a_read_only_state_directory_is_one_error_and_loses_nothing(host: Host) -> None:
    conf = conf_of({"ranges": RANGES})
    result = call(host, "ADD", conf, "a").result
    host.shell(f"mount -o remount,ro {STATE}")
    for command, container, code in (("ADD", "b", 5), ("DEL", "a", 5), ("STATUS", "", 50)):
        assert_refused_for_the_state_directory(call(host, command, conf, container), command, code)
    call(host, "CHECK", with_result(conf, result), "a").succeeded()
    host.shell(f"mount -o remount,rw {STATE}")
    assert_works_again(host, conf, result)


def assert_refused_for_the_state_directory(answer: Answer, command: str, code: int) -> None:
    assert answer.status == 1, f"{command}: {answer.stdout}"
    assert (answer.code, STATE in answer.error["msg"]) == (code, True), f"{command}: {answer.stdout}"


def assert_works_again(host: Host, conf: Json, result: Json) -> None:
    """With what container `a` was given still its own."""
    assert holders(host) == ["a", "a"]
    assert call(host, "ADD", conf, "a").result == result
    call(host, "ADD", conf, "b").succeeded()
    for name in ("a", "b"):
        call(host, "DEL", conf, name).succeeded()
    host.assert_nothing_left()


def fill(host: Host) -> None:
    host.shell(f"cat /dev/zero > {STATE}/filled", check=False)
    time.sleep(0.02)  # a daemon looks for room as often


def test_on_a_full_disk_no_address_is_given_and_every_one_is_taken_back(host: Host, ipam_path: str) -> None:
    host.shell(f"mount -t tmpfs -o size=2m,mode=755 tmpfs {STATE}")
    serve_ipam(host, ipam_path)
    conf = conf_of({"ranges": RANGES})
    results = {name: call(host, "ADD", conf, name).result for name in ("a", "b")}
    fill(host)
    for command, container, code in (("ADD", "c", 11), ("STATUS", "", 50)):
        assert_refused_for_the_state_directory(call(host, command, conf, container), command, code)
    call(host, "CHECK", with_result(conf, results["a"]), "a").succeeded()
    call(host, "DEL", conf, "b").succeeded()
    host.shell(f"rm {STATE}/filled")
    assert_works_again(host, conf, results["a"])


@pytest.mark.oneshot("no daemon starts without a database")
def test_a_state_directory_that_is_full_from_the_start(host: Host) -> None:
    host.shell(f"mount -t tmpfs -o size=16k,mode=755 tmpfs {STATE}")
    fill(host)
    conf = conf_of({"ranges": RANGES})
    assert call(host, "ADD", conf, "a").code == 11
    host.shell(f"mount -o remount,size=2m {STATE}")
    assert addresses(call(host, "ADD", conf, "a")) == ["10.88.0.2/24", "fd00:88::2/64"]


@pytest.mark.oneshot("no daemon starts without a database")
@pytest.mark.parametrize(
    "script",
    [
        "head -c 8192 /dev/urandom > ipam.db",
        "echo garbage > ipam.db",
        """python3 -c 'import sqlite3; sqlite3.connect("ipam.db").execute("create table other (x)")'""",
    ],
    ids=["damaged", "no database", "of another program"],
)
def test_what_is_no_database_of_ours_is_code_108_and_is_left_as_it_is(host: Host, script: str) -> None:
    host.shell(f"cd {STATE}; {script}")
    before = host.shell(f"sha1sum {STATE}/ipam.db")
    conf = conf_of({"ranges": RANGES})
    for command in ("ADD", "DEL"):
        error = call(host, command, conf, "a").error
        assert (error["code"], f"{STATE}/ipam.db" in error["msg"]) == (108, True), error
    assert call(host, "STATUS", conf).code == 50
    assert host.shell(f"sha1sum {STATE}/ipam.db") == before


def test_a_state_path_that_is_no_directory_is_code_5(host: Host) -> None:
    host.shell("touch /run/file")
    conf = conf_of({"ranges": RANGES})
    variables = {**IN_PROCESS, "CNI_BRIDGE_STATE_DIR": "/run/file"}
    error = host.plugin("ADD", conf, "a", plugin="cni-ipam", env=variables).error
    assert (error["code"], "/run/file" in error["msg"]) == (5, True), error
