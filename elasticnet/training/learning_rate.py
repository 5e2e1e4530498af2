"""The learning rate's factor as a function of the step: exact on resume, the same on every rank."""

from __future__ import annotations

import math


def halving(step: int, every: int) -> float:
    """Return the learning rate's factor when it is halved every `every` steps (the ASRN paper:
    200,000).
    """
    return 0.5 ** (step // every)


def cosine(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Return the learning rate's factor: linear warm-up over `warmup` steps, then half a cosine
    down to `floor`.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * progress))
