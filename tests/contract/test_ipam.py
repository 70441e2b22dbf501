"""What every `Ipam` does, whoever serves it: the database in this process, `ipamd`, or an executable."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from cni_bridge.cni.errors import CniError, Code, as_cni_error
from cni_bridge.cni.request import parse_request
from cni_bridge.ipam_exec import ExecIpam
from ipam.api import Allocation, Dns, Interface, Ipam, Owner, Range, RangeSet, Route, Wanted
from ipam.client import Client
from ipam.codec import encode
from ipam.errors import IpamError
from ipam.host import ToldHost
from ipam.local import LocalIpam
from ipam.local_registry import LocalRegistry
from ipam.metrics import Metrics
from ipam.ranges import build_range
from ipam.remote import RemoteIpam
from ipam.server import Server
from ipam.settings import Settings
from ipam.store import Store
from tests.support.host import BIN, REFERENCE

PATIENCE = 30


class Executable:
    """An `ExecIpam` for each call, as a plugin makes it: the request's configuration says what is wanted."""

    def __init__(self, executable: Path, version: str, directory: Path) -> None:
        self._executable = executable
        self._version = version
        self._directory = directory

    async def allocate(self, wanted: Wanted) -> Allocation:
        return await self._asked("ADD", wanted).allocate(wanted)

    async def release(self, owner: Owner) -> None:
        await self._asked("DEL", wanted(owner)).release(owner)

    async def check(self, wanted: Wanted, addresses: tuple[Interface, ...]) -> None:
        ips = [{"address": str(each)} for each in addresses]
        asked = self._asked("CHECK", wanted, prevResult={"cniVersion": self._version, "ips": ips})
        await asked.check(wanted, ())

    async def collect(self, network: str, keep: frozenset[Owner]) -> None:
        valid = [{"containerID": each.container_id, "ifname": each.ifname} for each in keep]
        asked = self._asked("GC", wanted(owner("any", network=network)), **{"cni.dev/valid-attachments": valid})
        await asked.collect(network, keep)

    async def status(self, wanted: Wanted) -> None:
        await self._asked("STATUS", wanted).status(wanted)

    def _asked(self, command: str, wanted: Wanted, **keys: object) -> ExecIpam:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": wanted.owner.container_id,
            "CNI_IFNAME": wanted.owner.ifname,
            "CNI_NETNS": "/run/netns/none",
            "CNI_PATH": str(REFERENCE),
            "CNI_BRIDGE_STATE_DIR": str(self._directory),
            "CNI_BRIDGE_RUN_DIR": str(self._directory),
            "PATH": os.environ["PATH"],
        }
        resolv_conf = self._directory / "resolv.conf"
        resolv_conf.write_text("".join(f"nameserver {each}\n" for each in wanted.dns.nameservers))
        conf = {
            "cniVersion": self._version,
            "name": wanted.owner.network,
            "type": "macvlan",  # whose addresses belong on a link of this host, whatever those have
            "ipam": {
                "type": self._executable.name,
                "dataDir": str(self._directory / "networks"),
                "ranges": [[_render(each) for each in offer.ranges] for offer in wanted.range_sets or POOL],
                "routes": [{k: v for k, v in encode(each).items() if v is not None} for each in wanted.routes],
                "resolvConf": str(resolv_conf),
                "allowOverlap": wanted.allow_overlap,
            },
            "args": {"cni": {"ips": [str(each) for each in wanted.requested]}},
            **keys,
        }
        return ExecIpam(self._executable, parse_request(environment, json.dumps(conf).encode()))


def _render(each: Range) -> dict[str, object]:
    ends = {"subnet": str(each.subnet), "rangeStart": str(each.first), "rangeEnd": str(each.last)}
    return {**ends, "gateway": str(each.gateway), "exclude": list(map(str, each.exclude))}


