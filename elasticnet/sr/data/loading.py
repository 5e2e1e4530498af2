"""`load_pairs`: a data set's folder as a `PairSet`; `pairs_from_arrays`: the same from arrays."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elasticnet.sr.data.alignment import DEFAULT_NOISE, AlignedPair, LrSettings, align
from elasticnet.sr.data.decoded_cache import built_for_once, cache_places, open_or_build
from elasticnet.sr.data.decoding import HR_FILE, LR_FILE, write_decoded
from elasticnet.sr.data.folder_layouts import FoundPairs, Pair, find_files
from elasticnet.sr.data.pair_set import PairSet, Skipped, listing, open_pixels
from elasticnet.sr.data.read_rgb import ImageError
from elasticnet.sr.degrade import SEEDED_KINDS

CACHE_FORMAT = 2  # raised when the same file gives other pixels; 2: the main page of a TIFF

MAX_NAMED = 5  # images that one message names

logger = logging.getLogger(__name__)


def load_pairs(
    root: str | os.PathLike[str],
    scale: int,
    *,
    degradation: str = "BI",
    split: str | None = None,
    seed: int = 0,
    border: str = "symmetric",
    min_size: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    blur_sigma: float | None = None,
    noise_sigma: float | None = None,
    noise: str = DEFAULT_NOISE,
    track: str | None = None,
    lr_root: str | os.PathLike[str] | None = None,
    cache: bool = True,
) -> PairSet:
    """Load every pair of a data set, from a cache of decoded images that is built when needed.

    The cache holds three bytes for each LR and HR pixel, in files that are mapped into memory. It
    is built once, also when several processes start together, and again when an image file
    changes.

    HR is cropped at the right and at the bottom to `scale` times the LR size. LR images come from
    their files if the layout has them, and otherwise from `degrade`; `.lr_source` of the result
    says which.

    An image is left out if it cannot be read, does not fit its LR file, or is smaller than
    `min_size`. One warning counts these images and names the first ones, and `.skipped` of the
    result holds them all.

    Args:
        root: A data set in one of the layouts of `find_layout`.
        scale: Side of an HR image over the side of its LR image.
        degradation: How LR is made: "BI", "BD", "DN", "HAZE" or "photo" (see `degrade`). LR
            files serve if they are of this degradation, "BI" if their folder does not say.
        split: "train" or "valid", of DIV2K only; None means "train" there.
        seed: Of noise, haze and JPEG, which differ from image to image (see `noise_seed`).
        border: What lies outside an image that is resized: see `imresize`.
        min_size: Smallest side of an LR image that is used, in pixels: give the patch size.
        cache_dir: Where to keep the cache. By default it is `<root>.elasticnet-cache` beside the
            data set, or, where that cannot be written, in the user's cache folder. A message in
            the log names the folder when it is written.
        progress: Whether to show a progress bar while images are decoded.
        blur_sigma: Of "BD", in HR pixels; None for the default of `degrade`.
        noise_sigma: Of "DN", on the 0..255 scale; None for the default of `degrade`.
        noise: Where the noise of "DN" comes from: "numpy", or "matlab" (see `degrade`).
        track: Which of DIV2K's LR images are read, such as "mild": see `find_files`.
        lr_root: The folder of the LR images, in place of one that the layout has.
        cache: Whether decoded images are kept. If not, nothing is left on disk: they are decoded
            at every start, in a temporary folder, and held in memory if they fit.

    Returns:
        The pairs, sorted by name, mapped from the cache.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: An argument is wrong, or the folder has no known layout.
        ImageError: Not one image can be used. (It is a ValueError, too.)
        OSError: The cache cannot be written anywhere.
    """
    # MATLAB's noise has no seed, and most degradations draw nothing: with a seed of its own, such a
    # set would be decoded once for each seed.
    has_seed = degradation in SEEDED_KINDS and noise == DEFAULT_NOISE
    settings = LrSettings(
        scale=scale,
        degradation=degradation,
        seed=seed if has_seed else 0,
        border=border,
        blur_sigma=blur_sigma,
        noise_sigma=noise_sigma,
        noise=noise,
    )
    found = find_files(root, scale, split, degradation, track=track, lr_root=lr_root)
    if settings.given and lr_root is None:
        found = _with_all_lr_made(found, settings)
    files = found.pairs
    for note in found.notes:
        logger.warning("%s", note)
    root = Path(root)
    # Other tracks have caches of their own, so that one does not take the other's place.
    which_lr = track if lr_root is None else os.path.abspath(lr_root)
    if cache:
        pairs = _open_cached(root, files, settings, split or "train", which_lr, cache_dir, progress)
    else:
        pairs = _decode_for_once(root, files, settings, progress)
    pairs.lr_source = found.lr_source
    if min_size > 0:  # here and not in the cache, so that all patch sizes share one
        pairs = _without_small_images(pairs, min_size)
    if len(pairs) == 0:
        raise _nothing_left(root, pairs.skipped)
    if pairs.skipped:
        left_out = f"left out {len(pairs.skipped)} of {len(files)} images of {root}:"
        warnings.warn(left_out + listing(sorted(pairs.skipped)), stacklevel=2)
    return pairs


def pairs_from_arrays(
    images: Mapping[str, np.ndarray],
    scale: int,
    *,
    degradation: str = "BI",
    seed: int = 0,
    border: str = "symmetric",
    blur_sigma: float | None = None,
    noise_sigma: float | None = None,
) -> PairSet:
    """Make a set in memory from HR images, the same that `load_pairs` makes from files.

    Args:
        images: HR images by name, uint8 of shape (height, width, 3), RGB, 0..255.
        scale: Side of an HR image over the side of its LR image.
        degradation: How LR is made: "BI", "BD", "DN", "HAZE" or "photo" (see `degrade`).
        seed: Of noise, haze and JPEG, which differ from image to image (see `noise_seed`).
        border: What lies outside an image that is resized: see `imresize`.
        blur_sigma: Of "BD", in HR pixels; None for the default of `degrade`.
        noise_sigma: Of "DN", on the 0..255 scale; None for the default of `degrade`.

    Returns:
        The pairs, in the order of `images`.

    Raises:
        ValueError: An argument is wrong, or an image has another dtype or shape.
        ImageError: An image is too small for the scale.

    Example:
        >>> import numpy as np
        >>> photos = {"gray": np.full((40, 60, 3), 128, np.uint8)}
        >>> pairs_from_arrays(photos, scale=4)
        PairSet(1 images, x4, 150 LR pixels)
    """
    settings = LrSettings(
        scale=scale,
        degradation=degradation,
        seed=seed,
        border=border,
        blur_sigma=blur_sigma,
        noise_sigma=noise_sigma,
    )
    if not images:
        raise ValueError("images: expected at least one, got an empty mapping")
    aligned = [_align_array(name, image, settings) for name, image in images.items()]
    return PairSet(
        list(images),
        scale,
        lr_sizes=np.array([pair.lr.shape[:2] for pair in aligned]),
        lr_pixels=np.concatenate([pair.lr.reshape(-1, 3) for pair in aligned]),
        hr_pixels=np.concatenate([pair.hr.reshape(-1, 3) for pair in aligned]),
        lr_source=f"made ({degradation})",
    )


def _with_all_lr_made(found: FoundPairs, settings: LrSettings) -> FoundPairs:
    """Leave LR files out: they have a sigma and a noise of their own, not the given ones."""
    notes = list(found.notes)
    if found.pairs[0].lr is not None:
        given = ", ".join(f"{name} {value}" for name, value in settings.given.items())
        notes.append(f"LR {found.lr_source}: not used, as {given} was given; LR images are made")
    pairs = [pair._replace(lr=None) for pair in found.pairs]
    kind = settings.degradation
    if settings.noise != DEFAULT_NOISE:
        kind += f", noise of {settings.noise}"
    return FoundPairs(pairs, f"made ({kind})", notes)


def _open_cached(
    root: Path,
    files: Sequence[Pair],
    settings: LrSettings,
    split: str,
    which_lr: str | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> PairSet:
    """Return all pairs from the cache, which is built if it is not there; some may be skipped."""
    description = {
        "format": CACHE_FORMAT,
        "scale": settings.scale,
        "degradation": settings.degradation,
        "split": split,
        "seed": settings.seed,
        "border": settings.border,
        **settings.given,
    }
    if which_lr is not None:
        description["lr"] = which_lr
    sources: dict[str, Path] = {}
    for pair in files:
        sources[f"{pair.name}/hr/{_state_of(pair.hr, root)}"] = pair.hr
        if pair.lr is not None:
            sources[f"{pair.name}/lr/{_state_of(pair.lr, root)}"] = pair.lr

    folder, index = open_or_build(
        cache_places(root, cache_dir),
        f"x{settings.scale}-{settings.degradation}",
        description,
        sources,
        functools.partial(_write, root=root, files=files, settings=settings, progress=progress),
        progress=progress,
    )
    return _mapped(folder, index, root, settings.scale)


def _decode_for_once(
    root: Path, files: Sequence[Pair], settings: LrSettings, progress: bool
) -> PairSet:
    """Return all pairs without a cache; the files that they are decoded into are gone already."""
    write = functools.partial(_write, root=root, files=files, settings=settings, progress=progress)
    with built_for_once(write) as (folder, index):
        # What does not fit into memory stays mapped: the disk's space is free again with the set.
        return _mapped(folder, index, root, settings.scale).in_memory()


def _write(
    folder: Path, root: Path, files: Sequence[Pair], settings: LrSettings, progress: bool
) -> dict[str, object]:
    """Decode all pairs into a folder; return the index."""
    index = write_decoded(folder, files, settings, title=root.name, progress=progress)
    if not index["names"]:  # such a cache could not be mapped, as no empty file can
        raise _nothing_left(root, index["skipped"])
    return index


def _mapped(folder: Path, index: Mapping[str, Any], root: Path, scale: int) -> PairSet:
    """Return the pairs that are decoded in a folder; some may be skipped."""
    for note, names in index.get("notes", {}).items():  # caches of earlier versions have none
        shown = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
        _warn_once(f"{root}: {note} (images: {len(names)}; {shown})")
    return PairSet(
        index["names"],
        scale,
        lr_sizes=np.array(index["lr_sizes"]),
        lr_pixels=open_pixels(folder / LR_FILE),
        hr_pixels=open_pixels(folder / HR_FILE),
        skipped=sorted((name, reason) for name, reason in index["skipped"]),
    )


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning; of a set that is loaded at several scales it would come several times."""
    logger.warning("%s", message)


