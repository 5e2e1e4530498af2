"""Image files for the tests of photographs: a PNG reader and writer by hand, EXIF, colour
profiles.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of PNG's colour types


def png_bytes(samples: np.ndarray, extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG without filters of uint8 or uint16 samples (h, w, c), with further chunks behind the
    header.
    """
    height, width, channels = samples.shape
    color = {count: color for color, count in CHANNELS.items()}[channels]
    rows = samples.astype(samples.dtype.newbyteorder(">"))
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", body), (b"IEND", b"")]
    written = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def packed_gray_png(rows: list[bytes], width: int, bits: int, key: int) -> bytes:
    """A gray PNG of fewer than 8 bits whose pixels of value `key` are transparent."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", body), (b"IEND", b"")]
    written = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG by kind, bodies of one kind joined; checks every CRC."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    place = 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length) == (zlib.crc32(kind + body),)
        chunks[kind] = chunks.get(kind, b"") + body
        place += 12 + length
    return chunks


def png_samples(data: bytes) -> np.ndarray:
    """The samples (h, w, c) of a PNG that is not interlaced, by the words of the specification,
    byte for byte.
    """
    chunks = png_chunks(data)
    width, height, bits, color, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    pixel = CHANNELS[color] * bits // 8
    packed, length = zlib.decompress(chunks[b"IDAT"]), width * pixel
    above, rows = bytes(length), []
    for top in range(0, len(packed), length + 1):
        kind, row = packed[top], bytearray(packed[top + 1 : top + 1 + length])
        for index in range(length):
            left = row[index - pixel] if index >= pixel else 0
            corner = above[index - pixel] if index >= pixel else 0
            upper = above[index]
            paeth = min((left, upper, corner), key=lambda value: abs(left + upper - corner - value))
            row[index] = (row[index] + (0, left, upper, (left + upper) // 2, paeth)[kind]) % 256
        above = bytes(row)
        rows.append(above)
    assert len(rows) == height
    return np.frombuffer(b"".join(rows), f">u{bits // 8}").reshape(height, width, -1)


def exif_bytes(orientation: int | None = None, **sizes: int) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    if orientation is not None:
        exif[0x0112] = orientation
    exif[0x8769] = {0x829A: 0.25, 0x9003: "2024:05:06 07:08:09"} | {
        {"width": 0xA002, "height": 0xA003}[side]: length for side, length in sizes.items()
    }
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.0)}
    return exif.tobytes()


@lru_cache  # a profile holds the second in which it was made
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def gray_profile() -> bytes:
    """The sRGB profile relabelled as one of gray: enough for readers that look at its colour
    space.
    """
    profile = bytearray(srgb_profile())
    profile[16:20] = b"GRAY"
    return bytes(profile)
