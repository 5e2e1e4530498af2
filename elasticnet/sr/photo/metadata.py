"""EXIF, XMP, orientation and DPI of an image that Pillow has opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import ExifTags, Image

JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"  # begins the segment of a JPEG that holds XMP

JPEG_PROFILE = b"ICC_PROFILE\0"  # begins the segments that hold a colour profile

X_RESOLUTION, Y_RESOLUTION, XMP = 282, 283, 700  # tags of TIFF, as Pillow numbers them
RESOLUTION_UNIT, NO_UNIT = 296, 1
UPRIGHT = 1  # the orientation of an image that lies as it is stored
MAX_DPI = 1e6  # more is no resolution but a damaged file

# Tags that say how a TIFF file stores its pixels, its profile and its XMP; the output has its own.
_STRUCTURE_TAGS = frozenset(
    [
        *range(254, 260),  # kind of page, width, height, bits, compression
        262,  # photometric interpretation
        266,  # fill order
        273,  # where strips begin
        *range(277, 285),  # samples a pixel, rows a strip, lengths, least and largest, resolution
        296,  # unit of resolution
        301,  # transfer function
        *range(317, 326),  # predictor, white point, primaries, colour map, halftone hints, tiles
        330,  # further directories
        *range(332, 335),  # inks
        338,  # what extra samples are
        339,  # sample format
        347,  # JPEG tables
        *range(512, 522),  # old JPEG
        *range(529, 533),  # YCbCr
        XMP,
        33723,  # IPTC
        34377,  # Photoshop's blocks
        34675,  # colour profile
        37724,  # Photoshop's layers
    ]
)
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>))([1-8])")


class Exif(NamedTuple):
    """What EXIF says of a photograph.

    Attributes:
        data: What describes the photograph, with the orientation reset; empty if there is nothing.
        orientation: 1 to 8, or None if it does not say.
    """

    data: bytes
    orientation: int | None


def read_exif(image: Image.Image, notes: list[str]) -> Exif:
    """Return an image's EXIF without what describes the file rather than the photograph.

    Args:
        image: As Pillow opened it.
        notes: Gets a line if damaged EXIF was left out.
    """
    try:
        return _read_exif(image)
    except Exception as error:  # damaged tags make Pillow raise nearly every built-in type
        notes.append(f"damaged EXIF was left out ({first_line(error)})")
        return Exif(b"", None)


def _read_exif(image: Image.Image) -> Exif:
    found = image.getexif()
    kept = Image.Exif()
    for tag, value in found.items():
        if tag not in _STRUCTURE_TAGS:
            kept[tag] = value
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if part in kept:
            tags: Mapping[int, Any] = found.get_ifd(part)
            kept[part] = {tag: value for tag, value in tags.items() if tag != ExifTags.IFD.Interop}
    orientation = kept.get(ExifTags.Base.Orientation)
    if orientation is not None:
        kept[ExifTags.Base.Orientation] = UPRIGHT
    data = kept.tobytes() if len(kept) else b""
    return Exif(data, orientation if orientation in range(1, 9) else None)


def take_xmp(image: Image.Image) -> bytes:
    """Return an image's XMP packet and take it away from Pillow; empty if there is none.

    Args:
        image: As Pillow opened it. Pillow before 11 keeps the XMP of TIFF and JPEG where it stands.
    """
    packets: list[Any] = [
        image.info.pop("xmp", None),
        image.info.pop("XML:com.adobe.xmp", None),
        tiff_tags(image).get(XMP),
    ]
    segments: list[tuple[str, bytes]] = getattr(image, "applist", [])  # of a JPEG
    for marker, body in segments:
        if marker == "APP1" and body.startswith(JPEG_XMP):
            packets.append(body.removeprefix(JPEG_XMP))
    for packet in packets:
        if packet:
            return packet.encode() if isinstance(packet, str) else bytes(packet)
    return b""


def orientation_in(xmp: bytes) -> int | None:
    """Return the orientation that an XMP packet names, or None.

    Args:
        xmp: The packet.
    """
    found = _XMP_ORIENTATION.search(xmp)
    return None if found is None else int(found[2])


def reset_orientation(xmp: bytes) -> bytes:
    """Return an XMP packet in which the photograph is upright.

    Args:
        xmp: The packet.
    """
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return dots per inch, (horizontal, vertical), or None if the file does not say.

    Args:
        image: Not loaded yet. Of a TIFF file that lies on its side the numbers are turned as its
            pixels will be.
    """
    try:
        horizontal, vertical = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if image.format == "TIFF":
        tags = tiff_tags(image)
        if X_RESOLUTION not in tags or Y_RESOLUTION not in tags:
            return None  # Pillow makes 1 of an absent resolution
        if tags.get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
            horizontal, vertical = vertical, horizontal
    if not (0 < horizontal < MAX_DPI and 0 < vertical < MAX_DPI):
        return None
    return horizontal, vertical


def note_damaged_profile(image: Image.Image, notes: list[str]) -> None:
    """Say that a JPEG has a colour profile of which Pillow has found only a part.

    Args:
        image: As Pillow opened it.
        notes: Gets the line.
    """
    if image.info.get("icc_profile"):
        return
    segments: list[tuple[str, bytes]] = getattr(image, "applist", [])  # of a JPEG
    for marker, body in segments:
        if marker == "APP2" and body.startswith(JPEG_PROFILE):
            notes.append("a damaged colour profile was left out")
            return


def note_resolution_without_unit(image: Image.Image, notes: list[str]) -> None:
    """Say that pixels are not square, or that a resolution has no unit: neither is kept.

    Args:
        image: As Pillow opened it.
        notes: Gets the line.
    """
    ratio = _resolution_without_unit(image)
    if ratio is None:
        return
    horizontal, vertical = ratio
    if horizontal != vertical:
        notes.append(
            f"its pixels are not square (resolution {horizontal:g} by {vertical:g}, without a "
            "unit), and this was left out"
        )
    elif horizontal > 1:  # 1 by 1 says nothing
        notes.append(f"a resolution of {horizontal:g} without a unit was left out")


def _resolution_without_unit(image: Image.Image) -> tuple[float, float] | None:
    """The horizontal and vertical numbers; None if there are none, or if they have a unit."""
    info: Mapping[Any, Any] = image.info
    if "aspect" in info:  # of a PNG
        return info["aspect"]
    if info.get("jfif_unit") == 0:
        return info["jfif_density"]
    tags = tiff_tags(image)
    if tags.get(RESOLUTION_UNIT) == NO_UNIT and X_RESOLUTION in tags and Y_RESOLUTION in tags:
        try:
            return float(tags[X_RESOLUTION]), float(tags[Y_RESOLUTION])
        except (TypeError, ValueError, ZeroDivisionError):
            return None
    return None


def tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF file; empty for any other.

    Args:
        image: As Pillow opened it.
    """
    return getattr(image, "tag_v2", {})


def first_line(error: Exception) -> str:
    """Return what an error says in one line, or its type if it says nothing.

    Args:
        error: Any.
    """
    return (str(error) or type(error).__name__).splitlines()[0]
