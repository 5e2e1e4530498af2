"""Temperatures and thresholds: against a grid, against all rules there are, and replayed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from token_nets import inputs, token_net
from torch import Tensor

from elasticnet.exits import (
    ExitRule,
    ExitRunner,
    TapLogits,
    calibrate,
    choose_rule,
    collect_logits,
    confidence,
    fit_temperatures,
    outcome,
    patience,
)


def made_logits(
    num_taps: int = 3, num_inputs: int = 60, num_classes: int = 4, seed: int = 0
) -> TapLogits:
    """Logits of a net that gets better with its depth."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (num_inputs,), generator=generator)
    right = F.one_hot(targets, num_classes).float()
    logits: list[Tensor] = []
    for tap in range(num_taps):
        noise = torch.randn(num_inputs, num_classes, generator=generator)
        logits.append((tap + 1) * right + noise)
    return TapLogits(tuple(range(1, num_taps + 1)), tuple(logits), targets)


# --- collecting


def test_logits_of_all_batches_and_taps_are_kept() -> None:
    net = token_net(4, taps=[1, 3, 4])
    x, targets = inputs(7), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    collected = collect_logits(net, [(x[:4], targets[:4]), (x[4:], targets[4:])])
    assert collected.depths == (1, 3, 4)
    for depth, logits in zip(collected.depths, collected.logits, strict=True):
        torch.testing.assert_close(logits, net(x, depth=depth))
    assert torch.equal(collected.targets, targets)
    assert collect_logits(net, [(x, targets)], [3]).depths == (3,)


def test_what_cannot_be_collected_is_refused() -> None:
    net = token_net(2)
    with pytest.raises(ValueError, match="batches is empty"):
        collect_logits(net, [])
    with pytest.raises(ValueError, match=r"targets of shape \(2, 4\) for logits of shape \(2, 3\)"):
        collect_logits(net, [(inputs(2), torch.zeros(2, 4, dtype=torch.int64))])
    with pytest.raises(ValueError, match="in training mode"):
        collect_logits(net.train(), [(inputs(2), torch.tensor([0, 1]))])


# --- temperatures


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_the_temperature_is_the_best_of_a_fine_grid(seed: int, sharpness: float) -> None:
    made = made_logits(num_taps=2, seed=seed)
    logits = tuple(sharpness * each for each in made.logits)
    fitted = fit_temperatures(made._replace(logits=logits))
    for depth, each in zip(made.depths, logits, strict=True):

        def loss(temperature: float, each: Tensor = each) -> float:
            return F.cross_entropy(each.double() / temperature, made.targets).item()

        grid = torch.logspace(-2, 2, 401).tolist()
        assert loss(fitted[depth]) <= min(map(loss, grid)) + 1e-9


def test_ignored_targets_do_not_count_for_the_temperature() -> None:
    made = made_logits(num_taps=1)
    cut = TapLogits(made.depths, (made.logits[0][:40],), made.targets[:40])
    ignored = made._replace(targets=torch.cat([made.targets[:40], torch.full((20,), -100)]))
    assert fit_temperatures(ignored) == pytest.approx(fit_temperatures(cut))


# --- thresholds


@given(st.integers(0, 500), st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))
def test_the_loss_stays_below_what_is_allowed_and_the_cost_below_the_deepest(seed, max_loss):
    made = made_logits(num_taps=4, seed=seed)
    rule, came = choose_rule(made, max_loss=max_loss, temperatures=fit_temperatures(made))
    assert came.accuracy >= came.full_accuracy - max_loss - 1e-9
    assert came.mean_cost == came.mean_depth <= 4
    assert came == outcome(made, rule)
    if max_loss == 1:
        assert came.mean_depth == 1, "any loss is allowed, so all leave at once"


@given(st.integers(0, 500), st.floats(1, 4))
def test_the_cost_stays_below_the_budget(seed: int, budget: float) -> None:
    made = made_logits(num_taps=4, seed=seed)
    came = choose_rule(made, max_mean_cost=budget).outcome
    assert came.mean_cost <= budget + 1e-6
    dearer = choose_rule(made, max_mean_cost=4).outcome
    assert dearer.accuracy >= came.accuracy - 0.1
    shallowest = outcome(made, ExitRule(thresholds={1: 0.0}))
    assert came.accuracy >= shallowest.accuracy - 1e-9


