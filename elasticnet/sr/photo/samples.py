"""Pixels and alpha of an image that Pillow has opened, with all bits of the file."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from elasticnet.sr.photo.bit_depth import bits_in_file
from elasticnet.sr.photo.metadata import tiff_tags

# Tags of TIFF, as Pillow numbers them, and values that they may have.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR = 258, 262, 277, 284
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
WHITE_IS_ZERO, RGB, CMYK = 0, 2, 5
ASSOCIATED_ALPHA = 1  # colours are multiplied by it
SEPARATE_PLANES = 2
TIFF_BITS = (1, 2, 4, 8, 16)  # that are read
_SAMPLE_FORMATS = {  # that are not; the others are unsigned integers or not said
    2: "signed integers",
    3: "floating-point numbers",
    5: "complex integers",
    6: "complex numbers",
}

OPAQUE_16 = 65535
_GRAY_BITS = {"L;2": 2, "L;4": 4, "L": 8}  # of a PNG, by Pillow's raw mode
NATIVE_ORDER = {"little": "L", "big": "B"}[sys.byteorder]  # as in Pillow's raw modes
OTHER_ORDER = {"L": "B", "B": "L"}


class Samples(NamedTuple):
    """What an image file holds for each pixel.

    Attributes:
        pixels: (h, w) gray or (h, w, 3) RGB, uint8 or uint16.
        alpha: (h, w) of the same dtype, or None.
        icc: The colour profile of `pixels`; empty if there is none.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    icc: bytes


def read_samples(
    image: ImageFile.ImageFile, file: BinaryIO, notes: list[str], *, cmyk_by_profile: bool
) -> Samples:
    """Decode an image: 16 bits stay 16, gray stays gray, all other colours become RGB.

    Args:
        image: Opened, not loaded.
        file: What it was opened from; colours of 16 bits are decoded twice.
        notes: Gets a line for what was converted with loss.
        cmyk_by_profile: Whether CMYK becomes sRGB by its embedded profile, rather than by Pillow's
            plain formula.

    Returns:
        Pixels, alpha and the profile that belongs to them.

    Raises:
        ValueError: The samples have a kind that cannot be read without loss.
    """
    icc: bytes = image.info.get("icc_profile") or b""
    _check_depth(image, file, notes)
    _refuse_separate_planes(tiff_tags(image))
    if _bits_per_sample(image) == 16:
        pixels, alpha = _read_16_bits(image, file)
        return Samples(pixels, alpha, icc)
    raw_mode = _raw_mode(image)  # loading forgets it
    image.load()
    plain: Image.Image = image
    if image.mode == "CMYK":
        profile = icc if cmyk_by_profile else b""
        plain, icc = _cmyk_to_rgb(image, profile, notes)
    pixels, alpha = _read_8_bits(plain, raw_mode)
    return Samples(pixels, alpha, icc)


def _check_depth(image: ImageFile.ImageFile, file: BinaryIO, notes: list[str]) -> None:
    """Say what Pillow cuts to 8 bits, and refuse what it would stretch wrongly."""
    bits = bits_in_file(image, file)
    is_gray_jpeg2000 = image.format == "JPEG2000" and image.mode in ("L", "LA", "I;16")
    if bits < 8 or (is_gray_jpeg2000 and bits not in (8, 16)):
        raise ValueError(f"{bits} bits per channel; save it with 8 or 16")
    keeps_all_bits = is_gray_jpeg2000 and image.mode == "I;16"  # but not gray with alpha
    if bits > 8 and not keeps_all_bits:
        notes.append(f"{bits} bits per channel were read as 8; 16 bits are read of PNG and TIFF")


def _bits_per_sample(image: ImageFile.ImageFile) -> int:
    """8 or 16; fewer than 8 bits count as 8, since Pillow makes 8 of them."""
    if image.format == "TIFF":
        reason = why_samples_are_refused(tiff_tags(image))
        if reason is not None:
            raise ValueError(reason)
        bits = max(tiff_tags(image).get(BITS_PER_SAMPLE, (1,)))
        return 16 if bits == 16 else 8
    if image.format == "PNG":
        return 16 if _raw_mode(image).endswith(";16B") else 8
    if image.format == "JPEG2000":
        return 16 if image.mode == "I;16" else 8
    if image.format == "PPM":  # gray with more than 8 bits, which Pillow stretches to 16
        return 16 if image.mode == "I" else 8
    return 8


