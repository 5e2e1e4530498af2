"""A photograph and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ImageError(ValueError):
    """An image file that cannot be used; the message names the file and says why."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright photograph and what belongs to it.

    Attributes:
        pixels: (h, w) gray or (h, w, 3) RGB, uint8 or uint16; not multiplied by alpha.
        alpha: (h, w) of the same dtype, or None.
        exif: Begins with "Exif"; empty if there is none.
        xmp: The XMP packet; empty if there is none.
        icc: The colour profile; empty if there is none.
        dpi: Dots per inch, (horizontal, vertical), or None.
        format: Pillow's name of the format that it was read from.
        notes: What the file held and the photograph does not, a line each.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    exif: bytes = b""
    xmp: bytes = b""
    icc: bytes = b""
    dpi: tuple[float, float] | None = None
    format: str = "PNG"
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def turned_upright(photo: Photo, orientation: int) -> Photo:
    """Return a photograph turned and mirrored as its EXIF orientation says.

    Args:
        photo: As it is stored; its metadata are taken over as they are.
        orientation: 1 to 8; 1 is upright.
    """
    if orientation == 1:
        return photo
    is_on_its_side = orientation >= 5
    dpi = photo.dpi
    if dpi is not None and is_on_its_side:
        horizontal, vertical = dpi
        dpi = (vertical, horizontal)
    alpha = None if photo.alpha is None else _turned(photo.alpha, orientation)
    return replace(photo, pixels=_turned(photo.pixels, orientation), alpha=alpha, dpi=dpi)


def _turned(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The array (h, w) or (h, w, c) upright; Exif 2.32 says where row 0 and column 0 are stored."""
    if orientation >= 5:  # row 0 is a side of the picture
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):  # the first row after that is the bottom
        array = array[::-1]
    if orientation in (2, 3, 6, 7):  # the first column is the right side
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
