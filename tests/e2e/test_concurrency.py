"""Many requests at once, by whichever path, lose nothing and contradict each other in nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import start_ipamd
from tests.support.chain import CniDir
from tests.support.confs import DUAL_STACK, bridge_conf, with_result
from tests.support.host import Answer, Host, Json

CONTAINERS = [f"c{number}" for number in range(40)]


def at_once(calls: list[Callable[[], Answer]]) -> list[Answer]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


@pytest.mark.timeout(300)
def test_forty_at_once_on_a_new_network(host: Host, backend: str) -> None:
    start_ipamd(host)
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend)
    host.shell("".join(f"ip netns add {each};" for each in CONTAINERS))

    def call(command: str, container: str, answer: Answer | None = None) -> Answer:
        # Half of the containers have a run directory without a daemon's socket, and the same database.
        env = {"CNI_BRIDGE_RUN_DIR": "/run/other"} if int(container[1:]) % 2 else {}
        sent = with_result(conf, answer.result) if answer else conf
        return host.plugin(command, sent, container, env=env, timeout=200)

    added = at_once([lambda each=each: call("ADD", each) for each in CONTAINERS])
    addresses = [ip["address"] for answer in added for ip in answer.result["ips"]]
    assert len(set(addresses)) == len(addresses) == 80
    assert sorted(addresses) == sorted(lease["address"] for lease in host.leases())
    for container, answer in zip(CONTAINERS, added, strict=True):
        found = [ip["address"] for ip in answer.result["ips"]]
        assert host.addresses("eth0", container) == found
    masquerading = [each for each in host.nft_elements() if each.startswith(("masquerade", "local"))]
    assert len(masquerading if backend == "nftables" else host.iptables_rules()) == 2 * 80, "two for each address"
    both = zip(CONTAINERS, added, strict=True)
    for answer in at_once([lambda each=each, result=result: call("DEL", each, result) for each, result in both]):
        answer.succeeded()
    host.assert_nothing_left()
    assert host.files("/run/other/attachments", "/run/other/locks") == []


def test_one_owner_added_at_once_gets_one_answer(host: Host, backend: str) -> None:
    conf = bridge_conf(ipam=DUAL_STACK, ipMasqBackend=backend)
    host.add_netns("a")
    answers = at_once([lambda: host.plugin("ADD", conf, "a")] * 4)
    assert all(each.result == answers[0].result for each in answers)
    host.plugin("CHECK", with_result(conf, answers[0].result), "a").succeeded()
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("repetition", range(4))
def test_add_and_del_of_one_owner_end_consistent(host: Host, backend: str, repetition: int) -> None:
    conf = bridge_conf(ipMasqBackend=backend)
    host.add_netns("a")
    if repetition % 2:
        host.plugin("ADD", conf, "a").succeeded()
    calls = [lambda: host.plugin("ADD", conf, "a"), lambda: host.plugin("DEL", conf, "a")]
    if repetition >= 2:
        calls.reverse()
    for answer in at_once(calls):
        answer.succeeded()
    if host.leases():
        result = host.plugin("ADD", conf, "a").result
        host.plugin("CHECK", with_result(conf, result), "a").succeeded()
        host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_request_gives_up_while_another_of_its_owner_runs(host: Host, tmp_path: Path, command: str) -> None:
    plugins = CniDir(tmp_path)
    plugins.script("slow-ipam", "test $CNI_COMMAND = ADD || exit 0\n: > /run/asked; sleep infinity")
    impatient = tmp_path / "config.yaml"
    impatient.write_text("request_timeout: 4\n")
    host.add_netns("a")
    conf = bridge_conf(ipam={"type": "slow-ipam"})
    first = host.start(
        "cni-bridge",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "a",
            "CNI_NETNS": "/run/netns/a",
            "CNI_IFNAME": "eth0",
            **plugins.env,
        },
    )
    first.stdin.write(json.dumps(conf).encode())
    first.stdin.close()
    host.shell("while ! test -e /run/asked; do sleep 0.02; done")
    sent: Json = with_result(conf, {"cniVersion": "1.1.0", "ips": []})
    answer = host.plugin(command, sent, "a", env={**plugins.env, "CNI_BRIDGE_CONFIG": str(impatient)})
    assert answer.code == 11
    assert "net1/a/eth0" in answer.error["msg"]
