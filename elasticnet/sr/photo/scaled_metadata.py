"""Metadata that speak of pixels, fitted to an enlarged photograph or left out with a note."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from elasticnet.sr.photo.metadata import first_line, packed_exif
from elasticnet.sr.photo.photograph import Photo

# Tags of GeoTIFF (OGC 19-008, 7.1): where pixels lie on the ground.
PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, GEO_KEYS = 33550, 33922, 34264, 34735
RASTER_TYPE_KEY, PIXEL_IS_POINT = 1025, 2

# Tags of EXIF that count pixels.
FOCAL_PLANE_X_RESOLUTION = 0xA20E
FOCAL_PLANE_RESOLUTIONS = (FOCAL_PLANE_X_RESOLUTION, 0xA20F)  # pixels for a unit of the sensor
SUBJECT_PLACES = (0x9214, 0xA214)  # where the subject is, and how large

# Tags that are left out, as they tell sizes in ways of their own.
DESCRIPTION = 270
_LEFT_OUT = {
    50844: "the camera model of a satellite (RPC)",
    33560: "the metadata of a microscope",  # Olympus
    33628: "the metadata of a microscope",  # MetaMorph, four tags
    33629: "the metadata of a microscope",
    33630: "the metadata of a microscope",
    33631: "the metadata of a microscope",
    34118: "the metadata of a microscope",  # Zeiss
    34412: "the metadata of a microscope",  # Zeiss LSM
    34680: "the metadata of a microscope",  # FEI, two tags
    34682: "the metadata of a microscope",
    50838: "the metadata of ImageJ",
    50839: "the metadata of ImageJ",
    50719: "the crop of a DNG",
    50720: "the crop of a DNG",
    50829: "the crop of a DNG",
}
_DESCRIPTIONS_OF_PIXELS = {  # how an image description begins, and what it is then
    "<?xml": "a description in XML (such as OME)",
    "<OME": "a description in XML (such as OME)",
    "ImageJ=": "the description of ImageJ",
    "SCIFIO=": "the description of ImageJ",
    '{"shape"': "the description of tifffile",
}

# Properties of XMP that are the size of the image, and those that count pixels in it.
_WIDTHS = (b"tiff:ImageWidth", b"exif:PixelXDimension")
_HEIGHTS = (b"tiff:ImageLength", b"exif:PixelYDimension")
_COUNTS = rb"GPano:\w+Pixels"  # of panoramas
_RESOLUTIONS = rb"exif:FocalPlane[XY]Resolution"
_SUBJECT = re.compile(rb"<(exif:Subject(?:Area|Location))\b.*?</\1>", re.S)
_PLACES = re.compile(
    rb"<(mwg-rs:Regions|MP:RegionInfo|exif:Subject(?:Area|Location))\b(?:[^>]*/>|.*?</\1>)", re.S
)
# Places of pictures and videos that stand behind a JPEG: gain maps of HDR, motion photographs.
_BEHIND = re.compile(
    rb"\s(?:hdrgm:|G?Camera:(?:MotionPhoto|MicroVideo))\w*\s*=\s*(?:\"[^\"]*\"|'[^']*')"
    rb"|<(hdrgm:\w+|G?Camera:(?:MotionPhoto|MicroVideo)\w*|G?Container:Directory)\b"
    rb"(?:[^>]*/>|.*?</\1>)",
    re.S,
)
_REGIONS = re.compile(rb"<mwg-rs:AppliedToDimensions.*?(?:/>|</mwg-rs:AppliedToDimensions>)", re.S)


class Factors(NamedTuple):
    """How many times as long the sides of a photograph have become.

    The two differ where a side was rounded to whole pixels.

    Attributes:
        across: Of the width.
        down: Of the height.
    """

    across: float
    down: float

    def of_place(self, index: int) -> float:
        """Return the factor of a number in a list of places: x, y, width, height, and so on.

        Args:
            index: Of the number in its list, from 0.
        """
        return self.down if index % 2 else self.across


def fitted_metadata(photo: Photo, factors: Factors) -> Photo:
    """Return an enlarged photograph whose metadata speak of its own pixels.

    Args:
        photo: With pixels already enlarged, and the metadata of the smaller one.
        factors: How many times as long each side has become.
    """
    notes: list[str] = []
    exif = photo.exif
    if exif:
        try:
            exif = _fitted_exif(exif, factors, notes)
        except Exception as error:  # damaged tags make Pillow raise nearly every built-in type
            notes.append(f"damaged EXIF was left out ({first_line(error)})")
            exif = b""
    height, width = photo.size
    xmp = _BEHIND.sub(b"", photo.xmp)
    if xmp != photo.xmp:
        notes.append(
            "what XMP says of a gain map or a video behind the photograph was left out, as they are"
        )
    xmp = _fitted_xmp(xmp, width, height, factors.across)
    return replace(photo, exif=exif, xmp=xmp, notes=(*photo.notes, *notes))


def without_places(data: bytes, notes: list[str]) -> bytes:
    """Return EXIF without what names places in pixels, for a photograph that is turned upright.

    Args:
        data: As it was read; may be empty.
        notes: Gets a line if something was left out.
    """
    if not data:
        return data
    exif = Image.Exif()
    exif.load(data)
    details = _details_of(exif)
    found = [tag for tag in (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION) if tag in exif]
    found_details = [tag for tag in SUBJECT_PLACES if tag in details]
    if not found and not found_details:
        return data
    for tag in found:
        del exif[tag]
    for tag in found_details:
        del details[tag]
    if found_details:
        exif[ExifTags.IFD.Exif] = details
    notes.append("places in pixels in EXIF were left out, as the photograph was turned upright")
    return packed_exif(exif)


def xmp_without_places(xmp: bytes, notes: list[str]) -> bytes:
    """Return XMP without regions and subjects, for a photograph that is turned upright.

    Args:
        xmp: The packet; may be empty.
        notes: Gets a line if something was left out.
    """
    without = _PLACES.sub(b"", xmp)
    if without != xmp:
        notes.append("regions and subjects in XMP were left out, as the photograph was turned")
    return without


def _fitted_exif(data: bytes, factors: Factors, notes: list[str]) -> bytes:
    """EXIF with all that counts pixels multiplied; the same bytes if nothing does."""
    exif = Image.Exif()
    exif.load(data)
    changed = _fit_ground(exif, factors)
    left_out: list[str] = []
    for tag, meaning in _LEFT_OUT.items():
        if tag in exif:
            del exif[tag]
            left_out.append(meaning)
    description = str(exif.get(DESCRIPTION, ""))
    for start, meaning in _DESCRIPTIONS_OF_PIXELS.items():
        if description.lstrip().startswith(start):
            del exif[DESCRIPTION]
            left_out.append(meaning)
            break
    for meaning in dict.fromkeys(left_out):  # each once
        notes.append(f"{meaning} was left out: it speaks of the pixels of the smaller image")
    details = _details_of(exif)
    if _fit_details(details, factors):
        exif[ExifTags.IFD.Exif] = details
        changed = True
    return packed_exif(exif) if changed or left_out else data


def _details_of(exif: Image.Exif) -> dict[int, Any]:
    """EXIF's own directory; asking for one that is absent would make an empty one."""
    if ExifTags.IFD.Exif not in exif:
        return {}
    return dict(exif.get_ifd(ExifTags.IFD.Exif))


