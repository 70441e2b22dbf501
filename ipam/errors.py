"""What can go wrong with addresses; every message names the object, the reason and the way out."""


class IpamError(Exception):
    """The root of this package's failures."""


class BadRanges(IpamError):
    """The configured ranges contradict themselves."""


class PoolExhausted(IpamError):
    """No address of a range set is free."""


class AddressTaken(IpamError):
    """A requested address belongs to another owner."""


class AddressNotOffered(IpamError):
    """A requested address lies in no configured range, or is never handed out."""


class LeaseMissing(IpamError):
    """An owner does not hold an address that it should hold."""


class StoreBusy(IpamError):
    """The store could not be written now; the same request may succeed later."""


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
    return next((each for each in IpamError.__subclasses__() if each.__name__ == name), IpamError)
