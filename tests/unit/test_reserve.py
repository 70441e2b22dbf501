"""Room on the disk that is held until a release needs it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from ipam.errors import StoreFull, StoreUnavailable
from ipam.reserve import SIZE, Reserve


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ipam.reserve"


def test_the_room_is_really_taken(path: Path) -> None:
    Reserve(path).ensure()
    status = path.stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (SIZE, 0o600)
    assert status.st_blocks * 512 >= SIZE


def test_it_is_made_once(path: Path) -> None:
    reserve = Reserve(path)
    reserve.ensure()
    before = path.stat()
    reserve.ensure()
    Reserve(path).ensure()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("size", [0, SIZE - 1])
def test_a_half_made_one_is_made_anew(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)
    Reserve(path).ensure()
    assert path.stat().st_size == SIZE


def test_it_is_spent_once_and_held_again(path: Path) -> None:
    reserve = Reserve(path)
    assert not reserve.spend()
    reserve.ensure()
    assert reserve.spend()
    assert not path.exists()
    assert not reserve.spend()
    reserve.ensure()
    assert path.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "posix_fallocate"])
def test_a_full_disk_is_told_and_nothing_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreFull, match=rf"no room for {path}.*free space on its file system"):
        Reserve(path).ensure()
    assert not path.exists()


def test_a_directory_that_is_not_there_is_named(path: Path) -> None:
    missing = path.parent / "missing" / path.name
    with pytest.raises(StoreUnavailable, match=f"{missing}: No such file or directory; check its directory"):
        Reserve(missing).ensure()
    assert not Reserve(missing).spend()
