"""Limits on traffic: where they are read from, and what a bad one gets."""

from __future__ import annotations

import pytest

from cni_bridge.cni.errors import CniError, Code
from cni_bridge.cni.shaping import Rate, Shaping, parse_shaping
from tests.support.calls import refusal, request

INGRESS, EGRESS = {"ingressRate": 8000, "ingressBurst": 800}, {"egressRate": 16000, "egressBurst": 1600}
TO_CONTAINER, FROM_CONTAINER = Rate(rate=8000, burst=800), Rate(rate=16000, burst=1600)
NOTHING = dict.fromkeys((*INGRESS, *EGRESS), 0)


def parse(**keys: object) -> Shaping:
    return parse_shaping(request(**keys).config)


def refused(**keys: object) -> CniError:
    return refusal(lambda: parse(**keys))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({}, Shaping(), id="nothing"),
        pytest.param(INGRESS, Shaping(ingress=TO_CONTAINER), id="ingress only"),
        pytest.param(EGRESS, Shaping(egress=FROM_CONTAINER), id="egress only"),
        pytest.param(INGRESS | EGRESS, Shaping(ingress=TO_CONTAINER, egress=FROM_CONTAINER), id="both"),
        pytest.param(NOTHING | EGRESS, Shaping(egress=FROM_CONTAINER), id="zero is no limit"),
        pytest.param({"INGRESSRATE": 8000, "ingressburst": 800}, Shaping(ingress=TO_CONTAINER), id="any case"),
        pytest.param({"ingressRate": None, "ingressBurst": None}, Shaping(), id="null"),
    ],
)
def test_limits_are_read_alike_from_the_configuration_and_from_the_runtime(
    keys: dict[str, object], expected: Shaping
) -> None:
    assert parse(**keys) == expected
    assert parse(runtimeConfig={"bandwidth": keys}) == expected
    assert bool(expected) == (expected != Shaping())


@pytest.mark.parametrize("runtime", [None, {}, {"bandwidth": None}, {"bandwidth": {}}, {"bandwidth": NOTHING}])
def test_no_limit_by_the_runtime(runtime: object) -> None:
    assert parse(runtimeConfig=runtime) == Shaping()


def test_limits_of_the_configuration_go_before_those_of_the_runtime_as_a_whole() -> None:
    assert parse(**INGRESS, runtimeConfig={"bandwidth": EGRESS}) == Shaping(ingress=TO_CONTAINER)


@pytest.mark.parametrize(
    ("keys", "key", "other"),
    [
        ({"ingressRate": 8000}, "ingressRate", "ingressBurst"),
        ({"ingressBurst": 800}, "ingressBurst", "ingressRate"),
        ({"egressRate": 8000, "egressBurst": 0}, "egressRate", "egressBurst"),
        ({**INGRESS, "egressBurst": 800}, "egressBurst", "egressRate"),
    ],
)
def test_rate_and_burst_go_together(keys: dict[str, object], key: str, other: str) -> None:
    for prefix, error in (
        ("", refused(**keys)),
        ("runtimeConfig.bandwidth.", refused(runtimeConfig={"bandwidth": keys})),
    ):
        assert error.code == Code.INVALID_CONFIG
        assert error.msg == f"{prefix}{key} is set, so {prefix}{other} must be too"


@pytest.mark.parametrize("direction", ["ingress", "egress"])
@pytest.mark.parametrize(
    ("rate", "burst", "code", "said"),
    [
        (-1, 800, Code.INVALID_CONFIG, "Rate -1 is not between"),
        (8000, -1, Code.INVALID_CONFIG, "Burst -1 is not between"),
        (1 << 63, 800, Code.INVALID_CONFIG, "Rate 9223372036854775808 is not between"),
        (8000, 8 << 32, Code.INVALID_CONFIG, "Burst 34359738368 is not between"),
        (999, 800, Code.INVALID_CONFIG, "Rate 999 is not between 1000 and"),
        (8000, 7, Code.INVALID_CONFIG, "less than a byte"),
        ("8000", 800, Code.DECODING_FAILURE, 'Rate is "8000", expected a whole number'),
        (8000, 800.0, Code.DECODING_FAILURE, "Burst is 800.0, expected a whole number"),
        (True, 800, Code.DECODING_FAILURE, "Rate is true, expected a whole number"),
    ],
)
def test_a_limit_that_cannot_be_set(direction: str, rate: object, burst: object, code: Code, said: str) -> None:
    keys = {f"{direction}Rate": rate, f"{direction}Burst": burst}
    for error in (refused(**keys), refused(runtimeConfig={"bandwidth": keys})):
        assert error.code == code
        assert said in error.msg
        assert direction in error.msg


@pytest.mark.parametrize("section", [{"bandwidth": []}, {"bandwidth": 5}, []])
def test_a_section_of_another_kind(section: object) -> None:
    assert refused(runtimeConfig=section).code == Code.DECODING_FAILURE
