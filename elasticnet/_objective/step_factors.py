"""What one step multiplies its losses by: from the user's weights and the step to the factors.

A factor is the weight at one step, divided by the probability that its tap is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from elasticnet._objective.given_weights import (
    CheckedTapWeights,
    is_learned,
    is_mapping,
    is_scheduled,
)
from elasticnet.loss_weights import Weight, check_tap_weights, check_weight, equal, learned
from elasticnet.taps import inclusion_probability, sample_depths

Factor = float | Tensor
"""A number, or a scalar tensor: of a learned weight, or in a compiled step."""


class StepFactors(NamedTuple):
    """What one step multiplies its losses by.

    Attributes:
        by_depth: The factor of the task loss at each computed depth. Its keys are sorted: the
            deepest comes last.
        distillations: The factor of each distillation, by the name of its weight: the weight at
            this step.
    """

    by_depth: Mapping[int, Factor]
    distillations: Mapping[str, Factor]


class Weighting(NamedTuple):
    """All that decides which taps a step computes, and what it multiplies their losses by.

    Attributes:
        taps: The network's taps, the deepest last.
        tap_weights: The weights w_n of the taps, of any kind.
        distillation_weights: The weight of each distillation, of any kind, by its name.
        sampled_taps: How many taps a step computes besides the deepest. None: all of them.
        seed: The seed of the sampling.
    """

    taps: tuple[int, ...]
    tap_weights: CheckedTapWeights
    distillation_weights: Mapping[str, Weight]
    sampled_taps: int | None
    seed: int

    def depends_on_step(self) -> bool:
        """Return whether the computed taps, or their factors, differ from step to step."""
        if self.sampled_taps is not None or is_scheduled(self.tap_weights):
            return True
        return any(is_scheduled(weight) for weight in self.distillation_weights.values())

    def with_all_taps(self) -> Weighting:
        """Return a weighting in which every step computes all taps, and what has a schedule."""
        tap_weights = self.tap_weights
        if not is_learned(tap_weights):  # A tap is computed whatever its learned weight is.
            tap_weights = equal(self.taps)
        distillation_weights = dict(self.distillation_weights)
        for name, weight in self.distillation_weights.items():
            if is_scheduled(weight):
                distillation_weights[name] = 1.0
        return self._replace(
            sampled_taps=None, tap_weights=tap_weights, distillation_weights=distillation_weights
        )

    def factors_at(self, step: int) -> StepFactors:
        """Return the factors of the losses that a step computes.

        Args:
            step: The training step.
        """
        weights = self.tap_weights_at(step)
        *shallower, deepest = self._computed_depths(step, weights)
        # Every step computes the deepest tap. The others are sampled, and the division keeps the
        # expected loss the same.
        probability = 1.0
        if self.sampled_taps is not None:
            probability = inclusion_probability(self.taps, self.sampled_taps)
        by_depth: dict[int, Factor] = {}
        for depth in shallower:
            by_depth[depth] = weights[depth] / probability
        by_depth[deepest] = weights[deepest]
        distillations: dict[str, Factor] = {}
        for name, weight in self.distillation_weights.items():
            distillations[name] = _weight_at(step, weight, name)
        return StepFactors(by_depth, distillations)

    def depths_at(self, step: int) -> tuple[int, ...]:
        """Return the depths whose predictions a step computes, the deepest last.

        Args:
            step: The training step.
        """
        return self._computed_depths(step, self.tap_weights_at(step))

    def tap_weights_at(self, step: int) -> dict[int, Factor]:
        """Return the weight of every tap at a step, by depth.

        Args:
            step: The training step.
        """
        if is_learned(self.tap_weights):
            return dict(zip(self.taps, learned(self.tap_weights).unbind(), strict=True))
        if is_mapping(self.tap_weights):
            return dict(self.tap_weights)
        return dict(check_tap_weights(self.tap_weights(step), self.taps))

    def _computed_depths(self, step: int, weights: Mapping[int, Factor]) -> tuple[int, ...]:
        """Return the depths that are sampled, without shallower ones whose weight is 0."""
        depths = tuple(weights)
        if self.sampled_taps is not None:
            depths = sample_depths(depths, self.sampled_taps, self.seed, step)
        *shallower, deepest = depths
        weighted = [depth for depth in shallower if not is_left_out(weights[depth])]
        return (*weighted, deepest)


def _weight_at(step: int, weight: Weight, name: str) -> Factor:
    """Return the weight of a distillation at a step."""
    if is_learned(weight):
        return learned(weight).reshape(())
    if callable(weight):
        at_step = weight(step)
        return check_weight(at_step, found=f"at step {step} {name} is {at_step}")
    return weight


def is_left_out(factor: Factor) -> bool:
    """Return whether a loss with this factor is not computed.

    A tensor is never asked for its value: a learned weight may be on a GPU, and a graph, which gets
    a scheduled lambda as a tensor, cannot look at it.

    Args:
        factor: The factor.
    """
    return not isinstance(factor, Tensor) and factor == 0
