"""Enlarge a whole photograph: colours by a network, alpha by bicubic interpolation, large results
in a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.photo import Photo
from elasticnet.sr.photo.large_array import large_array
from elasticnet.sr.resize import imresize
from elasticnet.wrapper import ElasticWrapper

_BAND, _MARGIN = 512, 64  # rows that are filled at a time, and rows around them that take part


def upscale_photo(
    net: ElasticWrapper,
    photo: Photo,
    scale: int,
    *,
    depth: int | None = None,
    tile: int | str | None = "auto",
    self_ensemble: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], object] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Photo:
    """Return the photograph `scale` times as large, `scale` being that of the net, with the same
    metadata.

    Colours go through `upscale_array`, which explains depth, tile, self_ensemble, device and
    progress. Alpha is resized by `imresize` on its own; colours that it hides are first replaced by
    `fill_hidden`, so that they cannot reach what is seen. A result of more than 512 MB is mapped to
    a file in `folder` (default: where temporary files go) that nobody else sees and that is gone
    with the array.
    """
    height, width = photo.size
    source = photo.pixels if photo.alpha is None else fill_hidden(photo.pixels, photo.alpha)
    out = large_array((height * scale, width * scale, *source.shape[2:]), source.dtype, folder)
    options: dict[str, Any] = {
        "depth": depth,
        "tile": tile,
        "self_ensemble": self_ensemble,
        "device": device,
    }
    upscale_array(net, source, out=out, progress=progress, **options)
    alpha = None if photo.alpha is None else imresize(photo.alpha, scale)
    return replace(photo, pixels=out, alpha=alpha)


def fill_hidden(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return pixels whose hidden colours are replaced by the colours that are seen next to them.

    pixels (h, w) or (h, w, 3), alpha (h, w), integers of one dtype. How far a pixel keeps its own
    colour is its alpha as a fraction of the largest alpha among the nine pixels around it: opaque
    or evenly transparent regions stay as they are, and the soft edge of a shape takes on the colour
    of the shape. The rest is a mean over growing neighbourhoods, weighted by that fraction. An
    enlarged edge then has no halo, whatever colour hides behind it; multiplying by alpha instead
    would make the network sharpen an edge that bicubic alpha leaves soft, and darken it.
    """
    if alpha.min() == alpha.max():
        return pixels
    filled = np.empty(pixels.shape, pixels.dtype)
    for top in range(0, len(pixels), _BAND):
        start, stop = max(0, top - _MARGIN), top + _BAND + _MARGIN
        band = pixels[start:stop].reshape(*pixels[start:stop].shape[:2], -1).astype(np.float32)
        part = _weights(alpha[start:stop])[..., None]
        colors = band * part + (1 - part) * _neighbours(band * part, part)
        colors = np.where(part == 1, band, colors)[top - start : top - start + _BAND]
        filled[top : top + _BAND] = np.rint(colors).reshape(filled[top : top + _BAND].shape)
    return filled


def _weights(alpha: np.ndarray) -> np.ndarray:
    largest = alpha
    for axis in (0, 1):
        padded = np.pad(
            largest, [(1, 1) if each == axis else (0, 0) for each in (0, 1)], mode="edge"
        )
        length = alpha.shape[axis]
        shifted = [padded.take(range(first, first + length), axis) for first in range(3)]
        largest = np.maximum(np.maximum(shifted[0], shifted[1]), shifted[2])
    return alpha.astype(np.float32) / np.maximum(largest, 1)


def _neighbours(colors: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted means (h, w, c) over 2x2 blocks, and where those weigh nothing over 4x4 blocks, and
    so on.

    colors are already multiplied by weight (h, w, 1).
    """
    height, width = weight.shape[:2]
    if (height, width) == (1, 1):
        return colors / np.maximum(weight, 1e-6)
    sums, total = _blocks(colors), _blocks(weight)
    trust = np.minimum(total, 1)
    means = sums / np.maximum(total, 1e-6)
    if trust.min() < 1:
        means = trust * means + (1 - trust) * _neighbours(sums, total)
    return means.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]


def _blocks(array: np.ndarray) -> np.ndarray:
    """Sums over 2x2 blocks; an odd last row or column is a block of its own."""
    height, width = array.shape[:2]
    padded = np.pad(array, [(0, height % 2), (0, width % 2), (0, 0)])
    return padded[0::2, 0::2] + padded[1::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 1::2]
