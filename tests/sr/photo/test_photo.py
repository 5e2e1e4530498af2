"""Reading photographs: every mode without loss, orientation once, metadata, limits and refusals."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
from hypothesis import given
from PIL import Image, TiffImagePlugin

from elasticnet.sr.photo import ImageError, Photo, read_photo
from elasticnet.sr.photo.reading import HAS_AVIF
from photo_files import exif_bytes, gray_profile, packed_gray_png, png_bytes, srgb_profile

COLOR = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
GRAY = COLOR[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (4, 5, 4), dtype=np.uint16)
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
# Newer versions of Pillow read such TIFF files: gray, 8 bits, its alpha is associated (1).
READS_MULTIPLIED_GRAY = (b"II", 1, (1,), 1, (8, 8), (1,)) in TiffImagePlugin.OPEN_INFO
# Pillow reads AVIF since version 11.3.
LAST_FORMATS = "JPEG 2000, QOI or AVIF" if HAS_AVIF else "JPEG 2000 or QOI"


def saved(image: Image.Image, format: str, **options: Any) -> Photo:
    file = io.BytesIO()
    image.save(file, format, **options)
    return read_photo(file)


def assert_holds(photo: Photo, samples: np.ndarray) -> None:
    """The photograph has these samples (h, w), or (h, w, c) with alpha last where c is even."""
    samples = samples.reshape(*samples.shape[:2], -1)
    alpha = samples[..., -1] if samples.shape[2] % 2 == 0 else None
    colors = samples if alpha is None else samples[..., :-1]
    assert photo.pixels.dtype == samples.dtype.newbyteorder("=")
    np.testing.assert_array_equal(photo.pixels, colors[..., 0] if colors.shape[2] == 1 else colors)
    if alpha is None:
        assert photo.alpha is None
    else:
        assert photo.alpha is not None
        np.testing.assert_array_equal(photo.alpha, alpha)
        assert photo.alpha.dtype == photo.pixels.dtype


# --- pixels


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "BMP"])
def test_8_bit_color(format: str) -> None:
    photo = saved(
        Image.fromarray(COLOR), format, **({"lossless": True} if format == "WEBP" else {})
    )
    assert_holds(photo, COLOR)
    assert photo.format == format
    assert (photo.exif, photo.xmp, photo.icc, photo.notes) == (b"", b"", b"", ())


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_gray_stays_gray(format: str) -> None:
    assert_holds(saved(Image.fromarray(GRAY), format), GRAY)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_bilevel_is_black_and_white(format: str) -> None:
    photo = saved(Image.fromarray(GRAY > 100), format)
    assert_holds(photo, (GRAY > 100).astype(np.uint8) * 255)


def test_palettes_become_rgb_and_their_transparency_alpha() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([1, 2, 3, 40, 50, 60, 255, 0, 7])
    colors = np.array([[[1, 2, 3], [40, 50, 60]], [[255, 0, 7], [40, 50, 60]]], dtype=np.uint8)
    assert_holds(saved(image, "PNG"), colors)
    assert_holds(saved(image, "GIF"), colors)
    alpha = np.array([[255, 0], [255, 0]], dtype=np.uint8)
    assert_holds(saved(image, "PNG", transparency=1), np.dstack([colors, alpha]))
    levels = np.array([[9, 80], [200, 80]], dtype=np.uint8)
    assert_holds(saved(image, "PNG", transparency=bytes([9, 80, 200])), np.dstack([colors, levels]))


@pytest.mark.parametrize("channels", [2, 4])
def test_8_bit_alpha_with_the_colors_behind_it(channels: int) -> None:
    samples = (DEEP[..., :channels] >> 8).astype(np.uint8)
    samples[0, 0, -1] = 0
    assert_holds(saved(Image.fromarray(samples), "PNG"), samples)
    assert_holds(saved(Image.fromarray(samples), "TIFF"), samples)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_key_color_becomes_alpha(dtype: type) -> None:
    samples = DEEP.astype(dtype)
    largest = np.iinfo(dtype).max
    alpha = np.full((4, 5), largest, dtype)
    alpha[1, 2] = 0
    key = samples[1, 2].astype(">u2")
    photo = read_photo(io.BytesIO(png_bytes(samples[..., :3], ((b"tRNS", key[:3].tobytes()),))))
    assert_holds(photo, np.dstack([samples[..., :3], alpha]))
    photo = read_photo(io.BytesIO(png_bytes(samples[..., :1], ((b"tRNS", key[:1].tobytes()),))))
    np.testing.assert_array_equal(
        photo.alpha, np.where(samples[..., 0] == samples[1, 2, 0], 0, largest)
    )


@pytest.mark.parametrize(
    ("bits", "row", "gray"),
    [
        (1, 0b1100_0000, [255, 255, 0, 0]),
        (2, 0b00_01_10_11, [0, 85, 170, 255]),
        (4, 0x07_8F, [0, 119, 136, 255]),
    ],
)
def test_a_key_of_few_bits_has_the_units_of_the_file(bits: int, row: int, gray: list[int]) -> None:
    packed = [row.to_bytes(2 if bits == 4 else 1, "big")]
    for index, key in enumerate([gray_level * (2**bits - 1) // 255 for gray_level in gray]):
        photo = read_photo(io.BytesIO(packed_gray_png(packed, width=4, bits=bits, key=key)))
        assert photo.pixels.tolist() == [gray]
        assert photo.alpha is not None
        expected = [0 if level == gray[index] else 255 for level in gray]
        assert photo.alpha.tolist() == [expected]


def test_bits_of_a_key_beyond_the_depth_are_masked() -> None:
    """PNG specification, 11.3.1.1; some writers leave other bits than 0 there."""
    packed = packed_gray_png([b"\x07\x8f"], width=4, bits=4, key=0x37)
    gray = read_photo(io.BytesIO(packed))
    assert gray.alpha is not None
    assert gray.alpha.tolist() == [[255, 0, 255, 255]]
    key = struct.pack(">3H", *(int(value) | 0x0100 for value in COLOR[1, 2]))
    color = read_photo(io.BytesIO(png_bytes(COLOR, ((b"tRNS", key),))))
    assert color.alpha is not None
    assert np.argwhere(color.alpha == 0).tolist() == [[1, 2]]


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_16_bit_png_keeps_every_bit(channels: int, height: int, width: int, seed: int) -> None:
    samples = np.random.default_rng(seed).integers(
        0, 65536, (height, width, channels), dtype=np.uint16
    )
    assert_holds(read_photo(io.BytesIO(png_bytes(samples))), samples)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiff_keeps_every_bit(
    channels: int, order: Any, predictor: bool, compression: str | None, tmp_path: Path
) -> None:
    samples = DEEP[..., :channels].squeeze()
    options: dict[str, Any] = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    options |= {"photometric": "minisblack" if channels == 1 else "rgb", "rowsperstrip": 3}
    options |= {
        "byteorder": order,
        "compression": compression,
        "predictor": bool(predictor and compression),
    }
    tifffile.imwrite(tmp_path / "deep.tif", samples, **options)
    assert_holds(read_photo(tmp_path / "deep.tif"), samples)
    assert_holds(read_photo(io.BytesIO((tmp_path / "deep.tif").read_bytes())), samples)


def test_16_bit_tiff_of_odd_kinds(tmp_path: Path) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, DEEP[..., 0], photometric="miniswhite")
    assert_holds(read_photo(path), 65535 - DEEP[..., 0])
    tifffile.imwrite(path, DEEP, photometric="rgb", extrasamples=["unspecified"])
    assert_holds(read_photo(path), DEEP[..., :3])
    tifffile.imwrite(path, np.tile(DEEP[..., :3], (8, 8, 1)), photometric="rgb", tile=(16, 16))
    assert_holds(read_photo(path), np.tile(DEEP[..., :3], (8, 8, 1)))


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (
            np.moveaxis(DEEP[..., :3], 2, 0),
            {"planarconfig": "separate"},
            "16-bit colour in separate planes",
        ),
        # Pillow reads these two without a word: with another alpha, and in other colours. Older
        # versions have no mode for the first.
        (
            np.moveaxis(COLOR[..., :2], 2, 0),
            {"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib"},
            "(8-bit colour in separate planes|a TIFF file in gray, 2 samples a pixel of 8 bits)",
        ),
        (
            np.moveaxis(COLOR, 2, 0),
            {"photometric": "cielab", "planarconfig": "separate"},
            "8-bit colour in separate planes",
        ),
        (DEEP, {"extrasamples": ["assocalpha"]}, "16-bit samples of the kind RGBa;16"),
        (DEEP, {"photometric": "separated"}, "16-bit samples of the kind CMYK;16"),
        (
            DEEP[..., 0].astype(np.int16),
            {"photometric": "minisblack"},
            "16 bits per channel that are signed integers",
        ),
        (
            DEEP[..., 0].astype(np.uint32),
            {"photometric": "minisblack"},
            "32 bits per channel; save it with 8 or 16",
        ),
        (
            DEEP[..., 0].astype(np.float32),
            {"photometric": "minisblack"},
            "32 bits per channel; save it with 8 or 16",
        ),
    ],
)
def test_what_pillow_would_cut_short_is_refused(
    tmp_path: Path, samples: Any, options: Any, message: str
) -> None:
    tifffile.imwrite(tmp_path / "odd.tif", samples, **{"photometric": "rgb", **options})
    with pytest.raises(ImageError, match=rf"cannot read image .*odd\.tif: {message}"):
        read_photo(tmp_path / "odd.tif")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (DEEP[..., :3].astype(np.float32), "32 bits per channel; save it with 8 or 16"),
        (DEEP[..., :3].astype(np.uint32), "32 bits per channel; save it with 8 or 16"),
        (DEEP[..., :2], "a TIFF file in gray, 2 samples a pixel of 16 bits"),
    ],
)
def test_whole_tiff_files_that_pillow_has_no_mode_for(
    tmp_path: Path, samples: np.ndarray, message: str
) -> None:
    photometric = "rgb" if samples.shape[2] == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "odd.tif", samples, photometric=photometric, planarconfig="contig")
    with pytest.raises(ImageError, match=rf"cannot read image .*odd\.tif: {message}"):
        read_photo(tmp_path / "odd.tif")


def test_a_jpeg_whose_exif_pillow_fails_at_is_read_without_it() -> None:
    """A resolution of one byte in the place of a fraction: Pillow takes the file for no image."""
    resolution, unit, byte, rational = 282, 296, 1, 5
    entry = struct.pack(">HHL", resolution, rational, 1)
    exif = Image.Exif()
    exif[resolution] = 72.0
    exif[unit] = 2
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "JPEG", exif=exif.tobytes())
    whole = file.getvalue()
    damaged = whole.replace(entry, struct.pack(">HHL", resolution, byte, 1))
    assert damaged != whole
    photo = read_photo(io.BytesIO(damaged))
    np.testing.assert_array_equal(photo.pixels, read_photo(io.BytesIO(whole)).pixels)
    assert photo.notes == ("damaged EXIF was left out",)
    assert photo.exif == b""


@pytest.mark.parametrize("photometric", ["rgb", "separated"])
def test_separate_planes_of_8_bits_are_read(tmp_path: Path, photometric: str) -> None:
    samples = COLOR if photometric == "rgb" else np.dstack([COLOR, GRAY])
    options: dict[str, Any] = {"photometric": photometric, "compression": "zlib"}
    tifffile.imwrite(tmp_path / "together.tif", samples, **options)
    planes = np.moveaxis(samples, 2, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, planarconfig="separate", **options)
    together = read_photo(tmp_path / "together.tif")
    assert_holds(read_photo(tmp_path / "planes.tif"), together.pixels)


def test_gray_that_is_multiplied_by_alpha(tmp_path: Path) -> None:
    samples = np.array([[[50, 100], [0, 0], [200, 255]]], np.uint8)
    path = tmp_path / "multiplied.tif"
    tifffile.imwrite(path, samples, photometric="minisblack", extrasamples=["assocalpha"])
    if not READS_MULTIPLIED_GRAY:
        with pytest.raises(ImageError, match="a TIFF file in gray, 2 samples a pixel of 8 bits"):
            read_photo(path)
        return
    photo = read_photo(path)
    assert photo.alpha is not None
    assert photo.alpha.tolist() == [[100, 0, 255]]
    assert photo.pixels.tolist() == [[50 * 255 // 100, 0, 200]]


def test_a_damaged_tag_of_a_tiff_is_told_from_unusual_samples(tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, COLOR, photometric="rgb", software="a name of some length")
    data = bytearray(path.read_bytes())
    (place,) = struct.unpack_from("<L", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, place)
    bits_per_sample = 258
    for entry in range(place + 2, place + 2 + 12 * num_tags, 12):
        if struct.unpack_from("<H", data, entry) == (bits_per_sample,):
            struct.pack_into("<L", data, entry + 8, 2**30)  # far beyond the end of the file
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"only 2 of the {num_tags} tags of its directory"):
        read_photo(path)


@pytest.mark.parametrize("profile", [b"", b"no profile", srgb_profile()])
def test_cmyk_without_a_usable_profile(profile: bytes) -> None:
    pixels = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    photo = saved(Image.fromarray(pixels, mode="CMYK"), "TIFF", icc_profile=profile or None)
    assert_holds(photo, np.array([[[255, 255, 255], [0, 255, 255], [0, 0, 0]]], dtype=np.uint8))
    assert len(photo.notes) == 1
    assert "plain formula" in photo.notes[0]
    assert photo.icc == b""


def test_cmyk_jpeg_as_cameras_and_programs_write_it() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    photo = saved(image, "JPEG", quality=100)
    assert abs(photo.pixels.astype(int) - [255, 0, 0]).max() <= 2


# --- orientation and metadata


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "TIFF by libtiff"])
def test_orientation_is_applied_once_and_reset(format: str, orientation: int) -> None:
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    options |= {"compression": "tiff_lzw"} if format == "TIFF by libtiff" else {}
    exif = exif_bytes(orientation)
    if format == "TIFF by libtiff":  # Pillow cannot write EXIF's other directories there
        described = Image.Exif()
        described[0x0112] = orientation
        exif = described.tobytes()
    photo = saved(Image.fromarray(COLOR), format.split()[0], exif=exif, dpi=(100, 200), **options)
    assert_holds(photo, np.ascontiguousarray(TURNS[orientation](COLOR)))
    kept = Image.Exif()
    kept.load(photo.exif)
    assert kept.get(0x0112, 1) == 1
    if format != "WEBP":
        assert photo.dpi == pytest.approx((100, 200) if orientation < 5 else (200, 100), abs=0.02)
    turned = saved(Image.fromarray(photo.pixels), "PNG", exif=photo.exif)
    np.testing.assert_array_equal(turned.pixels, photo.pixels)


@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_of_jpeg_and_of_deep_files(tmp_path: Path, orientation: int) -> None:
    gradient = np.add.outer(np.arange(32), 3 * np.arange(48)).astype(np.uint8)
    photo = saved(Image.fromarray(gradient), "JPEG", exif=exif_bytes(orientation), quality=98)
    assert abs(photo.pixels.astype(int) - TURNS[orientation](gradient)).max() <= 3
    exif = exif_bytes(orientation).removeprefix(b"Exif\0\0")
    for channels in (1, 2, 3, 4):
        photo = read_photo(io.BytesIO(png_bytes(DEEP[..., :channels], ((b"eXIf", exif),))))
        assert_holds(photo, np.ascontiguousarray(TURNS[orientation](DEEP[..., :channels])))
    for channels in (1, 3, 4):
        samples = DEEP[..., :channels].squeeze()
        options: dict[str, Any] = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        kind = "minisblack" if channels == 1 else "rgb"
        tag = (274, "H", 1, orientation, False)
        tifffile.imwrite(
            tmp_path / "deep.tif", samples, photometric=kind, extratags=[tag], **options
        )
        assert_holds(
            read_photo(tmp_path / "deep.tif"), np.ascontiguousarray(TURNS[orientation](samples))
        )
    tifffile.imwrite(
        tmp_path / "gray.tif",
        GRAY,
        photometric="minisblack",
        extratags=[(274, "H", 1, orientation, False)],
    )
    assert_holds(read_photo(tmp_path / "gray.tif"), np.ascontiguousarray(TURNS[orientation](GRAY)))


def test_orientation_in_xmp_alone() -> None:
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:D tiff:Orientation="6" dc:title="x"/></x:xmpmeta>'
    )
    photo = saved(Image.fromarray(COLOR), "WEBP", lossless=True, xmp=packet)
    assert_holds(photo, np.ascontiguousarray(np.rot90(COLOR, -1)))
    assert photo.xmp == packet.replace(b"6", b"1")


@pytest.mark.parametrize("tag", [None, 1, 6])
def test_orientation_in_xmp_beside_the_tag(tmp_path: Path, tag: int | None) -> None:
    """The tag rules; it and XMP, as photo editors write both, turn the picture once."""
    packet = b"<r:D><tiff:Orientation>6</tiff:Orientation></r:D>"
    upright = COLOR if tag == 1 else np.ascontiguousarray(np.rot90(COLOR, -1))
    tags: list[Any] = [(700, "B", len(packet), packet, False)] + (
        [] if tag is None else [(274, "H", 1, tag, False)]
    )
    tifffile.imwrite(tmp_path / "both.tif", COLOR, photometric="rgb", extratags=tags)
    exif = b"" if tag is None else exif_bytes(tag)
    for photo in (
        read_photo(tmp_path / "both.tif"),
        saved(Image.fromarray(COLOR), "WEBP", lossless=True, xmp=packet, exif=exif),
        read_photo(
            io.BytesIO(png_bytes(COLOR, ((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),)))
        ),
    )[: 3 if tag is None else 2]:
        assert_holds(photo, upright)
        assert photo.xmp == packet.replace(b"6", b"1")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_is_read(format: str) -> None:
    photo = saved(
        Image.fromarray(COLOR),
        format,
        exif=exif_bytes(),
        icc_profile=srgb_profile(),
        dpi=(300, 300),
    )
    exif = Image.Exif()
    exif.load(photo.exif)
    assert exif[0x010F] == "Maker"
    assert exif.get_ifd(0x8769)[0x829A] == 0.25
    assert exif.get_ifd(0x8825)[1] == "N"
    assert not exif.keys() & {256, 257, 258, 259, 273, 279, 282, 34675}
    assert photo.icc == srgb_profile()
    assert photo.dpi == (None if format == "WEBP" else pytest.approx((300, 300), abs=0.01))
    assert photo.notes == ()


def test_a_profile_of_another_color_space_is_left_out_and_said() -> None:
    photo = saved(Image.fromarray(COLOR), "TIFF", icc_profile=gray_profile())
    assert photo.icc == b""
    assert photo.notes == ("a colour profile for GRAY was left out",)
    assert saved(Image.fromarray(GRAY), "TIFF", icc_profile=gray_profile()).icc == gray_profile()


def test_a_damaged_profile_of_a_jpeg_is_left_out_and_said() -> None:
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "JPEG", icc_profile=srgb_profile())
    data = bytearray(file.getvalue())
    count = data.index(b"ICC_PROFILE\0") + 13
    data[count] = 2  # of which one is there
    photo = read_photo(io.BytesIO(bytes(data)))
    assert photo.icc == b""
    assert photo.notes == ("a damaged colour profile was left out",)


def test_damaged_exif_is_left_out_and_said() -> None:
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"\xff" * 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo = saved(Image.fromarray(COLOR), "PNG", exif=b"Exif\0\0XXXX")
        assert_holds(photo, COLOR)
        assert photo.exif == b""
        assert "damaged EXIF was left out" in photo.notes[0]
        assert_holds(saved(Image.fromarray(COLOR), "PNG", exif=damaged), COLOR)


# --- limits and refusals


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_animations_and_pages_are_refused(tmp_path: Path, format: str) -> None:
    frames = [Image.fromarray(np.full((3, 4, 3), value, dtype=np.uint8)) for value in (10, 200, 90)]
    frames[0].save(tmp_path / "moving", format, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"moving: it holds 3 frames or pages, .*split it first"):
        read_photo(tmp_path / "moving")


def test_of_a_jpeg_with_more_pictures_the_first_is_read() -> None:
    frames = [Image.new("RGB", (16, 8), color) for color in ("red", "blue")]
    photo = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100)
    assert abs(photo.pixels.astype(int) - [255, 0, 0]).max() <= 2
    assert photo.notes == ("the first of 2 pictures was read",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"not an image", f"not a PNG, JPEG, WebP, TIFF, GIF, BMP, PPM, {LAST_FORMATS} image"),
    ],
)
def test_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"cannot read image .*bad\.png: {reason}"):
        read_photo(tmp_path / "bad.png")
    with pytest.raises(ImageError, match=f"cannot read image standard input: {reason}"):
        read_photo(io.BytesIO(content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        read_photo(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError):
        read_photo(tmp_path)


def test_the_content_decides_and_not_the_extension(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "really.jpg", "PNG")
    assert_holds(read_photo(tmp_path / "really.jpg"), COLOR)
    Image.fromarray(COLOR).save(tmp_path / "other.png", "PCX")
    with pytest.raises(ImageError, match=r"other\.png: not a PNG"):
        read_photo(tmp_path / "other.png")


def test_pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO(png_bytes(np.zeros((30, 40, 1), np.uint8)))
    with pytest.raises(
        ImageError, match="1,200 pixels are more than the limit of 1,199; --max-pixels 1200"
    ):
        read_photo(file, max_pixels=1199)
    assert read_photo(file, max_pixels=1200).size == (30, 40)
    for limit in (599, 601):  # Pillow raises from twice its limit on, and warns from its limit on
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(
            ImageError, match=f"1,200 pixels are more than the limit of {limit}; --max-pixels 1200"
        ):
            read_photo(file)
        assert read_photo(file, max_pixels=1200).size == (30, 40)
        assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_photo(file).size == (30, 40)


def with_segment(marker: int, body: bytes) -> io.BytesIO:
    """A JPEG with a segment behind its first marker."""
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "JPEG")
    data = file.getvalue()
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body
    return io.BytesIO(data[:2] + segment + data[2:])


PHOTOSHOP = b"Photoshop 3.0\0" + b"8BIM"  # how a segment begins, and its first block
MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"


@pytest.mark.parametrize(
    ("marker", "body", "note"),
    [
        (0xED, PHOTOSHOP + bytes([4, 4, 0, 0, 0, 0, 0, 2, 28, 2]), "IPTC was left out"),
        (0xED, PHOTOSHOP + bytes([4, 13, 0, 0, 0, 0, 0, 2, 0, 30]), None),  # another block
        (0xFE, b"by hand", "a comment was left out"),
        (0xE1, MORE_XMP + b"A" * 32 + bytes(8), "the part of XMP beyond 64 KB was left out"),
    ],
)
def test_texts_of_a_jpeg_that_are_not_kept_are_noted(
    marker: int, body: bytes, note: str | None
) -> None:
    expected = () if note is None else (note,)
    assert read_photo(with_segment(marker, body)).notes == expected


def test_iptc_of_a_tiff_is_noted(tmp_path: Path) -> None:
    undefined, iptc = 7, 33723
    tags = [(iptc, undefined, 5, b"\x1c\x02\x50\0\0", True)]
    tifffile.imwrite(tmp_path / "a.tif", COLOR, photometric="rgb", extratags=tags, metadata=None)
    assert read_photo(tmp_path / "a.tif").notes == ("IPTC was left out",)


def test_a_resolution_that_is_no_number_is_none(tmp_path: Path) -> None:
    """0 / 0, as some writers leave it, is not two different numbers."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, COLOR, photometric="rgb", resolution=(37, 37), resolutionunit="none", metadata=None
    )
    resolution = struct.pack("<LL", 37, 1)
    data = path.read_bytes()
    assert data.count(resolution) == 2
    path.write_bytes(data.replace(resolution, bytes(8)))
    photo = read_photo(path)
    assert photo.dpi is None
    assert photo.notes == ()
