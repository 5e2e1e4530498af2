"""PSNR and SSIM as super-resolution papers report them, under named protocols that agree with
MATLAB.

All work is done in float64 on the 0..255 scale, on the device of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import overload

import numpy as np
import torch

Image = np.ndarray | torch.Tensor

PROTOCOLS = ("matlab-y", "imdn", "rgb")
_Y_WEIGHTS = (65.481, 128.553, 24.966)
_WINDOW, _SIGMA = 11, 1.5
# Rows in work at a time on the CPU: their float64 maps stay inside a core's cache and are cheap to
# allocate.
_STRIP = 32


def shave_for(scale: int, protocol: str = "matlab-y") -> int:
    """Return the border that papers cut off: `scale` pixels, and `scale` + 6 for "rgb" (DIV2K
    validation).
    """
    _check_protocol(protocol)
    return scale + 6 if protocol == "rgb" else scale


@overload
def psnr_y(sr: np.ndarray, hr: np.ndarray, shave: int, protocol: str = "matlab-y") -> float: ...
@overload
def psnr_y(
    sr: torch.Tensor, hr: torch.Tensor, shave: int, protocol: str = "matlab-y"
) -> float | torch.Tensor: ...
def psnr_y(sr: Image, hr: Image, shave: int, protocol: str = "matlab-y") -> float | torch.Tensor:
    """Return the PSNR in dB, peak 255, of `sr` against `hr` with `shave` pixels cut off on every
    side.

    Both images are uint8 NumPy arrays (H, W, 3) or (H, W), or torch tensors (3, H, W) or (B, 3, H,
    W), uint8 or float in 0..1. Floats are first clipped and rounded to the 0..255 grid, as saving
    them to a file would. An image with one channel, (H, W) or (1, H, W), is taken as the luma plane
    itself. Returns a Python float for one image and a float64 tensor (B,) on the CPU for a batch.
    Identical images give inf; a pair with a NaN or infinite value anywhere gives nan.

    Protocols: "matlab-y" compares the unrounded luma of `rgb_to_y`; "imdn" rounds it to integers
    first, as the published evaluation code of IMDN does; "rgb" compares all channels. `shave` is
    used as given: see `shave_for`. Raises TypeError for kinds or dtypes that do not fit, and
    ValueError for shapes, `shave`, protocol, or float `hr` outside 0..1.
    """
    first, second, finite, single = _prepare(sr, hr, shave, protocol, smallest=1)
    errors = [
        (a - b).square_().mean(dim=(1, 3)).sum(dim=1) for a, b in _strips(first, second, protocol)
    ]
    error = torch.stack(errors).sum(dim=0) / first.shape[-2]
    return _result(10 * torch.log10(255**2 / error), finite, single)


@overload
def ssim_y(sr: np.ndarray, hr: np.ndarray, shave: int, protocol: str = "matlab-y") -> float: ...
@overload
def ssim_y(
    sr: torch.Tensor, hr: torch.Tensor, shave: int, protocol: str = "matlab-y"
) -> float | torch.Tensor: ...
def ssim_y(sr: Image, hr: Image, shave: int, protocol: str = "matlab-y") -> float | torch.Tensor:
    """Return the mean SSIM (Wang et al. 2004) of `sr` against `hr` with `shave` pixels cut off on
    every side.

    The window is an 11×11 Gaussian, σ = 1.5, at the positions where it fits whole, K = (0.01,
    0.03), L = 255, without downsampling. Under "rgb" it is the mean over the three channels.
    Inputs, results, protocols and errors are those of `psnr_y`; identical images give 1, fewer than
    11 pixels after shaving a ValueError.
    """
    first, second, finite, single = _prepare(sr, hr, shave, protocol, smallest=_WINDOW)
    overlap = _WINDOW - 1
    sums = [_similarity(a, b) for a, b in _strips(first, second, protocol, overlap)]
    return _result(torch.stack(sums).sum(dim=0) / (first.shape[-2] - overlap), finite, single)


@overload
def rgb_to_y(image: np.ndarray) -> np.ndarray: ...
@overload
def rgb_to_y(image: torch.Tensor) -> torch.Tensor: ...
def rgb_to_y(image: Image) -> Image:
    """Return the BT.601 luma as MATLAB's `rgb2ycbcr` defines it, not rounded: 16 for black, 235 for
    white.

    `image` is a uint8 NumPy array (..., 3) or a torch tensor (..., 3, H, W), uint8 or float in
    0..1; the result lacks the channel axis and is float64 on the 0..255 scale. Floats are neither
    clipped nor rounded and carry gradients.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[-1:] != (3,):
            raise ValueError(f"{image.dtype} array of shape {image.shape}: expected uint8 (..., 3)")
        return image @ (np.array(_Y_WEIGHTS) / 255) + 16.0
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"tensor of shape {tuple(image.shape)}: expected (..., 3, H, W)")
    values = image.double()
    return _luma(*(values if image.dtype == torch.uint8 else values * 255).unbind(dim=-3))


def _luma(red: torch.Tensor, green: torch.Tensor, blue: torch.Tensor) -> torch.Tensor:
    # In place on one fresh tensor: temporaries of this size cost more than the arithmetic.
    total = red * _Y_WEIGHTS[0]
    return total.add_(green, alpha=_Y_WEIGHTS[1]).add_(blue, alpha=_Y_WEIGHTS[2]).div_(255).add_(16)


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")


