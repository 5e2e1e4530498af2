"""`random_crops` computed on a device: the same crops, from a number that the device itself holds.

A CUDA graph runs the same kernels again and again, without the host: what differs from step to step
must come from tensors on the device. So the hash of `random_crops` is computed here by tensors of
int64, which hold the same 64 bits as NumPy's uint64 there. Sums and products of both wrap around
alike; shifts and remainders differ, and have functions of their own below.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elasticnet.sr.data.augmentation import MIRROR_COLUMNS, MIRROR_ROWS, TRANSPOSE
from elasticnet.sr.data.random_crops import (
    FIRST_MULTIPLIER,
    GOLDEN_GAMMA,
    SECOND_MULTIPLIER,
    CropStream,
    key_of_stream,
)

BITS = 64


def as_signed(number: int) -> int:
    """Return the int64 that has the same bits as a uint64.

    Args:
        number: From 0 to 2**64 - 1.
    """
    return number - 2**BITS if number >= 2 ** (BITS - 1) else number


def shifted_right(values: Tensor, count: int) -> Tensor:
    """Shift 64 bits to the right and fill up with zeros, as NumPy does with uint64.

    Args:
        values: int64 of any shape.
        count: By how many bits, 1 to 63.

    Returns:
        int64 of the same shape, at least 0.
    """
    kept_bits = 2 ** (BITS - count) - 1  # int64 fills up with its sign
    return (values >> count) & kept_bits


def unsigned_remainder(values: Tensor, divisor: int) -> Tensor:
    """Return the remainder of 64 bits read as a number from 0 to 2**64 - 1.

    Args:
        values: int64 of any shape.
        divisor: From 1 to 2**62.

    Returns:
        int64 of the same shape, from 0 to `divisor` - 1.
    """
    # The number is twice its half, which fits into an int64, and its lowest bit.
    half = shifted_right(values, 1)
    lowest_bit = values & 1
    return (2 * (half % divisor) + lowest_bit) % divisor


def mix64(values: Tensor) -> Tensor:
    """Scramble 64-bit numbers as `random_crops.mix64` does.

    Args:
        values: int64 of any shape.

    Returns:
        int64 of the same shape.
    """
    first_multiplier = as_signed(int(FIRST_MULTIPLIER))
    second_multiplier = as_signed(int(SECOND_MULTIPLIER))
    values = (values ^ shifted_right(values, 30)) * first_multiplier
    values = (values ^ shifted_right(values, 27)) * second_multiplier
    return values ^ shifted_right(values, 31)


class DeviceCrops(NamedTuple):
    """Where patches lie, as `random_crops.Crops`, in tensors.

    Attributes:
        image: Position of the image in the set, int64 of shape (b,).
        top: The patch's first row in the LR image, int64 of shape (b,).
        left: The patch's first column in the LR image, int64 of shape (b,).
        symmetry: See `elasticnet.sr.data.augmentation`, int64 of shape (b,).
    """

    image: Tensor
    top: Tensor
    left: Tensor
    symmetry: Tensor


class DeviceCropStream:
    """The endless sequence of a `CropStream`, computed on a device.

    Args:
        stream: The sequence.
        device: Where it is computed.
    """

    def __init__(self, stream: CropStream, device: torch.device) -> None:
        self._key = as_signed(key_of_stream(stream.seed))
        self._drawn_bits = stream.drawn_bits
        self._num_positions = int(stream.ends[-1])
        starts: np.ndarray = np.concatenate([[0], stream.ends[:-1]])
        self._starts = torch.from_numpy(starts).to(device)
        self._ends = torch.from_numpy(stream.ends).to(device)
        self._num_lefts = torch.from_numpy(stream.num_lefts).to(device)

    def crops(self, first: Tensor, count: int) -> DeviceCrops:
        """Return consecutive entries of the sequence, without waiting for the device.

        Args:
            first: The number of the first entry, from 0: int64 of shape ().
            count: How many entries.

        Returns:
            Entries `first` to `first + count - 1`, those of `CropStream.crops`.
        """
        # Each entry uses two numbers of the stream, one for its position and one for its symmetry.
        counters = (first + torch.arange(count, device=first.device)) * 2  # (b,)
        position_bits = self._random_bits(counters)
        symmetry_bits = self._random_bits(counters + 1)
        position = unsigned_remainder(position_bits, self._num_positions)
        image = torch.searchsorted(self._ends, position, right=True)
        in_image = position - self._starts.index_select(0, image)
        num_lefts = self._num_lefts.index_select(0, image)
        top = torch.div(in_image, num_lefts, rounding_mode="floor")
        left = in_image - top * num_lefts
        symmetry = symmetry_bits & self._drawn_bits
        return DeviceCrops(image=image, top=top, left=left, symmetry=symmetry)

    def _random_bits(self, counters: Tensor) -> Tensor:
        """Return 64 random bits for each counter, as `random_crops.random_bits`."""
        return mix64((counters + 1) * as_signed(GOLDEN_GAMMA) + self._key)


def device_grid(first: Tensor, width: Tensor, side: int, symmetry: Tensor) -> Tensor:
    """Return where the pixels of patches lie, as `augmentation.augmented_grid`, in one tensor.

    Args:
        first: The row of the flat pixels that holds each patch's top left pixel in its image, int64
            of shape (b,).
        width: Of the image that each patch lies in, in pixels, int64 of shape (b,).
        side: Of the patches, in pixels.
        symmetry: Numbers of three bits, int64 of shape (b,).

    Returns:
        `origin`, `down` and `right` of a `PatchGrid`: int64 of shape (3, b).
    """
    mirrors_columns = (symmetry & MIRROR_COLUMNS).ne(0).long()  # 0 or 1, (b,)
    mirrors_rows = (symmetry & MIRROR_ROWS).ne(0).long()
    transposes = (symmetry & TRANSPOSE).ne(0)
    last = side - 1
    # A mirrored patch begins at the other end of its rows or columns, and goes back from there.
    origin = first + mirrors_columns * last + mirrors_rows * width * last
    along_columns = width - 2 * mirrors_rows * width
    along_rows = 1 - 2 * mirrors_columns
    down = torch.where(transposes, along_rows, along_columns)
    right = torch.where(transposes, along_columns, along_rows)
    return torch.stack([origin, down, right])  # (3, b)
