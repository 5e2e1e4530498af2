"""The data sets of a benchmark: several folders, each at several scales, each with a name."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from elasticnet.sr.data.folder_layouts import find_layout
from elasticnet.sr.data.loading import load_pairs
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.sr.metrics import shave_for

SSIM_WINDOW = 11  # pixels a side, which have to be left of an image after shaving


def load_sets(
    folders: Sequence[str | os.PathLike[str]],
    scales: Sequence[int],
    *,
    degradation: str = "BI",
    protocol: str = "matlab-y",
    border: str = "symmetric",
    blur_sigma: float | None = None,
    noise_sigma: float | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[tuple[str, PairSet]]:
    """Load each data set at each scale, named after its folder.

    Of DIV2K the validation images are loaded. Images that cannot be read, or are too small for
    SSIM after shaving, are left out without a warning: `.skipped` of each set lists them.

    Args:
        folders: Data sets in any layout that `load_pairs` knows.
        scales: How many times as long each side becomes.
        degradation: How LR images are made where a set has none: "BI", "BD" or "DN".
        protocol: As in `elasticnet.sr.metrics`; it decides which images are too small.
        border: What lies outside an image when LR is made: "symmetric" or "replicate".
        blur_sigma: Of the blur of "BD", in pixels; default: 1.6.
        noise_sigma: Of the noise of "DN", on the scale 0..255; default: 30.
        cache_dir: Where decoded images are kept; default: beside the data set.
        progress: Whether a bar is shown while images are decoded.

    Returns:
        (name, pairs), for each folder at each scale.
    """
    sets: list[tuple[str, PairSet]] = []
    for name, folder in zip(distinct_names(folders), folders, strict=True):
        split = "valid" if find_layout(folder) == "div2k" else None
        for scale in scales:
            with warnings.catch_warnings():
                # whoever calls this reports them from `.skipped`, once and at the end
                warnings.filterwarnings("ignore", message="left out")
                pairs = load_pairs(
                    folder,
                    scale,
                    degradation=degradation,
                    split=split,
                    border=border,
                    min_size=_smallest_side(scale, protocol),
                    cache_dir=cache_dir,
                    progress=progress,
                    blur_sigma=blur_sigma,
                    noise_sigma=noise_sigma,
                )
            sets.append((name, pairs))
    return sets


def distinct_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a short name for each path, all of them different.

    Args:
        paths: Folders, or files whose ending .safetensors is left out of their names.

    Returns:
        The last part of each path, with its folder's name in front where two are equal.

    Raises:
        ValueError: Two are still equal.
    """
    resolved = [Path(path).resolve() for path in paths]
    last_parts = [path.name.removesuffix(".safetensors") for path in resolved]
    names: list[str] = []
    for path, last in zip(resolved, last_parts, strict=True):
        is_alone = last_parts.count(last) == 1
        names.append(last if is_alone else f"{path.parent.name}-{last}")
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"{path}: another of the paths given is also called {name!r}; rename one, or drop "
                "it"
            )
    return names


def _smallest_side(scale: int, protocol: str) -> int:
    """The LR pixels a side from which an image can be scored."""
    if scale < 1:
        return 0  # load_pairs refuses the scale
    hr_side = SSIM_WINDOW + 2 * shave_for(scale, protocol)
    return math.ceil(hr_side / scale)
