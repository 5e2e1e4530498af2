"""The dtype in which a network runs fastest on this machine, at a loss that nobody sees.

What is fast is measured, not looked up: bfloat16 halves the time on some processors and takes ten
times as long on others. The times are kept in depth cards, one for each dtype, for the user and the
machine, so that every later run chooses the same dtype.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from elasticnet._autocast import computing_in
from elasticnet._files import message_of
from elasticnet.card import DepthCard, card_of, measure
from elasticnet.card.depth_card import NOISE
from elasticnet.card.timing import time_depths
from elasticnet.card.user_cards import card_file, keep_card, kept_card
from elasticnet.registry import recorded
from elasticnet.sr.inference.depth_choice import (
    MAX_SECONDS,
    ROUNDS,
    example_of,
    with_fastest_times,
)
from elasticnet.sr.inference.dtype_loss import (
    AUTO,
    DTYPES,
    FLOAT32,
    MAX_LOSS,
    known_losses,
)
from elasticnet.sr.inference.upscale_plan import UpscalePlan

MAX_SLOWDOWN = 2.0  # times the fastest: what is slower in its first round is timed no further


class DtypeChoice(NamedTuple):
    """A dtype for a network.

    Attributes:
        dtype: "float32", "bfloat16" or "float16".
        reason: Why, in a line.
    """

    dtype: str
    reason: str


def compute_dtype_of(name: str) -> torch.dtype | None:
    """Return what a plan takes for a dtype's name; None for float32, the dtype of the weights.

    Args:
        name: "float32", "bfloat16" or "float16".

    Raises:
        ValueError: Another name.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: expected {', '.join(DTYPES)} or {AUTO}")
    return None if name == FLOAT32 else getattr(torch, name)


def plan_in_dtype(
    plan: UpscalePlan, dtype: str, weights: str | os.PathLike[str] | None
) -> tuple[UpscalePlan, str]:
    """Return the plan for a dtype, and why "auto" has chosen it; no reason for the others.

    Args:
        plan: Of the network, in float32.
        dtype: "float32", "bfloat16", "float16" or "auto".
        weights: The file of the network; None where there is none.

    Raises:
        ValueError: Another dtype.
    """
    reason = ""
    if dtype == AUTO:
        dtype, reason = choose_dtype(plan, weights)
    return replace(plan, compute_dtype=compute_dtype_of(dtype)), reason


def choose_dtype(plan: UpscalePlan, weights: str | os.PathLike[str] | None) -> DtypeChoice:
    """Return the fastest dtype that loses at most 0.01 dB, at the plan's depth.

    What the dtypes lose has to be known (`known_losses`): of the packaged weights it is, of others
    `elasticnet profile FILE --data DIR --dtype auto` measures it. What they take is in cards of
    this machine, in the file or kept for the user. Where one is missing, all are measured now, in
    rounds in which the dtypes take turns and of which the fastest counts, and kept.

    Args:
        plan: Of the network, in float32.
        weights: Its file; None where there is none.
    """
    if weights is None:
        return DtypeChoice(FLOAT32, "what other dtypes lose is known of files alone")
    allowed: list[str] = []
    refused: list[str] = []
    for dtype in DTYPES:
        loss = known_losses(weights, dtype).get(plan.depth)
        if loss is None:
            refused.append(f"what {dtype} loses is not known")
        elif loss > MAX_LOSS:
            refused.append(f"{dtype} loses {loss:.3f} dB")
        else:
            allowed.append(dtype)
    if allowed == [FLOAT32]:
        return DtypeChoice(FLOAT32, ", ".join(refused))
    cards, source = _cards(plan, weights, allowed)
    choice = fastest_of(cards, plan.depth)
    loss = known_losses(weights, choice.dtype)[plan.depth]
    lost = f"; {choice.dtype} loses {max(loss, 0.0):.4f} dB" if choice.dtype != FLOAT32 else ""
    return choice._replace(reason=f"{choice.reason}, {source}{lost}")


