"""Which page of a TIFF file is the picture, beside thumbnails, reduced copies and masks."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from PIL import ImageFile, TiffImagePlugin

# Tags, and the bits and values that they have (TIFF 6.0).
NEW_SUBFILE_TYPE, REDUCED_BIT, MASK_BIT = 254, 1, 4
OLD_SUBFILE_TYPE, OLD_REDUCED = 255, 2
SUB_DIRECTORIES = 330
IMAGE_WIDTH = 256
PHOTOMETRIC, SAMPLES_PER_PIXEL = 262, 277
_NUM_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation
PHOTOSHOP_LAYERS = 37724
BIG_TIFF = b"\x2b"  # in the header, for files beyond 4 GB
CLASSIC_HEADER, BIG_HEADER = 8, 16  # bytes


def directories(file: BinaryIO) -> list[Mapping[int, Any]]:
    """Return the tags of every page of a TIFF file, also of pages that Pillow has no mode for.

    Args:
        file: Seekable, in binary mode.

    Raises:
        Exception: No TIFF file, or a damaged one; Pillow raises nearly every built-in type.
    """
    file.seek(0)
    header = file.read(CLASSIC_HEADER)
    if header[2:3] == BIG_TIFF:  # little-endian; Pillow knows no other
        header += file.read(BIG_HEADER - CLASSIC_HEADER)
    found: list[Mapping[int, Any]] = []
    place = TiffImagePlugin.ImageFileDirectory_v2(header).next
    seen = {0}
    while place not in seen:  # 0 ends the chain; a damaged one may run in circles
        seen.add(place)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(place)
        directory.load(file)
        found.append(directory)
        place = directory.next
    return found


def why_directory_is_damaged(file: BinaryIO) -> str | None:
    """Return what to say of a first directory of which only a part can be read; None if all can.

    Pillow stops at the first tag whose value lies beyond the end of the file.

    Args:
        file: A TIFF file, seekable, in binary mode.
    """
    file.seek(0)
    header = file.read(BIG_HEADER)
    order = "<" if header[:2] == b"II" else ">"
    if header[2:3] == BIG_TIFF:
        (place,) = struct.unpack_from(f"{order}Q", header, 8)
        format_of_count = f"{order}Q"
    else:
        (place,) = struct.unpack_from(f"{order}L", header, 4)
        format_of_count = f"{order}H"
    file.seek(place)
    count = file.read(struct.calcsize(format_of_count))
    (num_tags,) = struct.unpack(format_of_count, count)
    num_read = len(directories(file)[0])
    if num_read >= num_tags:
        return None
    return (
        f"only {num_read} of the {num_tags} tags of its directory can be read: the file is cut "
        "short, or a tag is damaged"
    )


def go_to_main_page(image: ImageFile.ImageFile, file: BinaryIO, notes: list[str]) -> int:
    """Turn a TIFF file to its first page that is not marked as a thumbnail or mask.

    Args:
        image: Opened at its first page, not loaded.
        file: What it was opened from.
        notes: Gets a line if pages were passed over, or are damaged.

    Returns:
        How many pages are left: those that are not marked, or all if all are marked.

    Raises:
        ValueError: The file holds nothing but a thumbnail, and its picture in a sub-directory.
    """
    found = directories(file)
    # Some writers leave a number behind the last page that leads to no further one.
    tags_of_pages = {page: tags for page, tags in enumerate(found) if IMAGE_WIDTH in tags}
    num_pages = len(tags_of_pages)
    if num_pages < len(found):
        notes.append("what the file calls a further page is none, or damaged, and was left out")
    pages = [page for page, tags in tags_of_pages.items() if not _is_marked(tags)]
    if not pages:
        _refuse_raw_files(found)
        return num_pages
    if len(pages) < num_pages:
        notes.append(
            f"page {pages[0] + 1} of {num_pages} was read; "
            f"{num_pages - len(pages)} marked as thumbnails or masks were left out"
        )
    if pages[0] > 0:
        image.info.clear()  # what belongs to the first page
        image.seek(pages[0])
    return len(pages)


def note_left_out_of_tiff(tags: Mapping[int, Any], *, has_alpha: bool, notes: list[str]) -> None:
    """Say which channels and layers of a page were not read.

    Args:
        tags: Of the page; empty for other formats.
        has_alpha: Whether one channel was read as alpha.
        notes: Gets the lines.
    """
    if PHOTOSHOP_LAYERS in tags:
        notes.append("the layers of Photoshop were left out, and the flat picture was read")
    num_samples: int = tags.get(SAMPLES_PER_PIXEL, 1)
    num_colors = _NUM_COLORS.get(tags.get(PHOTOMETRIC, 1), num_samples)
    num_left_out = num_samples - num_colors - int(has_alpha)
    if num_left_out == 1:
        notes.append("an extra channel was left out")
    elif num_left_out > 1:
        notes.append(f"{num_left_out} extra channels were left out")


def _is_marked(tags: Mapping[int, Any]) -> bool:
    """Whether a page says that it is a reduced copy or a mask of another one."""
    kind: int = tags.get(NEW_SUBFILE_TYPE, 0)
    is_marked = bool(kind & (REDUCED_BIT | MASK_BIT))
    return is_marked or tags.get(OLD_SUBFILE_TYPE) == OLD_REDUCED


def _refuse_raw_files(tags_of_pages: Sequence[Mapping[int, Any]]) -> None:
    for tags in tags_of_pages:
        if SUB_DIRECTORIES in tags:
            raise ValueError(
                "it holds a thumbnail, and its picture in a sub-directory, as raw files do; "
                "save it as a plain TIFF"
            )
