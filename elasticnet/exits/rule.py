"""The rule by which inputs leave a net: a policy, and thresholds and temperatures of the taps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from elasticnet.exits.policies import POLICIES, Policy, confidence

OverTokens = Literal["least", "mean", "last"]


@dataclass(frozen=True, kw_only=True)
class ExitRule:
    """Says which inputs leave at a tap.

    Args:
        thresholds: The score from which an input leaves, by depth; at infinity none does. A tap
            that is not named here is passed without a look, and costs no prediction. What has not
            left before leaves at the deepest tap, which needs no threshold.
        policy: Returns the score of each prediction: a function of `elasticnet.exits.policies`, or
            one of your own.
        temperatures: What logits are divided by before the policy sees them, by depth; 1 where none
            is given. Predictions are returned without it.
        over_tokens: The score of an input that has one for each of its tokens: that of the token
            which is least sure, the mean, or that of the last token.

    Raises:
        ValueError: A threshold is NaN or -infinity, a temperature is not a number above 0, or
            `over_tokens` is none of the three.

    Example:
        `ExitRule(thresholds={1: 0.95, 2: 0.9}, policy=confidence)`
    """

    thresholds: Mapping[int, float]
    policy: Policy = confidence
    temperatures: Mapping[int, float] = field(default_factory=dict[int, float])
    over_tokens: OverTokens = "least"

    def __post_init__(self) -> None:
        for depth, threshold in self.thresholds.items():
            if math.isnan(threshold) or threshold == -math.inf:
                raise ValueError(f"threshold {threshold} at depth {depth}: expected a score")
        for depth, temperature in self.temperatures.items():
            if not (math.isfinite(temperature) and temperature > 0):
                raise ValueError(
                    f"temperature {temperature} at depth {depth}: expected a number above 0"
                )
        known = get_args(OverTokens)
        if self.over_tokens not in known:
            raise ValueError(
                f"over_tokens {self.over_tokens!r}: expected one of {', '.join(known)}"
            )

    def scaled(self, logits: Tensor, depth: int) -> Tensor:
        """Return the logits at a depth as the policy sees them: divided by the temperature there.

        Args:
            logits: (b, ..., classes).
            depth: Their depth.
        """
        temperature = self.temperatures.get(depth, 1.0)
        return logits if temperature == 1 else logits / temperature

    def scores(self, scaled_so_far: Sequence[Tensor]) -> Tensor:
        """Return the score (b,) of each input at the last of some taps.

        Args:
            scaled_so_far: What `scaled` returned at each tap so far: (b, ..., classes).

        Raises:
            ValueError: The policy returned no score for each input, or one that is NaN.
        """
        scores = self.policy(scaled_so_far)
        num_inputs = len(scaled_so_far[-1])
        if scores.ndim == 0 or len(scores) != num_inputs:
            raise ValueError(
                f"the policy returned scores of shape {tuple(scores.shape)} for {num_inputs} "
                "inputs: expected one for each input, or one for each of its tokens"
            )
        if scores.isnan().any():
            raise ValueError("the policy returned a score that is NaN: are the logits finite?")
        if scores.ndim == 1:
            return scores
        by_token = scores.flatten(start_dim=1)  # (b, tokens)
        if self.over_tokens == "least":
            return by_token.amin(dim=1)
        if self.over_tokens == "mean":
            return by_token.float().mean(dim=1)
        return by_token[:, -1]

    def as_json(self) -> dict[str, Any]:
        """Return the rule as JSON knows it, for the notes of a checkpoint or a file of its own.

        Raises:
            ValueError: The policy has no name, because it is a function of your own.
        """
        names = [name for name, policy in POLICIES.items() if policy is self.policy]
        if not names:
            raise ValueError(
                f"policy {self.policy!r}: a function of your own cannot be written; keep the "
                "thresholds and temperatures, and give the function again"
            )
        return {
            "policy": names[0],
            "thresholds": {
                str(depth): at for depth, at in self.thresholds.items() if at < math.inf
            },
            "passed": [depth for depth, at in self.thresholds.items() if at == math.inf],
            "temperatures": {str(depth): at for depth, at in self.temperatures.items()},
            "over_tokens": self.over_tokens,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ExitRule:
        """Return the rule that `as_json` has written.

        Args:
            values: What it returned.

        Raises:
            ValueError: There is no policy of that name.
        """
        name = values["policy"]
        if name not in POLICIES:
            raise ValueError(f"policy {name!r}: expected one of {', '.join(POLICIES)}")
        thresholds = _by_depth(values["thresholds"])
        thresholds.update(dict.fromkeys(values["passed"], math.inf))  # JSON has no infinity
        return cls(
            policy=POLICIES[name],
            thresholds=thresholds,
            temperatures=_by_depth(values["temperatures"]),
            over_tokens=values["over_tokens"],
        )


def _by_depth(values: Mapping[str, Any]) -> dict[int, float]:
    """Return numbers by depth; JSON has the depths as strings."""
    return {int(depth): float(value) for depth, value in values.items()}
