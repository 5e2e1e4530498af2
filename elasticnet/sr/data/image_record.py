"""Which images a training was started with: noted in its run folder, compared at --resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from elasticnet._files import write_json
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.training.run_folder import Run

FILE_NAME = "images.json"
MAX_NAMES = 5  # of images that a message names

# name -> height and width of the LR image
Sizes = dict[str, list[int]]


def keep_image_record(
    run: Run,
    sets: Mapping[str, PairSet],
    *,
    changes_allowed: bool,
    say: Callable[[str], object],
) -> None:
    """Note the images of a new run; of a resumed run, compare them with those that are noted.

    Args:
        run: The open run.
        sets: The sets of images by what they are for, such as "training".
        changes_allowed: Whether a resumed run goes on with other images, which are noted from then
            on: the option --changed-images.
        say: Gets a line on what has changed.

    Raises:
        ValueError: The images have changed, and changes are not allowed.
    """
    changes = changed_images(run.folder, sets)
    if changes and not changes_allowed:
        raise ValueError(
            f"the images are not those that {run.folder} was started with: {changes}. Give those "
            "by --data and --valid, or go on with these by --changed-images"
        )
    if changes:
        say(f"note: other images from now on: {changes}")
    if run.writer:
        note_images(run.folder, sets)


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

    Raises:
        ValueError: The note is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return ""
    try:
        noted: dict[str, Sizes] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and the images are no longer compared with "
            "those of the start"
        ) from error
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
