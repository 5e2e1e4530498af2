"""Patch augmentation: mirroring and transposing, the eight symmetries of the square.

A symmetry is a number of three bits: `MIRROR_COLUMNS`, `MIRROR_ROWS`, and `TRANSPOSE`, which is
done after the other two. All combinations of the three are the rotations by 0, 90, 180 and 270
degrees, each with and without a mirror.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MIRROR_COLUMNS = 0b001  # left-right
MIRROR_ROWS = 0b010  # top-bottom
TRANSPOSE = 0b100  # rows become columns

# The bits that are drawn at random, each set with probability 1/2; the others stay 0.
AUGMENTATIONS = {
    "none": 0,
    "flips": MIRROR_COLUMNS | MIRROR_ROWS,
    "flips+rotations": MIRROR_COLUMNS | MIRROR_ROWS | TRANSPOSE,
}


class PatchGrid(NamedTuple):
    """Where the pixels of square patches lie in flat pixels.

    Pixel (i, j) of a patch is row `origin + i * down + j * right` of the flat pixels. Mirroring
    and transposing change these three numbers and nothing else.

    Attributes:
        origin: The row of a patch's pixel (0, 0), int64 of shape (b,).
        down: From a pixel to the one below it in the patch, int64 of shape (b,).
        right: From a pixel to the one at its right in the patch, int64 of shape (b,).
    """

    origin: np.ndarray
    down: np.ndarray
    right: np.ndarray


def drawn_bits(augment: str) -> int:
    """Return which bits of a symmetry are drawn at random.

    Args:
        augment: "none", "flips" or "flips+rotations".

    Returns:
        A number of three bits.

    Raises:
        ValueError: There is no such augmentation.
    """
    if augment not in AUGMENTATIONS:
        expected = ", ".join(repr(name) for name in AUGMENTATIONS)
        raise ValueError(f"augment {augment!r}: expected one of {expected}")
    return AUGMENTATIONS[augment]


def augmented(patch: np.ndarray, symmetry: int) -> np.ndarray:
    """Return one patch mirrored and transposed, as a view.

    Args:
        patch: Of shape (side, side, 3).
        symmetry: A number of three bits.

    Returns:
        The patch, of the same shape.
    """
    if symmetry & MIRROR_COLUMNS:
        patch = np.flip(patch, axis=1)
    if symmetry & MIRROR_ROWS:
        patch = np.flip(patch, axis=0)
    if symmetry & TRANSPOSE:
        patch = np.swapaxes(patch, 0, 1)
    return patch


def augmented_grid(
    first: np.ndarray, width: np.ndarray, side: int, symmetry: np.ndarray
) -> PatchGrid:
    """Return where the pixels of mirrored and transposed patches lie, without moving any.

    The same as `augmented`, for many patches at once and for flat pixels.

    Args:
        first: The row of the flat pixels that holds each patch's top left pixel in its image, int64
            of shape (b,).
        width: Of the image that each patch lies in, in pixels, int64 of shape (b,).
        side: Of the patches, in pixels.
        symmetry: Numbers of three bits, int64 of shape (b,).

    Returns:
        The grid of each patch.
    """
    mirror_columns = (symmetry & MIRROR_COLUMNS) != 0
    mirror_rows = (symmetry & MIRROR_ROWS) != 0
    transpose = (symmetry & TRANSPOSE) != 0
    last = side - 1
    # A mirrored patch begins at the other end of its rows or columns, and goes back from there.
    origin = first + np.where(mirror_columns, last, 0) + np.where(mirror_rows, last * width, 0)
    along_columns = np.where(mirror_rows, -width, width)
    along_rows = np.where(mirror_columns, -1, 1)
    return PatchGrid(
        origin=origin,
        down=np.where(transpose, along_rows, along_columns),
        right=np.where(transpose, along_columns, along_rows),
    )
