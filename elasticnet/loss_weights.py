"""Weights of the loss terms, as pure functions of (step, total): exact on resume, the same on every
rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

TAP_WEIGHTS = ("paper", "normalised", "deepest")
TapWeights = str | float | Sequence[float] | Mapping[int, float]


def ramp(
    step: int,
    total: int,
    start: float,
    end: float,
    begin: float = 0.0,
    finish: float = 1.0,
    shape: str = "linear",
) -> float:
    """Return a value that goes from `start` to `end` while step/total goes from `begin` to
    `finish`, constant outside.

    shape: "linear", or "cosine" (half a cosine wave: flat at both ends). Use it for the PSD weight:
    `ElasticObjective(..., psd_weight=lambda step: ramp(step, 100_000, 0.0, 0.1, finish=0.2))`.
    """
    if total < 1 or not 0 <= begin <= finish <= 1:
        raise ValueError(
            f"total={total}, begin={begin}, finish={finish}: expected total >= 1, 0 <= begin <= finish <= 1"
        )
    if shape not in ("linear", "cosine"):
        raise ValueError(f"shape {shape!r}: expected linear or cosine")
    progress = step / total
    if progress >= finish:
        return end
    fraction = (progress - begin) / (finish - begin) if progress > begin else 0.0
    if shape == "cosine":
        fraction = 0.5 - 0.5 * math.cos(math.pi * fraction)
    return start + (end - start) * fraction


def tap_weights(kind: TapWeights, taps: Sequence[int]) -> dict[int, float]:
    """Return the weight of every tap's loss by depth.

    "paper": 1 each (L_routine + sum of L_n); "normalised": 1/len(taps) each, so that the sum of the
    weights is 1 and the learning rate of a single-exit network fits; a number from 0 to 1: so much
    for the deepest tap, the rest shared by the others; "deepest": 1/2 for it; a sequence: one
    weight a tap, shallowest first; a mapping: by depth.
    """
    if isinstance(kind, str):
        if kind not in TAP_WEIGHTS:
            raise ValueError(
                f"tap weights {kind!r}: expected {', '.join(TAP_WEIGHTS)}, a number, a sequence or a mapping by depth"
            )
        if kind != "deepest":
            return dict.fromkeys(taps, 1.0 if kind == "paper" else 1 / len(taps))
        kind = 0.5
    if isinstance(kind, (int, float)):
        if isinstance(kind, bool) or not 0 <= kind <= 1:
            raise ValueError(f"tap weights {kind}: expected the deepest tap's share, from 0 to 1")
        *others, deepest = taps
        return {
            **dict.fromkeys(others, (1 - kind) / max(1, len(others))),
            deepest: kind if others else 1.0,
        }
    if not isinstance(kind, Mapping):
        if len(kind) != len(taps):
            raise ValueError(
                f"{len(kind)} tap weights for {len(taps)} taps: give one for each of {list(taps)}"
            )
        kind = dict(zip(taps, kind, strict=True))
    if set(kind) != set(taps):
        raise ValueError(
            f"tap weights name depths {sorted(kind)}: this net has taps at {list(taps)}"
        )
    weights = {depth: float(kind[depth]) for depth in taps}
    for depth, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"tap weight {weight} at depth {depth}: expected a finite number, at least 0"
            )
    return weights
