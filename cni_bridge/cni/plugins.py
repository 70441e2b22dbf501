"""The names that the one executable is installed under, by which it knows what to be. Pure."""

from __future__ import annotations

from enum import StrEnum


class Plugin(StrEnum):
    """A plugin by its file's name; those of the reference are there so that its chains run unchanged."""

    CNI_BRIDGE = "cni-bridge"
    BRIDGE = "bridge"
    CNI_IPAM = "cni-ipam"
    HOST_LOCAL = "host-local"
    STATIC = "static"
    PORTMAP = "portmap"
    FIREWALL = "firewall"
    BANDWIDTH = "bandwidth"
    TUNING = "tuning"
    LOOPBACK = "loopback"
