"""Read photographs of 8 and 16 bits, with alpha, EXIF, XMP, colour profile and DPI.

Two functions come here: `read_photo`, for photographs that are enlarged and written again, and
`elasticnet.sr.data.read_rgb.read_rgb`, for training and benchmarks.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile

from elasticnet.sr.photo.color_boxes import add_profile_of_jpeg2000, colors_of_avif
from elasticnet.sr.photo.jpeg_segments import without_exif
from elasticnet.sr.photo.metadata import (
    UPRIGHT,
    first_line,
    note_damaged_profile,
    note_resolution_without_unit,
    note_what_is_dropped,
    orientation_in,
    read_dpi,
    read_exif,
    reset_orientation,
    take_xmp,
    tiff_tags,
)
from elasticnet.sr.photo.photograph import ImageError, Photo, turned_upright
from elasticnet.sr.photo.png_chunks import without_unusable_chunks
from elasticnet.sr.photo.png_colors import note_of_hdr
from elasticnet.sr.photo.samples import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    SAMPLES_PER_PIXEL,
    Samples,
    read_samples,
    why_samples_are_refused,
)
from elasticnet.sr.photo.scaled_metadata import without_places, xmp_without_places
from elasticnet.sr.photo.silence import without_warnings
from elasticnet.sr.photo.tiff_pages import (
    directories,
    go_to_main_page,
    note_left_out_of_tiff,
    why_directory_is_damaged,
)

HAS_AVIF = find_spec("PIL.AvifImagePlugin") is not None  # since Pillow 11.3
# Pillow's names of the formats that are read.
_ALWAYS_READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "QOI")
READABLE = (*_ALWAYS_READABLE, "AVIF") if HAS_AVIF else _ALWAYS_READABLE
READ_EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".webp", ".tif", ".tiff"),
    *(".gif", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs"),
)
# Images that are not read: they are named, not passed over.
OTHER_EXTENSIONS = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".psd", ".psb", ".xcf", ".exr", ".hdr", ".tga"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"),
    *(".pcx", ".sgi", ".dds", ".pfm", ".pam"),
)
_MAGIC_OF_OTHERS = {  # how files of formats that are not read begin
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop (PSD)",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"gimp xcf": "GIMP (XCF)",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"II\xbc": "JPEG XR",
}
_KINDS_OF_TIFF = {  # by photometric interpretation
    0: "gray in which white is 0",
    1: "gray",
    2: "RGB",
    3: "palette colours",
    4: "a mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "raw samples of a sensor",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_lock_of_pixel_limit = threading.Lock()


def read_photo(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    name: str | None = None,
    max_pixels: int | None = None,
) -> Photo:
    """Read an image file of one of the formats `READABLE`, told by its content.

    - 16 bits per channel stay 16 bits (PNG; TIFF in gray, RGB and RGBA); gray stays gray, bilevel
      and palettes become 8-bit gray and RGB; transparency in a palette or by a key colour becomes
      alpha;
    - CMYK becomes sRGB by its embedded profile, without one by Pillow's plain formula;
    - an EXIF, TIFF or XMP orientation is applied, and reset in what is kept of the metadata;
    - animations and multi-page files are refused; of a JPEG with further pictures behind it the
      first one is read, and of a TIFF the page that is not marked as a thumbnail or mask.

    Args:
        source: A path, also of a pipe, or a file opened in binary mode.
        name: What errors call it. Default: the path, or "standard input" for an open file.
        max_pixels: Takes the place of Pillow's limit against decompression bombs,
            `PIL.Image.MAX_IMAGE_PIXELS`, which is the default.

    Returns:
        The photograph, upright. Its notes say what was left out.

    Raises:
        ImageError: The file cannot be read without loss; one line with its name.
        OSError: It cannot be opened.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _read_quietly(source, name or "standard input", max_pixels)
    # Pillow is given the open file, not its name: files that it maps to memory by name come out
    # garbled when they are TIFF, uncompressed, and lie on their side (orientations 5 to 8).
    with open(source, "rb") as file:
        return _read_quietly(file, name or os.fspath(source), max_pixels)


def _read_quietly(file: BinaryIO, name: str, max_pixels: int | None) -> Photo:
    """`decode_photo` under a limit, without Pillow's warnings of what becomes an error or a note.

    Warnings are silenced here and not in `decode_photo`, because filters of warnings belong to the
    whole process, and a training wants its own.
    """
    with without_warnings(), _pixel_limit(max_pixels) as limit:
        return decode_photo(file, name, max_pixels=limit)


