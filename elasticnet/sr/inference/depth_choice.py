"""The deepest depth that enlarges an image within a budget of time and memory.

The same image gets the same depth in every run: what the choice is made by is measured once, and
kept for the user and the machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from elasticnet._autocast import computing_in
from elasticnet._files import message_of
from elasticnet.card import DepthCard, DepthRow, card_of, measure
from elasticnet.card.timing import time_depths, timing_of
from elasticnet.card.user_cards import card_file, keep_card, kept_card
from elasticnet.memory import MB
from elasticnet.registry import recorded
from elasticnet.sr.inference.channels_last import channels_last
from elasticnet.sr.inference.tile_layout import first_tiling
from elasticnet.sr.inference.upscale_plan import UpscalePlan

SELF_ENSEMBLE_PASSES = 8
EXAMPLE_SIZE = (180, 320)  # height and width of what is measured: about those of a tile
ROUNDS = 5  # of passes to every depth, of which the fastest counts for each depth
MAX_SECONDS = 10  # after which no further round begins


class DepthChoice(NamedTuple):
    """A depth for an image, and what it is expected to cost.

    Attributes:
        plan: The plan at this depth.
        cost: Of the whole image: milliseconds, and MB if memory is limited, in words.
        source: Where the numbers come from, in words.
        instability: Why another run may choose another depth; empty if it will not.
    """

    plan: UpscalePlan
    cost: str
    source: str
    instability: str


class _KnownCosts(NamedTuple):
    """What the depths cost, and where that is known from."""

    card: DepthCard
    source: str
    instability: str


class DepthChooser:
    """Chooses a depth for each image, by a card of this machine.

    The card is the one in the file of weights, or that which is kept for the user. Without one the
    depths are measured when they are first needed, in several rounds of which the fastest counts,
    and the card is kept. Several threads may share a chooser.

    Args:
        plan: Of the deepest depth that may be chosen.
        weights: The file of the network, which may hold a card of this machine; None if there is no
            file.
        max_ms: Milliseconds that an image may take. Default: no limit.
        max_memory: Megabytes (10**6 bytes) that a pass may take: weights, input and all that it
            adds, beside the image and the result. Default: no limit.
    """

    def __init__(
        self,
        plan: UpscalePlan,
        weights: str | os.PathLike[str] | None = None,
        *,
        max_ms: float | None = None,
        max_memory: float | None = None,
    ) -> None:
        self._plan = plan
        self._weights = weights
        self._max_ms = max_ms
        self._max_memory = max_memory
        self._known: _KnownCosts | None = None
        self._lock = threading.Lock()

    def __call__(self, size: tuple[int, int], other_ms: float = 0.0) -> DepthChoice:
        """Return the depth for an image.

        Args:
            size: Height and width of the image in LR pixels.
            other_ms: Milliseconds that the image takes beside the network, such as reading and
                writing; they count against `max_ms`.

        Raises:
            ValueError: No depth fits; the message names the nearest one and by how much it misses.
        """
        with self._lock:
            if self._known is None:
                self._known = self._find_costs()
        card, source, instability = self._known
        tiling = first_tiling(self._plan, size)
        height, width = tiling.window_size

        # The card's numbers hold for its own example; the image has other tiles.
        batch, _, card_height, card_width = card.input_shape
        tile_share = height * width / (batch * card_height * card_width)
        passes = SELF_ENSEMBLE_PASSES if self._plan.self_ensemble else 1
        image_share = tile_share * tiling.num_tiles * passes
        rows: list[DepthRow] = []
        for row in card.rows:
            if row.depth <= self._plan.depth:
                rows.append(self._scaled(row, tile_share, image_share, other_ms))
        scaled = replace(card, rows=tuple(rows))

        depth = scaled.depth_for(latency_ms=self._max_ms, memory_mb=self._max_memory)
        cost = _cost_in_words(scaled.row(depth))
        plan = self._plan.at_depth(depth)
        return DepthChoice(plan=plan, cost=cost, source=source, instability=instability)

    def _find_costs(self) -> _KnownCosts:
        """A card in the file, else one that is kept, else one that is measured now and kept."""
        card = self._card_in_file()
        if card is not None:
            return _KnownCosts(card, "by the file's card of this machine", "")
        architecture, arguments = recorded(self._plan.net)
        if architecture is None:  # nothing to keep the card by
            why = "the network has no registered architecture to keep its card by"
            return _KnownCosts(self._measure(), "measured now", why)
        try:
            file = card_file(architecture, arguments, self._plan.net.taps)
        except OSError as error:
            return _KnownCosts(self._measure(), "measured now", message_of(error))
        card = kept_card(file, device=self._plan.device, dtype=self._plan.computes_in)
        if card is not None and self._holds_enough(card):
            return _KnownCosts(card, "by the card that is kept of this machine", "")
        card = self._measure()
        try:
            keep_card(file, card)
        except OSError as error:
            return _KnownCosts(card, "measured now", message_of(error))
        return _KnownCosts(card, "measured now and kept", "")

    def _card_in_file(self) -> DepthCard | None:
        """The card in the file, if it is of this machine and holds what the budgets need."""
        if self._weights is None:
            return None
        try:
            card = card_of(self._weights, device=self._plan.device, dtype=self._plan.computes_in)
        except ValueError:  # the file has no card of this machine
            return None
        return card if self._holds_enough(card) else None

    def _holds_enough(self, card: DepthCard) -> bool:
        """Whether a card is of images, and of all that the budgets limit."""
        if len(card.input_shape) != 4:
            return False
        return self._max_memory is None or all(row.memory_mb is not None for row in card.rows)

    def _measure(self) -> DepthCard:
        return measured_card(self._plan, with_memory=self._max_memory is not None)

    def _scaled(
        self, row: DepthRow, tile_share: float, image_share: float, other_ms: float
    ) -> DepthRow:
        """A row for another number of pixels: weights stay, all the rest grows with the pixels.

        tile_share is the number of pixels of a window, image_share of all windows of the image, as
        parts of the pixels that the row was measured on.
        """
        memory = row.memory_mb
        if memory is not None:
            weights = row.parameters * self._plan.dtype.itemsize / MB
            memory = weights + max(0.0, memory - weights) * tile_share
        latency = row.latency_ms * image_share + other_ms
        return replace(row, latency_ms=latency, memory_mb=memory)


def measured_card(plan: UpscalePlan, with_memory: bool) -> DepthCard:
    """Return a card of this machine, measured now on an image as large as a tile.

    Args:
        plan: Of the network.
        with_memory: Whether the peak memory is measured, too, which takes some seconds more.
    """
    example = example_of(plan)
    card = measure(
        plan.net, example, repeats=1, memory=with_memory, compute_dtype=plan.compute_dtype
    )
    with computing_in(plan.compute_dtype, plan.device):
        times = time_depths(plan.net, example, repeats=ROUNDS, seconds=MAX_SECONDS, warm_up=0)
    return with_fastest_times(card, times)


def example_of(plan: UpscalePlan) -> Tensor:
    """Return an image as large as a tile, on which the depths of a network are timed.

    Args:
        plan: Of the network.
    """
    return channels_last(torch.rand(1, 3, *EXAMPLE_SIZE)).to(plan.device, plan.dtype)


def with_fastest_times(card: DepthCard, times: Mapping[int, Sequence[float]]) -> DepthCard:
    """Return a card whose times are the fastest that were taken.

    A machine that is busy for a moment makes times longer, never shorter.

    Args:
        card: Of the network.
        times: Of passes to each depth, in milliseconds.
    """
    rows: list[DepthRow] = []
    for row in card.rows:
        fastest = min(times[row.depth])
        times_of_row = replace(
            row,
            latency_ms=fastest,
            latency_p95_ms=max(times[row.depth]),
            latency_spread_ms=timing_of(times[row.depth]).spread_ms,
        )
        rows.append(times_of_row)
    num_rounds = min(len(each) for each in times.values())
    return replace(card, rows=tuple(rows), repeats=num_rounds)


def _cost_in_words(row: DepthRow) -> str:
    if row.memory_mb is None:
        return f"{row.latency_ms:.0f} ms"
    return f"{row.latency_ms:.0f} ms and {row.memory_mb:.0f} MB"
