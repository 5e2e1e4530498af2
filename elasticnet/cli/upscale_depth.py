"""The deepest depth that upscales an image within --max-ms and --max-memory."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from elasticnet.card import DepthCard, DepthRow, card_of, measure
from elasticnet.sr.inference.tiling import plan_tiles
from elasticnet.wrapper import ElasticWrapper

SYMMETRIES = 8  # passes of a self-ensemble


class DepthChooser:
    """Chooses a depth for each image, by the card of this machine in the file of weights, else by
    measuring.

    max_ms: of the network, for an image. max_memory: megabytes of a pass: weights, input and all
    that it adds, beside the image and the result. What is measured is one tile as large as those of
    the image; images with tiles of the same size share the measurement.
    """

    def __init__(
        self,
        net: ElasticWrapper,
        weights: str | os.PathLike[str],
        *,
        max_ms: float | None = None,
        max_memory: float | None = None,
        tile: int | str | None = "auto",
        self_ensemble: bool = False,
    ) -> None:
        self.net, self.tile, self.passes = net, tile, SYMMETRIES if self_ensemble else 1
        self.budgets = {"latency_ms": max_ms, "memory_mb": max_memory}
        self.parameter = next(net.parameters())
        self._measured: dict[tuple[int, int], DepthCard] = {}
        try:
            self._card = card_of(weights, device=self.parameter.device, dtype=self.parameter.dtype)
            if max_memory is not None and any(row.memory_mb is None for row in self._card.rows):
                self._card = None
        except ValueError:  # none of this machine
            self._card = None

    def __call__(self, size: tuple[int, int]) -> tuple[int, str]:
        """Return the depth for an image of `size` (height, width) and what it is expected to cost,
        in words.

        Raises ValueError, with the nearest depth and by how much it misses, when none fits.
        """
        rows, columns = plan_tiles(self.net, size, tile=self.tile)
        height, width = rows[0].stop - rows[0].start, columns[0].stop - columns[0].start
        if self._card is not None:
            card, source = self._card, "by the file's card of this machine"
        else:
            card, source = self._measure(height, width), f"measured now on {width}x{height}"
        pixels = card.input_shape[0] * card.input_shape[2] * card.input_shape[3]
        tile = height * width / pixels
        image = tile * len(rows) * len(columns) * self.passes
        scaled = replace(card, rows=tuple(self._scaled(row, tile, image) for row in card.rows))
        depth = scaled.depth_for(**self.budgets)
        row = scaled.row(depth)
        memory = "" if row.memory_mb is None else f" and {row.memory_mb:.0f} MB"
        return depth, f" (about {row.latency_ms:.0f} ms{memory} expected, {source})"

    def _measure(self, height: int, width: int) -> DepthCard:
        if (height, width) not in self._measured:
            example = torch.rand(1, 3, height, width).to(self.parameter)
            memory = self.budgets["memory_mb"] is not None
            self._measured[height, width] = measure(
                self.net, example, repeats=5, seconds=20, memory=memory
            )
        return self._measured[height, width]

    def _scaled(self, row: DepthRow, tile: float, image: float) -> DepthRow:
        """A row for another number of pixels: weights stay as they are, all the rest grows with the
        pixels.
        """
        weights = row.parameters * self.parameter.element_size() / 2**20
        memory = row.memory_mb and weights + max(0.0, row.memory_mb - weights) * tile
        return replace(row, latency_ms=row.latency_ms * image, memory_mb=memory)
