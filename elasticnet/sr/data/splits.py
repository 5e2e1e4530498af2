"""Which images are trained on and which are validated on."""

from __future__ import annotations

import os
import re

from elasticnet.sr.data.builtin_photos import scikit_image_photos
from elasticnet.sr.data.folder_layouts import find_layout
from elasticnet.sr.data.loading import load_pairs, pairs_from_arrays
from elasticnet.sr.data.pair_set import PairSet

HELD_OUT_PHOTOS = ("chelsea", "coffee", "rocket")  # of scikit-image's photographs
MEMORY_SHARE = 0.5  # of the free memory, for the pixels of all processes of a host together


def training_pairs(
    data: str | os.PathLike[str] | None,
    valid: str | os.PathLike[str] | None,
    scale: int,
    degradation: str = "BI",
    *,
    seed: int = 0,
    num_valid: int = 10,
    min_size: int = 0,
    progress: bool = True,
    blur_sigma: float | None = None,
    noise_sigma: float | None = None,
    track: str | None = None,
    lr_root: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache: bool = True,
) -> tuple[PairSet, PairSet]:
    """Return the training pairs and the validation pairs, in memory if they fit.

    Args:
        data: DIV2K, another known layout or a flat folder of HR images. None takes the photographs
            that scikit-image carries, and holds `HELD_OUT_PHOTOS` out if there is no `valid`.
        valid: Images for validation. None holds `num_valid` of the training images out.
        scale: Side of an HR image over the side of its LR image.
        degradation: How LR is made: "BI", "BD", "DN" or "HAZE" (see `degrade`).
        seed: Of noise and haze (see `noise_seed`).
        num_valid: How many images of `data` to hold out, evenly spread over them.
        min_size: Smallest side of an LR training image that is used, in pixels: the patch size.
        progress: Whether to show progress bars.
        blur_sigma: Of "BD", in HR pixels; None for the default of `degrade`.
        noise_sigma: Of "DN", on the 0..255 scale; None for the default of `degrade`.
        track: Which of DIV2K's LR images are read, of `data` and `valid`: see `find_files`.
        lr_root: The folder of the LR images of `data`.
        cache_dir: Where decoded images are kept; default: as in `load_pairs`.
        cache: Whether decoded images are kept; if not, they are decoded at every start.

    Returns:
        The training pairs and the validation pairs.

    Raises:
        ValueError: `num_valid` leaves nothing on one of the sides; and what `load_pairs` raises.
    """

    for option, given in (("--track", track), ("--data-lr", lr_root)):
        if given is not None and data is None:
            raise ValueError(f"{option} {given}: give the images that it belongs to by --data")

    def load(
        root: str | os.PathLike[str],
        split: str,
        smallest_side: int,
        lr_root: str | os.PathLike[str] | None = None,
    ) -> PairSet:
        pairs = load_pairs(
            root,
            scale,
            degradation=degradation,
            split=split if find_layout(root) == "div2k" else None,
            seed=seed,
            min_size=smallest_side,
            progress=progress,
            blur_sigma=blur_sigma,
            noise_sigma=noise_sigma,
            track=track,
            lr_root=lr_root,
            cache_dir=cache_dir,
            cache=cache,
        )
        return pairs.in_memory(limit=MEMORY_SHARE / _processes_of_this_host())

    if data is not None:
        training = load(data, split="train", smallest_side=min_size, lr_root=lr_root)
    else:
        training = pairs_from_arrays(
            scikit_image_photos(),
            scale,
            degradation=degradation,
            seed=seed,
            blur_sigma=blur_sigma,
            noise_sigma=noise_sigma,
        )
    if valid is not None:
        return training, load(valid, split="valid", smallest_side=0)
    if data is None:
        return _split(training, HELD_OUT_PHOTOS)
    return _split(training, _held_out(training.names, num_valid))


def _held_out(names: list[str], num_valid: int) -> list[str]:
    """Return the names of `num_valid` images, each with all its LR images of DIV2K's "wild"."""
    image_of = {name: re.sub(r"x\dw\d$", "", name) for name in names}
    images = list(dict.fromkeys(image_of.values()))  # each once, in order
    chosen = _evenly_spread(images, num_valid)
    return [name for name in names if image_of[name] in chosen]


def _evenly_spread(names: list[str], num_valid: int) -> list[str]:
    """Return `num_valid` of the names, with equal distances between them."""
    if not 0 < num_valid < len(names):
        raise ValueError(
            f"--num-valid {num_valid}: expected at least 1 and fewer than the {len(names)} "
            "training images; or give images of their own by --valid"
        )
    return [names[index * len(names) // num_valid] for index in range(num_valid)]


def _split(pairs: PairSet, held_out: list[str] | tuple[str, ...]) -> tuple[PairSet, PairSet]:
    """Return the pairs that are not held out, and those that are."""
    trained_on = [name for name in pairs.names if name not in held_out]
    return pairs.subset(trained_on), pairs.subset(held_out)


def _processes_of_this_host() -> int:
    """Each process of a training holds the pixels for itself; torchrun says how many there are."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
