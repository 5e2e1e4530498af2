"""Pairs of LR and HR images: decoded once, aligned, held flat in memory or in a mapped file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from elasticnet.memory import free_memory
from elasticnet.sr.data.decoded_cache import cache_places, open_or_build, open_pixels
from elasticnet.sr.data.folder_layouts import Pair, find_pairs
from elasticnet.sr.data.images import ImageError, read_rgb
from elasticnet.sr.degrade import KINDS, degrade, given_sigmas, modcrop

__all__ = [
    "Pair",
    "PairSet",
    "find_pairs",
    "load_pairs",
    "pairs_from_arrays",
    "scikit_image_photos",
]

_FORMAT = 1  # of the cached files: raise it when the same images give other bytes
_PHOTOS = (
    *(
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
    ),
    *(
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "page.png",
        "retina.jpg",
        "rocket.jpg",
    ),
)
Item = TypeVar("Item")
Result = TypeVar("Result")


class PairSet:
    """Aligned LR and HR images of one scale, as flat uint8 pixels.

    names: one per image. scale: HR side over LR side. lr_sizes: int64 (number of images, 2), height
    and width of each LR image; the HR image is exactly `scale`
        times larger. lr_pixels, hr_pixels: uint8 (number of pixels, 3), all images row by row, one
    after another, in memory or
        in mapped files. starts: int64, the row of `lr_pixels` at which each image begins; in
    `hr_pixels` it is `scale**2` times that. skipped: (name, reason) of each image that was left
    out.
    """

    def __init__(
        self,
        names: Sequence[str],
        scale: int,
        lr_sizes: np.ndarray,
        lr_pixels: np.ndarray,
        hr_pixels: np.ndarray,
        *,
        starts: np.ndarray | None = None,
        skipped: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.names = list(names)
        self.scale = scale
        self.lr_sizes = np.asarray(lr_sizes, dtype=np.int64).reshape(-1, 2)
        self.lr_pixels = lr_pixels
        self.hr_pixels = hr_pixels
        areas = self.lr_sizes.prod(axis=1)
        self.starts = np.cumsum(areas) - areas if starts is None else starts
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        lr_pixels = int(self.lr_sizes.prod(axis=1).sum())
        return f"PairSet({len(self)} images, x{self.scale}, {lr_pixels:,} LR pixels)"

    def lr(self, index: int) -> np.ndarray:
        """Return LR image `index`, uint8 (height, width, 3), a view."""
        return self._image(self.lr_pixels, index, 1)

    def hr(self, index: int) -> np.ndarray:
        """Return HR image `index`, uint8 (scale * height, scale * width, 3), a view."""
        return self._image(self.hr_pixels, index, self.scale)

    def subset(self, names: Iterable[str]) -> PairSet:
        """Return the named images as a set of their own, in the order given, sharing this set's
        pixels.
        """
        names = list(names)
        places = {name: place for place, name in enumerate(self.names)}
        unknown = [name for name in names if name not in places]
        if unknown:
            raise KeyError(
                f"no image named {', '.join(map(repr, unknown))} among these {len(self)}"
            )
        chosen = [places[name] for name in names]
        return PairSet(
            names,
            self.scale,
            self.lr_sizes[chosen],
            self.lr_pixels,
            self.hr_pixels,
            starts=self.starts[chosen],
        )

    def in_memory(self, limit: float = 0.5) -> PairSet:
        """Return this set with its pixels in memory, where they take less than `limit` of what is
        free; else itself.

        A set that is mapped to a file dies with the file's disk, and the process that reads it too;
        one in memory outlives it.
        """
        mapped = [
            pixels for pixels in (self.lr_pixels, self.hr_pixels) if isinstance(pixels, np.memmap)
        ]
        if not mapped or sum(pixels.nbytes for pixels in mapped) > limit * (free_memory() or 0):
            return self
        lr_pixels, hr_pixels = np.array(self.lr_pixels), np.array(self.hr_pixels)
        return PairSet(
            self.names,
            self.scale,
            self.lr_sizes,
            lr_pixels,
            hr_pixels,
            starts=self.starts,
            skipped=self.skipped,
        )

    def _image(self, pixels: np.ndarray, index: int, factor: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: this set has images 0 to {len(self) - 1}")
        start = int(self.starts[index]) * factor**2
        height, width = (int(side) * factor for side in self.lr_sizes[index])
        return np.asarray(pixels[start : start + height * width]).reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the file again; pickling a mapped array would copy the whole set.
        state = self.__dict__.copy()
        for name in ("lr_pixels", "hr_pixels"):
            if isinstance(state[name], np.memmap):
                state[name] = Path(state[name].filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("lr_pixels", "hr_pixels"):
            if isinstance(state[name], Path):
                setattr(self, name, open_pixels(state[name]))


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
    **sigmas: float | None,
) -> PairSet:
    """Load every pair that `find_pairs(root, scale, split, degradation)` finds, from a cache built
    when needed.

    The cache holds the decoded images (3 bytes per LR and HR pixel) in files that are mapped into
    memory, in `<root>.elasticnet-cache` beside the data set, or in the user's cache folder where
    that cannot be written, or under `cache_dir`. It is built once, also when several processes
    start together, and again when an image file changes.

    HR is cropped at the right and bottom to `scale` times the LR size. LR images come from their
    files where the layout has them, otherwise from `degrade(hr, degradation, scale, border=border,
    **sigmas)`, where sigmas may be `blur_sigma` and `noise_sigma`, None for its own; `seed` enters
    the noise of "DN", which differs from image to image (see `noise_seed`).

    An image is left out that cannot be read, does not fit its LR file, or has a side of less than
    `min_size` LR pixels (give the patch size); one warning lists them and `.skipped` holds them.
    `ImageError` is raised when none is left.
    """
    _check(scale, degradation)
    given = given_sigmas(degradation, **sigmas)
    pairs = find_pairs(root, scale, split, degradation)
    root = Path(root)
    seed = seed if degradation == "DN" else 0
    description = {
        "format": _FORMAT,
        "scale": scale,
        "degradation": degradation,
        "split": split or "train",
        "seed": seed,
        "border": border,
        **given,
    }
    files = {
        f"{pair.name}/{kind}/{os.path.relpath(path, root)}": path
        for pair in pairs
        for kind, path in (("hr", pair.hr), ("lr", pair.lr))
        if path is not None
    }
    read = partial(
        _try_read, scale=scale, degradation=degradation, seed=seed, border=border, **given
    )
    folder, index = open_or_build(
        cache_places(root, cache_dir),
        f"x{scale}-{degradation}",
        description,
        files,
        partial(_write, root, pairs, read, progress),
        progress=progress,
    )
    loaded = PairSet(
        index["names"],
        scale,
        np.array(index["lr_sizes"]),
        open_pixels(folder / "lr.bin"),
        open_pixels(folder / "hr.bin"),
    )
    skipped = [(name, reason) for name, reason in index["skipped"]]
    if min_size:  # here and not in the cache, so that all patch sizes share one
        small = loaded.lr_sizes.min(axis=1) < min_size
        for place in np.flatnonzero(small):
            height, width = loaded.lr_sizes[place]
            skipped.append(
                (
                    loaded.names[place],
                    f"its LR image of {width}x{height} pixels is smaller than {min_size}",
                )
            )
        if small.all():
            raise _nothing_left(root, skipped)
        loaded = loaded.subset(loaded.names[place] for place in np.flatnonzero(~small))
    loaded.skipped = sorted(skipped)
    if skipped:
        warnings.warn(
            f"left out {len(skipped)} of {len(pairs)} images of {root}:{_listing(skipped)}",
            stacklevel=2,
        )
    return loaded


def pairs_from_arrays(
    images: Mapping[str, np.ndarray],
    scale: int,
    *,
    degradation: str = "BI",
    seed: int = 0,
    border: str = "symmetric",
    **sigmas: float | None,
) -> PairSet:
    """Make a set in memory from HR images, uint8 (height, width, 3), as `load_pairs` makes it from
    files.
    """
    _check(scale, degradation)
    given = given_sigmas(degradation, **sigmas)
    if not images:
        raise ValueError("images: expected at least one, got an empty mapping")
    made = []
    for name, image in images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image {name!r}: expected uint8 of shape (H, W, 3), got {image.dtype} of {image.shape}"
            )
        try:
            made.append(_make_pair(image, None, name, scale, degradation, seed, border, **given))
        except ImageError as error:
            raise ImageError(f"image {name!r}: {error}") from None
    return PairSet(
        list(images),
        scale,
        np.array([lr.shape[:2] for _, lr in made]),
        np.concatenate([lr.reshape(-1, 3) for _, lr in made]),
        np.concatenate([hr.reshape(-1, 3) for hr, _ in made]),
    )


def scikit_image_photos() -> dict[str, np.ndarray]:
    """Return the photographs that scikit-image carries in its wheel, name -> uint8 (H, W, 3),
    sorted by name.

    Of the stereo pair `motorcycle` only the left view is taken, so that no scene falls on two sides
    of a split; drawings, test charts and out-of-focus frames are left out. The files are read
    directly, and nothing is ever downloaded.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            'the built-in photographs come with scikit-image: pip install "elastic-depth[train]"'
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    photos = {
        Path(name).stem: read_rgb(folder / name) for name in _PHOTOS if (folder / name).is_file()
    }
    if not photos:
        raise FileNotFoundError(
            f"none of scikit-image's photographs in {folder}; reinstall scikit-image"
        )
    return photos


