"""One pair: HR cropped to LR's size, and noise that depends on the image alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from made_images import noise
from PIL import Image

from elasticnet.sr.data import (
    load_pairs,
    pairs_from_arrays,
)


def test_scale_1_keeps_the_image() -> None:
    image = noise(9, 7)
    pairs = pairs_from_arrays({"a": image}, 1)
    np.testing.assert_array_equal(pairs.lr(0), image)
    np.testing.assert_array_equal(pairs.hr(0), image)


def test_noise_differs_from_image_to_image_only() -> None:
    image = np.full((40, 40, 3), 128, dtype=np.uint8)
    both = pairs_from_arrays({"a": image, "b": image}, 2, degradation="DN", seed=1)
    assert not np.array_equal(both.lr(0), both.lr(1))
    np.testing.assert_array_equal(
        pairs_from_arrays({"b": image}, 2, degradation="DN", seed=1).lr(0), both.lr(1)
    )
    other = pairs_from_arrays({"b": image}, 2, degradation="DN", seed=2)
    assert not np.array_equal(other.lr(0), both.lr(1))


@pytest.mark.parametrize(
    ("hr_size", "lr_size", "kept"),
    [
        ((24, 36), (12, 18), (12, 18)),
        ((25, 37), (12, 18), (12, 18)),  # LR of the cropped image
        ((25, 37), (13, 19), (12, 18)),  # LR of the whole image, ceil(n / scale)
    ],
)
def test_hr_and_lr_files_are_aligned(
    tmp_path: Path, hr_size: tuple[int, int], lr_size: tuple[int, int], kept: tuple[int, int]
) -> None:
    hr, lr = noise(*hr_size), noise(*lr_size, seed=1)
    for path, image in ((tmp_path / "HR/a.png", hr), (tmp_path / "LR_bicubic/X2/ax2.png", lr)):
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    pairs = load_pairs(tmp_path, 2, progress=False, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(pairs.lr(0), lr[: kept[0], : kept[1]])
    np.testing.assert_array_equal(pairs.hr(0), hr[: kept[0] * 2, : kept[1] * 2])


def test_a_name_that_is_no_utf_8_has_a_seed() -> None:
    """Such names of files hold surrogates; they may come from any old archive."""
    image = noise(9, 7)
    pairs = pairs_from_arrays({os.fsdecode(b"caf\xe9"): image}, 1)
    np.testing.assert_array_equal(pairs.hr(0), image)