def why_samples_are_refused(tags: Mapping[int, Any]) -> str | None:
    """Return what is wrong with the samples of a TIFF file; None if their kind can be read.

    Args:
        tags: Of the page that holds them.
    """
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    kinds = {_SAMPLE_FORMATS.get(number, "") for number in tags.get(SAMPLE_FORMAT, (1,))}
    kind = max(kinds)  # the empty one is the least
    if bits not in TIFF_BITS:
        found = f" (they are {kind})" if kind else ""
        return f"{bits} bits per channel; save it with 8 or 16{found}"
    if kind:
        return f"{bits} bits per channel that are {kind}; save it with unsigned integers"
    return None


def _refuse_separate_planes(tags: Mapping[int, Any]) -> None:
    """Refuse a TIFF file in separate planes, unless it is of the kinds that Pillow reads rightly.

    Of others it makes noise, other colours or another alpha, without a word.
    """
    num_samples = tags.get(SAMPLES_PER_PIXEL, 1)
    if tags.get(PLANAR, 1) != SEPARATE_PLANES or num_samples == 1:
        return
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    photometric = tags.get(PHOTOMETRIC)
    is_multiplied = ASSOCIATED_ALPHA in tags.get(EXTRA_SAMPLES, ())
    is_rgb = photometric == RGB and num_samples <= 4 and not is_multiplied
    is_cmyk = photometric == CMYK and num_samples == 4
    if bits != 8 or not (is_rgb or is_cmyk):
        raise ValueError(
            f"{bits}-bit colour in separate planes; save it with interleaved channels, or as PNG"
        )


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name of how samples lie in the file; empty if the format has no such name."""
    if not image.tile:
        return ""
    arguments: Any = image.tile[0][3]
    if isinstance(arguments, str):
        return arguments
    raw_mode: Any = arguments[0] if arguments else ""
    return raw_mode if isinstance(raw_mode, str) else ""


# --- 8 bits


def _read_8_bits(image: Image.Image, raw_mode: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Pixels and alpha of 8 bits."""
    if image.mode in ("I", "F"):
        raise ValueError(
            f"samples of mode {image.mode} (32-bit or float) have no defined range; "
            "save it with 16 bits"
        )
    if image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert(image.mode.upper())
    _fit_key(image, raw_mode)
    is_gray = image.mode in ("1", "L", "LA")
    if not image.has_transparency_data:
        return np.array(image.convert("L" if is_gray else "RGB")), None
    samples = np.array(image.convert("LA" if is_gray else "RGBA"))  # (h, w, 2) or (h, w, 4)
    alpha = np.ascontiguousarray(samples[..., -1])
    if is_gray:
        return np.ascontiguousarray(samples[..., 0]), alpha
    return np.ascontiguousarray(samples[..., :3]), alpha


def _fit_key(image: Image.Image, raw_mode: str) -> None:
    """Bring the key colour of a PNG to the range of the samples.

    It has 16 bits in the file, of which those beyond the file's depth are to be masked (PNG
    specification, 11.3.1.1), and Pillow does not. Pillow stretches gray of 1, 2 or 4 bits to
    0..255, and leaves the key in the units of the file, so that no pixel would be transparent; a
    key of one bit it stretches, too, in versions later than 11.1.
    """
    key: Any = image.info.get("transparency")
    if image.mode == "RGB" and key is not None:  # 8 bits each
        red, green, blue = key
        image.info["transparency"] = (red & 255, green & 255, blue & 255)
    elif image.mode == "1" and key is not None:
        image.info["transparency"] = 255 if key else 0
    elif isinstance(key, int) and raw_mode in _GRAY_BITS:
        largest = 2 ** _GRAY_BITS[raw_mode] - 1
        image.info["transparency"] = (key & largest) * 255 // largest


