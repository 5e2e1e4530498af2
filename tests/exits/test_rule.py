"""The rule: temperatures, scores over tokens, what is refused, and its form as JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from elasticnet.exits import ExitRule, confidence, margin, patience


def test_logits_are_divided_by_the_temperature_of_their_depth() -> None:
    rule = ExitRule(thresholds={1: 0.5}, temperatures={2: 4.0})
    logits = torch.tensor([[2.0, -6.0]])
    assert torch.equal(rule.scaled(logits, 1), logits)
    assert torch.equal(rule.scaled(logits, 2), logits / 4)


@pytest.mark.parametrize(
    ("over_tokens", "expected"),
    [("least", [0.5, 0.6]), ("mean", [0.7, 0.75]), ("last", [0.9, 0.6])],
)
def test_an_input_of_many_tokens_has_one_score(over_tokens, expected) -> None:
    probabilities = torch.tensor([[0.5, 0.7, 0.9], [0.9, 0.75, 0.6]])
    logits = torch.stack([probabilities, 1 - probabilities], dim=-1).log()  # (2, 3, 2)
    rule = ExitRule(thresholds={}, over_tokens=over_tokens)
    assert rule.scores([logits]).tolist() == pytest.approx(expected)


def test_scores_that_are_no_scores_are_refused() -> None:
    logits = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"scores of shape \(\) for 3 inputs"):
        ExitRule(thresholds={}, policy=lambda so_far: so_far[-1].mean()).scores([logits])
    with pytest.raises(ValueError, match=r"scores of shape \(2,\) for 3 inputs"):
        ExitRule(thresholds={}, policy=lambda so_far: so_far[-1][:2, 0]).scores([logits])
    with pytest.raises(ValueError, match="NaN: are the logits finite"):
        ExitRule(thresholds={}).scores([logits * math.nan])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": {1: math.nan}}, "threshold nan at depth 1"),
        ({"thresholds": {2: -math.inf}}, "threshold -inf at depth 2"),
        ({"thresholds": {}, "temperatures": {3: 0.0}}, "temperature 0.0 at depth 3"),
        ({"thresholds": {}, "temperatures": {3: math.inf}}, "temperature inf at depth 3"),
        ({"thresholds": {}, "over_tokens": "first"}, "over_tokens 'first': expected one of least"),
    ],
)
def test_what_is_no_rule_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        ExitRule(**arguments)


@pytest.mark.parametrize("policy", [confidence, margin, patience])
def test_a_rule_goes_through_json(policy) -> None:
    rule = ExitRule(
        thresholds={1: math.inf, 2: 0.1 + 0.2, 4: 2.0},
        policy=policy,
        temperatures={2: 1 / 3, 6: 7.0},
        over_tokens="mean",
    )
    text = json.dumps(rule.as_json(), allow_nan=False)
    assert ExitRule.from_json(json.loads(text)) == rule


def test_a_rule_by_a_function_of_ones_own_is_not_written() -> None:
    rule = ExitRule(thresholds={1: 0.5}, policy=lambda so_far: so_far[-1].amax(-1))
    with pytest.raises(ValueError, match="a function of your own cannot be written"):
        rule.as_json()
    with pytest.raises(ValueError, match="policy 'entrophy': expected one of confidence, entropy"):
        ExitRule.from_json({**ExitRule(thresholds={}).as_json(), "policy": "entrophy"})
