"""How sure a network is: each score against its definition, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from elasticnet.exits import POLICIES, confidence, entropy, margin, patience

RULES = [confidence, entropy, margin]


def logits_of(*probabilities: float) -> Tensor:
    """Logits (1, classes) of some probabilities."""
    return torch.tensor([probabilities]).log()


def test_scores_of_known_probabilities() -> None:
    logits = logits_of(0.7, 0.2, 0.1)
    expected_entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert confidence([logits]).item() == pytest.approx(0.7)
    assert entropy([logits]).item() == pytest.approx(1 - expected_entropy / math.log(3))
    assert margin([logits]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("policy", RULES)
def test_no_idea_scores_least_and_certainty_scores_one(policy) -> None:
    even = policy([logits_of(0.25, 0.25, 0.25, 0.25)]).item()
    assert even == pytest.approx(0.25 if policy is confidence else 0.0, abs=1e-6)
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert policy([certain]).item() == 1.0


@pytest.mark.parametrize("policy", RULES)
def test_one_class_is_certain(policy) -> None:
    assert policy([torch.tensor([[3.0], [-2.0]])]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("policy", RULES)
@given(seed=st.integers(0, 10_000), tokens=st.integers(0, 3), classes=st.integers(2, 6))
def test_the_last_tap_alone_counts_and_every_token_has_a_score(policy, seed, tokens, classes):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, tokens, classes) if tokens else (2, classes)
    early, last = (torch.randn(shape, generator=generator) for _ in range(2))
    scores = policy([early, last])
    assert scores.shape == shape[:-1]
    assert torch.equal(scores, policy([last]))
    assert ((scores >= -1e-6) & (scores <= 1 + 1e-6)).all()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_patience_counts_the_taps_that_agree_at_the_end(classes: list[int]) -> None:
    in_a_row = 1
    while in_a_row < len(classes) and classes[-in_a_row - 1] == classes[-1]:
        in_a_row += 1
    logits = [5.0 * torch.eye(3)[[each]] for each in classes]  # (1, 3) each
    assert patience(logits).tolist() == [in_a_row]


def test_patience_begins_again_when_a_tap_disagrees() -> None:
    one, other = logits_of(0.9, 0.1), logits_of(0.1, 0.9)
    assert patience([one, one, other, one]).item() == 1
    assert patience([other, one, one]).item() == 2


def test_every_policy_has_its_name() -> None:
    assert list(POLICIES) == ["confidence", "entropy", "margin", "patience"]
    assert all(policy.__name__ == name for name, policy in POLICIES.items())
