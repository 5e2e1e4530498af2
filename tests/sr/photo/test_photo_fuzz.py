"""Over 500 damaged image files through the reader and the whole command: no crash, no hang, no
partial output.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from elasticnet import save
from elasticnet.cli import main
from elasticnet.sr import asrn
from elasticnet.sr.photo import ImageError, read_photo
from photo_files import exif_bytes, png_bytes, srgb_profile

EACH = 75  # damaged files of every kind of image


def pictures() -> dict[str, bytes]:
    """Small images of every format and of the modes that take different ways through the reader."""
    generator = np.random.default_rng(0)
    samples = generator.integers(0, 65536, (9, 11, 4), dtype=np.uint16)
    small = (samples >> 8).astype(np.uint8)
    exif = exif_bytes(6, width=11, height=9)

    def saved(image: Image.Image, format: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, format, **options)
        return file.getvalue()

    deep_tiff = io.BytesIO()
    tifffile.imwrite(
        deep_tiff, samples, photometric="rgb", extrasamples=["unassalpha"], compression="zlib"
    )
    color, clear, gray = (Image.fromarray(small[..., part]) for part in (slice(3), slice(4), 0))
    metadata = {"exif": exif, "icc_profile": srgb_profile()}
    return {
        "color.png": saved(color, "PNG", dpi=(72, 72), **metadata),
        "deep.png": png_bytes(samples, ((b"eXIf", exif.removeprefix(b"Exif\0\0")),)),
        "palette.png": saved(color.quantize(7), "PNG", transparency=1),
        "color.jpg": saved(color, "JPEG", **metadata),
        "cmyk.jpg": saved(color.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(gray, "JPEG", progressive=True),
        "clear.webp": saved(clear, "WEBP", **metadata),
        "lossless.webp": saved(color, "WEBP", lossless=True, exact=True),
        "plain.tif": saved(clear, "TIFF", exif=exif, dpi=(72, 72)),
        "packed.tif": saved(color, "TIFF", compression="tiff_lzw"),
        "deep.tif": deep_tiff.getvalue(),
        "palette.gif": saved(color.quantize(7), "GIF", transparency=1),
        "color.bmp": saved(color, "BMP"),
        "gray.bmp": saved(gray, "BMP"),
    }


def damaged(data: bytes, name: str, generator: np.random.Generator) -> bytes:
    """One way of damaging a file: bits, bytes, cuts, insertions, repeats, sizes in the header,
    chunks.
    """
    content = bytearray(data)
    place = int(generator.integers(len(content)))
    match int(generator.integers(8)):
        case 0:  # single bits
            for position in generator.integers(len(content), size=generator.integers(1, 9)):
                content[position] ^= 1 << int(generator.integers(8))
        case 1:  # a cut, also of everything
            del content[place:]
        case 2:  # noise
            content[place : place + 16] = generator.bytes(16)
        case 3:  # something in between
            content[place:place] = generator.bytes(int(generator.integers(1, 40)))
        case 4:  # something missing
            del content[place : place + int(generator.integers(1, 40))]
        case 5:  # a number of the header, or a count or an offset of a directory
            position = int(generator.integers(min(64, len(content) - 4)))
            kind = "<I" if generator.integers(2) else ">I"
            value = int(
                generator.choice([0, 1, 2, 255, 65535, 30_000, 2**31 - 1, 2**31, 2**32 - 1])
            )
            struct.pack_into(kind, content, position, value)
        # whole PNGs: another header, or a chunk that does not belong
        case 6 if name.endswith(".png"):
            if generator.integers(2):
                fields = [int(generator.choice([0, 1, 11, 5000, 2**31])) for _ in range(2)]
                fields += [
                    int(generator.integers(17)),
                    int(generator.integers(8)),
                    *(0, 0, int(generator.integers(3))),
                ]
                content[16:29] = struct.pack(">IIBBBBB", *fields)
                content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
            else:
                kind = bytes(
                    generator.choice(
                        [b"acTL", b"fcTL", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"pHYs", b"PLTE"]
                    )
                )
                body = generator.bytes(int(generator.integers(40)))
                content[33:33] = (
                    struct.pack(">I", len(body))
                    + kind
                    + body
                    + struct.pack(">I", zlib.crc32(kind + body))
                )
        case _:  # a part twice
            content[place:place] = content[max(0, place - 50) : place + 50]
    return bytes(content)


CASES = [(name, seed) for name in pictures() for seed in range(EACH)]


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 500
    assert {name.rpartition(".")[2] for name, _ in CASES} == {
        "png",
        "jpg",
        "webp",
        "tif",
        "gif",
        "bmp",
    }


def damaged_files(name: str) -> list[bytes]:
    data = pictures()[name]
    generators = (np.random.default_rng([seed, *name.encode()]) for seed in range(EACH))
    return [damaged(data, name, generator) for generator in generators]


@pytest.mark.parametrize("name", list(pictures()))
def test_damaged_files_are_read_or_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The reader returns a whole photograph or raises ImageError of one line; nothing else is
    printed or warned of.
    """
    ends: Counter[str] = Counter()
    for content in damaged_files(name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            photo, message = None, ""
            try:
                photo = read_photo(io.BytesIO(content), max_pixels=1_000_000)
            except ImageError as error:
                message = str(error)
            ends["refused" if photo is None else "read"] += 1
            if photo is None:
                assert message.startswith("cannot read image standard input: ")
                assert "\n" not in message
            else:
                assert photo.pixels.dtype in (np.uint8, np.uint16)
                assert photo.pixels.shape[:2] == photo.size
                assert photo.pixels.shape[2:] in ((), (3,))
                assert photo.alpha is None or photo.alpha.shape == photo.size
                assert not any("\n" in note for note in photo.notes)
    assert ends["refused"] > 5
    assert ends["read"] > 0
    # libtiff prints; the command keeps it quiet
    assert name.endswith(".tif") or capfd.readouterr().err == ""


@pytest.mark.parametrize("name", list(pictures()))
def test_damaged_files_through_the_command(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of them: every file is either upscaled whole or named; the status says so; nothing
    else is left.
    """
    torch.manual_seed(0)
    save(asrn(2, num_blocks=1, channels=8), tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    os.mkdir("in")
    for seed, content in enumerate(damaged_files(name)):
        Path("in", f"{seed:03}-{name}").write_bytes(content)
    options = ["--weights", "net.safetensors", "--format", "png", "--max-pixels", "20000"]
    assert main(["upscale", "in", "-o", "out", *options]) == 1
    lines = capfd.readouterr().err.splitlines()
    summary = next(line for line in lines if "images could not be upscaled:" in line)
    before_summary = lines[: lines.index(summary)]
    named = [line for line in before_summary if line.startswith("elasticnet: ")]
    written = sorted(os.listdir("out"))
    assert len(named) + len(written) == EACH
    for output in written:
        assert not any(Path(output).stem in line for line in named)
        read_photo(Path("out", output))
    assert not any("Traceback" in line or "Warning" in line for line in lines)
    unnamed = [line for line in lines if "in/" not in line and "out/" not in line]
    assert unnamed[0] == f"elasticnet: {len(named)} of {EACH} images could not be upscaled:"
    assert unnamed[1:] == ([f"  and {len(named) - 5} more, named above"] if len(named) > 5 else [])


@pytest.mark.parametrize("name", list(pictures()))
def test_every_file_that_is_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    whole = pictures()[name]
    for fraction in (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.85):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(ImageError, match=rf"cannot read image .*{name}: ."):
            read_photo(tmp_path / name)
