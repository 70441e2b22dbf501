"""The addresses that `static` gives: from where, with which gateway, and what it refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cni_bridge import static_ipam
from cni_bridge.cni.errors import CniError, Code
from cni_bridge.cni.result import Result, render
from cni_bridge.cni.versions import Version
from tests.support.calls import refusal, request

CONFIGURED = [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00:1::5/64"}]


def serve(environ: dict[str, str] | None = None, /, **keys: object) -> Result | None:
    return asyncio.run(static_ipam.serve(request(environ, **keys)))


def given(environ: dict[str, str] | None = None, /, **keys: Any) -> list[str]:
    """The addresses of ADD in words, with their gateways."""
    keys.setdefault("ipam", {"type": "static", "addresses": CONFIGURED})
    result = serve(environ, **keys)
    assert result is not None
    return [f"{each.address}" + (f" via {each.gateway}" if each.gateway else "") for each in result.ips]


def refused(environ: dict[str, str] | None = None, /, **keys: object) -> CniError:
    return refusal(lambda: serve(environ, **keys))


@pytest.mark.parametrize(
    ("args", "cni", "runtime", "expected"),
    [
        ("", None, None, ["10.1.0.5/24 via 10.1.0.1", "fd00:1::5/64"]),
        ("IP=10.2.0.5/24", None, None, ["10.1.0.5/24 via 10.1.0.1", "fd00:1::5/64", "10.2.0.5/24"]),
        (
            "IP=10.2.0.5/24,fd00:2::5/64;GATEWAY=10.2.0.9,fd00:2::9",
            None,
            None,
            ["10.1.0.5/24 via 10.1.0.1", "fd00:1::5/64", "10.2.0.5/24 via 10.2.0.9", "fd00:2::5/64 via fd00:2::9"],
        ),
        ("GATEWAY=10.1.0.9", None, None, ["10.1.0.5/24 via 10.1.0.9", "fd00:1::5/64"]),
        ("GATEWAY=192.0.2.1", None, None, ["10.1.0.5/24 via 10.1.0.1", "fd00:1::5/64"]),
        ("IP=10.2.0.5/24;GATEWAY=10.2.0.9", ["10.3.0.5/24"], None, ["10.3.0.5/24"]),
        ("IP=10.2.0.5/24", ["10.3.0.5/24"], ["10.4.0.5/24", "fd00:4::5/64"], ["10.4.0.5/24", "fd00:4::5/64"]),
        ("", None, ["10.4.0.5/24"], ["10.4.0.5/24"]),
        ("", [], [], ["10.1.0.5/24 via 10.1.0.1", "fd00:1::5/64"]),
    ],
)
def test_where_addresses_come_from(args: str, cni: object, runtime: object, expected: list[str]) -> None:
    keys = {"args": {"cni": {"ips": cni}}, "runtimeConfig": {"ips": runtime}}
    assert given({"CNI_ARGS": args}, **keys) == expected


def test_without_any_address_there_is_an_empty_result() -> None:
    assert given(ipam={"type": "static"}) == []


def test_routes_and_dns_are_passed_on() -> None:
    section = {
        "type": "static",
        "addresses": CONFIGURED,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}],
        "dns": {"nameservers": ["10.1.0.1"], "domain": "example", "search": ["a", "b"], "options": ["ndots:2"]},
    }
    result = serve(ipam=section)
    assert result is not None
    rendered = render(result, Version.V1_0_0)
    assert rendered["routes"] == section["routes"]
    assert rendered["dns"] == section["dns"]
    assert [each["address"] for each in rendered["ips"]] == ["10.1.0.5/24", "fd00:1::5/64"]


def test_a_version_that_has_room_for_one_address_of_a_family() -> None:
    one, two = [{"address": "10.1.0.5/24"}], [{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/24"}]
    assert given(cniVersion="0.2.0", ipam={"type": "static", "addresses": one}) == ["10.1.0.5/24"]
    error = refused(cniVersion="0.2.0", ipam={"type": "static", "addresses": two})
    assert error.code == Code.INVALID_CONFIG
    assert "0.2.0 does not support more than 1 address per family" in error.msg


@pytest.mark.parametrize(
    ("args", "keys", "code", "said"),
    [
        ("", {}, Code.INVALID_CONFIG, "IPAM config missing 'ipam' key"),
        ("", {"ipam": []}, Code.DECODING_FAILURE, "ipam is []"),
        ("", {"ipam": {"addresses": {}}}, Code.DECODING_FAILURE, "ipam.addresses is {}"),
        ("", {"ipam": {"addresses": [{}]}}, Code.INVALID_CONFIG, 'ipam.addresses[0].address ""'),
        ("", {"ipam": {"addresses": [{"address": "10.1.0.5"}]}}, Code.INVALID_CONFIG, 'address "10.1.0.5"'),
        ("", {"ipam": {"addresses": [{"address": "10.1.0.5/33"}]}}, Code.INVALID_CONFIG, '"10.1.0.5/33"'),
        (
            "",
            {"ipam": {"addresses": [{"address": "10.1.0.5/24", "gateway": "here"}]}},
            Code.INVALID_CONFIG,
            'ipam.addresses[0].gateway "here"',
        ),
        ("", {"ipam": {"routes": [{"dst": "there"}]}}, Code.INVALID_CONFIG, '"there"'),
        ("IP=10.1.0.5", {"ipam": {}}, Code.INVALID_ENVIRONMENT, 'CNI_ARGS IP "10.1.0.5"'),
        ("GATEWAY=10.1.0.1/24", {"ipam": {}}, Code.INVALID_ENVIRONMENT, 'CNI_ARGS GATEWAY "10.1.0.1/24"'),
        ("", {"ipam": {}, "args": {"cni": {"ips": ["10.1.0.5"]}}}, Code.INVALID_CONFIG, 'args.cni.ips[0] "10.1.0.5"'),
        ("", {"ipam": {}, "runtimeConfig": {"ips": ["10.1.0.5"]}}, Code.INVALID_CONFIG, "runtimeConfig.ips[0]"),
        ("", {"ipam": {}, "runtimeConfig": {"ips": "10.1.0.5/24"}}, Code.DECODING_FAILURE, "runtimeConfig.ips is"),
    ],
)
def test_what_cannot_be_given(args: str, keys: dict[str, object], code: Code, said: str) -> None:
    error = refused({"CNI_ARGS": args}, **keys)
    assert error.code == code
    assert said in error.msg


def checked(*ips: dict[str, str]) -> dict[str, object]:
    """The keys of a CHECK after this was answered."""
    return {
        "ipam": {"type": "static", "addresses": CONFIGURED},
        "prevResult": {"cniVersion": "1.1.0", "ips": list(ips)},
    }


CHECK = {"CNI_COMMAND": "CHECK"}


@pytest.mark.parametrize(
    "ips",
    [
        pytest.param([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00:1::5/64"}], id="as given"),
        pytest.param([], id="an address that is not in the result is no error, as with the reference"),
    ],
)
def test_check_of_what_was_given(ips: list[dict[str, str]]) -> None:
    assert serve(CHECK, **checked(*ips)) is None


def test_check_finds_another_gateway() -> None:
    error = refused(CHECK, **checked({"address": "10.1.0.5/24", "gateway": "10.1.0.9"}))
    assert error.code == Code.CHECK_FAILED
    assert "10.1.0.5/24" in error.msg


def test_check_needs_the_result() -> None:
    error = refused(CHECK, ipam={"type": "static"})
    assert (error.code, error.msg) == (Code.INVALID_CONFIG, "Required prevResult missing")


@pytest.mark.parametrize(
    "keys", [{"ipam": {"type": "static", "addresses": CONFIGURED}}, {"ipam": {"addresses": 5}}, {}]
)
@pytest.mark.parametrize("command", ["DEL", "GC", "STATUS"])
def test_there_is_nothing_to_release(command: str, keys: dict[str, object]) -> None:
    assert serve({"CNI_COMMAND": command}, **keys) is None
