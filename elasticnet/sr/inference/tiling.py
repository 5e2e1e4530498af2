"""Enlarge an image of any size tile by tile: the same pixels as in one pass, in memory bounded by
the tile.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elasticnet.memory import free_memory, is_out_of_memory
from elasticnet.sr.inference.receptive_field import Footprint, footprint
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper, evaluating

MIN_TILE = 16
# LR pixels a side of what "auto" gives a network at a time. On the CPU, tensors of 96 channels stay
# below 32 MB, up to which the C library keeps memory for the next tensor: larger windows take 1.6
# times as long for each pixel.
WINDOW = {"cpu": 288, "cuda": 1024}
MOST = {"cpu": 640 * 2**20}  # bytes that "auto" plans for a pass
# what a pass takes beside its tensors: kernels' scratch memory; measured: up to 1.17
SCRATCH = 1.25
SEAM_OVERLAP = 32  # of tiles that cannot equal the whole image
LUMA = (0.299, 0.587, 0.114)  # of gray images, as Pillow's mode L


class Span(NamedTuple):
    """Along one axis: a network is given [start, stop), of which [core_start, core_stop) is
    kept.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int


def spans(length: int, tile: int, reach: int) -> list[Span]:
    """Cover `length` pixels by windows of one common size, whose cores follow each other without
    gap or overlap.

    No window is longer than tile + 2 reach. A core ends at an end of the image, or at least `reach`
    pixels inside its window. The windows are equal so that one choice of kernels serves all of
    them, and evenly spread, so that the last one repeats as little as possible.
    """
    count = max(1, -(-(length - 2 * reach) // tile))
    if count == 1:
        return [Span(0, length, 0, length)]
    step = -(-(length - 2 * reach) // count)
    window = step + 2 * reach
    starts = [min(index * step, length - window) for index in range(count)]
    edges = [0, *(start + reach for start in starts[1:]), length]
    return [
        Span(start, start + window, *edges[index : index + 2]) for index, start in enumerate(starts)
    ]


def self_ensembled(predict: Callable[[Tensor], Sequence[Tensor]], image: Tensor) -> list[Tensor]:
    """Return the mean of `predict` over the eight symmetries of `image` (..., H, W), each output
    turned back.

    Source: EDSR's geometric self-ensemble (x8). Nothing is clipped or rounded before the mean.
    """
    totals: list[Tensor] = []
    for flipped in (False, True):
        for turns in range(4):
            turned = torch.rot90(image.flip(-1) if flipped else image, turns, (-2, -1))
            outputs = [torch.rot90(output, -turns, (-2, -1)) for output in predict(turned)]
            outputs = [output.flip(-1) if flipped else output for output in outputs]
            totals = [a + b for a, b in zip(totals, outputs, strict=True)] if totals else outputs
    return [total / 8 for total in totals]


def plan_tiles(
    net: ElasticWrapper,
    size: Sequence[int],
    *,
    depth: int | None = None,
    tile: int | str | None = "auto",
) -> tuple[list[Span], list[Span]]:
    """Return the rows and columns of tiles in which `upscale_array` begins to enlarge an image of
    (height, width).

    Out of memory later means smaller ones. "auto" depends on the memory that is free on the net's
    device.
    """
    depth = net.default_depth if depth is None else resolve_depth(depth, net.taps)
    side, overlap = _tile_and_overlap(net, depth, size, tile)
    return spans(size[0], side, overlap), spans(size[1], side, overlap)


def upscale_array(
    net: ElasticWrapper,
    image: np.ndarray,
    *,
    depth: int | None = None,
    tile: int | str | None = "auto",
    self_ensemble: bool = False,
    device: torch.device | str | None = None,
    out: np.ndarray | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """Enlarge an image (h, w, 3), or gray (h, w), of uint8, uint16 or floats in 0..1; the same kind
    comes back.

    Integers are rounded half up and clipped; floats are what the network gives, computed in its own
    precision. Gray runs as RGB and comes back as luma (ITU-R 601).

    depth: default that of the net. tile: LR pixels a side of what one pass contributes; each pass
    sees as much around it as the network reaches, so that the tiles are the whole image up to the
    rounding of floats; None runs the image whole; "auto" takes what is fastest within the free
    memory. Out of memory halves the tile, down to 16. A network without a bounded reach (global
    pooling) runs whole; a number makes tiles of it, with a warning. self_ensemble: the mean over
    the eight symmetries, before rounding. device: moves the net there; default its own. out: an
    array of the result's shape and dtype to write into, such as a `np.memmap`; `image` may be one
    too. Each is touched a tile at a time. progress: called with (tiles done, all tiles), at first
    with 0 done.

    Runs in eval mode, which a net that threads share has to be in before. Raises TypeError or
    ValueError for images, tiles and outputs that do not fit, and MemoryError where even the
    smallest tile, or the whole, takes too much.
    """
    depth = net.default_depth if depth is None else resolve_depth(depth, net.taps)
    white = _white_of(image)
    if device is not None:
        net.to(device)
    parameter = next(net.parameters(), torch.zeros(()))
    found = footprint(net, depth)
    side, overlap = _tile_and_overlap(net, depth, image.shape[:2], tile)
    whole = not isinstance(tile, int) and (tile is None or found.reach is None)
    free, needed = (
        free_memory(parameter.device),
        found.memory * SCRATCH * image.shape[0] * image.shape[1],
    )
    if whole and free is not None and needed > free:
        reason = f"it takes about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {parameter.device}"
        raise _too_large(found, depth, whole, side, reason)
    shape = (image.shape[0] * found.scale, image.shape[1] * found.scale, *image.shape[2:])
    if out is None:
        out = np.empty(shape, image.dtype)
    elif out.shape != shape or out.dtype != image.dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}: expected {image.dtype} {shape}")
    if found.reach is None and not whole and max(image.shape[:2]) > side + 2 * overlap:
        warnings.warn(
            f"tile {side}: depth {depth} of this net has no bounded reach, so that tiles give another image than the "
            "whole and may show seams; tile=None runs the image whole",
            stacklevel=2,
        )

    def predict(x: Tensor) -> list[Tensor]:
        return [net(x, depth=depth)]

    finished = 0  # LR rows whose output is written
    with evaluating(net), torch.inference_mode():
        while True:
            rows, columns = (spans(length, side, overlap) for length in image.shape[:2])
            count = len(rows) * len(columns)
            try:
                for index, (row, column) in enumerate(itertools.product(rows, columns)):
                    if progress is not None:
                        progress(index, count)
                    if row.core_stop > finished:
                        x = _read(image, row, column, white).to(parameter)
                        (y,) = self_ensembled(predict, x) if self_ensemble else predict(x)
                        _write(out, y, row, column, found.scale, white, depth)
                    if column is columns[-1]:
                        finished = max(finished, row.core_stop)
                if progress is not None:
                    progress(count, count)
                return out
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            x = y = None  # what the failed pass held; its traceback is gone behind the handler
            if parameter.device.type == "cuda":
                torch.cuda.empty_cache()
            if whole or side <= MIN_TILE:
                raise _too_large(found, depth, whole, side, reason)
            side = max(min(side, max(image.shape[:2])) // 2, MIN_TILE)


def _white_of(image: np.ndarray) -> int:
    """Return the value of white in an image that can be enlarged."""
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"image is a {type(image).__name__}: expected a NumPy array; Upscaler takes other kinds"
        )
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or 0 in image.shape:
        raise ValueError(
            f"image of shape {image.shape}: expected (h, w, 3), or (h, w) for gray, without an empty side"
        )
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        if not (low >= -1 and high <= 2):
            raise ValueError(
                f"float image with values from {low:g} to {high:g}: expected 0..1: divide it by its white"
            )
        return 1
    white = {"u1": 255, "u2": 65535}.get(image.dtype.str[1:])
    if white is None:
        raise ValueError(f"image of {image.dtype}: expected uint8, uint16, or floats in 0..1")
    return white


def _tile_and_overlap(
    net: ElasticWrapper, depth: int, size: Sequence[int], tile: int | str | None
) -> tuple[int, int]:
    """Return the side of a tile and what it sees beyond each side; the whole image is one tile
    without overlap.
    """
    if tile not in ("auto", None) and (type(tile) is not int or tile < 1):
        raise ValueError(
            f"tile {tile!r}: expected 'auto', None for the whole image, or LR pixels a side, at least 1"
        )
    found = footprint(net, depth)
    if isinstance(tile, int):
        return tile, SEAM_OVERLAP if found.reach is None else found.reach
    if tile is None or found.reach is None:
        return max(size), 0
    device = next(net.parameters(), torch.zeros(())).device
    free, most = free_memory(device), MOST.get(device.type, math.inf)
    memory = most if free is None else min(most, free / 2)
    window = max(WINDOW.get(device.type, WINDOW["cpu"]), 8 * found.reach)
    if memory < math.inf:
        window = min(window, math.isqrt(int(memory / (found.memory * SCRATCH))))
    return max(window - 2 * found.reach, MIN_TILE), found.reach


def _too_large(found: Footprint, depth: int, whole: bool, side: int, reason: str) -> MemoryError:
    if not whole:
        what, remedy = (
            f"a tile of {side} pixels",
            "free some, or take a smaller depth or another device",
        )
    elif found.reach is not None:
        what, remedy = "the whole image", "take tile='auto' or a smaller depth"
    else:
        what = "the whole image"
        remedy = "take another device, or a number as tile: this net sees all of an image, and tiles may show seams"
    return MemoryError(f"{what} does not fit into the memory at depth {depth}: {remedy} ({reason})")


def _read(image: np.ndarray, row: Span, column: Span, white: int) -> Tensor:
    """A window of the image as float32 (1, 3, h, w), 0..1, channels last as the image is."""
    window = image[row.start : row.stop, column.start : column.stop]
    if window.ndim == 2:
        window = np.repeat(window[..., None], 3, axis=2)
    pixels = window.astype(np.float32, order="C")
    pixels /= np.float32(white)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _write(
    out: np.ndarray, y: Tensor, row: Span, column: Span, scale: int, white: int, depth: int
) -> None:
    """Put the core of a window's prediction (1, 3, scale h, scale w) in its place."""
    top, left = (row.core_start - row.start) * scale, (column.core_start - column.start) * scale
    height, width = (span.core_stop - span.core_start for span in (row, column))
    core = y[0, :, top : top + height * scale, left : left + width * scale].permute(1, 2, 0).float()
    if out.ndim == 2:
        core = core @ core.new_tensor(LUMA)
    if white > 1:
        if not core.isfinite().all():
            raise ValueError(
                f"depth {depth} of this net gives NaN or infinity: run it in float32, or check its weights"
            )
        core = core.clamp(0, 1).mul(white).add(0.5).to(torch.int32)
    place = [slice(span.core_start * scale, span.core_stop * scale) for span in (row, column)]
    out[place[0], place[1]] = core.cpu().numpy()