def noise_seed(seed: int, name: str) -> int:
    """Return the seed of the noise of image `name`; images that are added or left out change no
    other's.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")


def _check(scale: int, degradation: str) -> None:
    if not isinstance(scale, int) or isinstance(scale, bool) or scale < 1:
        raise ValueError(f"scale {scale!r}: expected a whole number from 1")
    if degradation not in KINDS:
        raise ValueError(f"degradation {degradation!r}: expected one of {', '.join(KINDS)}")


def _make_pair(
    hr: np.ndarray,
    lr: np.ndarray | None,
    name: str,
    scale: int,
    degradation: str,
    seed: int,
    border: str,
    **sigmas: Any,
) -> tuple[np.ndarray, np.ndarray]:
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    if lr is not None:
        if max(abs(hr.shape[0] / scale - lr.shape[0]), abs(hr.shape[1] / scale - lr.shape[1])) >= 1:
            raise ImageError(
                f"LR of {lr.shape[1]}x{lr.shape[0]} pixels does not fit HR of {hr.shape[1]}x{hr.shape[0]} "
                f"at scale {scale}"
            )
        height, width = min(height, lr.shape[0]), min(width, lr.shape[1])
    if min(height, width) < 1:
        raise ImageError(
            f"{hr.shape[1]}x{hr.shape[0]} pixels leave none for the LR image at scale {scale}"
        )
    if lr is None:
        hr = modcrop(hr, scale)
        return hr, degrade(
            hr, degradation, scale, seed=noise_seed(seed, name), border=border, **sigmas
        )
    return hr[: height * scale, : width * scale], lr[:height, :width]


def _try_read(pair: Pair, **options: Any) -> tuple[np.ndarray, np.ndarray] | str:
    """Return (hr, lr), or in one line why there is none."""
    try:
        hr = read_rgb(pair.hr)
        lr = None if pair.lr is None else read_rgb(pair.lr)
        return _make_pair(hr, lr, pair.name, **options)
    except (ImageError, OSError) as error:
        return str(error)


def _write(
    root: Path,
    pairs: Sequence[Pair],
    read: Callable[[Pair], tuple[np.ndarray, np.ndarray] | str],
    progress: bool,
    folder: Path,
) -> dict[str, Any]:
    names, sizes, skipped = [], [], []
    with open(folder / "hr.bin", "wb") as hr_file, open(folder / "lr.bin", "wb") as lr_file:
        results = tqdm(
            _map_ahead(read, pairs),
            total=len(pairs),
            desc=f"decoding {root.name}",
            unit="image",
            disable=not progress,
        )
        for pair, result in zip(pairs, results, strict=True):
            if isinstance(result, str):
                skipped.append((pair.name, result))
                continue
            hr, lr = result
            hr_file.write(np.ascontiguousarray(hr).data)
            lr_file.write(np.ascontiguousarray(lr).data)
            names.append(pair.name)
            sizes.append(lr.shape[:2])
    if not names:
        raise _nothing_left(root, skipped)
    return {"names": names, "lr_sizes": sizes, "skipped": skipped}


def _listing(skipped: Iterable[tuple[str, str]]) -> str:
    return "".join(f"\n  {name}: {reason}" for name, reason in sorted(skipped))


def _nothing_left(root: Path, skipped: Sequence[tuple[str, str]]) -> ImageError:
    return ImageError(
        f"none of the {len(skipped)} images of {root} can be used:{_listing(skipped)}"
    )


def _map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map in threads, in order, only a few results ahead of the reader, as each is a whole
    image.
    """
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
