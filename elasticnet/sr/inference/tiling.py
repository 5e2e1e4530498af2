"""Enlarge an image of any size tile by tile: the pixels of one pass over the whole, in less memory.

How much memory it takes is bounded by the tile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elasticnet.memory import is_out_of_memory
from elasticnet.sr.inference.upscale_plan import (
    Span,
    Tiling,
    UpscalePlan,
    first_tiling,
    smaller_tiling,
)
from elasticnet.sr.pixels import tensor_to_integers
from elasticnet.wrapper import evaluating

LUMA = (0.299, 0.587, 0.114)  # of gray images, as Pillow's mode L has it (ITU-R 601)


def self_ensembled(predict: Callable[[Tensor], Sequence[Tensor]], image: Tensor) -> list[Tensor]:
    """Return the mean of `predict` over the eight symmetries of an image, each output turned back.

    Source: EDSR's geometric self-ensemble (x8). Nothing is clipped or rounded before the mean.

    Args:
        predict: From an image to any number of images, the same number each time.
        image: (..., h, w).
    """
    totals: list[Tensor] = []
    for is_flipped in (False, True):
        for quarter_turns in range(4):
            turned = image.flip(-1) if is_flipped else image
            turned = torch.rot90(turned, quarter_turns, (-2, -1))
            outputs = [torch.rot90(output, -quarter_turns, (-2, -1)) for output in predict(turned)]
            if is_flipped:
                outputs = [output.flip(-1) for output in outputs]
            if totals:
                outputs = [total + output for total, output in zip(totals, outputs, strict=True)]
            totals = outputs
    return [total / 8 for total in totals]


def upscale_array(
    image: NDArray[Any],
    plan: UpscalePlan,
    *,
    out: NDArray[Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> NDArray[Any]:
    """Enlarge an image of uint8, uint16 or floats in 0..1; the same kind comes back.

    Integers are rounded half away from zero and clipped; floats are what the network gives,
    computed in its own precision. Gray runs as RGB and comes back as luma (ITU-R 601). A pass that
    runs out of memory is repeated in tiles of half the side, down to 16. The network runs in eval
    mode; one that threads share has to be in eval mode before.

    Args:
        image: (h, w, 3), or gray (h, w). It may be mapped to a file, such as a `np.memmap`.
        plan: The network and how it is run, as `plan_upscale` makes it.
        out: (scale h, scale w, 3) or (scale h, scale w), of the image's dtype: takes the result.
            Like `image`, it is touched a tile at a time. Default: a new array.
        progress: Called with (tiles done, all tiles), at first with 0 done.

    Returns:
        `out`, or the new array.

    Raises:
        TypeError: `image` is no array.
        ValueError: `image` or `out` does not fit, or the network gives NaN or infinity.
        MemoryError: Even the smallest tile, or the whole image, takes more than there is.

    Example:
        >>> plan = plan_upscale(asrn(2, pretrained=True), depth=1)
        >>> upscale_array(np.zeros((20, 30, 3), np.uint8), plan).shape
        (40, 60, 3)
    """
    white = _white_of(image)
    size = image.shape[:2]
    tiling = first_tiling(plan, size)
    out = _checked_output(out, image, plan.scale)
    work = _TileWork(image, out, plan, white, progress)
    warned = False
    with evaluating(plan.net), torch.inference_mode():
        while True:
            # A lack of memory can make tiles of an image that was to run whole.
            if not warned and _may_show_seams(plan, tiling):
                _warn_of_seams(plan, tiling)
                warned = True
            shortage = _run_until_out_of_memory(work, tiling)
            if shortage is None:
                return out
            if plan.device.type == "cuda":
                torch.cuda.empty_cache()
            tiling = smaller_tiling(plan, tiling, size, shortage)


class _TileWork:
    """An image that is being enlarged; it remembers what is done between one tiling and the next.

    `rows_written` counts the LR rows from the top whose output is written over the whole width. A
    run with smaller tiles skips rows of tiles that lie within these, and redoes a row of tiles that
    was half finished.
    """

    def __init__(
        self,
        image: NDArray[Any],
        out: NDArray[Any],
        plan: UpscalePlan,
        white: int,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.image = image
        self.out = out
        self.plan = plan
        self.white = white
        self.progress = progress
        self.rows_written = 0

    def run(self, tiling: Tiling) -> None:
        """Enlarge tile by tile, row after row, what is not written yet."""
        tiles_done = 0
        self._report(tiles_done, tiling.num_tiles)
        for row in tiling.rows:
            for column in tiling.columns:
                if row.core_stop > self.rows_written:
                    self._enlarge(row, column)
                tiles_done += 1
                self._report(tiles_done, tiling.num_tiles)
            self.rows_written = max(self.rows_written, row.core_stop)

    def _enlarge(self, row: Span, column: Span) -> None:
        """One tile: read its window, run the network, write its core."""
        window = self.image[row.start : row.stop, column.start : column.stop]
        x = _to_tensor(window, self.white, self.plan)  # (1, 3, h, w)
        if self.plan.self_ensemble:
            (y,) = self_ensembled(self._predict, x)
        else:
            (y,) = self._predict(x)  # (1, 3, scale h, scale w)
        core = _core_of(y, row, column, self.plan.scale)
        scale = self.plan.scale
        rows = slice(row.core_start * scale, row.core_stop * scale)
        columns = slice(column.core_start * scale, column.core_stop * scale)
        is_gray = self.out.ndim == 2
        self.out[rows, columns] = _to_pixels(core, self.white, is_gray, self.plan)

    def _predict(self, x: Tensor) -> list[Tensor]:
        return [self.plan.net(x, depth=self.plan.depth)]

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def _run_until_out_of_memory(work: _TileWork, tiling: Tiling) -> str | None:
    """Run the tiles; return what the allocator said if memory ran out, None if all are done.

    What the failed pass held is free when this returns: the error's traceback, and with it the
    tensors of the functions that it passed through, ends with the handler.
    """
    try:
        work.run(tiling)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error).partition("\n")[0]
    return None


# --- what is checked before the first tile


def _white_of(image: NDArray[Any]) -> int:
    """The value of white in an image that can be enlarged."""
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"image is a {type(image).__name__}: expected a NumPy array; Upscaler takes other kinds"
        )
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or 0 in image.shape:
        raise ValueError(
            f"image of shape {image.shape}: expected (h, w, 3), or (h, w) for gray, "
            "without an empty side"
        )
    if image.dtype.kind == "f":
        _check_float_range(image)
        return 1
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        return int(np.iinfo(image.dtype).max)
    raise ValueError(f"image of {image.dtype}: expected uint8, uint16, or floats in 0..1")


def _check_float_range(image: NDArray[Any]) -> None:
    """Refuse floats that are not meant to lie in 0..1; a little beyond, as after resizing, is."""
    low = float(image.min())
    high = float(image.max())
    if not (low >= -1 and high <= 2):  # written so that NaN is refused
        raise ValueError(
            f"float image with values from {low:g} to {high:g}: expected 0..1: "
            "divide it by its white"
        )


def _checked_output(out: NDArray[Any] | None, image: NDArray[Any], scale: int) -> NDArray[Any]:
    height, width = image.shape[:2]
    shape = (height * scale, width * scale, *image.shape[2:])
    if out is None:
        return np.empty(shape, image.dtype)
    if out.shape != shape or out.dtype != image.dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}: expected {image.dtype} {shape}")
    return out


def _may_show_seams(plan: UpscalePlan, tiling: Tiling) -> bool:
    return plan.reach is None and tiling.num_tiles > 1


def _warn_of_seams(plan: UpscalePlan, tiling: Tiling) -> None:
    warnings.warn(
        f"tile {tiling.side}: depth {plan.depth} of this net has no bounded reach, so that "
        "tiles give another image than the whole and may show seams; tile=None runs the "
        "image whole",
        stacklevel=3,  # names the line that called upscale_array
    )


# --- between the image and the network


def _to_tensor(window: NDArray[Any], white: int, plan: UpscalePlan) -> Tensor:
    """A window of the image as a network takes it (1, 3, h, w), channels last as the image is."""
    if window.ndim == 2:
        window = np.repeat(window[..., None], 3, axis=2)  # (h, w, 3)
    pixels = window.astype(np.float32, order="C")
    pixels /= np.float32(white)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, h, w)
    if plan.value_range != (0.0, 1.0):
        black_value, white_value = plan.value_range
        x = black_value + x * (white_value - black_value)
    return x.to(plan.device, plan.dtype)


def _core_of(y: Tensor, row: Span, column: Span, scale: int) -> Tensor:
    """The part of a window's prediction that is kept, (core height, core width, 3)."""
    top = (row.core_start - row.start) * scale
    bottom = (row.core_stop - row.start) * scale
    left = (column.core_start - column.start) * scale
    right = (column.core_stop - column.start) * scale
    return y[0, :, top:bottom, left:right].permute(1, 2, 0)


def _to_pixels(core: Tensor, white: int, is_gray: bool, plan: UpscalePlan) -> NDArray[Any]:
    """What a network gives (h, w, 3) as values of the image: (h, w, 3), or (h, w) for gray."""
    core = core.float()
    if plan.value_range != (0.0, 1.0):
        black_value, white_value = plan.value_range
        core = (core - black_value) / (white_value - black_value)
    if is_gray:
        core = core @ core.new_tensor(LUMA)  # (h, w)
    if white > 1:
        if not core.isfinite().all():
            raise ValueError(
                f"depth {plan.depth} of this net gives NaN or infinity: run it in float32, or "
                "check its weights"
            )
        core = tensor_to_integers(core * white, white)
    return core.cpu().numpy()
