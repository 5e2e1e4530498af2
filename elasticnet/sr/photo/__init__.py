"""Photographs read without loss: 8 and 16 bits, alpha, EXIF, XMP, colour profile and DPI."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile

from elasticnet.sr.data.images import ImageError

READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
# Tags that describe how a TIFF file stores its pixels, its profile and its XMP; the output has its
# own.
_STRUCTURE = {
    *range(254, 260),
    262,
    266,
    273,
    *range(277, 285),
    296,
    301,
    317,
    318,
    319,
    *range(320, 326),
    330,
}
_STRUCTURE |= {
    332,
    333,
    334,
    338,
    339,
    347,
    *range(512, 522),
    529,
    530,
    531,
    532,
    700,
    33723,
    34377,
    34675,
    37724,
}
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"  # begins the segment of a JPEG that holds XMP
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>))([1-8])")
_PIXEL_LIMIT = threading.Lock()


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright photograph and what belongs to it.

    pixels: (height, width) gray or (height, width, 3) RGB, uint8 or uint16, colours not multiplied
    by alpha; alpha: (height, width) of the same dtype, or None. exif (starts with "Exif"), xmp and
    icc are empty where there are none; dpi is (horizontal, vertical). notes say, a line each, what
    the file held and the photograph does not.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes = b""
    xmp: bytes = b""
    icc: bytes = b""
    dpi: tuple[float, float] | None = None
    format: str = "PNG"
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_photo(
    source: str | os.PathLike[str] | BinaryIO, *, max_pixels: int | None = None
) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, GIF or BMP file, told by its content, from a path or a seekable
    binary file.

    - 16 bits per channel stay 16 bits (PNG; TIFF in gray, RGB and RGBA); gray stays gray, bilevel
      and palettes become 8-bit gray and RGB; transparency in a palette or by a key colour becomes
      alpha;
    - CMYK becomes sRGB by its embedded profile, without one by Pillow's plain formula;
    - an EXIF, TIFF or XMP orientation is applied, and reset in what is kept of the metadata;
    - animations and multi-page files are refused; of a JPEG with further pictures behind it the
    first one is read.

    `max_pixels` takes the place of Pillow's limit against decompression bombs,
    `PIL.Image.MAX_IMAGE_PIXELS`. Raises `ImageError`, one line with the file's name, for what
    cannot be read without loss, and OSError as open() does.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _read_named(source, "standard input", max_pixels)
    # Pillow is given the open file, not its name: files that it maps to memory by name come out
    # garbled when they are TIFF, uncompressed, and lie on their side (orientations 5 to 8).
    with open(source, "rb") as file:
        return _read_named(file, os.fspath(source), max_pixels)


def _read_named(file: BinaryIO, name: str, max_pixels: int | None) -> Photo:
    try:
        # Pillow warns of damaged EXIF, of large sizes, of odd palettes; what matters becomes an
        # error or a note.
        with warnings.catch_warnings(), _pixel_limit(max_pixels) as limit:
            warnings.simplefilter("ignore")
            return _read(file, limit)
    except Image.UnidentifiedImageError:
        empty = file.seek(0, os.SEEK_END) == 0
        reason = (
            "it is empty"
            if empty
            else "not a PNG, JPEG, WebP, TIFF, GIF or BMP image, or cut short at its start"
        )
        raise ImageError(f"cannot read image {name}: {reason}") from None
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        raise ImageError(f"cannot read image {name}: {_too_large(pixels, limit or 0)}") from error
    except (
        Exception
    ) as error:  # Pillow's decoders raise nearly every built-in type on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"cannot read image {name}: {reason}") from error


@contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[float]:
    """The limit that holds; Pillow's own is a global, lifted only where a higher one was asked
    for.
    """
    before = Image.MAX_IMAGE_PIXELS
    limit = max_pixels if max_pixels is not None else math.inf if before is None else before
    if before is None or limit <= before:
        yield limit
        return
    with _PIXEL_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield limit
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _too_large(pixels: int, limit: float) -> str:
    return f"{pixels:,} pixels are more than the limit of {limit:,}; --max-pixels {pixels} (max_pixels=) allows them"


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    file.seek(0)
    image = Image.open(file, formats=READABLE)
    assert isinstance(image, ImageFile.ImageFile)
    return image


def _read(file: BinaryIO, limit: float) -> Photo:
    with _open(file) as image:
        if image.width * image.height > limit:
            raise ValueError(_too_large(image.width * image.height, limit))
        frames = getattr(image, "n_frames", 1)
        notes = []
        if frames > 1 and image.format != "MPO":
            raise ValueError(
                f"it holds {frames} frames or pages, and only single images are upscaled: split it first"
            )
        if frames > 1:
            notes.append(f"the first of {frames} pictures was read")
        icc, dpi = image.info.get("icc_profile") or b"", _dpi(image)
        # Pillow turns TIFF files itself when it loads them, by the tag; it is not to see what XMP
        # says as well.
        tags, xmp = getattr(image, "tag_v2", {}), _take_xmp(image)
        turned = tags.get(ExifTags.Base.Orientation, 1) != 1
        if _bits(image) > 8:
            pixels, alpha = _deep_arrays(image, file)
        else:
            image.load()
            plain = image
            if image.mode == "CMYK":
                plain, icc = _cmyk_to_rgb(image, icc, notes)
            pixels, alpha = _arrays(plain)
        if icc and icc[16:20] != (b"GRAY" if pixels.ndim == 2 else b"RGB "):
            notes.append(f"a colour profile for {icc[16:20]!r} was left out")
            icc = b""
        xmp = xmp or _take_xmp(image)  # PNG may have it behind the pixels
        exif, orientation = _exif(image, notes)
        if orientation is None and (said := _XMP_ORIENTATION.search(xmp)):
            orientation = int(said[2])
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
        photo = Photo(pixels, alpha, exif, xmp, icc, dpi, image.format or "", tuple(notes))
    return photo if turned else _turned(photo, orientation or 1)


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits per channel as the file has them."""
    if image.format == "TIFF":
        bits = max(getattr(image, "tag_v2", {}).get(258, (1,)))
        if bits not in (1, 2, 4, 8, 16):
            raise ValueError(f"{bits} bits per channel; save it with 8 or 16")
        return bits
    return 16 if image.format == "PNG" and _raw_mode(image).endswith(";16B") else 8


