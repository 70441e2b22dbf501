"""Which file system a directory is on."""

from __future__ import annotations

import os
from pathlib import Path

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "afs", "9p", "ncpfs", "gfs2", "ocfs2", "lustre"}
) | {f"fuse.{each}" for each in ("sshfs", "glusterfs", "ceph", "s3fs", "rclone", "juicefs")}


def kind_of(directory: Path) -> str:
    """The type of the file system that the directory, or its nearest parent that exists, is on; empty if unknown."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    device = directory.stat().st_dev
    return parse_kind(Path("/proc/self/mountinfo").read_text(), os.major(device), os.minor(device))


def parse_kind(mountinfo: str, major: int, minor: int) -> str:
    """The type of the file system of that device in a mountinfo table (proc(5))."""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == f"{major}:{minor}":
            return source.split()[0]
    return ""
