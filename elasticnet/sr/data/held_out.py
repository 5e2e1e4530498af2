"""Lists of images by name, in text files: which images are held out of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from elasticnet.sr.data.read_rgb import EXTENSIONS


def without_extension(name: str) -> str:
    """Return the name of an image without the extension of an image file, if it has one.

    Args:
        name: Such as "0801.png", "train/0801" or "a.b".
    """
    path = Path(name)
    if path.suffix.lower() in EXTENSIONS:
        return name[: -len(path.suffix)]
    return name


def read_names(file: str | os.PathLike[str]) -> list[str]:
    """Return the names that a text file holds, one a line; empty lines are passed over.

    Args:
        file: A text file in UTF-8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no names, or is no text.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no list of names in UTF-8: {error.reason}") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} holds no names: expected the name of an image a line")
    return names


def find_listed(
    file: str | os.PathLike[str], names: Sequence[str], skipped: Mapping[str, str]
) -> list[str]:
    """Return which images a list names.

    A line is an image's name, or the last part of it, with or without the extension: "0001",
    "0001.png" and, of several folders, "DIV2K/0001". A name that lies in several folders means all
    of these images.

    Args:
        file: The list: see `read_names`.
        names: The names of all images.
        skipped: Why an image was left out, by the names of those that were.

    Returns:
        Names of images, in their order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The list has names of no image; the message holds all of them.
    """
    images: dict[str, list[str]] = {}  # by each way to write an image's name
    for name in names:
        for written in _ways_to_write(name):
            images.setdefault(written, []).append(name)
    chosen: set[str] = set()
    unknown: list[str] = []
    for line in read_names(file):
        found = images.get(line) or images.get(without_extension(line))
        if found:
            chosen.update(found)
        else:
            unknown.append(line)
    if unknown:
        raise ValueError(_unknown_names(file, unknown, skipped))
    return [name for name in names if name in chosen]


def _ways_to_write(name: str) -> set[str]:
    """An image's name and the last part of it, each with and without an extension."""
    whole = {name, without_extension(name)}
    return whole | {each.rpartition("/")[2] for each in whole}


def _unknown_names(
    file: str | os.PathLike[str], unknown: Sequence[str], skipped: Mapping[str, str]
) -> str:
    """The message on names of no image, and why an image of such a name was left out."""
    reasons: dict[str, str] = {}
    for name, reason in skipped.items():
        for written in _ways_to_write(name):
            reasons[written] = reason
    listed: list[str] = []
    for line in unknown:
        reason = reasons.get(without_extension(line))
        listed.append(line if reason is None else f"{line} (left out: {reason})")
    return (
        f"--held-out {file}: {len(unknown)} of its names are not among the training images: "
        f"{', '.join(listed)}"
    )
