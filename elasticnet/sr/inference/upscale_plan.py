"""The plan of an upscaling: everything that is known before the first pixel, found once.

`plan_upscale` makes it, at the top: in the command, in `Upscaler`, in a program. What runs below
reads it. `first_tiling` lays the tiles that it asks for over an image of one size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from elasticnet.memory import free_memory
from elasticnet.registry import architecture_of
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.wrapper import ElasticWrapper

GB = 10**9
MIN_TILE = 16  # LR pixels a side below which a tile is not halved
# LR pixels a side of what "auto" gives a network at a time, by kind of device. On the CPU, tensors
# of 96 channels stay below 32 MiB then, up to which the C library keeps memory for the next tensor:
# larger windows take 1.6 times as long for each pixel.
AUTO_WINDOWS = {"cpu": 288, "cuda": 1024}
AUTO_WINDOW_IN_REACHES = 8  # a window is at least this many reaches wide, or overlap costs too much
AUTO_MEMORY_ON_CPU = 640 * 10**6  # bytes that "auto" plans for a pass at most
# What a pass takes with the kernels' scratch memory, in parts of its tensors; measured: up to 1.17.
SCRATCH_FACTOR = 1.25
SEAM_OVERLAP = 32  # LR pixels that tiles overlap by if they cannot equal the whole image anyway


@dataclass(frozen=True, eq=False)
class UpscalePlan:
    """What a network, at one depth, will do with images of any size; `plan_upscale` makes it.

    Attributes:
        net: The network, on its device.
        depth: How many of its blocks run.
        scale: How many times as long each side of an image becomes.
        reach: LR pixels beyond its own place that an output pixel depends on; None if that has no
            bound.
        memory: Bytes that a pass takes for each LR pixel, kernels' scratch memory included.
        tile: LR pixels a side of what one pass contributes to the result; None for the whole
            image, "auto" for what is fastest within the free memory.
        self_ensemble: Whether the result is the mean over the eight symmetries of the image.
        device: Where the network is.
        dtype: What it computes in.
        value_range: Black and white as the network takes and gives them.
    """

    net: ElasticWrapper
    depth: int
    scale: int
    reach: int | None
    memory: float
    tile: int | str | None
    self_ensemble: bool
    device: torch.device
    dtype: torch.dtype
    value_range: tuple[float, float]

    def at_depth(self, depth: int) -> UpscalePlan:
        """Return the plan for another depth of the same network, with the same choices.

        Args:
            depth: A depth that carries a tap.
        """
        return plan_upscale(self.net, depth=depth, tile=self.tile, self_ensemble=self.self_ensemble)


def plan_upscale(
    net: ElasticWrapper,
    *,
    depth: int | None = None,
    tile: int | str | None = "auto",
    self_ensemble: bool = False,
    device: torch.device | str | None = None,
) -> UpscalePlan:
    """Find out, once, all that upscaling by a network needs to know of it.

    Args:
        net: An image network (b, 3, h, w) -> (b, 3, scale h, scale w).
        depth: A depth that carries a tap. Default: that of the net.
        tile: LR pixels a side of what one pass contributes, at least 1. Each pass sees as much
            around it as the network reaches, so that the tiles are the whole image up to the
            rounding of floats. None runs the image whole; "auto" takes what is fastest within the
            free memory. A network without a bounded reach (global pooling) runs whole with "auto",
            and in tiles, with a warning, if this is a number.
        self_ensemble: Take the mean over the eight symmetries of the image, before rounding.
        device: Moves the network there. Default: where it is.

    Returns:
        The plan. It holds for as long as the network's weights stay on their device.

    Raises:
        ValueError: Unknown depth, a tile that is none, or a network that makes no larger image.
    """
    _check_tile(tile)
    if device is not None:
        net.to(device)
    parameter = next(net.parameters(), torch.zeros(()))
    found = footprint(net, depth)
    return UpscalePlan(
        net=net,
        depth=found.depth,
        scale=found.scale,
        reach=found.reach,
        memory=found.memory * SCRATCH_FACTOR,
        tile=tile,
        self_ensemble=self_ensemble,
        device=parameter.device,
        dtype=parameter.dtype,
        value_range=_value_range(net),
    )


def _check_tile(tile: Any) -> None:
    if tile in ("auto", None):
        return
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(
            f"tile {tile!r}: expected 'auto', None for the whole image, or LR pixels a side, "
            "at least 1"
        )


def _value_range(net: ElasticWrapper) -> tuple[float, float]:
    """Black and white of the network's architecture; 0 and 1 if it does not say."""
    architecture = architecture_of(net)
    if architecture is None or "value_range" not in architecture.extras:
        return 0.0, 1.0
    black, white = architecture.extras["value_range"]
    return float(black), float(white)


# --- tiles


