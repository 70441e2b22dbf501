"""The directory of the reference `host-local`: every format it has had is read, and what is written is as it writes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam import host_local
from ipam.api import Address
from ipam.host_local import Contents
from ipam.registry import Moved
from tests.support.calls import owner

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}", fullmatch=True)
# Of interface names the specification excludes "/", ":" and white space, and the kernel more than 15 bytes.
IFNAMES = st.text(st.characters(codec="ascii", exclude_categories=["Z", "C"], exclude_characters="/:"), max_size=15)


def lease(address: str, container_id: str, ifname: str = "eth0") -> Moved:
    return Moved(owner=owner(container_id, ifname=ifname), address=ip_address(address))


def contents(
    *leases: Moved, last: tuple[str, ...] = (), empty: tuple[str, ...] = (), strange: tuple[str, ...] = ()
) -> Contents:
    return Contents(
        leases=leases, last=tuple(map(ip_address, last)), empty=tuple(map(ip_address, empty)), strange=strange
    )


def files(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in directory.iterdir() if each.name != "lock"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(b"c1\r\neth0", contents(lease("10.0.0.2", "c1")), id="as it is written today"),
        pytest.param(b"c1\neth0", contents(lease("10.0.0.2", "c1")), id="LF"),
        pytest.param(b"c1\r\neth0\r\n", contents(lease("10.0.0.2", "c1")), id="CR LF at the end"),
        pytest.param(b"\n c1 \r\n eth0 \n\n", contents(lease("10.0.0.2", "c1")), id="white space around both"),
        pytest.param(b"c1", contents(lease("10.0.0.2", "c1", "")), id="before it kept the interface"),
        pytest.param(b" c1\n", contents(lease("10.0.0.2", "c1", "")), id="white space around the id"),
        pytest.param(b"c1\r\n", contents(lease("10.0.0.2", "c1", "")), id="an interface without a name"),
        pytest.param(b"", contents(empty=("10.0.0.2",)), id="empty"),
        pytest.param(b" \r\n\t\n", contents(empty=("10.0.0.2",)), id="white space only"),
    ],
)
def test_every_format_of_a_lease_is_read(tmp_path: Path, text: bytes, expected: Contents) -> None:
    (tmp_path / "10.0.0.2").write_bytes(text)
    assert host_local.read(tmp_path, "net1") == expected


def test_a_whole_directory_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    texts = {
        "10.0.0.3": "c2\r\neth0",
        "10.0.0.2": "c1\r\neth0",
        "fd00::2": "c1\r\neth0",
        "fd00::ffff:0:3": "c2\r\nnet1",
        "last_reserved_ip.1": "fd00::3\n",
        "last_reserved_ip.0": "10.0.0.3",
        "last_reserved_ip.10": "10.9.0.3",
        "last_reserved_ip.2": "",
        "last_reserved_ip.3": "no address",
        "last_reserved_ip.": "10.0.0.9",
        "last_reserved_ip.x": "10.0.0.9",
        "last_reserved_ip": "10.0.0.9",  # as before there were range sets
        "lock": "",
        "10.0.0.2.swp": "c1",
        "10.0.0": "c1",
        "README": "c1",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    found = host_local.read(tmp_path, "net1")
    assert sorted(found.leases, key=str) == sorted(
        [
            lease("10.0.0.2", "c1"),
            lease("10.0.0.3", "c2"),
            lease("fd00::2", "c1"),
            lease("fd00::ffff:0:3", "c2", "net1"),
        ],
        key=str,
    )
    assert found.last == (ip_address("10.0.0.3"), ip_address("fd00::3"), ip_address("10.9.0.3"))
    assert set(found.strange) == {"10.0.0.2.swp", "10.0.0", "README", "last_reserved_ip"}
    assert files(tmp_path) == {name: text.encode() for name, text in texts.items() if name != "lock"}


def test_a_directory_within_is_passed_over_as_the_reference_does(tmp_path: Path) -> None:
    (tmp_path / "10.0.0.2").write_text("c1\r\neth0")
    for name in ("old", "10.0.0.3"):
        (tmp_path / name).mkdir()
    found = host_local.read(tmp_path, "net1")
    assert (found.leases, set(found.strange)) == ((lease("10.0.0.2", "c1"),), {"old", "10.0.0.3"})


def test_text_that_is_no_utf8_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "10.0.0.2").write_bytes(b"c1\r\neth\xff")
    (found,) = host_local.read(tmp_path, "net1").leases
    assert found.owner.container_id == "c1"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        host_local.read(tmp_path / "net1", "net1")
    assert str(tmp_path / "net1") in caught.value.filename
    assert not (tmp_path / "net1").exists()


def test_it_is_written_as_the_reference_writes(tmp_path: Path) -> None:
    directory = tmp_path / "networks" / "net1"
    leases = [lease("10.0.0.2", "c1"), lease("fd00::2", "c1"), lease("10.0.0.3", "c2", "")]
    host_local.write(directory, leases, {0: ip_address("10.0.0.3"), 1: ip_address("fd00::2")})
    assert files(directory) == {
        "10.0.0.2": b"c1\r\neth0",
        "fd00::2": b"c1\r\neth0",
        "10.0.0.3": b"c2\r\n",
        "last_reserved_ip.0": b"10.0.0.3",
        "last_reserved_ip.1": b"fd00::2",
    }
    assert directory.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("there", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
def test_an_address_that_is_there_already_is_named_and_nothing_is_changed(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("other\r\neth0")
    (tmp_path / "last_reserved_ip.0").write_text(there)
    before = files(tmp_path)
    leases = [lease(f"10.0.0.{last}", "c1") for last in (1, 2, 3)]
    with pytest.raises(FileExistsError) as caught:
        host_local.write(tmp_path, leases, {0: ip_address("10.0.0.3")})
    assert str(caught.value.filename) == str(tmp_path / there)
    assert files(tmp_path) == before


@given(
    leases=st.dictionaries(st.ip_addresses(), st.tuples(NAMES, IFNAMES), max_size=8),
    last=st.lists(st.ip_addresses(), max_size=12),
)
@settings(max_examples=40, deadline=None, database=None)
def test_what_was_written_is_read(leases: dict[Address, tuple[str, str]], last: list[Address]) -> None:
    moved = {Moved(owner=owner(name, ifname=ifname), address=each) for each, (name, ifname) in leases.items()}
    with tempfile.TemporaryDirectory() as directory:
        host_local.write(Path(directory), moved, dict(enumerate(last)))
        found = host_local.read(Path(directory), "net1")
    assert (set(found.leases), len(found.leases)) == (moved, len(leases))
    assert (found.last, found.empty, found.strange) == (tuple(last), (), ())


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda directory: host_local.read(directory, "net1"), id="read"),
        pytest.param(lambda directory: host_local.write(directory, [lease("10.0.0.3", "c2")], {}), id="write"),
    ],
)
def test_it_waits_for_a_host_local_that_is_at_work(tmp_path: Path, call: Callable[[Path], Contents | None]) -> None:
    (tmp_path / "10.0.0.2").write_text("")
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(call, tmp_path)
        while not _is_waited_for(tmp_path / "lock"):
            assert not waiting.done(), "it does not wait"
        (tmp_path / "10.0.0.2").write_text("c1\r\neth0")
        os.close(lock)
        waiting.result(10)
    found = host_local.read(tmp_path, "net1")
    assert found.leases[0] == lease("10.0.0.2", "c1")
    assert waiting.result() in (None, contents(lease("10.0.0.2", "c1")))


def _is_waited_for(path: Path) -> bool:
    """Whether somebody waits for a lock on the file, by /proc/locks (proc_locks(5))."""
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(line.split()[6].endswith(f":{path.stat().st_ino}") for line in waiting)
