"""Which images are trained on and which are validated on."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from elasticnet.sr.data.builtin_photos import scikit_image_photos
from elasticnet.sr.data.folder_layouts import find_layout, find_validation
from elasticnet.sr.data.held_out import find_listed
from elasticnet.sr.data.joining import joined, labels_of
from elasticnet.sr.data.licences import permissive_names
from elasticnet.sr.data.loading import load_pairs, pairs_from_arrays
from elasticnet.sr.data.pair_set import PairSet

HELD_OUT_PHOTOS = ("chelsea", "coffee", "rocket")  # of scikit-image's photographs
MEMORY_SHARE = 0.5  # of the free memory, for the pixels of all processes of a host together
LICENCES = ("all", "permissive")

Folder = str | os.PathLike[str]

logger = logging.getLogger(__name__)


class _Split(NamedTuple):
    """Both sides of a split, and in words which images are validated on."""

    training: PairSet
    validation: PairSet
    words: str


class _Validation(NamedTuple):
    """What `training_pairs` is asked to validate on."""

    valid: Folder | None
    held_out: Folder | None
    num_valid: int
    published_split: bool


@dataclass(frozen=True, kw_only=True)
class _Loader:
    """Loads folders of images as `training_pairs` is asked to."""

    scale: int
    degradation: str
    seed: int
    blur_sigma: float | None
    noise_sigma: float | None
    track: str | None
    cache_dir: Folder | None
    cache: bool
    progress: bool

    def load(
        self, root: Folder, split: str, *, min_size: int = 0, lr_root: Folder | None = None
    ) -> PairSet:
        """Return the pairs of a folder, mapped from the cache; a split is DIV2K's alone."""
        return load_pairs(
            root,
            self.scale,
            degradation=self.degradation,
            split=split if find_layout(root) == "div2k" else None,
            seed=self.seed,
            min_size=min_size,
            progress=self.progress,
            blur_sigma=self.blur_sigma,
            noise_sigma=self.noise_sigma,
            track=self.track,
            lr_root=lr_root,
            cache_dir=self.cache_dir,
            cache=self.cache,
        )

    def carried_photos(self) -> PairSet:
        """Return the photographs that scikit-image carries."""
        return pairs_from_arrays(
            scikit_image_photos(),
            self.scale,
            degradation=self.degradation,
            seed=self.seed,
            blur_sigma=self.blur_sigma,
            noise_sigma=self.noise_sigma,
        )


