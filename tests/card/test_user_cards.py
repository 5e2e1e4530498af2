"""Cards that are kept for a user: found again, by network and machine, and never in the way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from elasticnet.card import measure
from elasticnet.card.user_cards import card_file, keep_card, kept_card, user_cache_folder
from elasticnet.sr import asrn

NET = asrn(2, num_blocks=2, channels=8)
DESCRIPTION = ("asrn", {"scale": 2, "num_blocks": 2}, (1, 2))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_folder_is_that_of_platformdirs(monkeypatch: pytest.MonkeyPatch) -> None:
    platformdirs = pytest.importorskip("platformdirs")
    for chosen in ("/chosen", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        expected = platformdirs.user_cache_path("elasticnet", appauthor=False)
        assert user_cache_folder() == expected


@pytest.mark.parametrize(
    ("system", "end"),
    [("darwin", "Library/Caches/elasticnet"), ("win32", "Local/elasticnet/Cache")],
)
def test_the_folder_on_other_systems(
    monkeypatch: pytest.MonkeyPatch, system: str, end: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(sys, "platform", system)
    assert user_cache_folder().as_posix().endswith(end)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OSError, match="no home folder; set XDG_CACHE_HOME"):
        user_cache_folder()


def test_a_card_is_found_again(cache: Path) -> None:
    card = measure(NET, torch.rand(1, 3, 8, 8), repeats=1, memory=False)
    file = card_file(*DESCRIPTION)
    assert file.parent == cache / "elasticnet" / "cards"
    assert kept_card(file) is None
    keep_card(file, card)
    assert kept_card(file) == card
    assert kept_card(file, dtype=torch.bfloat16) is None


def test_networks_of_one_speed_share_a_file_and_others_do_not() -> None:
    file = card_file(*DESCRIPTION)
    assert file == card_file("asrn", {"num_blocks": 2, "scale": 2}, [1, 2])
    assert file != card_file("asrn", {"scale": 2, "num_blocks": 3}, [1, 2])
    assert file != card_file("asrn", {"scale": 2, "num_blocks": 2}, [2])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_file_counts_as_absent_and_is_replaced(content: str) -> None:
    file = card_file(*DESCRIPTION)
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert kept_card(file) is None
    card = measure(NET, torch.rand(1, 3, 8, 8), repeats=1, memory=False)
    keep_card(file, card)
    assert kept_card(file) == card
