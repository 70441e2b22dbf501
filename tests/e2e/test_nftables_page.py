"""The page on the nftables rules shows them as the kernel lists them."""

from __future__ import annotations

import re
from pathlib import Path

from cni_bridge.firewall.nftables_layout import TABLES
from tests.support.confs import DUAL_STACK, bridge_conf
from tests.support.host import Host

TEXT = (Path(__file__).parents[2] / "docs" / "nftables.md").read_text()


def chains(text: str) -> list[list[str]]:
    """The chains in a listing, each as its lines without indentation."""
    found = re.findall(r"^[ \t]*chain \w+ \{\n.*?^\s*\}", text, re.M | re.S)
    return [[line.strip() for line in each.splitlines() if line.strip()] for each in found]


def test_the_page_shows_the_rules_as_they_are(host: Host) -> None:
    conf = bridge_conf(
        ipam=DUAL_STACK,
        macspoofchk=True,
        ipspoofchk=True,
        runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    )
    host.add_netns("a")
    host.plugin("ADD", conf, "a").succeeded()
    actual = chains(host.shell("nft --stateless list ruleset"))
    shown = chains(TEXT)
    assert sorted(shown) == sorted(each for each in actual if each[0] not in ("chain admin {", "chain conditional {"))
    rules = sum(not line.startswith(("chain", "type", "}")) for each in actual for line in each)
    assert f"they are the same {rules} rules" in TEXT.replace("\n", " ")
    host.plugin("DEL", conf, "a").succeeded()
    host.assert_nothing_left()


def test_the_page_names_every_set_and_map() -> None:
    names = {re.sub("[46]$", "4", name) for table in TABLES.values() for name in table.sets}
    assert names - set(re.findall(r"`(\w+)`", TEXT)) == set()