def _prepare(
    sr: Image, hr: Image, shave: int, protocol: str, smallest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Return both images shaved, uint8 (B, C, h, w), which pairs are finite, and if a single image
    came.
    """
    _check_protocol(protocol)
    if isinstance(sr, np.ndarray) != isinstance(hr, np.ndarray):
        kinds = f"sr is {type(sr).__name__}, hr is {type(hr).__name__}"
        raise TypeError(f"{kinds}: give both as NumPy arrays or both as tensors")
    if tuple(sr.shape) != tuple(hr.shape):
        raise ValueError(
            f"sr has shape {tuple(sr.shape)}, hr {tuple(hr.shape)}: crop or resize them to one size first"
        )
    first, first_finite = _grid(sr, "sr")
    second, second_finite = _grid(hr, "hr")
    height, width = first.shape[-2:]
    if isinstance(shave, bool) or not isinstance(shave, (int, np.integer)) or shave < 0:
        raise ValueError(f"shave {shave!r}: expected a number of pixels, 0 or more")
    left = (height - 2 * shave, width - 2 * shave)
    if min(left) < smallest:
        raise ValueError(
            f"shave {shave} leaves {max(left[0], 0)}×{max(left[1], 0)} of {height}×{width} pixels: "
            f"at least {smallest}×{smallest} are needed; shave less or use larger images"
        )
    window = (..., slice(shave, height - shave), slice(shave, width - shave))
    return first[window], second[window], (first_finite & second_finite).cpu(), sr.ndim < 4


def _strips(
    first: torch.Tensor, second: torch.Tensor, protocol: str, overlap: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the float64 planes that `protocol` compares, a few rows and the `overlap` rows below
    them at a time.
    """
    rows = first.shape[-2] - overlap
    strip = _STRIP if first.device.type == "cpu" else rows
    for top in range(0, rows, strip):
        part = slice(top, top + strip + overlap)
        yield _planes(first[..., part, :], protocol), _planes(second[..., part, :], protocol)


def _planes(image: torch.Tensor, protocol: str) -> torch.Tensor:
    if protocol == "rgb" or image.shape[1] == 1:
        return image.double()
    values = _luma(*image.double().unbind(dim=1)).unsqueeze(1)
    return values.round_() if protocol == "imdn" else values


def _grid(image: Image, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `image` as uint8 (B, C, H, W), and which images of the batch are finite."""
    shape = tuple(image.shape)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(
                f"{name} is a NumPy array of {image.dtype}: expected uint8 as saved; round to 0..255 first"
            )
        if not (image.ndim == 2 or (image.ndim == 3 and shape[-1] in (1, 3))):
            raise ValueError(f"{name} has shape {shape}: expected (H, W) or (H, W, 3)")
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return torch.as_tensor(planes.copy()).unsqueeze(0), torch.ones(1, dtype=torch.bool)
    if not isinstance(image, torch.Tensor):
        raise TypeError(
            f"{name} is {type(image).__name__}: expected a NumPy array or a torch tensor"
        )
    if image.ndim not in (3, 4) or shape[-3] not in (1, 3):
        raise ValueError(f"{name} has shape {shape}: expected (3, H, W) or (B, 3, H, W)")
    values = image.detach().reshape(-1, *shape[-3:])
    finite = torch.ones(len(values), dtype=torch.bool, device=image.device)
    if image.dtype == torch.uint8:
        return values, finite
    if not image.dtype.is_floating_point:
        raise TypeError(f"{name} is a tensor of {image.dtype}: expected uint8 or floats in 0..1")
    values = values.double()
    finite = values.isfinite().flatten(1).all(dim=1)
    valid = values[finite]
    if name == "hr" and valid.numel() and (valid.min() < -1e-3 or valid.max() > 1 + 1e-3):
        extent = f"{valid.min():.4g} to {valid.max():.4g}"
        raise ValueError(
            f"hr has values from {extent}: float images go from 0 to 1; divide or clip first"
        )
    return (values * 255 + 0.5).nan_to_num(0).clamp(0, 255).to(torch.uint8), finite


def _result(values: torch.Tensor, finite: torch.Tensor, single: bool) -> float | torch.Tensor:
    values = values.cpu().masked_fill(~finite, math.nan)
    return values.item() if single else values


def _similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the SSIM map of every image in (B, C, H, W), averaged over channels and columns,
    summed over rows.
    """
    # The two variances occur only as a sum, so four filtered maps do.
    maps = torch.stack((first, second, first.square() + second.square(), first * second))
    mean_first, mean_second, energy, product = _blur(_blur(maps, dim=-2), dim=-1)
    means = 2 * mean_first * mean_second
    squares = mean_first.square() + mean_second.square()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (
        (means + c1) * (2 * product - means + c2) / ((squares + c1) * (energy - squares + c2))
    )
    return similarity.mean(dim=(1, 3)).sum(dim=1)


def _blur(maps: torch.Tensor, dim: int) -> torch.Tensor:
    """Filter by the Gaussian along `dim` at the positions where it fits whole: 10 fewer than
    before.
    """
    taps = [math.exp(-((tap - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for tap in range(_WINDOW)]
    length = maps.shape[dim] - _WINDOW + 1
    total = torch.zeros_like(maps.narrow(dim, 0, length))
    for position, tap in enumerate(taps):
        total.add_(maps.narrow(dim, position, length), alpha=tap / sum(taps))
    return total
