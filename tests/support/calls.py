"""Requests, owners and range sets for tests that run no process."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from cni_bridge.cni.errors import CniError
from cni_bridge.cni.request import Request, parse_request
from ipam.api import Owner, RangeSet
from ipam.ranges import build_range, build_sets

OWNER = Owner(network="net1", container_id="c1", ifname="eth0")

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
}


def owner(container_id: str, network: str = "net1", ifname: str = "eth0") -> Owner:
    """An owner of `net1`, told apart by its container."""
    return Owner(network=network, container_id=container_id, ifname=ifname)


def request(environ: dict[str, str] | None = None, /, **keys: object) -> Request:
    """A request with these configuration keys and changes of the environment; ADD of 1.1.0 otherwise."""
    config = {"cniVersion": "1.1.0", "name": "net1", "type": "cni-bridge", **keys}
    return parse_request({**ENVIRONMENT, **(environ or {})}, json.dumps(config).encode())


def refusal(call: Callable[..., object], *args: object) -> CniError:
    """The error that the call raises."""
    with pytest.raises(CniError) as caught:
        call(*args)
    return caught.value


def range_sets(*sets: list[str]) -> tuple[RangeSet, ...]:
    """Range sets of subnets, each with the default ends and gateway."""
    return build_sets([[build_range(ip_network(subnet)) for subnet in subnets] for subnets in sets])
