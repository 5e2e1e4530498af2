"""A photograph and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIP_BYTES = 2**22  # of the samples of a strip of rows


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
        png_colors: Kind and body of the chunks of a PNG that say how its colours are meant (cICP,
            cHRM, gAMA and others). What an AVIF file says is a chunk cICP here.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    exif: bytes = b""
    xmp: bytes = b""
    icc: bytes = b""
    dpi: tuple[float, float] | None = None
    format: str = "PNG"
    notes: tuple[str, ...] = ()
    png_colors: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def num_colors(self) -> int:
        """1 for gray, 3 for RGB."""
        return 1 if self.pixels.ndim == 2 else 3

    @property
    def num_channels(self) -> int:
        """Colours, and one more where there is alpha."""
        return self.num_colors if self.alpha is None else self.num_colors + 1

    @property
    def bits(self) -> int:
        """8 or 16 bits a channel."""
        return 8 * self.pixels.dtype.itemsize


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


def rows_of_a_strip(photo: Photo) -> int:
    """Return how many rows of a photograph make a strip of about 4 MB, at least one.

    Args:
        photo: Of any size.
    """
    _, width = photo.size
    bytes_of_a_row = width * photo.num_channels * photo.pixels.dtype.itemsize
    return max(1, STRIP_BYTES // bytes_of_a_row)


def strips(photo: Photo) -> Iterator[NDArray[Any]]:
    """Yield strips of rows (rows, w, channels), top to bottom, alpha as the last channel.

    A photograph that is mapped to a file is read a strip at a time.

    Args:
        photo: Of any size.
    """
    height, width = photo.size
    planes = [photo.pixels.reshape(height, width, photo.num_colors)]
    if photo.alpha is not None:
        planes.append(photo.alpha[..., None])  # (h, w, 1)
    rows = rows_of_a_strip(photo)
    for top in range(0, height, rows):
        yield np.concatenate([plane[top : top + rows] for plane in planes], axis=2)
