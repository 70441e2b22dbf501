"""Lets a network's traffic through another program's FORWARD chain of iptables that drops by default (Docker, ufw).

What one nftables table accepts, another may still drop. Two rules for each link are put first there, in DOCKER-USER
where Docker keeps that; they accept what leaves the link, answers to it, and what goes to published ports. It takes
a run of iptables when a network's link is first used, and none for a container.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni_bridge import trace
from cni_bridge.cni.errors import FirewallFailed
from cni_bridge.firewall.libnftables import Nftables, NftError
from cni_bridge.firewall.nftables_lookup import Lookup
from cni_bridge.tag import MARK, network_tag
from ipam import effects

log = logging.getLogger(__name__)

_PATIENCE = 10  # seconds that iptables waits for its lock, and we for iptables
_LEGACY_NAMES = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_TOOLS = {4: "iptables", 6: "ip6tables"}
_TABLES = {4: "ip filter", 6: "ip6 filter"}
_OPTIONS = {"iifname": "-i", "oifname": "-o"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """A chain that the links' rules belong into: the program that changes it, and what it accepts already.

    `accepts` has pairs of an option, `-i` or `-o`, and a link.
    """

    tool: str
    name: str
    accepts: frozenset[tuple[str, str]]


def ensure_forward_accepted(nft: Nftables, look: Lookup, network: str, link: str) -> None:
    """Have the FORWARD chains that drop accept the link's traffic; nothing is run where none does, or all is there."""
    for chain in _chains(nft, look):
        for rule in _rules(network, link):
            if rule[:2] not in chain.accepts:
                log.info("letting traffic of %s through chain %s of %s", link, chain.name, chain.tool)
                _run(chain.tool, "-I", chain.name, *rule)


def missing_forward_accept(nft: Nftables, look: Lookup, network: str, link: str) -> list[str]:
    """What of that is missing, in words."""
    return [
        f"{chain.tool} rule for {link} in chain {chain.name}, which would drop: {' '.join(rule)}"
        for chain in _chains(nft, look)
        for rule in _rules(network, link)
        if rule[:2] not in chain.accepts
    ]


def forget_forward_accept(nft: Nftables, look: Lookup, network: str, links: Collection[str]) -> None:
    """Remove the network's rules for these links from these chains."""
    tag = network_tag(network)
    for chain in _chains(nft, look):
        if any(link in links for _, link in chain.accepts):
            for line in _run(chain.tool, "-S", chain.name).splitlines():
                if tag in line and line.startswith("-A "):
                    _run(chain.tool, "-D", *line.replace('"', "").split()[1:])


def _rules(network: str, link: str) -> Iterator[tuple[str, ...]]:
    comment = ("-m", "comment", "--comment", network_tag(network))
    yield ("-i", link, *comment, "-j", "ACCEPT")
    yield ("-o", link, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT", *comment, "-j", "ACCEPT")


def _chains(nft: Nftables, look: Lookup) -> Iterator[_Chain]:
    """The chains by which both variants of iptables drop."""
    for family, table in _TABLES.items():
        tool = _found(f"{_TOOLS[family]}-nft", _TOOLS[family]) if look.drops_by_default(table, "FORWARD") else ""
        if tool and (forward := _query(nft, f"chain {table} FORWARD")):
            user = _query(nft, f"chain {table} DOCKER-USER")
            rules = [each["rule"] for each in user or forward if "rule" in each]
            accepts = frozenset(found for each in rules if (found := _accepted(each["expr"])))
            yield _Chain(tool=tool, name="DOCKER-USER" if user else "FORWARD", accepts=accepts)
        legacy = _found(f"{_TOOLS[family]}-legacy") if "filter" in _legacy_tables(family).split() else ""
        if legacy:
            saved = _run(legacy, "-S").splitlines()
            if "-P FORWARD DROP" in saved:
                yield _legacy_chain(legacy, saved)


def legacy_tables() -> tuple[str, ...]:
    """The tables of legacy iptables that are in use, of each family as a text."""
    return tuple(map(_legacy_tables, _LEGACY_NAMES))


def _legacy_tables(family: int) -> str:
    try:
        with open(_LEGACY_NAMES[family]) as names:
            return names.read()
    except OSError:  # its module is not loaded
        return ""


def _accepted(expressions: list[dict[str, Any]]) -> tuple[str, str] | None:
    """The option and the link of a rule that accepts by a link and at most by the connection's state."""
    if not any("accept" in each for each in expressions):
        return None
    matches = [each["match"] for each in expressions if "match" in each]
    by_link = [each for each in matches if each["left"].get("meta", {}).get("key") in _OPTIONS]
    others = [each for each in matches if each not in by_link and "ct" not in each["left"]]
    if len(by_link) != 1 or others or not isinstance(by_link[0]["right"], str):
        return None
    return _OPTIONS[by_link[0]["left"]["meta"]["key"]], by_link[0]["right"]


def _legacy_chain(tool: str, saved: list[str]) -> _Chain:
    name = "DOCKER-USER" if "-N DOCKER-USER" in saved else "FORWARD"
    words = [line.split() for line in saved if line.startswith(f"-A {name} ") and line.endswith("-j ACCEPT")]
    accepts = frozenset((each[2], each[3]) for each in words if each[2] in ("-i", "-o") and MARK in " ".join(each))
    return _Chain(tool=tool, name=name, accepts=accepts)


def _query(nft: Nftables, what: str) -> list[dict[str, Any]]:
    try:
        return nft.query(f"list {what}")
    except NftError:
        return []


def _found(*names: str) -> str:
    return next((name for name in names if shutil.which(name, path=_PATH)), "")


def _run(tool: str, *words: str) -> str:
    path = shutil.which(tool, path=_PATH) or tool
    # To look needs no lock, which some other program may hold for long.
    environment = {**os.environ, "XTABLES_LOCKFILE": "/dev/null"} if words[0] == "-S" else None
    trace.count("processes")
    effects.change(f"run {tool}")
    try:
        done = subprocess.run(
            [path, "-w", str(_PATIENCE), *words],
            capture_output=True,
            text=True,
            timeout=2 * _PATIENCE,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallFailed(f"{tool} cannot be run: {error}") from None
    if done.returncode != 0:
        raise FirewallFailed(f"{tool} {' '.join(words)}: {' '.join(done.stderr.split())}")
    return done.stdout
