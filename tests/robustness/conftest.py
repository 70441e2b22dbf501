"""What tests of promises about crashes and failures share."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forks import Forks

_HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--robustness full` runs what takes long; where pytest is told no directory, ROBUSTNESS=full does."""
    parser.addoption("--robustness", choices=["share", "full"], default="share", help="every point, or a share of them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say plainly what a run without root does not show."""
    for item in items:
        if _HERE in item.path.parents and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root, for network namespaces"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The process that runs programs."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def is_complete(pytestconfig: pytest.Config) -> bool:
    """Whether every point is to be tried, not a share of them."""
    return os.environ.get("ROBUSTNESS", pytestconfig.getoption("--robustness", default="share")) == "full"


@pytest.fixture(scope="session")
def today() -> int:
    """A number that is another each day, so that shares rotate; ROBUSTNESS_DAY has a former day's share run again."""
    return int(os.environ.get("ROBUSTNESS_DAY", datetime.datetime.now(datetime.UTC).toordinal()))
