"""The plugins that add to what another one made, by their names."""

from __future__ import annotations

from collections.abc import Mapping

from cni_bridge.chained import loopback
from cni_bridge.chained.bandwidth import Bandwidth
from cni_bridge.chained.firewall import Firewall
from cni_bridge.chained.lifecycle import Operation, operations
from cni_bridge.chained.portmap import Portmap
from cni_bridge.chained.tuning import Tuning
from cni_bridge.cni.plugins import Plugin
from cni_bridge.cni.request import Command

_OPERATIONS: Mapping[Plugin, Mapping[Command, Operation]] = {
    Plugin.PORTMAP: operations(Portmap()),
    Plugin.FIREWALL: operations(Firewall()),
    Plugin.BANDWIDTH: operations(Bandwidth()),
    Plugin.TUNING: operations(Tuning()),
    Plugin.LOOPBACK: loopback.OPERATIONS,
}


def operations_of(name: Plugin) -> Mapping[Command, Operation]:
    """The operations of that plugin."""
    return _OPERATIONS[name]
