"""Layer dropout: which blocks a training step skips, as a pure function of the step.

A network that sometimes skips a block depends less on any single one, so that its shallow taps lose
less. The probability rises with the depth, since the shallow taps need the shallow blocks:

    p(depth) = deepest * (depth - 1) / (number of blocks - 1)            "linear"
    p(depth) = deepest * (2 ** ((depth - 1) / (number of blocks - 1)) - 1)    "exponential"

Sources: stochastic depth (Huang et al. 2016) skips residual blocks, with a probability that rises
linearly; LayerSkip (Elhoushi et al. 2024) trains early exits so, with the exponential rise. Both
draw for each sample; here one draw serves the whole batch, so that a skipped block costs nothing.

The draw depends on the seed and the step alone. It is the same in every process of a run, and the
same again when a run is resumed: nothing is counted, nothing is saved.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

SHAPES = ("linear", "exponential")
"""How the probability rises with the depth."""


def rising_probabilities(
    num_blocks: int, deepest: float, shape: str = "exponential"
) -> dict[int, float]:
    """Return the probability with which a step skips each block, rising from 0 at the first.

    Args:
        num_blocks: The number of blocks, at least 1.
        deepest: The probability of the deepest block, from 0 to 1. LayerSkip takes 0.1 to 0.2.
        shape: "linear" or "exponential", see the top of this file.

    Returns:
        The probability by depth; 0 at depth 1.

    Raises:
        ValueError: An argument is out of range, or the shape is unknown.

    Example:
        `rising_probabilities(3, deepest=0.2, shape="linear") == {1: 0.0, 2: 0.1, 3: 0.2}`
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks {num_blocks}: expected at least 1")
    if not 0 <= deepest <= 1:
        raise ValueError(f"deepest {deepest}: expected a probability from 0 to 1")
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r}: expected one of {', '.join(SHAPES)}")
    probabilities: dict[int, float] = {}
    for depth in range(1, num_blocks + 1):
        place = (depth - 1) / max(1, num_blocks - 1)  # 0 for the first block, 1 for the deepest
        rise = place if shape == "linear" else 2**place - 1
        probabilities[depth] = deepest * rise
    return probabilities


def skipped_blocks(
    probabilities: Mapping[int, float], step: int, seed: int, strength: float = 1.0
) -> tuple[int, ...]:
    """Return the depths of the blocks that a step skips, drawn one by one.

    Args:
        probabilities: The probability of each depth, such as those of `rising_probabilities`.
        step: The training step, from 0. It decides the draw together with `seed`.
        seed: The seed of the run.
        strength: What all probabilities are multiplied by, from 0 to 1. As a function of the step
            it is a curriculum: `elasticnet.loss_weights.ramp(step, total, 0.0, 1.0)`.

    Returns:
        The depths, sorted; `net.skipping(depths)` takes them.

    Raises:
        ValueError: The strength, or a probability, is not between 0 and 1.

    Example:
        ```python
        with net.skipping(skipped_blocks(probabilities, step, seed=0)):
            terms = objective(x, target, step=step)
        ```
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}: expected a number from 0 to 1")
    # As in `elasticnet.taps.sample_depths`: a string seed makes draws of other steps unrelated.
    generator = random.Random(f"layers:{seed}:{step}")
    skipped: list[int] = []
    for depth in sorted(probabilities):
        probability = probabilities[depth]
        if not 0 <= probability <= 1:
            raise ValueError(
                f"probability {probability} at depth {depth}: expected a number from 0 to 1"
            )
        if generator.random() < strength * probability:
            skipped.append(depth)
    return tuple(skipped)
