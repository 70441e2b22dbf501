"""The daemons need no more than their units leave them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.bridged import Bridged
from tests.support.confs import DUAL_STACK, bridge_conf, with_result
from tests.support.host import BIN, Host

pytestmark = pytest.mark.oneshot("starts the daemon itself")

UNITS = Path(__file__).parents[2] / "packaging/systemd"


def privileges(unit: str) -> list[str]:
    """The words that run a command with the capabilities that the unit leaves it."""
    (kept,) = re.findall(r"^CapabilityBoundingSet=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    names = [each.removeprefix("CAP_").lower() for each in kept.split()]
    return [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        f"--bounding-set={','.join(['-all', *map('+{}'.format, names)])}",
    ]


def test_the_daemon_serves_with_what_its_unit_leaves_it(either_host: Host, backend: str) -> None:
    host = either_host
    words = privileges("cni-bridged.service")
    assert host.run(*words, "sh", "-c", "grep CapEff /proc/self/status").stdout.split()[1] != "0" * 16
    host.daemon = Bridged(host, BIN / "cni-bridged", *words, arguments=("--trace",)).started()
    host.add_netns("c")
    conf = bridge_conf(
        ipMasq=True,
        ipMasqBackend=backend,
        ipam=DUAL_STACK,
        capabilities={"portMappings": True, "bandwidth": True},
        sysctl={"net.ipv4.conf.eth0.arp_filter": "1"},
        runtimeConfig={
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
            ],
            "bandwidth": {
                "ingressRate": 8_000_000,
                "ingressBurst": 800_000,
                "egressRate": 8_000_000,
                "egressBurst": 800_000,
            },
        },
    )
    result = host.plugin("ADD", conf, "c").result
    host.ping("10.88.0.1", "c")
    host.plugin("CHECK", with_result(conf, result), "c").succeeded()
    host.plugin("STATUS", conf).succeeded()
    host.plugin("GC", {**conf, "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}]}).succeeded()
    host.plugin("DEL", conf, "c").succeeded()
    said = host.daemon.said()
    assert [each for each in ("ADD", "CHECK", "DEL") if f": {each} c: " not in said] == []
    host.assert_nothing_left()


def test_the_address_service_serves_without_any_capability(host: Host) -> None:
    assert "CapabilityBoundingSet=\n" in (UNITS / "ipamd.service").read_text()
    host.shell("mkdir -p /var/lib/cni-bridge /run/cni-bridge; chown 12345:12345 /var/lib/cni-bridge /run/cni-bridge")
    words = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", *privileges("ipamd.service")[1:]]
    host.start(*words, BIN / "ipamd")
    host.shell("for i in $(seq 200); do test -S /run/cni-bridge/ipamd.sock && exit; sleep 0.05; done; exit 1")
    host.add_netns("c")
    conf = bridge_conf()
    host.plugin("ADD", conf, "c").succeeded()
    assert len(json.loads(host.run(BIN / "cni-bridgectl", "leases", "--json").stdout)) == 1
    host.plugin("DEL", conf, "c").succeeded()
    host.assert_nothing_left()
