"""Animations (GIF, APNG, animated WebP) read, enlarged and written frame by frame.

A frame here is what is seen: as large as the picture, with what earlier frames have left of it.
Files store less, parts of frames and how they are laid over what is there; each frame of a result
stands for itself.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from elasticnet.sr.inference.tile_engine import TileEngine
from elasticnet.sr.photo.gif_writer import GifFrame, notes_of_gif, write_gif
from elasticnet.sr.photo.large_array import large_array
from elasticnet.sr.photo.metadata import UPRIGHT, orientation_in, read_exif, take_xmp
from elasticnet.sr.photo.photograph import ImageError, Photo, turned_upright
from elasticnet.sr.photo.png_writer import FAST_LEVEL, packed_pixels, write_chunk, write_head
from elasticnet.sr.photo.silence import without_warnings
from elasticnet.sr.photo.upscale import upscale_photo
from elasticnet.sr.photo.writing import DEFAULT_QUALITY, LARGEST_SIDE, exif_with_size

ANIMATED_FORMATS = ("GIF", "PNG", "WEBP")  # Pillow's names of those that are read and written
OPAQUE = 255
FOR_EVER = 0
MAX_DENOMINATOR = 65535  # of a duration in an APNG
_REPLACE_ALL = bytes([0, 0])  # of an APNG's frame: it stays, and replaces what was there


@dataclass(frozen=True, eq=False)
class Animation:
    """An animation and what belongs to it.

    Attributes:
        frames: (n, h, w, 4) uint8, red, green, blue and alpha; colours are not multiplied by alpha.
        durations: How long each frame is shown, in milliseconds.
        plays: How often the animation is shown; 0 for ever.
        has_still: Whether the first frame is not part of the animation: programs that know no
            animations show it instead (APNG).
        is_opaque: Whether no pixel of any frame is transparent.
        described: The first frame with the metadata of the file.
    """

    frames: NDArray[np.uint8]
    durations: tuple[float, ...]
    plays: int
    has_still: bool
    is_opaque: bool
    described: Photo

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return len(self.frames)

    def photo(self, index: int) -> Photo:
        """Return one frame as a photograph with the file's metadata.

        Args:
            index: From 0.
        """
        frame = self.frames[index]
        alpha = None if self.is_opaque else np.ascontiguousarray(frame[..., 3])
        return replace(
            self.described, pixels=np.ascontiguousarray(frame[..., :3]), alpha=alpha, notes=()
        )


def is_animated(file: BinaryIO) -> bool:
    """Return whether a file is an animation that `read_animation` reads.

    Args:
        file: Seekable, in binary mode; its position is put back to the start.
    """
    file.seek(0)
    try:
        with without_warnings():
            image = Image.open(file, formats=list(ANIMATED_FORMATS))
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # whatever is wrong with it, `read_photo` says it better
        return False
    finally:
        file.seek(0)


def read_animation(
    file: BinaryIO,
    name: str,
    *,
    max_pixels: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Animation:
    """Read every frame of an animation, as it is seen.

    Args:
        file: Of which `is_animated` is true.
        name: What errors call it.
        max_pixels: Larger frames are refused. Default: Pillow's limit.
        folder: Where frames of more than 512 MB in all are kept, in a nameless file. Default: where
            temporary files go.

    Returns:
        The animation, upright. Its notes say what was left out.

    Raises:
        ImageError: The file is damaged or too large; one line with its name.
        OSError: There is no room for the frames.
    """
    try:
        with without_warnings():
            image = Image.open(file, formats=list(ANIMATED_FORMATS))
            assert isinstance(image, ImageFile.ImageFile)
            _check_size(image.width * image.height, max_pixels)
            return _read(image, folder)
    except OSError as error:
        if error.errno is not None:  # of the system: such as a disk that is full
            raise
        raise ImageError(f"cannot read animation {name}: {error}") from error
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise ImageError(f"cannot read animation {name}: {error}") from error


def _check_size(num_pixels: int, max_pixels: int | None) -> None:
    """Refuse frames above the limit, which is Pillow's unless another one is given."""
    limit = max_pixels or Image.MAX_IMAGE_PIXELS
    if limit is not None and num_pixels > limit:
        raise ImageError(
            f"{num_pixels:,} pixels a frame are more than the limit of {limit:,}; "
            f"--max-pixels {num_pixels} (max_pixels=) allows them"
        )