@contextmanager
def _pixel_limit(max_pixels: int | None) -> Generator[float, None, None]:
    """Yield the limit that holds; Pillow's own is lifted inside if a higher one was asked for."""
    pillow_limit = Image.MAX_IMAGE_PIXELS
    if pillow_limit is None:
        yield math.inf if max_pixels is None else max_pixels
        return
    limit = pillow_limit if max_pixels is None else max_pixels
    if limit <= pillow_limit:
        yield limit
        return
    with _lock_of_pixel_limit:  # Pillow's limit is a global
        pillow_limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = limit
        try:
            yield limit
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def decode_photo(
    file: BinaryIO,
    name: str,
    *,
    max_pixels: float = math.inf,
    formats: Sequence[str] = READABLE,
    first_frame: bool = False,
    cmyk_by_profile: bool = True,
    keeps_metadata: bool = True,
) -> Photo:
    """Decode an open image file; every error becomes an ImageError that names it.

    Args:
        file: In binary mode; one that cannot seek, as of a pipe, is read to memory first.
        name: What errors call the file.
        max_pixels: Larger images are refused; Pillow's own limit holds beside it.
        formats: Pillow's names of the formats that are tried.
        first_frame: Whether the first frame of an animation or a multi-page file is read, which is
            refused otherwise.
        cmyk_by_profile: Whether CMYK becomes sRGB by its embedded profile, rather than by Pillow's
            plain formula.
        keeps_metadata: Whether the metadata are used; otherwise notes speak of pixels alone.

    Returns:
        The photograph, upright.

    Raises:
        ImageError: The file cannot be read; one line with the name and the reason.
    """
    notes: list[str] = []
    unread: list[str] = []
    about_metadata = notes if keeps_metadata else unread
    try:
        if not file.seekable():
            file = io.BytesIO(file.read())
        chunks = without_unusable_chunks(file, about_metadata)
        image = _opened(chunks.file, formats, notes)
        with image:
            add_profile_of_jpeg2000(image, chunks.file)
            colors = chunks.colors or colors_of_avif(image, chunks.file)
            about_colors = note_of_hdr(colors)
            if about_colors is not None:
                notes.append(about_colors)
            _check_frames(image, chunks.file, first_frame, notes)
            _check_size(image.width * image.height, max_pixels)
            photo = _decode(image, chunks.file, notes, about_metadata, cmyk_by_profile)
        return replace(photo, png_colors=colors)
    except Image.UnidentifiedImageError:
        reason = _why_unidentified(file, formats)
        raise ImageError(f"cannot read image {name}: {reason}") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, or twice the one above
        pixels = int(re.findall(r"\d+", str(error))[0])
        reason = _too_large(pixels, max_pixels)
        raise ImageError(f"cannot read image {name}: {reason}") from error
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise ImageError(f"cannot read image {name}: {first_line(error)}") from error


def _opened(file: BinaryIO, formats: Sequence[str], notes: list[str]) -> ImageFile.ImageFile:
    """The image as Pillow opens it; a JPEG without its EXIF, if Pillow fails for that."""
    file.seek(0)
    try:
        image = Image.open(file, formats=list(formats))
    except Image.UnidentifiedImageError:
        without = without_exif(file)
        if without is None:
            raise
        image = Image.open(without, formats=list(formats))
        notes.append("damaged EXIF was left out")
    assert isinstance(image, ImageFile.ImageFile)
    return image


def _check_size(pixels: int, max_pixels: float) -> None:
    """Refuse what is too large; not every Pillow looks at other pages than the first."""
    if pixels > _lowest_limit(max_pixels):
        raise ValueError(_too_large(pixels, max_pixels))


def _lowest_limit(max_pixels: float) -> float:
    """The limit that holds: Pillow warns of images above its own, and refuses them above twice."""
    if Image.MAX_IMAGE_PIXELS is None:
        return max_pixels
    return min(max_pixels, 2 * Image.MAX_IMAGE_PIXELS)


def _too_large(pixels: int, max_pixels: float) -> str:
    """What to say of an image beyond the limit; infinity is that of callers without an option."""
    if max_pixels < math.inf:
        remedy = f"--max-pixels {pixels} (max_pixels=) allows them"
    else:
        remedy = "cut the image into smaller ones, or raise PIL.Image.MAX_IMAGE_PIXELS"
    limit = _lowest_limit(max_pixels)
    return f"{pixels:,} pixels are more than the limit of {limit:,}; {remedy}"


def _check_frames(
    image: ImageFile.ImageFile, file: BinaryIO, first_frame: bool, notes: list[str]
) -> None:
    """Refuse animations and pages, unless the first is asked for; take the main picture."""
    if image.format == "TIFF":
        frames = go_to_main_page(image, file, notes)
    else:
        frames = getattr(image, "n_frames", 1)
    if frames == 1:
        return
    if image.format == "MPO":  # a JPEG with previews or a depth map behind it
        notes.append(f"the first of {frames} pictures was read")
    elif first_frame:
        notes.append(f"the first of {frames} frames or pages was read")
    else:
        raise ValueError(
            f"it holds {frames} frames or pages, and only single images are upscaled, and "
            "animations of GIF, APNG and WebP: split it first"
        )


