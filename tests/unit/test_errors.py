"""Every failure has one CNI error code."""

from __future__ import annotations

import errno

import pytest

from cni_bridge.cni.errors import (
    CheckFailed,
    CniError,
    Code,
    DecodingFailure,
    FirewallFailed,
    InvalidConfig,
    InvalidNetns,
    KernelRefused,
    LinkConflict,
    UnsupportedField,
    as_cni_error,
)
from ipam.errors import (
    AddressTaken,
    BadRanges,
    IpamError,
    NotFound,
    PoolConflict,
    PoolExhausted,
    StoreBusy,
    StoreFull,
    by_name,
)

# NotFound is an answer to operators, never to a runtime.
OF_REQUESTS = [each for each in (*IpamError.__subclasses__(), StoreFull) if each is not NotFound]


@pytest.mark.parametrize("kind", OF_REQUESTS, ids=lambda kind: kind.__name__)
def test_every_ipam_failure_of_a_request_has_a_code_of_its_own(kind: type[IpamError]) -> None:
    error = as_cni_error(kind("the reason"))
    assert error.code != Code.INTERNAL
    assert error.msg == "the reason"


@pytest.mark.parametrize("kind", [IpamError, NotFound, *OF_REQUESTS], ids=lambda kind: kind.__name__)
def test_every_ipam_failure_is_found_by_its_name(kind: type[IpamError]) -> None:
    assert by_name(kind.__name__) is kind


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRanges("x"), 7),
        (PoolExhausted("x"), 101),
        (AddressTaken("x"), 102),
        (PoolConflict("x"), 104),
        (StoreBusy("x"), 11),
        (StoreFull("x"), 11),
        (InvalidConfig("x"), 7),
        (DecodingFailure("x"), 6),
        (InvalidNetns("x"), 8),
        (CheckFailed("x"), 100),
        (LinkConflict("x"), 103),
        (UnsupportedField("x"), 2),
        (KernelRefused("x", errno=errno.EPERM), 105),
        (FirewallFailed("x"), 106),
        (TimeoutError(), 11),
        (OSError(errno.ENOSPC, "No space left on device", "/run/x"), 5),
        (ValueError("x"), 999),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_codes(error: Exception, code: int) -> None:
    assert as_cni_error(error).code == code


def test_a_cni_error_stays_as_it_is() -> None:
    error = CniError(142, "another plugin's own", "with details")
    assert as_cni_error(error) is error


def test_an_os_error_names_its_file() -> None:
    error = as_cni_error(OSError(errno.ENOSPC, "No space left on device", "/run/x"))
    assert (error.msg, error.details) == ("No space left on device", "/run/x")


def test_what_nobody_foresaw_names_its_kind() -> None:
    assert as_cni_error(ValueError("odd")).msg == "internal failure: ValueError: odd"
