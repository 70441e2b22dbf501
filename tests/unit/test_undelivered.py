"""DELs that were kept are done once, what fails or is none stays, and nothing but plain files is read."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cni_bridge.frames import Call
from cni_bridge.undelivered import Undelivered

DEL = b'bridge\0CNI_COMMAND=DEL\0CNI_CONTAINERID=c\0CNI_IFNAME=eth0\0\0{"name": "net1"}'


class Served:
    """What was served; it fails for containers in `failing`."""

    def __init__(self, *failing: str) -> None:
        self.calls: list[Call] = []
        self._failing = failing

    async def __call__(self, call: Call) -> str:
        self.calls.append(call)
        return "it fails" if call.environ.get("CNI_CONTAINERID") in self._failing else ""


def replay(kept: Undelivered, served: Served) -> list[str]:
    asyncio.run(kept.replay(served))
    return [each.name for each in served.calls]


def test_nothing_was_kept(tmp_path: Path) -> None:
    assert replay(Undelivered(tmp_path / "undelivered"), Served()) == []


def test_what_was_kept_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "c:eth0:1").write_bytes(DEL)
    (tmp_path / ".c:eth0:2").write_bytes(DEL)  # a draft
    kept, served = Undelivered(tmp_path), Served()
    assert replay(kept, served) == ["bridge"]
    assert replay(kept, served) == ["bridge"]
    assert [each.name for each in tmp_path.iterdir()] == [".c:eth0:2"]
    (tmp_path / "c:eth0:1").write_bytes(DEL)
    assert replay(kept, served) == ["bridge", "bridge"]


def test_what_fails_stays_until_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "c:eth0:1").write_bytes(DEL)
    kept = Undelivered(tmp_path)
    assert len(replay(kept, Served("c"))) == 1
    assert replay(kept, Served()) == []
    assert replay(Undelivered(tmp_path), Served()) == ["bridge"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("container", "network", "stays"), [("c", "net1", False), ("c", "net2", True), ("d", "net1", True)]
)
def test_what_failed_is_dropped_once_the_attachment_was_served(
    tmp_path: Path, container: str, network: str, stays: bool
) -> None:
    (tmp_path / "c:eth0:1").write_bytes(DEL)
    kept = Undelivered(tmp_path)
    replay(kept, Served("c"))
    kept.forget({"CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}, b'{"name": "%s"}' % network.encode())
    assert bool(list(tmp_path.iterdir())) == stays


@pytest.mark.parametrize(
    "content", [b"", b"bridge", DEL.replace(b"DEL", b"ADD"), b"\xff" * 100], ids=["empty", "cut", "ADD", "bytes"]
)
def test_what_is_no_del_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c:eth0:1"
    path.write_bytes(content)
    assert replay(Undelivered(tmp_path), Served()) == []
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_only_plain_files_are_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").write_bytes(DEL)
    directory = tmp_path / "undelivered"
    directory.mkdir()
    path = directory / "c:eth0:1"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
    assert replay(Undelivered(directory), Served()) == []
    assert os.path.lexists(path)


def test_a_file_of_another_user_is_left_alone(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another user")
    path = tmp_path / "c:eth0:1"
    path.write_bytes(DEL)
    os.chown(path, 12345, 12345)
    assert replay(Undelivered(tmp_path), Served()) == []
