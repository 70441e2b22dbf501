"""The commands that change what addresses are for: reserve, unreserve, release, forget."""

from __future__ import annotations

from ipaddress import ip_address

import click

from cni_bridge.ctl.access import all_entries, ask
from cni_bridge.ctl.looking import as_address
from cni_bridge.ctl.output import confirm, network_option, yes_option
from ipam.api import Address, Reservation, ReservedFor
from ipam.registry import Entry, Registry
from ipam.settings import Settings


class AddressParam(click.ParamType[Address]):
    """An IP address on the command line."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """See `click.ParamType.convert`."""
        try:
            return ip_address(str(value))
        except ValueError:
            self.fail(f"{value} is no IP address", param, ctx)


@click.command()
@click.argument("address", type=AddressParam())
@network_option()
@click.option("--name", default="", help="For the pod (NAMESPACE/POD or POD) or container of this name.")
@click.option("--mac", default="", help="For whoever asks with this MAC address.")
@click.option("--sticky", default="", help="For whoever asks with this sticky key.")
@click.pass_obj
def reserve(settings: Settings, address: Address, network: str | None, name: str, mac: str, sticky: str) -> None:
    """Reserves ADDRESS for a name, a MAC address or a sticky key; for nobody if none is given."""
    given = {ReservedFor.NAME: name, ReservedFor.MAC: mac.lower(), ReservedFor.STICKY: sticky}
    chosen = [Reservation(kind=kind, value=value) for kind, value in given.items() if value]
    if len(chosen) > 1:
        raise click.UsageError("--name, --mac and --sticky exclude each other")
    reservation = chosen[0] if chosen else Reservation(kind=ReservedFor.NOBODY)

    async def work(registry: Registry) -> str:
        of = network or await _network_of(registry, address)
        await registry.reserve(of, address, reservation)
        return of

    click.echo(f"{address} of network {ask(settings, work)} is reserved for {reservation}")


@click.command()
@click.argument("address", type=AddressParam())
@network_option()
@click.pass_obj
def unreserve(settings: Settings, address: Address, network: str | None) -> None:
    """Ends the reservation of ADDRESS; a lease that it has stays."""

    async def work(registry: Registry) -> str:
        of = network or await _network_of(registry, address)
        await registry.unreserve(of, address)
        return of

    click.echo(f"{address} of network {ask(settings, work)} is no longer reserved")


@click.command()
@click.argument("what", metavar="ADDRESS|CONTAINER")
@network_option()
@yes_option
@click.pass_obj
def release(settings: Settings, what: str, network: str | None, yes: bool) -> None:
    """Takes leases back: that of an address, or all of a container id. Whoever uses the address is not asked."""
    found = ask(settings, lambda registry: _leases_of(registry, what, network))
    if not found:
        raise click.ClickException(f"{what} has no lease")
    confirm(
        (f"{each.lease.address} of {each.lease.owner}" for each in found if each.lease is not None),
        f"Release {len(found)} addresses?",
        yes=yes,
    )

    async def work(registry: Registry) -> None:
        for each in found:
            if each.lease is not None:
                await registry.take_back(each.lease.owner, each.address)

    ask(settings, work)
    click.echo(f"{len(found)} addresses are released")


@click.command()
@click.argument("network")
@yes_option
@click.pass_obj
def forget(settings: Settings, network: str, yes: bool) -> None:
    """Removes the pools of a network that is no longer used; refused while it has leases or reservations."""
    found = ask(settings, lambda registry: registry.pools(network))
    confirm((f"{each.pool.subnet} of network {network}" for each in found), f"Forget network {network}?", yes=yes)
    ask(settings, lambda registry: registry.forget(network))
    click.echo(f"network {network} is forgotten")


async def _network_of(registry: Registry, address: Address) -> str:
    """The only network whose pools hold the address."""
    networks = {
        each.pool.network
        for each in await registry.pools()
        if each.pool.subnet.version == address.version and address in each.pool.subnet
    }
    if not networks:
        raise click.ClickException(f"{address} is in no pool")
    if len(networks) > 1:
        raise click.UsageError(f"{address} is in pools of {', '.join(sorted(networks))}; say which with --network")
    return networks.pop()


async def _leases_of(registry: Registry, what: str, network: str | None) -> list[Entry]:
    entries, address = await all_entries(registry, network), as_address(what)
    return [
        each
        for each in entries
        if each.lease is not None and (each.address == address or each.lease.owner.container_id == what)
    ]