def test_with_two_taps_the_rule_is_the_best_of_all_there_are() -> None:
    for seed, max_loss in itertools.product(range(8), (0.0, 0.03, 0.1)):
        made = made_logits(num_taps=2, seed=seed)
        scores = confidence([made.logits[0]]).tolist()
        costs = {1: 2.0, 2: 7.0}
        best = 7.0
        for threshold in scores:
            tried = outcome(made, ExitRule(thresholds={1: threshold}), costs)
            if tried.accuracy >= tried.full_accuracy - max_loss - 1e-9:
                best = min(best, tried.mean_cost)
        came = choose_rule(made, max_loss=max_loss, costs=costs).outcome
        assert came.mean_cost == pytest.approx(best)


def test_each_tap_gets_a_threshold_of_its_own_where_that_is_better() -> None:
    # The first tap is sure and wrong, the second is sure and right.
    targets = torch.tensor([0, 1] * 10)
    right = F.one_hot(targets, 2).float()
    logits = (20 * right.flip(1), 8 * right, 9 * right)
    rule, came = choose_rule(TapLogits((1, 2, 3), logits, targets), max_loss=0.0)
    assert came.shares == {1: 0.0, 2: 1.0, 3: 0.0}
    assert list(rule.thresholds) == [2], "nobody looks at the first tap"


def test_a_policy_that_counts_taps_looks_at_all_of_them() -> None:
    made = made_logits(num_taps=4, num_inputs=200)
    rule, came = choose_rule(made, max_loss=0.01, policy=patience)
    assert list(rule.thresholds) == [1, 2, 3]
    assert came == outcome(made, rule)


@given(st.integers(0, 200))
def test_the_replay_is_what_the_runner_does(seed: int) -> None:
    net = token_net(4, taps=[1, 2, 4], seed=seed)
    x, targets = inputs(12, seed=seed), torch.arange(12) % 3
    collected = collect_logits(net, [(x, targets)])
    rule, came = choose_rule(collected, max_mean_cost=2.5)
    # Scores that are thresholds may differ in the last bit when a batch is smaller.
    loose = ExitRule(thresholds={d: at - 1e-5 for d, at in rule.thresholds.items()})
    exits = ExitRunner(net, loose)(x)
    replayed = outcome(collected, loose)
    assert exits.depths.double().mean().item() == pytest.approx(replayed.mean_depth)
    right = (exits.logits.argmax(-1) == targets).double().mean().item()
    assert right == pytest.approx(replayed.accuracy)
    assert came.mean_depth <= 2.5


def test_tokens_that_are_ignored_do_not_count_for_the_accuracy() -> None:
    targets = torch.tensor([[0, 1, -100], [1, -100, -100]])
    logits = 5.0 * F.one_hot(torch.tensor([[0, 0, 1], [1, 0, 0]]), 2)
    came = outcome(TapLogits((1,), (logits,), targets), ExitRule(thresholds={}))
    assert came.accuracy == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "max_loss None, max_mean_cost None: expected exactly one budget"),
        ({"max_loss": 0.1, "max_mean_cost": 2}, "expected exactly one budget"),
        ({"max_loss": 1.5}, "max_loss 1.5: expected a share of the inputs"),
        ({"max_loss": math.nan}, "max_loss nan"),
        ({"max_mean_cost": 0.5}, "max_mean_cost 0.5: the shallowest tap alone costs 1"),
        ({"max_loss": 0.1, "costs": {1: 2.0}}, r"costs has none for depths \[2, 3\]"),
    ],
)
def test_budgets_that_are_none_are_refused(budget, message) -> None:
    with pytest.raises(ValueError, match=message):
        choose_rule(made_logits(), **budget)


def test_a_rule_of_other_depths_is_not_replayed() -> None:
    rule = ExitRule(thresholds={5: 0.5})
    with pytest.raises(ValueError, match=r"thresholds at depths \[5\], and logits were collected"):
        outcome(made_logits(), rule)


def test_calibrating_a_net_checks_that_the_sets_are_apart() -> None:
    net, x, targets = token_net(3), inputs(8), torch.arange(8) % 3
    batches = [(x[:5], targets[:5])]
    test = [(x[5:], targets[5:])]
    rule, came = calibrate(net, batches, max_loss=0.2, apart_from={"test": test})
    assert came == outcome(collect_logits(net, batches), rule)
    assert set(rule.temperatures) == {1, 2, 3}
    with pytest.raises(ValueError, match="calibration and test share 1 inputs"):
        calibrate(net, [(x[:6], targets[:6])], max_loss=0.2, apart_from={"test": test})
    with pytest.raises(ValueError, match=r"iterator, and apart_from="):
        calibrate(net, iter(batches), max_loss=0.2, apart_from={"test": test})
