"""EXIF, XMP, orientation and DPI of an image that Pillow has opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import ExifTags, Image

JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"  # begins the segment of a JPEG that holds XMP

JPEG_PROFILE = b"ICC_PROFILE\0"  # begins the segments that hold a colour profile
JPEG_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"  # begins those of XMP beyond 64 KB
JPEG_PHOTOSHOP = b"Photoshop 3.0\0"  # begins those of Photoshop, in which IPTC is a block
IPTC_BLOCK = b"8BIM\x04\x04"  # Photoshop's name of it
IPTC = 33723  # a tag of TIFF

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
        IPTC,
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
    data = packed_exif(kept) if len(kept) else b""
    return Exif(data, orientation if orientation in range(1, 9) else None)


def packed_exif(exif: Image.Exif) -> bytes:
    """Return EXIF as the bytes of a file, in which all text is what it was.

    Args:
        exif: It is changed: see `plain_text`.
    """
    for tag, value in list(exif.items()):
        exif[tag] = plain_text(value)
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if part in exif:
            tags: Any = exif[part]
            if not hasattr(tags, "items"):  # its place in the file
                tags = exif.get_ifd(part)
            exif[part] = {tag: plain_text(value) for tag, value in tags.items()}
    return exif.tobytes()


def plain_text(value: Any) -> Any:
    """Return the value of a tag as Pillow writes it without loss.

    Pillow reads text as Latin-1, whatever it is, and writes it as ASCII: of a name in UTF-8 nothing
    but question marks would be left.

    Args:
        value: Of any type; only text is changed.
    """
    return _Latin1Text(value) if isinstance(value, str) else value


class _Latin1Text(str):
    """Text that becomes the bytes that it was read from, whatever Pillow asks for."""

    def encode(self, encoding: str = "latin-1", errors: str = "replace") -> bytes:
        return super().encode("latin-1", "replace")


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


def note_what_is_dropped(image: Image.Image, notes: list[str]) -> None:
    """Say which texts of a file are not kept: IPTC, comments, and XMP in further segments.

    Args:
        image: As Pillow opened it.
        notes: Gets the lines.
    """
    has_iptc = IPTC in tiff_tags(image)
    has_more_xmp = False
    segments: list[tuple[str, bytes]] = getattr(image, "applist", [])  # of a JPEG
    for marker, body in segments:
        if marker == "APP13" and body.startswith(JPEG_PHOTOSHOP) and IPTC_BLOCK in body:
            has_iptc = True
        if marker == "APP1" and body.startswith(JPEG_MORE_XMP):
            has_more_xmp = True
    if has_iptc:
        notes.append("IPTC was left out")
    if has_more_xmp:
        notes.append("the part of XMP beyond 64 KB was left out")
    # Every writer of JPEG 2000 leaves its own name there.
    if image.info.get("comment") and image.format != "JPEG2000":
        notes.append("a comment was left out")


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
    if tags.get(RESOLUTION_UNIT) != NO_UNIT or X_RESOLUTION not in tags or Y_RESOLUTION not in tags:
        return None
    try:
        horizontal, vertical = float(tags[X_RESOLUTION]), float(tags[Y_RESOLUTION])
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not (0 < horizontal < MAX_DPI and 0 < vertical < MAX_DPI):  # 0 / 0 is NaN
        return None
    return horizontal, vertical


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
