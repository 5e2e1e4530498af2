"""Where the tiles of an image lie, and how large they are.

`first_tiling` lays the tiles that a plan asks for over an image of one size. `smaller_tiling` takes
their place when memory runs out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from elasticnet.memory import free_memory
from elasticnet.sr.inference.upscale_plan import UpscalePlan

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


class Span(NamedTuple):
    """One window along one axis, of which the inner part, the core, is kept.

    Attributes:
        start: The first LR pixel of the window.
        stop: The first LR pixel behind the window.
        core_start: The first LR pixel of the core.
        core_stop: The first LR pixel behind the core.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int

    def core_in_window(self, scale: int) -> slice:
        """Return where the core lies in the output for this window.

        Args:
            scale: How many times as long the output is.
        """
        first = self.core_start - self.start
        behind = self.core_stop - self.start
        return slice(first * scale, behind * scale)

    def core_in_image(self, scale: int) -> slice:
        """Return where the core lies in the output for the whole image.

        Args:
            scale: How many times as long the output is.
        """
        return slice(self.core_start * scale, self.core_stop * scale)


class Tiling(NamedTuple):
    """Tiles over an image of one size: each row of tiles crossed with each column.

    Attributes:
        rows: Spans along the height, top to bottom.
        columns: Spans along the width, left to right.
        side: LR pixels a side of a tile, at most.
        overlap: LR pixels that a window has around its tile. At an end of the image there is
            nothing around, and the tile is as much longer.
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
        return row.stop - row.start, column.stop - column.start


def first_tiling(plan: UpscalePlan, size: Sequence[int]) -> Tiling:
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
    side = _fastest_side(plan, plan.reach)
    return _tiling(size, side=side, overlap=plan.reach)


def smaller_tiling(plan: UpscalePlan, tiling: Tiling, size: Sequence[int], shortage: str) -> Tiling:
    """Return tiles of half the side, for an image that ran out of memory; raise if there are none.

    An image that is smaller than a tile is cut into halves of itself: half of a tile of 288 pixels
    would still cover an image of 100x60 pixels, and be the same tile again.

    If the overlap is large, or the image has at most `MIN_TILE` pixels a side, the new tiles may be
    the same as the old ones. Their `side` becomes smaller in every call, so that the calls end with
    the error.

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
    covered_side = min(tiling.side, max(size))
    half_side = max(covered_side // 2, MIN_TILE)
    return _tiling(size, side=half_side, overlap=tiling.overlap)


# --- tiles of a given size


def _tiling(size: Sequence[int], side: int, overlap: int, must_be_whole: bool = False) -> Tiling:
    """Tiles of one side and overlap over an image of a size (height, width)."""
    height, width = size
    return Tiling(
        rows=spans(height, tile=side, overlap=overlap),
        columns=spans(width, tile=side, overlap=overlap),
        side=side,
        overlap=overlap,
        must_be_whole=must_be_whole,
    )


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Cover a length by windows of one size, whose cores follow each other without gap or overlap.

    The network runs on a window, and only the output of its core is kept. Here are the windows that
    `spans(30, tile=8, overlap=3)` returns; "=" is the core, and "-" is the rest of the window:

        pixel            0          11      19         30
        first window     ===========---
        second window            ---========---
        third window                     ---===========

    The first core begins and the last one ends with the image. Elsewhere a core begins `overlap`
    pixels inside its window, and ends at least as many before the window's end. The windows are
    equal so that one choice of kernels serves all of them.

    They are spread evenly, so that the last one repeats as few pixels as possible: `count` windows
    of step + 2 overlap pixels, one every `step` pixels, cover count * step + 2 overlap pixels. So
    the steps have to cover the length without the overlap at its two ends. They may cover more, as
    they are whole pixels; the last window then moves back, to end with the image.

    Args:
        length: Pixels to cover.
        tile: No window is longer than tile + 2 overlap.
        overlap: The least number of pixels between a core and an end of its window, unless that is
            an end of the image.

    Returns:
        The windows, from the first pixel to the last.
    """
    length_of_steps = length - 2 * overlap
    count = max(1, math.ceil(length_of_steps / tile))
    if count == 1:
        return [Span(start=0, stop=length, core_start=0, core_stop=length)]

    step = math.ceil(length_of_steps / count)
    window_length = step + 2 * overlap
    last_start = length - window_length  # the last window ends with the image
    starts = [min(index * step, last_start) for index in range(count)]
    core_starts = [0]
    for start in starts[1:]:
        core_starts.append(start + overlap)
    core_stops = [*core_starts[1:], length]  # a core ends where the next one begins

    found: list[Span] = []
    for start, core_start, core_stop in zip(starts, core_starts, core_stops, strict=True):
        stop = start + window_length
        found.append(Span(start=start, stop=stop, core_start=core_start, core_stop=core_stop))
    return found


# --- the size, and the memory that it takes


def _whole_image(plan: UpscalePlan, size: Sequence[int]) -> Tiling:
    """One tile over the whole image; raise, before the work begins, if memory is too short."""
    whole = _tiling(size, side=max(size), overlap=0, must_be_whole=True)
    height, width = whole.window_size
    needed = plan.bytes_per_pixel * height * width
    free = free_memory(plan.device)  # None if not known
    if free is not None and needed > free:
        shortage = (
            f"it takes about {needed / GB:.1f} GB, and {free / GB:.1f} GB are free on {plan.device}"
        )
        raise _does_not_fit(plan, whole, shortage)
    return whole


def _fastest_side(plan: UpscalePlan, reach: int) -> int:
    """The side of the fastest tile whose pass takes no more memory than "auto" allows."""
    fastest_side = AUTO_WINDOW_SIDES.get(plan.device.type, AUTO_WINDOW_SIDES["cpu"])
    window_side = max(fastest_side, AUTO_WINDOW_IN_REACHES * reach)
    max_bytes = _max_bytes_of_auto(plan.device)
    if max_bytes is not None:
        max_pixels = int(max_bytes / plan.bytes_per_pixel)
        window_side = min(window_side, math.isqrt(max_pixels))
    return max(window_side - 2 * reach, MIN_TILE)


def _max_bytes_of_auto(device: torch.device) -> float | None:
    """The most bytes that an "auto" pass may take; None where neither rule gives a limit."""
    free = free_memory(device)
    share_of_free = None if free is None else free * AUTO_SHARE_OF_FREE_MEMORY
    if device.type != "cpu":
        return share_of_free
    if share_of_free is None:
        return AUTO_MEMORY_ON_CPU
    return min(share_of_free, AUTO_MEMORY_ON_CPU)


def _does_not_fit(plan: UpscalePlan, tiling: Tiling, shortage: str) -> MemoryError:
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
