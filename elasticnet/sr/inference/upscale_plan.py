"""The plan of an upscaling: everything that is known of it before an image is there.

`plan_upscale` makes the plan once; everything that enlarges an image only reads it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elasticnet._autocast import computing_in
from elasticnet._modules.evaluating import evaluating
from elasticnet._modules.merged_adapter import merge_adapter
from elasticnet.registry import architecture_of
from elasticnet.sr.inference.channels_last import channels_last
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.self_ensemble import self_ensembled
from elasticnet.sr.inference.tile_engine import (
    LUMA,
    WITHOUT_CHANGE,
    TilePart,
    batch_of,
    check_tile,
    check_tile_batch,
    white_of,
)
from elasticnet.sr.pixels import refuse_not_finite, tensor_to_integers
from elasticnet.wrapper import ElasticWrapper

# The memory of a pass as a multiple of that of its tensors, because kernels need scratch memory,
# too. The largest factor that was measured is 1.17.
SCRATCH_FACTOR = 1.25


@dataclass(frozen=True, eq=False)
class UpscalePlan:
    """How a network, at one depth, enlarges images of any size; `plan_upscale` makes it.

    Attributes:
        net: The network, on its device.
        depth: How many of its blocks run.
        scale: How many times as long each side of an image becomes.
        reach: How many LR pixels away an input pixel can be and still change an output pixel; None
            if there is no bound.
        bytes_per_pixel: Bytes that a pass takes for each LR pixel, with the scratch memory of
            kernels.
        tile: LR pixels a side of the part of the image that one pass enlarges; None for the whole
            image, "auto" for the fastest size that fits into the free memory.
        self_ensemble: Whether the result is the mean over the eight symmetries of the image.
        device: The network's device.
        dtype: The network's dtype.
        value_range: The values of black and of white in the network's input and output.
        tile_batch: How many tiles of a row run at once; "auto" for as many as pay.
        compute_dtype: float16 or bfloat16 where convolutions are computed in it, by autocast; None
            for the network's own dtype.
    """

    net: ElasticWrapper
    depth: int
    scale: int
    reach: int | None
    bytes_per_pixel: float
    tile: int | str | None
    self_ensemble: bool
    device: torch.device
    dtype: torch.dtype
    value_range: tuple[float, float]
    tile_batch: int | str = "auto"
    compute_dtype: torch.dtype | None = None

    def at_depth(self, depth: int) -> UpscalePlan:
        """Return the plan for another depth of the same network, with the same choices.

        Args:
            depth: A depth that carries a tap.
        """
        return plan_upscale(
            self.net,
            depth=depth,
            tile=self.tile,
            tile_batch=self.tile_batch,
            self_ensemble=self.self_ensemble,
            compute_dtype=self.compute_dtype,
        )

    @property
    def computes_in(self) -> torch.dtype:
        """In which dtype convolutions are computed."""
        return self.compute_dtype or self.dtype

    @property
    def device_name(self) -> str:
        """Where the network runs, such as "cpu" or "cuda:1"."""
        return str(self.device)

    @contextmanager
    def running(self) -> Generator[UpscalePlan, None, None]:
        """Hold the network in eval mode, without gradients, inside a `with` block.

        Yields:
            The plan with the network as it is run there: the head also does what the adapter of the
            depth does, where it can, which saves a pass over the features.
        """
        net = self._with_adapter_in_head()
        # Not in inference mode, because what a net keeps from such a pass cannot be trained with.
        computing = computing_in(self.compute_dtype, self.device)
        with evaluating(net), torch.no_grad(), computing:
            yield replace(self, net=net)

    def _with_adapter_in_head(self) -> ElasticWrapper:
        """Return a net of the same modules, with another head; the net itself without adapter.

        It is made anew for each image, as the weights may have changed.
        """
        if str(self.depth) not in self.net.adapters or "forward" in self.net.__dict__:
            return self.net
        net = self.net.with_taps(self.net.taps)
        merge_adapter(net, self.depth)
        return net

    def enlarge(
        self, windows: Sequence[NDArray[Any]], parts: Sequence[TilePart]
    ) -> list[NDArray[Any]]:
        """Return the pixels of tiles, in the dtype of the windows; see `TileEngine`.

        Args:
            windows: (h, w, 3) each, or gray (h, w), all of one size and dtype.
            parts: Of each window's output, the part that is kept.

        Raises:
            ValueError: The network gives NaN or infinity.
        """
        batch = torch.from_numpy(batch_of(windows, self.value_range))  # (b, h, w, 3)
        x = batch.permute(0, 3, 1, 2)  # (b, 3, h, w), channels last in memory
        y = self._predict(x.to(self.device, self.dtype))  # (b, 3, scale h, scale w)
        tiles: list[NDArray[Any]] = []
        for window, part, output in zip(windows, parts, y, strict=True):
            tile = output[:, part.rows, part.columns]  # (3, h, w) of the tile
            is_gray = window.ndim == 2
            tiles.append(_to_pixels(tile, window.dtype, is_gray, self))
        return tiles

    def free_cached_memory(self) -> None:
        """Give back the memory that PyTorch keeps for later tensors, on a GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _predict(self, x: Tensor) -> Tensor:
        """The network's output, or its mean over the symmetries of the input."""
        if not self.self_ensemble:
            return self._run_network(x)
        # `self_ensembled` takes and returns several outputs; here there is one.
        (mean,) = self_ensembled(lambda turned: [self._run_network(turned)], x)
        return mean

    def _run_network(self, x: Tensor) -> Tensor:
        return self.net(channels_last(x), depth=self.depth)


