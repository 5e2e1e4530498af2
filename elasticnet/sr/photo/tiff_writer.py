"""Write TIFF files of any size, a strip of rows at a time."""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from elasticnet.sr.photo.metadata import plain_text
from elasticnet.sr.photo.photograph import ImageError, Photo, rows_of_a_strip, strips

# Tags, and the values that they have here (TIFF 6.0).
WIDTH, HEIGHT, BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 256, 257, 258, 277
COMPRESSION, DEFLATE = 259, 8
PHOTOMETRIC, BLACK_IS_ZERO, RGB = 262, 1, 2
STRIP_PLACES, ROWS_PER_STRIP, STRIP_LENGTHS = 273, 278, 279
PLANAR, INTERLEAVED = 284, 1
PREDICTOR, HORIZONTAL_DIFFERENCES = 317, 2
EXTRA_SAMPLES, UNASSOCIATED_ALPHA = 338, 2  # colours are not multiplied by it
SAMPLE_FORMAT, UNSIGNED = 339, 1
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, INCH = 282, 283, 296, 2
XMP, ICC_PROFILE = 700, 34675
TYPE_LONG = 4

HEADER_BYTES = 8
MAX_BYTES = 2**32  # places in the file are 32-bit numbers
COMPRESSION_LEVEL = 6  # zlib's


def write_tiff(photo: Photo, exif: bytes, file: BinaryIO) -> None:
    """Write a photograph as little-endian TIFF 6.0 with horizontal differencing.

    The directory stands in front of the strips and holds their places, which are known at the end:
    room is left for it first.

    Args:
        photo: Of 8 or 16 bits.
        exif: What describes it; takes the place of `photo.exif`.
        file: Seekable, in binary mode, empty.

    Raises:
        ImageError: The file would be larger than 4 GB.
    """
    tags = _tags(photo, exif)
    height, _ = photo.size
    num_strips = -(-height // rows_of_a_strip(photo))  # rounded up
    nothing = [0] * num_strips
    length = HEADER_BYTES + len(_packed_directory(tags, places=nothing, lengths=nothing))
    length += length % 2  # strips begin at even places
    file.write(bytes(length))

    places: list[int] = []
    lengths: list[int] = []
    for strip in strips(photo):
        body = zlib.compress(_differences(strip), COMPRESSION_LEVEL)
        places.append(file.tell())
        lengths.append(len(body))
        file.write(body + bytes(len(body) % 2))
    if file.tell() > MAX_BYTES:
        raise ImageError(f"{file.tell():,} bytes are more than a TIFF file holds: write .png")

    file.seek(0)
    file.write(b"II*\0" + struct.pack("<L", HEADER_BYTES))
    file.write(_packed_directory(tags, places, lengths))
    file.seek(0, os.SEEK_END)


def _tags(photo: Photo, exif: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The directory without the strips."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    if exif:
        _add_exif(tags, exif)
    height, width = photo.size
    tags[WIDTH] = width
    tags[HEIGHT] = height
    tags[BITS_PER_SAMPLE] = (photo.bits,) * photo.num_channels
    tags[COMPRESSION] = DEFLATE
    tags[PHOTOMETRIC] = RGB if photo.num_colors == 3 else BLACK_IS_ZERO
    tags[SAMPLES_PER_PIXEL] = photo.num_channels
    tags[ROWS_PER_STRIP] = rows_of_a_strip(photo)
    tags[PLANAR] = INTERLEAVED
    tags[PREDICTOR] = HORIZONTAL_DIFFERENCES
    tags[SAMPLE_FORMAT] = (UNSIGNED,) * photo.num_channels
    if photo.alpha is not None:
        tags[EXTRA_SAMPLES] = UNASSOCIATED_ALPHA
    if photo.dpi:
        horizontal, vertical = photo.dpi
        tags[X_RESOLUTION] = horizontal
        tags[Y_RESOLUTION] = vertical
        tags[RESOLUTION_UNIT] = INCH
    if photo.xmp:
        tags[XMP] = photo.xmp
    if photo.icc:
        tags[ICC_PROFILE] = photo.icc
    return tags


def _add_exif(tags: TiffImagePlugin.ImageFileDirectory_v2, exif: bytes) -> None:
    """EXIF is a TIFF directory itself: its entries stand among the others."""
    described = Image.Exif()
    described.load(exif)
    described.pop(ExifTags.Base.Orientation, None)  # upright is what its absence means
    for tag, value in described.items():
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            details = described.get_ifd(tag)
            tags[tag] = {key: plain_text(detail) for key, detail in details.items()}
        else:
            tags[tag] = plain_text(value)


def _packed_directory(
    tags: TiffImagePlugin.ImageFileDirectory_v2, places: list[int], lengths: list[int]
) -> bytes:
    """The directory's bytes; their number does not depend on the places and lengths.

    Pillow counts tag 273, where strips begin, from elsewhere, and before 11.1 takes only one strip.
    So the places stand under 275 while Pillow packs the directory, which is free and sorts to the
    same position, and get their own number afterwards.
    """
    stand_in = 275
    for tag, values in ((stand_in, places), (STRIP_LENGTHS, lengths)):
        tags.tagtype[tag] = TYPE_LONG
        tags[tag] = tuple(values)
    packed = bytearray(tags.tobytes(HEADER_BYTES))
    index = sorted(tags).index(stand_in)
    entry = 2 + 12 * index  # behind the count of entries, 12 bytes each
    struct.pack_into("<H", packed, entry, STRIP_PLACES)
    return bytes(packed)


def _differences(strip: NDArray[Any]) -> bytes:
    """A strip (rows, w, channels) in which each pixel but the first has its left neighbour taken
    off, modulo the range."""
    differences = np.array(strip, dtype=f"<u{strip.dtype.itemsize}", order="C")
    differences[:, 1:] -= strip[:, :-1]
    return differences.tobytes()
