"""On a full disk no address is given, but every one can be given back, and nothing is lost."""

from __future__ import annotations

import json

from ipam.reserve import SIZE
from tests.conftest import serve_ipam
from tests.support.ctl import STATE, ctl, ctl_json, found
from tests.support.host import Answer, Host, Json
from tests.support.ipamd import Ipamd, greets, outside_path, wait_until

CONF: Json = {
    "cniVersion": "1.1.0",
    "name": "net1",
    "type": "bridge",
    "ipam": {"type": "cni-ipam", "subnet": "10.202.0.0/21"},
}
MANY = 1500
FILLED, RESERVE = f"{STATE}/filled", f"{STATE}/ipam.reserve"


def call(host: Host, command: str, container: str = "", **keys: object) -> Answer:
    return host.plugin(command, {**CONF, **keys}, container, plugin="cni-ipam")


def lease_many(host: Host) -> None:
    """Have containers `c0` and so on hold addresses."""
    directory = outside_path(host, "/var/lib/cni/networks/net1")
    directory.mkdir(parents=True)
    for i in range(MANY):
        (directory / f"10.202.{i // 250}.{i % 250 + 2}").write_text(f"c{i}\r\neth0")
    outside_path(host, "/run/net1.json").write_text(json.dumps(CONF))
    ctl(host, "import", "host-local", "net1", "--conf", "/run/net1.json", "--yes")


def fill(host: Host) -> None:
    host.shell(f"cat /dev/zero > {FILLED}", check=False)


def holders(host: Host) -> set[str]:
    return {each["container_id"] for each in ctl_json(host, "leases")}


def assert_no_address_is_given(host: Host) -> None:
    for command, code in (("ADD", 11), ("STATUS", 50)):
        answer = call(host, command, "new")
        assert (answer.code, RESERVE in answer.error["msg"]) == (code, True), answer.stdout
        assert "held in reserve for releases" in answer.error["msg"]
        assert "free space on its file system" in answer.error["msg"]


def test_a_full_disk_takes_no_address_and_keeps_none(host: Host, ipam_path: str) -> None:
    host.shell(f"mount -t tmpfs -o size=2m,mode=755 tmpfs {STATE}")
    lease_many(host)
    serve_ipam(host, ipam_path)
    fill(host)
    held = {f"c{i}" for i in range(MANY)}
    assert_no_address_is_given(host)
    for name in ("c0", "c1"):
        call(host, "DEL", name).succeeded()
    assert holders(host) == held - {"c0", "c1"}
    call(host, "CHECK", "c2").succeeded()
    valid = [{"containerID": name, "ifname": "eth0"} for name in ("c2", "c3")]
    call(host, "GC", **{"cni.dev/valid-attachments": valid}).succeeded()
    assert holders(host) == {"c2", "c3"}
    assert not outside_path(host, RESERVE).exists(), "all of this went without the room in reserve"
    assert_no_address_is_given(host)
    call(host, "DEL", "c2").succeeded()
    ctl(host, "release", "c3", "--yes")
    assert holders(host) == set()
    host.shell(f"rm {FILLED}")
    call(host, "STATUS").succeeded()
    call(host, "ADD", "new").succeeded()
    assert outside_path(host, RESERVE).stat().st_size == SIZE
    assert (holders(host), found(host, status=0)) == ({"new"}, [])


def test_a_daemon_starts_on_a_full_disk_and_takes_addresses_back(host: Host) -> None:
    host.shell(f"mount -t tmpfs -o size=1m,mode=755 tmpfs {STATE}")
    call(host, "ADD", "a").succeeded()
    fill(host)
    daemon = Ipamd(host)
    wait_until(lambda: daemon.process.poll() is not None or greets(host), "ipamd neither greets nor ends")
    assert daemon.process.poll() is None, daemon.complaint()
    assert_no_address_is_given(host)
    call(host, "DEL", "a").succeeded()
    assert holders(host) == set()
