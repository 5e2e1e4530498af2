"""The segments of a JPEG file in front of its pixels."""

from __future__ import annotations

import struct
from typing import BinaryIO

from elasticnet.sr.photo.file_parts import file_without

_START_OF_IMAGE = b"\xff\xd8"
_APP1, _START_OF_SCAN, _FILL = 0xE1, 0xDA, 0xFF  # markers, each behind a byte 0xFF
_EXIF = b"Exif\0\0"


def without_exif(file: BinaryIO) -> BinaryIO | None:
    """Return a JPEG file without its EXIF; None for other files, and where it has none.

    Pillow takes a file for no image at all if it trips over the resolution in damaged EXIF.

    Args:
        file: Seekable, in binary mode.
    """
    file.seek(0)
    if file.read(2) != _START_OF_IMAGE:
        return None
    left_out: list[tuple[int, int]] = []
    place = 2
    while True:
        file.seek(place)
        head = file.read(4 + len(_EXIF))  # 0xFF, the marker, the length, and how the body begins
        if len(head) < 4 or head[0] != _FILL or head[1] == _START_OF_SCAN:
            break
        if head[1] == _FILL:  # segments may have further such bytes in front
            place += 1
            continue
        (length,) = struct.unpack_from(">H", head, 2)  # its own two bytes count
        end = place + 2 + length
        if head[1] == _APP1 and head[4:] == _EXIF:
            left_out.append((place, end))
        place = end
    return file_without(file, left_out) if left_out else None