def _raw_mode(image: ImageFile.ImageFile) -> str:
    arguments: Any = image.tile[0][3]
    return arguments if isinstance(arguments, str) else arguments[0]


def _deep_arrays(
    image: ImageFile.ImageFile, file: BinaryIO
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha of 16 bits.

    Pillow keeps 8 of the 16 bits of colour images: the high bytes. Decoding once more as if the
    byte order were the other one gives the low bytes.
    """
    raw, key = _raw_mode(image), image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    if tags.get(284, 1) == 2 and tags.get(277, 1) > 1:
        raise ValueError(
            "16-bit colour in separate planes; save it with interleaved channels, or as PNG"
        )
    if image.mode.startswith("I;16"):
        deep = np.array(image, dtype=np.uint16)
        if tags.get(262) == 0:  # white is zero, which Pillow leaves to its caller at this depth
            deep = 65535 - deep
    elif raw == "LA;16B":
        pairs = _decoded(file, "RGBA").astype(np.uint16)
        pairs = pairs[..., 0::2] << 8 | pairs[..., 1::2]
        return pairs[..., 0], np.ascontiguousarray(pairs[..., 1])
    elif match := re.fullmatch(r"(RGB[AX]?;16)([BLN])", raw):
        native = {"little": "L", "big": "B"}[sys.byteorder]
        order = native if match[2] == "N" else match[2]
        deep = np.array(image, dtype=np.uint16) << 8
        deep |= _decoded(file, match[1] + {"L": "B", "B": "L"}[order])
    else:
        raise ValueError(
            f"16-bit samples of the kind {raw}; save it as 16-bit gray, RGB or RGBA, or with 8 bits"
        )
    if raw.startswith("RGBX"):
        deep = deep[..., :3]
    if deep.shape[2:] == (4,):
        return deep[..., :3], np.ascontiguousarray(deep[..., 3])
    if key is None:
        return deep, None
    hidden = deep == key if deep.ndim == 2 else (deep == np.asarray(key)).all(axis=2)
    return deep, np.where(hidden, 0, 65535).astype(np.uint16)


def _decoded(file: BinaryIO, raw_mode: str) -> np.ndarray:
    """The image decoded by another of Pillow's raw modes than the one that fits the file."""
    with _open(file) as image:
        tiles = []
        for codec, extents, offset, arguments in image.tile:
            arguments = raw_mode if isinstance(arguments, str) else (raw_mode, *arguments[1:])
            tiles.append((codec, extents, offset, arguments))
        kind = type(image.tile[0])
        image.tile = [kind(*tile) if kind is not tuple else tile for tile in tiles]
        return np.array(image)


def _arrays(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha of 8 bits."""
    if image.mode in ("I", "F"):
        raise ValueError(
            f"samples of mode {image.mode} (32-bit or float) have no defined range; save it with 16 bits"
        )
    gray = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        array = np.array(image.convert("LA" if gray else "RGBA"))
        return array[..., 0] if gray else array[..., :3], np.ascontiguousarray(array[..., -1])
    return np.array(image.convert("L" if gray else "RGB")), None


def _cmyk_to_rgb(image: Image.Image, icc: bytes, notes: list[str]) -> tuple[Image.Image, bytes]:
    if not icc:
        notes.append("CMYK without a colour profile was converted by the plain formula")
        return image.convert("RGB"), b""
    srgb = ImageCms.createProfile("sRGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(
            f"CMYK was converted by the plain formula, as its colour profile is damaged ({error})"
        )
        return image.convert("RGB"), b""
    assert converted is not None
    return converted, ImageCms.ImageCmsProfile(srgb).tobytes()


def _exif(image: Image.Image, notes: list[str]) -> tuple[bytes, int | None]:
    """What describes the photograph, with the orientation reset; and the orientation, None where
    there is none.
    """
    try:
        found, kept = image.getexif(), Image.Exif()
        for tag, value in found.items():
            if tag not in _STRUCTURE:
                kept[tag] = value
        for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if part in kept:
                kept[part] = {
                    tag: value
                    for tag, value in found.get_ifd(part).items()
                    if tag != ExifTags.IFD.Interop
                }
        orientation = kept.get(ExifTags.Base.Orientation)
        if orientation is not None:
            kept[ExifTags.Base.Orientation] = 1
        return (kept.tobytes() if len(kept) else b""), orientation if orientation in range(
            1, 9
        ) else None
    except Exception as error:  # as above: damaged tags make Pillow raise nearly every type
        notes.append(
            f"damaged EXIF was left out ({(str(error) or type(error).__name__).splitlines()[0]})"
        )
        return b"", None


def _take_xmp(image: Image.Image) -> bytes:
    """The XMP packet, taken away from Pillow; Pillow before 11 leaves that of TIFF and JPEG where
    it stands.
    """
    packets = [image.info.pop(key, None) for key in ("xmp", "XML:com.adobe.xmp")]
    packets.append(getattr(image, "tag_v2", {}).get(700))
    segments = [body for marker, body in getattr(image, "applist", []) if marker == "APP1"]
    packets += [body.removeprefix(JPEG_XMP) for body in segments if body.startswith(JPEG_XMP)]
    packet = next(filter(None, packets), b"")
    return packet.encode() if isinstance(packet, str) else bytes(packet)


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch; of a TIFF file that has not been loaded yet, turned as its pixels will be."""
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    tags = getattr(image, "tag_v2", None)
    if tags is not None and not {282, 283} <= tags.keys():
        return None  # Pillow makes 1 of an absent resolution
    if tags is not None and tags.get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
        x, y = y, x
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _turned(photo: Photo, orientation: int) -> Photo:
    """The photograph upright, by the meaning of the EXIF orientations 1 to 8."""
    if orientation == 1:
        return photo
    transposed, flip_rows, flip_columns = {
        2: (False, False, True),
        3: (False, True, True),
        4: (False, True, False),
        5: (True, False, False),
        6: (True, False, True),
        7: (True, True, True),
        8: (True, True, False),
    }[orientation]

    def turn(array: np.ndarray) -> np.ndarray:
        array = array.swapaxes(0, 1) if transposed else array
        return np.ascontiguousarray(array[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])

    alpha = None if photo.alpha is None else turn(photo.alpha)
    dpi = photo.dpi[::-1] if photo.dpi and transposed else photo.dpi
    return replace(photo, pixels=turn(photo.pixels), alpha=alpha, dpi=dpi)
