"""Augmentation: the two ways to turn a patch agree, and make the eight symmetries of the square."""

from __future__ import annotations

import numpy as np
import pytest
from made_images import noise

from elasticnet.sr.data.augmentation import (
    MIRROR_COLUMNS,
    MIRROR_ROWS,
    TRANSPOSE,
    augmented,
    augmented_grid,
    drawn_bits,
)

SYMMETRIES = range(8)


def test_the_bits_mirror_and_transpose() -> None:
    patch = noise(3, 3)
    assert np.array_equal(augmented(patch, 0), patch)
    assert np.array_equal(augmented(patch, MIRROR_COLUMNS), np.fliplr(patch))
    assert np.array_equal(augmented(patch, MIRROR_ROWS), np.flipud(patch))
    assert np.array_equal(augmented(patch, TRANSPOSE), patch.transpose(1, 0, 2))
    quarter_turn = augmented(patch, MIRROR_ROWS | TRANSPOSE)
    assert np.array_equal(quarter_turn, np.rot90(patch, k=-1))


def test_the_eight_symmetries_differ() -> None:
    patch = noise(4, 4)
    assert len({augmented(patch, symmetry).tobytes() for symmetry in SYMMETRIES}) == 8


def test_the_grid_finds_the_pixels_of_the_turned_patch() -> None:
    """All eight at once, in an image that is wider than high."""
    image = noise(7, 11)
    side, top, left = 4, 2, 5
    patch = image[top : top + side, left : left + side]
    symmetries = np.array(SYMMETRIES)
    first = np.full(8, top * 11 + left)
    grid = augmented_grid(first, np.full(8, 11), side, symmetries)
    flat = image.reshape(-1, 3)
    for symmetry in SYMMETRIES:
        for i, j in np.ndindex(side, side):
            row = grid.origin[symmetry] + i * grid.down[symmetry] + j * grid.right[symmetry]
            assert np.array_equal(flat[row], augmented(patch, symmetry)[i, j])


def test_which_bits_are_drawn() -> None:
    assert [drawn_bits(name) for name in ("none", "flips", "flips+rotations")] == [0, 3, 7]
    with pytest.raises(ValueError, match=r"augment 'turns': expected one of 'none', 'flips', 'f"):
        drawn_bits("turns")
