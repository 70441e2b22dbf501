"""File names for names that come from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_bridge.files import file_name


@pytest.mark.parametrize("name", ["net1", "a.b_c-d", "c1:eth0", "ä" * 100, "n" * 200])
def test_a_name_that_fits_is_kept(name: str) -> None:
    assert file_name(name) == name


@pytest.mark.parametrize("name", ["", "n" * 201, "ä" * 101, "n" * 5000])
def test_any_other_gets_a_digest_and_can_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / f".{file_name(name)}.json.new").touch()
    assert file_name(name) != name


def test_long_names_stay_apart() -> None:
    names = ["n" * 300, "n" * 301, "n" * 299 + "m", "ä" * 150, ""]
    assert len({file_name(each) for each in names}) == len(names)