def plan_upscale(
    net: ElasticWrapper,
    *,
    depth: int | None = None,
    tile: int | str | None = "auto",
    tile_batch: int | str = "auto",
    self_ensemble: bool = False,
    device: torch.device | str | None = None,
    compute_dtype: torch.dtype | None = None,
) -> UpscalePlan:
    """Find out, once, everything that upscaling needs to know of a network.

    Args:
        net: An image network (b, 3, h, w) -> (b, 3, scale h, scale w).
        depth: A depth that carries a tap. Default: that of the net.
        tile: The part of the image that one pass enlarges:

            - a number, at least 1: a tile with this many LR pixels a side. A pass also reads the
              pixels around its tile, as far as the network sees, so that the tiles together are the
              whole image up to the rounding of floats;
            - None: the whole image;
            - "auto": a tile of the fastest size that fits into the free memory.

            A network without a bounded reach (global pooling) runs the image whole with "auto", and
            in tiles with a number; upscaling then warns of seams.
        tile_batch: How many tiles of a row run at once, as one batch; "auto": one on a CPU, and on
            a GPU as many as together have the pixels of the fastest window.
        self_ensemble: Take the mean over the eight symmetries of the image, before rounding.
        device: Where to move the network. Default: it stays where it is.
        compute_dtype: float16 or bfloat16: convolutions are computed in it, by autocast, and the
            weights stay as they are. Default: the network's own dtype.

    Returns:
        The plan. It is valid as long as the network keeps its device and dtype.

    Raises:
        ValueError: The depth is unknown, the tile or the batch is invalid, or the network does not
            enlarge an image by a whole number.
    """
    check_tile(tile)
    check_tile_batch(tile_batch)
    if device is not None:
        net.to(device)
    parameter = next(net.parameters(), torch.zeros(()))  # without one: float32 on the CPU
    found = footprint(net, depth)
    return UpscalePlan(
        net=net,
        depth=found.depth,
        scale=found.scale,
        reach=found.reach,
        bytes_per_pixel=found.bytes_per_pixel * SCRATCH_FACTOR,
        tile=tile,
        self_ensemble=self_ensemble,
        device=parameter.device,
        dtype=parameter.dtype,
        value_range=_value_range(net),
        tile_batch=tile_batch,
        compute_dtype=compute_dtype,
    )


def _value_range(net: ElasticWrapper) -> tuple[float, float]:
    """The values of black and white that the architecture states; 0 and 1 by default."""
    architecture = architecture_of(net)
    if architecture is None or "value_range" not in architecture.extras:
        return 0.0, 1.0
    black, white = architecture.extras["value_range"]
    return float(black), float(white)


# --- between the network and the image


def _to_pixels(
    tile: Tensor, dtype: np.dtype[Any], is_gray: bool, plan: UpscalePlan
) -> NDArray[Any]:
    """A part of the network's output (3, h, w) as pixels of `dtype`: (h, w, 3), or gray (h, w)."""
    values = tile.permute(1, 2, 0).float()  # (h, w, 3)
    if plan.value_range != WITHOUT_CHANGE:
        black, white = plan.value_range
        values = (values - black) / (white - black)  # 0 is black, 1 is white
    if is_gray:
        values = values @ values.new_tensor(LUMA)  # (h, w)
    if not values.sum().isfinite():  # quicker than to look at each value
        refuse_not_finite(values, plan.depth)
    if dtype.kind == "f":
        pixels = values  # float32; the assignment to the image casts it
    else:
        largest = white_of(dtype)
        pixels = tensor_to_integers(values * largest, largest)
    # The channels of a pixel become neighbours here, where the network ran: on a GPU they lie in
    # planes, which the assignment to the image would join value by value.
    return pixels.contiguous().cpu().numpy()
