"""MATLAB's bicubic imresize for NumPy arrays and torch tensors, bit-exact for uint8.

The cubic kernel is that of Keys, "Cubic convolution interpolation for digital image processing",
IEEE Transactions on Acoustics, Speech and Signal Processing 29 (6), 1981, with a = -0.5. Sizes,
positions, weights and their order of evaluation are those of imresize.m and its function
`contributions`.

The image is resized in two passes, one along each axis. An output pixel of a pass is a weighted sum
of the few input pixels under the kernel, here called its neighbours.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from elasticnet.sr.pixels import tensor_to_uint8, to_integers

if TYPE_CHECKING:
    from torch import Tensor

    AnyImage = TypeVar("AnyImage", np.ndarray, Tensor)

BORDERS = ("symmetric", "replicate")
NUMPY_DTYPES = ("uint8", "uint16", "float32", "float64")
KERNEL_WIDTH = 4.0  # input pixels, when the image is not made smaller
# One block of the result; with its input window it stays inside a core's cache.
BLOCK_ROWS = 16
BLOCK_COLUMNS = 2048


class Contributions(NamedTuple):
    """What each output pixel of a pass is made of; the name is MATLAB's.

    Attributes:
        positions: The neighbours' positions in the input, from 0, int64 of shape (neighbours,
            out_length).
        weights: Theirs, float64 of the same shape; the weights of an output pixel sum to 1.
    """

    positions: np.ndarray
    weights: np.ndarray


class _Pass(NamedTuple):
    """A resize along one axis: 0 is the height, 1 the width; the rest as in `contributions`."""

    axis: int
    in_length: int
    out_length: int
    scale: float
    border: str
    antialias: bool

    def contributions(self) -> Contributions:
        """Return what each output pixel is made of."""
        return contributions(
            self.in_length, self.out_length, self.scale, self.border, self.antialias
        )


class _Block(NamedTuple):
    """Some rows of a result, and what they are made of.

    Attributes:
        rows: Of the result.
        window: The input's rows in which their neighbours lie.
        neighbours: Of each row the first neighbour, then of each the second one, and so on: where
            they lie in the window.
        factors: The neighbours' weights, (neighbours, rows, 1).
    """

    rows: slice
    window: slice
    neighbours: tuple[slice | np.ndarray, ...]
    factors: np.ndarray


def imresize(
    image: AnyImage,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    border: str = "symmetric",
    antialias: bool = True,
) -> AnyImage:
    """Resize an image by the cubic kernel, as MATLAB's `imresize` does.

    When the image is made smaller, the kernel is widened by 1 / scale. The dimension with the
    smaller factor goes first, the height if they are equal.

    NumPy images are summed in float64 and brought back to their own dtype after each pass; integers
    round half away from zero and saturate. So do uint8 tensors. Torch floats are summed in their
    own dtype, float16 and bfloat16 in float32.

    Args:
        image: A NumPy array of shape (h, w) or (h, w, c) of uint8, uint16, float32 or float64, or a
            torch tensor of shape (..., h, w) of uint8 or any floating dtype, on any device (uint8
            needs one that has float64). Floats may have any range; the result may overshoot it.
        scale: A positive factor; the result has ceil(scale * n) pixels where the image has n.
        size: Height and width of the result. Give either `scale` or `size`.
        border: What lies outside the image: "symmetric" (mirrored with the edge pixel repeated,
            newer MATLAB) or "replicate" (the edge pixel, older MATLAB and many copied test sets).
            They differ only near the edge.
        antialias: False keeps the kernel four input pixels wide when the image is made smaller.

    Returns:
        The resized image, of the same kind, dtype and device. Torch floats carry gradients.

    Raises:
        TypeError: The image's kind or dtype is none of these.
        ValueError: The image's shape, the scale, the size or the border is wrong.

    Example:
        >>> import numpy as np
        >>> imresize(np.zeros((30, 41, 3), dtype=np.uint8), scale=1 / 3).shape
        (10, 14, 3)
    """
    if border not in BORDERS:
        raise ValueError(f"border {border!r}: expected one of {', '.join(BORDERS)}")
    lengths = _height_and_width(image)
    targets, scales = _targets(lengths, scale, size)
    width_first = scales[1] < scales[0]
    axes = (1, 0) if width_first else (0, 1)
    passes = [
        _Pass(axis, lengths[axis], targets[axis], scales[axis], border, antialias) for axis in axes
    ]
    if isinstance(image, np.ndarray):
        return _resize_numpy(image, passes)
    return _resize_torch(image, passes)


def _height_and_width(image: np.ndarray | Tensor) -> tuple[int, int]:
    """Return an image's height and width, after a check of its kind, dtype and shape."""
    if isinstance(image, np.ndarray):
        if image.dtype.name not in NUMPY_DTYPES:
            expected = ", ".join(NUMPY_DTYPES)
            raise TypeError(
                f"NumPy image of {image.dtype.name}: expected one of {expected}; convert it first"
            )
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise ValueError(
                f"NumPy image of shape {image.shape}: expected a non-empty (H, W) or (H, W, C)"
            )
        return image.shape[0], image.shape[1]
    import torch  # here, as arrays need none

    if not isinstance(image, torch.Tensor):
        raise TypeError(
            f"image of type {type(image).__name__}: expected a NumPy array or a torch tensor"
        )
    if image.dtype != torch.uint8 and not image.dtype.is_floating_point:
        raise TypeError(
            f"torch image of {image.dtype}: expected uint8 or a floating dtype; convert it first"
        )
    if image.ndim < 2 or 0 in image.shape:
        raise ValueError(
            f"torch image of shape {tuple(image.shape)}: expected a non-empty (..., H, W)"
        )
    return image.shape[-2], image.shape[-1]


