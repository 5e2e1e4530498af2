"""Bits per channel of the formats of which Pillow reads 8 whatever the file holds."""

from __future__ import annotations

import re
from typing import BinaryIO

from PIL import Image

_START = 2**16  # bytes of a file in which its header lies
_COMMENT = rb"(?:\s|#[^\n]*\n)+"  # between the numbers of a PPM header
_PPM_HEADER = re.compile(
    rb"P[36]" + _COMMENT + rb"\d+" + _COMMENT + rb"\d+" + _COMMENT + rb"(\d+)\s"
)
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # start of a codestream, and its segment SIZ
_SIZE_TO_DEPTH = 42  # bytes from there to the depth of the first component (ISO 15444-1, A.5.1)
_AVIF_DEPTHS = b"pixi"  # the box, then version and flags, a count, and a byte each (ISO 23008-12)
_AVIF_TO_COUNT = 8


def bits_in_file(image: Image.Image, file: BinaryIO) -> int:
    """Return the bits per channel that an AVIF, JPEG 2000 or colour PPM file holds.

    Args:
        image: As Pillow opened it, not loaded.
        file: What it was opened from.

    Returns:
        The bits; 8 for other formats, and where the file does not say.
    """
    place = file.tell()
    file.seek(0)
    start = file.read(_START)
    file.seek(place)
    if image.format == "JPEG2000":
        return _bits_of_jpeg2000(start)
    if image.format == "AVIF":
        return _bits_of_avif(start)
    if image.format == "PPM":
        return _bits_of_ppm(start)
    return 8


def _bits_of_jpeg2000(start: bytes) -> int:
    found = start.find(_JPEG2000_SIZE)
    depth = start[found + _SIZE_TO_DEPTH : found + _SIZE_TO_DEPTH + 1]
    if found < 0 or not depth:
        return 8
    sign_bit = 0x80
    return (depth[0] & ~sign_bit) + 1


def _bits_of_avif(start: bytes) -> int:
    found = start.find(_AVIF_DEPTHS)
    if found < 0:
        return 8
    count = start[found + _AVIF_TO_COUNT : found + _AVIF_TO_COUNT + 1]
    if not count:
        return 8
    first = found + _AVIF_TO_COUNT + 1
    depths = start[first : first + count[0]]
    return max(depths, default=8)


def _bits_of_ppm(start: bytes) -> int:
    header = _PPM_HEADER.match(start)
    if header is None:
        return 8
    largest = int(header[1])
    return 8 if largest < 256 else largest.bit_length()