class Calls:
    """An `Ipam` for callers that do not await."""

    def __init__(self, runner: asyncio.Runner, ipam: Ipam) -> None:
        self._runner = runner
        self._ipam = ipam

    def allocate(self, wanted: Wanted) -> Allocation:
        return self._runner.run(self._ipam.allocate(wanted))

    def addresses(self, wanted: Wanted) -> list[str]:
        return [str(each.address) for each in self.allocate(wanted).leases]

    def allocate_at_once(self, every: list[Wanted]) -> list[Allocation]:
        async def all_of_them() -> list[Allocation]:
            return list(await asyncio.gather(*(self._ipam.allocate(each) for each in every)))

        return self._runner.run(all_of_them())

    def release(self, owner: Owner) -> None:
        self._runner.run(self._ipam.release(owner))

    def check(self, wanted: Wanted, *addresses: str) -> None:
        self._runner.run(self._ipam.check(wanted, tuple(map(ip_interface, addresses))))

    def collect(self, network: str, *keep: Owner) -> None:
        self._runner.run(self._ipam.collect(network, frozenset(keep)))

    def status(self, wanted: Wanted) -> None:
        self._runner.run(self._ipam.status(wanted))


@contextmanager
def local(runner: asyncio.Runner, directory: Path) -> Iterator[Ipam]:
    ipam = runner.run(LocalIpam.open(Settings(state_dir=directory), ToldHost()))
    yield ipam
    runner.run(ipam.close())


@contextmanager
def remote(runner: asyncio.Runner, directory: Path) -> Iterator[Ipam]:
    settings, host, path = Settings(state_dir=directory), ToldHost(), directory / "ipamd.sock"
    store = runner.run(Store.open(settings.database, patience=PATIENCE))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server, stop = runner.run(served(store, settings, host)), asyncio.Event()
        serving = runner.get_loop().create_task(server.serve(listener, stop))
        yield RemoteIpam(Client(path, patience=PATIENCE))
        stop.set()
        runner.run(asyncio.wait_for(serving, PATIENCE))
    runner.run(store.close())


async def served(store: Store, settings: Settings, host: ToldHost) -> Server:
    registry = LocalRegistry(store, settings, host)
    return Server(
        LocalIpam(store, settings, host),
        registry,
        Metrics(registry),
        allowed=lambda *_: True,
        max_clients=64,
        request_timeout=PATIENCE,
    )


@contextmanager
def cni_ipam(_: asyncio.Runner, directory: Path) -> Iterator[Ipam]:
    yield Executable(BIN / "cni-ipam", "1.1.0", directory)


@contextmanager
def host_local(_: asyncio.Runner, directory: Path) -> Iterator[Ipam]:
    yield Executable(REFERENCE / "host-local", "1.0.0", directory)


Opened = Callable[[asyncio.Runner, Path], AbstractContextManager[Ipam]]
OURS: tuple[Opened, ...] = (local, remote, cni_ipam)
contract = pytest.mark.parametrize("ipam", [*OURS, host_local], indirect=True)
# Debian's `host-local` does otherwise here; what it does is in `test_the_reference_differs`, at the end.
contract_but_for_the_reference = pytest.mark.parametrize("ipam", OURS, indirect=True)


@pytest.fixture
def ipam(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Calls]:
    with asyncio.Runner() as runner, request.param(runner, tmp_path) as opened:
        yield Calls(runner, opened)


def pool(subnet: str, *, first: str = "", last: str = "") -> Range:
    start, end = (ip_address(each) if each else None for each in (first, last))
    return build_range(ip_network(subnet), start=start, end=end)


def owner(container: str, *, network: str = "net1", ifname: str = "eth0") -> Owner:
    return Owner(network=network, container_id=container, ifname=ifname)


POOL = (RangeSet(ranges=(pool("10.88.0.0/24"),)),)
DUAL_STACK = (*POOL, RangeSet(ranges=(pool("fd00:88::/64"),)))
MOVED = (RangeSet(ranges=(pool("10.99.0.0/24"),)),)
TWO_ADDRESSES = (RangeSet(ranges=(pool("10.88.0.0/24", first="10.88.0.10", last="10.88.0.11"),)),)


def wanted(holder: Owner, sets: tuple[RangeSet, ...] = POOL, *requested: str, allow_overlap: bool = False) -> Wanted:
    addresses = tuple(map(ip_address, requested))
    return Wanted(owner=holder, range_sets=sets, requested=addresses, allow_overlap=allow_overlap)


def refused(call: Callable[[], object]) -> CniError:
    """The failure of the call, as a runtime gets it."""
    with pytest.raises((IpamError, CniError)) as caught:
        call()
    return as_cni_error(caught.value)


