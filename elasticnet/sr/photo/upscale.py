"""Enlarge a whole photograph: colours by a network, alpha by bicubic interpolation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from elasticnet.sr.inference.tile_engine import TileEngine
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.photo.large_array import large_array
from elasticnet.sr.photo.photograph import Photo
from elasticnet.sr.photo.scaled_metadata import Factors, fitted_metadata
from elasticnet.sr.pixels import to_integers
from elasticnet.sr.resize import imresize

if TYPE_CHECKING:
    from elasticnet.sr.inference.upscale_plan import UpscalePlan

_BAND = 512  # rows that are filled at a time
_MARGIN = 64  # rows above and below a band whose colours may fill it
_SMALLEST_WEIGHT = 1e-6  # so that a mean over pixels without weight divides by something


@runtime_checkable
class HasPlan(Protocol):
    """What makes a plan for an image: an `elasticnet.sr.Upscaler`."""

    def plan(self, depth: int | None = None, *, size: tuple[int, int] | None = None) -> UpscalePlan:
        """Return the plan.

        Args:
            depth: Of the network; None for the default.
            size: Height and width of the image.
        """
        ...


def upscale_photo(
    photo: Photo,
    plan: TileEngine | HasPlan,
    *,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Photo:
    """Return a photograph enlarged, with metadata that fit it.

    Colours go through `upscale_array`. Alpha is resized by `imresize` on its own; colours that it
    hides are first replaced by `fill_hidden`, so that they cannot reach what is seen.

    Args:
        photo: What `read_photo` returns.
        plan: The network and how it is run, as `plan_upscale` or `plan_onnx` makes it; or an
            `Upscaler`.
        size: Height and width of the result, at most those that the network makes: what it makes is
            then resized by `imresize`, with antialiasing. Default: what the network makes.
        progress: Called with (tiles done, all tiles).
        folder: Where the file lies that a result of more than 512 MB is mapped to. Nobody else
            sees it, and it is gone with the array. Default: where temporary files go.

    Raises:
        TypeError: `photo` is no photograph.
        ValueError: The network gives NaN or infinity, or makes less than `size`.
        MemoryError: Even the smallest tile takes more than there is.
        OSError: There is no room for the result in `folder`.
    """
    if not isinstance(photo, Photo):
        raise TypeError(
            f"photo is of type {type(photo).__name__}: expected first a Photo, as read_photo "
            "returns it, and then the plan or the Upscaler"
        )
    if isinstance(plan, HasPlan):
        plan = plan.plan(size=photo.size)
    height, width = photo.size
    size_of_net = (height * plan.scale, width * plan.scale)
    size = size or size_of_net
    if size[0] > size_of_net[0] or size[1] > size_of_net[1]:
        raise ValueError(
            f"size {size}: of an image of {photo.size} the network makes {size_of_net}, "
            "and what it makes is not enlarged further"
        )
    source = photo.pixels
    if photo.alpha is not None:
        source = fill_hidden(photo.pixels, photo.alpha)
    pixels = large_array((*size_of_net, *source.shape[2:]), source.dtype, folder)
    upscale_array(source, plan, out=pixels, progress=progress)
    if size != size_of_net:
        pixels = imresize(pixels, size=size)
    alpha = None if photo.alpha is None else imresize(photo.alpha, size=size)
    enlarged = replace(photo, pixels=pixels, alpha=alpha)
    factors = Factors(across=size[1] / width, down=size[0] / height)
    return fitted_metadata(enlarged, factors)


def fill_hidden(pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Return pixels whose hidden colours are replaced by the colours that are seen next to them.

    How far a pixel keeps its own colour is its alpha as a fraction of the largest alpha among the
    nine pixels around it: opaque or evenly transparent regions stay as they are, and the soft edge
    of a shape takes on the colour of the shape. The rest is a mean over growing neighbourhoods,
    weighted by that fraction. An enlarged edge then has no halo, whatever colour hides behind it.
    Multiplying by alpha instead would make the network sharpen an edge that bicubic alpha leaves
    soft, and darken it.

    Args:
        pixels: (h, w) or (h, w, 3), uint8 or uint16.
        alpha: (h, w), of the same dtype.
    """
    if alpha.min() == alpha.max():
        return pixels
    filled = np.empty(pixels.shape, pixels.dtype)
    for top in range(0, len(pixels), _BAND):
        band_rows = slice(top, top + _BAND)
        first = max(0, top - _MARGIN)
        rows_with_margin = slice(first, top + _BAND + _MARGIN)
        colors = _filled(pixels[rows_with_margin], alpha[rows_with_margin])
        in_band = colors[top - first : top - first + _BAND]
        filled[band_rows] = to_integers(in_band, pixels.dtype)
    return filled


def _filled(pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float32]:
    """Colours of a band of rows as floats, in the shape of its pixels."""
    height, width = alpha.shape
    own = pixels.reshape(height, width, -1).astype(np.float32)  # (h, w, c), c is 1 or 3
    weight = _weights(alpha)[..., None]  # (h, w, 1)
    blended = own * weight + (1 - weight) * _neighbours(own * weight, weight)
    # Where a pixel keeps all of its colour it keeps it exactly, without the rounding of the blend.
    return np.where(weight == 1, own, blended).reshape(pixels.shape)


def _weights(alpha: NDArray[Any]) -> NDArray[Any]:
    """Alpha as a fraction of the largest alpha among the nine pixels around, (h, w)."""
    height, width = alpha.shape
    padded = np.pad(alpha, 1, mode="edge")  # (h + 2, w + 2)
    over_rows = np.maximum(np.maximum(padded[:height], padded[1:-1]), padded[2:])  # (h, w + 2)
    largest = np.maximum(
        np.maximum(over_rows[:, :width], over_rows[:, 1:-1]), over_rows[:, 2:]
    )  # (h, w)
    return alpha.astype(np.float32) / np.maximum(largest, 1)


def _neighbours(colors: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    """Weighted means over 2x2 blocks, over 4x4 blocks if those weigh nothing, and so on.

    Args:
        colors: (h, w, c), already multiplied by their weight.
        weight: (h, w, 1).

    Returns:
        (h, w, c): for each pixel the mean of the smallest block around it that has weight; a block
        that weighs less than one pixel takes the rest from the next larger one.
    """
    height, width = weight.shape[:2]
    if (height, width) == (1, 1):
        return colors / np.maximum(weight, _SMALLEST_WEIGHT)
    sums = _sums_of_blocks(colors)  # (h / 2, w / 2, c), rounded up
    total = _sums_of_blocks(weight)
    means = sums / np.maximum(total, _SMALLEST_WEIGHT)
    trust = np.minimum(total, 1)
    if trust.min() < 1:
        means = trust * means + (1 - trust) * _neighbours(sums, total)
    return means.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]


def _sums_of_blocks(array: NDArray[Any]) -> NDArray[Any]:
    """Sums over 2x2 blocks; an odd last row or column is a block of its own."""
    height, width = array.shape[:2]
    padded = np.pad(array, [(0, height % 2), (0, width % 2), (0, 0)])
    left = padded[0::2, 0::2] + padded[1::2, 0::2]
    return left + padded[0::2, 1::2] + padded[1::2, 1::2]
