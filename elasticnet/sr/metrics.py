"""PSNR and SSIM as super-resolution papers report them, under named protocols that match MATLAB.

A protocol says which planes of two images are compared and how much of their border is cut off:

- "matlab-y": the luma of MATLAB's `rgb2ycbcr`, not rounded. This is what most papers print.
- "rounded-y": the same luma rounded to integers. The published numbers of BD and DN are of it.
- "rgb": all three channels, as for the validation images of DIV2K.

All work is done in float64 on the 0..255 scale, on the device of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from elasticnet.sr.pixels import tensor_to_uint8

Image = np.ndarray | Tensor
AnyImage = TypeVar("AnyImage", np.ndarray, Tensor)

PROTOCOLS = ("matlab-y", "rounded-y", "rgb")
# An earlier name: IMDN's code rounds the luma, but its published numbers are those of "matlab-y".
OLD_PROTOCOLS = {"imdn": "rounded-y"}
DIV2K_EXTRA_SHAVE = 6  # pixels beside `scale`, cut off for DIV2K's validation images
WHITE = 255

# BT.601 luma of R, G and B in 0..255, times 255: Y = (65.481 R + 128.553 G + 24.966 B) / 255 + 16.
LUMA_WEIGHTS = (65.481, 128.553, 24.966)
LUMA_OF_BLACK = 16

# SSIM: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
# structural similarity", IEEE Transactions on Image Processing 13 (4), 2004.
SSIM_WINDOW = 11  # pixels, the side of the Gaussian
SSIM_SIGMA = 1.5  # pixels
SSIM_K1 = 0.01
SSIM_K2 = 0.03

# Rows in work at a time on the CPU: their float64 maps stay inside a core's cache and are cheap to
# allocate.
STRIP_ROWS = 32
FLOAT_TOLERANCE = 1e-3  # how far a float HR image may leave 0..1


def shave_for(scale: int, protocol: str = "matlab-y") -> int:
    """Return the border that papers cut off before they compare, on every side.

    Args:
        scale: Side of an HR image over the side of its LR image.
        protocol: One of `PROTOCOLS`.

    Returns:
        Pixels: `scale`, and `scale` + 6 for "rgb" (DIV2K validation).

    Raises:
        ValueError: There is no such protocol.
    """
    _check_protocol(protocol)
    if protocol == "rgb":
        return scale + DIV2K_EXTRA_SHAVE
    return scale


@overload
def psnr_y(sr: np.ndarray, hr: np.ndarray, shave: int, protocol: str = "matlab-y") -> float: ...
@overload
def psnr_y(sr: Tensor, hr: Tensor, shave: int, protocol: str = "matlab-y") -> float | Tensor: ...
def psnr_y(sr: Image, hr: Image, shave: int, protocol: str = "matlab-y") -> float | Tensor:
    """Return the PSNR in dB, 10 log10(255² / mean squared error).

    Args:
        sr: The image to judge: a uint8 NumPy array of shape (h, w, 3) or (h, w), or a torch tensor
            of shape (3, h, w) or (b, 3, h, w), uint8 or float in 0..1. Floats are first clipped and
            rounded to the 0..255 grid, as saving them to a file would. An image with one channel,
            (h, w) or (1, h, w), is taken as the luma plane itself.
        hr: The original, of the same kind and shape.
        shave: Pixels to cut off on every side; see `shave_for`.
        protocol: One of `PROTOCOLS`: what is compared.

    Returns:
        A Python float for one image; float64 of shape (b,) on the CPU for a batch. Identical images
        give inf; a pair with a NaN or infinite value anywhere gives nan.

    Raises:
        TypeError: The kinds or dtypes do not fit.
        ValueError: The shapes, `shave` or the protocol are wrong, or a float `hr` leaves 0..1.

    Example:
        >>> import numpy as np
        >>> hr = np.full((20, 20, 3), 100, dtype=np.uint8)
        >>> round(psnr_y(hr + np.uint8(1), hr, shave=2), 2)
        49.45
    """
    pair = _prepare(sr, hr, shave, protocol, smallest_side=1)
    rows = pair.hr.shape[-2]
    error_sums = [  # one entry a strip, each (b,)
        (sr_planes - hr_planes).square_().mean(dim=(1, 3)).sum(dim=1)
        for sr_planes, hr_planes in _strips(pair, protocol)
    ]
    mean_squared_error = torch.stack(error_sums).sum(dim=0) / rows  # (b,)
    return _result(10 * torch.log10(WHITE**2 / mean_squared_error), pair)


@overload
def ssim_y(sr: np.ndarray, hr: np.ndarray, shave: int, protocol: str = "matlab-y") -> float: ...
@overload
def ssim_y(sr: Tensor, hr: Tensor, shave: int, protocol: str = "matlab-y") -> float | Tensor: ...
def ssim_y(sr: Image, hr: Image, shave: int, protocol: str = "matlab-y") -> float | Tensor:
    """Return the mean SSIM (Wang et al. 2004), without downsampling.

    The window is an 11×11 Gaussian of sigma 1.5, at the positions where it fits whole. K1 = 0.01,
    K2 = 0.03 and L = 255. Under "rgb" the result is the mean over the three channels.

    Args:
        sr: The image to judge, as in `psnr_y`.
        hr: The original, of the same kind and shape.
        shave: Pixels to cut off on every side; see `shave_for`. At least 11×11 must be left.
        protocol: One of `PROTOCOLS`: what is compared.

    Returns:
        A Python float for one image; float64 of shape (b,) on the CPU for a batch. Identical images
        give 1; a pair with a NaN or infinite value anywhere gives nan.

    Raises:
        TypeError: The kinds or dtypes do not fit.
        ValueError: The shapes, `shave` or the protocol are wrong, or a float `hr` leaves 0..1.
    """
    pair = _prepare(sr, hr, shave, protocol, smallest_side=SSIM_WINDOW)
    overlap = SSIM_WINDOW - 1
    rows = pair.hr.shape[-2] - overlap  # of the map of similarities
    similarity_sums = [  # one entry a strip, each (b,)
        _similarity(sr_planes, hr_planes)
        for sr_planes, hr_planes in _strips(pair, protocol, overlap)
    ]
    return _result(torch.stack(similarity_sums).sum(dim=0) / rows, pair)


def rgb_to_y(image: AnyImage) -> AnyImage:
    """Return the BT.601 luma as MATLAB's `rgb2ycbcr` defines it, not rounded.

    Args:
        image: A uint8 NumPy array of shape (..., 3), or a torch tensor of shape (..., 3, h, w),
            uint8 or float in 0..1. Floats are neither clipped nor rounded and carry gradients.

    Returns:
        float64 on the 0..255 scale, 16 for black and 235 for white, without the axis of channels.

    Raises:
        ValueError: The shape, or the dtype of an array, is another one.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[-1:] != (3,):
            raise ValueError(f"{image.dtype} array of shape {image.shape}: expected uint8 (..., 3)")
        return image @ (np.array(LUMA_WEIGHTS) / WHITE) + float(LUMA_OF_BLACK)
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"tensor of shape {tuple(image.shape)}: expected (..., 3, H, W)")
    values = image.double()
    if image.dtype != torch.uint8:
        values = values * WHITE
    red, green, blue = values.unbind(dim=-3)
    return _luma(red, green, blue)


