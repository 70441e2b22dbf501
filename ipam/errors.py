"""What can go wrong with addresses; every message names the object, the reason and the way out."""


class IpamError(Exception):
    """The root of this package's failures."""


class BadRanges(IpamError):
    """The configured ranges contradict themselves."""


class PoolConflict(IpamError):
    """A subnet is in use elsewhere, or leases of the network do not fit its new configuration."""


class PoolExhausted(IpamError):
    """No address of a range set is free."""


class AddressTaken(IpamError):
    """A requested address belongs to another owner."""


class AddressNotOffered(IpamError):
    """A requested address lies in no configured range, or is never handed out."""


class NotFound(IpamError):
    """There is no such lease, reservation or network."""


class LeaseMissing(IpamError):
    """An owner does not hold an address that it should hold."""


class StoreBusy(IpamError):
    """The store could not be written now; the same request may succeed later."""


class StoreFull(StoreBusy):
    """The file system of the store has no room left."""


class StoreUnavailable(IpamError):
    """The store cannot be opened or written until somebody repairs what the message names."""


class StoreDamaged(IpamError):
    """The store is not a database of this program, or is corrupt; it is never overwritten."""


class ServiceBroken(IpamError):
    """A request was handed to the IPAM service and no answer came; whether it took effect is unknown."""


class ServiceUnavailable(IpamError):
    """The IPAM service cannot be asked; nothing was handed over."""


class RequestRefused(IpamError):
    """The IPAM service refused the caller or did not understand the request."""


def by_name(name: str) -> type[IpamError]:
    """The failure of that name, for an answer that crossed a socket; an unknown one is an `IpamError`."""
    kinds = [IpamError]
    for each in kinds:  # grows on the way
        kinds += each.__subclasses__()
    return next((each for each in kinds if each.__name__ == name), IpamError)