def _read(image: ImageFile.ImageFile, folder: str | os.PathLike[str] | None) -> Animation:
    num_frames: int = getattr(image, "n_frames", 1)
    notes: list[str] = []
    xmp = take_xmp(image)
    exif, orientation = read_exif(image, notes)
    orientation = orientation or orientation_in(xmp) or UPRIGHT
    plays = _plays_of(image)
    has_still = bool(getattr(image, "default_image", False))
    icc: bytes = image.info.get("icc_profile") or b""

    frames: NDArray[np.uint8] | None = None
    durations: list[float] = []
    is_opaque = True
    for index in range(num_frames):
        image.seek(index)
        seen = np.array(image.convert("RGBA"))  # (h, w, 4)
        upright = turned_upright(Photo(pixels=seen), orientation).pixels
        if frames is None:
            frames = large_array((num_frames, *upright.shape), np.uint8, folder)
        frames[index] = upright
        durations.append(float(image.info.get("duration") or 0))
        is_opaque = is_opaque and bool(upright[..., 3].min() == OPAQUE)
    assert frames is not None
    described = Photo(
        pixels=frames[0, ..., :3],
        exif=exif,
        xmp=b"" if orientation != UPRIGHT else xmp,
        icc=icc,
        format=image.format or "",
        notes=tuple(notes),
    )
    return Animation(
        frames=frames,
        durations=tuple(durations),
        plays=plays,
        has_still=has_still,
        is_opaque=is_opaque,
        described=described,
    )


def _plays_of(image: Image.Image) -> int:
    """How often an animation is shown.

    GIF counts repetitions, and one without a count is shown once; APNG and WebP count shows.
    """
    loop = image.info.get("loop")
    if image.format != "GIF":
        return int(loop or FOR_EVER)
    if loop is None:
        return 1
    return FOR_EVER if loop == 0 else int(loop) + 1


