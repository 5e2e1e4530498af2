"""Of a TIFF file with thumbnails or masks, every reader takes the picture and says so."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.photo import ImageError, read_photo
from photo_files import srgb_profile

DEEP = np.random.default_rng(1).integers(0, 65536, (40, 50, 3), dtype=np.uint16)
COLOR = (DEEP >> 8).astype(np.uint8)
SMALL = COLOR[::4, ::4].copy()
REDUCED, PAGE, MASK, REDUCED_MASK = 1, 2, 4, 5  # of NewSubfileType
NEW_SUBFILE_TYPE, OLD_SUBFILE_TYPE, SUB_DIRECTORIES = 254, 255, 330


def write_pages(path: Path, *pages: tuple[np.ndarray, int], **options: Any) -> None:
    with tifffile.TiffWriter(path) as file:
        for samples, kind in pages:
            photometric = "rgb" if samples.ndim == 3 else "minisblack"
            file.write(samples, photometric=photometric, subfiletype=kind, **options)


@pytest.mark.parametrize("samples", [COLOR, DEEP], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize(
    ("kind", "marked_first"),
    [(REDUCED, False), (REDUCED, True), (MASK, False), (REDUCED_MASK, False)],
)
def test_the_page_that_is_not_marked_is_read_with_a_note(
    tmp_path: Path, samples: np.ndarray, kind: int, marked_first: bool
) -> None:
    path = tmp_path / "pages.tif"
    marked = SMALL if kind == REDUCED else SMALL[..., 0] > 100
    pages = [(samples, 0), (marked, kind)]
    if marked_first:
        pages.reverse()
    write_pages(path, *pages)

    photo = read_photo(path)

    np.testing.assert_array_equal(photo.pixels, samples)
    np.testing.assert_array_equal(read_rgb(path), COLOR)
    number = 2 if marked_first else 1
    assert photo.notes == (
        f"page {number} of 2 was read; 1 marked as thumbnails or masks were left out",
    )


def test_a_mask_that_pillow_has_no_mode_for_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(COLOR, photometric="rgb")
        file.write(COLOR[..., 0] > 100, photometric="mask", subfiletype=MASK)
    np.testing.assert_array_equal(read_photo(path).pixels, COLOR)


def test_pages_of_a_big_tiff(tmp_path: Path) -> None:
    path = tmp_path / "big.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(SMALL, photometric="rgb", subfiletype=REDUCED)
        file.write(DEEP, photometric="rgb")
    np.testing.assert_array_equal(read_photo(path).pixels, DEEP)


def test_a_big_endian_big_tiff_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "big.tif"
    tifffile.imwrite(path, COLOR, bigtiff=True, byteorder=">", photometric="rgb")
    with pytest.raises(ImageError, match=r"big\.tif: a big-endian BigTIFF"):
        read_photo(path)


def test_a_pyramid_is_read_at_its_full_size(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    write_pages(path, (COLOR, 0), (COLOR[::2, ::2], REDUCED), (SMALL, REDUCED))
    assert read_photo(path).size == (40, 50)
    assert read_rgb(path).shape == (40, 50, 3)


def test_a_thumbnail_marked_as_before_1992(tmp_path: Path) -> None:
    path = tmp_path / "old.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(SMALL, photometric="rgb", extratags=[(OLD_SUBFILE_TYPE, 3, 1, 2, True)])
        file.write(COLOR, photometric="rgb")
    np.testing.assert_array_equal(read_photo(path).pixels, COLOR)


def test_nothing_of_a_thumbnail_is_taken_for_the_pictures(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(
            SMALL,
            photometric="rgb",
            subfiletype=REDUCED,
            iccprofile=srgb_profile(),
            resolution=(72, 72),
            resolutionunit=2,
        )
        file.write(COLOR, photometric="rgb", metadata=None)
    photo = read_photo(path)
    assert photo.icc == b""
    assert photo.dpi != (72, 72)


def test_several_pages_that_are_not_marked_are_refused_and_the_first_is_scored(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pages.tif"
    write_pages(path, (SMALL, REDUCED), (COLOR, 0), (COLOR[::-1], PAGE))
    with pytest.raises(ImageError, match=r"pages\.tif: it holds 2 frames or pages"):
        read_photo(path)
    np.testing.assert_array_equal(read_rgb(path), COLOR)


def test_a_single_page_is_read_whatever_it_is_marked_as(tmp_path: Path) -> None:
    path = tmp_path / "level.tif"
    write_pages(path, (COLOR, REDUCED))
    np.testing.assert_array_equal(read_photo(path).pixels, COLOR)


def test_a_raw_file_is_not_scored_on_its_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "raw.dng"
    with tifffile.TiffWriter(path) as file:
        file.write(SMALL, photometric="rgb", subfiletype=REDUCED, subifds=1)
        file.write(COLOR, photometric="rgb")
    for read in (read_photo, read_rgb):
        with pytest.raises(ImageError, match=r"raw\.dng: it holds a thumbnail, .*sub-directory"):
            read(path)


def test_any_page_beyond_the_limit_is_refused_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pages.tif"
    write_pages(path, (SMALL, REDUCED), (COLOR, 0))
    with pytest.raises(ImageError, match="2,000 pixels are more than the limit of 500"):
        read_photo(path, max_pixels=500)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    message = "2,000 pixels are more than the limit of 1,000; .* raise PIL.Image.MAX_IMAGE_PIXELS"
    with pytest.raises(ImageError, match=message):
        read_rgb(path)
    write_pages(path, (COLOR, 0))
    with pytest.raises(ImageError, match=message):
        read_rgb(path)


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (DEEP[..., 0].astype(np.int16), "16 bits per channel that are signed integers"),
        (DEEP.astype(np.int16), "16 bits per channel that are signed integers"),
        (COLOR[..., 0].astype(np.int8), "8 bits per channel that are signed integers"),
        (COLOR.astype(np.float16), "16 bits per channel that are floating-point numbers"),
        (COLOR.astype(np.float32), "32 bits per channel; .*floating-point numbers"),
        (COLOR.astype(np.float64), "64 bits per channel; .*floating-point numbers"),
        (COLOR.astype(np.uint32), "32 bits per channel; save it with 8 or 16"),
    ],
)
def test_samples_of_other_kinds_are_called_what_they_are(samples: np.ndarray, kind: str) -> None:
    file = io.BytesIO()
    photometric = "rgb" if samples.ndim == 3 else "minisblack"
    tifffile.imwrite(file, samples, photometric=photometric)
    with pytest.raises(ImageError, match=kind):
        read_photo(file)


@pytest.mark.parametrize("place", [4, 2**20, 2**32 - 1])
def test_a_place_behind_the_last_page_that_leads_nowhere_is_noted(place: int) -> None:
    file = io.BytesIO()
    color = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    tifffile.imwrite(file, color, photometric="rgb", metadata=None)
    data = bytearray(file.getvalue())
    (directory,) = struct.unpack_from("<L", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, directory)
    next_place = directory + 2 + 12 * num_tags
    assert struct.unpack_from("<L", data, next_place) == (0,)
    struct.pack_into("<L", data, next_place, place)
    photo = read_photo(io.BytesIO(bytes(data)))
    np.testing.assert_array_equal(photo.pixels, color)
    (note,) = photo.notes
    assert note.startswith("what the file calls a further page is none, or damaged")
