"""Decode the image files of a data set in threads, and write them as the flat files of a cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from elasticnet._files import message_of
from elasticnet.sr.data.alignment import AlignedPair, LrSettings, align
from elasticnet.sr.data.folder_layouts import Pair
from elasticnet.sr.data.image_files import is_broken_link
from elasticnet.sr.data.pair_set import Skipped
from elasticnet.sr.data.read_rgb import ImageError, read_rgb_with_notes

HR_FILE = "hr.bin"  # the pixels of all HR images, three bytes each, as PairSet holds them
LR_FILE = "lr.bin"
MAX_THREADS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def decode_pair(pair: Pair, settings: LrSettings) -> AlignedPair | Skipped:
    """Read the files of one pair.

    Args:
        pair: Where the files are.
        settings: The scale, and how LR is made where it has no file.

    Returns:
        Both images, or why the pair cannot be used.
    """
    for path in (pair.hr, pair.lr):
        if path is not None and is_broken_link(path):
            target = os.readlink(path)
            return Skipped(pair.name, f"{path} is a link to {target}, which is not there")
    try:
        hr, notes = read_rgb_with_notes(pair.hr)
        lr = None
        if pair.lr is not None:
            lr, notes_of_lr = read_rgb_with_notes(pair.lr)
            notes += tuple(note for note in notes_of_lr if note not in notes)
        return align(hr, lr, pair.name, settings)._replace(notes=notes)
    except (ImageError, OSError) as error:
        return Skipped(pair.name, message_of(error))


def write_decoded(
    folder: Path,
    pairs: Sequence[Pair],
    settings: LrSettings,
    *,
    title: str,
    progress: bool,
) -> dict[str, Any]:
    """Decode all pairs into `HR_FILE` and `LR_FILE` of a folder.

    Args:
        folder: An existing folder.
        pairs: Where the image files are.
        settings: The scale, and how LR is made where it has no file.
        title: The data set's name for the progress bar.
        progress: Whether to show a progress bar.

    Returns:
        What a reader of the two files has to know, as JSON can hold it: "names" and "lr_sizes"
        (height, width) of the images in the files, "skipped", a (name, reason) for each of the
        others, and "notes", the names of the images of which the same is to be said, by what it is.
    """
    names: list[str] = []
    lr_sizes: list[tuple[int, int]] = []
    skipped: list[Skipped] = []
    notes: dict[str, list[str]] = {}  # to the names of images
    decoded = _map_ahead(partial(decode_pair, settings=settings), pairs)
    hidden = None if progress else True  # None: unless standard error is a terminal
    bar = tqdm(
        decoded,
        total=len(pairs),
        desc=f"decoding {title}",
        unit="image",
        disable=hidden,
    )
    with open(folder / HR_FILE, "wb") as hr_file, open(folder / LR_FILE, "wb") as lr_file:
        for pair, result in zip(pairs, bar, strict=True):
            if isinstance(result, Skipped):
                skipped.append(result)
                continue
            hr_file.write(np.ascontiguousarray(result.hr).data)
            lr_file.write(np.ascontiguousarray(result.lr).data)
            names.append(pair.name)
            for note in result.notes:
                notes.setdefault(note, []).append(pair.name)
            height, width = result.lr.shape[:2]
            lr_sizes.append((height, width))
    return {"names": names, "lr_sizes": lr_sizes, "skipped": skipped, "notes": notes}


def _map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map in threads and in order, only a few results ahead: each of them is a whole image."""
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
