"""Data sets that several tests of this folder read."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_images import put


@pytest.fixture
def div2k(tmp_path: Path) -> Path:
    """DIV2K as its zips unpack, two images a split, scales 2 and 8."""
    root = tmp_path / "DIV2K"
    for split, numbers in (("train", ("0001", "0002")), ("valid", ("0801", "0802"))):
        for number in numbers:
            put(root / f"DIV2K_{split}_HR" / f"{number}.png")
            put(root / f"DIV2K_{split}_LR_bicubic" / "X2" / f"{number}x2.png", 12, 18)
            put(root / f"DIV2K_{split}_LR_x8" / f"{number}x8.png", 3, 4)
    return root
