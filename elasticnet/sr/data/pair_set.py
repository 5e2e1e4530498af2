"""`PairSet`: aligned LR and HR images of one scale, as flat pixels in memory or in mapped files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elasticnet.memory import free_memory
from elasticnet.sr.jpeg import JpegSetting

MAX_LISTED = 5  # images that a message names


class Skipped(NamedTuple):
    """An image that was left out.

    Attributes:
        name: The image's name.
        reason: Why it cannot be used, in one line.
    """

    name: str
    reason: str


def listing(skipped: Iterable[tuple[str, str]]) -> str:
    """Return a line for each of the first images that were left out, and how many more there are.

    Args:
        skipped: (name, reason) of each.

    Returns:
        At most six lines, each with its line break and two spaces in front.

    Example:
        >>> listing([("a", "cannot be read"), ("b", "is too small")])
        '\\n  a: cannot be read\\n  b: is too small'
    """
    everything = list(skipped)
    text = "".join(f"\n  {name}: {reason}" for name, reason in everything[:MAX_LISTED])
    num_others = len(everything) - MAX_LISTED
    if num_others > 0:
        text += f"\n  and {num_others} more"
    return text


class PairSet:
    """Aligned LR and HR images of one scale, as flat uint8 pixels.

    All images of a kind lie in one array, row by row, one image after another. So a patch sampler
    can hold them on a GPU as a single tensor, and a worker process can map them from one file.

    Args:
        names: One name per image.
        scale: Side of an HR image over the side of its LR image.
        lr_sizes: Height and width of each LR image, int64 of shape (number of images, 2). Each HR
            image is exactly `scale` times larger.
        lr_pixels: uint8 of shape (number of LR pixels, 3), RGB, 0..255.
        hr_pixels: uint8 of shape (number of HR pixels, 3), RGB, 0..255.
        starts: The row of `lr_pixels` at which each image begins, int64 of shape (number of
            images,). In `hr_pixels` it begins at `scale**2` times that row. By default the images
            follow one another without gaps.
        skipped: The images that were left out when this set was loaded.
        lr_source: Where the LR images come from: "made (BI)", "from files (FOLDER)".
        lr_jpeg: How the LR images were compressed, all alike; None if they were not.

    Example:
        >>> import numpy as np
        >>> from elasticnet.sr.data import pairs_from_arrays
        >>> pairs = pairs_from_arrays({"gray": np.full((40, 60, 3), 128, np.uint8)}, scale=2)
        >>> pairs.hr(0).shape, pairs.lr(0).shape
        ((40, 60, 3), (20, 30, 3))
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
        lr_source: str = "given",
        lr_jpeg: JpegSetting | None = None,
    ) -> None:
        self.names = list(names)
        self.scale = scale
        self.lr_sizes = np.array(lr_sizes, dtype=np.int64).reshape(-1, 2)
        self.lr_pixels = lr_pixels
        self.hr_pixels = hr_pixels
        self.starts = _starts_without_gaps(self.lr_sizes) if starts is None else np.array(starts)
        self.skipped = [Skipped(name, reason) for name, reason in skipped]
        self.lr_source = lr_source
        self.lr_jpeg = lr_jpeg

    @property
    def lr_is_made(self) -> bool:
        """Whether LR images were made of the HR images, at least some, and not read from files."""
        return self.lr_source.startswith("made")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        lr_pixels = int(self.lr_sizes.prod(axis=1).sum())
        return f"PairSet({len(self)} images, x{self.scale}, {lr_pixels:,} LR pixels)"

    def lr(self, index: int) -> np.ndarray:
        """Return an LR image, a read-only view of this set's pixels.

        Args:
            index: The image's position in `names`, from 0.

        Returns:
            uint8 of shape (height, width, 3), RGB, 0..255.

        Raises:
            IndexError: There is no such image; negative positions do not count from the end.
        """
        return self._image(self.lr_pixels, index, factor=1)

    def hr(self, index: int) -> np.ndarray:
        """Return an HR image, a read-only view of this set's pixels.

        Args:
            index: The image's position in `names`, from 0.

        Returns:
            uint8 of shape (scale * height, scale * width, 3), RGB, 0..255.

        Raises:
            IndexError: There is no such image; negative positions do not count from the end.
        """
        return self._image(self.hr_pixels, index, factor=self.scale)

    def subset(self, names: Iterable[str]) -> PairSet:
        """Return some of the images as a set of their own, which shares this set's pixels.

        Args:
            names: Which images, in the order that the new set shall have.

        Returns:
            The new set.

        Raises:
            KeyError: This set has no image of one of the names.
        """
        names = list(names)
        places = {name: place for place, name in enumerate(self.names)}
        unknown = [repr(name) for name in names if name not in places]
        if unknown:
            raise KeyError(f"no image named {', '.join(unknown)} among these {len(self)}")
        chosen = [places[name] for name in names]
        return PairSet(
            names,
            self.scale,
            self.lr_sizes[chosen],
            self.lr_pixels,
            self.hr_pixels,
            starts=self.starts[chosen],
            lr_source=self.lr_source,
            lr_jpeg=self.lr_jpeg,
        )

    def in_memory(self, limit: float = 0.5) -> PairSet:
        """Return this set with its pixels in memory if they fit, and otherwise the set itself.

        If the disk of a mapped file goes away, the process that reads the file dies. A set in
        memory outlives its disk.

        Args:
            limit: The largest share of the free memory that the pixels may take, 0..1.

        Returns:
            A copy, or this very set if it is in memory already or does not fit.
        """
        mapped_bytes = 0
        for pixels in (self.lr_pixels, self.hr_pixels):
            if isinstance(pixels, np.memmap):
                mapped_bytes += pixels.nbytes
        free_bytes = free_memory() or 0  # None, where the system does not say, counts as none
        if mapped_bytes == 0 or mapped_bytes > limit * free_bytes:
            return self
        return PairSet(
            self.names,
            self.scale,
            self.lr_sizes,
            _copy_in_memory(self.lr_pixels),
            _copy_in_memory(self.hr_pixels),
            starts=self.starts,
            skipped=self.skipped,
            lr_source=self.lr_source,
            lr_jpeg=self.lr_jpeg,
        )

    def _image(self, pixels: np.ndarray, index: int, factor: int) -> np.ndarray:
        """Return an image of the flat `pixels`, whose sides are `factor` times those of LR."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: this set has images 0 to {len(self) - 1}")
        start = int(self.starts[index]) * factor**2
        height = int(self.lr_sizes[index, 0]) * factor
        width = int(self.lr_sizes[index, 1]) * factor
        flat = np.asarray(pixels[start : start + height * width])  # (height * width, 3)
        image = flat.reshape(height, width, 3)
        image.flags.writeable = False  # as of mapped files: a write would change the set
        return image

    # A worker process maps the files again: pickling a mapped array would copy the whole set.

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("lr_pixels", "hr_pixels"):
            pixels: np.ndarray = state[name]
            if not isinstance(pixels, np.memmap):
                continue
            path = Path(str(pixels.filename))
            # Without a cache the file is gone, and only this process has it mapped.
            state[name] = path if path.exists() else np.array(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("lr_pixels", "hr_pixels"):
            if isinstance(state[name], Path):
                setattr(self, name, open_pixels(state[name]))


def _starts_without_gaps(lr_sizes: np.ndarray) -> np.ndarray:
    """Return the row at which each image begins if they follow one another."""
    areas = lr_sizes.prod(axis=1)
    return np.cumsum(areas) - areas


def _copy_in_memory(pixels: np.ndarray) -> np.ndarray:
    """A copy; that of a whole file is read from it, which is quicker than page by page."""
    if isinstance(pixels, np.memmap) and pixels.filename is not None:
        path = Path(str(pixels.filename))
        if path.is_file() and path.stat().st_size == pixels.nbytes:
            return np.fromfile(path, pixels.dtype).reshape(pixels.shape)
    return np.array(pixels)


def open_pixels(path: str | os.PathLike[str]) -> np.ndarray:
    """Map a file of RGB bytes into memory, read-only.

    Args:
        path: A file that holds three bytes for each pixel and nothing else.

    Returns:
        A `numpy.memmap`, uint8 of shape (number of pixels, 3).
    """
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3)
