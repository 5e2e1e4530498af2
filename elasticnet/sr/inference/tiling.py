"""Enlarge an image of any size tile by tile, with the same result as one pass over the whole.

The memory that it takes is bounded by the size of a tile, not by that of the image. Nothing here
imports torch: the plan knows what runs the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elasticnet.memory import is_out_of_memory
from elasticnet.sr.inference.tile_engine import TileEngine, TilePart
from elasticnet.sr.inference.tile_layout import (
    Span,
    Tiling,
    batch_size,
    first_tiling,
    smaller_tiling,
)


def upscale_array(
    image: NDArray[Any],
    plan: TileEngine,
    *,
    out: NDArray[Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> NDArray[Any]:
    """Enlarge an image of uint8, uint16 or floats in 0..1; the same kind comes back.

    Integers are rounded half away from zero and clipped. Floats are what the network gives,
    computed in its own precision. A gray image runs as RGB and comes back as luma (ITU-R 601).

    If a tile runs out of memory, the rest is enlarged in tiles of half the side, down to 16 pixels.
    The network runs in eval mode. Several threads may share it if it already is in eval mode.

    Args:
        image: (h, w, 3), or gray (h, w). It is read a tile at a time, so that it may be mapped to a
            file, as a `np.memmap` is.
        plan: The network and how it is run, as `plan_upscale` or `plan_onnx` returns it.
        out: An array of the image's dtype, (scale h, scale w, 3) or (scale h, scale w), in which
            the result is stored a tile at a time. It may be mapped to a file, too. Default: a new
            array.
        progress: Called with the number of tiles that are done and of all tiles: before the first
            tile and after each one. The total changes when memory runs out.

    Returns:
        `out`, or the new array.

    Raises:
        TypeError: `image` is not an array.
        ValueError: The shape, dtype or values of `image` or `out` are invalid, or the network gives
            NaN or infinity.
        MemoryError: The smallest tile does not fit into the memory, or the whole image does not and
            must not be cut into tiles.

    Example:
        >>> plan = plan_upscale(asrn(2, pretrained=True), depth=1)
        >>> upscale_array(np.zeros((20, 30, 3), np.uint8), plan).shape
        (40, 60, 3)
    """
    _check_image(image)
    # Before `out` takes memory: the size of "auto" tiles depends on how much is free.
    tiling = first_tiling(plan, size=image.shape[:2])
    if out is None:
        out = np.empty(_output_shape(image, plan.scale), image.dtype)
    else:
        _check_output(out, image, plan.scale)
    with plan.running() as running_plan:
        _TileWork(image, out, running_plan, progress).run(tiling)
    return out


class _TileWork:
    """An image that is being enlarged; it remembers what is done between one tiling and the next.

    `rows_written` counts the LR rows from the top whose output is complete; it never falls. A retry
    with smaller tiles skips a row of tiles only if all of it is written. It enlarges every other
    row of tiles as a whole, even where a part of it is written already.
    """

    def __init__(
        self,
        image: NDArray[Any],
        out: NDArray[Any],
        plan: TileEngine,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.image = image
        self.out = out
        self.plan = plan
        self.progress = progress
        self.batch = 1  # tiles that run at once
        self.rows_written = 0
        self.has_warned_of_seams = False

    def run(self, tiling: Tiling) -> None:
        """Enlarge the image tile by tile. Whenever memory runs out, go on with smaller tiles."""
        self.batch = batch_size(self.plan, tiling)
        while True:
            self._warn_of_seams(tiling)
            shortage = self._run_until_out_of_memory(tiling)
            if shortage is None:
                return  # all tiles are written
            self.plan.free_cached_memory()
            if self.batch > 1:
                self.batch = 1  # before tiles become smaller
                continue
            size = self.image.shape[:2]
            tiling = smaller_tiling(self.plan, tiling, size, shortage)  # raises if there are none

    def _warn_of_seams(self, tiling: Tiling) -> None:
        """Warn once if there are several tiles that cannot be the same as the whole image.

        The first tiling may be one tile, which has no seams, and a later one several.
        """
        may_show_seams = self.plan.reach is None and tiling.num_tiles > 1
        if not may_show_seams or self.has_warned_of_seams:
            return
        self.has_warned_of_seams = True
        warnings.warn(
            f"tile {tiling.side}: depth {self.plan.depth} of this net has no bounded reach, so "
            "that tiles give another image than the whole and may show seams; tile=None runs the "
            "image whole",
            stacklevel=4,  # 1 is this method, 2 is run, 3 is upscale_array, 4 is what called that
        )

    def _run_until_out_of_memory(self, tiling: Tiling) -> str | None:
        """Run the tiles; return the allocator's message if memory ran out, or None at the end."""
        try:
            self._run_tiles(tiling)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Text, not the exception: its traceback would keep the tensors alive.
            return str(error).partition("\n")[0]
        return None

    def _run_tiles(self, tiling: Tiling) -> None:
        """Enlarge the tiles that are not written yet, row after row."""
        tiles_done = 0
        self._report(tiles_done, tiling.num_tiles)
        for row in tiling.rows:
            if row.stop <= self.rows_written:  # written by larger tiles, before memory ran out
                tiles_done += len(tiling.columns)
                self._report(tiles_done, tiling.num_tiles)
                continue
            for columns in _groups(tiling.columns, self.batch):
                self._enlarge(row, columns)
                tiles_done += len(columns)
                self._report(tiles_done, tiling.num_tiles)
            self.rows_written = row.stop

    def _enlarge(self, row: Span, columns: Sequence[Span]) -> None:
        """Enlarge tiles of one row: read their windows, run the network, write what it makes.

        A window is a tile and the pixels around it that its output depends on.
        """
        scale = self.plan.scale
        rows = slice(row.window_start, row.window_stop)
        windows: list[NDArray[Any]] = []
        parts: list[TilePart] = []
        for column in columns:
            windows.append(self.image[rows, column.window_start : column.window_stop])
            parts.append(TilePart(rows=row.in_window(scale), columns=column.in_window(scale)))
        tiles = self.plan.enlarge(windows, parts)
        for column, pixels in zip(columns, tiles, strict=True):
            self.out[row.in_image(scale), column.in_image(scale)] = pixels

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def _groups(columns: Sequence[Span], size: int) -> Iterator[Sequence[Span]]:
    """Neighbours in groups of a size; the last one may be smaller."""
    for first in range(0, len(columns), size):
        yield columns[first : first + size]


