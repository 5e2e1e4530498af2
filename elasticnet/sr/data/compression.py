"""JPEG compression of LR images: all of a set alike, or training patches as their numbers say."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from elasticnet.sr.data.pair_set import PairSet
from elasticnet.sr.data.random_crops import random_bits
from elasticnet.sr.jpeg import JpegSetting, RandomJpeg, compressed

# The stream of a seed has 2**64 entries. Position and symmetry of sample i are entries 2 i and
# 2 i + 1, and its compression is an entry of the upper half, which the others never reach.
FIRST_JPEG_COUNTER = np.uint64(1 << 63)


def with_compressed_lr(pairs: PairSet, setting: JpegSetting) -> PairSet:
    """Return pairs whose LR images are compressed, all alike; HR images are shared.

    Args:
        pairs: The images.
        setting: Quality and subsampling.

    Returns:
        A set of the same names and sizes; what `pairs` left out is not listed again.

    Raises:
        ValueError: The quality or the subsampling is wrong.
    """
    # A subset shares the pixels of a larger set, and its images keep their places. Memory that is
    # only asked for as zeros is not used before something is written to it.
    lr_pixels = np.zeros(pairs.lr_pixels.shape, np.uint8)
    for index, start in enumerate(pairs.starts.tolist()):
        image = compressed(pairs.lr(index), setting).reshape(-1, 3)
        lr_pixels[start : start + len(image)] = image
    return PairSet(
        pairs.names,
        pairs.scale,
        pairs.lr_sizes,
        lr_pixels,
        pairs.hr_pixels,
        starts=pairs.starts,
        lr_source=f"{pairs.lr_source}, JPEG quality {setting.quality}",
        lr_jpeg=setting,
    )


class JpegStream:
    """The endless sequence of compressions: that of sample i depends on (seed, i) alone.

    Args:
        random_jpeg: Which compressions are drawn.
        seed: That of the crops.
    """

    def __init__(self, random_jpeg: RandomJpeg, seed: int) -> None:
        self._random_jpeg = random_jpeg
        self._seed = seed

    def compress(self, patches: np.ndarray, first: int) -> np.ndarray:
        """Return the LR patches of consecutive samples after compression.

        A patch is compressed by itself, as an image of its size, after it was mirrored and
        transposed: the blocks of 8x8 pixels begin at its corner, and lie as in an upright
        photograph.

        Args:
            patches: uint8 of shape (b, p, p, 3), RGB.
            first: The number of the first sample, from 0.

        Returns:
            uint8 of the same shape.
        """
        numbers = np.arange(len(patches), dtype=np.uint64) + np.uint64(first)
        all_bits = random_bits(self._seed, numbers + FIRST_JPEG_COUNTER)
        result = np.empty_like(patches)
        for place, bits in enumerate(all_bits.tolist()):
            result[place] = compressed(patches[place], self._random_jpeg.setting(bits))
        return result


class BatchPart(NamedTuple):
    """One part of one batch.

    Attributes:
        step: The number of the batch, from 0.
        part: Which part of it, from 0.
        num_parts: How many parts it is cut into.
    """

    step: int
    part: int
    num_parts: int


class OneStepAhead:
    """Makes the same part of the next batch in a thread, while the caller trains on this one.

    The result does not depend on it: what is made is a pure function of the part, and a part that
    was not foreseen is made at once.

    Args:
        make: Makes one part of one batch.
    """

    def __init__(self, make: Callable[[BatchPart], np.ndarray]) -> None:
        self._make = make
        self._executor: ThreadPoolExecutor | None = None
        self._foreseen: dict[BatchPart, Future[np.ndarray]] = {}

    def get(self, wanted: BatchPart) -> np.ndarray:
        """Return what `make` makes of a part, and begin with the one that will be wanted next.

        Args:
            wanted: The part.
        """
        future = self._foreseen.pop(wanted, None)
        made = self._make(wanted) if future is None else future.result()
        self._forget_all_but(wanted.step, wanted.step + 1)
        following = wanted._replace(step=wanted.step + 1)
        if following not in self._foreseen:
            self._foreseen[following] = self._thread().submit(self._make, following)
        return made

    def _forget_all_but(self, *steps: int) -> None:
        """Drop what nobody came for, such as parts of another size."""
        self._foreseen = {key: made for key, made in self._foreseen.items() if key.step in steps}

    def _thread(self) -> ThreadPoolExecutor:
        # One thread is enough: it has the whole step's time, and Pillow mostly keeps the
        # interpreter's lock, so that a second thread makes nothing faster.
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jpeg-patches")
        return self._executor
