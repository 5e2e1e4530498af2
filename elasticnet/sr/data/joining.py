"""Several sets of pairs as one: their images together, each named after the set that it is of."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elasticnet.memory import free_memory
from elasticnet.sr.data.pair_set import PairSet, Skipped


def labels_of(roots: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a label for each of several folders: its name, numbered where names are alike.

    Args:
        roots: The folders.

    Returns:
        Labels that differ from one another, in the order of the folders.

    Example:
        >>> labels_of(["photos/train", "DIV2K", "scans/train"])
        ['train', 'DIV2K', 'train-2']
    """
    labels: list[str] = []
    for root in roots:
        name = Path(os.path.abspath(root)).name or "root"
        label = name
        number = 1
        while label in labels:
            number += 1
            label = f"{name}-{number}"
        labels.append(label)
    return labels


def joined(sets: Sequence[PairSet], labels: Sequence[str], *, limit: float = 0.5) -> PairSet:
    """Return the images of several sets as one set, whose names are `LABEL/NAME`.

    Args:
        sets: Sets of one scale, at least one.
        labels: What the names of each set's images begin with; they differ from one another.
        limit: The largest share of the free memory that the pixels may take, 0..1. What does not
            fit is written into a temporary file, which is mapped into memory.

    Returns:
        The images in the order of the sets. They share no pixels with them.

    Raises:
        ValueError: The sets are not of one scale.
        OSError: The temporary file cannot be written.
    """
    scales = {pairs.scale for pairs in sets}
    if len(scales) != 1:
        raise ValueError(f"sets of scales {sorted(scales)}: expected sets of one scale")
    names: list[str] = []
    skipped: list[Skipped] = []
    for label, pairs in zip(labels, sets, strict=True):
        names += [f"{label}/{name}" for name in pairs.names]
        skipped += [Skipped(f"{label}/{name}", reason) for name, reason in pairs.skipped]

    lr_pixels = [pairs.lr_pixels for pairs in sets]
    hr_pixels = [pairs.hr_pixels for pairs in sets]
    num_bytes = sum(pixels.nbytes for pixels in [*lr_pixels, *hr_pixels])
    free_bytes = free_memory() or 0  # None, where the system does not say, counts as none
    in_memory = num_bytes <= limit * free_bytes

    # A set's images need not begin at row 0: they lie behind the pixels of the sets before it.
    starts: list[np.ndarray] = []
    rows_before = 0
    for pairs in sets:
        starts.append(pairs.starts + rows_before)
        rows_before += len(pairs.lr_pixels)
    return PairSet(
        names,
        sets[0].scale,
        np.concatenate([pairs.lr_sizes for pairs in sets]),
        _together(lr_pixels, in_memory=in_memory),
        _together(hr_pixels, in_memory=in_memory),
        starts=np.concatenate(starts),
        skipped=skipped,
        lr_source=_lr_source(sets, labels),
    )


def _together(parts: Sequence[np.ndarray], *, in_memory: bool) -> np.ndarray:
    """Return flat pixels one after another, uint8 of shape (number of all pixels, 3)."""
    if in_memory:
        return np.concatenate(parts)
    # The file has no name, or is removed with its last user: nothing is left on the disk. It is
    # written and not mapped for writing, as a full disk would then end the process.
    with tempfile.TemporaryFile(prefix="elasticnet-") as file:
        try:
            for part in parts:
                file.write(np.ascontiguousarray(part).data)
            file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write the images of several folders into {tempfile.gettempdir()}: "
                f"{error.strerror or error}; make room there, or name another folder by the "
                "variable TMPDIR",
            ) from error
        return np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, 3)


def _lr_source(sets: Sequence[PairSet], labels: Sequence[str]) -> str:
    """Return where the LR images come from; those that are made stand first, as `lr_is_made` asks.

    It is one phrase where all sets have the same.
    """
    labels_by_source: dict[str, list[str]] = {}
    for pairs, label in sorted(zip(sets, labels, strict=True), key=_is_from_files):
        labels_by_source.setdefault(pairs.lr_source, []).append(label)
    if len(labels_by_source) == 1:
        return sets[0].lr_source
    phrases = [f"{source} for {', '.join(of)}" for source, of in labels_by_source.items()]
    return ", ".join(phrases)


def _is_from_files(labelled: tuple[PairSet, str]) -> bool:
    return not labelled[0].lr_is_made
