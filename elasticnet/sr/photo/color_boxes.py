"""What AVIF and JPEG 2000 files say of their colours, and Pillow does not.

Both consist of boxes: a length, a kind of four letters, and a body, which may hold further boxes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

from PIL import ImageFile

ColorChunks = tuple[tuple[bytes, bytes], ...]  # kind and body of chunks as a PNG has them

_HEAD = 8  # bytes: length and kind
_LARGE_HEAD = 16  # with a length of 64 bits behind the kind
_LENGTH_IS_LARGE, _LENGTH_IS_THE_REST = 1, 0
_MAX_HEADER = 2**24  # bytes of a box that is read
_VERSION_AND_FLAGS = 4  # bytes, in front of what some boxes hold (ISO 14496-12, 4.2)

# How the box colr of JPEG 2000 says its colours (ISO 15444-1, I.5.3.3).
_METHODS_OF_PROFILES = (2, 3)
_TO_PROFILE = 3  # bytes: method, precedence, approximation

_UNSPECIFIED = 2  # of ITU-T H.273
_RGB_MATRIX, _FULL_RANGE = 0, 1  # the last two numbers of cICP in a PNG


def add_profile_of_jpeg2000(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    """Give a JPEG 2000 image the colour profile of its file, which Pillow passes over.

    Args:
        image: As Pillow opened it; images of other formats stay as they are.
        file: What it was opened from.
    """
    if image.format != "JPEG2000" or image.info.get("icc_profile"):
        return
    for body in _boxes_of(file, b"jp2h", [b"colr"]):
        if body[:1] and body[0] in _METHODS_OF_PROFILES:
            image.info["icc_profile"] = body[_TO_PROFILE:]
            return


def colors_of_avif(image: ImageFile.ImageFile, file: BinaryIO) -> ColorChunks:
    """Return how the colours of an AVIF file are meant, as the chunk cICP of a PNG says it.

    Args:
        image: As Pillow opened it.
        file: What it was opened from.

    Returns:
        One chunk; none for other formats, where a colour profile takes its place, and where the
        file does not say.
    """
    if image.format != "AVIF" or image.info.get("icc_profile"):
        return ()
    for body in _boxes_of(file, b"meta", [b"iprp", b"ipco", b"colr"]):
        if body[:4] != b"nclx" or len(body) < 8:
            continue
        primaries, transfer = struct.unpack(">HH", body[4:8])
        if _UNSPECIFIED in (primaries, transfer) or max(primaries, transfer) > 255:
            return ()
        return ((b"cICP", bytes([primaries, transfer, _RGB_MATRIX, _FULL_RANGE])),)
    return ()


def _boxes_of(file: BinaryIO, kind: bytes, path: list[bytes]) -> list[bytes]:
    """The bodies of the boxes at the end of a path of kinds, in the first box of a kind.

    A damaged file has none: what is wrong with it is for its reader to say.
    """
    place = file.tell()
    try:
        bodies = [_first_box(file, kind)]
    finally:
        file.seek(place)
    if kind == b"meta":
        bodies = [body[_VERSION_AND_FLAGS:] for body in bodies]
    for inner in path:
        bodies = [box for body in bodies for box in _boxes_in(body, inner)]
    return bodies


def _first_box(file: BinaryIO, wanted: bytes) -> bytes:
    """The body of the first box of a kind; empty if there is none."""
    end = file.seek(0, io.SEEK_END)
    place = 0
    while place + _HEAD <= end:
        file.seek(place)
        head = file.read(_LARGE_HEAD)
        kind, head_length, length = _unpacked_head(head, end - place)
        if length < head_length:
            break
        if kind == wanted:
            file.seek(place + head_length)
            return file.read(min(length - head_length, _MAX_HEADER))
        place += length
    return b""


def _boxes_in(body: bytes, wanted: bytes) -> Iterator[bytes]:
    """The bodies of the boxes of a kind that a body consists of."""
    place = 0
    while place + _HEAD <= len(body):
        kind, head_length, length = _unpacked_head(body[place:], len(body) - place)
        if length < head_length:
            break
        if kind == wanted:
            yield body[place + head_length : place + length]
        place += length


def _unpacked_head(head: bytes, rest: int) -> tuple[bytes, int, int]:
    """Kind, length of the head and length of a box, of which `rest` bytes are left at most."""
    length, kind = struct.unpack_from(">I4s", head)
    if length == _LENGTH_IS_THE_REST:
        return kind, _HEAD, rest
    if length == _LENGTH_IS_LARGE and len(head) >= _LARGE_HEAD:
        (length,) = struct.unpack_from(">Q", head, _HEAD)
        return kind, _LARGE_HEAD, length
    return kind, _HEAD, length
