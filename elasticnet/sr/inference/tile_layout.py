"""Where the tiles of an image lie, and how large they are.

The tiles cover the image without gap or overlap. To enlarge a tile, the network runs on its window:
the tile and `overlap` pixels around it. Of the output, the part for the tile is kept.

`first_tiling` lays the tiles that a plan asks for over an image of one size. `smaller_tiling` takes
their place when memory runs out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from elasticnet.memory import free_memory
from elasticnet.sr.inference.tile_engine import TileEngine

GB = 10**9

# LR pixels a side of the smallest tile that is tried when memory runs out.
MIN_TILE = 16

# LR pixels by which tiles overlap if they cannot equal the whole image anyway.
SEAM_OVERLAP = 32

# LR pixels a side of the window that runs fastest, by kind of device. On the CPU, a tensor of 96
# channels then stays below 32 MiB. Up to that size the C library keeps freed memory for the next
# tensor; larger windows take 1.6 times as long for each pixel.
AUTO_WINDOW_SIDES = {"cpu": 288, "cuda": 1024}

# The least side of an "auto" window, in reaches of the network, unless memory is short.
AUTO_WINDOW_IN_REACHES = 8

# The part of the free memory that an "auto" pass takes at most. The other half is for the result,
# for other programs, and for errors of the estimate.
AUTO_SHARE_OF_FREE_MEMORY = 0.5

# The bytes that an "auto" pass on the CPU takes at most.
AUTO_MEMORY_ON_CPU = 640 * 10**6

# The bytes that a pass over an image takes at most if several run faster on a core each than one
# after another on all cores. That is 54x54 pixels of ASRN. One core alone has too little cache for
# larger ones, which take it more processor time than all cores together.
BYTES_OF_SMALL_IMAGE = 8 * 10**6


class Span(NamedTuple):
    """A tile and its window along one axis.

    Attributes:
        start: The first LR pixel of the tile.
        stop: The first LR pixel behind the tile.
        window_start: The first LR pixel of the window.
        window_stop: The first LR pixel behind the window.
    """

    start: int
    stop: int
    window_start: int
    window_stop: int

    def in_window(self, scale: int) -> slice:
        """Return where the tile lies in the output for its window.

        Args:
            scale: How many times as long the output is.
        """
        first = self.start - self.window_start
        behind = self.stop - self.window_start
        return slice(first * scale, behind * scale)

    def in_image(self, scale: int) -> slice:
        """Return where the tile lies in the output for the whole image.

        Args:
            scale: How many times as long the output is.
        """
        return slice(self.start * scale, self.stop * scale)


class Tiling(NamedTuple):
    """Tiles over an image of one size: each row of tiles crossed with each column.

    Attributes:
        rows: Spans along the height, top to bottom.
        columns: Spans along the width, left to right.
        side: LR pixels a side of a tile, at most. At each end of the image, where there is nothing
            around it, it may be `overlap` longer.
        overlap: LR pixels that a window has around its tile, at least.
        must_be_whole: Whether the image must run as one tile, so that no smaller tiles may follow.
    """

    rows: list[Span]
    columns: list[Span]
    side: int
    overlap: int
    must_be_whole: bool

    @property
    def num_tiles(self) -> int:
        """The number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def window_size(self) -> tuple[int, int]:
        """Height and width of a window in LR pixels; all windows are of equal size."""
        row = self.rows[0]
        column = self.columns[0]
        return row.window_stop - row.window_start, column.window_stop - column.window_start


def first_tiling(plan: TileEngine, size: Sequence[int]) -> Tiling:
    """Return the tiles with which to begin an image.

    If memory runs out on the way, `smaller_tiling` returns the tiles with which to go on.

    Args:
        plan: The plan. The size of its "auto" tiles depends on the memory that is free now on the
            network's device.
        size: Height and width of the image in LR pixels.

    Returns:
        The tiles.

    Raises:
        MemoryError: The image must run as one tile, and that takes more memory than is free.
    """
    if plan.tile is None:
        return _whole_image(plan, size)
    if isinstance(plan.tile, int):
        overlap = SEAM_OVERLAP if plan.reach is None else plan.reach
        return _tiling(size, side=plan.tile, overlap=overlap)
    # Here the tile is "auto".
    if plan.reach is None:
        return _whole_image(plan, size)  # tiles could not equal it
    window_side = _fastest_window_side(plan, plan.reach)
    height, width = size
    if height * width <= window_side**2:  # of any shape: without overlaps it is faster
        return _tiling(size, side=max(size), overlap=plan.reach)
    side = max(window_side - 2 * plan.reach, MIN_TILE)
    return _tiling(size, side=side, overlap=plan.reach)