class Span(NamedTuple):
    """One window along one axis, of which the inner part, the core, is kept.

    Attributes:
        start: The first pixel that a network is given.
        stop: The first pixel behind the window.
        core_start: The first pixel that is kept.
        core_stop: The first pixel behind the core.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int


class Tiling(NamedTuple):
    """Tiles over an image of one size: each row of tiles crossed with each column.

    Attributes:
        rows: Spans along the height, top to bottom.
        columns: Spans along the width, left to right.
        side: LR pixels a side of a tile at most.
        overlap: LR pixels that a window sees beyond each side of its tile.
        is_whole: Whether the image runs as one tile because it has to, or was asked to.
    """

    rows: list[Span]
    columns: list[Span]
    side: int
    overlap: int
    is_whole: bool

    @property
    def num_tiles(self) -> int:
        """The number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of what a network is given at a time; all windows are equal."""
        return self.rows[0].stop - self.rows[0].start, self.columns[0].stop - self.columns[0].start


def spans(length: int, tile: int, reach: int) -> list[Span]:
    """Cover a length by windows of one size, whose cores follow each other without gap or overlap.

    A core ends at an end of the image, or at least `reach` pixels inside its window. The windows
    are equal so that one choice of kernels serves all of them, and evenly spread, so that the last
    one repeats as little as possible.

    Args:
        length: Pixels to cover.
        tile: No window is longer than tile + 2 reach.
        reach: Pixels that a window sees beyond its core.

    Returns:
        The windows, from the first pixel to the last.
    """
    inner_length = length - 2 * reach  # what the windows' middles have to cover
    count = max(1, math.ceil(inner_length / tile))
    if count == 1:
        return [Span(start=0, stop=length, core_start=0, core_stop=length)]
    step = math.ceil(inner_length / count)
    window = step + 2 * reach
    starts = [min(index * step, length - window) for index in range(count)]
    # A core begins where the one before it ends.
    core_starts = [0, *(start + reach for start in starts[1:])]
    core_stops = [*core_starts[1:], length]
    return [
        Span(start=start, stop=start + window, core_start=core_start, core_stop=core_stop)
        for start, core_start, core_stop in zip(starts, core_starts, core_stops, strict=True)
    ]


def first_tiling(plan: UpscalePlan, size: Sequence[int]) -> Tiling:
    """Return the tiles in which an image is enlarged at first; out of memory makes smaller ones.

    Args:
        plan: Says which tiles were asked for. What "auto" means depends on the memory that is free
            now on the plan's device.
        size: Height and width of the image in LR pixels.

    Returns:
        The tiles.

    Raises:
        MemoryError: The image has to run as a whole, and that takes more memory than is free.
    """
    if isinstance(plan.tile, int):
        overlap = SEAM_OVERLAP if plan.reach is None else plan.reach
        return _tiling(size, side=plan.tile, overlap=overlap)
    free = free_memory(plan.device)
    if plan.tile is None or plan.reach is None:
        whole = _tiling(size, side=max(size), overlap=0, is_whole=True)
        _refuse_a_whole_that_cannot_fit(plan, whole, free)
        return whole
    return _tiling(size, side=_fastest_side(plan, plan.reach, free), overlap=plan.reach)


def smaller_tiling(plan: UpscalePlan, tiling: Tiling, size: Sequence[int], shortage: str) -> Tiling:
    """Return tiles of half the side, for an image that ran out of memory.

    Args:
        plan: Of the image.
        tiling: The tiles that were too large.
        size: Height and width of the image in LR pixels.
        shortage: What the allocator said.

    Returns:
        The tiles.

    Raises:
        MemoryError: There are no smaller ones; the message says what can be done.
    """
    if tiling.is_whole or tiling.side <= MIN_TILE:
        raise _does_not_fit(plan, tiling, shortage)
    longest = min(tiling.side, max(size))  # a tile can be larger than the image
    return _tiling(size, side=max(longest // 2, MIN_TILE), overlap=tiling.overlap)


def _tiling(size: Sequence[int], side: int, overlap: int, is_whole: bool = False) -> Tiling:
    height, width = size
    return Tiling(
        rows=spans(height, side, overlap),
        columns=spans(width, side, overlap),
        side=side,
        overlap=overlap,
        is_whole=is_whole,
    )


def _fastest_side(plan: UpscalePlan, reach: int, free: int | None) -> int:
    """The side of a tile that runs fastest within the bytes that are free; None is not known."""
    best_window = AUTO_WINDOWS.get(plan.device.type, AUTO_WINDOWS["cpu"])
    window = max(best_window, AUTO_WINDOW_IN_REACHES * reach)
    limits: list[float] = []  # bytes that a pass may take
    if free is not None:
        limits.append(free / 2)
    if plan.device.type == "cpu":
        limits.append(AUTO_MEMORY_ON_CPU)
    if limits:
        pixels = int(min(limits) / plan.memory)
        window = min(window, math.isqrt(pixels))
    return max(window - 2 * reach, MIN_TILE)


def _refuse_a_whole_that_cannot_fit(plan: UpscalePlan, tiling: Tiling, free: int | None) -> None:
    """Stop before the work if the whole image takes more bytes than are free."""
    height, width = tiling.window
    needed = plan.memory * height * width
    if free is not None and needed > free:
        shortage = (
            f"it takes about {needed / GB:.1f} GB, and {free / GB:.1f} GB are free on {plan.device}"
        )
        raise _does_not_fit(plan, tiling, shortage)


def _does_not_fit(plan: UpscalePlan, tiling: Tiling, shortage: str) -> MemoryError:
    if not tiling.is_whole:
        what = f"a tile of {tiling.side} pixels"
        remedy = "free some, or take a smaller depth or another device"
    elif plan.reach is not None:
        what = "the whole image"
        remedy = "take tile='auto' or a smaller depth"
    else:
        what = "the whole image"
        remedy = (
            "take another device, or a number as tile: this net sees all of an image, "
            "and tiles may show seams"
        )
    return MemoryError(
        f"{what} does not fit into the memory at depth {plan.depth}: {remedy} ({shortage})"
    )
