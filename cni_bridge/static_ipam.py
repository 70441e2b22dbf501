"""The IPAM plugin `static`: gives the addresses that are written in the configuration, and keeps no account of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cni_bridge.cni.errors import CheckFailed, CniError, Code, InvalidConfig
from cni_bridge.cni.fields import Fields, parse_address, parse_interface
from cni_bridge.cni.request import Command, Request, blame_args
from cni_bridge.cni.result import IpEntry, Result, parse_dns, parse_previous, parse_route, require_renderable
from ipam.api import Address, Allocation, Interface, Lease, Owner, Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    address: Interface
    gateway: Address | None = None


class StaticIpam:
    """What the request's configuration says; see `Ipam`."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def allocate(self, wanted: Wanted) -> Allocation:
        """See `Ipam.allocate`."""
        allocation = self.configured(wanted.owner)
        if not allocation.leases:
            raise CniError(Code.IPAM_PLUGIN_FAILED, "IPAM plugin returned missing IP config", "ipam.addresses is empty")
        return allocation

    def configured(self, owner: Owner) -> Allocation:
        """What the configuration says, which may be nothing."""
        section = _section(self._request)
        since = datetime.now(UTC).replace(microsecond=0)
        return Allocation(
            leases=tuple(
                Lease(owner=owner, address=each.address, gateway=each.gateway, since=since)
                for each in _given(self._request)
            ),
            routes=tuple(parse_route(each) for each in section.objects("routes")),
            dns=parse_dns(section.object("dns")),
        )

    async def release(self, owner: Owner) -> None:
        """See `Ipam.release`."""

    async def held(self, owner: Owner) -> tuple[Lease, ...]:
        """See `Ipam.held`."""
        return ()

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        """See `Ipam.check`: an address of the configuration has the gateway there that the result has."""
        previous = parse_previous(self._request.config, self._request.version)
        answered = {each.address: each.gateway for each in (previous.ips if previous is not None else ())}
        for each in _given(self._request):
            if each.gateway is not None and answered.get(each.address, each.gateway) != each.gateway:
                raise CheckFailed(f"address {each.address} has another gateway in the result than {each.gateway}", "")

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        """See `Ipam.collect`."""

    async def status(self, wanted: Wanted) -> None:
        """See `Ipam.status`."""


def _section(request: Request) -> Fields:
    if not request.config.has("ipam"):
        raise InvalidConfig("IPAM config missing 'ipam' key")
    return request.config.object("ipam")


def _given(request: Request) -> tuple[_Given, ...]:
    """The addresses in the reference's precedence: runtime, then `args`, then configuration and `CNI_ARGS`."""
    config = request.config
    for fields in (config.object("runtimeConfig"), config.object("args").object("cni")):
        if ips := fields.strings("ips"):
            return tuple(
                _Given(address=parse_interface(text, f"{fields.at('ips')}[{i}]")) for i, text in enumerate(ips)
            )
    section = _section(request)
    configured = [
        _Given(address=parse_interface(each.string("address"), each.at("address")), gateway=each.address("gateway"))
        for each in section.objects("addresses")
    ]
    return tuple(_with_gateways([*configured, *_from_args(request)], request))


def _from_args(request: Request) -> Iterator[_Given]:
    for text in filter(None, request.args.get("IP", "").split(",")):
        try:
            yield _Given(address=parse_interface(text.strip(), "CNI_ARGS IP"))
        except InvalidConfig as error:
            raise blame_args(error, "CNI_ARGS IP") from None


def _with_gateways(given: list[_Given], request: Request) -> Iterator[_Given]:
    """The addresses, each with the gateway of `CNI_ARGS` that its subnet holds."""
    try:
        texts = filter(None, request.args.get("GATEWAY", "").split(","))
        gateways = [parse_address(text.strip(), "CNI_ARGS GATEWAY") for text in texts]
    except InvalidConfig as error:
        raise blame_args(error, "CNI_ARGS GATEWAY") from None
    for each in given:
        network = each.address.network
        gateway = next((each for each in gateways if each.version == network.version and each in network), each.gateway)
        yield _Given(address=each.address, gateway=gateway)


async def serve(request: Request) -> Result | None:
    """The plugin `static`: there is nothing to release, to collect, or that could be missing."""
    ipam = StaticIpam(request)
    match request.command:
        case Command.ADD:
            allocation = ipam.configured(request.owner)
            require_renderable([each.address.version for each in allocation.leases], request.version)
            return Result(
                ips=tuple(IpEntry(address=each.address, gateway=each.gateway) for each in allocation.leases),
                routes=allocation.routes,
                dns=allocation.dns,
            )
        case Command.CHECK:
            if parse_previous(request.config, request.version) is None:
                raise InvalidConfig("Required prevResult missing", "CHECK compares with the result of ADD")
            await ipam.check(Wanted(owner=request.owner), ())
    return None
