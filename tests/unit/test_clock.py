"""Time that no clock change and no reboot deceives."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ipam.clock import Moment, now

EARLIER = Moment(boot_id="a", seconds=100.0)


@pytest.mark.parametrize(
    ("later", "seconds"),
    [
        (Moment(boot_id="a", seconds=160.5), 60.5),
        (Moment(boot_id="a", seconds=100.0), 0.0),
        (Moment(boot_id="b", seconds=5.0), 5.0),
        (Moment(boot_id="b", seconds=500.0), 500.0),
    ],
    ids=["of this boot", "at once", "soon after a reboot", "long after a reboot"],
)
def test_what_has_passed_at_least(later: Moment, seconds: float) -> None:
    assert later.since(EARLIER) == seconds


def test_now_is_the_time_since_this_boot_with_what_was_slept() -> None:
    before, moment, after = time.clock_gettime(time.CLOCK_BOOTTIME), now(), time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= moment.seconds <= after
    assert moment.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