def _cmyk_to_rgb(image: Image.Image, icc: bytes, notes: list[str]) -> tuple[Image.Image, bytes]:
    """The image in RGB, and the profile that it has now."""
    if not icc:
        notes.append("CMYK without a colour profile was converted by the plain formula")
        return image.convert("RGB"), b""
    # Pillow leaves its own profile without a type.
    plain_srgb = ImageCms.createProfile("sRGB")  # pyright: ignore[reportUnknownVariableType]
    srgb = ImageCms.ImageCmsProfile(plain_srgb)  # pyright: ignore[reportUnknownArgumentType]
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(
            f"CMYK was converted by the plain formula, as its colour profile is damaged ({error})"
        )
        return image.convert("RGB"), b""
    assert converted is not None  # None is what an image changed in place gives
    return converted, srgb.tobytes()


# --- 16 bits


def _read_16_bits(
    image: ImageFile.ImageFile, file: BinaryIO
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Pixels and alpha of 16 bits."""
    raw_mode = _raw_mode(image)
    if image.mode.startswith("I;16") or image.format == "PPM":
        return _read_gray_16(image)
    if raw_mode == "LA;16B":
        return _read_gray_alpha_16(file)
    match = re.fullmatch(r"(RGB[AX]?;16)([BLN])", raw_mode)
    if match is None:
        raise ValueError(
            f"16-bit samples of the kind {raw_mode}; save it as 16-bit gray, RGB or RGBA, "
            "or with 8 bits"
        )
    kind, order = match.groups()
    key: tuple[int, ...] | None = image.info.get("transparency")
    colors = _read_colors_16(image, file, kind, NATIVE_ORDER if order == "N" else order)
    pixels = np.ascontiguousarray(colors[..., :3])
    if kind.startswith("RGBA"):
        return pixels, np.ascontiguousarray(colors[..., 3])
    if key is None:
        return pixels, None
    is_hidden = (pixels == np.asarray(key)).all(axis=2)  # (h, w)
    return pixels, _alpha_16(is_hidden)


def _read_gray_16(image: Image.Image) -> tuple[NDArray[Any], NDArray[Any] | None]:
    key: int | None = image.info.get("transparency")
    pixels = np.array(image, dtype=np.uint16)
    if tiff_tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = OPAQUE_16 - pixels  # Pillow leaves that to its caller at this depth
    if key is None:
        return pixels, None
    return pixels, _alpha_16(pixels == key)


def _read_gray_alpha_16(file: BinaryIO) -> tuple[NDArray[Any], NDArray[Any]]:
    """Gray with alpha, whose four bytes a pixel Pillow reads as RGBA: high, low, high, low."""
    four_bytes = _decoded_as(file, "RGBA").astype(np.uint16)  # (h, w, 4)
    high = four_bytes[..., 0::2]  # (h, w, 2): of gray, of alpha
    low = four_bytes[..., 1::2]
    samples = high << 8 | low
    return np.ascontiguousarray(samples[..., 0]), np.ascontiguousarray(samples[..., 1])


def _read_colors_16(
    image: ImageFile.ImageFile, file: BinaryIO, kind: str, order: str
) -> NDArray[Any]:
    """Colours (h, w, 3 or 4) of 16 bits.

    Pillow keeps 8 of the 16 bits of colour images: the high bytes. Decoding once more as if the
    byte order were the other one gives the low bytes.
    """
    high = np.array(image, dtype=np.uint16)
    low = _decoded_as(file, kind + OTHER_ORDER[order], page=image.tell())
    return high << 8 | low


def _decoded_as(file: BinaryIO, raw_mode: str, page: int = 0) -> NDArray[np.uint8]:
    """The image decoded by another of Pillow's raw modes than the one that fits the file."""
    file.seek(0)
    image = Image.open(file)
    assert isinstance(image, ImageFile.ImageFile)
    with image:
        image.seek(page)
        image.tile = [_with_raw_mode(tile, raw_mode) for tile in image.tile]
        return np.array(image)


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    """A tile of Pillow's decoder with another raw mode: its arguments, or the first of them."""
    codec, extents, offset, arguments = tile
    if isinstance(arguments, str):
        return type(tile)(codec, extents, offset, raw_mode)
    return type(tile)(codec, extents, offset, (raw_mode, *arguments[1:]))


def _alpha_16(is_hidden: NDArray[np.bool_]) -> NDArray[np.uint16]:
    return np.where(is_hidden, 0, OPAQUE_16).astype(np.uint16)
