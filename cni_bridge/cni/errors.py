"""The failures of the plugin: each carries its CNI error code, and this is the only place that assigns one."""

from __future__ import annotations

from enum import IntEnum

from ipam import errors as ipam_errors


class Code(IntEnum):
    """Error codes: below 100 from the CNI specification (section 5, "Error"), from 100 on this plugin's own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    CHECK_FAILED = 100
    POOL_EXHAUSTED = 101
    ADDRESS_UNAVAILABLE = 102
    LINK_CONFLICT = 103
    POOL_CONFLICT = 104
    KERNEL_REFUSED = 105
    FIREWALL_FAILED = 106
    IPAM_PLUGIN_FAILED = 107
    STORE_DAMAGED = 108
    PORT_CONFLICT = 109
    INTERNAL = 999


class CniError(Exception):
    """A failure as the runtime gets it: code, message and details (CNI SPEC, section 5)."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class LockBusy(CniError):
    """Another program holds the lock on the file `path`; whoever can wait tries again. `operation`: as in flock(2)."""

    def __init__(self, path: str, operation: int) -> None:
        super().__init__(Code.TRY_AGAIN_LATER, f"{path} is locked by another program; try again")
        self.path = path
        self.operation = operation


class InvalidConfig(CniError):
    """The network configuration has a value that cannot be used."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.INVALID_CONFIG, msg, details)


class DecodingFailure(CniError):
    """Something that should be JSON of a known shape is not."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.DECODING_FAILURE, msg, details)


class LinkConflict(CniError):
    """A link or an address of that name is there and is not what this attachment needs."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.LINK_CONFLICT, msg, details)


class PortConflict(CniError):
    """A host port that is to be published belongs to somebody else."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.PORT_CONFLICT, msg, details)


class UnsupportedField(CniError):
    """The configuration asks for something that this host's kernel was built without."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.UNSUPPORTED_FIELD, msg, details)


class KernelRefused(CniError):
    """The kernel refused a change; the message names the object and the kernel's reason, `errno` is its number."""

    def __init__(self, msg: str, *, errno: int = 0) -> None:
        super().__init__(Code.KERNEL_REFUSED, msg)
        self.errno = errno


class FirewallFailed(CniError):
    """A firewall backend is missing or refused a change."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.FIREWALL_FAILED, msg, details)


class CheckFailed(CniError):
    """What CHECK found to differ, one difference a line."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.CHECK_FAILED, msg, details)


class InvalidNetns(CniError):
    """`CNI_NETNS` is not a network namespace that a container can have."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.INVALID_NETNS, msg, details)


_IPAM_CODES: dict[type[ipam_errors.IpamError], Code] = {
    ipam_errors.BadRanges: Code.INVALID_CONFIG,
    ipam_errors.PoolConflict: Code.POOL_CONFLICT,
    ipam_errors.PoolExhausted: Code.POOL_EXHAUSTED,
    ipam_errors.AddressTaken: Code.ADDRESS_UNAVAILABLE,
    ipam_errors.AddressNotOffered: Code.ADDRESS_UNAVAILABLE,
    ipam_errors.LeaseMissing: Code.CHECK_FAILED,
    ipam_errors.NotFound: Code.INTERNAL,
    ipam_errors.StoreBusy: Code.TRY_AGAIN_LATER,
    ipam_errors.StoreFull: Code.TRY_AGAIN_LATER,
    ipam_errors.ServiceBroken: Code.TRY_AGAIN_LATER,
    ipam_errors.ServiceUnavailable: Code.TRY_AGAIN_LATER,
    ipam_errors.StoreUnavailable: Code.IO_FAILURE,
    ipam_errors.StoreDamaged: Code.STORE_DAMAGED,
    ipam_errors.RequestRefused: Code.IO_FAILURE,
}


def as_cni_error(error: BaseException) -> CniError:
    """The failure as a runtime gets it, whatever was raised."""
    if isinstance(error, CniError):
        return error
    if isinstance(error, ipam_errors.IpamError):
        return CniError(_IPAM_CODES.get(type(error), Code.INTERNAL), str(error))
    if isinstance(error, TimeoutError):
        return CniError(Code.TRY_AGAIN_LATER, str(error) or "the request took longer than request_timeout; try again")
    if isinstance(error, OSError):
        return CniError(Code.IO_FAILURE, f"{error.strerror or error}", error.filename or "")
    return CniError(Code.INTERNAL, f"internal failure: {type(error).__name__}: {error}")


def as_unavailable(error: CniError) -> CniError:
    """The failure of a STATUS: code 50, unless the request itself is at fault (CNI SPEC, section 2, "STATUS")."""
    if error.code in _FAULTS_OF_THE_REQUEST or error.code in (Code.NOT_AVAILABLE, Code.LIMITED_CONNECTIVITY):
        return error
    return CniError(Code.NOT_AVAILABLE, error.msg, error.details)


_FAULTS_OF_THE_REQUEST = (
    Code.UNSUPPORTED_FIELD,
    Code.INCOMPATIBLE_VERSION,
    Code.INVALID_ENVIRONMENT,
    Code.DECODING_FAILURE,
    Code.INVALID_CONFIG,
)
