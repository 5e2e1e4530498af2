"""Write photographs as PNG, TIFF, JPEG, WebP or GIF, with all that belongs to them."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from elasticnet._files import replacing as replacing  # part of this module's interface
from elasticnet.sr.photo.gif_writer import GifFrame, notes_of_gif, write_gif
from elasticnet.sr.photo.large_array import large_array
from elasticnet.sr.photo.metadata import JPEG_XMP, packed_exif
from elasticnet.sr.photo.photograph import STRIP_BYTES, ImageError, Photo
from elasticnet.sr.photo.png_colors import other_than_srgb
from elasticnet.sr.photo.png_writer import FAST_LEVEL, write_png
from elasticnet.sr.photo.tiff_writer import (
    INCH,
    RESOLUTION_UNIT,
    X_RESOLUTION,
    Y_RESOLUTION,
    write_tiff,
)

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
}
# Those that an image keeps where nothing else is asked for. GIF would lose colours: it becomes PNG.
KEPT_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
FORMATS_OF_8_BITS = ("JPEG", "WEBP", "GIF")
DEFAULT_QUALITY = 95
QUALITY_OF_FULL_COLOR = 90  # from here on a JPEG keeps colours at full resolution
LARGEST_SIDE = {
    "JPEG": 65500,
    "WEBP": 16383,
    "GIF": 65535,
    "PNG": 2**31 - 1,
    "TIFF": 2**31 - 1,
}
_JPEG_SEGMENT = 65533  # bytes that one segment of a JPEG holds
_JPEG_MAX_DPI = 65535


def format_of(path: str | os.PathLike[str]) -> str:
    """Return the format that a file name's extension stands for, such as "JPEG".

    Args:
        path: The name.

    Raises:
        ValueError: Another extension; the message lists those that there are.
    """
    extension = Path(path).suffix
    if extension.lower() not in FORMATS:
        raise ValueError(
            f"{os.fspath(path)}: no format to write has the extension {extension!r}: "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[extension.lower()]


def check_fits(photo: Photo, format: str, size: tuple[int, int] | None = None) -> None:
    """Refuse a photograph that cannot be written in a format without loss.

    JPEG holds no transparency, JPEG, WebP and GIF hold 8 bits per channel; each format has a
    largest side. A photograph with an alpha channel that is opaque everywhere fits JPEG. GIF takes
    colours and half transparent pixels away; `write_photo` says so in a note.

    Args:
        photo: As it was read.
        format: One of the values of `FORMATS`.
        size: Height and width that it will have when it is written. Default: its own.

    Raises:
        ImageError: It does not fit; the message names formats that hold it.
    """
    if format in FORMATS_OF_8_BITS and photo.bits > 8:
        raise ImageError(
            f"it has {photo.bits} bits per channel and {format} holds 8: write .png or .tif"
        )
    if format == "JPEG" and _is_transparent(photo):
        raise ImageError("it has transparency, which JPEG cannot hold: write .png, .webp or .tif")
    side = max(size or photo.size)
    if side > LARGEST_SIDE[format]:
        raise ImageError(
            f"{side} pixels on one side, and {format} holds {LARGEST_SIDE[format]}: "
            "write .png or .tif"
        )


def _is_transparent(photo: Photo) -> bool:
    if photo.alpha is None:
        return False
    opaque = np.iinfo(photo.alpha.dtype).max
    return bool(photo.alpha.min() < opaque)


def write_photo(
    photo: Photo,
    file: BinaryIO,
    format: str,
    *,
    quality: int | None = None,
    lossless: bool = False,
    png_level: int = FAST_LEVEL,
    folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Write a photograph with EXIF (with the new size), XMP, colour profile and DPI.

    PNG and TIFF are compressed by Deflate, a strip at a time, so that a memory-mapped photograph of
    any size needs next to no memory. JPEG and WebP are written by Pillow from 4 bytes a pixel.
    WebP has no place for DPI but in EXIF. GIF holds nothing but the pixels, in up to 256 colours.

    Args:
        photo: The photograph.
        file: Seekable, in binary mode, empty.
        format: "PNG", "JPEG", "WEBP", "TIFF" or "GIF".
        quality: Of JPEG and of WebP, 1 to 100. Default: 95.
        lossless: Write WebP without loss.
        png_level: Of PNG, how hard pixels are packed: 0 (not at all), 1 (fast), 2 to 9 (smaller and
            slower).
        folder: Where the 4 bytes a pixel lie, in a nameless file, if they are more than 512 MB.
            Default: where temporary files go.

    Returns:
        Notes of what was lost, a line each.

    Raises:
        ImageError: The format cannot hold the photograph.
    """
    check_fits(photo, format)
    exif = exif_with_size(photo)
    if format == "PNG":
        write_png(photo, exif, file, png_level)
        return []
    notes: list[str] = []
    colors = other_than_srgb(photo.png_colors, photo.icc)
    if colors:
        names = ", ".join(colors)
        notes.append(
            f"{names} was left out, as {format} cannot hold it: colours will look different"
        )
    if format == "TIFF":
        write_tiff(photo, exif, file)
        return notes
    if format == "GIF":
        return notes + _write_still_gif(photo, file)
    quality = DEFAULT_QUALITY if quality is None else quality
    if format == "JPEG":
        options = _jpeg_options(photo, exif, quality, notes)
    else:
        options = _webp_options(photo, exif, quality, lossless)
    image = _pillow_image(photo, format, folder)
    try:
        image.save(file, format, **options)
    except ValueError as error:  # WebP's first partition overflows somewhere above 100 megapixels
        size = f"{image.width}x{image.height}"
        raise ImageError(
            f"{format} cannot hold these {size} pixels ({error}): write .png or .tif"
        ) from error
    return notes