@contract
def test_an_address_of_each_set_in_order_with_what_goes_with_it(ipam: Calls) -> None:
    asked = Wanted(
        owner=owner("a"),
        range_sets=DUAL_STACK,
        routes=(Route(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.88.0.9")), Route(dst=ip_network("::/0"))),
        dns=Dns(nameservers=("10.88.0.1",)),
    )
    given = ipam.allocate(asked)
    assert [(str(each.address), str(each.gateway)) for each in given.leases] == [
        ("10.88.0.2/24", "10.88.0.1"),
        ("fd00:88::2/64", "fd00:88::1"),
    ]
    assert {each.owner for each in given.leases} == {asked.owner}
    assert (given.routes, given.dns) == (asked.routes, asked.dns)


@contract
def test_owners_share_nothing_and_networks_are_apart(ipam: Calls) -> None:
    assert ipam.addresses(wanted(owner("a"))) == ["10.88.0.2/24"]
    assert ipam.addresses(wanted(owner("b"))) == ["10.88.0.3/24"]
    assert ipam.addresses(wanted(owner("a", ifname="eth1"))) == ["10.88.0.4/24"]
    assert ipam.addresses(wanted(owner("a", network="net2"), allow_overlap=True)) == ["10.88.0.2/24"]


@contract
def test_every_address_is_handed_out_but_the_subnets_its_gateways_and_broadcast(ipam: Calls) -> None:
    sets = (RangeSet(ranges=(pool("10.88.0.0/29"), pool("10.89.0.0/30"))),)
    given = [ipam.addresses(wanted(owner(f"c{number}"), sets))[0] for number in range(6)]
    assert given == [*(f"10.88.0.{host}/29" for host in range(2, 7)), "10.89.0.2/30"]
    assert "-10.88.0.6" in refused(lambda: ipam.allocate(wanted(owner("late"), sets))).msg


@contract
def test_a_released_address_is_not_the_next_one(ipam: Calls) -> None:
    ipam.allocate(wanted(owner("a")))
    ipam.release(owner("a"))
    assert ipam.addresses(wanted(owner("b"))) == ["10.88.0.3/24"]


@contract
def test_release_takes_back_one_interface_and_frees_its_address(ipam: Calls) -> None:
    for ifname in ("eth0", "eth1"):
        ipam.allocate(wanted(owner("a", ifname=ifname), TWO_ADDRESSES))
    assert "10.88.0.10-10.88.0.11" in refused(lambda: ipam.allocate(wanted(owner("b"), TWO_ADDRESSES))).msg
    ipam.release(owner("a", ifname="eth1"))
    assert ipam.addresses(wanted(owner("b"), TWO_ADDRESSES)) == ["10.88.0.11/24"]
    ipam.check(wanted(owner("a"), TWO_ADDRESSES), "10.88.0.10/24")


@contract
def test_release_of_nothing_is_success(ipam: Calls) -> None:
    ipam.release(owner("unknown"))
    ipam.allocate(wanted(owner("a")))
    for _ in range(2):
        ipam.release(owner("a"))


@contract
def test_all_sets_or_none(ipam: Calls) -> None:
    sets = (*DUAL_STACK[1:], *TWO_ADDRESSES)
    for name in ("a", "b"):
        ipam.allocate(wanted(owner(name), sets))
    refused(lambda: ipam.allocate(wanted(owner("c"), sets)))
    refused(lambda: ipam.check(wanted(owner("c"), sets)))


@contract
@pytest.mark.parametrize(
    ("requested", "given"),
    [
        (["10.88.0.77"], ["10.88.0.77/24", "fd00:88::2/64"]),
        (["fd00:88::77"], ["10.88.0.2/24", "fd00:88::77/64"]),
        (["fd00:88::77", "10.88.0.77"], ["10.88.0.77/24", "fd00:88::77/64"]),
    ],
)
def test_a_requested_address_goes_to_the_set_it_fits(ipam: Calls, requested: list[str], given: list[str]) -> None:
    assert ipam.addresses(wanted(owner("a"), DUAL_STACK, *requested)) == given


@contract
@pytest.mark.parametrize(
    "requested",
    [["10.88.0.1"], ["10.99.0.9"], ["10.88.0.7", "10.88.0.8"], ["10.88.0.66"]],
    ids=["gateway", "in no range", "two for one set", "taken"],
)
def test_a_requested_address_that_cannot_be_given_is_named_and_nothing_is_held(
    ipam: Calls, requested: list[str]
) -> None:
    ipam.allocate(wanted(owner("holder"), DUAL_STACK, "10.88.0.66"))
    msg = refused(lambda: ipam.allocate(wanted(owner("a"), DUAL_STACK, *requested))).msg
    assert any(each in msg for each in requested)
    refused(lambda: ipam.check(wanted(owner("a"), DUAL_STACK)))


@contract
def test_check_succeeds_while_the_lease_is_held(ipam: Calls) -> None:
    asked = wanted(owner("a"), DUAL_STACK)
    refused(lambda: ipam.check(asked))
    held = ipam.addresses(asked)
    ipam.check(asked, *held)
    ipam.release(owner("a"))
    refused(lambda: ipam.check(asked, *held))


@contract_but_for_the_reference
def test_status_is_good_while_an_address_is_free(ipam: Calls) -> None:
    ipam.allocate(wanted(owner("a"), TWO_ADDRESSES))
    ipam.status(wanted(owner("any"), TWO_ADDRESSES))


@contract
def test_requests_at_once_get_an_address_each(ipam: Calls) -> None:
    given = ipam.allocate_at_once([wanted(owner(f"c{number}"), DUAL_STACK) for number in range(10)])
    for position in (0, 1):
        assert len({each.leases[position].address for each in given}) == 10


@contract
def test_the_longest_names(ipam: Calls) -> None:
    name = "n" * 200
    longest = owner("c" * 200, network=name, ifname="i" * 15)
    assert ipam.addresses(wanted(longest)) == ["10.88.0.2/24"]
    ipam.release(longest)
    refused(lambda: ipam.check(wanted(longest)))


@contract_but_for_the_reference
def test_a_repeat_gives_the_same_addresses(ipam: Calls) -> None:
    asked = wanted(owner("a"), DUAL_STACK)
    first = ipam.allocate(asked)
    ipam.allocate(wanted(owner("b"), DUAL_STACK))
    assert {each.address for each in ipam.allocate(asked).leases} == {each.address for each in first.leases}
    both = ipam.allocate_at_once([wanted(owner("c"), DUAL_STACK)] * 4)
    assert len({tuple(lease.address for lease in each.leases) for each in both}) == 1


@contract_but_for_the_reference
def test_a_repeat_that_asks_for_something_else_gets_it_instead(ipam: Calls) -> None:
    ipam.allocate(wanted(owner("a"), DUAL_STACK))
    assert ipam.addresses(wanted(owner("a"), DUAL_STACK, "10.88.0.9")) == ["10.88.0.9/24", "fd00:88::2/64"]
    ipam.allocate(wanted(owner("b"), DUAL_STACK, "10.88.0.2"))
    ipam.release(owner("b"))
    assert ipam.addresses(wanted(owner("a"), MOVED)) == ["10.99.0.2/24"]
    ipam.release(owner("a"))
    for free in ("10.88.0.9", "fd00:88::2"):
        ipam.allocate(wanted(owner("b"), DUAL_STACK, free))


@contract_but_for_the_reference
def test_a_subnet_in_which_others_hold_addresses_is_not_left(ipam: Calls) -> None:
    held = ipam.addresses(wanted(owner("b"), DUAL_STACK))
    refusal = refused(lambda: ipam.allocate(wanted(owner("a"), MOVED)))
    assert refusal.code == Code.POOL_CONFLICT
    assert "10.88.0.0/24" in refusal.msg
    assert "net1/b/eth0" in refusal.msg
    ipam.check(wanted(owner("b"), DUAL_STACK), *held)
    refused(lambda: ipam.check(wanted(owner("a"), MOVED)))


@contract_but_for_the_reference
def test_a_subnet_of_another_network_is_refused(ipam: Calls) -> None:
    ipam.allocate(wanted(owner("a")))
    theirs = wanted(owner("a", network="net2"))
    refusal = refused(lambda: ipam.allocate(theirs))
    assert (refusal.code, "net1" in refusal.msg) == (Code.POOL_CONFLICT, True)
    assert "net1" in refused(lambda: ipam.status(theirs)).msg


@contract_but_for_the_reference
def test_excluded_addresses_are_not_handed_out(ipam: Calls) -> None:
    sets = (RangeSet(ranges=(replace(pool("10.88.0.0/29"), exclude=(ip_network("10.88.0.2/31"),)),)),)
    assert ipam.addresses(wanted(owner("a"), sets)) == ["10.88.0.4/29"]
    assert refused(lambda: ipam.allocate(wanted(owner("b"), sets, "10.88.0.3"))).code == Code.ADDRESS_UNAVAILABLE


@contract_but_for_the_reference
def test_a_refused_repeat_keeps_what_was_held(ipam: Calls) -> None:
    held = ipam.addresses(wanted(owner("a"), DUAL_STACK))
    ipam.allocate(wanted(owner("b"), DUAL_STACK, "10.88.0.9"))
    refused(lambda: ipam.allocate(wanted(owner("a"), DUAL_STACK, "10.88.0.9")))
    ipam.check(wanted(owner("a"), DUAL_STACK), *held)


@contract_but_for_the_reference
def test_check_compares_the_addresses(ipam: Calls) -> None:
    ipam.allocate(wanted(owner("a"), DUAL_STACK))
    missing = refused(lambda: ipam.check(wanted(owner("a"), DUAL_STACK), "10.88.0.2/24", "fd00:88::9/64"))
    assert "fd00:88::9" in missing.msg
    assert "10.88.0.2" not in missing.msg


@contract_but_for_the_reference
def test_collect_takes_back_what_is_not_kept_in_this_network(ipam: Calls) -> None:
    kept, gone, other_interface = owner("a"), owner("b"), owner("a", ifname="eth1")
    other_network = owner("b", network="net2")
    for each in (kept, gone, other_interface, other_network):
        ipam.allocate(wanted(each, DUAL_STACK, allow_overlap=True))
    ipam.collect("net1", kept)
    for each in (kept, other_network):
        ipam.check(wanted(each, DUAL_STACK))
    for each in (gone, other_interface):
        refused(lambda each=each: ipam.check(wanted(each, DUAL_STACK)))
    ipam.collect("net1")
    refused(lambda: ipam.check(wanted(kept, DUAL_STACK)))
    ipam.check(wanted(other_network, DUAL_STACK))


@contract_but_for_the_reference
def test_status_says_that_the_pool_is_exhausted(ipam: Calls) -> None:
    for name in ("a", "b"):
        ipam.allocate(wanted(owner(name), TWO_ADDRESSES))
    assert "10.88.0.10-10.88.0.11" in refused(lambda: ipam.status(wanted(owner("any"), TWO_ADDRESSES))).msg


@contract_but_for_the_reference
def test_each_failure_has_its_code(ipam: Calls) -> None:
    for name in ("a", "b"):
        ipam.allocate(wanted(owner(name), TWO_ADDRESSES))
    late = owner("late")
    assert refused(lambda: ipam.allocate(wanted(late, TWO_ADDRESSES))).code == Code.POOL_EXHAUSTED
    taken = refused(lambda: ipam.allocate(wanted(late, TWO_ADDRESSES, "10.88.0.10")))
    assert (taken.code, "container a " in taken.msg) == (Code.ADDRESS_UNAVAILABLE, True)
    outside = refused(lambda: ipam.allocate(wanted(late, TWO_ADDRESSES, "10.88.0.12")))
    assert outside.code == Code.ADDRESS_UNAVAILABLE
    assert refused(lambda: ipam.check(wanted(late, TWO_ADDRESSES))).code == Code.CHECK_FAILED


@pytest.mark.parametrize("ipam", [host_local], indirect=True)
def test_the_reference_differs(ipam: Calls) -> None:
    """The one place for it: why tests above are `contract_but_for_the_reference`."""
    asked = wanted(owner("a"), TWO_ADDRESSES)
    ipam.allocate(asked)
    repeated = refused(lambda: ipam.allocate(asked))
    assert (repeated.code, "duplicate allocation" in repeated.msg) == (Code.INTERNAL, True)
    ipam.allocate(wanted(owner("b"), TWO_ADDRESSES))
    assert refused(lambda: ipam.allocate(wanted(owner("c"), TWO_ADDRESSES))).code == Code.INTERNAL
    ipam.check(asked, "10.88.0.99/24")  # any address of the owner will do
