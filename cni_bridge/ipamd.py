"""The executable `ipamd`: the IPAM service on the host that it runs on."""

from cni_bridge.ipam_host import KernelHost
from ipam import daemon


def main() -> int:
    """Serve until told to stop; see `ipam.daemon.main`."""
    return daemon.main(KernelHost())
