"""One aligned pair: HR cropped to `scale` times the LR size, LR made where there is no file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from elasticnet.sr.data.read_rgb import ImageError
from elasticnet.sr.degrade import (
    BLUR_SIGMA,
    KINDS,
    NOISE_SIGMA,
    NOISES,
    degrade,
    given_sigmas,
    modcrop,
)

DEFAULT_NOISE = NOISES[0]


class AlignedPair(NamedTuple):
    """An HR image and its LR image.

    Attributes:
        hr: uint8 of shape (scale * height, scale * width, 3), RGB, 0..255.
        lr: uint8 of shape (height, width, 3), RGB, 0..255.
        notes: What the files hold and the images do not, a line each.
    """

    hr: np.ndarray
    lr: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LrSettings:
    """How LR images are made of HR images: the arguments of `degrade` for a whole data set.

    Attributes:
        scale: Side of an HR image over the side of its LR image.
        degradation: "BI", "BD", "DN", "HAZE" or "photo".
        seed: Of noise, haze and JPEG; each image draws its own from it (see `noise_seed`).
        border: What lies outside an image that is resized: see `elasticnet.sr.resize.imresize`.
        blur_sigma: Of "BD", in HR pixels; None for the default of `degrade`.
        noise_sigma: Of "DN", on the 0..255 scale; None for the default of `degrade`.
        noise: Where the noise of "DN" comes from, "numpy" or "matlab".

    Raises:
        ValueError: There is no such scale, degradation or noise, or a sigma or a noise was given
            that the degradation has no use for.
    """

    scale: int
    degradation: str = "BI"
    seed: int = 0
    border: str = "symmetric"
    blur_sigma: float | None = None
    noise_sigma: float | None = None
    noise: str = DEFAULT_NOISE

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int) or isinstance(self.scale, bool) or self.scale < 1:
            raise ValueError(f"scale {self.scale!r}: expected a whole number from 1")
        if self.degradation not in KINDS:
            expected = ", ".join(KINDS)
            raise ValueError(f"degradation {self.degradation!r}: expected one of {expected}")
        if self.noise not in NOISES:
            raise ValueError(f"noise {self.noise!r}: expected one of {', '.join(NOISES)}")
        if self.noise != DEFAULT_NOISE and self.degradation != "DN":
            raise ValueError(f"noise {self.noise!r}: degradation {self.degradation!r} has no noise")
        given_sigmas(self.degradation, blur_sigma=self.blur_sigma, noise_sigma=self.noise_sigma)

    @property
    def given(self) -> dict[str, float | str]:
        """The sigmas and the noise that were given, by the names that `degrade` has for them."""
        given: dict[str, float | str] = {}
        given.update(
            given_sigmas(self.degradation, blur_sigma=self.blur_sigma, noise_sigma=self.noise_sigma)
        )
        if self.noise != DEFAULT_NOISE:
            given["noise"] = self.noise
        return given


def align(hr: np.ndarray, lr: np.ndarray | None, name: str, settings: LrSettings) -> AlignedPair:
    """Return an HR image and its LR image, cropped so that HR is exactly `scale` times larger.

    Args:
        hr: uint8 of shape (height, width, 3), RGB, 0..255.
        lr: The same from the LR file; None if LR is to be made from `hr`.
        name: The image's name, which enters what its noise, haze or JPEG is drawn from.
        settings: The scale, and how LR is made.

    Returns:
        Both images; what is too much is cut off at the right and at the bottom.

    Raises:
        ImageError: The LR image does not fit the HR image, or no pixel would be left of it.
    """
    if lr is None:
        return _with_made_lr(hr, name, settings)
    return _cropped_to_fit(hr, lr, settings.scale)


def _with_made_lr(hr: np.ndarray, name: str, settings: LrSettings) -> AlignedPair:
    scale = settings.scale
    _require_pixels(hr.shape[0] // scale, hr.shape[1] // scale, hr, scale)
    hr = modcrop(hr, scale)
    blur_sigma = BLUR_SIGMA if settings.blur_sigma is None else settings.blur_sigma
    noise_sigma = NOISE_SIGMA if settings.noise_sigma is None else settings.noise_sigma
    lr = degrade(
        hr,
        settings.degradation,
        scale,
        seed=noise_seed(settings.seed, name),
        border=settings.border,
        blur_sigma=blur_sigma,
        noise_sigma=noise_sigma,
        noise=settings.noise,
    )
    return AlignedPair(hr=hr, lr=lr)


def _cropped_to_fit(hr: np.ndarray, lr: np.ndarray, scale: int) -> AlignedPair:
    hr_height, hr_width = hr.shape[:2]
    lr_height, lr_width = lr.shape[:2]
    # An LR file made of the whole HR image has ceil(n / scale) pixels, one made of the cropped
    # image has floor(n / scale): both are less than one pixel away from n / scale.
    too_high_or_low = abs(hr_height / scale - lr_height) >= 1
    too_wide_or_narrow = abs(hr_width / scale - lr_width) >= 1
    if too_high_or_low or too_wide_or_narrow:
        raise ImageError(
            f"LR of {lr_width}x{lr_height} pixels does not fit "
            f"HR of {hr_width}x{hr_height} at scale {scale}"
        )
    height = min(hr_height // scale, lr_height)
    width = min(hr_width // scale, lr_width)
    _require_pixels(height, width, hr, scale)
    return AlignedPair(hr=hr[: height * scale, : width * scale], lr=lr[:height, :width])


def _require_pixels(lr_height: int, lr_width: int, hr: np.ndarray, scale: int) -> None:
    """Raise if an LR image of this size has no pixels."""
    if min(lr_height, lr_width) < 1:
        hr_height, hr_width = hr.shape[:2]
        raise ImageError(
            f"{hr_width}x{hr_height} pixels leave none for the LR image at scale {scale}"
        )


def noise_seed(seed: int, name: str) -> int:
    """Return the seed of one image's noise, haze or JPEG, made of the set's seed and its name.

    So images that are added or left out change the noise of no other image.

    Args:
        seed: Of the whole data set.
        name: The image's name.

    Returns:
        A whole number of 64 bits.
    """
    # Names of files that are not valid UTF-8 hold surrogates, which encode back to their bytes.
    digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little")
