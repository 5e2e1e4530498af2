"""Read the image files of one pair, and fit LR to HR or make it."""

from __future__ import annotations

import os

from elasticnet._files import message_of
from elasticnet.sr.data.alignment import AlignedPair, LrSettings, align
from elasticnet.sr.data.folder_layouts import Pair
from elasticnet.sr.data.image_files import is_broken_link
from elasticnet.sr.data.pair_set import Skipped
from elasticnet.sr.data.read_rgb import ImageError, read_rgb_with_notes


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
