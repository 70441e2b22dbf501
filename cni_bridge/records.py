"""The desired state of each attachment, one file each: written before ADD makes addresses and rules, removed after the
last effect of DEL, so that everything can be undone by whoever knows no more than the owner.

The veth and the lease, which may be there before and after it, are found by the owner's name, which the record's draft
tells. Records live in the run directory: what they describe (links, rules) does not survive a reboot either.
"""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from cni_bridge.cni.errors import CniError, Code
from cni_bridge.files import file_name
from cni_bridge.tag import owner_key
from ipam import effects
from ipam.api import Owner
from ipam.codec import decode, encode

log = logging.getLogger(__name__)

FORMAT = 1
_ATTEMPTS = 100  # at making a folder that others take away
_PATHS_KEPT = 256  # each request comes to the same ones several times


class Owned(Protocol):
    """What is recorded: it belongs to an owner."""

    @property
    def owner(self) -> Owner:
        """Whose it is."""


R = TypeVar("R", bound=Owned)


class Records(Generic[R]):
    """The records of one kind, a frozen dataclass, in `directory`: a folder for each network."""

    def __init__(self, directory: Path, kind: type[R]) -> None:
        self._directory = directory
        self._kind = kind
        self._path = lru_cache(maxsize=_PATHS_KEPT)(partial(_path_of, directory))

    def read(self, owner: Owner) -> R | None:
        """The owner's attachment; None if there is no record."""
        try:
            text = self._path(owner).read_bytes()
        except FileNotFoundError:
            return None
        return self._parse(text, self._path(owner))

    def announce(self, owner: Owner, ipam_type: str) -> None:
        """Note that something is going to be made for the owner, with addresses of that IPAM plugin.

        It is the draft of the record: what an ADD leaves that is killed before it writes one.
        """
        path = self._path(owner)
        draft = _draft_of(path)
        try:
            effects.change("announce an attachment")
            _fill(draft, json.dumps({"owner": encode(owner), "ipam_type": ipam_type}).encode())
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise CniError(Code.IO_FAILURE, f"cannot write attachment record {path}: {error.strerror}") from None

    def retire(self, owner: Owner) -> None:
        """Have the record be a draft again, from which nobody makes anything; that there is none is success.

        It goes before the addresses that it names do: they may be another owner's at once.
        """
        path = self._path(owner)
        try:
            effects.change("retire a record")
            with suppress(FileNotFoundError):
                path.rename(_draft_of(path))
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"cannot retire attachment record {path}: {error.strerror}") from None

    def announced(self, owner: Owner) -> str | None:
        """The IPAM plugin that the owner's draft names, if there is one without a record: a request was killed."""
        announcement = _read_announcement(_draft_of(self._path(owner)))
        return announcement[1] if announcement is not None else None

    def write(self, attachment: R) -> None:
        """Keep the attachment, whole or not at all."""
        path = self._path(attachment.owner)
        draft = _draft_of(path)  # the owner's lock is held: nobody else writes it
        text = json.dumps({"format": FORMAT, "attachment": encode(attachment)}).encode()
        try:
            effects.change("write a record's draft")
            _fill(draft, text)
            effects.change("put a record in its place")
            draft.rename(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise CniError(Code.IO_FAILURE, f"cannot write attachment record {path}: {error.strerror}") from None

    def remove(self, owner: Owner) -> None:
        """Forget the attachment; forgotten already is success."""
        path = self._path(owner)
        effects.change("remove a record")
        _draft_of(path).unlink(missing_ok=True)  # of a request that was killed
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone already
            path.parent.rmdir()

    def all(self, network: str | None = None) -> Iterator[R]:
        """The attachments of one network, or of all; a record that cannot be read is named in the log."""
        folder = glob.escape(file_name(network)) if network is not None else "*"
        for path in sorted(self._directory.glob(f"{folder}/*.json")):
            try:
                attachment = self._parse(path.read_bytes(), path)
            except FileNotFoundError:  # removed meanwhile
                continue
            except CniError as error:
                log.warning("%s", error.msg)
                continue
            if network in (None, attachment.owner.network):
                yield attachment

    def is_empty(self, network: str) -> bool:
        """Whether the network has no attachment."""
        try:
            with os.scandir(self._directory / file_name(network)) as entries:
                return not any(each.name.endswith(".json") for each in entries)
        except FileNotFoundError:
            return True

    def of_container(self, container_id: str) -> Iterator[R]:
        """The container's attachments to all networks; by the names of the files, so that few are read."""
        for path in self._directory.glob(f"*/{glob.escape(file_name(f'{container_id}:')[:100])}*.json"):
            with suppress(FileNotFoundError, CniError):
                attachment = self._parse(path.read_bytes(), path)
                if attachment.owner.container_id == container_id:
                    yield attachment

    def find(self, key: str) -> R | None:
        """The attachment whose owner has that key (`tag.owner_key`): reads them all, for when there is a conflict."""
        return next((each for each in self.all() if owner_key(each.owner) == key), None)

    def forget_unreadable(self, network: str, keep: frozenset[Owner]) -> None:
        """Remove records of the network that cannot be read, but for those of owners in `keep`."""
        kept = {self._path(owner) for owner in keep}
        for path in set((self._directory / file_name(network)).glob("*.json")) - kept:
            try:
                self._parse(path.read_bytes(), path)
            except CniError:
                effects.change("remove a record that cannot be read")
                path.unlink(missing_ok=True)

    def drafts(self, network: str) -> list[Owner]:
        """The owners of whom only the draft of a record is there: of a request that was killed, if none runs."""
        found = []
        for draft in (self._directory / file_name(network)).glob(".*.json.new"):
            announcement = _read_announcement(draft)
            if announcement is None:  # it is the record's, half written
                container_id, _, ifname = draft.name.removeprefix(".").removesuffix(".json.new").rpartition(":")
                announcement = Owner(network=network, container_id=container_id, ifname=ifname), ""
            owner, _ = announcement
            if _draft_of(self._path(owner)) == draft and not self._path(owner).exists():
                found.append(owner)
        return found

    def require_writable(self) -> None:
        """Fail if no record could be written."""
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise CniError(Code.IO_FAILURE, f"{self._directory} is not writable, so no attachment can be recorded")

    def _parse(self, text: bytes, path: Path) -> R:
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {document['format']}, this program knows {FORMAT}")
            return decode(self._kind, document["attachment"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CniError(
                Code.IO_FAILURE, f"attachment record {path} cannot be read: {error}", "remove it and repeat the request"
            ) from None


def _path_of(directory: Path, owner: Owner) -> Path:
    return directory / file_name(owner.network) / f"{file_name(f'{owner.container_id}:{owner.ifname}')}.json"


@lru_cache(maxsize=_PATHS_KEPT)
def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _fill(draft: Path, text: bytes) -> None:
    """Make the file anew with that text; its folder too if need be, which another request may be taking away."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(draft, flags, 0o600)
            break
        except FileNotFoundError:
            with suppress(FileExistsError):  # which mkdir says of one that is gone when it looks again
                draft.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        fd = os.open(draft, flags, 0o600)
    try:
        written = os.write(fd, text)
    finally:
        os.close(fd)
    if written != len(text):  # the file system is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_announcement(draft: Path) -> tuple[Owner, str] | None:
    """Owner and IPAM plugin; None if there is no such draft, or it is a record's that was not written to its end."""
    try:
        document = json.loads(draft.read_bytes())
        document = document.get("attachment", document)
        return decode(Owner, document["owner"]), str(document["ipam_type"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
