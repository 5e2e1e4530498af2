"""A net run input by input: equal to a plain loop over inputs and depths, and no block wasted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from token_nets import MeanHead, Residual, inputs, token_net
from torch import Tensor, nn

from contract import recording
from elasticnet import ElasticWrapper
from elasticnet.exits import ExitRule, ExitRunner, confidence, entropy, margin, patience


def by_plain_loop(net: ElasticWrapper, rule: ExitRule, x: Tensor) -> list[tuple[Tensor, int]]:
    """What each input leaves with, one input after the other, each depth computed anew."""
    found: list[tuple[Tensor, int]] = []
    for entry in x:
        scaled: list[Tensor] = []
        for depth in net.taps:
            if depth != net.taps[-1] and depth not in rule.thresholds:
                continue
            logits = net(entry[None], depth=depth)
            scaled.append(logits / rule.temperatures.get(depth, 1.0))
            score = rule.policy(scaled).amin()
            if depth == net.taps[-1] or score >= rule.thresholds[depth]:
                found.append((logits[0], depth))
                break
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[ElasticWrapper, ExitRule, Tensor]:
    num_blocks = draw(st.integers(1, 5))
    taps = draw(st.sets(st.integers(1, num_blocks)).map(lambda chosen: {*chosen, num_blocks}))
    net = token_net(num_blocks, sorted(taps), draw(st.booleans()), draw(st.integers(0, 99)))
    policy = draw(st.sampled_from([confidence, entropy, margin, patience]))
    top = 4.0 if policy is patience else 1.0
    thresholds: dict[int, float] = {}
    for depth in net.taps:
        if draw(st.booleans()):
            # Between scores, so that the last bits of a batch decide nothing.
            thresholds[depth] = draw(st.floats(0, top, allow_subnormal=False)) + 1e-3
    temperatures = {depth: draw(st.floats(0.2, 5)) for depth in net.taps}
    rule = ExitRule(thresholds=thresholds, policy=policy, temperatures=temperatures)
    return net, rule, inputs(draw(st.integers(1, 7)), seed=draw(st.integers(0, 99)))


@given(cases())
def test_a_batch_leaves_as_its_inputs_do_one_by_one(case) -> None:
    net, rule, x = case
    runner = ExitRunner(net, rule)
    expected = by_plain_loop(net, rule, x)

    together = runner(x)
    assert together.depths.tolist() == [depth for _, depth in expected]
    torch.testing.assert_close(together.logits, torch.stack([logits for logits, _ in expected]))

    for entry, (logits, depth) in zip(x, expected, strict=True):
        alone = runner(entry[None])
        assert alone.depths.tolist() == [depth]
        assert torch.equal(alone.logits[0], logits), "one input: the same bits"


def test_no_block_runs_for_an_input_that_has_left_and_no_head_where_nobody_looks() -> None:
    net = token_net(5)
    x = inputs(8)
    scores_at_2 = confidence([net(x, depth=2)])
    rule = ExitRule(thresholds={2: scores_at_2.median().item() + 1e-6})
    runner = ExitRunner(net, rule)
    runner(x)  # finds the axes

    sizes: list[int] = []
    hooks = [
        block.register_forward_hook(lambda block, args, y: sizes.append(len(y)))
        for block in net.blocks
    ]
    with recording(net) as calls:
        exits = runner(x)
    for hook in hooks:
        hook.remove()
    stayed = int((exits.depths == 5).sum())
    assert 0 < stayed < 8
    assert sizes == [8, 8, stayed, stayed, stayed]
    assert calls.head == 2


def test_a_policy_that_counts_taps_follows_its_inputs_when_others_have_left() -> None:
    net, x = token_net(5, seed=3), inputs(30, seed=4)
    rule = ExitRule(thresholds={1: math.inf, 2: 2.0, 3: 3.0, 4: 2.0}, policy=patience)
    expected = [depth for _, depth in by_plain_loop(net, rule, x)]
    assert {2, 4} <= set(expected)
    assert ExitRunner(net, rule)(x).depths.tolist() == expected


def test_all_leave_at_the_first_tap_and_nothing_behind_it_runs() -> None:
    net = token_net(4)
    with recording(net) as calls:
        exits = ExitRunner(net, ExitRule(thresholds={1: 0.0, 2: 0.0}))(inputs(3))
    assert exits.depths.tolist() == [1, 1, 1]
    assert calls.blocks == [net.blocks[0]]


def test_without_a_threshold_it_is_the_whole_net() -> None:
    net, x = token_net(3), inputs(4)
    exits = ExitRunner(net, ExitRule(thresholds={}))(x)
    assert torch.equal(exits.logits, net(x))
    assert exits.depths.tolist() == [3] * 4
    assert torch.equal(exits.scores, confidence([net(x)]))


def masked_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
    """Add what each input was given, and a table of the tokens that all share."""
    return block(x + context["bias"][:, None, None] + context["table"]), context


@given(st.integers(2, 6))
def test_keywords_of_each_input_go_with_it_and_shared_ones_stay(count: int) -> None:
    # As many inputs as tokens: by its length alone the table looks like one row for each input.
    torch.manual_seed(0)
    blocks = [Residual(6) for _ in range(3)]
    net = ElasticWrapper(blocks, MeanHead(6, by_token=False), call_block=masked_block).eval()
    x, bias = inputs(count, tokens=count), torch.arange(float(count))
    table = torch.randn(1, count, 6)
    scores = confidence([net(x, depth=1, bias=bias, table=table)])
    threshold = scores.sort().values[count // 2].item() - 1e-6
    exits = ExitRunner(net, ExitRule(thresholds={1: threshold}))(x, bias=bias, table=table)
    assert 0 < int((exits.depths == 1).sum()) < count
    for row in range(count):
        alone = net(
            x[row : row + 1],
            depth=int(exits.depths[row]),
            bias=bias[row : row + 1],
            table=table,
        )
        torch.testing.assert_close(exits.logits[row], alone[0])


def sized_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
    """Keep the number of inputs in the context, as some transformers do."""
    return block(x), {**context, "size": len(x)}


def test_a_number_that_depends_on_the_batch_is_refused_where_the_batch_shrinks() -> None:
    torch.manual_seed(0)
    blocks = [Residual(6) for _ in range(3)]
    net = ElasticWrapper(blocks, MeanHead(6, by_token=False), call_block=sized_block).eval()
    x = inputs(6)
    threshold = confidence([net(x, depth=1)]).median().item() + 1e-6
    runner = ExitRunner(net, ExitRule(thresholds={1: threshold}))
    with pytest.raises(ValueError, match="a number that depends on the number of inputs"):
        runner(x)
    assert runner(x[:1]).depths.tolist() in ([1], [3])


def test_wrong_use_is_refused() -> None:
    net, x = token_net(3, taps=[1, 3]), inputs(2)
    with pytest.raises(ValueError, match="depth 2: this net has taps at depths 1, 3"):
        ExitRunner(net, ExitRule(thresholds={2: 0.5}))
    runner = ExitRunner(net, ExitRule(thresholds={1: 0.5}))
    with pytest.raises(ValueError, match=r"x of shape \(0, 4, 6\) has no input"):
        runner(x[:0])
    net.train()
    with pytest.raises(ValueError, match=r"in training mode.*net\.eval\(\)"):
        runner(x)
    flat = ElasticWrapper([nn.Identity()], nn.Flatten(start_dim=0)).eval()
    with pytest.raises(ValueError, match=r"prediction has shape \(48,\) for 2 inputs"):
        ExitRunner(flat, ExitRule(thresholds={}))(x)


def test_no_gradient_is_kept() -> None:
    exits = ExitRunner(token_net(2), ExitRule(thresholds={1: 0.5}))(inputs(2).requires_grad_())
    assert not exits.logits.requires_grad
    assert not math.isnan(exits.scores.sum().item())
