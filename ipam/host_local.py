"""The directory in which the reference `host-local` keeps who has which address, read and written as it does.

A file named by the address holds the container's id and, since plugins 0.8, its interface behind CR LF;
`last_reserved_ip.N` holds the address that range set N gave last. All under a lock on the file `lock`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ipam.api import Address, Owner
from ipam.registry import Moved

DEFAULT_DIRECTORY = Path("/var/lib/cni/networks")
_LAST = "last_reserved_ip."


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a network's directory says.

    `last`: by range set. `empty`: addresses whose file names no container, left by a crash while it was written;
    no container got them. `strange`: files that are not host-local's.
    """

    leases: tuple[Moved, ...]
    last: tuple[Address, ...]
    empty: tuple[Address, ...]
    strange: tuple[str, ...]


def read(directory: Path, network: str) -> Contents:
    """What the network's directory says, while no host-local changes it."""
    leases: list[Moved] = []
    last: dict[int, Address] = {}
    empty: list[Address] = []
    strange: list[str] = []
    with locked(directory):
        for path in sorted(directory.iterdir()):
            if path.name == "lock":
                continue
            if not path.is_file():
                strange.append(path.name)
                continue
            text = path.read_text(errors="replace").strip()
            if path.name.startswith(_LAST):
                number, address = path.name.removeprefix(_LAST), _parse(text)
                if number.isdecimal() and address is not None:
                    last[int(number)] = address
                continue
            address = _parse(path.name)
            if address is None:
                strange.append(path.name)
            elif not text:
                empty.append(address)
            else:
                container_id, *rest = text.splitlines()
                ifname = rest[-1].strip() if rest else ""
                owner = Owner(network=network, container_id=container_id.strip(), ifname=ifname)
                leases.append(Moved(owner=owner, address=address))
    return Contents(
        leases=tuple(leases),
        last=tuple(last[number] for number in sorted(last)),
        empty=tuple(empty),
        strange=tuple(strange),
    )


def write(directory: Path, leases: Iterable[Moved], last: Mapping[int, Address]) -> None:
    """Make the network's directory say this, `last` by range set; `FileExistsError` if an address is there already."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    leases = list(leases)
    with locked(directory):
        for each in leases:
            if (path := directory / str(each.address)).exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        for each in leases:
            with open(directory / str(each.address), "x", newline="") as file:
                file.write(f"{each.owner.container_id}\r\n{each.owner.ifname}")
        for number, address in last.items():
            (directory / f"{_LAST}{number}").write_text(str(address))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep every host-local out of the directory."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _parse(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
