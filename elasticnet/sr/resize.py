"""MATLAB's bicubic imresize for NumPy arrays and torch tensors, bit-exact for uint8.

Two separable passes over sparse taps: an output pixel is a weighted sum of the few pixels under the
kernel.
"""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from numbers import Real
from typing import overload

import numpy as np
import torch

Image = np.ndarray | torch.Tensor
Passes = list[tuple[int, np.ndarray, np.ndarray]]  # axis, positions, weights

BORDERS = ("symmetric", "replicate")
_NUMPY_DTYPES = ("uint8", "uint16", "float32", "float64")
# The largest double below one half: adding 0.5 itself and truncating would round
# 0.49999999999999994 up.
_HALF = math.nextafter(0.5, 0.0)
# Elements of one accumulator block; with its input window it stays inside a core's cache.
_BLOCK_ROWS, _BLOCK_COLUMNS = 16, 2048


@overload
def imresize(
    image: np.ndarray,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    border: str = "symmetric",
    antialias: bool = True,
) -> np.ndarray: ...
@overload
def imresize(
    image: torch.Tensor,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    border: str = "symmetric",
    antialias: bool = True,
) -> torch.Tensor: ...
def imresize(
    image: Image,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    border: str = "symmetric",
    antialias: bool = True,
) -> Image:
    """Resize by the cubic kernel (a = -0.5), widened by 1/scale when shrinking, as MATLAB's
    `imresize` does.

    `image` is a NumPy array (H, W) or (H, W, C) of uint8, uint16, float32 or float64, or a torch
    tensor (..., H, W) of uint8 or any floating dtype, on any device that has float64 where it is
    uint8. The result has the same kind, dtype and device; floats keep their value range, may
    overshoot it, and carry gradients in torch.

    Give either `scale`, a positive factor (output size ceil(scale * n), as in MATLAB), or `size` =
    (height, width). The dimension with the smaller factor goes first, height when they are equal.
    NumPy images are summed in float64 and brought back to their own dtype after each pass; integers
    round half away from zero and saturate. Torch floats are summed in their own dtype, float16 and
    bfloat16 in float32.

    `border` says what lies outside the image: "symmetric" (mirrored with the edge pixel repeated,
    newer MATLAB) or "replicate" (the edge pixel, older MATLAB and many copied test sets). They
    differ only near the edge. `antialias=False` keeps the kernel four input pixels wide when
    shrinking. Raises TypeError for an unsupported kind or dtype and ValueError for a wrong shape,
    scale, size or border.
    """
    if border not in BORDERS:
        raise ValueError(f"border {border!r}: expected one of {', '.join(BORDERS)}")
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8 and not image.dtype.is_floating_point:
            raise TypeError(
                f"torch image of {image.dtype}: expected uint8 or a floating dtype; convert it first"
            )
        if image.ndim < 2 or 0 in image.shape:
            raise ValueError(
                f"torch image of shape {tuple(image.shape)}: expected a non-empty (..., H, W)"
            )
        lengths = (image.shape[-2], image.shape[-1])
    elif isinstance(image, np.ndarray):
        if image.dtype.name not in _NUMPY_DTYPES:
            expected = ", ".join(_NUMPY_DTYPES)
            raise TypeError(
                f"NumPy image of {image.dtype.name}: expected one of {expected}; convert it first"
            )
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise ValueError(
                f"NumPy image of shape {image.shape}: expected a non-empty (H, W) or (H, W, C)"
            )
        lengths = (image.shape[0], image.shape[1])
    else:
        raise TypeError(
            f"image of type {type(image).__name__}: expected a NumPy array or a torch tensor"
        )

    targets, scales = _targets(lengths, scale, size)
    passes = [
        (axis, *resize_taps(lengths[axis], targets[axis], scales[axis], border, antialias))
        for axis in sorted((0, 1), key=lambda axis: scales[axis])
    ]
    if isinstance(image, torch.Tensor):
        return _resize_torch(image, passes)
    return _resize_numpy(image, passes)


