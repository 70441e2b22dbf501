"""Debian's `host-local` and `cni-ipam` on one host, asked the same; each keeps its leases in its own place."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.support.host import REFERENCE, Answer, Host, Json

HOST_LOCAL = REFERENCE / "host-local"
IPV4 = {"subnet": "10.88.0.0/24"}
RANGES = [[IPV4], [{"subnet": "fd00:88::/64"}]]

REFUSED: dict[str, Json] = {  # what neither of them takes for a configuration
    "empty range set": {"ranges": [[]]},
    "host bits": {"subnet": "10.88.0.9/24"},
    "no prefix length": {"subnet": "10.88.0.0"},
    "no address": {"subnet": "nonsense"},
    "start outside of the subnet": {**IPV4, "rangeStart": "10.99.0.9"},
    "end outside of the subnet": {**IPV4, "rangeEnd": "10.99.0.9"},
    "end before start": {**IPV4, "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.8"},
    "overlapping ranges": {"ranges": [[IPV4, {"subnet": "10.88.0.0/25"}]]},
    "overlapping sets": {"ranges": [[IPV4], [{"subnet": "10.88.0.0/16"}]]},
    "mixed families": {"ranges": [[IPV4, {"subnet": "fd00:88::/64"}]]},
    "mapped addresses": {"subnet": "::ffff:10.88.0.0/120"},
    "missing resolvConf": {**IPV4, "resolvConf": "/etc/cni/none"},
    "not a list of lists": {"ranges": ["10.88.0.0/24"]},
    "a number": {"subnet": 5},
    "a route without prefix length": {**IPV4, "routes": [{"dst": "192.0.2.1"}]},
}


def conf_of(ipam: Json, version: str = "1.1.0", **keys: object) -> Json:
    """A network of another interface plugin with this `ipam` section."""
    return {"cniVersion": version, "name": "net1", "type": "bridge", "ipam": {"type": "host-local", **ipam}, **keys}


def call(host: Host, command: str, conf: Json | str, container: str = "", args: str = "", **kwargs: object) -> Answer:
    """What `cni-ipam` answers."""
    return host.plugin(command, conf, container, plugin="cni-ipam", env={"CNI_ARGS": args}, **kwargs)  # type: ignore[arg-type]


def said(answer: Answer) -> str | int:
    """An answer in short: the addresses of a result, the code of an error, nothing where nothing is printed."""
    if answer.status != 0:
        return int(json.loads(answer.stdout)["code"])
    return " ".join(each["address"] for each in answer.result["ips"]) if answer.stdout else ""


@dataclass(frozen=True, slots=True)
class Both:
    """Asks both, first theirs. A request is `COMMAND [CONTAINER[/INTERFACE] [CNI_ARGS]]`, of version 1.0.0."""

    host: Host

    def __call__(self, request: str, ipam: Json, version: str = "1.0.0", **keys: object) -> tuple[str | int, str | int]:
        """What they say, in short."""
        theirs, ours = self.answers(request, ipam, version, **keys)
        return said(theirs), said(ours)

    def answers(self, request: str, ipam: Json, version: str = "1.0.0", **keys: object) -> tuple[Answer, Answer]:
        """What they answer."""
        conf = conf_of(ipam, version, **keys)
        command, attachment, args = [*request.split(), "", ""][:3]
        container, _, ifname = attachment.partition("/")
        theirs, ours = (
            self.host.plugin(command, conf, container, ifname=ifname or "eth0", plugin=plugin, env={"CNI_ARGS": args})
            for plugin in (HOST_LOCAL, "cni-ipam")
        )
        return theirs, ours

    def agree(self, request: str, ipam: Json, version: str = "1.0.0", **keys: object) -> None:
        """Assert that they answer the same."""
        theirs, ours = self.answers(request, ipam, version, **keys)
        assert ours.status == theirs.status, f"{request}: {ours.stdout} {theirs.stdout}"
        if theirs.status == 0 and theirs.stdout:
            # Debian's writes an empty `dns` in every version, later ones and ours only where the version asks for it.
            assert {"dns": {}, **ours.result} == {"dns": {}, **theirs.result}, request
        elif theirs.status == 0:
            assert ours.stdout == "", request
