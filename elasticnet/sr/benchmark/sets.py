"""The data sets of a benchmark: several folders, each at several scales, each with a name."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from elasticnet.sr.benchmark.scores import bicubic
from elasticnet.sr.data.compression import with_compressed_lr
from elasticnet.sr.data.folder_layouts import find_layout
from elasticnet.sr.data.loading import load_pairs
from elasticnet.sr.data.pair_set import MAX_LISTED, PairSet, Skipped, listing
from elasticnet.sr.data.read_rgb import ImageError
from elasticnet.sr.jpeg import JpegSetting, check_quality
from elasticnet.sr.metrics import SSIM_WINDOW, psnr_y, shave_for

logger = logging.getLogger(__name__)


def load_sets(
    folders: Sequence[str | os.PathLike[str]],
    scales: Sequence[int],
    *,
    degradation: str = "BI",
    protocol: str = "matlab-y",
    border: str = "symmetric",
    blur_sigma: float | None = None,
    noise_sigma: float | None = None,
    noise: str = "numpy",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    track: str | None = None,
    lr_root: str | os.PathLike[str] | None = None,
    cache: bool = True,
) -> list[tuple[str, PairSet]]:
    """Load each data set at each scale, named after its folder.

    Of DIV2K the validation images are loaded. Images that cannot be read or scored (see
    `without_unscorable`) are left out without a warning: `.skipped` of each set lists them.

    Args:
        folders: Data sets in any layout that `load_pairs` knows.
        scales: How many times as long each side becomes.
        degradation: How LR images are made where a set has none: "BI", "BD", "DN", "HAZE" or
            "photo".
        protocol: As in `elasticnet.sr.metrics`; it decides which images are too small.
        border: What lies outside an image when LR is made: "symmetric" or "replicate".
        blur_sigma: Of the blur of "BD", in pixels; default: 1.6.
        noise_sigma: Of the noise of "DN", on the scale 0..255; default: 30.
        noise: Where the noise of "DN" comes from: "numpy" or "matlab" (see `degrade`).
        cache_dir: Where decoded images are kept; default: beside the data set.
        progress: Whether a bar is shown while images are decoded.
        track: Which of DIV2K's LR images are read: see `load_pairs`.
        lr_root: The folder of the LR images, of one data set only.
        cache: Whether decoded images are kept; if not, they are decoded at every start.

    Returns:
        (name, pairs), for each folder at each scale.

    Raises:
        ValueError: LR images are given beside several data sets; and what `load_pairs` raises.
    """
    if lr_root is not None and len(folders) > 1:
        raise ValueError(
            f"LR images {lr_root} beside {len(folders)} data sets: give the one that they belong to"
        )
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
                    cache_dir=cache_dir,
                    cache=cache,
                    progress=progress,
                    blur_sigma=blur_sigma,
                    noise_sigma=noise_sigma,
                    noise=noise,
                    track=track,
                    lr_root=lr_root,
                )
            sets.append((name, without_unscorable(pairs, protocol=protocol, border=border)))
    return sets


def with_compressed(
    sets: Sequence[tuple[str, PairSet]], qualities: Sequence[int]
) -> list[tuple[str, PairSet]]:
    """Return each data set as it is, and after it once for each quality of JPEG.

    The LR images are compressed, 4:2:0 as most cameras write it; HR images stay what they are.

    Args:
        sets: (name, pairs) each, as `load_sets` gives them.
        qualities: Pillow's, 1 (worst) to 100.

    Returns:
        (name, pairs) each; a compressed set's name ends with its quality: "Set5-q30".

    Raises:
        ValueError: A quality is none, or is given twice.
    """
    for quality in qualities:
        check_quality(quality)
        if list(qualities).count(quality) > 1:
            raise ValueError(f"JPEG quality {quality}: given more than once")
    all_sets: list[tuple[str, PairSet]] = []
    for name, pairs in sets:
        all_sets.append((name, pairs))
        for quality in qualities:
            all_sets.append((f"{name}-q{quality}", with_compressed_lr(pairs, JpegSetting(quality))))
    return all_sets


def without_unscorable(
    pairs: PairSet, *, protocol: str = "matlab-y", border: str = "symmetric"
) -> PairSet:
    """Return the images that can be scored; `.skipped` of the result lists the others.

    These are too small for SSIM after shaving, or of one colour, so that bicubic interpolation
    reproduces them exactly: their PSNR is infinite, and so would be the mean. The rule asks no
    network, so that the means of one training are over the same images at every step.

    Args:
        pairs: A data set.
        protocol: As in `elasticnet.sr.metrics`.
        border: What lies outside an image that is enlarged bicubically.

    Returns:
        The set itself, or a part of it that shares its pixels.

    Raises:
        ImageError: Not one image can be scored; the message names them. (It is a ValueError, too.)
    """
    scored: list[str] = []
    unscorable: list[Skipped] = []
    for index, name in enumerate(pairs.names):
        reason = _why_unscorable(pairs, index, protocol, border)
        if reason is None:
            scored.append(name)
        else:
            unscorable.append(Skipped(name, reason))
    if not unscorable:
        return pairs
    skipped = sorted([*pairs.skipped, *unscorable])
    if not scored:
        raise ImageError(f"none of the {len(skipped)} images can be scored:{listing(skipped)}")
    chosen = pairs.subset(scored)
    chosen.skipped = skipped
    return chosen


def lr_lines(sets: Sequence[tuple[str, PairSet]]) -> list[str]:
    """Return a line for each data set that says where its LR images come from.

    Args:
        sets: (name, pairs) each, as `load_sets` gives them.
    """
    return [f"{name} x{pairs.scale}, LR: {pairs.lr_source}" for name, pairs in sets]


def lr_line(training: PairSet, validation: PairSet) -> str:
    """Return a line that says where the LR images of a training come from.

    Args:
        training: The images that are trained on.
        validation: Those that are validated on.
    """
    line = f"LR: {training.lr_source}"
    if validation.lr_source != training.lr_source:
        line += f"; of the validation images: {validation.lr_source}"
    return line


def scorable(pairs: PairSet, *, protocol: str = "matlab-y") -> PairSet:
    """Return the validation images that can be scored; name the others in the log.

    Args:
        pairs: The validation images of a training.
        protocol: As in `elasticnet.sr.metrics`.

    Returns:
        What `without_unscorable` returns.

    Raises:
        ImageError: As `without_unscorable` does.
    """
    chosen = without_unscorable(pairs, protocol=protocol)
    already_named = set(pairs.skipped)
    skipped = [each for each in chosen.skipped if each not in already_named]
    for each in skipped[:MAX_LISTED]:
        logger.warning("validation image left out: %s: %s", each.name, each.reason)
    if len(skipped) > MAX_LISTED:
        logger.warning("validation images left out: %d in all", len(skipped))
    return chosen


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


def _why_unscorable(pairs: PairSet, index: int, protocol: str, border: str) -> str | None:
    """Return why an image cannot be scored, None if it can be."""
    shave = shave_for(pairs.scale, protocol)
    lr_height, lr_width = pairs.lr_sizes[index].tolist()
    smallest = math.ceil((SSIM_WINDOW + 2 * shave) / pairs.scale)
    if min(lr_height, lr_width) < smallest:
        return f"its LR image of {lr_width}x{lr_height} pixels is smaller than {smallest}"
    hr = pairs.hr(index)
    scored_pixels = hr[shave:-shave, shave:-shave]
    first_pixel = scored_pixels[0, 0]
    # The first row spares photographs the rest.
    has_one_colour = (scored_pixels[0] == first_pixel).all() and (
        scored_pixels == first_pixel
    ).all()
    if not has_one_colour:
        return None
    enlarged = bicubic(pairs.lr(index), pairs.scale, border)
    if math.isinf(psnr_y(enlarged, hr, shave, protocol)):
        return "it has one colour, which bicubic interpolation reproduces: its PSNR is infinite"
    return None
