"""Decode the image files of a data set, and write them as the flat files of a cache.

A few images are decoded in threads, many in processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from elasticnet.sr.data.alignment import AlignedPair, LrSettings
from elasticnet.sr.data.decode_pair import decode_pair
from elasticnet.sr.data.decoding_processes import DecodingProcesses, requests
from elasticnet.sr.data.folder_layouts import Pair
from elasticnet.sr.data.pair_set import Skipped

HR_FILE = "hr.bin"  # the pixels of all HR images, three bytes each, as PairSet holds them
LR_FILE = "lr.bin"
MAX_WORKERS = 8  # threads or processes
MIN_PAIRS_FOR_PROCESSES = 500  # processes take half a second to start

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    hidden = None if progress else True  # None: unless standard error is a terminal
    with (
        closing(_decoded(pairs, settings)) as decoded,
        open(folder / HR_FILE, "wb") as hr_file,
        open(folder / LR_FILE, "wb") as lr_file,
    ):
        bar = tqdm(
            decoded,
            total=len(pairs),
            desc=f"decoding {title}",
            unit="image",
            disable=hidden,
        )
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


def _decoded(
    pairs: Sequence[Pair], settings: LrSettings
) -> Generator[AlignedPair | Skipped, None, None]:
    """Decode pairs in order, only a few ahead of what is asked for."""
    num_processes = min(MAX_WORKERS, os.cpu_count() or 1)
    if num_processes == 1 or len(pairs) < MIN_PAIRS_FOR_PROCESSES:
        yield from _map_ahead(partial(decode_pair, settings=settings), pairs)
        return
    with DecodingProcesses(num_processes, settings) as processes:
        decode = partial(_decode_in, processes, settings=settings)
        for group in _map_ahead(decode, requests(pairs)):
            yield from group


def _decode_in(
    processes: DecodingProcesses, pairs: Sequence[Pair], *, settings: LrSettings
) -> list[AlignedPair | Skipped]:
    """Decode pairs in a process; here, where that fails, as what this program has set may differ.

    Such as Pillow's limit of pixels, or a format that this program has added to it.
    """
    decoded = processes.decode(pairs)
    if decoded is None:
        return [decode_pair(pair, settings) for pair in pairs]
    for index, result in enumerate(decoded):
        if isinstance(result, Skipped):
            decoded[index] = decode_pair(pairs[index], settings)
    return decoded


def _map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map in threads and in order, only a few results ahead: each of them is a whole image."""
    num_threads = min(MAX_WORKERS, os.cpu_count() or 1)
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
