"""Metadata that speak of pixels fit the enlarged photograph, or are left out with a note."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from elasticnet.sr.photo import Photo, read_photo
from elasticnet.sr.photo.photograph import ImageError
from elasticnet.sr.photo.reading import decode_photo
from elasticnet.sr.photo.scaled_metadata import Factors, fitted_metadata
from elasticnet.sr.photo.writing import write_photo
from photo_files import png_bytes

COLOR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
DOUBLE, FLOAT_COUNT = 12, {33550: 3, 33922: 6, 34264: 16}
AREA, POINT = 1, 2  # of GTRasterTypeGeoKey


def geo_tiff(raster_type: int | None = None, **tags: Any) -> io.BytesIO:
    """A TIFF with tags of GeoTIFF, by their names below."""
    numbers = {"pixel_scale": 33550, "tie_points": 33922, "transformation": 34264}
    extra: list[tuple[int, int, int, Any, bool]] = []
    for name, values in tags.items():
        extra.append((numbers[name], DOUBLE, len(values), values, True))
    if raster_type is not None:
        keys = (1, 1, 0, 1, 1025, 0, 1, raster_type)
        extra.append((34735, 3, len(keys), keys, True))
    file = io.BytesIO()
    tifffile.imwrite(file, COLOR, photometric="rgb", extratags=extra, metadata=None)
    return file


def enlarged(photo: Photo, scale: int) -> Photo:
    """The photograph with larger pixels, without a network."""
    pixels = photo.pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    large = Photo(pixels, exif=photo.exif, xmp=photo.xmp, notes=photo.notes)
    return fitted_metadata(large, Factors(across=scale, down=scale))


def written_tags(photo: Photo) -> dict[int, Any]:
    file = io.BytesIO()
    write_photo(photo, file, "TIFF")
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        return {tag.code: tag.value for tag in tiff.pages[0].tags}


def ground_of(tags: dict[int, Any], column: float, row: float) -> tuple[float, float]:
    """Where a place in the image lies on the ground, by the words of OGC 19-008.

    Column and row count from the corner of the first pixel, whatever the raster type.
    """
    keys = tags.get(34735, ())
    if len(keys) > 7 and keys[7] == POINT:
        column, row = column - 0.5, row - 0.5
    if 34264 in tags:
        matrix = np.reshape(tags[34264], (4, 4))
        x, y, *_ = matrix @ [column, row, 0, 1]
        return float(x), float(y)
    scale_x, scale_y, _ = tags[33550]
    at_column, at_row, _, x, y, _ = tags[33922][:6]
    return x + (column - at_column) * scale_x, y - (row - at_row) * scale_y


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("raster_type", [None, AREA, POINT])
@pytest.mark.parametrize(
    "tags",
    [
        {"pixel_scale": (10.0, 20.0, 0.0), "tie_points": (0.0, 0.0, 0.0, 5e5, 4e6, 0.0)},
        {"pixel_scale": (10.0, 20.0, 0.0), "tie_points": (3.0, 2.0, 0.0, 5e5, 4e6, 0.0)},
        {"transformation": (8.0, -6, 0, 5e5, -6, -8, 0, 4e6, 0, 0, 0, 0, 0, 0, 0, 1)},
    ],
)
def test_every_place_stays_where_it_is_on_the_ground(
    tags: dict[str, Any], raster_type: int | None, scale: int
) -> None:
    file = geo_tiff(raster_type, **tags)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        before = {tag.code: tag.value for tag in tiff.pages[0].tags}
    after = written_tags(enlarged(read_photo(file), scale))
    assert 34665 not in after  # no empty directory of EXIF
    for column, row in ((0, 0), (8, 6), (2.5, 4)):
        expected = ground_of(before, column, row)
        assert ground_of(after, column * scale, row * scale) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("<?xml version='1.0'?><OME><Pixels SizeX='8' PhysicalSizeX='0.5'/></OME>", "in XML"),
        ("<OME><Pixels SizeX='8'/></OME>", "in XML"),
        ("ImageJ=1.53t\nunit=micron\n", "of ImageJ"),
        ('{"shape": [6, 8, 3]}', "of tifffile"),
    ],
)
def test_descriptions_of_pixels_are_left_out_and_said(description: str, name: str) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, COLOR, photometric="rgb", description=description, metadata=None)
    photo = enlarged(read_photo(file), 2)
    assert len(photo.notes) == 1
    assert name in photo.notes[0]
    assert 270 not in written_tags(photo)


def test_a_plain_description_stays() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, COLOR, photometric="rgb", description="A boat", metadata=None)
    photo = enlarged(read_photo(file), 2)
    assert photo.notes == ()
    assert written_tags(photo)[270] == "A boat"


@pytest.mark.parametrize("tag", [50844, 34118, 34412])
def test_tags_that_tell_sizes_in_their_own_way_are_left_out_and_said(tag: int) -> None:
    file = io.BytesIO()
    extra = [(tag, DOUBLE, 2, (1.0, 2.0), True)]
    tifffile.imwrite(file, COLOR, photometric="rgb", extratags=extra, metadata=None)
    photo = enlarged(read_photo(file), 2)
    assert len(photo.notes) == 1
    assert "was left out: it speaks of the pixels of the smaller image" in photo.notes[0]
    assert tag not in written_tags(photo)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b'tiff:ImageWidth="8" tiff:ImageLength="6"',
            b'tiff:ImageWidth="16" tiff:ImageLength="12"',
        ),
        (b"<exif:PixelXDimension>8<", b"<exif:PixelXDimension>16<"),
        (b"exif:PixelYDimension = '6'", b"exif:PixelYDimension = '12'"),
        (b'GPano:FullPanoWidthPixels="32"', b'GPano:FullPanoWidthPixels="64"'),
        (b"<GPano:CroppedAreaTopPixels>5<", b"<GPano:CroppedAreaTopPixels>10<"),
        (
            b'<mwg-rs:AppliedToDimensions stDim:w="8" stDim:h="6" stDim:unit="pixel"/>',
            b'<mwg-rs:AppliedToDimensions stDim:w="16" stDim:h="12" stDim:unit="pixel"/>',
        ),
        (b'<xmpTPg:MaxPageSize stDim:w="8"/>', b'<xmpTPg:MaxPageSize stDim:w="8"/>'),
        (b'tiff:ImageWidthOfAnother="8"', b'tiff:ImageWidthOfAnother="8"'),
    ],
)
def test_sizes_in_xmp(before: bytes, after: bytes) -> None:
    assert enlarged(Photo(COLOR, xmp=before), 2).xmp == after


def test_what_counts_pixels_in_exif() -> None:
    exif = Image.Exif()
    exif[0x8769] = {0xA20E: 100.5, 0xA20F: 99.0, 0x9214: (3, 2, 2, 1), 0x829A: 0.25}
    photo = enlarged(Photo(COLOR, exif=exif.tobytes()), 2)
    read = Image.Exif()
    read.load(photo.exif)
    details = read.get_ifd(0x8769)
    assert (float(details[0xA20E]), float(details[0xA20F])) == (201.0, 198.0)
    assert details[0x9214] == (6, 4, 4, 2)
    assert float(details[0x829A]) == 0.25


@pytest.mark.parametrize("orientation", [3, 6])
def test_places_in_pixels_do_not_survive_a_turn(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[33550] = (10.0, 10.0, 0.0)
    exif[0x8769] = {0x9214: (3, 2, 2, 1), 0x829A: 0.25}
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "PNG", exif=exif.tobytes())
    photo = read_photo(file)
    assert photo.notes == (
        "places in pixels in EXIF were left out, as the photograph was turned upright",
    )
    read = Image.Exif()
    read.load(photo.exif)
    assert 33550 not in read
    assert list(read.get_ifd(0x8769)) == [0x829A]


# --- what is left out when a file is read


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        ((2, 1), "its pixels are not square (resolution 2 by 1, without a unit)"),
        ((300, 300), "a resolution of 300 without a unit was left out"),
        ((1, 1), None),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_a_resolution_without_a_unit(
    format: str, numbers: tuple[int, int], note: str | None
) -> None:
    file = io.BytesIO()
    if format == "PNG":
        file.write(png_bytes(COLOR, ((b"pHYs", struct.pack(">IIB", *numbers, 0)),)))
    elif format == "TIFF":
        tifffile.imwrite(
            file, COLOR, photometric="rgb", resolution=numbers, resolutionunit=1, metadata=None
        )
    else:
        Image.fromarray(COLOR).save(file, "JPEG")
        data = file.getvalue()
        place = data.index(b"JFIF\0") + 7  # behind the version: unit, two densities
        head = struct.pack(">BHH", 0, *numbers)
        file = io.BytesIO(data[:place] + head + data[place + 5 :])
    notes = read_photo(file).notes
    if note is None:
        assert notes == ()
    else:
        assert len(notes) == 1
        assert notes[0].startswith(note)


ONE_LEFT_OUT = "an extra channel was left out"


def write_tiff(path: Path, channels: int, extra: list[str], dtype: Any) -> np.ndarray:
    """Write an RGB TIFF with these extra channels, and return its samples."""
    samples = np.random.default_rng(1).integers(0, 256, (6, 8, channels)).astype(dtype)
    tifffile.imwrite(path, samples, photometric="rgb", extrasamples=extra, metadata=None)
    return samples


@pytest.mark.parametrize(
    ("dtype", "channels", "extra", "note"),
    [
        (np.uint8, 4, ["unspecified"], ONE_LEFT_OUT),
        (np.uint16, 4, ["unspecified"], ONE_LEFT_OUT),
        (np.uint8, 5, ["unassalpha", "unspecified"], ONE_LEFT_OUT),
        (np.uint8, 5, ["unspecified", "unspecified"], "2 extra channels were left out"),
        (np.uint8, 4, ["unassalpha"], None),
        (np.uint16, 4, ["unassalpha"], None),
    ],
)
def test_extra_channels_of_a_tiff(
    tmp_path: Path, dtype: Any, channels: int, extra: list[str], note: str | None
) -> None:
    path = tmp_path / "x.tif"
    samples = write_tiff(path, channels, extra, dtype)
    photo = read_photo(path)
    assert photo.notes == (() if note is None else (note,))
    np.testing.assert_array_equal(photo.pixels, samples[..., :3])


@pytest.mark.parametrize("extra", [["unassalpha", "unspecified"], ["unspecified", "unspecified"]])
def test_two_extra_channels_of_16_bits_are_refused_by_name(
    tmp_path: Path, extra: list[str]
) -> None:
    path = tmp_path / "x.tif"
    write_tiff(path, 5, extra, np.uint16)
    with pytest.raises(ImageError, match="5 samples a pixel of 16 bits, which is not read"):
        read_photo(path)


@pytest.mark.parametrize("kind", [b"sCAL", b"pCAL", b"oFFs"])
def test_sizes_of_pixels_in_png_are_left_out_and_said(kind: bytes) -> None:
    photo = read_photo(io.BytesIO(png_bytes(COLOR, ((kind, b"\x01" + bytes(8)),))))
    assert len(photo.notes) == 1
    assert kind.decode() in photo.notes[0]


def test_xmp_of_the_subject_and_the_sensor_is_in_new_pixels() -> None:
    xmp = (
        b'<rdf:Description exif:FocalPlaneXResolution="3000/7">'
        b"<exif:FocalPlaneYResolution>41</exif:FocalPlaneYResolution>"
        b"<exif:SubjectArea><rdf:Seq><rdf:li>3</rdf:li><rdf:li>5</rdf:li></rdf:Seq>"
        b"</exif:SubjectArea><dc:subject><rdf:Bag><rdf:li>3</rdf:li></rdf:Bag></dc:subject>"
    )
    fitted = enlarged(Photo(COLOR, xmp=xmp), 2).xmp
    assert fitted == (
        b'<rdf:Description exif:FocalPlaneXResolution="6000/7">'
        b"<exif:FocalPlaneYResolution>82</exif:FocalPlaneYResolution>"
        b"<exif:SubjectArea><rdf:Seq><rdf:li>6</rdf:li><rdf:li>10</rdf:li></rdf:Seq>"
        b"</exif:SubjectArea><dc:subject><rdf:Bag><rdf:li>3</rdf:li></rdf:Bag></dc:subject>"
    )


def test_xmp_of_what_stands_behind_a_jpeg_is_left_out_with_a_note() -> None:
    kept = b'<rdf:Description dc:format="image/jpeg"><dc:rights>me</dc:rights>'
    xmp = (
        b'<rdf:Description dc:format="image/jpeg" GCamera:MicroVideoOffset="4711"'
        b" hdrgm:Version='1.0'><dc:rights>me</dc:rights>"
        b"<Container:Directory><rdf:Seq><rdf:li>a picture</rdf:li></rdf:Seq></Container:Directory>"
    )
    photo = enlarged(Photo(COLOR, xmp=xmp), 2)
    assert photo.xmp == kept
    (note,) = photo.notes
    assert "a gain map or a video behind the photograph was left out" in note
    assert enlarged(Photo(COLOR, xmp=kept), 2).notes == ()


@pytest.mark.parametrize("orientation", [1, 6])
def test_regions_of_a_photograph_that_is_turned_are_left_out(orientation: int) -> None:
    region = (
        b'<mwg-rs:Regions rdf:parseType="Resource"><mwg-rs:RegionList><rdf:Bag><rdf:li>'
        b"a face</rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>"
    )
    kept = b"<dc:title>a photograph</dc:title>"
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "JPEG", exif=exif, xmp=kept + region)
    photo = read_photo(file)
    if orientation == 1:
        assert photo.xmp == kept + region
        assert photo.notes == ()
    else:
        assert photo.xmp == kept
        (note,) = photo.notes
        assert note.startswith("regions and subjects in XMP were left out")


def test_metadata_of_a_data_set_are_not_spoken_of() -> None:
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "JPEG", comment="made by a program")
    assert read_photo(file).notes == ("a comment was left out",)
    file.seek(0)
    assert decode_photo(file, "a.jpg", keeps_metadata=False).notes == ()
