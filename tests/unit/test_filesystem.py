"""Which file system a directory is on, and that the daemon refuses one that other hosts see too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ipam import daemon, filesystem
from ipam.filesystem import NETWORK, kind_of, parse_kind
from ipam.host import ToldHost

MOUNTINFO = r"""
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro
35 28 0:31 / /srv rw,relatime shared:19 - nfs4 filer:/export/srv rw,vers=4.2,proto=tcp
36 28 0:32 / /mnt/a\040-\040b rw,relatime shared:20 master:3 propagate_from:2 - cifs //filer/share rw,vers=3.1.1
37 28 0:33 / /home/me/remote rw,nosuid,nodev - fuse.sshfs me@filer:/home rw,user_id=1000
38 28 254:1 /srv/state /var/lib/state rw,relatime shared:1 master:4 - ext4 /dev/vda1 rw,discard
39 28 0:31 /state /var/lib/cni-bridge rw,relatime shared:19 - nfs4 filer:/export/srv rw,vers=4.2,proto=tcp
""".lstrip()


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ((254, 1), "ext4"),
        ((0, 31), "nfs4"),
        ((0, 32), "cifs"),
        ((0, 33), "fuse.sshfs"),
        ((0, 20), "sysfs"),
        ((0, 3), ""),
        ((54, 1), ""),
    ],
)
def test_the_kind_of_a_device(device: tuple[int, int], kind: str) -> None:
    assert parse_kind(MOUNTINFO, *device) == kind


@pytest.mark.parametrize("line", MOUNTINFO.splitlines(), ids=lambda line: line.split()[4])
def test_each_mount_says_it_whatever_its_optional_fields(line: str) -> None:
    major, minor = line.split()[2].split(":")
    kind = parse_kind(line, int(major), int(minor))
    assert f" - {kind} " in line
    assert (kind in NETWORK) == ("filer:" in line or "//filer" in line)


def test_no_table_no_kind() -> None:
    assert parse_kind("", 254, 1) == ""


@pytest.mark.parametrize("path", ["/proc", "/proc/not/there"])
def test_a_directory_that_is_not_there_will_be_where_its_parent_is(path: str) -> None:
    assert kind_of(Path(path)) == "proc"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_the_daemon_refuses_a_network_file_system_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    asked: list[Path] = []

    def told(directory: Path) -> str:
        asked.append(directory)
        return kind

    state = tmp_path / "state"
    monkeypatch.setattr(filesystem, "kind_of", told)
    monkeypatch.setattr(sys, "argv", ["ipamd"])
    monkeypatch.setenv("CNI_BRIDGE_CONFIG", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("CNI_BRIDGE_STATE_DIR", str(state))
    assert daemon.main(ToldHost()) == 1
    assert capsys.readouterr().err == (
        f"ipamd: {state} is on a network file system ({kind}); set state_dir to a local disk\n"
    )
    assert asked == [state]
    assert not state.exists()
