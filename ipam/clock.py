"""Time that no clock change and no reboot deceives: which boot this is, and the seconds since it began."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A point in time: the kernel's random id of the boot (random(4)) and CLOCK_BOOTTIME in seconds."""

    boot_id: str
    seconds: float

    def since(self, earlier: Moment) -> float:
        """Seconds that have passed at least: of an earlier boot, only the time since this one began is known."""
        return self.seconds - earlier.seconds if earlier.boot_id == self.boot_id else self.seconds


def now() -> Moment:
    """This moment."""
    return Moment(boot_id=_boot_id(), seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
