"""The main job, shown: two containers on one bridge, from ADD to ping through NAT, CHECK, DEL, and nothing left."""

from __future__ import annotations

import json
import subprocess

from rich.console import Console
from rich.table import Table

from tests.support.confs import DUAL_STACK, add_outside, bridge_conf, with_result
from tests.support.host import BIN, Host, Json

CONTAINERS = ("web", "db")
TARGETS = (
    ("the other container", "10.88.0.3", "fd00:88::3"),
    ("the gateway", "10.88.0.1", "fd00:88::1"),
    ("the outside, through NAT", "198.51.100.2", "2001:db8:51::2"),
)

console = Console(highlight=False, markup=False, emoji=False, width=max(100, Console().width))


def main() -> None:
    """Run the demo; it fails with the command that did."""
    before = _own_network()
    host = Host()
    try:
        _show(host)
    finally:
        host.close()
    assert _own_network() == before
    console.print("\nThis machine's own links and rules are as they were before.", style="bold")


def _show(host: Host) -> None:
    conf = bridge_conf(ipam=DUAL_STACK)
    _title("A host, two containers' namespaces and an outside world, all in namespaces of their own")
    add_outside(host)
    for name in CONTAINERS:
        host.add_netns(name)
    console.print_json(json.dumps(conf))

    results = {}
    for name in CONTAINERS:
        _title(f"ADD {name}")
        results[name] = host.plugin("ADD", conf, name).result
        console.print(_result_table(results[name]))

    _title("cni-bridgectl leases")
    console.print(host.run(BIN / "cni-bridgectl", "leases").stdout.rstrip())

    _title(f"ping from {CONTAINERS[0]}")
    for words, *addresses in TARGETS:
        for address in addresses:
            host.ping(address, CONTAINERS[0])
            console.print(f"  {address:<16} answers ({words})")
    host.ping("10.88.0.2", "outside", reached=False)
    console.print("  10.88.0.2        is unknown to the outside: NAT is what lets the answers back")

    _title("CHECK and DEL")
    for name in CONTAINERS:
        host.plugin("CHECK", with_result(conf, results[name]), name).succeeded()
        host.plugin("DEL", with_result(conf, results[name]), name).succeeded()
        console.print(f"  {name}: as attached, and detached")

    _title("What is left")
    host.assert_nothing_left()
    for name in CONTAINERS:
        assert "eth0" not in host.links(name)
    console.print(
        "  no interface in the containers, no veth on the host, no lease, no rule for an attachment, no record"
    )
    console.print(
        "  the bridge stays for the next container, as with the reference plugin: " + ", ".join(_bridges(host))
    )


def _result_table(result: Json) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in ("interface", "MAC address", "MTU", "where", "addresses"):
        table.add_column(column)
    for position, each in enumerate(result["interfaces"]):
        addresses = " ".join(ip["address"] for ip in result["ips"] if ip.get("interface") == position)
        where = each.get("sandbox", "host")
        table.add_row(f"  {each['name']}", each["mac"], str(each.get("mtu", "")), where, addresses)
    return table


def _bridges(host: Host) -> list[str]:
    return [name for name, link in host.links().items() if link.get("linkinfo", {}).get("info_kind") == "bridge"]


def _own_network() -> list[str]:
    """The links and rules of this machine itself."""
    commands = (("ip", "-brief", "link"), ("nft", "list", "ruleset"))
    return [subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands]


def _title(text: str) -> None:
    console.print(f"\n{text}", style="bold cyan")


if __name__ == "__main__":
    main()
