"""Chooses subnets from the default pools, and finds what a subnet would collide with. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from ipam.api import ANY_LINK, AnySubnet, Network
from ipam.errors import PoolExhausted
from ipam.host import Surroundings
from ipam.registry import Pool
from ipam.settings import DefaultPool

_SHORTEST_ROUTE = 8  # a shorter prefix is a default route in parts, as OpenVPN's halves, and everything lies in it
# Networks that every host has, and that no pool can be confused with.
_EVERYWHERE = tuple(map(ip_network, ("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10", "ff00::/8")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """A part of the address space that something else uses; `what` names it. `on_link`: it is an address of a link."""

    subnet: Network
    what: str
    on_link: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A subnet, why it was chosen, and what it overlaps if nothing was clear."""

    subnet: Network
    reason: str
    overlaps: str = ""


def obstacles(around: Surroundings, links: Iterable[str], own_gateways: Iterable[Network] = ()) -> list[Obstacle]:
    """What the host uses, but for what is on the network's own links or is the network's own gateway."""
    own, gateways = frozenset(links), frozenset(own_gateways)
    if ANY_LINK in own:
        own |= {each.link for each in around.addresses} | {each.link for each in around.routes}
    found = [
        Obstacle(subnet=each.address.network, what=f"address {each.address} of {each.link}", on_link=True)
        for each in around.addresses
        if each.link not in own and ip_network(each.address.ip) not in gateways
    ]
    on_link = {each.subnet for each in found}
    found += [
        Obstacle(subnet=each.dst, what=f"route {each.dst}" + (f" on {each.link}" if each.link else ""))
        for each in around.routes
        if each.link not in own and each.dst.prefixlen >= _SHORTEST_ROUTE and each.dst not in on_link | gateways
    ]
    found += [Obstacle(subnet=ip_network(each), what=f"nameserver {each}") for each in around.nameservers]
    return [each for each in found if not any(_overlap(each.subnet, everywhere) for everywhere in _EVERYWHERE)]


def in_the_way(subnet: Network, of: Iterable[Obstacle]) -> list[Obstacle]:
    """The obstacles that the subnet overlaps."""
    return [each for each in of if _overlap(subnet, each.subnet)]


def overlapping(subnet: Network, pools: Iterable[Pool]) -> list[Pool]:
    """The pools that the subnet overlaps."""
    return [each for each in pools if _overlap(subnet, each.subnet)]


def choose(
    wish: AnySubnet, default_pools: Sequence[DefaultPool], pools: Sequence[Pool], around: Sequence[Obstacle]
) -> Choice:
    """The first block of the default pools that is clear of everything, or else the one that overlaps the host least.

    Other networks' pools are never overlapped.
    """
    offered = [each for each in default_pools if each.base.version == wish.family and _fits(wish, each)]
    if not offered:
        raise PoolExhausted(f"no default pool has room for {wish}; set default_pools or name a subnet")
    hard = [Obstacle(subnet=each.subnet, what=f'pool of network "{each.network}"') for each in pools]
    everything = [*hard, *around]
    for pool in offered:
        subnet = next(_clear_blocks(pool.base, _size(wish, pool), everything), None)
        if subnet is not None:
            reason = f"first of {pool.base} in /{subnet.prefixlen} that is clear of {_counted(pools, around)}"
            return Choice(subnet=subnet, reason=reason)
    least = min(
        (
            (_overlapped(subnet, around), i, subnet)
            for i, pool in enumerate(offered)
            for subnet in _edge_blocks(pool.base, _size(wish, pool), everything)
            if not in_the_way(subnet, hard)
        ),
        key=lambda candidate: candidate[:2],
        default=None,
    )
    if least is None:
        bases = ", ".join(map(str, offered))
        raise PoolExhausted(f"pools of networks use all of the default pools ({bases}); forget one or add a pool")
    overlaps = ", ".join(each.what for each in in_the_way(least[2], around))
    return Choice(subnet=least[2], reason=f"nothing is clear, it overlaps least: {overlaps}", overlaps=overlaps)


def _fits(wish: AnySubnet, pool: DefaultPool) -> bool:
    return wish.prefixlen is None or wish.prefixlen >= pool.base.prefixlen


def _size(wish: AnySubnet, pool: DefaultPool) -> int:
    return wish.prefixlen if wish.prefixlen is not None else pool.size


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _block(base: Network, size: int, number: int) -> Network:
    return type(base)((int(base.network_address) + (number << (base.max_prefixlen - size)), size))


def _clear_blocks(base: Network, size: int, of: Iterable[Obstacle]) -> Iterator[Network]:
    """The blocks of the base that overlap nothing, in order; what is in the way is passed over at once."""
    relevant = in_the_way(base, of)
    shift, start = base.max_prefixlen - size, int(base.network_address)
    number, end = 0, 1 << (size - base.prefixlen)
    while number < end:
        subnet = _block(base, size, number)
        hit = in_the_way(subnet, relevant)
        if not hit:
            yield subnet
        past = max((int(each.subnet.broadcast_address) + 1 for each in hit), default=0)
        number = max(number + 1, -((start - past) >> shift))


def _edge_blocks(base: Network, size: int, of: Iterable[Obstacle]) -> Iterator[Network]:
    """Blocks of which one overlaps least: overlap changes only at the edges of what is in the way."""
    shift, start = base.max_prefixlen - size, int(base.network_address)
    numbers = {0, (1 << (size - base.prefixlen)) - 1}
    for each in in_the_way(base, of):
        for edge in (int(each.subnet.network_address), int(each.subnet.broadcast_address)):
            numbers |= {((edge - start) >> shift) + step for step in (-1, 0, 1)}
    for number in sorted(numbers):
        if 0 <= number < 1 << (size - base.prefixlen):
            yield _block(base, size, number)


def _overlapped(subnet: Network, around: Iterable[Obstacle]) -> int:
    """How many addresses of the subnet something else uses, counted once for each use."""
    return sum(min(subnet.num_addresses, each.subnet.num_addresses) for each in in_the_way(subnet, around))


def _counted(pools: Sequence[Pool], around: Sequence[Obstacle]) -> str:
    kinds = {"address": "addresses", "route": "routes", "nameserver": "nameservers"}
    counts = {plural: sum(each.what.startswith(f"{kind} ") for each in around) for kind, plural in kinds.items()}
    return f"{len(pools)} pools, " + ", ".join(f"{number} {plural}" for plural, number in counts.items())
