"""No input makes a parser fail otherwise than by its own refusal, nor a daemon end, hang or answer twice.

`python -m tests.robustness.fuzz TARGET` goes on for longer, led by the code's branches. What it finds becomes a case.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bridged import SOCKET, Bridged
from tests.support.confs import DUAL_STACK, bridge_conf
from tests.support.direct import Direct
from tests.support.fuzzing import SEEDS, TARGETS, leaves, replaced
from tests.support.host import BIN, Host, Json

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, -1, 1e308, float("inf"), float("nan"), 10**400]),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(
        ["", "\0", "../../etc/passwd", "a" * 5000, "10.0.0.0/33", "::/129", "0.0.0.0/0", "\ud800", "%n", "/"]
    ),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.just(json.loads("[" * 200 + "]" * 200)),
)


@st.composite
def mutated(draw: Callable[..., Any]) -> bytes:
    """A configuration in which up to three values are something else."""
    value = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 3))):
        value = replaced(value, draw(st.sampled_from(leaves(value))), draw(ODD))
    return json.dumps(value).encode()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@given(data=st.one_of(mutated(), st.binary(max_size=300)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_bytes_are_read_or_refused(target: Callable[[bytes], None], data: bytes) -> None:
    target(data)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b"{}",
        b"null",
        b'{"name": "n", "name": "m"}',
        b"a: &a [*a]",
        b"!!python/object/apply:os.system ['true']",
    ],
    ids=["nothing", "no UTF-8", "deep list", "deep object", "long number", "{}", "null", "twice", "cycle", "object"],
)
def test_bytes_that_have_led_others_astray(target: Callable[[bytes], None], data: bytes) -> None:
    target(data)


def mutate(conf: Json, choice: random.Random) -> Json:
    """The configuration with one value changed; what would reach beyond the host's namespaces is left."""
    odd = [
        None,
        True,
        -1,
        2**40,
        "",
        "x",
        "../x",
        "10.88.0.0/24",
        "fd00::1",
        [],
        {},
        [{}],
        "a" * 300,
        1.5,
        "\n",
        "cni0",
    ]
    paths = [each for each in leaves(conf) if each and each[-1] not in ("type", "resolvConf")]
    changed: Json = replaced(conf, choice.choice(paths), choice.choice(odd))
    return changed


def test_requests_of_any_kind_leave_the_daemon_alive_and_the_host_clean(host: Host, is_complete: bool) -> None:
    seed = time.time_ns()
    choice = random.Random(seed)
    host.add_netns("c")
    host.daemon = Bridged(host, BIN / "cni-bridged").started()
    base = bridge_conf(
        ipMasqBackend="nftables",
        ipam=DUAL_STACK,
        capabilities={"portMappings": True},
        runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        sysctl={"net.ipv4.conf.eth0.arp_filter": "1"},
    )
    deadline = time.monotonic() + (300 if is_complete else 10)
    number = 0
    while time.monotonic() < deadline:
        number += 1
        conf = mutate(base, choice)
        for _ in range(choice.randrange(3)):
            conf = mutate(conf, choice)
        command = choice.choice(["ADD", "ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "X", ""])
        env = (
            {}
            if choice.random() < 0.8
            else {choice.choice(["CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_NETNS"]): "x=1;"}
        )
        with Direct(host) as connection:
            connection.call(command, conf, "c", env)
            answer = connection.answer()
        told = f"seed {seed}, request {number}: {command} {json.dumps(conf)}: {answer}"
        assert answer.status in (0, 1), told
        assert "Traceback" not in answer.stdout + answer.stderr, told
        if answer.stdout:
            assert json.loads(answer.stdout).get("code") != 999, told  # one document, and none of our own faults
        elif answer.status:
            raise AssertionError(told)
    assert host.daemon.process.poll() is None
    clean = bridge_conf(ipMasqBackend="nftables", ipam=DUAL_STACK)
    for name in {str(name) for name in host.shell("ls /run/cni-bridge/attachments").split()} | {"net1"}:
        conf = {**clean, "name": name, "cni.dev/valid-attachments": []}
        with Direct(host) as connection:
            connection.call("GC", conf, "c")
            assert connection.answer().status == 0
    assert host.run("test", "-S", SOCKET, check=False).returncode == 0
    assert host.leases() == []
    assert [name for name in host.links() if name not in ("lo",) and not name.startswith(("cni", "br", "x"))] == []
