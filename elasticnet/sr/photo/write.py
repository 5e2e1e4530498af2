"""Write photographs atomically: PNG and TIFF in strips, JPEG and WebP by Pillow, with all that
belongs to them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from elasticnet._files import replacing as replacing  # part of this module's interface
from elasticnet.sr.photo.large_array import large_array
from elasticnet.sr.photo.metadata import JPEG_XMP
from elasticnet.sr.photo.photograph import ImageError, Photo

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_LARGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1}
_STRIP = 2**22  # bytes of a strip before compression


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a file name's extension stands for: PNG, JPEG, WEBP or TIFF; ValueError for
    any other.
    """
    extension = Path(path).suffix
    if extension.lower() not in FORMATS:
        raise ValueError(
            f"{os.fspath(path)}: no format to write has the extension {extension!r}: "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[extension.lower()]


def check_fits(photo: Photo, format: str, scale: int = 1) -> None:
    """Raise ImageError when a photograph, enlarged `scale` times, cannot be written in a format
    without loss.

    JPEG holds no transparency, JPEG and WebP hold 8 bits per channel; each format has a largest
    side. A photograph with an alpha channel that is opaque everywhere fits JPEG.
    """
    deepest = photo.pixels.dtype.itemsize * 8
    if format in ("JPEG", "WEBP") and deepest > 8:
        raise ImageError(
            f"it has {deepest} bits per channel and {format} holds 8: write .png or .tif"
        )
    if (
        format == "JPEG"
        and photo.alpha is not None
        and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max
    ):
        raise ImageError("it has transparency, which JPEG cannot hold: write .png, .webp or .tif")
    side = scale * max(photo.size)
    if side > _LARGEST_SIDE[format]:
        raise ImageError(
            f"{side} pixels on one side, and {format} holds {_LARGEST_SIDE[format]}: "
            "write .png or .tif"
        )


def write_photo(
    photo: Photo,
    file: BinaryIO,
    format: str,
    *,
    quality: int | None = None,
    lossless: bool = False,
    folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Write a photograph to a seekable binary file as "PNG", "JPEG", "WEBP" or "TIFF"; returns
    notes of what was lost.

    EXIF (with the new size), XMP, colour profile and DPI go with it; WebP has no place for DPI but
    in EXIF. quality (1 to 100, default 95) is that of JPEG and of WebP, `lossless` makes a lossless
    WebP. PNG and TIFF are compressed by Deflate, a strip at a time, so that a memory-mapped
    photograph of any size needs next to no memory. JPEG and WebP are written by Pillow from 4 bytes
    a pixel, which lie in a nameless file in `folder` (default: where temporary files go) when they
    are more than 512 MB. Raises ImageError when the format cannot hold the photograph
    (`check_fits`).
    """
    check_fits(photo, format)
    exif = _with_size(photo)
    if format == "PNG":
        _write_png(photo, exif, file)
    elif format == "TIFF":
        _write_tiff(photo, exif, file)
    else:
        return _write_by_pillow(
            photo, exif, file, format, 95 if quality is None else quality, lossless, folder
        )
    return []


def _with_size(photo: Photo) -> bytes:
    """The EXIF data with the photograph's own size, where it names one."""
    if not photo.exif:
        return b""
    exif = Image.Exif()
    exif.load(photo.exif)
    part = exif.get_ifd(ExifTags.IFD.Exif)
    sizes = {
        ExifTags.Base.ExifImageWidth: photo.size[1],
        ExifTags.Base.ExifImageHeight: photo.size[0],
    }
    if not sizes.keys() & part.keys():
        return photo.exif
    exif[ExifTags.IFD.Exif] = {
        **part,
        **{tag: value for tag, value in sizes.items() if tag in part},
    }
    return exif.tobytes()


def _strips(photo: Photo) -> Iterator[np.ndarray]:
    """Strips of rows (rows, width, channels), top to bottom, alpha last."""
    height, width = photo.size
    planes = [photo.pixels.reshape(height, width, -1)] + (
        [photo.alpha[..., None]] if photo.alpha is not None else []
    )
    rows = max(
        1, _STRIP // (width * sum(plane.shape[2] for plane in planes) * photo.pixels.dtype.itemsize)
    )
    for top in range(0, height, rows):
        yield np.concatenate([plane[top : top + rows] for plane in planes], axis=2)


def _write_png(photo: Photo, exif: bytes, file: BinaryIO) -> None:
    def chunk(kind: bytes, body: bytes) -> None:
        file.write(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width = photo.size
    bits = photo.pixels.dtype.itemsize * 8
    color_type = (2 if photo.pixels.ndim == 3 else 0) + (4 if photo.alpha is not None else 0)
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    if photo.icc:
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc))
    if photo.dpi:
        chunk(b"pHYs", struct.pack(">IIB", *(round(dots / 0.0254) for dots in photo.dpi), 1))
    if exif:
        chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if photo.xmp:
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + photo.xmp)
    packer = zlib.compressobj(6)
    above: np.ndarray | None = None
    for strip in _strips(photo):
        pixel = strip.shape[2] * strip.dtype.itemsize
        rows = np.ascontiguousarray(strip.astype(strip.dtype.newbyteorder(">"), copy=False)).view(
            np.uint8
        )
        rows = rows.reshape(len(strip), -1)
        filtered = _paeth_filtered(rows, above, pixel)
        above = rows[-1]
        if body := packer.compress(filtered):
            chunk(b"IDAT", body)
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _paeth_filtered(rows: np.ndarray, above: np.ndarray | None, pixel: int) -> bytes:
    """Rows of bytes, each minus PNG's Paeth prediction and with the filter's number 4 in front of
    it.

    Paeth predicts by the left, upper or upper left neighbour, `pixel` bytes away, which is nearest
    to left + upper - upper left (PNG specification, 9.4). On photographs it comes within a few
    percent of the best filter of each row.
    """
    signed = np.zeros((len(rows) + 1, rows.shape[1] + pixel), np.int16)
    signed[1:, pixel:] = rows
    if above is not None:
        signed[0, pixel:] = above
    left, upper, corner = signed[1:, :-pixel], signed[:-1, pixel:], signed[:-1, :-pixel]
    to_left, to_upper = np.abs(upper - corner), np.abs(left - corner)
    to_corner = np.abs(left + upper - 2 * corner)
    predicted = np.where(to_upper <= to_corner, upper, corner)
    predicted = np.where((to_left <= to_upper) & (to_left <= to_corner), left, predicted)
    filtered = np.full((len(rows), rows.shape[1] + 1), 4, np.uint8)
    filtered[:, 1:] = rows - predicted.astype(np.uint8)
    return filtered.tobytes()


