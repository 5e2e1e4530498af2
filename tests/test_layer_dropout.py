"""Layer dropout: the probabilities by hand, the draws, and a net without the blocks."""

from __future__ import annotations

import copy
import math
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import warm_python
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.layer_dropout import rising_probabilities, skipped_blocks
from elasticnet.loss_weights import ramp
from tiny_nets import MASK, TOKENS, conv_net, rotary_net

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(2))
PROBABILITIES = {1: 0.0, 2: 0.25, 3: 0.5, 4: 0.75}


# --- probabilities


def test_probabilities_by_hand() -> None:
    linear = rising_probabilities(3, deepest=0.2, shape="linear")
    assert linear == {1: 0.0, 2: pytest.approx(0.1), 3: pytest.approx(0.2)}
    exponential = rising_probabilities(3, deepest=0.2)
    assert exponential == {1: 0, 2: pytest.approx(0.2 * (math.sqrt(2) - 1)), 3: pytest.approx(0.2)}
    assert rising_probabilities(1, deepest=0.5) == {1: 0.0}


@given(st.integers(1, 20), st.floats(0, 1), st.sampled_from(["linear", "exponential"]))
def test_probabilities_rise_from_0_to_that_of_the_deepest(
    num_blocks: int, deepest: float, shape: str
) -> None:
    probabilities = rising_probabilities(num_blocks, deepest, shape)
    assert list(probabilities) == list(range(1, num_blocks + 1))
    values = list(probabilities.values())
    assert values == sorted(values)
    assert values[0] == 0
    assert num_blocks == 1 or values[-1] == deepest


# --- draws


def test_each_block_is_skipped_as_often_as_its_probability_says() -> None:
    counts: Counter[int] = Counter()
    for step in range(4000):
        counts.update(skipped_blocks(PROBABILITIES, step, seed=1))
    for depth, probability in PROBABILITIES.items():
        assert counts[depth] / 4000 == pytest.approx(probability, abs=0.03)


def test_the_draws_of_two_blocks_are_unrelated() -> None:
    draws = [skipped_blocks(PROBABILITIES, step, seed=1) for step in range(4000)]
    both = sum({3, 4} <= set(each) for each in draws) / 4000
    assert both == pytest.approx(0.5 * 0.75, abs=0.03)


def test_the_strength_multiplies_all_probabilities_and_may_follow_the_step() -> None:
    certain = dict.fromkeys(range(1, 5), 1.0)
    assert skipped_blocks(certain, step=0, seed=0, strength=0.0) == ()
    assert skipped_blocks(certain, step=0, seed=0, strength=1.0) == (1, 2, 3, 4)
    num_skipped = [
        len(skipped_blocks(certain, step, seed=0, strength=ramp(step, 1000, 0.0, 1.0)))
        for step in range(1000)
    ]
    assert sum(num_skipped[:500]) / 2000 == pytest.approx(0.25, abs=0.04)
    assert sum(num_skipped[500:]) / 2000 == pytest.approx(0.75, abs=0.04)


def test_another_process_draws_the_same_blocks() -> None:
    here = [skipped_blocks(PROBABILITIES, step, seed=5) for step in range(20)]
    program = (
        "from elasticnet.layer_dropout import skipped_blocks\n"
        f"print([skipped_blocks({PROBABILITIES}, step, seed=5) for step in range(20)])"
    )
    there = warm_python.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == str(here)


# --- a net that skips blocks


def test_a_skipping_net_is_the_net_of_the_other_blocks() -> None:
    net = conv_net(4)
    others = ElasticWrapper([net.blocks[0], net.blocks[2]], net.head)
    with net.skipping([2, 4]) as same:
        taps = net.forward_taps(X)
        deepest = net(X)
    assert same is net
    first, third = others.forward_taps(X).predictions
    for prediction, expected in zip(taps.predictions, (first, first, third, third), strict=True):
        assert torch.equal(prediction, expected)
    assert torch.equal(deepest, third)


def test_afterwards_all_blocks_run_also_after_an_error() -> None:
    net = conv_net(3)
    expected = net(X)
    with pytest.raises(ZeroDivisionError), net.skipping([1]), net.skipping([2]):
        raise ZeroDivisionError
    assert torch.equal(net(X), expected)
    with net.skipping([1]):
        with net.skipping([2, 3]):
            pass
        assert not torch.equal(net(X), expected)
        assert torch.equal(net.truncate(3)(X), expected)  # another net skips nothing


