"""Write GIF files a frame at a time.

Pillow packs each frame. The file around the frames is written here: Pillow merges equal frames,
leaves out what did not change, and holds all frames until the end. (Graphics Interchange Format,
version 89a.)
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from elasticnet.sr.photo.photograph import Photo

NUM_COLORS = 256
TRANSPARENT_INDEX = 255  # of the palette, where a frame has transparent pixels
SEEN_FROM = 128  # alpha, of 255: GIF knows only transparent and opaque
TICK_MS = 10  # in which durations are counted
MAX_TICKS = 65535
KEEP, CLEAR = 1, 2  # what becomes of a frame before the next one: it stays, or is cleared away
_COLOR_TABLE_FLAG = 0x80
_LOOP_FOR_EVER = 0


@dataclass(frozen=True, eq=False)
class GifFrame:
    """One frame, as large as the animation.

    Attributes:
        pixels: (h, w) or (h, w, 3), uint8.
        alpha: (h, w), uint8, or None for an opaque frame.
        duration_ms: How long it is shown, in milliseconds.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    duration_ms: float


def write_gif(
    frames: Iterable[GifFrame], file: BinaryIO, *, size: tuple[int, int], plays: int
) -> None:
    """Write frames as a GIF, each with a palette of its own.

    The palette of a frame has up to 256 colours: its own if it has no more, and otherwise those
    that median cut chooses, not dithered. Pixels whose alpha is below 128 become transparent, the
    other ones opaque. Durations are rounded to hundredths of a second so that the rounding does not
    add up.

    Args:
        frames: Of one size.
        file: In binary mode.
        size: Height and width of the frames.
        plays: How often the animation is shown; 0 for ever.
    """
    height, width = size
    file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))
    if plays != 1:
        # The extension counts repetitions: what is shown twice is repeated once.
        repetitions = _LOOP_FOR_EVER if plays == 0 else plays - 1
        file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", repetitions, 0))
    shown_ms = 0.0
    shown_ticks = 0
    for frame in frames:
        shown_ms += frame.duration_ms
        ticks = min(MAX_TICKS, round(shown_ms / TICK_MS) - shown_ticks)
        shown_ticks += ticks
        file.write(_frame_bytes(frame, ticks))
    file.write(b"\x3b")


def notes_of_gif(photo: Photo) -> list[str]:
    """Return what a GIF cannot hold of a photograph, a line each.

    Args:
        photo: As it is to be written.
    """
    notes = ["GIF holds up to 256 colours a frame: the others became the nearest of them"]
    if photo.alpha is not None and bool(((photo.alpha > 0) & (photo.alpha < 255)).any()):
        notes.append("half transparent pixels became opaque or transparent, as GIF has no others")
    if photo.exif or photo.xmp or photo.icc or photo.dpi:
        notes.append("EXIF, XMP, colour profile and DPI were left out, as GIF cannot hold them")
    return notes


def _frame_bytes(frame: GifFrame, ticks: int) -> bytes:
    """Graphic control extension, image descriptor, palette and packed pixels of one frame."""
    image, has_transparency = _with_palette(frame)
    packed = io.BytesIO()
    image.save(packed, "GIF", optimize=False, interlace=0)
    palette, data = _palette_and_data(packed.getvalue())
    flags = (CLEAR if has_transparency else KEEP) << 2 | has_transparency
    control = b"\x21\xf9\x04" + struct.pack("<BHBB", flags, ticks, TRANSPARENT_INDEX, 0)
    size_of_palette = (len(palette) // 3 - 1).bit_length() - 1  # 2 ** (n + 1) colours
    place = struct.pack(
        "<HHHHB", 0, 0, image.width, image.height, _COLOR_TABLE_FLAG | size_of_palette
    )
    return control + b"\x2c" + place + palette + data


def _with_palette(frame: GifFrame) -> tuple[Image.Image, bool]:
    """The frame in palette colours, and whether index 255 means transparent in it."""
    colors = np.asarray(Image.fromarray(np.ascontiguousarray(frame.pixels)).convert("RGB"))
    is_hidden = None if frame.alpha is None else frame.alpha < SEEN_FROM  # (h, w)
    has_transparency = is_hidden is not None and bool(is_hidden.any())
    limit = NUM_COLORS - 1 if has_transparency else NUM_COLORS
    indices, palette = _few_colors(colors, limit)
    if has_transparency:
        indices[is_hidden] = TRANSPARENT_INDEX
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette + [0] * (3 * NUM_COLORS - len(palette)))
    return image, has_transparency


def _few_colors(colors: NDArray[np.uint8], limit: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Indices (h, w) of a palette, and the palette: the colours themselves if they are few."""
    numbers = colors.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (h, w)
    distinct, places = np.unique(numbers, return_inverse=True)
    if len(distinct) <= limit:
        palette = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], axis=1)
        return places.reshape(numbers.shape).astype(np.uint8), palette.ravel().tolist()
    quantized = Image.fromarray(colors).quantize(limit, Image.Quantize.MEDIANCUT)
    return np.array(quantized), quantized.getpalette() or []


def _palette_and_data(gif: bytes) -> tuple[bytes, bytes]:
    """The colours and the packed pixels of a GIF of one frame, as Pillow has written it."""
    flags = gif[10]
    start = 13  # behind the header and the logical screen descriptor
    palette = b""
    if flags & _COLOR_TABLE_FLAG:
        palette = gif[start : start + 3 * 2 ** ((flags & 7) + 1)]
        start += len(palette)
    while gif[start] == 0x21:  # an extension: two bytes, then blocks
        start = _end_of_blocks(gif, start + 2)
    flags = gif[start + 9]
    start += 10  # behind the image descriptor
    if flags & _COLOR_TABLE_FLAG:
        palette = gif[start : start + 3 * 2 ** ((flags & 7) + 1)]
        start += len(palette)
    end = _end_of_blocks(gif, start + 1)  # behind the number of bits
    return palette, gif[start:end]


def _end_of_blocks(gif: bytes, start: int) -> int:
    """Where a row of blocks ends: each has its length in front, the last one is empty."""
    while gif[start] != 0:
        start += 1 + gif[start]
    return start + 1