def upscale_animation(
    animation: Animation,
    plan: TileEngine,
    *,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Animation:
    """Return an animation with every frame enlarged, as `upscale_photo` enlarges a photograph.

    A frame that is equal to the one before is not computed again.

    Args:
        animation: What `read_animation` returned.
        plan: The network and how it is run.
        size: As in `upscale_photo`.
        progress: Called with (frames done, all frames).
        folder: Where frames of more than 512 MB in all are kept. Default: where temporary files go.
    """
    size = size or (animation.size[0] * plan.scale, animation.size[1] * plan.scale)
    num_frames = animation.num_frames
    frames = large_array((num_frames, *size, 4), np.uint8, folder)
    described: Photo | None = None
    for index in range(num_frames):
        if progress is not None:
            progress(index, num_frames)
        if index > 0 and np.array_equal(animation.frames[index], animation.frames[index - 1]):
            frames[index] = frames[index - 1]
            continue
        large = upscale_photo(animation.photo(index), plan, size=size, folder=folder)
        frames[index, ..., :3] = large.pixels
        frames[index, ..., 3] = OPAQUE if large.alpha is None else large.alpha
        if described is None:
            notes = (*animation.described.notes, *large.notes)
            described = replace(large, pixels=frames[0, ..., :3], alpha=None, notes=notes)
    if progress is not None:
        progress(num_frames, num_frames)
    assert described is not None
    return replace(animation, frames=frames, described=described)


def check_animation_fits(num_frames: int, format: str, size: tuple[int, int]) -> None:
    """Refuse a format that holds no animation, or not one of this size.

    Args:
        num_frames: Of the animation.
        format: What is to be written, such as "PNG".
        size: Height and width that it will have.

    Raises:
        ImageError: It does not fit; the message names formats that hold it.
    """
    if format not in ANIMATED_FORMATS:
        raise ImageError(
            f"it holds {num_frames} frames, and {format} holds one: write .png, .webp or .gif"
        )
    if max(size) > LARGEST_SIDE[format]:
        raise ImageError(
            f"{max(size)} pixels on one side, and {format} holds {LARGEST_SIDE[format]}: write .png"
        )


def write_animation(
    animation: Animation,
    file: BinaryIO,
    format: str,
    *,
    quality: int | None = None,
    lossless: bool = False,
    png_level: int = FAST_LEVEL,
) -> list[str]:
    """Write an animation as APNG, GIF or animated WebP.

    APNG and GIF are written a frame at a time. Pillow writes WebP, whose encoder holds all frames
    of the result.

    Args:
        animation: The animation.
        file: Seekable, in binary mode, empty.
        format: "PNG", "GIF" or "WEBP".
        quality: Of WebP, 1 to 100. Default: 95.
        lossless: Write WebP without loss.
        png_level: As in `elasticnet.sr.photo.writing.write_photo`.

    Returns:
        Notes of what was lost, a line each.

    Raises:
        ImageError: The format cannot hold the animation.
    """
    check_animation_fits(animation.num_frames, format, animation.size)
    if format == "PNG":
        _write_apng(animation, file, png_level)
        return []
    notes: list[str] = []
    if animation.has_still:
        notes.append(f"the still picture in front of the animation was left out of {format}")
        animation = _without_still(animation)
    if format == "GIF":
        frames = _gif_frames(animation)
        write_gif(frames, file, size=animation.size, plays=animation.plays)
        lossy = [notes_of_gif(animation.photo(index)) for index in range(animation.num_frames)]
        each_once = dict.fromkeys(note for of_frame in lossy for note in of_frame)
        return notes + list(each_once)
    _write_webp(animation, file, DEFAULT_QUALITY if quality is None else quality, lossless)
    return notes


def _without_still(animation: Animation) -> Animation:
    return replace(
        animation,
        frames=animation.frames[1:],
        durations=animation.durations[1:],
        has_still=False,
    )


def _gif_frames(animation: Animation) -> Iterator[GifFrame]:
    for index, duration in enumerate(animation.durations):
        photo = animation.photo(index)
        yield GifFrame(pixels=photo.pixels, alpha=photo.alpha, duration_ms=duration)


def _write_apng(animation: Animation, file: BinaryIO, level: int) -> None:
    """Every frame is whole and replaces what was there (PNG specification, third edition, 11.3.6).

    The first frame's pixels stand in IDAT, those of the other ones in fdAT, which are numbered
    together with the frames' descriptions.
    """
    first = animation.photo(0)
    write_head(first, exif_with_size(first), file)
    num_shown = animation.num_frames - animation.has_still
    write_chunk(file, b"acTL", struct.pack(">II", num_shown, animation.plays))
    number = 0  # of the next description or piece of pixels
    for index, duration in enumerate(animation.durations):
        if index > 0 or not animation.has_still:
            write_chunk(file, b"fcTL", _description(number, animation.size, duration))
            number += 1
        for body in packed_pixels(animation.photo(index), level):
            if index == 0:
                write_chunk(file, b"IDAT", body)
            else:
                write_chunk(file, b"fdAT", struct.pack(">I", number) + body)
                number += 1
    write_chunk(file, b"IEND", b"")


def _description(number: int, size: tuple[int, int], duration_ms: float) -> bytes:
    """The body of a frame's fcTL: its place and its duration as a fraction of a second."""
    height, width = size
    seconds = Fraction(duration_ms / 1000).limit_denominator(MAX_DENOMINATOR)
    numerator = min(seconds.numerator, 65535)
    place = struct.pack(">IIIII", number, width, height, 0, 0)
    return place + struct.pack(">HH", numerator, seconds.denominator) + _REPLACE_ALL


def _write_webp(animation: Animation, file: BinaryIO, quality: int, lossless: bool) -> None:
    height, width = animation.size
    images: list[Image.Image] = []
    for frame in animation.frames:  # Pillow reads the array, without a copy
        images.append(Image.frombuffer("RGBA", (width, height), frame, "raw", "RGBA", 0, 1))
    described = animation.described
    options: dict[str, Any] = {
        "duration": _whole_milliseconds(animation.durations),
        "loop": animation.plays,
        "quality": quality,
        "lossless": lossless,
        "icc_profile": described.icc or None,
        "xmp": described.xmp,
    }
    exif = exif_with_size(described)
    if exif:
        options["exif"] = exif
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], **options)


def _whole_milliseconds(durations: tuple[float, ...]) -> list[int]:
    """Durations rounded so that the rounding does not add up."""
    shown = 0.0
    rounded: list[int] = []
    for duration in durations:
        before = round(shown)
        shown += duration
        rounded.append(round(shown) - before)
    return rounded
