"""Mapped files whose next parts the system reads while a training computes."""

from __future__ import annotations

import mmap

import numpy as np

# Linux, macOS and the BSDs have it; Windows reads pages when they are first used.
_CAN_ADVISE = hasattr(mmap, "MADV_WILLNEED")


class ReadAhead:
    """Tells the system which rows of flat pixels will be read soon; returns before they are there.

    A training set that is larger than memory lies on the disk. Without this each page is waited
    for when it is first read.

    Args:
        pixels: uint8 of shape (number of pixels, 3), mapped from a file or not. Of pixels in memory
            nothing is to be told.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._mapped = _mapped_file(pixels) if _CAN_ADVISE else None
        self._bytes_per_row = pixels[:1].nbytes

    @property
    def is_needed(self) -> bool:
        """Whether the pixels lie in a mapped file, and the system can be told."""
        return self._mapped is not None

    def rows(self, first: np.ndarray, count: np.ndarray) -> None:
        """Tell which rows will be read.

        Args:
            first: The first rows of some ranges, int64 of shape (ranges,).
            count: How many rows each has, of the same shape.
        """
        if self._mapped is None:
            return
        starts = first * self._bytes_per_row
        ends = starts + count * self._bytes_per_row
        starts -= starts % mmap.PAGESIZE  # the system takes whole pages
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            self._mapped.madvise(mmap.MADV_WILLNEED, start, end - start)


def _mapped_file(pixels: np.ndarray) -> mmap.mmap | None:
    """The mapping that is this array, from its first byte to its last; None if there is none."""
    owner: object = pixels
    while isinstance(owner, np.ndarray):
        owner = owner.base
    is_whole_mapping = isinstance(owner, mmap.mmap) and len(owner) == pixels.nbytes
    return owner if is_whole_mapping else None