# --- what is checked before the first tile


def _check_image(image: NDArray[Any]) -> None:
    """Raise unless an image can be enlarged."""
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"image is a {type(image).__name__}: expected a NumPy array; Upscaler takes other kinds"
        )
    is_gray = image.ndim == 2
    is_rgb = image.ndim == 3 and image.shape[2] == 3
    if not (is_gray or is_rgb) or image.size == 0:
        raise ValueError(
            f"image of shape {image.shape}: expected (h, w, 3), or (h, w) for gray, "
            "without an empty side"
        )
    is_float = image.dtype.kind == "f"
    is_uint8_or_uint16 = image.dtype.kind == "u" and image.dtype.itemsize <= 2
    if not (is_float or is_uint8_or_uint16):
        raise ValueError(f"image of {image.dtype}: expected uint8, uint16, or floats in 0..1")
    if is_float:
        _check_float_range(image)


def _check_float_range(image: NDArray[Any]) -> None:
    """Raise unless values lie in -1..2: about 0..1, with room for the overshoot of resizing."""
    low = float(image.min())
    high = float(image.max())
    is_in_range = low >= -1 and high <= 2  # False for NaN
    if not is_in_range:
        raise ValueError(
            f"float image with values from {low:g} to {high:g}: expected 0..1: "
            "divide it by its white"
        )


def _output_shape(image: NDArray[Any], scale: int) -> tuple[int, ...]:
    height, width, *channels = image.shape
    return (height * scale, width * scale, *channels)


def _check_output(out: NDArray[Any], image: NDArray[Any], scale: int) -> None:
    """Raise unless an array that the caller passed can hold the enlarged image."""
    shape = _output_shape(image, scale)
    if out.shape != shape or out.dtype != image.dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}: expected {image.dtype} {shape}")
