"""Which images a training was started with: noted in its run folder, compared at --resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from elasticnet._files import write_json
from elasticnet.sr.data.pair_set import PairSet

FILE_NAME = "images.json"
MAX_NAMES = 5  # of images that a message names

# name -> height and width of the LR image
Sizes = dict[str, list[int]]


def note_images(folder: Path, sets: Mapping[str, PairSet]) -> None:
    """Write the names and sizes of a run's images into its folder.

    Args:
        folder: The run folder.
        sets: The sets of images by what they are for, such as "training".
    """
    write_json(folder / FILE_NAME, {use: _sizes_of(pairs) for use, pairs in sets.items()})


def changed_images(folder: Path, sets: Mapping[str, PairSet]) -> str:
    """Say how a run's images differ in name or size from those that are noted in its folder.

    Args:
        folder: The run folder. One of an earlier version of elasticnet has no note; then nothing is
            known to differ.
        sets: The sets of images by what they are for, as `note_images` took them.

    Returns:
        Such as "training: 2 more (0003, 0004)"; empty if nothing differs.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return ""
    noted: dict[str, Sizes] = json.loads(path.read_text(encoding="utf-8"))
    differences: list[str] = []
    for use, pairs in sets.items():
        difference = _difference(noted.get(use, {}), _sizes_of(pairs))
        if difference:
            differences.append(f"{use}: {difference}")
    return "; ".join(differences)


def _sizes_of(pairs: PairSet) -> Sizes:
    return {
        name: [int(side) for side in size]
        for name, size in zip(pairs.names, pairs.lr_sizes, strict=True)
    }


def _difference(before: Sizes, now: Sizes) -> str:
    """Say which images are more, gone and of another size."""
    kinds = {
        "more": [name for name in now if name not in before],
        "gone": [name for name in before if name not in now],
        "of another size": [name for name in now if before.get(name, now[name]) != now[name]],
    }
    phrases: list[str] = []
    for kind, names in kinds.items():
        if names:
            shown = ", ".join(names[:MAX_NAMES])
            etc = ", ..." if len(names) > MAX_NAMES else ""
            phrases.append(f"{len(names)} {kind} ({shown}{etc})")
    return ", ".join(phrases)
