"""Read one image file of any mode as 8-bit RGB."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class ImageError(ValueError):
    """An image file that cannot be used; the message names the file and says why."""


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as a uint8 array of shape (height, width, 3), RGB, 0..255.

    - gray and bilevel images repeat their value in the three channels; bilevel is 0 or 255;
    - palette images are looked up in their palette;
    - 16 bits per channel keep the high byte, so that an 8-bit image stored as 16-bit (v -> 257 v)
      comes back exactly;
    - transparency, in an alpha channel or in a palette, is laid over white;
    - CMYK, YCbCr and HSV are converted by Pillow's formulas; embedded colour profiles are not
    applied;
    - an EXIF orientation is applied, so that the array is upright;
    - of an animation or a multi-page file, the first frame is read.

    Raises `FileNotFoundError` for a missing file and `ImageError`, naming the file, for anything
    that is not an image, is cut off or damaged, or has no defined 8-bit range (float and 32-bit
    integer samples).
    """
    try:
        # The open file, not its name: by name Pillow garbles uncompressed TIFF files that lie on
        # their side.
        with open(path, "rb") as file, Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            return np.array(_to_rgb(upright), dtype=np.uint8)
    except FileNotFoundError:
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise nearly every built-in type on damaged files
        raise ImageError(f"cannot read image {os.fspath(path)}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError(
            "float samples have no defined 8-bit range; save it as an 8-bit or 16-bit image"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.asarray(image)
        low, high = int(samples.min()), int(samples.max())
        if low < 0 or high > 65535:
            raise ValueError(
                f"samples from {low} to {high} do not fit 16 bits; save it as an 8-bit or 16-bit image"
            )
        image = Image.fromarray((samples >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
