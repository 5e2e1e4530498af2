"""Formats beside PNG, JPEG, WebP and TIFF: read with all bits, or called what they are."""

from __future__ import annotations

import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.photo import ImageError, read_photo
from elasticnet.sr.photo.bit_depth import bits_in_file
from elasticnet.sr.photo.writing import write_photo
from photo_files import png_chunks, srgb_profile

COLOR = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (16, 20), dtype=np.uint16)
needs_jpeg2000 = pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without it")


def encoded(image: Image.Image, format: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file


@needs_jpeg2000
def test_jpeg_2000_is_read_without_loss() -> None:
    photo = read_photo(encoded(Image.fromarray(COLOR), "JPEG2000"))
    np.testing.assert_array_equal(photo.pixels, COLOR)
    assert photo.notes == ()
    deep = read_photo(encoded(Image.fromarray(DEEP), "JPEG2000"))
    np.testing.assert_array_equal(deep.pixels, DEEP)
    assert deep.notes == ()


@needs_jpeg2000
@pytest.mark.parametrize(("bits", "gray"), [(12, True), (4, True), (4, False)])
def test_jpeg_2000_of_odd_depths_is_refused(bits: int, gray: bool) -> None:
    image = Image.fromarray(DEEP if gray and bits > 8 else COLOR[..., 0] if gray else COLOR)
    data = bytearray(encoded(image, "JPEG2000").getvalue())
    data[data.index(b"\xff\x4f\xff\x51") + 42] = bits - 1
    with pytest.raises(ImageError, match=f"{bits} bits per channel"):
        read_photo(io.BytesIO(bytes(data)))


@needs_jpeg2000
def test_deep_colors_of_jpeg_2000_are_cut_with_a_note() -> None:
    data = bytearray(encoded(Image.fromarray(COLOR), "JPEG2000").getvalue())
    first = data.index(b"\xff\x4f\xff\x51") + 42
    data[first] = data[first + 3] = data[first + 6] = 15
    photo = read_photo(io.BytesIO(bytes(data)))
    assert photo.pixels.dtype == np.uint8
    assert photo.notes[0].startswith("16 bits per channel were read as 8")


@needs_jpeg2000
def test_deep_gray_with_alpha_of_jpeg_2000_is_cut_with_a_note() -> None:
    image = Image.fromarray(COLOR[..., :2])
    assert image.mode == "LA"
    data = bytearray(encoded(image, "JPEG2000").getvalue())
    first = data.index(b"\xff\x4f\xff\x51") + 42
    data[first] = data[first + 3] = 15
    photo = read_photo(io.BytesIO(bytes(data)))
    assert photo.pixels.dtype == np.uint8
    assert photo.notes[0].startswith("16 bits per channel were read as 8")


@needs_jpeg2000
@pytest.mark.parametrize("method", [2, 3])  # a restricted profile, and any
def test_the_colour_profile_of_jpeg_2000_is_kept(method: int) -> None:
    data = encoded(Image.fromarray(COLOR), "JPEG2000").getvalue()
    place = data.index(b"colr") - 4
    (length,) = struct.unpack_from(">I", data, place)
    body = bytes([method, 0, 0]) + srgb_profile()
    box = struct.pack(">I", 8 + len(body)) + b"colr" + body
    changed = bytearray(data[:place] + box + data[place + length :])
    header = changed.index(b"jp2h") - 4
    (header_length,) = struct.unpack_from(">I", changed, header)
    struct.pack_into(">I", changed, header, header_length + len(box) - length)
    photo = read_photo(io.BytesIO(bytes(changed)))
    assert photo.icc == srgb_profile()
    np.testing.assert_array_equal(photo.pixels, COLOR)


@pytest.mark.parametrize("comment", [b"", b"# a comment\n"])
def test_ppm_and_its_depth(comment: bytes) -> None:
    plain = read_photo(io.BytesIO(b"P6\n" + comment + b"20 16\n255\n" + COLOR.tobytes()))
    np.testing.assert_array_equal(plain.pixels, COLOR)
    assert plain.notes == ()
    deep = (COLOR.astype(">u2") * 257).tobytes()
    cut = read_photo(io.BytesIO(b"P6\n" + comment + b"20 16\n65535\n" + deep))
    np.testing.assert_array_equal(cut.pixels, COLOR)
    assert cut.notes[0].startswith("16 bits per channel were read as 8")
    gray = read_photo(
        io.BytesIO(b"P5\n" + comment + b"20 16\n65535\n" + DEEP.astype(">u2").tobytes())
    )
    np.testing.assert_array_equal(gray.pixels, DEEP)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_read_and_more_than_8_bits_are_said() -> None:
    data = encoded(Image.fromarray(COLOR), "AVIF", quality=100, subsampling="4:4:4").getvalue()
    photo = read_photo(io.BytesIO(data))
    assert np.abs(photo.pixels.astype(int) - COLOR).max() <= 4
    assert photo.notes == ()
    deep = data.replace(b"pixi\0\0\0\0\x03\x08", b"pixi\0\0\0\0\x03\x0a")
    assert deep != data
    with Image.open(io.BytesIO(data)) as image:
        assert bits_in_file(image, io.BytesIO(deep)) == 10


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_colours_of_avif_that_are_not_srgb_are_said_and_kept() -> None:
    data = encoded(Image.fromarray(COLOR), "AVIF").getvalue()
    srgb, pq = struct.pack(">HH", 1, 13), struct.pack(">HH", 9, 16)
    assert data.count(b"nclx" + srgb) == 1
    plain = read_photo(io.BytesIO(data))
    hdr = read_photo(io.BytesIO(data.replace(b"nclx" + srgb, b"nclx" + pq)))
    assert plain.notes == ()
    assert hdr.notes == ("its colours are BT.2020, PQ (cICP), and the network takes them for sRGB",)
    file = io.BytesIO()
    write_photo(hdr, file, "PNG")
    assert png_chunks(file.getvalue())[b"cICP"] == bytes([9, 16, 0, 1])
    assert any("cICP was left out" in note for note in write_photo(hdr, io.BytesIO(), "JPEG"))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIC \(HEIF\)"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", r"HEIC \(HEIF\)"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\x01", r"Photoshop \(PSD\)"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_formats_that_are_not_read_are_called_what_they_are(start: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=f"a {name} file, which is not read; save it as PNG"):
        read_photo(io.BytesIO(start + bytes(100)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("by_upscale", [True, False])
def test_a_named_pipe_is_read(tmp_path: Path, by_upscale: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = encoded(Image.fromarray(COLOR), "PNG").getvalue()
    feeder = threading.Thread(target=pipe.write_bytes, args=(data,))
    feeder.start()
    pixels = read_photo(pipe).pixels if by_upscale else read_rgb(pipe)
    feeder.join()
    np.testing.assert_array_equal(pixels, COLOR)
