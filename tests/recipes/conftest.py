"""What tests of recipes/asrn_div2k.py train on; those of other recipes have their own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from loading import load_recipe
from small_photos import small_photos


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("asrn_div2k")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of small HR images."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    return small_photos(folder, num_photos=3, height=48, width=64)
