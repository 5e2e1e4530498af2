"""Writing photographs: exact samples by independent readers, metadata in every format, refusals."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
from hypothesis import given
from PIL import ExifTags, Image

from elasticnet.sr.photo import ImageError, Photo, photograph, read_photo, writing
from elasticnet.sr.photo.scaled_metadata import Factors, fitted_metadata
from elasticnet.sr.photo.writing import check_fits, format_of, write_photo
from elasticnet.sr.resize import imresize
from photo_files import exif_bytes, gray_profile, png_chunks, png_samples, srgb_profile

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">tiff:Orientation="1"</x:xmpmeta>'
FORMATS = ("PNG", "TIFF", "WEBP", "JPEG")


@st.composite
def photos(draw: st.DrawFn) -> Photo:
    """Photographs of any kind: gray or RGB, 8 or 16 bits, with and without alpha, smooth or noisy,
    of any size.
    """
    height, width = draw(st.integers(1, 12), "height"), draw(st.integers(1, 12), "width")
    dtype = draw(st.sampled_from([np.uint8, np.uint16]), "dtype")
    generator = np.random.default_rng(draw(st.integers(0, 99), "seed"))
    largest = draw(st.sampled_from([3, np.iinfo(dtype).max]), "largest")
    samples = generator.integers(0, largest, (height, width, 4), dtype, endpoint=True)
    pixels = samples[..., :3] if draw(st.booleans(), "color") else samples[..., 0]
    return Photo(pixels, samples[..., 3] if draw(st.booleans(), "alpha") else None)


def samples_of(photo: Photo) -> np.ndarray:
    planes = [photo.pixels.reshape(*photo.size, -1)] + (
        [] if photo.alpha is None else [photo.alpha[..., None]]
    )
    return np.concatenate(planes, axis=2)


def written(photo: Photo, format: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    assert write_photo(photo, file, format, **options) == []
    return file


def noise(height: int, width: int, dtype: type = np.uint8, channels: int = 3) -> Photo:
    samples = np.random.default_rng(0).integers(
        0, np.iinfo(dtype).max, (height, width, channels), dtype
    )
    return Photo(samples if channels == 3 else samples[..., 0])


# --- samples


@given(photo=photos(), strip=st.sampled_from([1, 40, 2**22]))
def test_png_by_the_words_of_its_specification(photo: Photo, strip: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photograph, "STRIP_BYTES", strip)
        data = written(photo, "PNG").getvalue()
    np.testing.assert_array_equal(png_samples(data), samples_of(photo))
    if photo.pixels.dtype == np.uint8:
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(data))),
            samples_of(photo).squeeze(2) if samples_of(photo).shape[2] == 1 else samples_of(photo),
        )


@given(photo=photos(), strip=st.sampled_from([1, 40, 2**22]))
def test_tiff_by_tifffile(photo: Photo, strip: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photograph, "STRIP_BYTES", strip)
        file = written(photo, "TIFF")
    file.seek(0)
    with tifffile.TiffFile(file) as opened:
        (page,) = opened.pages
        assert isinstance(page, tifffile.TiffPage)
        np.testing.assert_array_equal(
            page.asarray().reshape(samples_of(photo).shape), samples_of(photo)
        )
        assert page.photometric == (
            tifffile.PHOTOMETRIC.RGB if photo.pixels.ndim == 3 else tifffile.PHOTOMETRIC.MINISBLACK
        )
        assert tuple(page.extrasamples) == (
            () if photo.alpha is None else (tifffile.EXTRASAMPLE.UNASSALPHA,)
        )


@given(photo=photos())
def test_png_and_tiff_come_back(photo: Photo) -> None:
    gray_alpha = (
        photo.pixels.ndim == 2 and photo.alpha is not None and photo.pixels.dtype == np.uint16
    )
    # Pillow reads no 16-bit TIFF of gray and alpha
    for format in ["PNG"] if gray_alpha else ["PNG", "TIFF"]:
        read = read_photo(written(photo, format))
        np.testing.assert_array_equal(samples_of(read), samples_of(photo))
        assert read.pixels.ndim == photo.pixels.ndim


@given(photo=photos())
def test_lossless_webp_comes_back(photo: Photo) -> None:
    if photo.pixels.dtype == np.uint16:
        photo = Photo(
            (photo.pixels >> 8).astype(np.uint8),
            None if photo.alpha is None else photo.alpha.astype(np.uint8),
        )
    read = read_photo(written(photo, "WEBP", lossless=True))
    expected = photo.pixels if photo.pixels.ndim == 3 else np.dstack([photo.pixels] * 3)
    np.testing.assert_array_equal(read.pixels, expected)  # also where alpha hides them
    if photo.alpha is not None and photo.alpha.min() < 255:
        np.testing.assert_array_equal(read.alpha, photo.alpha)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_quality_orders_size_and_error(format: str) -> None:
    rows, columns = np.mgrid[:64, :64]
    photo = Photo(np.dstack([rows * 3, columns * 3, (rows * columns) % 256]).astype(np.uint8))
    sizes, errors = [], []
    for quality in (20, 60, None, 100):
        file = written(photo, format, quality=quality)
        sizes.append(len(file.getvalue()))
        errors.append(float(np.abs(read_photo(file).pixels.astype(float) - photo.pixels).mean()))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_png_is_about_as_small_as_pillows_own() -> None:
    rows, columns = np.mgrid[:200, :300]
    smooth = (
        128
        + 100 * np.sin(rows / 17) * np.cos(columns / 23)
        + np.random.default_rng(0).normal(0, 2, (200, 300))
    )
    photo = Photo(np.dstack([smooth, smooth * 0.9, smooth * 0.8]).clip(0, 255).astype(np.uint8))
    own, pillow = written(photo, "PNG", png_level=6), io.BytesIO()
    Image.fromarray(photo.pixels).save(pillow, "PNG")
    assert len(own.getvalue()) < 1.1 * len(pillow.getvalue())


def test_an_enlarged_photograph_is_about_as_small_at_the_fast_level() -> None:
    photographs = pytest.importorskip("skimage.data")
    pixels = imresize(photographs.astronaut(), 2)
    sizes: dict[int, int] = {}
    for level in (0, 1, 6):
        sizes[level] = len(written(Photo(pixels), "PNG", png_level=level).getvalue())
    assert sizes[1] < 1.1 * sizes[6]
    assert sizes[1] < sizes[0] / 2


# --- metadata


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("gray", [False, True])
def test_metadata_goes_with_the_pixels(format: str, gray: bool) -> None:
    profile = gray_profile() if gray and format != "WEBP" else srgb_profile()  # WebP is RGB always
    exif = exif_bytes(1, width=5, height=4)
    photo = replace(
        noise(24, 36, channels=1 if gray else 3),
        exif=exif,
        xmp=XMP,
        icc=profile,
        dpi=(300.0, 150.0),
    )
    read = read_photo(written(photo, format))
    assert read.icc == profile
    assert read.xmp.rstrip(b"\0") == XMP
    kept = Image.Exif()
    kept.load(read.exif)
    assert (kept[0x010F], kept.get(0x0112, 1)) == ("Maker", 1)
    part = kept.get_ifd(0x8769)
    assert (part[0x829A], part[0x9003]) == (0.25, "2024:05:06 07:08:09")
    assert (part[0xA002], part[0xA003]) == (36, 24)  # its own size now
    assert kept.get_ifd(0x8825)[2] == (48.0, 8.0, 0.0)
    if format != "WEBP":
        assert read.dpi == pytest.approx((300, 150), abs=0.02)
    assert read.notes == ()


def test_dpi_of_webp_is_kept_in_exif() -> None:
    file = written(replace(noise(4, 4), dpi=(300.0, 150.0)), "WEBP")
    assert [Image.open(file).getexif()[tag] for tag in (282, 283, 296)] == [300, 150, 2]


def test_no_metadata_out_of_nothing() -> None:
    assert png_chunks(written(noise(3, 3), "PNG").getvalue()).keys() == {b"IHDR", b"IDAT", b"IEND"}
    for format in FORMATS:
        read = read_photo(written(noise(8, 8), format))
        assert (read.xmp, read.icc, read.dpi) == (b"", b"", None), format
        assert read.exif == b"", format


def test_what_a_jpeg_cannot_hold_is_said() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    photo = replace(noise(8, 8), exif=exif.tobytes(), xmp=b"y" * 70_000)
    file = io.BytesIO()
    assert [note.split()[0] for note in write_photo(photo, file, "JPEG")] == ["EXIF", "XMP"]
    assert (read_photo(file).exif, read_photo(file).xmp) == (b"", b"")


# --- refusals


def test_what_a_format_cannot_hold_is_refused() -> None:
    deep, clear = noise(2, 3, np.uint16), replace(noise(2, 3), alpha=np.full((2, 3), 254, np.uint8))
    for format in ("JPEG", "WEBP"):
        with pytest.raises(
            ImageError, match=f"it has 16 bits per channel and {format} holds 8: write .png or .tif"
        ):
            write_photo(deep, io.BytesIO(), format)
    with pytest.raises(
        ImageError,
        match=r"it has transparency, which JPEG cannot hold: write \.png, \.webp or \.tif",
    ):
        write_photo(clear, io.BytesIO(), "JPEG")
    opaque = replace(clear, alpha=np.full((2, 3), 255, np.uint8))
    assert read_photo(written(opaque, "JPEG")).alpha is None
    with pytest.raises(ImageError, match="16384 pixels on one side, and WEBP holds 16383"):
        check_fits(Photo(np.zeros((1, 8192), np.uint8)), "WEBP", (2, 16384))
    check_fits(Photo(np.zeros((1, 8191), np.uint8)), "WEBP", (2, 16382))
    with pytest.raises(ImageError, match="65504 pixels on one side, and JPEG holds 65500"):
        check_fits(Photo(np.zeros((32752, 1), np.uint8)), "JPEG", (65504, 2))


def test_what_the_encoder_refuses_is_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writing.LARGEST_SIDE, "WEBP", 20_000)
    with pytest.raises(
        ImageError,
        match=r"WEBP cannot hold these 16384x1 pixels \(encoding error 5.*\): write \.png",
    ):
        write_photo(Photo(np.zeros((1, 16384, 3), np.uint8)), io.BytesIO(), "WEBP")


def test_tiff_beyond_four_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Far(io.BytesIO):
        def tell(self) -> int:
            return 2**32 + 1

    with pytest.raises(
        ImageError, match=r"4,294,967,297 bytes are more than a TIFF file holds: write \.png"
    ):
        write_photo(noise(2, 2), Far(), "TIFF")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.png", "PNG"),
        ("b.JPG", "JPEG"),
        ("c.x.jpeg", "JPEG"),
        ("d.webp", "WEBP"),
        ("e.tiff", "TIFF"),
    ],
)
def test_format_by_extension(name: str, format: str) -> None:
    assert format_of(Path("folder") / name) == format


@pytest.mark.parametrize("name", ["a.bmp", "plain", ".png", "a.png.bak"])
def test_no_format_for_an_extension(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name}: no format to write has the extension .*: \.png, \.jpg"
    ):
        format_of(name)


def test_png_header_is_what_it_says() -> None:
    header = png_chunks(written(noise(3, 7, np.uint16), "PNG").getvalue())[b"IHDR"]
    assert struct.unpack(">IIBBBBB", header) == (7, 3, 16, 2, 0, 0, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_names_beyond_ascii_keep_their_bytes_in_exif(format: str) -> None:
    """Cameras write text in UTF-8; Pillow reads Latin-1 and writes question marks."""
    artist, owner = "Jürgen Łukasz".encode(), "名前の人".encode()
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A" * len(artist)
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.CameraOwnerName: "O" * len(owner),
        ExifTags.Base.ExifImageWidth: 5,
        ExifTags.Base.FocalPlaneXResolution: 100.0,
    }
    data = exif.tobytes()
    data = data.replace(b"A" * len(artist), artist).replace(b"O" * len(owner), owner)
    jpeg = io.BytesIO()
    Image.new("RGB", (5, 4)).save(jpeg, "JPEG", exif=data)
    photo = fitted_metadata(read_photo(jpeg), Factors(2, 2))
    with Image.open(written(photo, format)) as image:
        found = image.getexif()
        assert found[ExifTags.Base.Artist].encode("latin-1") == artist
        details = found.get_ifd(ExifTags.IFD.Exif)
        assert details[ExifTags.Base.CameraOwnerName].encode("latin-1") == owner
