"""What one step multiplies its losses by: from the user's weights and the step to the factors.

A factor is the weight at one step, divided by the probability that its tap is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from elasticnet._objective.given_weights import (
    CheckedTapWeights,
    Weight,
    is_learned,
    is_mapping,
    is_scheduled,
)
from elasticnet.loss_weights import check_tap_weights, check_weight, equal, learned
from elasticnet.taps import inclusion_probability, sample_depths

Factor = float | Tensor
"""A number, or a scalar tensor: of a learned weight, or in a compiled step."""


class StepFactors(NamedTuple):
    """What one step multiplies its losses by.

    Attributes:
        by_depth: The factor of the task loss at each computed depth. Its keys are sorted: the
            deepest comes last.
        psd: The factor of L_PSD: lambda at this step.
        output: The factor of the output distillation: mu.
    """

    by_depth: Mapping[int, Factor]
    psd: Factor
    output: Factor


class Weighting(NamedTuple):
    """All that decides which taps a step computes, and what it multiplies their losses by.

    Attributes:
        taps: The network's taps, the deepest last.
        tap_weights: The weights w_n of the taps, of any kind.
        psd_weight: lambda, of any kind.
        output_weight: mu, a number or learned.
        sampled_taps: How many taps a step computes besides the deepest. None: all of them.
        seed: The seed of the sampling.
    """

    taps: tuple[int, ...]
    tap_weights: CheckedTapWeights
    psd_weight: Weight
    output_weight: float | nn.Parameter
    sampled_taps: int | None
    seed: int

    def depends_on_step(self) -> bool:
        """Return whether the computed taps, or their factors, differ from step to step."""
        has_schedule = is_scheduled(self.tap_weights) or is_scheduled(self.psd_weight)
        return has_schedule or self.sampled_taps is not None

    def with_all_taps(self) -> Weighting:
        """Return a weighting in which every step computes all taps."""
        if is_learned(self.tap_weights):  # A tap is computed whatever its learned weight is.
            return self._replace(sampled_taps=None)
        return self._replace(sampled_taps=None, tap_weights=equal(self.taps))

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
        return StepFactors(by_depth, psd=self._psd_weight_at(step), output=self._output_factor())

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

    def _psd_weight_at(self, step: int) -> Factor:
        """Return lambda at a step."""
        if is_learned(self.psd_weight):
            return learned(self.psd_weight).reshape(())
        if callable(self.psd_weight):
            at_step = self.psd_weight(step)
            return check_weight(at_step, found=f"at step {step} psd_weight is {at_step}")
        return self.psd_weight

    def _output_factor(self) -> Factor:
        """Return mu, which is the same in each step."""
        if is_learned(self.output_weight):
            return learned(self.output_weight).reshape(())
        return self.output_weight


def is_left_out(factor: Factor) -> bool:
    """Return whether a loss with this factor is not computed.

    A tensor is never asked for its value: a learned weight may be on a GPU, and a graph, which gets
    a scheduled lambda as a tensor, cannot look at it.

    Args:
        factor: The factor.
    """
    return not isinstance(factor, Tensor) and factor == 0