def fastest_of(cards: Mapping[str, DepthCard], depth: int) -> DtypeChoice:
    """Return the dtype whose card has the shortest time; float32 if it is as fast.

    Args:
        cards: By dtype, of one machine; that of float32 among them.
        depth: Of the network.
    """
    times = {dtype: card.row(depth).latency_ms for dtype, card in cards.items()}
    fastest = min(times, key=lambda dtype: times[dtype])
    if times[fastest] > times[FLOAT32] * (1 - NOISE):
        fastest = FLOAT32
    listed = ", ".join(f"{dtype} {ms:.0f} ms" for dtype, ms in times.items())
    return DtypeChoice(fastest, listed)


def _cards(
    plan: UpscalePlan, weights: str | os.PathLike[str], dtypes: Sequence[str]
) -> tuple[dict[str, DepthCard], str]:
    """A card of this machine for each dtype, and where they are from, in words."""
    in_file = _cards_in_file(plan, weights, dtypes)
    if len(in_file) == len(dtypes):
        return in_file, "by the file's cards of this machine"
    architecture, arguments = recorded(plan.net)
    if architecture is None:
        return measured_cards(plan, dtypes), "measured now"
    try:
        file = card_file(architecture, arguments, plan.net.taps)
    except OSError as error:
        return measured_cards(plan, dtypes), f"measured now ({message_of(error)})"
    cards: dict[str, DepthCard] = {}
    for dtype in dtypes:
        card = kept_card(file, device=plan.device, dtype=getattr(torch, dtype))
        if card is not None:
            cards[dtype] = card
    if len(cards) == len(dtypes):
        return cards, "by the cards that are kept of this machine"
    cards = measured_cards(plan, dtypes)
    try:
        for card in cards.values():
            keep_card(file, card)
    except OSError as error:
        return cards, f"measured now ({message_of(error)})"
    return cards, "measured now and kept"


def _cards_in_file(
    plan: UpscalePlan, weights: str | os.PathLike[str], dtypes: Sequence[str]
) -> dict[str, DepthCard]:
    """The cards of this machine that a file holds."""
    cards: dict[str, DepthCard] = {}
    for dtype in dtypes:
        try:
            card = card_of(weights, device=plan.device, dtype=getattr(torch, dtype))
        except ValueError:  # the file has no such card
            continue
        cards[dtype] = card
    return cards


def measured_cards(plan: UpscalePlan, dtypes: Sequence[str]) -> dict[str, DepthCard]:
    """Return a card for each dtype, whose times are the fastest of rounds in which they take turns.

    Args:
        plan: Of the network, in float32.
        dtypes: As in `compute_dtype_of`.
    """
    example = example_of(plan)
    cards: dict[str, DepthCard] = {}
    for dtype in dtypes:
        compute_dtype = compute_dtype_of(dtype)
        # One pass to each depth, which warms up, too.
        cards[dtype] = measure(
            plan.net, example, repeats=1, memory=False, compute_dtype=compute_dtype
        )
    times = _times_in_turn(plan, cards)
    return {
        dtype: with_fastest_times(card, times[dtype]) if times[dtype] else card
        for dtype, card in cards.items()
    }


def _times_in_turn(
    plan: UpscalePlan, cards: Mapping[str, DepthCard]
) -> dict[str, dict[int, list[float]]]:
    """The times of every dtype that is not far too slow, by depth, in rounds."""
    example = example_of(plan)
    fastest = min(card.rows[-1].latency_ms for card in cards.values())
    times: dict[str, dict[int, list[float]]] = {dtype: {} for dtype in cards}
    for _ in range(ROUNDS):
        for dtype, card in cards.items():
            if card.rows[-1].latency_ms > MAX_SLOWDOWN * fastest:
                continue
            with computing_in(compute_dtype_of(dtype), plan.device):
                of_round = time_depths(plan.net, example, repeats=1, seconds=MAX_SECONDS, warm_up=0)
            for depth, ms in of_round.items():
                times[dtype].setdefault(depth, []).extend(ms)
    return times