def training_pairs(
    data: Sequence[Folder] | None,
    valid: Folder | None,
    scale: int,
    degradation: str = "BI",
    *,
    seed: int = 0,
    num_valid: int = 10,
    held_out: Folder | None = None,
    published_split: bool = True,
    licences: str = "all",
    min_size: int = 0,
    progress: bool = True,
    blur_sigma: float | None = None,
    noise_sigma: float | None = None,
    track: str | None = None,
    lr_root: Folder | None = None,
    cache_dir: Folder | None = None,
    cache: bool = True,
    say: Callable[[str], object] = logger.info,
) -> tuple[PairSet, PairSet]:
    """Return the training pairs and the validation pairs, in memory if they fit.

    Validation images are, in this order: those of `valid`; those that `held_out` lists; DIV2K's
    own, if it is among the data; and `num_valid` of the training images.

    Args:
        data: Folders, each DIV2K, another known layout or flat with HR images. Of several folders
            the images are trained on together, and their names begin with the folder's. None takes
            the photographs that scikit-image carries, of which `HELD_OUT_PHOTOS` are held out.
        valid: Images for validation, a folder.
        scale: Side of an HR image over the side of its LR image.
        degradation: How LR is made: "BI", "BD", "DN", "HAZE" or "photo" (see `degrade`).
        seed: Of noise, haze and JPEG (see `noise_seed`).
        num_valid: How many images of `data` to hold out, evenly spread over them. Of DIV2K in
            EDSR's layout, how many of 801 to 900 to validate on, the first ones.
        held_out: A text file with the names of the images to hold out, one a line.
        published_split: Whether DIV2K is validated on its validation images, where they are there.
        licences: "all", or "permissive" to leave out of the training the photographs that the
            LICENSES.md of their folder marks as copyleft.
        min_size: Smallest side of an LR training image that is used, in pixels: the patch size.
        progress: Whether to show progress bars.
        blur_sigma: Of "BD", in HR pixels; None for the default of `degrade`.
        noise_sigma: Of "DN", on the 0..255 scale; None for the default of `degrade`.
        track: Which of DIV2K's LR images are read, of `data` and `valid`: see `find_files`.
        lr_root: The folder of the LR images of `data`, which is then one folder. Validation images
            are then never DIV2K's own, whose LR images nobody has given.
        cache_dir: Where decoded images are kept; default: as in `load_pairs`.
        cache: Whether decoded images are kept; if not, they are decoded at every start.
        say: Gets a line on how many images are of each of several folders, and one on which are
            validated on.

    Returns:
        The training pairs and the validation pairs.

    Raises:
        ValueError: Arguments do not fit together, `held_out` names images that are not there,
            nothing is left on one of the sides; and what `load_pairs` raises.
    """
    _check_arguments(data, valid, held_out, licences, track, lr_root)
    loader = _Loader(
        scale=scale,
        degradation=degradation,
        seed=seed,
        blur_sigma=blur_sigma,
        noise_sigma=noise_sigma,
        track=track,
        cache_dir=cache_dir,
        cache=cache,
        progress=progress,
    )
    if data is None:
        everything = loader.carried_photos()
    else:
        everything = _load_together(loader, data, min_size, lr_root)
    validation = _Validation(
        valid=valid,
        held_out=held_out,
        num_valid=num_valid,
        published_split=published_split and lr_root is None,
    )
    split = _split(loader, data, everything, validation)
    training = split.training
    if data is not None and licences == "permissive":
        training = training.subset(permissive_names(data, training.names))

    if data is not None and len(data) > 1:
        say(_line_of_folders(data, training))
    if split.words:
        say(split.words)
    return training, split.validation


def _check_arguments(
    data: Sequence[Folder] | None,
    valid: Folder | None,
    held_out: Folder | None,
    licences: str,
    track: str | None,
    lr_root: Folder | None,
) -> None:
    """Raise if arguments do not fit together; messages name them as the command line does."""
    if licences not in LICENCES:
        raise ValueError(f"--licences {licences}: expected one of {', '.join(LICENCES)}")
    of_data = {"--track": track, "--data-lr": lr_root, "--held-out": held_out}
    if licences != "all":
        of_data["--licences"] = licences
    for option, given in of_data.items():
        if given is not None and data is None:
            raise ValueError(f"{option} {given}: give the images that it belongs to by --data")
    if held_out is not None and valid is not None:
        raise ValueError(f"--held-out {held_out} beside --valid {valid}: give one of the two")
    if data is not None:
        _check_folders(data, lr_root)


def _check_folders(data: Sequence[Folder], lr_root: Folder | None) -> None:
    """Raise if the folders of training images are none, the same, or have LR images in common."""
    if isinstance(data, str):  # a sequence of strings by its type, each of one letter
        raise TypeError(f"data {data!r}: expected a list of folders")
    if not data:
        raise ValueError("--data: expected at least one folder")
    if lr_root is not None and len(data) > 1:
        raise ValueError(
            f"--data-lr {lr_root} with {len(data)} folders of --data: it belongs to one; let the "
            "LR images of each folder lie in it, beside the HR images"
        )
    paths = [os.path.realpath(folder) for folder in data]
    for folder, path in zip(data, paths, strict=True):
        if paths.count(path) > 1:
            raise ValueError(f"--data {os.fspath(folder)}: given more than once")


def _load_together(
    loader: _Loader, data: Sequence[Folder], min_size: int, lr_root: Folder | None
) -> PairSet:
    """Return the training images of all folders, in memory if they fit."""
    sets = [loader.load(root, "train", min_size=min_size, lr_root=lr_root) for root in data]
    if len(sets) == 1:
        return sets[0].in_memory(limit=_memory_limit())
    return joined(sets, labels_of(data), limit=_memory_limit())


