"""Read one image file of any mode as 8-bit RGB."""

from __future__ import annotations

import logging
import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from elasticnet.sr.photo.photograph import ImageError as ImageError  # also of this module
from elasticnet.sr.photo.photograph import Photo
from elasticnet.sr.photo.reading import READ_EXTENSIONS, decode_photo

EXTENSIONS = READ_EXTENSIONS

logger = logging.getLogger(__name__)


class RgbImage(NamedTuple):
    """An image file as 8-bit RGB.

    Attributes:
        pixels: (h, w, 3), uint8, 0..255.
        notes: What the file holds and the pixels do not, such as further frames; a line each.
    """

    pixels: NDArray[Any]
    notes: tuple[str, ...]


def read_rgb(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an image file as 8-bit RGB, by the same reader as `read_photo`.

    - gray and bilevel images repeat their value in the three channels; bilevel is 0 or 255;
    - palette images are looked up in their palette;
    - 16 bits per channel keep the high byte, so that an 8-bit image stored as 16-bit (v -> 257 v)
      comes back exactly;
    - transparency, in an alpha channel, in a palette or by a key colour, is laid over white;
    - CMYK, YCbCr and HSV are converted by Pillow's formulas; embedded colour profiles are not
      applied;
    - an orientation in EXIF, TIFF or XMP is applied, so that the array is upright;
    - of an animation or a multi-page file, the first frame is read, but no page of a TIFF that is
      marked as a thumbnail or mask.

    What the file holds beside that is named in the log.

    Args:
        path: The file; its content says what it is, not its name.

    Returns:
        (h, w, 3), 0..255.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: The file is no image, cut off or damaged, or has no defined 8-bit range (float
            and 32-bit integer samples); the message names it.
    """
    image = read_rgb_with_notes(path)
    for note in image.notes:
        logger.warning("%s: %s", os.fspath(path), note)
    return image.pixels


def read_rgb_with_notes(path: str | os.PathLike[str]) -> RgbImage:
    """Read an image file as `read_rgb` does, and return the notes instead of logging them.

    Args:
        path: The file; its content says what it is, not its name.

    Returns:
        The pixels and the notes.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: As `read_rgb` does.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            photo = decode_photo(
                file, name, first_frame=True, cmyk_by_profile=False, keeps_metadata=False
            )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ImageError(f"cannot read image {name}: {error.strerror or error}") from error
    return RgbImage(pixels=_to_rgb(photo), notes=photo.notes)


def _to_rgb(photo: Photo) -> NDArray[Any]:
    """A photograph as 8-bit RGB over white."""
    pixels = _high_bytes(photo.pixels)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)  # (h, w, 3)
    if photo.alpha is None:
        return pixels
    alpha = _high_bytes(photo.alpha)
    layer = Image.fromarray(np.dstack([pixels, alpha]))  # (h, w, 4)
    white = Image.new("RGBA", layer.size, "white")
    return np.array(Image.alpha_composite(white, layer).convert("RGB"))


def _high_bytes(samples: NDArray[Any]) -> NDArray[Any]:
    """Samples of 8 bits as they are, of 16 bits their upper 8."""
    if samples.dtype == np.uint16:
        samples = samples >> 8
    return samples.astype(np.uint8)
