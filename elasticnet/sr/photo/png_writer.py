"""Write PNG files of any size, a strip of rows at a time."""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from elasticnet.sr.photo.photograph import Photo, strips
from elasticnet.sr.photo.png_chunks import SIGNATURE

COLOR, ALPHA = 2, 4  # bits of the colour type
PAETH = 4  # the number of the filter
UNIT_METRE = 1
METRES_PER_INCH = 0.0254
COMPRESSION = 6  # zlib's level


def write_png(photo: Photo, exif: bytes, file: BinaryIO) -> None:
    """Write a photograph as PNG, with its metadata in front of the pixels.

    Args:
        photo: Of 8 or 16 bits.
        exif: What describes it; takes the place of `photo.exif`.
        file: Seekable, in binary mode.
    """
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", _header(photo))
    for kind, body in photo.png_colors:
        if kind != b"sRGB" or not photo.icc:  # either of the two (PNG specification, 11.3.2.3)
            _write_chunk(file, kind, body)
    if photo.icc:
        _write_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc))
    if photo.dpi:
        horizontal, vertical = (round(dots / METRES_PER_INCH) for dots in photo.dpi)
        _write_chunk(file, b"pHYs", struct.pack(">IIB", horizontal, vertical, UNIT_METRE))
    if exif:
        _write_chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if photo.xmp:
        _write_chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + photo.xmp)
    _write_pixels(photo, file)
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, body: bytes) -> None:
    length = struct.pack(">I", len(body))
    check = struct.pack(">I", zlib.crc32(kind + body))
    file.write(length + kind + body + check)


def _header(photo: Photo) -> bytes:
    height, width = photo.size
    color_type = 0
    if photo.num_colors == 3:
        color_type += COLOR
    if photo.alpha is not None:
        color_type += ALPHA
    compression, filtering, interlacing = 0, 0, 0  # each has no other value, or is switched off
    return struct.pack(
        ">IIBBBBB", width, height, photo.bits, color_type, compression, filtering, interlacing
    )


def _write_pixels(photo: Photo, file: BinaryIO) -> None:
    packer = zlib.compressobj(COMPRESSION)
    above: NDArray[np.uint8] | None = None  # the last row of the strip above
    bytes_of_a_pixel = photo.num_channels * photo.pixels.dtype.itemsize
    for strip in strips(photo):
        rows = _rows_of_bytes(strip)
        filtered = _paeth_filtered(rows, above, bytes_of_a_pixel)
        above = rows[-1]
        body = packer.compress(filtered)
        if body:
            _write_chunk(file, b"IDAT", body)
    _write_chunk(file, b"IDAT", packer.flush())


def _rows_of_bytes(strip: NDArray[Any]) -> NDArray[np.uint8]:
    """A strip (rows, w, channels) as the bytes of the file, (rows, bytes of a row), big-endian."""
    big_endian = np.ascontiguousarray(strip, dtype=f">u{strip.dtype.itemsize}")
    return big_endian.view(np.uint8).reshape(len(strip), -1)


def _paeth_filtered(
    rows: NDArray[np.uint8], above: NDArray[np.uint8] | None, bytes_of_a_pixel: int
) -> bytes:
    """Rows of bytes, each minus PNG's Paeth prediction, with the filter's number in front of it.

    Paeth predicts by the left, the upper or the upper left neighbour, a pixel away: by the one that
    is nearest to left + upper - corner (PNG specification, 9.4). On photographs it comes within a
    few percent of the best filter of each row.
    """
    num_rows, bytes_of_a_row = rows.shape
    # One row more above and one pixel more on the left: zeros, as the specification has it.
    padded = np.zeros((num_rows + 1, bytes_of_a_pixel + bytes_of_a_row), np.int16)
    padded[1:, bytes_of_a_pixel:] = rows
    if above is not None:
        padded[0, bytes_of_a_pixel:] = above
    left = padded[1:, :-bytes_of_a_pixel]
    upper = padded[:-1, bytes_of_a_pixel:]
    corner = padded[:-1, :-bytes_of_a_pixel]
    # How far each is from left + upper - corner.
    from_left = np.abs(upper - corner)
    from_upper = np.abs(left - corner)
    from_corner = np.abs(left + upper - 2 * corner)
    predicted = np.where(from_upper <= from_corner, upper, corner)
    is_left_nearest = (from_left <= from_upper) & (from_left <= from_corner)
    predicted = np.where(is_left_nearest, left, predicted)
    filtered = np.full((num_rows, 1 + bytes_of_a_row), PAETH, np.uint8)
    filtered[:, 1:] = rows - predicted.astype(np.uint8)  # modulo 256
    return filtered.tobytes()
