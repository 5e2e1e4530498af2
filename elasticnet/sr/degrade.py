"""The three standard ways to make a low-resolution image from a uint8 photograph: BI, BD and DN."""

from __future__ import annotations

import numpy as np

from elasticnet.sr.resize import imresize

KINDS = ("BI", "BD", "DN")
SIGMAS = {"BD": "blur_sigma", "DN": "noise_sigma"}  # the setting of a kind that has one
_BLUR_SIZE = 7


def modcrop(image: np.ndarray, scale: int) -> np.ndarray:
    """Return (H, W) or (H, W, C) cut at the bottom and right to multiples of `scale`, as a view.

    Raises ValueError when the image is smaller than `scale` in either dimension.
    """
    _check(image, scale)
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def degrade(
    image: np.ndarray,
    kind: str,
    scale: int,
    *,
    seed: int = 0,
    generator: np.random.Generator | None = None,
    border: str = "symmetric",
    blur_sigma: float = 1.6,
    noise_sigma: float = 30.0,
) -> np.ndarray:
    """Return the low-resolution image of a uint8 (H, W) or (H, W, C) photograph: (H // scale, W //
    scale), uint8.

    The photograph is cut to multiples of `scale` first. The kinds, as papers use them (BD and DN at
    ×3):

    - "BI": `imresize` by 1 / scale, with `border` as there.
    - "BD": blur by a 7×7 Gaussian of `blur_sigma` pixels (MATLAB's fspecial and imfilter: replicate
      border, rounded to uint8), then every scale-th pixel from index scale // 2.
    - "DN": BI, then Gaussian noise of standard deviation `noise_sigma` on the 0..255 scale, rounded
    and clipped.

    At scale 1 nothing is made smaller: "DN" is the noisy photograph, "BD" the blurred one, "BI" the
    photograph itself.

    The noise is `numpy.random.default_rng(seed).standard_normal` of the result's shape, or is drawn
    from `generator` where one is given. MATLAB's generator cannot be reproduced, so published DN
    values are met on average only. Raises TypeError unless the image is a uint8 array, and
    ValueError for its shape, `kind`, `scale` or a sigma.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    for name, sigma in (("blur_sigma", blur_sigma), ("noise_sigma", noise_sigma)):
        if not 0 < sigma < np.inf:
            raise ValueError(f"{name} {sigma!r}: expected a positive finite number")
    image = modcrop(image, scale)
    if image.dtype != np.uint8:
        raise TypeError(
            f"image of {image.dtype}: expected uint8; round to 0..255 and convert it first"
        )
    if kind == "BD":
        return _blur_and_pick(image, scale, blur_sigma)
    low = imresize(image, size=(image.shape[0] // scale, image.shape[1] // scale), border=border)
    if kind == "BI":
        return low
    generator = generator or np.random.default_rng(seed)
    return _to_uint8(low + noise_sigma * generator.standard_normal(low.shape))


def given_sigmas(kind: str, **sigmas: float | None) -> dict[str, float]:
    """Return those of `sigmas` (names of `SIGMAS`) that are not None; ValueError for one that
    `kind` has no use for.
    """
    given = {name: sigma for name, sigma in sigmas.items() if sigma is not None}
    for name, sigma in given.items():
        if name != SIGMAS.get(kind):
            raise ValueError(f"{name} {sigma}: degradation {kind!r} has no such setting")
    return given


def _blur_and_pick(image: np.ndarray, scale: int, sigma: float) -> np.ndarray:
    """Filter only the pixels that are kept: the same values as filtering all and then picking."""
    radius = _BLUR_SIZE // 2
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    values = image.astype(np.float64)
    for axis in (0, 1):
        kept = np.arange(scale // 2, image.shape[axis], scale)
        last = image.shape[axis] - 1
        rows = [
            values.take((kept + offset).clip(0, last), axis=axis)
            for offset in range(-radius, radius + 1)
        ]
        values = np.tensordot(taps, np.stack(rows), axes=1)
    return _to_uint8(values)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _check(image: np.ndarray, scale: int) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"image of type {type(image).__name__}: expected a NumPy array (H, W) or (H, W, C)"
        )
    if isinstance(scale, bool) or not isinstance(scale, (int, np.integer)) or scale < 1:
        raise ValueError(f"scale {scale!r}: expected a positive integer")
    if image.ndim not in (2, 3):
        raise ValueError(f"image of shape {image.shape}: expected (H, W) or (H, W, C)")
    if min(image.shape[:2]) < scale:
        height, width = image.shape[:2]
        raise ValueError(
            f"image of {height}×{width} pixels: scale {scale} needs at least {scale}×{scale}"
        )
