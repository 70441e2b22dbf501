"""The command `audit`: does the store agree with itself, the namespaces and the attachments, and the repair of it."""

from __future__ import annotations

import os
import time

import click

from cni_bridge.audit import Adopt, Problem, Repair, TakeBack, Withhold, compare
from cni_bridge.ctl.access import all_entries, ask
from cni_bridge.ctl.output import confirm, json_option, show, show_json, table, yes_option
from cni_bridge.ctl.rebuilding import rebuild
from cni_bridge.datapath.survey import survey
from cni_bridge.ipam_host import KernelHost
from cni_bridge.plan import Attachment
from cni_bridge.records import Records
from ipam.api import Reservation, ReservedFor, Wanted
from ipam.clock import now
from ipam.errors import StoreDamaged
from ipam.registry import Entry, Finding, Moved, Pool, Registry
from ipam.settings import Settings

_BETWEEN_LOOKS = 2.0  # seconds: a DEL that was under way at the first look is through at the second


@click.command()
@click.option("--repair", is_flag=True, help="Put right what can be; name it and ask first.")
@yes_option
@json_option
@click.pass_obj
def audit(settings: Settings, repair: bool, yes: bool, as_json: bool) -> None:
    """Compares the store with itself, with all namespaces and with the attachments. Exits with 1 if they differ.

    With --repair, a damaged database is moved aside and made anew from the namespaces that live.
    """
    try:
        problems = _look(settings)
    except StoreDamaged as error:
        if not repair:
            raise click.ClickException(f'{error}; "cni-bridgectl audit --repair" makes it anew') from None
        rebuild(settings, yes=yes)
        problems = _look(settings)
    _report(problems, as_json=as_json)
    if repair and problems:
        problems = _repair(settings, problems, yes=yes)
    if problems:
        raise SystemExit(1)


def _look(settings: Settings) -> list[Problem]:
    """What differs now; `StoreDamaged` passes through, for it has a repair of its own."""

    async def work(registry: Registry) -> tuple[list[Finding], list[Entry], list[Pool]]:
        pools = [each.pool for each in await registry.pools()]
        return list(await registry.verify()), await all_entries(registry), pools

    findings, entries, pools = ask(settings, work, but=StoreDamaged)
    problems = [Problem(finding=each) for each in findings]
    if os.geteuid() != 0:
        click.echo("not root: the namespaces were not looked into", err=True)
        return problems
    attachments = list(Records(settings.run_dir / "attachments", Attachment).all())
    return problems + list(compare(entries, pools, survey(), attachments, KernelHost().lives, now().boot_id))


def _report(problems: list[Problem], *, as_json: bool) -> None:
    if as_json:
        show_json(
            [{"weight": each.finding.weight, "what": each.finding.what, "repair": _words(each)} for each in problems]
        )
        return
    if not problems:
        click.echo("nothing differs")
        return
    made = table("weight", "what", "repair")
    for each in problems:
        made.add_row(each.finding.weight, each.finding.what, _words(each))
    show(made)


def _words(problem: Problem) -> str:
    if problem.repair is not None:
        return str(problem.repair)
    return "make runs and indexes anew" if problem.finding.mendable else ""


def _repair(settings: Settings, problems: list[Problem], *, yes: bool) -> list[Problem]:
    """Repair what two looks found alike; what differs afterwards."""
    repairs = {each.repair for each in problems if each.repair is not None}
    mend = any(each.finding.mendable for each in problems)
    if not repairs and not mend:
        return problems
    confirm(sorted(_words(each) for each in problems if _words(each)), "Repair this?", yes=yes)
    if yes:
        time.sleep(_BETWEEN_LOOKS)
    again = {each.repair for each in _look(settings) if each.repair is not None}

    async def work(registry: Registry) -> None:
        if mend:
            await registry.mend()
        for each in repairs & again:
            await _carry_out(registry, each)

    ask(settings, work)
    left = _look(settings)
    click.echo(f"{len(problems) - len(left)} of {len(problems)} are repaired", err=True)
    return left


async def _carry_out(registry: Registry, repair: Repair) -> None:
    match repair:
        case TakeBack(owner=owner, address=address):
            await registry.take_back(owner, address)
        case Adopt(owner=owner, address=address):
            await registry.adopt(Wanted(owner=owner), (Moved(owner=owner, address=address),), ())
        case Withhold(network=network, address=address):
            await registry.reserve(network, address, Reservation(kind=ReservedFor.NOBODY))
