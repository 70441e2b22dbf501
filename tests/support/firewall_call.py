"""Calls a firewall backend in the network namespace of this process: JSON in and out.

Standard input: `{"backend": ..., "patience": seconds, "calls": [[method, policy], ["collect", [network, owners]],
["evict", key], ["forget_link", network]]}`; `claimed` is asked for a policy's publications and answered by their words.
Standard output: a list of what each call returned; a failure ends the list with its code and message.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

from cni_bridge.cni.errors import CniError, LockBusy
from cni_bridge.firewall.api import Firewall
from cni_bridge.firewall.iptables import IptablesFirewall
from cni_bridge.firewall.nftables import NftablesFirewall
from cni_bridge.policy import Policy
from ipam.api import Owner
from ipam.codec import Json, decode


def main() -> None:
    asked = json.load(sys.stdin)
    nftables = asked["backend"] == "nftables"
    firewall: Firewall = NftablesFirewall() if nftables else IptablesFirewall()
    answers: list[Json] = []
    try:
        for method, argument in asked["calls"]:
            answers.append(_patiently(partial(_call, firewall, method, argument), asked["patience"]))
    except CniError as error:
        answers.append({"code": int(error.code), "msg": error.msg})
    json.dump(answers, sys.stdout)


def _patiently(call: Callable[[], Json], patience: float) -> Json:
    deadline = time.monotonic() + patience
    while True:
        try:
            return call()
        except LockBusy:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _call(firewall: Firewall, method: str, argument: Json) -> Json:
    if method == "collect":
        network, keep = argument
        return firewall.collect(network, frozenset(decode(Owner, each) for each in keep))
    if method in ("evict", "forget_link"):
        return getattr(firewall, method)(argument)
    policy = decode(Policy, argument)
    if method == "claimed":
        return {str(each): tag for each, tag in firewall.claimed(policy.publications, policy.owner).items()}
    return getattr(firewall, method)(policy)


if __name__ == "__main__":
    main()
