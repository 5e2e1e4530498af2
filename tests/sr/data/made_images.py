"""Images made for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from elasticnet.sr.data import PairSet


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a random image."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path: Path, height: int = 24, width: int = 36, seed: int = 0) -> Path:
    """Save a random image under this name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(path)
    return path


def flat(root: Path, count: int) -> Path:
    """Make a folder of images, the first one smaller than the others."""
    put(root / "image00.png", 8, 20, seed=0)
    for index in range(1, count):
        put(root / f"image{index:02}.png", 16, 20, seed=index)
    return root


def contents(pairs: PairSet) -> dict[str, tuple[bytes, bytes]]:
    """Return the bytes of LR and HR by name."""
    return {
        name: (pairs.lr(index).tobytes(), pairs.hr(index).tobytes())
        for index, name in enumerate(pairs.names)
    }


def put_pairs(root: Path, hr: str, lr: str, ending: str = "", count: int = 2) -> None:
    """Save HR images of 64 pixels a side in one folder, and LR images of 16 in another."""
    for index in range(1, count + 1):
        put(root / hr / f"000{index}.png", 64, 64, seed=index)
        put(root / lr / f"000{index}{ending}.png", 16, 16, seed=10 + index)
