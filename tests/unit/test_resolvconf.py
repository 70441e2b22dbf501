"""Resolver settings from a file in the format of resolv.conf(5)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni_bridge.cni.errors import Code
from cni_bridge.resolvconf import parse_resolv_conf, read_resolv_conf
from ipam.api import Dns
from tests.support.calls import refusal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Dns()),
        ("nameserver 10.0.0.1\nnameserver\tfd00::1\n", Dns(nameservers=("10.0.0.1", "fd00::1"))),
        ("  nameserver 10.0.0.1 ignored", Dns(nameservers=("10.0.0.1",))),
        ("nameserver 10.0.0.1\r\n", Dns(nameservers=("10.0.0.1",))),
        ("nameserver\ndomain\nsearch\noptions\n", Dns()),
        ("domain a.test\ndomain b.test", Dns(domain="b.test")),
        ("search a.test b.test\nsearch c.test", Dns(search=("a.test", "b.test", "c.test"))),
        ("options ndots:2 rotate\noptions timeout:1", Dns(options=("ndots:2", "rotate", "timeout:1"))),
        ("# nameserver 10.0.0.1\n; nameserver 10.0.0.1\n#nameserver 10.0.0.1\n;search a\n", Dns()),
        ("sortlist 10.0.0.0\nlookup file bind\nnonsense\n", Dns()),
    ],
)
def test_parse(text: str, expected: Dns) -> None:
    assert parse_resolv_conf(text) == expected


def test_read_passes_over_what_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"# caf\xe9\nnameserver 10.0.0.1\n")
    assert read_resolv_conf(str(path)) == Dns(nameservers=("10.0.0.1",))


@pytest.mark.parametrize("path", ["/nowhere/resolv.conf", "/", "a\0b", "\ud800"])
def test_a_path_that_cannot_be_read_is_refused_with_its_key(path: str) -> None:
    error = refusal(read_resolv_conf, path)
    assert error.code == Code.INVALID_CONFIG
    assert error.msg.startswith(f'ipam.resolvConf "{path}" cannot be read')


@pytest.mark.timeout(5)
def test_a_fifo_cannot_hang_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(read_resolv_conf, str(tmp_path / "fifo")).code == Code.INVALID_CONFIG