def _state_of(path: Path, root: Path) -> str:
    """Where a file lies, and whether it may not be read: permissions change neither size nor time.

    So an image that was left out for them is read when it may be.
    """
    place = _relative(str(path), str(root))
    return place if os.access(path, os.R_OK) else f"{place}, unreadable"


def _relative(path: str, root: str) -> str:
    """What `os.path.relpath` returns, at once for the usual case: data sets have many files."""
    prefix = root + os.sep
    inside = path.removeprefix(prefix)
    if inside != path and ".." not in inside:
        return inside
    return os.path.relpath(path, root)


def _without_small_images(pairs: PairSet, min_size: int) -> PairSet:
    """Return the pairs whose LR image has no side below `min_size`; the others are skipped."""
    large: list[str] = []
    skipped = list(pairs.skipped)
    for name, (height, width) in zip(pairs.names, pairs.lr_sizes.tolist(), strict=True):
        if min(height, width) >= min_size:
            large.append(name)
        else:
            reason = f"its LR image of {width}x{height} pixels is smaller than {min_size}"
            skipped.append(Skipped(name, reason))
    chosen = pairs.subset(large)
    chosen.skipped = sorted(skipped)
    return chosen


def _align_array(name: str, image: np.ndarray, settings: LrSettings) -> AlignedPair:
    """Check one HR image and make its LR image; errors name the image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image {name!r}: expected uint8 of shape (H, W, 3), got {image.dtype} of {image.shape}"
        )
    try:
        return align(image, None, name, settings)
    except ImageError as error:
        raise ImageError(f"image {name!r}: {error}") from None


def _nothing_left(root: Path, skipped: Sequence[tuple[str, str]]) -> ImageError:
    return ImageError(
        f"none of the {len(skipped)} images of {root} can be used:{listing(sorted(skipped))}"
    )
