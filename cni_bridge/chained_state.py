"""What a chained plugin did for an attachment, as it is recorded until DEL."""

from __future__ import annotations

from dataclasses import dataclass, field

from cni_bridge.cni.shaping import Shaping
from cni_bridge.cni.tuning import Tuning
from cni_bridge.datapath.tuning import Former
from cni_bridge.policy import Policy, Publication
from ipam.api import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Chained:
    """The desired state of one plugin's part of an attachment; what the others do is empty.

    `port` is the veth's end on the host whose traffic `shaping` limits; `former` is what `tuning` changed.
    """

    owner: Owner
    policies: tuple[Policy, ...] = ()
    waiting: tuple[Publication, ...] = ()
    isolated_port: str = ""
    port: str = ""
    shaping: Shaping = field(default_factory=Shaping)
    tuning: Tuning = field(default_factory=Tuning)
    former: Former | None = None