def test_skipped_blocks_do_not_run_and_get_no_gradient() -> None:
    net = conv_net(3)
    runs: list[int] = []
    for depth, block in enumerate(net.blocks, start=1):
        block.register_forward_hook(lambda *_, depth=depth: runs.append(depth))
    with net.skipping([2]):
        terms = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)(X, Y)
    terms.total.backward()
    assert runs == [1, 3]
    for depth, block in enumerate(net.blocks, start=1):
        has_gradient = all(parameter.grad is not None for parameter in block.parameters())
        assert has_gradient is (depth != 2)


@pytest.mark.parametrize("options", [{"checkpoint_blocks": True}, {"checkpoint_blocks": False}])
@pytest.mark.parametrize("checkpoint_head", [False, True])
def test_recomputation_behind_the_with_block_skips_the_same(
    options: dict[str, Any], checkpoint_head: bool
) -> None:
    net = conv_net(3, **options).double()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0.1, checkpoint_head=checkpoint_head)
    with net.skipping([2]):
        total = objective(X.double(), Y.double()).total
    total.backward()
    plain = copy.deepcopy(net)
    plain.checkpoint_blocks = False
    plain.zero_grad(set_to_none=True)
    with plain.skipping([2]):
        terms = ElasticObjective(plain, nn.MSELoss(), psd_weight=0.1)(X.double(), Y.double())
        terms.total.backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    torch.testing.assert_close(gradients, [parameter.grad for parameter in plain.parameters()])


def test_a_block_with_a_context_is_skipped_and_the_next_one_has_its_own() -> None:
    net = rotary_net().eval()
    last = len(net.blocks)
    with net.skipping([last]):
        skipped = net(TOKENS, mask=MASK)
    before_last = net.forward_taps(TOKENS, mask=MASK).predictions[-2]
    assert torch.equal(skipped, before_last)


# --- a training


def train(net: ElasticWrapper, optimiser: torch.optim.Optimizer, steps: range) -> None:
    """Train with layer dropout, every number of which depends on the step alone."""
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)
    probabilities = rising_probabilities(len(net.blocks), deepest=0.6)
    for step in steps:
        optimiser.zero_grad(set_to_none=True)
        with net.skipping(skipped_blocks(probabilities, step, seed=0)):
            objective(X, Y, step=step).total.backward()
        optimiser.step()


def state_of(net: ElasticWrapper) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_a_resumed_training_skips_the_same_blocks_to_the_same_bits() -> None:
    whole = conv_net(4)
    begun = copy.deepcopy(whole)
    train(whole, torch.optim.Adam(whole.parameters()), range(8))

    optimiser = torch.optim.Adam(begun.parameters())
    train(begun, optimiser, range(3))
    resumed = conv_net(4)
    resumed.load_state_dict(state_of(begun))
    new_optimiser = torch.optim.Adam(resumed.parameters())
    new_optimiser.load_state_dict(optimiser.state_dict())
    train(resumed, new_optimiser, range(3, 8))

    expected = state_of(whole)
    for name, value in state_of(resumed).items():
        assert torch.equal(value, expected[name]), name
    drawn = [skipped_blocks(rising_probabilities(4, 0.6), step, seed=0) for step in range(8)]
    assert any(drawn)  # Otherwise this test shows nothing.


# --- misuse


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ValueError, match="num_blocks 0: expected at least 1"):
        rising_probabilities(0, deepest=0.1)
    with pytest.raises(ValueError, match=r"deepest 1\.5: expected a probability from 0 to 1"):
        rising_probabilities(3, deepest=1.5)
    with pytest.raises(ValueError, match="shape 'square': expected one of linear, exponential"):
        rising_probabilities(3, deepest=0.1, shape="square")
    with pytest.raises(ValueError, match=r"strength 2\.0: expected a number from 0 to 1"):
        skipped_blocks(PROBABILITIES, step=0, seed=0, strength=2.0)
    with pytest.raises(ValueError, match=r"probability -0\.5 at depth 2: expected a number from 0"):
        skipped_blocks({2: -0.5}, step=0, seed=0)


@pytest.mark.parametrize("depth", [0, 4])
def test_a_block_that_the_net_has_not_is_named(depth: int) -> None:
    message = f"block {depth}: this net has blocks at depths 1 to 3"
    with pytest.raises(ValueError, match=message), conv_net(3).skipping([depth]):
        pass
