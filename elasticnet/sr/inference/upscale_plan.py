"""The plan of an upscaling: everything that is known of it before an image is there.

`plan_upscale` makes the plan once; everything that enlarges an image only reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from elasticnet.registry import architecture_of
from elasticnet.sr.inference.receptive_field import footprint
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
        self_ensemble: Take the mean over the eight symmetries of the image, before rounding.
        device: Where to move the network. Default: it stays where it is.

    Returns:
        The plan. It is valid as long as the network keeps its device and dtype.

    Raises:
        ValueError: The depth is unknown, the tile is invalid, or the network does not enlarge an
            image by a whole number.
    """
    _check_tile(tile)
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
    )


def _check_tile(tile: Any) -> None:
    """Raise unless `tile` is "auto", None or a whole number from 1."""
    if tile in ("auto", None):
        return
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(
            f"tile {tile!r}: expected 'auto', None for the whole image, or LR pixels a side, "
            "at least 1"
        )


def _value_range(net: ElasticWrapper) -> tuple[float, float]:
    """The values of black and white that the architecture states; 0 and 1 by default."""
    architecture = architecture_of(net)
    if architecture is None or "value_range" not in architecture.extras:
        return 0.0, 1.0
    black, white = architecture.extras["value_range"]
    return float(black), float(white)