def _line_of_folders(data: Sequence[Folder], training: PairSet) -> str:
    """How many training images are of each folder."""
    counts: list[str] = []
    for label, root in zip(labels_of(data), data, strict=True):
        number = sum(name.startswith(f"{label}/") for name in training.names)
        counts.append(f"{number} of {os.fspath(root)}")
    return f"training images: {', '.join(counts)}"


# --- which images are validated on


def _split(
    loader: _Loader, data: Sequence[Folder] | None, everything: PairSet, asked: _Validation
) -> _Split:
    """Divide the images, or load those to validate on."""
    if asked.valid is not None:
        own_images = loader.load(asked.valid, "valid").in_memory(limit=_memory_limit())
        return _Split(everything, own_images, words="")
    if asked.held_out is not None:
        return _hold_out_listed(everything, asked.held_out)
    if data is None:
        return _hold_out(everything, HELD_OUT_PHOTOS, words="")
    if asked.published_split:
        published = _published_validation(loader, data, asked.num_valid)
        if published is not None:
            pairs, words = published
            return _Split(everything, pairs, words)
    names = _held_out_names(everything.names, asked.num_valid)
    words = f"validation images: {len(names)} of the training images, held out"
    return _hold_out(everything, names, words)


def _hold_out(pairs: PairSet, held_out: Sequence[str], words: str) -> _Split:
    """Divide pairs into those that are not held out and those that are."""
    not_trained_on = set(held_out)
    trained_on = [name for name in pairs.names if name not in not_trained_on]
    return _Split(pairs.subset(trained_on), pairs.subset(held_out), words)


def _hold_out_listed(pairs: PairSet, file: Folder) -> _Split:
    """Hold out the images whose names a text file lists."""
    names = find_listed(file, pairs.names, dict(pairs.skipped))
    if len(names) == len(pairs):
        raise ValueError(f"--held-out {file}: lists all of the {len(names)} training images")
    words = f"validation images: {len(names)} of the training images, held out as {file} lists them"
    return _hold_out(pairs, names, words)


def _published_validation(
    loader: _Loader, data: Sequence[Folder], num_valid: int
) -> tuple[PairSet, str] | None:
    """DIV2K's own validation images, and a line on them; None if no folder has some."""
    for root in data:
        found = find_validation(root)
        if found is None:
            continue
        pairs = loader.load(root, "valid").in_memory(limit=_memory_limit())
        words = f"validation images: the {len(pairs)} of {found.folder} in {os.fspath(root)}"
        if found.beside_training:
            # 801 to 810 with the default, as EDSR has it: each validation takes its time.
            pairs = pairs.subset(_first_images(pairs.names, num_valid))
            words = (
                f"validation images: {pairs.names[0]} to {pairs.names[-1]} of {found.folder} in "
                f"{os.fspath(root)}, where they lie beside the training images"
            )
        return pairs, words
    return None


def _image_of(name: str) -> str:
    """The image that a pair is of; of one of DIV2K's track "wild" there are several pairs."""
    return re.sub(r"x\dw\d$", "", name)


def _first_images(names: Sequence[str], num_valid: int) -> list[str]:
    """Return the names of the first images, each with all its LR images."""
    if num_valid < 1:
        raise ValueError(f"--num-valid {num_valid}: expected at least 1")
    images = list(dict.fromkeys(_image_of(name) for name in names))  # each once, in order
    return [name for name in names if _image_of(name) in images[:num_valid]]


def _held_out_names(names: Sequence[str], num_valid: int) -> list[str]:
    """Return the names of `num_valid` images, each with all its LR images of DIV2K's "wild"."""
    images = list(dict.fromkeys(_image_of(name) for name in names))  # each once, in order
    chosen = set(_evenly_spread(images, num_valid))
    return [name for name in names if _image_of(name) in chosen]


def _evenly_spread(names: Sequence[str], num_valid: int) -> list[str]:
    """Return `num_valid` of the names, with equal distances between them."""
    if not 0 < num_valid < len(names):
        raise ValueError(
            f"--num-valid {num_valid}: expected at least 1 and fewer than the {len(names)} "
            "training images; or give images of their own by --valid"
        )
    return [names[index * len(names) // num_valid] for index in range(num_valid)]


def _memory_limit() -> float:
    """Each process of a training holds the pixels for itself; torchrun says how many there are."""
    return MEMORY_SHARE / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