def exif_with_size(photo: Photo) -> bytes:
    """Return a photograph's EXIF data with its own size, where the data name one.

    Args:
        photo: With or without EXIF.
    """
    if not photo.exif:
        return b""
    exif = Image.Exif()
    exif.load(photo.exif)
    tags: dict[int, Any] = dict(exif.get_ifd(ExifTags.IFD.Exif))
    height, width = photo.size
    names_a_size = False
    for tag, length in (
        (ExifTags.Base.ExifImageWidth, width),
        (ExifTags.Base.ExifImageHeight, height),
    ):
        if tag in tags:
            tags[tag] = length
            names_a_size = True
    if not names_a_size:
        return photo.exif
    exif[ExifTags.IFD.Exif] = tags
    return packed_exif(exif)


def _write_still_gif(photo: Photo, file: BinaryIO) -> list[str]:
    """Write a GIF of one frame; returns what was lost."""
    frame = GifFrame(pixels=photo.pixels, alpha=photo.alpha, duration_ms=0)
    write_gif([frame], file, size=photo.size, plays=1)
    return notes_of_gif(photo)


def _jpeg_options(photo: Photo, exif: bytes, quality: int, notes: list[str]) -> Mapping[str, Any]:
    """What Pillow is told of a JPEG; a note for what does not fit into a segment."""
    options: dict[str, Any] = {"quality": quality, "icc_profile": photo.icc or None}
    if len(exif) > _JPEG_SEGMENT:
        notes.append("EXIF of more than 64 KB was left out, as JPEG cannot hold it")
    elif exif:
        options["exif"] = exif
    segment = JPEG_XMP + photo.xmp
    if photo.xmp and len(segment) > _JPEG_SEGMENT:
        notes.append("XMP of more than 64 KB was left out, as JPEG cannot hold it")
    elif photo.xmp:
        length = struct.pack(">H", 2 + len(segment))  # its own two bytes count
        options["extra"] = b"\xff\xe1" + length + segment  # an APP1 segment
    if photo.dpi:
        options["dpi"] = tuple(min(_JPEG_MAX_DPI, max(1, round(dots))) for dots in photo.dpi)
    if quality >= QUALITY_OF_FULL_COLOR and photo.num_colors == 3:
        options["subsampling"] = "4:4:4"
    return options


def _webp_options(photo: Photo, exif: bytes, quality: int, lossless: bool) -> Mapping[str, Any]:
    """What Pillow is told of a WebP; DPI goes into EXIF."""
    described = Image.Exif()
    described.load(exif)
    if photo.dpi and X_RESOLUTION not in described:
        horizontal, vertical = photo.dpi
        described[X_RESOLUTION] = horizontal
        described[Y_RESOLUTION] = vertical
        described[RESOLUTION_UNIT] = INCH
        exif = packed_exif(described)
    options: dict[str, Any] = {
        "quality": quality,
        "lossless": lossless,
        "exact": True,  # colours that alpha hides stay what they are
        "icc_profile": photo.icc or None,
        "xmp": photo.xmp,
    }
    if exif:
        options["exif"] = exif
    return options


def _pillow_image(photo: Photo, format: str, folder: str | os.PathLike[str] | None) -> Image.Image:
    """The photograph as Pillow encodes it without a copy: gray, or 4 bytes a pixel.

    The 4 bytes are mapped to a file if they are many.
    """
    if photo.num_colors == 1 and format == "JPEG":
        return Image.fromarray(np.ascontiguousarray(photo.pixels))
    height, width = photo.size
    canvas = large_array((height, width, 4), np.uint8, folder)
    alpha = None if format == "JPEG" else photo.alpha
    rows = max(1, STRIP_BYTES // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        colors = photo.pixels[band]
        if colors.ndim == 2:
            colors = colors[..., None]  # the same in all three
        canvas[band, :, :3] = colors
        canvas[band, :, 3] = 255 if alpha is None else alpha[band]
    mode = "RGBX" if alpha is None else "RGBA"
    return Image.frombuffer(mode, (width, height), canvas, "raw", mode, 0, 1)
