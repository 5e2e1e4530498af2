"""What reading and writing take: measured once, kept for the user and the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elasticnet.sr.photo import costs
from elasticnet.sr.photo.costs import PhotoCosts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a clock that goes on by 10 ms whenever it is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    now = [0.0]

    def tick() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr(costs.time, "perf_counter", tick)
    monkeypatch.setattr(costs, "SIDE", 48)
    return tmp_path


def test_costs_grow_with_the_samples(cache: Path) -> None:
    found = PhotoCosts()
    ms_for_a_megabyte = 10 / (48 * 48 * 3 / 1e6)
    assert found.reading("JPEG", 2_000_000) == pytest.approx(2 * ms_for_a_megabyte)
    assert found.converting(500_000) == pytest.approx(0.5 * ms_for_a_megabyte)
    assert found.writing("PNG", {"png_level": 1}, 0) == 0
    assert found.reading("QOI", 7) == found.reading("PNG", 7) > 0


def test_what_was_measured_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = PhotoCosts().writing("JPEG", {"quality": None}, 1_000_000)

    def never() -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(costs.time, "perf_counter", never)
    again = PhotoCosts()
    assert again.writing("JPEG", {"quality": None}, 1_000_000) == first
    assert again.instability == ""
    with pytest.raises(AssertionError, match="measured again"):
        again.writing("JPEG", {"quality": 90}, 1_000_000)


def test_a_damaged_file_is_measured_anew(cache: Path) -> None:
    file = cache / "elasticnet" / costs.FILE
    PhotoCosts().converting(1)
    [machine] = json.loads(file.read_text())
    for content in ("{", "[]", json.dumps({machine: 3}), json.dumps({machine: {"convert": "x"}})):
        file.write_text(content)
        assert PhotoCosts().converting(1_000_000) > 0


def test_costs_that_cannot_be_kept_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = PhotoCosts()
    assert found.converting(1_000_000) > 0
    assert str(tmp_path / "file") in found.instability
