"""Limits on an attachment's traffic, as the reference `bandwidth` reads them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cni_bridge.cni.errors import InvalidConfig
from cni_bridge.cni.fields import Fields

_MAX_RATE = (1 << 63) - 1
_LEAST_RATE = 1000  # bit/s; the kernel counts the time of each packet, in 32 bits
_MOST_RATE = ((1 << 32) - 1) * 8  # bit/s, of 32 bits of bytes
_LONGEST_BURST = 250  # seconds that the burst may take at the rate, of 32 bits of 64 ns
_MAX_BURST = (1 << 32) * 8 - 1  # bits of the 4 GB that the kernel's bucket holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`rate` in bits per second, `burst` in bits (a token bucket, tc-tbf(8))."""

    rate: int
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """The limits: `ingress` to the container, `egress` from it."""

    ingress: Rate | None = None
    egress: Rate | None = None

    def __bool__(self) -> bool:
        return self.ingress is not None or self.egress is not None


def parse_shaping(config: Fields) -> Shaping:
    """The limits in the configuration, or else those that the runtime passes (capability "bandwidth")."""
    inline = _parse(config)
    return inline or _parse(config.object("runtimeConfig").object("bandwidth"))


def _parse(fields: Fields) -> Shaping:
    return Shaping(ingress=_rate(fields, "ingress"), egress=_rate(fields, "egress"))


def _rate(fields: Fields, direction: str) -> Rate | None:
    rate = fields.integer(f"{direction}Rate", 0, low=0, high=_MAX_RATE)
    burst = fields.integer(f"{direction}Burst", 0, low=0, high=_MAX_BURST)
    if bool(rate) != bool(burst):
        given, other = ("Rate", "Burst") if rate else ("Burst", "Rate")
        raise InvalidConfig(f"{fields.at(direction + given)} is set, so {fields.at(direction + other)} must be too")
    if rate and not _LEAST_RATE <= rate <= _MOST_RATE:
        raise InvalidConfig(
            f"{fields.at(direction + 'Rate')} {rate} is not between {_LEAST_RATE} and {_MOST_RATE} bit/s"
        )
    if rate and (burst < 8 or burst / rate > _LONGEST_BURST):
        raise InvalidConfig(
            f"{fields.at(direction + 'Burst')} {burst} is less than a byte or takes more than {_LONGEST_BURST} s"
        )
    return Rate(rate=rate, burst=burst) if rate else None