def _decode(
    image: ImageFile.ImageFile,
    file: BinaryIO,
    notes: list[str],
    about_metadata: list[str],
    cmyk_by_profile: bool,
) -> Photo:
    """The photograph of one image that fits, upright."""
    # These three are asked before the image is loaded. Pillow turns TIFF files itself when it loads
    # them, by their tag, and then forgets it; and it is not to see what XMP says as well.
    dpi = read_dpi(image)
    tags = dict(tiff_tags(image))
    is_turned_by_pillow = tags.get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT
    xmp = take_xmp(image)
    samples = read_samples(image, file, notes, cmyk_by_profile=cmyk_by_profile)
    note_damaged_profile(image, about_metadata)
    note_resolution_without_unit(image, about_metadata)
    note_what_is_dropped(image, about_metadata)
    note_left_out_of_tiff(tags, has_alpha=samples.alpha is not None, notes=notes)
    xmp = xmp or take_xmp(image)  # PNG may have it behind the pixels
    exif, orientation = read_exif(image, notes)
    if orientation is None:
        orientation = orientation_in(xmp)
    if is_turned_by_pillow or orientation not in (None, UPRIGHT):
        exif = without_places(exif, about_metadata)
        xmp = xmp_without_places(xmp, about_metadata)
    photo = Photo(
        pixels=samples.pixels,
        alpha=samples.alpha,
        exif=exif,
        xmp=reset_orientation(xmp),
        icc=_fitting_profile(samples, about_metadata),
        dpi=dpi,
        format=image.format or "",
        notes=tuple(notes),
    )
    if is_turned_by_pillow or orientation is None:
        return photo
    return turned_upright(photo, orientation)


def _fitting_profile(samples: Samples, notes: list[str]) -> bytes:
    """The colour profile, unless it is one of another kind of colours."""
    if not samples.icc:
        return b""
    color_space = samples.icc[16:20]  # ICC specification, 7.2.6
    expected = b"GRAY" if samples.pixels.ndim == 2 else b"RGB "
    if color_space != expected:
        name = color_space.decode("latin-1").strip()
        kind = name if name.isalnum() else "an unknown kind of colours"
        notes.append(f"a colour profile for {kind} was left out")
        return b""
    return samples.icc


def _why_unidentified(file: BinaryIO, formats: Sequence[str]) -> str:
    """What to say of a file that Pillow takes for no image."""
    if file.seek(0, os.SEEK_END) == 0:
        return "it is empty"
    reason = _why_unknown_tiff(file)
    if reason is not None:
        return reason
    kind = _other_format(file)
    if kind is not None:
        return f"a {kind} file, which is not read; save it as PNG, TIFF or JPEG"
    names = {"WEBP": "WebP", "JPEG2000": "JPEG 2000"}
    *first, last = [names.get(format, format) for format in formats]
    return f"not a {', '.join(first)} or {last} image, or cut short at its start"


def _other_format(file: BinaryIO) -> str | None:
    """What a file of a known format that is not read is called; None for all others."""
    file.seek(0)
    start = file.read(16)
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in _HEIF_BRANDS:
            return "HEIC (HEIF)"
        if brand in (b"avif", b"avis") and not HAS_AVIF:
            return "AVIF"
    for magic, kind in _MAGIC_OF_OTHERS.items():
        if start.startswith(magic):
            return kind
    return None


def _why_unknown_tiff(file: BinaryIO) -> str | None:
    """What is unusual about a whole TIFF file that Pillow has no mode for; None for other files."""
    file.seek(0)
    if file.read(4) == b"MM\0\x2b":
        return "a big-endian BigTIFF, which Pillow cannot read; save it as a little-endian TIFF"
    try:
        directory = directories(file)[0]
        bits = max(directory.get(BITS_PER_SAMPLE, (1,)))
        num_samples = directory.get(SAMPLES_PER_PIXEL, 1)
        reason = why_directory_is_damaged(file) or why_samples_are_refused(directory)
    except Exception:  # no TIFF, or a damaged one: Pillow raises nearly every built-in type
        return None
    if reason is not None:
        return reason
    photometric: int = directory.get(PHOTOMETRIC, -1)
    kind = _KINDS_OF_TIFF.get(photometric, "an unknown kind of colours")
    return (
        f"a TIFF file in {kind}, {num_samples} samples a pixel of {bits} bits, which is not read; "
        "save it as gray, RGB or RGBA, or as PNG"
    )