def _write_tiff(photo: Photo, exif: bytes, file: BinaryIO) -> None:
    """Little-endian TIFF 6.0 with horizontal differencing; its directory stands in front of the
    strips.
    """
    height, width = photo.size
    samples = (3 if photo.pixels.ndim == 3 else 1) + (photo.alpha is not None)
    rows = max(1, _STRIP // (width * samples * photo.pixels.dtype.itemsize))
    count = -(-height // rows)
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    if exif:
        described = Image.Exif()
        described.load(exif)
        described.pop(ExifTags.Base.Orientation, None)  # upright is what its absence means
        for tag, value in described.items():
            tags[tag] = (
                described.get_ifd(tag)
                if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
                else value
            )
    tags[256], tags[257], tags[258] = width, height, (8 * photo.pixels.dtype.itemsize,) * samples
    tags[259], tags[262], tags[277], tags[278] = (
        8,
        2 if photo.pixels.ndim == 3 else 1,
        samples,
        rows,
    )
    tags[284], tags[317], tags[339] = 1, 2, (1,) * samples
    if photo.alpha is not None:
        tags[338] = 2  # alpha that colours are not multiplied by
    if photo.dpi:
        tags[282], tags[283], tags[296] = *photo.dpi, 2
    if photo.xmp:
        tags[700] = photo.xmp
    if photo.icc:
        tags[34675] = photo.icc

    def directory(places: tuple[int, ...], lengths: tuple[int, ...]) -> bytes:
        """The directory; as long for any places and lengths, because their type is fixed."""
        for tag, values in ((275, places), (279, lengths)):
            tags.tagtype[tag], tags[tag] = 4, values
        packed = bytearray(tags.tobytes(8))
        # Pillow counts tag 273, where strips begin, from elsewhere, and before 11.1 takes only one
        # strip: the places stand under 275, which is free and sorts to the same place, until the
        # directory is packed.
        entry = 2 + 12 * sorted(tags).index(275)
        struct.pack_into("<H", packed, entry, 273)
        return bytes(packed)

    start = 8 + len(directory((0,) * count, (0,) * count))
    start += start % 2
    places, lengths = [], []
    file.write(bytes(start))
    for strip in _strips(photo):
        differences = strip.astype(strip.dtype.newbyteorder("<"))
        differences[:, 1:] -= strip[:, :-1]
        body = zlib.compress(np.ascontiguousarray(differences).tobytes(), 6)
        places.append(file.tell())
        lengths.append(len(body))
        file.write(body + bytes(len(body) % 2))
    if file.tell() > 2**32:
        raise ImageError(f"{file.tell():,} bytes are more than a TIFF file holds: write .png")
    file.seek(0)
    file.write(b"II*\0" + struct.pack("<L", 8) + directory(tuple(places), tuple(lengths)))
    file.seek(0, os.SEEK_END)


def _write_by_pillow(
    photo: Photo,
    exif: bytes,
    file: BinaryIO,
    format: str,
    quality: int,
    lossless: bool,
    folder: str | os.PathLike[str] | None,
) -> list[str]:
    options: dict[str, Any] = {"quality": quality, "icc_profile": photo.icc or None}
    notes = []
    if format == "JPEG":
        # Each of these has to fit one segment of a JPEG file.
        segment = JPEG_XMP + photo.xmp
        if len(exif) > 65533:
            exif = b""
            notes.append("EXIF of more than 64 KB was left out, as JPEG cannot hold it")
        if photo.xmp and len(segment) > 65533:
            notes.append("XMP of more than 64 KB was left out, as JPEG cannot hold it")
        elif photo.xmp:
            options["extra"] = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
        if photo.dpi:
            options["dpi"] = tuple(min(65535, max(1, round(dots))) for dots in photo.dpi)
        if quality >= 90 and photo.pixels.ndim == 3:
            options["subsampling"] = "4:4:4"
    else:
        options |= {"lossless": lossless, "exact": True, "xmp": photo.xmp}
        described = Image.Exif()
        described.load(exif)
        if photo.dpi and 282 not in described:
            described[282], described[283], described[296] = *photo.dpi, 2
            exif = described.tobytes()
    if exif:
        options["exif"] = exif
    image = _pillow_image(photo, format, folder)
    try:
        image.save(file, format, **options)
    except (
        ValueError
    ) as error:  # of WebP: its first partition overflows somewhere above 100 megapixels
        size = f"{image.width}x{image.height}"
        raise ImageError(
            f"{format} cannot hold these {size} pixels ({error}): write .png or .tif"
        ) from error
    return notes


def _pillow_image(photo: Photo, format: str, folder: str | os.PathLike[str] | None) -> Image.Image:
    """The photograph as Pillow encodes it without a copy: gray, or 4 bytes a pixel, mapped to a
    file if large.
    """
    height, width = photo.size
    if photo.pixels.ndim == 2 and format == "JPEG":
        return Image.fromarray(np.ascontiguousarray(photo.pixels))
    mode = "RGBX" if photo.alpha is None or format == "JPEG" else "RGBA"
    canvas = large_array((height, width, 4), np.uint8, folder)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        canvas[band, :, :3] = (
            photo.pixels[band] if photo.pixels.ndim == 3 else photo.pixels[band][..., None]
        )
        canvas[band, :, 3] = 255 if photo.alpha is None or mode == "RGBX" else photo.alpha[band]
    return Image.frombuffer(mode, (width, height), canvas, "raw", mode, 0, 1)
