"""The deepest depth that upscales an image within --max-ms and --max-memory."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from elasticnet.card import DepthCard, DepthRow, card_of, measure
from elasticnet.memory import MB
from elasticnet.sr.inference.tile_layout import first_tiling
from elasticnet.sr.inference.upscale_plan import UpscalePlan

SELF_ENSEMBLE_PASSES = 8
REPEATS = 5  # passes that are timed at each depth
MAX_SECONDS = 20  # that measuring may take


class DepthChooser:
    """Chooses a depth for each image, by the weights' card of this machine or by measuring.

    What is measured is one tile as large as those of the image; images with tiles of the same size
    share the measurement.

    Args:
        plan: Of the deepest depth that may be chosen.
        weights: The file of the network, which may hold a card of this machine.
        max_ms: Milliseconds that the network may take for an image. Default: no limit.
        max_memory: Megabytes (10**6 bytes) that a pass may take: weights, input and all that it
            adds, beside the image and the result. Default: no limit.
    """

    def __init__(
        self,
        plan: UpscalePlan,
        weights: str | os.PathLike[str],
        *,
        max_ms: float | None = None,
        max_memory: float | None = None,
    ) -> None:
        self._plan = plan
        self._max_ms = max_ms
        self._max_memory = max_memory
        self._stored_card = self._card_of(weights)
        self._measured: dict[tuple[int, int], DepthCard] = {}  # by the size of a window

    def __call__(self, size: tuple[int, int]) -> tuple[UpscalePlan, str]:
        """Return the plan for an image and what it is expected to cost, in words.

        Args:
            size: Height and width of the image in LR pixels.

        Raises:
            ValueError: No depth fits; the message names the nearest one and by how much it misses.
        """
        tiling = first_tiling(self._plan, size)
        height, width = tiling.window_size
        if self._stored_card is not None:
            card = self._stored_card
            source = "by the file's card of this machine"
        else:
            card = self._measure(height, width)
            source = f"measured now on {width}x{height}"

        # The card's numbers hold for its own example; the image has other tiles.
        batch, _, card_height, card_width = card.input_shape
        tile_share = height * width / (batch * card_height * card_width)
        passes = SELF_ENSEMBLE_PASSES if self._plan.self_ensemble else 1
        image_share = tile_share * tiling.num_tiles * passes
        rows = [self._scaled(row, tile_share, image_share) for row in card.rows]
        scaled = replace(card, rows=tuple(rows))

        depth = scaled.depth_for(latency_ms=self._max_ms, memory_mb=self._max_memory)
        cost = _cost_in_words(scaled.row(depth))
        return self._plan.at_depth(depth), f" (about {cost} expected, {source})"

    def _card_of(self, weights: str | os.PathLike[str]) -> DepthCard | None:
        """The card in the file, if it is of this machine and holds what the budgets need."""
        try:
            card = card_of(weights, device=self._plan.device, dtype=self._plan.dtype)
        except ValueError:  # the file has no card of this machine
            return None
        if self._max_memory is not None and any(row.memory_mb is None for row in card.rows):
            return None
        return card

    def _measure(self, height: int, width: int) -> DepthCard:
        """The card of a window, measured once for each size."""
        if (height, width) not in self._measured:
            example = torch.rand(1, 3, height, width).to(self._plan.device, self._plan.dtype)
            self._measured[height, width] = measure(
                self._plan.net,
                example,
                repeats=REPEATS,
                seconds=MAX_SECONDS,
                memory=self._max_memory is not None,
            )
        return self._measured[height, width]

    def _scaled(self, row: DepthRow, tile_share: float, image_share: float) -> DepthRow:
        """A row for another number of pixels: weights stay, all the rest grows with the pixels.

        tile_share is the number of pixels of a window, image_share of all windows of the image, as
        parts of the pixels that the row was measured on.
        """
        memory = row.memory_mb
        if memory is not None:
            weights = row.parameters * self._plan.dtype.itemsize / MB
            memory = weights + max(0.0, memory - weights) * tile_share
        return replace(row, latency_ms=row.latency_ms * image_share, memory_mb=memory)


def _cost_in_words(row: DepthRow) -> str:
    if row.memory_mb is None:
        return f"{row.latency_ms:.0f} ms"
    return f"{row.latency_ms:.0f} ms and {row.memory_mb:.0f} MB"
