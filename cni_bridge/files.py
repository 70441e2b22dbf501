"""File names for names that come from outside. Pure."""

from __future__ import annotations

from hashlib import sha256

_MAX_LENGTH = 200  # bytes of the 255 that a file name may have, so that endings fit


def file_name(name: str) -> str:
    """The name itself where it can be one, else its beginning and a digest; CNI names hold neither `/` nor NUL."""
    if 0 < len(name.encode()) <= _MAX_LENGTH:
        return name
    return f"{name.encode()[:100].decode(errors='ignore')}~{sha256(name.encode()).hexdigest()[:32]}"
