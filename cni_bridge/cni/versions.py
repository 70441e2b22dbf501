"""The CNI specification versions that this plugin speaks, and what each of them knows. Pure."""

from __future__ import annotations

from enum import StrEnum


class Version(StrEnum):
    """A specification version, in order of time."""

    V0_1_0 = "0.1.0"
    V0_2_0 = "0.2.0"
    V0_3_0 = "0.3.0"
    V0_3_1 = "0.3.1"
    V0_4_0 = "0.4.0"
    V1_0_0 = "1.0.0"
    V1_1_0 = "1.1.0"

    def since(self, other: Version) -> bool:
        """Whether this version is that one or newer."""
        return _ORDER[self] >= _ORDER[other]

    @property
    def family(self) -> int:
        """Versions of one family have results of one shape: 0 up to 0.2.0, 1 up to 0.4.0, 2 from 1.0.0."""
        return 2 if self.since(Version.V1_0_0) else 1 if self.since(Version.V0_3_0) else 0


NEWEST = Version.V1_1_0
SUPPORTED = tuple(Version)
_ORDER = {each: position for position, each in enumerate(SUPPORTED)}
