"""Which patches are cut: an endless random sequence, whose entry i depends on (seed, i) alone.

Nothing is stored between batches, so that a training which is resumed at a step is exact, and every
rank and worker can compute its own share.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from elasticnet.sr.data.augmentation import drawn_bits
from elasticnet.sr.data.pair_set import MAX_LISTED, PairSet

# Constants of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
# OOPSLA 2014. The first is 2**64 divided by the golden ratio, the step between two states.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)
LARGEST_UINT64 = 0xFFFFFFFFFFFFFFFF


def mix64(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers by the finalizer of SplitMix64, a bijection.

    Args:
        values: uint64 of any shape.

    Returns:
        uint64 of the same shape; close inputs give results that have nothing in common.
    """
    values = (values ^ (values >> np.uint64(30))) * FIRST_MULTIPLIER
    values = (values ^ (values >> np.uint64(27))) * SECOND_MULTIPLIER
    return values ^ (values >> np.uint64(31))


def random_bits(seed: int, counters: np.ndarray) -> np.ndarray:
    """Return 64 random bits for each counter: that entry of the SplitMix64 stream of a seed.

    Args:
        seed: Any whole number; its lowest 64 bits count.
        counters: uint64 of any shape; the positions in the stream, from 0.

    Returns:
        uint64 of the same shape.
    """
    key = np.array([key_of_stream(seed)], dtype=np.uint64)
    return mix64(key + (counters + np.uint64(1)) * np.uint64(GOLDEN_GAMMA))


def key_of_stream(seed: int) -> int:
    """Return the number that sets the SplitMix64 stream of a seed apart from those of others.

    Args:
        seed: Any whole number; its lowest 64 bits count.

    Returns:
        A number from 0 to 2**64 - 1.
    """
    start = (seed * GOLDEN_GAMMA + 1) & LARGEST_UINT64
    return int(mix64(np.array([start], dtype=np.uint64))[0])


class Crops(NamedTuple):
    """Where patches lie in the LR images, and how they are turned.

    Attributes:
        image: Position of the image in the set, int64 of shape (b,).
        top: The patch's first row in the LR image, int64 of shape (b,).
        left: The patch's first column in the LR image, int64 of shape (b,).
        symmetry: See `elasticnet.sr.data.augmentation`, int64 of shape (b,).
    """

    image: np.ndarray
    top: np.ndarray
    left: np.ndarray
    symmetry: np.ndarray


class CropStream:
    """The endless sequence of crops of a set of pairs.

    Every position at which a patch fits into an LR image is equally likely, so an image is drawn
    in proportion to its number of positions. Images without any are left out, with a warning that
    names them.

    Args:
        pairs: The images.
        patch_size: Side of the LR patch, in pixels.
        seed: Which sequence, any whole number.
        augment: "none", "flips" or "flips+rotations"; see `elasticnet.sr.data.augmentation`.

    Attributes:
        seed: Which sequence.
        drawn_bits: The bits of a symmetry that are drawn at random.
        ends: All positions of all images are numbered; those of image i end before `ends[i]`. int64
            of shape (images,).
        num_lefts: How many columns of each image a patch can begin in, at least 1, int64 of shape
            (images,).

    Raises:
        ValueError: An argument is wrong, or no image is as large as a patch.
    """

    def __init__(self, pairs: PairSet, patch_size: int, seed: int, augment: str) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size {patch_size}: expected at least 1 LR pixel")
        self.seed = seed
        self.drawn_bits = drawn_bits(augment)
        tops_and_lefts = pairs.lr_sizes - patch_size + 1  # how many there are, (images, 2)
        fits = tops_and_lefts.min(axis=1) >= 1
        _check_that_patches_fit(pairs, patch_size, fits)
        num_positions = np.where(fits, tops_and_lefts[:, 0] * tops_and_lefts[:, 1], 0)
        self.ends = np.cumsum(num_positions)
        # At least 1, so that an image without positions does not divide by 0; it is never drawn.
        self.num_lefts = np.maximum(tops_and_lefts[:, 1], 1)

    def crops(self, first: int, count: int) -> Crops:
        """Return consecutive entries of the sequence.

        Args:
            first: The number of the first entry, from 0.
            count: How many entries.

        Returns:
            Entries `first` to `first + count - 1`.

        Raises:
            IndexError: `first` is negative.
        """
        if first < 0:
            raise IndexError(f"sample index {first}: expected 0 or more")
        # Each entry uses two numbers of the stream, one for its position and one for its symmetry.
        counters = (np.arange(count, dtype=np.uint64) + np.uint64(first)) * np.uint64(2)
        position_bits = random_bits(self.seed, counters)
        symmetry_bits = random_bits(self.seed, counters + np.uint64(1))
        # The remainder favours some positions by less than (number of positions) / 2**64.
        position = (position_bits % np.uint64(self.ends[-1])).astype(np.int64)
        image = np.searchsorted(self.ends, position, side="right")
        first_of_image = np.where(image > 0, self.ends[image - 1], 0)
        top, left = np.divmod(position - first_of_image, self.num_lefts[image])
        symmetry = (symmetry_bits & np.uint64(self.drawn_bits)).astype(np.int64)
        return Crops(image=image, top=top, left=left, symmetry=symmetry)


def _check_that_patches_fit(pairs: PairSet, patch_size: int, fits: np.ndarray) -> None:
    """Warn of images that are smaller than a patch; an error if all are."""
    if not fits.any():
        height, width = pairs.lr_sizes[0]
        raise ValueError(
            f"patch_size {patch_size}: none of the {len(pairs)} LR images is that large "
            f"(first: {pairs.names[0]}, {height}x{width}); use a smaller patch or larger images"
        )
    small = [name for name, is_large in zip(pairs.names, fits, strict=True) if not is_large]
    if small:
        shown = ", ".join(small[:MAX_LISTED]) + (", ..." if len(small) > MAX_LISTED else "")
        message = f"patch_size {patch_size}: left out {len(small)} smaller LR images: {shown}"
        # 4: the caller of PatchSampler or PatchDataset is the one to be named
        warnings.warn(message, stacklevel=4)
