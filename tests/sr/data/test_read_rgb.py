"""Reading image files of every mode as 8-bit RGB."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
from hypothesis import given
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from elasticnet.sr.data import load_pairs
from elasticnet.sr.data.read_rgb import ImageError, read_rgb
from elasticnet.sr.photo import read_photo

GRAY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
COLOR = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
DEEP_GRAY = np.array([[0, 255, 256, 257], [4660, 32768, 65279, 65535]], dtype=np.uint16)


def deep_png(values: np.ndarray, key: bytes = b"") -> bytes:
    """A 16-bit PNG of (1, w, 1) gray or (1, w, 3) RGB, which Pillow cannot write."""
    _, width, channels = values.shape
    color_type = 0 if channels == 1 else 2
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, 1, 16, color_type, 0, 0, 0)),
        (b"tRNS", key),
        (b"IDAT", zlib.compress(b"\0" + values.astype(">u2").tobytes())),
        (b"IEND", b""),
    ]
    file = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        if kind != b"tRNS" or key:
            check = struct.pack(">I", zlib.crc32(kind + body))
            file += struct.pack(">I", len(body)) + kind + body + check
    return file


def saved(image: Image.Image, path: Path, **options: Any) -> np.ndarray:
    image.save(path, **options)
    return read_rgb(path)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "ppm"])
def test_rgb_is_read_unchanged(tmp_path: Path, extension: str) -> None:
    read = saved(Image.fromarray(COLOR), tmp_path / f"image.{extension}")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, COLOR)


def test_gray_fills_three_channels(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        saved(Image.fromarray(GRAY), tmp_path / "gray.png"), np.stack([GRAY] * 3, axis=2)
    )


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    bits = GRAY > 100
    np.testing.assert_array_equal(
        saved(Image.fromarray(bits), tmp_path / "bits.png")[..., 1], bits * 255
    )


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([1, 2, 3, 40, 50, 60, 255, 0, 7])
    expected = [[[1, 2, 3], [40, 50, 60]], [[255, 0, 7], [40, 50, 60]]]
    np.testing.assert_array_equal(saved(image, tmp_path / "palette.png"), expected)
    # index 1 transparent: white
    np.testing.assert_array_equal(
        saved(image, tmp_path / "hole.png", transparency=1)[:, 1], [[255] * 3, [255] * 3]
    )


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_gray_keeps_the_high_byte(tmp_path: Path, extension: str) -> None:
    read = saved(Image.fromarray(DEEP_GRAY), tmp_path / f"deep.{extension}")
    np.testing.assert_array_equal(read, np.stack([DEEP_GRAY >> 8] * 3, axis=2))


def test_16_bit_copy_of_8_bit_comes_back_exactly(tmp_path: Path) -> None:
    read = saved(Image.fromarray(GRAY.astype(np.uint16) * 257), tmp_path / "deep.png")
    np.testing.assert_array_equal(read[..., 0], GRAY)


def test_16_bit_color_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.array([[[0, 255, 256], [4660, 65279, 65535]]], dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(deep_png(values))
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.png"), values >> 8)


def test_16_bit_gray_in_which_white_is_zero(tmp_path: Path) -> None:
    values = np.array([[0, 257], [40000, 65535]], dtype=np.uint16)
    tifffile.imwrite(tmp_path / "negative.tif", values, photometric="miniswhite")
    read = read_rgb(tmp_path / "negative.tif")
    np.testing.assert_array_equal(read[..., 0], (65535 - values) >> 8)


def test_a_16_bit_key_colour_is_laid_over_white(tmp_path: Path) -> None:
    values = np.array([[[1000], [40000]]], dtype=np.uint16)
    key = struct.pack(">H", 1000)
    (tmp_path / "key.png").write_bytes(deep_png(values, key=key))
    read = read_rgb(tmp_path / "key.png")
    np.testing.assert_array_equal(read, [[[255] * 3, [40000 >> 8] * 3]])


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_broken_exif_does_not_stop_an_image(tmp_path: Path, format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    path = tmp_path / "broken"
    Image.fromarray(COLOR).save(path, format, exif=b"Exif\0\0no TIFF", **options)
    np.testing.assert_array_equal(read_rgb(path), COLOR)


def test_12_bits_are_refused(tmp_path: Path) -> None:
    values = np.array([[0, 4095], [2000, 17]], dtype=np.uint16)
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, values, photometric="minisblack")
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<HHIH", 258, 3, 1, 16))  # BitsPerSample
    struct.pack_into("<H", content, entry + 8, 12)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"deep\.tif: 12 bits per channel; save it with 8 or 16"):
        read_rgb(path)


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"cannot read image {tmp_path}: Is a directory"):
        read_rgb(tmp_path)


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], dtype=np.uint8)
    read = saved(Image.fromarray(pixels), tmp_path / "alpha.png")
    # 0.2 c + 0.8 * 255
    np.testing.assert_array_equal(read[0], [[10, 20, 30], [255, 255, 255], [204, 224, 244]])


def test_gray_with_alpha(tmp_path: Path) -> None:
    read = saved(
        Image.fromarray(np.array([[[7, 255], [7, 0]]], dtype=np.uint8)), tmp_path / "la.png"
    )
    np.testing.assert_array_equal(read, [[[7, 7, 7], [255, 255, 255]]])


def test_cmyk(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    read = saved(Image.fromarray(pixels, mode="CMYK"), tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read, [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]])


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, turn) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        saved(Image.fromarray(COLOR), tmp_path / "turned.png", exif=exif), turn(COLOR)
    )
    deep = GRAY.astype(np.uint16) * 257
    read = saved(Image.fromarray(deep), tmp_path / "deep.png", exif=exif)
    np.testing.assert_array_equal(read[..., 2], turn(GRAY))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_tiff_that_lies_on_its_side(tmp_path: Path, orientation: int, mode: str) -> None:
    """Uncompressed, too, which Pillow would map to memory by the file's name and garble: the same
    as a PNG.
    """
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (37, 21, 3), np.uint8)
    ).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = saved(image, tmp_path / "x.png", exif=exif)
    assert np.array_equal(saved(image, tmp_path / "x.tif", exif=exif), expected)
    assert np.array_equal(
        saved(image, tmp_path / "lzw.tif", exif=exif, compression="tiff_lzw"), expected
    )


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((3, 4, 3), value, dtype=np.uint8)) for value in (10, 200)]
    read = saved(frames[0], tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read, 10)


def test_float_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"float\.tif: 32 bits per channel; save it with 8"):
        saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), tmp_path / "float.tif")


def test_32_bit_samples_are_refused(tmp_path: Path) -> None:
    values = np.array([[0, 70000]], dtype=np.int32)
    with pytest.raises(ImageError, match=r"wide\.tif: 32 bits per channel; save it with 8"):
        saved(Image.fromarray(values), tmp_path / "wide.tif")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_rgb(tmp_path / "absent.png")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_no_image_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot read image .*bad\.png: "):
        read_rgb(tmp_path / "bad.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_every_cut_off_file_is_named(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"cut.{extension}"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        path
    )
    whole = path.read_bytes()
    for fraction in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(ImageError, match=rf"cut\.{extension}"):
            read_rgb(path)


@given(position=st.integers(8, 400), value=st.integers(0, 255))
def test_damaged_png_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "hurt.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(
        path
    )
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    outcome = ""
    try:
        shape = read_rgb(path).shape
        outcome = f"read with {shape[2]} channels"
    except ImageError as error:
        outcome = str(error)
    assert outcome == "read with 3 channels" or "hurt.png" in outcome


# --- notes


def animated(path: Path, frames: int = 2) -> Path:
    """A PNG file of several frames."""
    pictures = [Image.fromarray(np.full((20, 24, 3), 40 * n, np.uint8)) for n in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def test_further_frames_are_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = animated(tmp_path / "a.png", frames=3)
    read_rgb(path)
    assert caplog.messages == [f"{path}: the first of 3 frames or pages was read"]


def test_metadata_that_nobody_uses_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = PngInfo()
    text.add_text("Software", "an editor")
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "a.png", pnginfo=text)
    read_rgb(tmp_path / "a.png")
    assert caplog.messages == []
    (note,) = read_photo(tmp_path / "a.png").notes
    assert "text (tEXt) was left out" in note


def test_a_data_set_s_notes_are_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for number in range(6):
        animated(root / f"{number}.png")
    for scale in (2, 4, 2):
        load_pairs(root, scale, progress=False, cache_dir=tmp_path / "cache")
    said = [message for message in caplog.messages if "frames" in message]
    expected = "the first of 2 frames or pages was read (images: 6; 0, 1, 2, 3, 4, ...)"
    assert said == [f"{root}: {expected}"]


def test_notes_are_kept_beside_what_was_decoded(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    animated(tmp_path / "set" / "a.png")
    load_pairs(tmp_path / "set", 2, progress=False, cache_dir=tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob("index.json")
    noted = json.loads(index.read_text())["notes"]
    assert noted == {"the first of 2 frames or pages was read": ["a"]}
