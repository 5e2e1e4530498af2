"""JPEG compression of low-resolution images: what the degradation "photo" adds to bicubic.

The encoder and the decoder are Pillow's, which is libjpeg-turbo in its wheels, with the standard
quantisation tables that `quality` scales. Another version of either may give other pixels, by a
level here and there, so a training that is resumed, or an image that is scored, on a machine with
another Pillow need not be bit for bit the same.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUBSAMPLINGS = ("4:2:0", "4:4:4")
"""Colour at half the resolution both ways, as most cameras write it, or at the full one."""
MIN_QUALITY = 1
MAX_QUALITY = 100

# A draw of 64 random bits is cut into three numbers. 16 bits are fine enough for each of them: a
# remainder favours some qualities by less than 0.2 %.
BITS_PER_NUMBER = 16
VALUES_PER_NUMBER = 1 << BITS_PER_NUMBER


class JpegSetting(NamedTuple):
    """How one image is compressed.

    Attributes:
        quality: Pillow's, 1 (worst) to 100.
        subsampling: "4:2:0" or "4:4:4".
    """

    quality: int
    subsampling: str = SUBSAMPLINGS[0]


def check_quality(quality: int) -> None:
    """Raise if a number is no quality of JPEG.

    Args:
        quality: Pillow's, 1 to 100.

    Raises:
        ValueError: It is none.
    """
    if not MIN_QUALITY <= quality <= MAX_QUALITY:
        raise ValueError(
            f"JPEG quality {quality!r}: expected a number from {MIN_QUALITY} to {MAX_QUALITY}"
        )


def compressed(image: NDArray[np.uint8], setting: JpegSetting | None) -> NDArray[np.uint8]:
    """Return an image as it is after JPEG compression.

    Args:
        image: uint8 of shape (height, width, 3), RGB, or (height, width) or (height, width, 1),
            gray; 0..255.
        setting: Quality and subsampling; None for no compression.

    Returns:
        uint8 of the same shape; the image itself where there is no compression.

    Raises:
        TypeError: The image is not of uint8.
        ValueError: The image has another shape, or the quality or the subsampling is wrong.

    Example:
        >>> gray = np.full((16, 16, 3), 100, np.uint8)
        >>> int(compressed(gray, JpegSetting(quality=75))[0, 0, 0])
        100
    """
    if image.dtype != np.uint8:
        raise TypeError(f"image of {image.dtype}: expected uint8")
    is_gray = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    is_color = image.ndim == 3 and image.shape[2] == 3
    if not is_gray and not is_color:
        raise ValueError(f"image of shape {image.shape}: JPEG takes one channel or three")
    if setting is None:
        return image
    check_quality(setting.quality)
    _check_subsampling(setting.subsampling)
    file = io.BytesIO()
    pixels = image.reshape(image.shape[:2]) if is_gray else image
    Image.fromarray(pixels).save(
        file, "JPEG", quality=setting.quality, subsampling=setting.subsampling
    )
    file.seek(0)
    return np.array(Image.open(file, formats=["JPEG"])).reshape(image.shape)


@dataclass(frozen=True)
class RandomJpeg:
    """Which compressions are drawn, each from 64 random bits.

    Attributes:
        lowest_quality: Of Pillow, 1 to 100.
        highest_quality: The same; every whole number between the two is equally likely.
        uncompressed_share: How many of all images are not compressed, 0 to 1. The others are
            4:2:0 or 4:4:4, each with probability 1/2.

    Raises:
        ValueError: A quality or the share is wrong.
    """

    lowest_quality: int = 30
    highest_quality: int = 95
    uncompressed_share: float = 0.2

    def __post_init__(self) -> None:
        check_quality(self.lowest_quality)
        check_quality(self.highest_quality)
        if self.lowest_quality > self.highest_quality:
            raise ValueError(
                f"lowest_quality {self.lowest_quality}: expected at most the highest_quality "
                f"{self.highest_quality}"
            )
        if not 0 <= self.uncompressed_share <= 1:
            raise ValueError(
                f"uncompressed_share {self.uncompressed_share}: expected a number from 0 to 1"
            )

    def setting(self, bits: int) -> JpegSetting | None:
        """Return the compression that random bits stand for.

        Args:
            bits: A whole number of 64 random bits.

        Returns:
            Quality and subsampling; None for no compression.
        """
        quality_number = bits % VALUES_PER_NUMBER
        subsampling_number = (bits >> BITS_PER_NUMBER) % VALUES_PER_NUMBER
        share_number = (bits >> 2 * BITS_PER_NUMBER) % VALUES_PER_NUMBER
        if share_number < self.uncompressed_share * VALUES_PER_NUMBER:
            return None
        num_qualities = self.highest_quality - self.lowest_quality + 1
        return JpegSetting(
            quality=self.lowest_quality + quality_number % num_qualities,
            subsampling=SUBSAMPLINGS[subsampling_number % len(SUBSAMPLINGS)],
        )


PHOTO_JPEG = RandomJpeg()
"""What the degradation "photo" draws from: quality 30 to 95, or none for a fifth of the images."""


def _check_subsampling(subsampling: str) -> None:
    if subsampling not in SUBSAMPLINGS:
        raise ValueError(
            f"JPEG subsampling {subsampling!r}: expected one of {', '.join(SUBSAMPLINGS)}"
        )