def _luma(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Return the luma of planes on the 0..255 scale."""
    red_weight, green_weight, blue_weight = LUMA_WEIGHTS
    # In place on one fresh tensor: temporaries of this size cost more than the arithmetic.
    total = red * red_weight
    total.add_(green, alpha=green_weight)
    total.add_(blue, alpha=blue_weight)
    return total.div_(WHITE).add_(LUMA_OF_BLACK)


# --- from what the caller gives to planes that can be compared


class _Grid(NamedTuple):
    """Images on the 0..255 grid: uint8 (b, c, h, w), and which of them are finite, bool (b,)."""

    pixels: Tensor
    finite: Tensor


class _Pair(NamedTuple):
    """Two shaved images of one shape."""

    sr: Tensor  # uint8 (b, c, h, w)
    hr: Tensor  # uint8 (b, c, h, w)
    finite: Tensor  # bool (b,), on the CPU: whether both images are
    is_single: bool  # whether one image came, not a batch


def _check_protocol(protocol: str) -> None:
    if protocol in OLD_PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: it is called {OLD_PROTOCOLS[protocol]!r} now")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")


def _prepare(sr: Image, hr: Image, shave: int, protocol: str, smallest_side: int) -> _Pair:
    """Check both images, and return them on the 0..255 grid without their border."""
    _check_protocol(protocol)
    if isinstance(sr, np.ndarray) != isinstance(hr, np.ndarray):
        kinds = f"sr is {type(sr).__name__}, hr is {type(hr).__name__}"
        raise TypeError(f"{kinds}: give both as NumPy arrays or both as tensors")
    if tuple(sr.shape) != tuple(hr.shape):
        raise ValueError(
            f"sr has shape {tuple(sr.shape)}, hr {tuple(hr.shape)}: "
            "crop or resize them to one size first"
        )
    sr_grid = _grid(sr, "sr")
    hr_grid = _grid(hr, "hr")
    finite = (sr_grid.finite & hr_grid.finite).cpu()

    height, width = hr_grid.pixels.shape[-2:]
    if isinstance(shave, bool) or not isinstance(shave, (int, np.integer)) or shave < 0:
        raise ValueError(f"shave {shave!r}: expected a number of pixels, 0 or more")
    height_left = max(height - 2 * shave, 0)
    width_left = max(width - 2 * shave, 0)
    if min(height_left, width_left) < smallest_side:
        raise ValueError(
            f"shave {shave} leaves {height_left}×{width_left} of {height}×{width} pixels: at least "
            f"{smallest_side}×{smallest_side} are needed; shave less or use larger images"
        )
    inside = (..., slice(shave, height - shave), slice(shave, width - shave))
    return _Pair(
        sr=sr_grid.pixels[inside],
        hr=hr_grid.pixels[inside],
        finite=finite,
        is_single=sr.ndim < 4,
    )


def _grid(image: Image, name: str) -> _Grid:
    """Return one image or a batch on the 0..255 grid; errors call it `name`."""
    if isinstance(image, np.ndarray):
        return _grid_of_array(image, name)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{name} is {type(image).__name__}: expected a NumPy array or a torch tensor"
        )
    return _grid_of_tensor(image, name)


def _grid_of_array(image: np.ndarray, name: str) -> _Grid:
    if image.dtype != np.uint8:
        raise TypeError(
            f"{name} is a NumPy array of {image.dtype}: "
            "expected uint8 as saved; round to 0..255 first"
        )
    is_gray = image.ndim == 2
    has_channels = image.ndim == 3 and image.shape[-1] in (1, 3)
    if not is_gray and not has_channels:
        raise ValueError(f"{name} has shape {image.shape}: expected (H, W) or (H, W, 3)")
    planes = np.expand_dims(image, 0) if is_gray else np.moveaxis(image, 2, 0)  # (c, h, w)
    # A copy: torch takes neither read-only arrays nor negative strides.
    pixels = torch.as_tensor(np.array(planes, order="C")).unsqueeze(0)  # (1, c, h, w)
    return _Grid(pixels=pixels, finite=torch.ones(1, dtype=torch.bool))


def _grid_of_tensor(image: Tensor, name: str) -> _Grid:
    shape = tuple(image.shape)
    if image.ndim not in (3, 4) or shape[-3] not in (1, 3):
        raise ValueError(f"{name} has shape {shape}: expected (3, H, W) or (B, 3, H, W)")
    values = image.detach().reshape(-1, *shape[-3:])  # (b, c, h, w)
    if image.dtype == torch.uint8:
        return _Grid(values, torch.ones(len(values), dtype=torch.bool, device=image.device))
    if not image.dtype.is_floating_point:
        raise TypeError(f"{name} is a tensor of {image.dtype}: expected uint8 or floats in 0..1")
    values = values.double()
    finite = values.isfinite().flatten(1).all(dim=1)  # (b,)
    if name == "hr":
        _check_range(values[finite])
    # Where an image is not finite its result will be nan, and its pixels may be anything.
    return _Grid(pixels=tensor_to_uint8((values * WHITE).nan_to_num(0)), finite=finite)


def _check_range(values: Tensor) -> None:
    """Refuse an original on the 0..255 scale; a network's output alone may leave 0..1."""
    if values.numel() == 0:
        return
    lowest = float(values.min())
    highest = float(values.max())
    if lowest < -FLOAT_TOLERANCE or highest > 1 + FLOAT_TOLERANCE:
        raise ValueError(
            f"hr has values from {lowest:.4g} to {highest:.4g}: "
            "float images go from 0 to 1; divide or clip first"
        )


def _strips(pair: _Pair, protocol: str, overlap: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the planes of SR and HR that the protocol compares, a strip of rows at a time.

    Each strip also holds the `overlap` rows below it, which a filter needs. On a GPU there is one
    strip, the whole image.
    """
    rows = pair.hr.shape[-2] - overlap
    strip_rows = STRIP_ROWS if pair.hr.device.type == "cpu" else rows
    for top in range(0, rows, strip_rows):
        strip = slice(top, top + strip_rows + overlap)
        sr_planes = _planes(pair.sr[..., strip, :], protocol)
        hr_planes = _planes(pair.hr[..., strip, :], protocol)
        yield sr_planes, hr_planes


def _planes(image: Tensor, protocol: str) -> Tensor:
    """Return what the protocol compares of uint8 (b, c, h, w): float64 (b, 3 or 1, h, w)."""
    if protocol == "rgb" or image.shape[1] == 1:
        return image.double()
    red, green, blue = image.double().unbind(dim=1)  # each (b, h, w)
    luma = _luma(red, green, blue).unsqueeze(1)  # (b, 1, h, w)
    if protocol == "rounded-y":
        luma.round_()
    return luma


def _result(values: Tensor, pair: _Pair) -> float | Tensor:
    """Return values of shape (b,), nan for images that are not finite; a float for one image."""
    values = values.cpu().masked_fill(~pair.finite, math.nan)
    if pair.is_single:
        return values.item()
    return values


# --- SSIM


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """Return the SSIM maps of (b, c, h, w), averaged over channels and columns, summed over rows.

    With means, variances and the covariance under the window, C1 = (K1 L)² and C2 = (K2 L)²:

        SSIM = (2 mean_x mean_y + C1) (2 cov_xy + C2)
               / ((mean_x² + mean_y² + C1) (var_x + var_y + C2))

    The two variances occur only as their sum, E[x² + y²] - mean_x² - mean_y², and the covariance is
    E[x y] - mean_x mean_y: so four filtered maps are enough.
    """
    maps = torch.stack((x, y, x.square() + y.square(), x * y))  # (4, b, c, h, w)
    blurred = _blur(_blur(maps, dim=-2), dim=-1)  # (4, b, c, h - 10, w - 10)
    mean_x, mean_y, mean_of_squares, mean_of_product = blurred
    twice_means = 2 * mean_x * mean_y
    squared_means = mean_x.square() + mean_y.square()
    c1 = (SSIM_K1 * WHITE) ** 2
    c2 = (SSIM_K2 * WHITE) ** 2
    above = (twice_means + c1) * (2 * mean_of_product - twice_means + c2)
    below = (squared_means + c1) * (mean_of_squares - squared_means + c2)
    similarity = above / below  # (b, c, h - 10, w - 10)
    return similarity.mean(dim=(1, 3)).sum(dim=1)  # (b,)


def _blur(maps: Tensor, dim: int) -> Tensor:
    """Filter by the Gaussian along `dim` where it fits whole: 10 positions fewer than before."""
    center = SSIM_WINDOW // 2
    gaussian = [
        math.exp(-((position - center) ** 2) / (2 * SSIM_SIGMA**2))
        for position in range(SSIM_WINDOW)
    ]
    length = maps.shape[dim] - SSIM_WINDOW + 1
    total = torch.zeros_like(maps.narrow(dim, 0, length))
    for position, weight in enumerate(gaussian):
        total.add_(maps.narrow(dim, position, length), alpha=weight / sum(gaussian))
    return total