def _fit_details(details: dict[int, Any], factors: Factors) -> bool:
    """Multiply what counts pixels in EXIF's own directory; whether anything does."""
    changed = False
    for tag in FOCAL_PLANE_RESOLUTIONS:
        if tag in details:
            factor = factors.across if tag == FOCAL_PLANE_X_RESOLUTION else factors.down
            details[tag] = float(details[tag]) * factor
            changed = True
    for tag in SUBJECT_PLACES:
        if tag in details:
            details[tag] = _fitted_places(details[tag], factors)
            changed = True
    return changed


def _fitted_places(places: Sequence[float], factors: Factors) -> tuple[int, ...]:
    """Places and lengths in whole pixels of the larger image."""
    fitted: list[int] = []
    for index, value in enumerate(places):
        fitted.append(round(value * factors.of_place(index)))
    return tuple(fitted)


def _fit_ground(exif: Image.Exif, factors: Factors) -> bool:
    """Fit where pixels lie on the ground; whether the file says so."""
    # The middle of the first pixel is 0, not 0.5, where pixels are points.
    origin = 0.5 if _pixels_are_points(exif.get(GEO_KEYS, ())) else 0.0
    if PIXEL_SCALE in exif:
        across, down, up = exif[PIXEL_SCALE]
        exif[PIXEL_SCALE] = (across / factors.across, down / factors.down, up)
    if TIE_POINTS in exif:
        exif[TIE_POINTS] = _fitted_tie_points(exif[TIE_POINTS], factors, origin)
    if TRANSFORMATION in exif:
        exif[TRANSFORMATION] = _fitted_transformation(exif[TRANSFORMATION], factors, origin)
    return any(tag in exif for tag in (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION))


