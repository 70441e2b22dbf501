"""Files of the state directory: made so that whoever owns the directory can use them, whoever makes them."""

from __future__ import annotations

import os
from pathlib import Path


def create(path: Path) -> int:
    """A descriptor of a new file for the owner of its directory; `FileExistsError` if something stands there.

    So an unprivileged daemon can use what a root process made.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    directory = path.parent.stat()
    if os.geteuid() == 0 and directory.st_uid != 0:
        os.fchown(fd, directory.st_uid, directory.st_gid)
    return fd