def smaller_tiling(plan: TileEngine, tiling: Tiling, size: Sequence[int], shortage: str) -> Tiling:
    """Return smaller tiles, for an image that ran out of memory; raise if there are none.

    Each call at least halves `side`, down to `MIN_TILE`, even if the windows do not shrink. So a
    retry that calls this again and again ends.

    Args:
        plan: The plan.
        tiling: The tiles that were too large.
        size: Height and width of the image in LR pixels.
        shortage: The allocator's message, which the error quotes.

    Returns:
        The tiles.

    Raises:
        MemoryError: The image must run as one tile, or the tiles are the smallest already. The
            message says what can be done.
    """
    is_smallest = tiling.side <= MIN_TILE
    if tiling.must_be_whole or is_smallest:
        raise _does_not_fit(plan, tiling, shortage)
    # Halve what a tile really covers: a side longer than the image would give the same single tile.
    covered_side = min(tiling.side, max(size))
    half_side = max(covered_side // 2, MIN_TILE)
    return _tiling(size, side=half_side, overlap=tiling.overlap)


def batch_size(plan: TileEngine, tiling: Tiling) -> int:
    """Return how many tiles of a row run at once, at most.

    With "auto" that is one on a CPU, which a single tile keeps busy. On a GPU it is as many as
    together have the pixels of the window that runs fastest, within the free memory.

    Args:
        plan: The plan.
        tiling: Its tiles over an image.
    """
    if isinstance(plan.tile_batch, int):
        return plan.tile_batch
    if _kind_of(plan.device_name) == "cpu":
        return 1
    height, width = tiling.window_size
    max_pixels = _auto_window_side(plan) ** 2
    max_bytes = _max_bytes_of_auto(plan.device_name)
    if max_bytes is not None:
        max_pixels = min(max_pixels, int(max_bytes / plan.bytes_per_pixel))
    return max(1, max_pixels // (height * width))


def is_small(plan: TileEngine, size: Sequence[int]) -> bool:
    """Return whether several images of a size, on one core each, take less time than one by one.

    Args:
        plan: The plan.
        size: Height and width of an image in LR pixels.
    """
    height, width = size
    return plan.bytes_per_pixel * height * width <= BYTES_OF_SMALL_IMAGE


# --- tiles of a given size


def _tiling(size: Sequence[int], side: int, overlap: int, must_be_whole: bool = False) -> Tiling:
    """Tiles of one side and overlap over an image of a size (height, width)."""
    height, width = size
    return Tiling(
        rows=spans(height, side=side, overlap=overlap),
        columns=spans(width, side=side, overlap=overlap),
        side=side,
        overlap=overlap,
        must_be_whole=must_be_whole,
    )


def spans(length: int, side: int, overlap: int) -> list[Span]:
    """Cover a length by tiles, with windows of one size, so that one choice of kernels serves all.

    `spans(29, side=8, overlap=3)` gives these; "=" is the tile, and "-" is the rest of its window:

        pixel            0          11     18         29
        first window     ===========---
        second window            ---=======----
        third window                    ---===========

    The windows are spread evenly, so that the last one repeats as few pixels as possible.

    Args:
        length: Pixels to cover.
        side: Pixels of a tile, at most. At each end of the length it may be `overlap` longer.
        overlap: The least number of pixels between a tile and an end of its window, unless that is
            an end of the length.

    Returns:
        The tiles, from the first pixel to the last.
    """
    # A window is step + 2 * overlap long and begins a step behind the one before, so that together
    # they cover count * step + 2 * overlap pixels. The values of the example are on the right.
    length_of_steps = length - 2 * overlap  # 23
    count = max(1, math.ceil(length_of_steps / side))  # 3
    if count == 1:
        return [Span(start=0, stop=length, window_start=0, window_stop=length)]

    # step <= side; the tile at each end is step + overlap long.
    step = math.ceil(length_of_steps / count)  # 8
    window_length = step + 2 * overlap  # 14
    # The step is rounded up: a third one would begin at 2 * 8 = 16 and end at 30, behind the length
    # of 29. So the last window moves back, to end with the length.
    last_window_start = length - window_length  # 15
    window_starts = [min(index * step, last_window_start) for index in range(count)]  # 0, 8, 15

    # The first tile begins with the length, the others `overlap` pixels inside their window. A tile
    # ends where the next one begins.
    starts = [0]
    for window_start in window_starts[1:]:
        starts.append(window_start + overlap)  # 11, 18
    stops = [*starts[1:], length]  # 11, 18, 29

    found: list[Span] = []
    for start, stop, window_start in zip(starts, stops, window_starts, strict=True):
        window_stop = window_start + window_length
        found.append(Span(start, stop, window_start, window_stop))
    return found


# --- the size, and the memory that it takes


def _whole_image(plan: TileEngine, size: Sequence[int]) -> Tiling:
    """One tile over the whole image; raise, before the work begins, if memory is too short."""
    # One tile comes out, because no side of the image is longer than the tile.
    whole = _tiling(size, side=max(size), overlap=0, must_be_whole=True)
    height, width = whole.window_size
    needed = plan.bytes_per_pixel * height * width
    free = free_memory(plan.device_name)  # None if not known
    if free is not None and needed > free:
        shortage = (
            f"it takes about {needed / GB:.1f} GB, and {free / GB:.1f} GB are free on "
            f"{plan.device_name}"
        )
        raise _does_not_fit(plan, whole, shortage)
    return whole


def _fastest_window_side(plan: TileEngine, reach: int) -> int:
    """The side of the fastest window whose pass takes no more memory than "auto" allows."""
    fastest_side = _auto_window_side(plan)
    window_side = max(fastest_side, AUTO_WINDOW_IN_REACHES * reach)
    max_bytes = _max_bytes_of_auto(plan.device_name)
    if max_bytes is not None:
        max_pixels = int(max_bytes / plan.bytes_per_pixel)
        window_side = min(window_side, math.isqrt(max_pixels))
    return window_side


def _auto_window_side(plan: TileEngine) -> int:
    """LR pixels a side of the window that runs fastest."""
    return AUTO_WINDOW_SIDES.get(_kind_of(plan.device_name), AUTO_WINDOW_SIDES["cpu"])


def _kind_of(device_name: str) -> str:
    """The kind of a device: "cuda" of "cuda:1"."""
    kind, _, _ = device_name.partition(":")
    return kind


def _max_bytes_of_auto(device_name: str) -> float | None:
    """The most bytes that an "auto" pass may take; None where neither rule gives a limit."""
    free = free_memory(device_name)
    share_of_free = None if free is None else free * AUTO_SHARE_OF_FREE_MEMORY
    if _kind_of(device_name) != "cpu":
        return share_of_free
    if share_of_free is None:
        return AUTO_MEMORY_ON_CPU
    return min(share_of_free, AUTO_MEMORY_ON_CPU)


def _does_not_fit(plan: TileEngine, tiling: Tiling, shortage: str) -> MemoryError:
    """The error to raise if no smaller tiles are possible."""
    if not tiling.must_be_whole:
        part = f"a tile of {tiling.side} pixels"
        remedy = "free some, or take a smaller depth or another device"
    elif plan.reach is not None:
        part = "the whole image"
        remedy = "take tile='auto' or a smaller depth"
    else:
        part = "the whole image"
        remedy = (
            "take another device, or a number as tile: this net sees all of an image, "
            "and tiles may show seams"
        )
    return MemoryError(
        f"{part} does not fit into the memory at depth {plan.depth}: {remedy} ({shortage})"
    )