def _pixels_are_points(geo_keys: Sequence[int]) -> bool:
    """Whether the keys, four numbers each (name, place, count, value), say PixelIsPoint."""
    for start in range(0, len(geo_keys), 4):
        if geo_keys[start] == RASTER_TYPE_KEY:
            return geo_keys[start + 3] == PIXEL_IS_POINT
    return False


def _fitted_tie_points(
    points: Sequence[float], factors: Factors, origin: float
) -> tuple[float, ...]:
    """Points of six numbers: column, row, depth, and the place on the ground."""
    fitted = list(points)
    for start in range(0, len(fitted), 6):
        fitted[start] = (fitted[start] + origin) * factors.across - origin
        fitted[start + 1] = (fitted[start + 1] + origin) * factors.down - origin
    return tuple(fitted)


def _fitted_transformation(
    matrix: Sequence[float], factors: Factors, origin: float
) -> tuple[float, ...]:
    """The matrix (4, 4), row by row, from column and row in the image to the ground.

    The old column is (new column + origin) / factor - origin; the same for rows.
    """
    shift_across = origin / factors.across - origin
    shift_down = origin / factors.down - origin
    fitted = list(matrix)
    for start in range(0, 16, 4):
        per_column, per_row = matrix[start], matrix[start + 1]
        fitted[start] = per_column / factors.across
        fitted[start + 1] = per_row / factors.down
        fitted[start + 3] = matrix[start + 3] + shift_across * per_column + shift_down * per_row
    return tuple(fitted)


def _fitted_xmp(xmp: bytes, width: int, height: int, times: float) -> bytes:
    """XMP with the new size, and with panoramas and regions in the new pixels."""

    def enlarged(value: int) -> int:
        return round(value * times)

    def in_new_pixels(found: re.Match[bytes]) -> bytes:
        return _with_numbers(found[0], rb"(?:stDim:[wh]|rdf:li)", enlarged)

    for name in _WIDTHS:
        xmp = _with_numbers(xmp, name, lambda _: width)
    for name in _HEIGHTS:
        xmp = _with_numbers(xmp, name, lambda _: height)
    xmp = _with_numbers(xmp, _COUNTS, enlarged)
    xmp = _with_numbers(xmp, _RESOLUTIONS, enlarged)
    return _SUBJECT.sub(in_new_pixels, _REGIONS.sub(in_new_pixels, xmp))


def _with_numbers(xmp: bytes, name: bytes, change: Callable[[int], int]) -> bytes:
    """XMP in which the numbers of a property are changed, an attribute or an element."""

    def changed(found: re.Match[bytes]) -> bytes:
        return found[1] + b"%d" % change(int(found[2]))

    # Numbers with a decimal point are of another kind; a fraction is changed by its numerator.
    return re.sub(rb"(\b" + name + rb"(?:\s*=\s*[\"']|>\s*))(\d+)(?![\d.])", changed, xmp)