def _targets(
    lengths: tuple[int, int], scale: float | None, size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the output (height, width) and the factor of each dimension."""
    if (scale is None) == (size is None):
        raise ValueError(f"scale={scale!r}, size={size!r}: give exactly one of the two")
    if scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < scale < math.inf:
            raise ValueError(
                f"scale {scale!r}: expected one positive finite number; use size=(height, width) for two"
            )
        factor = float(scale)
        return (math.ceil(factor * lengths[0]), math.ceil(factor * lengths[1])), (factor, factor)
    try:
        height, width = (operator.index(length) for length in size or ())
    except (TypeError, ValueError):
        raise ValueError(f"size {size!r}: expected two positive integers (height, width)") from None
    if height < 1 or width < 1:
        raise ValueError(f"size {size!r}: expected two positive integers (height, width)")
    return (height, width), (height / lengths[0], width / lengths[1])


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    square = x * x
    cube = square * x
    inner = (1.5 * cube - 2.5 * square + 1) * (x <= 1)
    outer = (-0.5 * cube + 2.5 * square - 4 * x + 2) * ((x > 1) & (x <= 2))
    return inner + outer


@lru_cache(maxsize=128)
def resize_taps(
    in_length: int, out_length: int, scale: float, border: str, antialias: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return input positions (int64) and weights (float64) of each output position, both (taps,
    out_length).

    Positions are 0-based and already folded at the border; every column of weights sums to one. The
    formulas and their order of evaluation are those of MATLAB's `contributions`. The arrays are
    cached and read-only.
    """
    shrink = scale if scale < 1 and antialias else 1.0
    width = 4.0 / shrink
    centers = np.arange(1, out_length + 1, dtype=np.float64) / scale + 0.5 * (1 - 1 / scale)
    left = np.floor(centers - width / 2)
    positions = left + np.arange(math.ceil(width) + 2, dtype=np.float64)[:, None]
    weights = shrink * _cubic(shrink * (centers - positions))
    weights /= weights.sum(axis=0)
    used = weights.any(axis=1)
    weights = np.ascontiguousarray(weights[used])
    indices = positions[used].astype(np.int64) - 1
    if border == "symmetric":
        indices %= 2 * in_length
        indices = np.minimum(indices, 2 * in_length - 1 - indices)
    else:
        indices = indices.clip(0, in_length - 1)
    indices.flags.writeable = weights.flags.writeable = False
    return indices, weights


def _resize_numpy(image: np.ndarray, passes: Passes) -> np.ndarray:
    for axis, indices, weights in passes:
        if axis == 1:
            # The width becomes the leading axis, so that every tap reads whole contiguous rows.
            image = image.swapaxes(0, 1)
        rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
        image = _resize_rows(rows, indices, weights).reshape(indices.shape[1], *image.shape[1:])
        if axis == 1:
            image = image.swapaxes(0, 1)
    return np.ascontiguousarray(image)


def _resize_rows(rows: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Resize (n, m) to (out_length, m) along the first axis, block by block, taps added from left
    to right.

    Products and sums are rounded one by one in a fixed order, so every processor gives the same
    bytes. At the factors 2, 3 and 4 no order could change a byte; at some others a sum that is one
    half but for its last bits could fall either way.
    """
    out_length, columns = indices.shape[1], rows.shape[1]
    result = np.empty((out_length, columns), rows.dtype)
    for top in range(0, out_length, _BLOCK_ROWS):
        block = slice(top, min(top + _BLOCK_ROWS, out_length))
        first = indices[:, block].min()
        last = indices[:, block].max() + 1
        taps = [_strided(tap) for tap in indices[:, block] - first]
        factors = weights[:, block, None]
        for start in range(0, columns, _BLOCK_COLUMNS):
            window = rows[first:last, start : start + _BLOCK_COLUMNS].astype(np.float64)
            total = window[taps[0]] * factors[0]
            product = np.empty_like(total)
            for tap, factor in zip(taps[1:], factors[1:], strict=True):
                np.multiply(window[tap], factor, out=product)
                total += product
            result[block, start : start + _BLOCK_COLUMNS] = _saturate(total, rows.dtype)
    return result


def _strided(tap: np.ndarray) -> slice | np.ndarray:
    """Return evenly spaced positions as a slice, which is read without a copy, and others as they
    are.
    """
    step = int(tap[1] - tap[0]) if len(tap) > 1 else 1
    if step > 0 and (np.diff(tap) == step).all():
        return slice(int(tap[0]), int(tap[-1]) + 1, step)
    return tap


def _saturate(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "u":
        values += _HALF
        np.clip(values, 0, np.iinfo(dtype).max, out=values)
    return values.astype(dtype, copy=False)


def _resize_torch(image: torch.Tensor, passes: Passes) -> torch.Tensor:
    if image.dtype == torch.uint8:
        compute = torch.float64
    else:
        compute = torch.promote_types(image.dtype, torch.float32)
    values = image.to(compute)
    for axis, indices, weights in passes:
        dim = axis - 2
        positions = torch.tensor(indices, device=image.device)
        factors = torch.tensor(weights, dtype=compute, device=image.device)
        if axis == 0:
            factors = factors[..., None]
        # Product and sum stay two steps: fused, a tie at one half could fall otherwise than in
        # NumPy.
        total = values.index_select(dim, positions[0]).mul_(factors[0])
        for tap, factor in zip(positions[1:], factors[1:], strict=True):
            total.add_(values.index_select(dim, tap).mul_(factor))
        values = total.add_(_HALF).clamp_(0, 255).floor_() if image.dtype == torch.uint8 else total
    return values.to(image.dtype)
