"""A fault in a PNG's metadata is not a fault of its pixels, and what is left out is said."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.photo import ImageError, read_photo
from elasticnet.sr.photo.writing import write_photo
from photo_files import png_bytes, png_chunks, srgb_profile

COLOR = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
PQ = bytes([9, 16, 0, 1])  # BT.2020, PQ, RGB, full range
ADOBE_GAMMA = struct.pack(">I", 45471)
ADOBE_PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
SRGB_GAMMA = struct.pack(">I", 45455)


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    check = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def with_chunk(added: bytes, *, behind_pixels: bool) -> bytes:
    """The PNG of COLOR with a chunk in front of the pixels or behind them."""
    data = png_bytes(COLOR)
    kind = b"IEND" if behind_pixels else b"IDAT"
    place = data.index(kind) - 4
    return data[:place] + added + data[place:]


def international(keyword: bytes, *, flag: int, text: bytes) -> bytes:
    return keyword + b"\0" + bytes([flag, 0]) + b"\0\0" + text


LARGE = zlib.compress(bytes(2 * 2**20))
UNUSABLE = {
    "zTXt of 2 MB": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "zTXt, unknown method": chunk(b"zTXt", b"Comment\0\x07abc"),
    "zTXt, no separator": chunk(b"zTXt", b"Comment"),
    "zTXt, damaged": chunk(b"zTXt", b"Comment\0\0abc"),
    "iTXt of 2 MB": chunk(b"iTXt", international(b"Comment", flag=1, text=LARGE)),
    "iTXt, no separator": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0"),
    "iTXt, XMP of 2 MB": chunk(b"iTXt", international(b"XML:com.adobe.xmp", flag=1, text=LARGE)),
    "iCCP of 2 MB": chunk(b"iCCP", b"ICC\0\0" + LARGE),
    "iCCP, unknown method": chunk(b"iCCP", b"ICC\0\x01" + zlib.compress(b"abc")),
    "iCCP, cut off": chunk(b"iCCP", b"ICC\0\0" + zlib.compress(bytes(5000))[:10]),
    "iCCP, empty": chunk(b"iCCP", b""),
    "pHYs, short": chunk(b"pHYs", b"\0\0\x0b\x13"),
    "pHYs, empty": chunk(b"pHYs", b""),
    "gAMA, short": chunk(b"gAMA", b"\0"),
    "gAMA, long": chunk(b"gAMA", bytes(5)),
    "sRGB, short": chunk(b"sRGB", b""),
    "cHRM, short": chunk(b"cHRM", bytes(31)),
    "cICP, short": chunk(b"cICP", bytes(3)),
    "tIME, short": chunk(b"tIME", bytes(6)),
}
for wrong in (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"eXIf", b"bKGD", b"prVt"):
    UNUSABLE[f"{wrong.decode()}, wrong CRC"] = chunk(wrong, b"Comment\0abc", crc=1)


@pytest.mark.parametrize("behind_pixels", [False, True])
@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_chunk_is_left_out_and_named(
    tmp_path: Path, name: str, behind_pixels: bool
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(with_chunk(UNUSABLE[name], behind_pixels=behind_pixels))

    photo = read_photo(path)

    np.testing.assert_array_equal(photo.pixels, COLOR)
    np.testing.assert_array_equal(read_rgb(path), COLOR)
    assert len(photo.notes) == 1
    assert name[:4] in photo.notes[0]
    assert "left out" in photo.notes[0]


def test_text_beyond_pillows_memory_is_left_out_in_one_line() -> None:
    text = chunk(b"tEXt", b"Comment\0" + b"a" * 1_000_000) * 70
    photo = read_photo(io.BytesIO(with_chunk(text, behind_pixels=False)))
    np.testing.assert_array_equal(photo.pixels, COLOR)
    assert photo.notes == (
        "text (tEXt) was left out, 70 times: only XMP and EXIF are kept of text",
    )


def test_xmp_is_kept_beside_other_text() -> None:
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    added = chunk(b"tEXt", b"Software\0here")
    added += chunk(b"iTXt", international(b"XML:com.adobe.xmp", flag=0, text=packet))
    photo = read_photo(io.BytesIO(with_chunk(added, behind_pixels=False)))
    assert photo.xmp == packet
    assert len(photo.notes) == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [(b"tRNS", b"\0\x01\0\x02\0\x03"), (b"PLTE", bytes(3))],
)
def test_a_damaged_chunk_that_changes_the_pixels_is_refused(kind: bytes, body: bytes) -> None:
    data = with_chunk(chunk(kind, body, crc=1), behind_pixels=False)
    with pytest.raises(ImageError, match=f"{kind.decode()}.*checksum"):
        read_photo(io.BytesIO(data))


def test_16_bits_are_read_to_the_last_bit_from_a_file_with_a_chunk_left_out() -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    data = png_bytes(deep, ((b"gAMA", b"\0"),))
    np.testing.assert_array_equal(read_photo(io.BytesIO(data)).pixels, deep)


def test_many_pixels_in_many_chunks_come_back(tmp_path: Path) -> None:
    large = np.random.default_rng(2).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / "large.png"
    Image.fromarray(large).save(path)
    data = path.read_bytes()
    assert data.count(b"IDAT") > 3
    behind_header = 8 + 25
    text = chunk(b"tEXt", b"Comment\0" + bytes(100_000))
    end = data.rindex(b"IEND") - 4
    path.write_bytes(data[:behind_header] + text + data[behind_header:end] + text + data[end:])
    np.testing.assert_array_equal(read_photo(path).pixels, large)


@pytest.mark.parametrize(
    "chunks",
    [
        ((b"cICP", PQ),),
        ((b"cICP", PQ), (b"mDCV", bytes(24)), (b"cLLI", bytes(8))),
        ((b"gAMA", ADOBE_GAMMA), (b"cHRM", ADOBE_PRIMARIES)),
        ((b"sRGB", b"\0"), (b"gAMA", SRGB_GAMMA)),
    ],
)
def test_how_colors_are_meant_is_written_again(chunks: tuple[tuple[bytes, bytes], ...]) -> None:
    photo = read_photo(io.BytesIO(png_bytes(COLOR, chunks)))
    file = io.BytesIO()
    assert write_photo(photo, file, "PNG") == []
    written = png_chunks(file.getvalue())
    assert {kind: written[kind] for kind, _ in chunks} == dict(chunks)


def test_hdr_is_said_when_it_is_read() -> None:
    photo = read_photo(io.BytesIO(png_bytes(COLOR, ((b"cICP", PQ),))))
    assert photo.notes == (
        "its colours are BT.2020, PQ (cICP), and the network takes them for sRGB",
    )


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("chunks", "names"),
    [
        (((b"cICP", PQ),), "cICP"),
        (((b"gAMA", ADOBE_GAMMA), (b"cHRM", ADOBE_PRIMARIES)), "gAMA, cHRM"),
        (((b"gAMA", SRGB_GAMMA),), None),
        (((b"sRGB", b"\0"), (b"gAMA", ADOBE_GAMMA)), None),
        (((b"gAMA", ADOBE_GAMMA), (b"iCCP", b"ICC\0\0" + zlib.compress(srgb_profile()))), None),
    ],
)
def test_a_format_that_cannot_hold_the_colors_is_said(
    format: str, chunks: tuple[tuple[bytes, bytes], ...], names: str | None
) -> None:
    photo = read_photo(io.BytesIO(png_bytes(COLOR, chunks)))
    notes = write_photo(photo, io.BytesIO(), format)
    if names is None:
        assert notes == []
    else:
        expected = f"{names} was left out, as {format} cannot hold it: colours will look different"
        assert notes == [expected]


@pytest.mark.parametrize("kind", [b"CgBI", b"JDAT"])
def test_an_unknown_chunk_that_pixels_depend_on_is_refused(kind: bytes) -> None:
    data = with_chunk(chunk(kind, b"abcd"), behind_pixels=False)
    with pytest.raises(ImageError, match=rf"its chunk {kind.decode()} is not known"):
        read_photo(io.BytesIO(data))