def _targets(
    lengths: tuple[int, int], scale: float | None, size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the output's height and width, and the factor of each."""
    if scale is not None and size is None:
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < scale < math.inf:
            raise ValueError(
                f"scale {scale!r}: expected one positive finite number; "
                "use size=(height, width) for two"
            )
        factor = float(scale)
        height = math.ceil(factor * lengths[0])
        width = math.ceil(factor * lengths[1])
        return (height, width), (factor, factor)
    if size is not None and scale is None:
        height, width = _checked_size(size)
        return (height, width), (height / lengths[0], width / lengths[1])
    raise ValueError(f"scale={scale!r}, size={size!r}: give exactly one of the two")


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    wrong = f"size {size!r}: expected two positive integers (height, width)"
    try:
        height, width = (operator.index(length) for length in size)
    except (TypeError, ValueError):  # no integers, no sequence, or not two of them
        raise ValueError(wrong) from None
    if height < 1 or width < 1:
        raise ValueError(wrong)
    return height, width


# --- contributions


@lru_cache(maxsize=128)
def contributions(
    in_length: int, out_length: int, scale: float, border: str, antialias: bool
) -> Contributions:
    """Return which input pixels each output pixel of a pass is made of, and with which weights.

    With 1-based positions as in MATLAB, output pixel x has its center in the input at
    u = x / s + (1 - 1 / s) / 2. An input pixel p has the weight cubic(u - p), or
    s * cubic(s * (u - p)) when the image is made smaller, s < 1, with antialias. The weights of
    each output pixel are divided by their sum.

    Args:
        in_length: Of the input's axis, in pixels.
        out_length: Of the output's axis, in pixels.
        scale: The factor s, which need not be out_length / in_length.
        border: One of `BORDERS`.
        antialias: Whether the kernel is widened when the image is made smaller.

    Returns:
        Positions, all inside the input, and weights. The arrays are cached and read-only.
    """
    # shrink is the s of the widened kernel, 1 if it is not widened.
    shrink = scale if scale < 1 and antialias else 1.0
    width = KERNEL_WIDTH / shrink
    outputs = np.arange(1, out_length + 1, dtype=np.float64)
    centers = outputs / scale + 0.5 * (1 - 1 / scale)  # (out_length,)
    leftmost = np.floor(centers - width / 2)
    # Two more neighbours than the kernel is wide are sure to hold all that is not zero.
    steps = np.arange(math.ceil(width) + 2, dtype=np.float64)[:, None]  # (neighbours, 1)
    positions = leftmost + steps  # (neighbours, out_length)
    weights = shrink * _cubic(shrink * (centers - positions))
    weights /= weights.sum(axis=0)

    is_used = weights.any(axis=1)  # by one output pixel at least
    weights = np.ascontiguousarray(weights[is_used])
    indices = _inside(positions[is_used].astype(np.int64) - 1, in_length, border)
    indices.flags.writeable = False
    weights.flags.writeable = False
    return Contributions(positions=indices, weights=weights)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5; it is 0 for |x| > 2."""
    x = np.abs(x)
    square = x * x
    cube = square * x
    inner = (1.5 * cube - 2.5 * square + 1) * (x <= 1)
    outer = (-0.5 * cube + 2.5 * square - 4 * x + 2) * ((x > 1) & (x <= 2))
    return inner + outer


def _inside(indices: np.ndarray, length: int, border: str) -> np.ndarray:
    """Return the pixels inside 0..length - 1 that stand for pixels outside."""
    if border == "replicate":
        return np.clip(indices, 0, length - 1)
    # Symmetric: the image and its mirror image take turns, with a period of 2 * length.
    folded = indices % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


# --- the passes in NumPy


def _resize_numpy(image: np.ndarray, passes: Sequence[_Pass]) -> np.ndarray:
    for each in passes:
        # The axis becomes the leading one, so that whole contiguous rows are read.
        turned = np.swapaxes(image, 0, each.axis)  # (in_length, ...)
        rows = np.ascontiguousarray(turned).reshape(turned.shape[0], -1)
        resized = _resize_rows(rows, each.out_length, _blocks(each))
        turned = resized.reshape(len(resized), *turned.shape[1:])  # (out_length, ...)
        image = np.swapaxes(turned, 0, each.axis)
    return np.ascontiguousarray(image)


@lru_cache(maxsize=128)
def _blocks(resizing: _Pass) -> tuple[_Block, ...]:
    """The blocks of a result; images of one size share them."""
    positions, weights = resizing.contributions()
    blocks: list[_Block] = []
    for top in range(0, resizing.out_length, BLOCK_ROWS):
        rows = slice(top, top + BLOCK_ROWS)
        first = int(positions[:, rows].min())
        last = int(positions[:, rows].max())
        block = _Block(
            rows=rows,
            window=slice(first, last + 1),
            neighbours=tuple(_as_slice(each) for each in positions[:, rows] - first),
            factors=weights[:, rows, None],
        )
        blocks.append(block)
    return tuple(blocks)


def _resize_rows(rows: np.ndarray, out_length: int, blocks: Sequence[_Block]) -> np.ndarray:
    """Resize (in_length, columns) to (out_length, columns), block by block.

    Products and sums are rounded one by one, from the first neighbour to the last, so that every
    processor gives the same bytes. At the factors 2, 3 and 4 no order could change a byte; at some
    others a sum that is one half but for its last bits could fall either way.
    """
    columns = rows.shape[1]
    result = np.empty((out_length, columns), rows.dtype)
    for block in blocks:
        neighbours, factors = block.neighbours, block.factors
        for left in range(0, columns, BLOCK_COLUMNS):
            strip = slice(left, left + BLOCK_COLUMNS)
            window = rows[block.window, strip].astype(np.float64)
            total = window[neighbours[0]] * factors[0]
            product = np.empty_like(total)
            for neighbour, factor in zip(neighbours[1:], factors[1:], strict=True):
                np.multiply(window[neighbour], factor, out=product)
                total += product
            result[block.rows, strip] = _in_dtype(total, rows.dtype)
    return result


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """Return evenly spaced positions as a slice, which is read without a copy."""
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    is_even = step > 0 and bool((np.diff(positions) == step).all())
    if not is_even:
        return positions
    return slice(int(positions[0]), int(positions[-1]) + 1, step)


def _in_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "u":
        return to_integers(values, dtype)
    return values.astype(dtype, copy=False)


# --- the passes in torch


def _resize_torch(image: Tensor, passes: Sequence[_Pass]) -> Tensor:
    import torch

    is_uint8 = image.dtype == torch.uint8
    # float16 and bfloat16 are summed in float32
    compute = torch.float64 if is_uint8 else torch.promote_types(image.dtype, torch.float32)
    values = image.to(compute)
    for each in passes:
        positions, weights = each.contributions()
        dim = each.axis - 2  # height and width are the last two dimensions
        indices = torch.tensor(positions, device=image.device)  # (neighbours, out_length)
        factors = torch.tensor(weights, dtype=compute, device=image.device)
        if each.axis == 0:
            factors = factors.unsqueeze(-1)  # (neighbours, out_length, 1)
        # Product and sum stay two steps: fused, a tie at one half could fall otherwise than in
        # NumPy.
        total = values.index_select(dim, indices[0]).mul_(factors[0])
        for neighbour, factor in zip(indices[1:], factors[1:], strict=True):
            total.add_(values.index_select(dim, neighbour).mul_(factor))
        values = tensor_to_uint8(total).to(compute) if is_uint8 else total
    return values.to(image.dtype)
