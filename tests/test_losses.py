"""Deep supervision, distillation and ElasticObjective, against hand-made values and a loop."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import register_parametrization

from contract import projection
from elasticnet import ElasticObjective, ElasticWrapper, LossTerms
from elasticnet.distillation import Distillation, progressive_distillation
from elasticnet.distillation_losses import Comparison, squared_unit_distance, unit_distance
from elasticnet.loss_weights import deepest_share, normalised, rising_deepest_share
from elasticnet.losses import charbonnier, tap_losses
from elasticnet.taps import sample_depths
from tiny_nets import (
    LAYOUTS,
    MASK,
    TOKENS,
    Case,
    TinyBlock,
    TinyHead,
    conv_net,
    of_outputs,
    rotary_net,
    tiny_cases,
)

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(2))
MAP_COMPARISONS = [unit_distance, squared_unit_distance]


def naive_terms(
    net: ElasticWrapper, x: Tensor, y: Tensor, psd_weight: float, weights: dict[int, float]
) -> dict[str, Tensor]:
    """The paper's loss with every sum, sample and tap written out, for a net without a stem."""
    features = x
    all_features: list[Tensor] = []
    losses: dict[int, Tensor] = {}
    for depth, block in enumerate(net.blocks, start=1):
        features = block(features)
        all_features.append(features)
        losses[depth] = (net.head(features) - y).abs().sum() / y.numel()
    distillation = torch.zeros(())
    for student, teacher in pairwise(all_features):
        for sample in range(len(x)):
            q_student = torch.stack([channel.abs() for channel in student[sample]]).sum(0)
            q_teacher = torch.stack([channel.abs() for channel in teacher[sample]]).sum(0).detach()
            unit_student = q_student / q_student.pow(2).sum().sqrt()
            unit_teacher = q_teacher / q_teacher.pow(2).sum().sqrt()
            difference = unit_student - unit_teacher
            distillation = distillation + difference.pow(2).sum().sqrt() / len(x)
    deepest = len(net.blocks)
    routine = weights[deepest] * losses[deepest]
    supervision = torch.zeros(())
    for depth in range(1, deepest):
        supervision = supervision + weights[depth] * losses[depth]
    distillation = psd_weight * distillation
    return {
        "total": routine + supervision + distillation,
        "routine": routine,
        "deep_supervision": supervision,
        "distillation": distillation,
    }


def rising_to_one(step: int) -> dict[int, float]:
    return rising_deepest_share((1, 2, 3, 4), step, total=10, start=0.25)


@pytest.mark.parametrize(
    ("tap_weights", "weights"),
    [
        (None, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}),
        (normalised((1, 2, 3, 4)), {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        ({4: 1, 1: 0, 3: 3, 2: 0.5}, {1: 0.0, 2: 0.5, 3: 3.0, 4: 1.0}),
        (deepest_share((1, 2, 3, 4), share=0.7), {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.7}),
        (rising_to_one, {1: 0.2, 2: 0.2, 3: 0.2, 4: 0.4}),
    ],
)
@pytest.mark.parametrize("psd_weight", [0.0, 0.1])
def test_objective_and_its_gradient_against_a_loop(
    tap_weights: Any, weights: dict[int, float], psd_weight: float
) -> None:
    net = conv_net(4)
    terms = ElasticObjective(net, nn.L1Loss(), psd_weight, tap_weights=tap_weights)(X, Y, step=2)
    expected = naive_terms(net, X, Y, psd_weight, weights)
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(terms, name), value, msg=lambda text, name=name: f"{name}: {text}"
        )
    parameters = list(net.parameters())
    actual = torch.autograd.grad(terms.total, parameters)
    torch.testing.assert_close(actual, torch.autograd.grad(expected["total"], parameters))


def test_losses_by_hand() -> None:
    """Blocks that double: predictions 2 and 4 against a target of 1, so losses 1 and 3."""

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    net = ElasticWrapper([Double(), Double()], nn.Identity())
    ones = torch.ones(1, 1, 2, 2)
    terms = ElasticObjective(net, nn.L1Loss(), 5.0)(ones, ones)
    # doubling changes no direction: no PSD
    assert [term.item() for term in terms[:4]] == [4, 3, 1, 0]
    assert {depth: float(loss) for depth, loss in terms.per_depth.items()} == {1: 1, 2: 3}


def test_progressive_distillation_by_hand() -> None:
    """Maps (3, 4), (8, 6), (8, 6): distances sqrt(0.08) and 0; squared, 0.08 and 0."""
    features = [
        torch.tensor(rows)[None]
        for rows in ([[1.0, 4.0], [-2.0, 0.0]], [[8.0, -6.0], [0, 0]], [[4.0, 3], [4, 3]])
    ]
    layout = "b c t"
    assert progressive_distillation(features, layout).item() == pytest.approx(math.sqrt(0.08))
    squared = progressive_distillation(features, layout, compare=squared_unit_distance)
    assert squared.item() == pytest.approx(0.08)
    powered = progressive_distillation(features[:2], layout, power=2)  # (5, 16) against (64, 36)
    expected = F.normalize(torch.tensor([5.0, 16.0]), dim=0) - F.normalize(
        torch.tensor([64.0, 36.0]), dim=0
    )
    assert powered.item() == pytest.approx(expected.norm().item())
    assert progressive_distillation(features[:1], layout).item() == 0
    with pytest.raises(ValueError, match="progressive_distillation: no features given"):
        progressive_distillation([], layout)


@given(st.floats(-2, 2), st.floats(-2, 2), st.sampled_from([1e-3, 0.5]))
def test_charbonnier_is_l1_with_a_round_bottom(first: float, second: float, eps: float) -> None:
    x = torch.tensor([first, second, 0.0], dtype=torch.float64, requires_grad=True)
    loss = charbonnier(x, torch.zeros_like(x), eps)
    (gradient,) = torch.autograd.grad(loss, x)
    expected = [math.hypot(difference, eps) for difference in (first, second, 0)]
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-12)
    torch.testing.assert_close(
        gradient, x.detach() / torch.tensor(expected, dtype=torch.float64) / 3
    )
    assert gradient[2] == 0
    assert inspect.signature(charbonnier).parameters["eps"].default == 1e-3


@given(tiny_cases(), st.sampled_from(MAP_COMPARISONS), st.sampled_from([1, 2]))
def test_terms_add_up_for_any_network(case: Case, compare: Comparison, power: float) -> None:
    net = case.net
    objective = ElasticObjective(
        net,
        lambda p, t: projection(p) ** 2,
        0.0,
        distillations=[Distillation(of="maps", compare=compare, power=power, weight=0.3)],
        tap_weights=normalised(net.taps),
    )
    terms = objective(case.x, None, **case.keywords)
    torch.testing.assert_close(
        terms.total, terms.routine + terms.deep_supervision + terms.distillation
    )
    assert tuple(terms.per_depth) == net.taps
    assert all(loss.ndim == 0 and not loss.requires_grad for loss in terms.per_depth.values())
    losses = [projection(p) ** 2 for p in net.forward_taps(case.x, **case.keywords).predictions]
    torch.testing.assert_close(list(terms.per_depth.values()), losses)
    torch.testing.assert_close(terms.routine, losses[-1] / len(losses))
    assert terms.distillation >= 0
    terms.total.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_psd_is_the_same_in_every_layout(layout: str) -> None:
    """The same features, permuted, give the same distillation; prefix tokens do not count."""
    positions = [axis for axis in layout.split() if axis not in "bc"]
    shape = [{"b": 2, "c": 3}.get(axis, 4) for axis in layout.split()]
    features = [torch.randn(shape) for _ in range(3)]
    flat = [f.movedim(layout.split().index("c"), 1).flatten(2) for f in features]
    torch.testing.assert_close(
        progressive_distillation(features, layout), progressive_distillation(flat, "b c t")
    )
    if len(positions) == 1:
        padded = [torch.cat([torch.randn_like(f)[:, :, :2] * 9, f], 2) for f in flat]
        torch.testing.assert_close(
            progressive_distillation(padded, "b c t", prefix_tokens=2),
            progressive_distillation(flat, "b c t"),
        )


def test_the_layout_and_prefix_tokens_of_the_net_are_used() -> None:
    blocks = [TinyBlock("attention", "b n c", 3) for _ in range(3)]
    net = ElasticWrapper(blocks, TinyHead("b n c", 3), layout="b n c", prefix_tokens=2)
    x = torch.randn(2, 7, 3)
    terms = ElasticObjective(net, nn.MSELoss(), 0.5)(x, x)
    patches = [features[:, 2:].transpose(1, 2) for features in net.forward_taps(x).features]
    torch.testing.assert_close(terms.distillation, 0.5 * progressive_distillation(patches, "b c t"))


# --- who learns from whom


def test_the_psd_target_gets_no_gradient() -> None:
    features = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3)]
    for tap in (1, 2):
        progressive_distillation(features[tap - 1 : tap + 1]).backward()
        assert features[tap].grad is None, f"map {tap + 1} teaches and must not be taught"
        grad = features[tap - 1].grad
        assert grad is not None
        assert grad.count_nonzero()
        features[tap - 1].grad = None
    progressive_distillation(features[:2], detach=False).backward()
    assert features[1].grad is not None
    assert features[1].grad.count_nonzero()


def test_psd_alone_reaches_every_block_but_the_deepest() -> None:
    """Every block but the last learns from the map of the next one; the last only teaches."""
    net = conv_net(3)
    for detach in (True, False):
        distillation = Distillation(of="maps", compare=unit_distance, detach=detach, weight=1.0)
        zero = ElasticObjective(
            net, lambda prediction, target: (prediction * 0).sum(), 0, distillations=[distillation]
        )
        net.zero_grad(set_to_none=True)
        zero(X, Y).total.backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            taught = name.startswith(("blocks.0", "blocks.1")) or (
                name.startswith("blocks.2") and not detach
            )
            assert bool(parameter.grad.count_nonzero()) is taught, f"{name}, detach={detach}"


def test_a_grown_network_has_a_finite_gradient_where_maps_are_identical() -> None:
    net = conv_net(2).grow([TinyBlock("residual", "b c h w", 4)], X)
    terms = ElasticObjective(net, nn.L1Loss(), 1.0)(X, Y)
    terms.total.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


# --- sampled taps


def test_sampled_taps_keep_the_expected_loss() -> None:
    """The mean of each term over all C(4, 2) subsets is exactly that of the full objective."""
    net = conv_net(5).double()
    x, y, weights = X.double(), Y.double(), {1: 0.3, 2: 0.5, 3: 0.7, 4: 1.1, 5: 1.3}
    options: dict[str, Any] = {"tap_weights": weights, "distillations": [of_outputs(0.2)]}
    full = ElasticObjective(net, nn.L1Loss(), 0.1, **options)(x, y)
    objective = ElasticObjective(net, nn.L1Loss(), 0.1, **options, sampled_taps=2, seed=3)
    steps = {objective.depths_at(step): step for step in range(300)}
    assert set(steps) == {(*subset, 5) for subset in combinations((1, 2, 3, 4), 2)}
    terms = [objective(x, y, step=step) for step in steps.values()]
    for name in LossTerms._fields[:4]:
        mean = torch.stack([getattr(each, name) for each in terms]).mean()
        torch.testing.assert_close(mean, getattr(full, name), rtol=1e-12, atol=0)


@given(st.integers(0, 10**9), st.integers(0, 4), st.integers(0, 99))
def test_weights_do_not_depend_on_what_else_was_sampled(step: int, sampled: int, seed: int) -> None:
    net, weights = conv_net(4), {1: 0.5, 2: 1.0, 3: 2.0, 4: 3.0}
    full = ElasticObjective(net, nn.L1Loss(), 0.1, tap_weights=weights)(X, Y)
    objective = ElasticObjective(
        net, nn.L1Loss(), 0.1, tap_weights=weights, sampled_taps=sampled, seed=seed
    )
    terms = objective(X, Y, step=step)
    depths = sample_depths((1, 2, 3, 4), sampled, seed, step)
    assert objective.depths_at(step) == tuple(terms.per_depth) == depths
    inverse = 3 / min(sampled, 3) if sampled else 0.0
    expected = sum((weights[d] * inverse * full.per_depth[d] for d in depths[:-1]), torch.zeros(()))
    torch.testing.assert_close(terms.deep_supervision, expected)
    torch.testing.assert_close(
        [terms.per_depth[d] for d in depths], [full.per_depth[d] for d in depths]
    )
    torch.testing.assert_close(terms.routine, full.routine)
    # PSD sees every tap and is not reweighted
    torch.testing.assert_close(terms.distillation, full.distillation)


def test_a_sampled_step_calls_the_head_only_for_its_taps() -> None:
    net, calls = conv_net(5), []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    ElasticObjective(net, nn.L1Loss(), 0.1, sampled_taps=1)(X, Y, step=4)
    assert len(calls) == 2


def test_needs_unused_search() -> None:
    adapters = {1: nn.Conv2d(4, 4, 1)}
    assert ElasticObjective(
        conv_net(3, adapters=adapters), nn.L1Loss(), 0, sampled_taps=1
    ).needs_unused_search
    assert not ElasticObjective(conv_net(3, adapters=adapters), nn.L1Loss(), 0).needs_unused_search
    assert not ElasticObjective(conv_net(3), nn.L1Loss(), 0, sampled_taps=1).needs_unused_search


def test_an_adapter_at_the_deepest_tap_needs_no_search_though_taps_are_sampled() -> None:
    net = conv_net(3, adapters={3: nn.Conv2d(4, 4, 1)})
    assert not ElasticObjective(net, nn.L1Loss(), 0, sampled_taps=1).needs_unused_search


# --- schedules, distillation of outputs, keyword arguments


def test_psd_weight_as_a_function_of_the_step() -> None:
    net = conv_net(3)
    unit = ElasticObjective(net, nn.L1Loss(), 1.0)(X, Y).distillation
    objective = ElasticObjective(net, nn.L1Loss(), lambda step: step / 100)
    for step in (0, 7, 100):
        torch.testing.assert_close(objective(X, Y, step=step).distillation, unit * step / 100)


def test_output_distillation_from_the_deepest_tap() -> None:
    """weight * sum of w_n MSE(prediction_n, deepest), in which the deepest is not taught."""
    net, weights = conv_net(3), {1: 0.5, 2: 2.0, 3: 1.0}
    objective = ElasticObjective(
        net,
        lambda p, t: (p * 0).sum(),
        0,
        tap_weights=weights,
        distillations=[of_outputs(0.3, compare=nn.MSELoss())],
    )
    terms = objective(X, Y)
    first, second, deepest = net.forward_taps(X).predictions
    expected = 0.3 * (0.5 * F.mse_loss(first, deepest) + 2 * F.mse_loss(second, deepest))
    torch.testing.assert_close(terms.distillation, expected)
    terms.total.backward()
    reached = [bool(b.get_parameter("last.weight").grad.count_nonzero()) for b in net.blocks]  # pyright: ignore
    assert reached == [True, True, False]


def test_keyword_arguments_reach_the_network() -> None:
    net = rotary_net().eval()
    objective = ElasticObjective(
        net, lambda p, t: F.cross_entropy(p.flatten(0, 1), t.flatten()), 0.1
    )
    masked = objective(TOKENS, TOKENS, mask=MASK)
    assert masked.routine == F.cross_entropy(net(TOKENS, mask=MASK).flatten(0, 1), TOKENS.flatten())
    assert masked.total != objective(TOKENS, TOKENS).total
    with pytest.raises(TypeError, match="unexpected keyword argument 'msak'"):
        objective(TOKENS, TOKENS, msak=MASK)


# --- masks of positions


def token_net(stem: nn.Module | None = None, **options: Any) -> ElasticWrapper:
    """Return a net of three blocks for tokens, (b, n, 4) -> (b, n, 2)."""
    blocks = [nn.Linear(4, 4) for _ in range(3)]
    return ElasticWrapper(blocks, nn.Linear(4, 2), stem, layout="b n c", **options)


class MaskingStem(nn.Module):
    """A stem with an argument called `mask`, which it sets to 0."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x if mask is None else x * mask[..., None]


def call_plainly(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
    return block(x), context


SEQUENCES = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(3))
SEQUENCE_MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])


def psd_of(net: ElasticWrapper, counts: Tensor | None, **keywords: Any) -> Tensor:
    """Return L_PSD of a net, computed from its features."""
    features = net(SEQUENCES, taps=net.taps, **keywords).features
    return progressive_distillation(features, "b n c", net.prefix_tokens, mask=counts)


@pytest.mark.parametrize("prefix_tokens", [0, 2])
def test_a_mask_of_the_objective_leaves_positions_out_of_the_self_distillation(
    prefix_tokens: int,
) -> None:
    net = token_net(prefix_tokens=prefix_tokens)
    objective = ElasticObjective(net, nn.L1Loss(), 1.0)
    terms = objective(SEQUENCES, torch.zeros(2, 6, 2), mask=SEQUENCE_MASK)
    expected = psd_of(net, SEQUENCE_MASK)
    torch.testing.assert_close(terms.distillation, expected)
    changed = SEQUENCES + 9 * (1 - SEQUENCE_MASK[..., None])
    masked = objective(changed, torch.zeros(2, 6, 2), mask=SEQUENCE_MASK)
    torch.testing.assert_close(masked.distillation, expected)


def test_a_mask_that_the_stem_names_is_the_stem_s() -> None:
    net = token_net(MaskingStem())
    terms = ElasticObjective(net, nn.L1Loss(), 1.0)(
        SEQUENCES, torch.zeros(2, 6, 2), mask=SEQUENCE_MASK
    )
    torch.testing.assert_close(terms.distillation, psd_of(net, None, mask=SEQUENCE_MASK))


def test_a_mask_that_the_stem_names_is_used_for_both_if_the_net_says_so() -> None:
    net = token_net(MaskingStem(), mask_keyword="mask")
    terms = ElasticObjective(net, nn.L1Loss(), 1.0)(
        SEQUENCES, torch.zeros(2, 6, 2), mask=SEQUENCE_MASK
    )
    expected = psd_of(net, SEQUENCE_MASK, mask=SEQUENCE_MASK)
    torch.testing.assert_close(terms.distillation, expected)


@pytest.mark.parametrize("mask_keyword", [None, "mask"])
def test_a_mask_reaches_call_block(mask_keyword: str | None) -> None:
    contexts: list[Any] = []

    def call_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
        contexts.append(context)
        return block(x), context

    net = token_net(call_block=call_block, mask_keyword=mask_keyword)
    terms = ElasticObjective(net, nn.L1Loss(), 1.0)(
        SEQUENCES, torch.zeros(2, 6, 2), mask=SEQUENCE_MASK
    )
    assert all(context["mask"] is SEQUENCE_MASK for context in contexts)
    used = SEQUENCE_MASK if mask_keyword else None
    torch.testing.assert_close(terms.distillation, psd_of(net, used, mask=SEQUENCE_MASK))


def test_the_mask_of_the_keyword_that_the_net_names_and_one_of_the_objective_s_own() -> None:
    net = token_net(call_block=call_plainly, mask_keyword="padding")
    objective = ElasticObjective(net, nn.L1Loss(), 1.0)
    target = torch.zeros(2, 6, 2)
    terms = objective(SEQUENCES, target, padding=SEQUENCE_MASK)
    torch.testing.assert_close(terms.distillation, psd_of(net, SEQUENCE_MASK))
    everything = torch.ones(2, 6, dtype=torch.bool)
    terms = objective(SEQUENCES, target, padding=SEQUENCE_MASK, mask=everything)
    torch.testing.assert_close(terms.distillation, psd_of(net, None))
    terms = objective(SEQUENCES, target)
    torch.testing.assert_close(terms.distillation, psd_of(net, None))


def test_an_attention_mask_of_another_shape_is_named_with_the_way() -> None:
    net = token_net(call_block=call_plainly, mask_keyword="attention")
    objective = ElasticObjective(net, nn.L1Loss(), 1.0)
    target = torch.zeros(2, 6, 2)
    square = SEQUENCE_MASK[:, None, :].expand(2, 6, 6)
    message = (
        r"shape \(2, 6, 6\): expected \(b, n\) = \(2, 6\).*objective\(x, target, mask=\.\.\.\)"
    )
    with pytest.raises(ValueError, match=message):
        objective(SEQUENCES, target, attention=square)
    terms = objective(SEQUENCES, target, attention=square, mask=SEQUENCE_MASK)
    torch.testing.assert_close(terms.distillation, psd_of(net, SEQUENCE_MASK))


def test_a_mask_of_an_objective_without_self_distillation_is_not_looked_at() -> None:
    objective = ElasticObjective(token_net(), nn.L1Loss(), 0)
    terms = objective(SEQUENCES, torch.zeros(2, 6, 2), mask=torch.ones(5))
    assert terms.distillation == 0


def test_a_net_keeps_its_mask_keyword_when_it_is_cut() -> None:
    assert token_net(mask_keyword="padding").truncate(2).mask_keyword == "padding"


# --- taps of weight 0, empty batches, predictions of several tensors


def infinite_loss_at(net: ElasticWrapper, depth: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return an L1 loss that overflows at one tap of a net."""
    (overflowing,) = net(X, taps=[depth]).predictions

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        factor = 1e30 if torch.equal(prediction, overflowing) else 1.0
        return (factor * (prediction - target).abs()).square().mean()

    return loss


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("is_scheduled", [False, True])
def test_an_infinite_loss_of_weight_0_spoils_nothing(depth: int, is_scheduled: bool) -> None:
    net = conv_net(3)
    weights = {tap: 0.0 if tap == depth else 1.0 for tap in net.taps}
    loss = infinite_loss_at(net, depth)
    with torch.no_grad():
        (prediction,) = net(X, taps=[depth]).predictions
        assert loss(prediction, Y).isinf()
    tap_weights = (lambda _step: weights) if is_scheduled else weights
    distillations = [of_outputs(0.1)]
    objective = ElasticObjective(
        net, loss, 0.1, tap_weights=tap_weights, distillations=distillations
    )
    terms = objective(X, Y, step=0)
    terms.total.backward()
    assert terms.total.isfinite()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_head_does_not_run_at_a_tap_of_weight_0() -> None:
    net = conv_net(3)
    runs: list[int] = []
    net.head.register_forward_hook(lambda *_: runs.append(1))
    objective = ElasticObjective(net, nn.L1Loss(), 0.1, tap_weights={1: 0.0, 2: 1.0, 3: 1.0})
    terms = objective(X, Y)
    assert objective.depths_at() == tuple(terms.per_depth) == (2, 3)
    assert len(runs) == 2


def test_an_adapter_at_a_tap_of_weight_0_is_unused() -> None:
    net = conv_net(3, adapters={1: nn.Conv2d(4, 4, 1)})
    for first_weight, is_unused in ((0.0, True), (0.5, False)):
        weights = {1: first_weight, 2: 0.0, 3: 1.0}
        objective = ElasticObjective(net, nn.L1Loss(), 0.1, tap_weights=weights)
        assert objective.needs_unused_search == is_unused
    schedule = ElasticObjective(net, nn.L1Loss(), 0.1, tap_weights=lambda _step: weights)
    assert schedule.needs_unused_search


def test_an_empty_batch_adds_nothing_to_a_summed_loss() -> None:
    net = conv_net(3)
    objective = ElasticObjective(
        net, nn.L1Loss(reduction="sum"), 0.1, distillations=[of_outputs(0.5)]
    )
    terms = objective(X[:0], Y[:0])
    terms.total.backward()
    assert terms.total == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


class TwoTasks(nn.Module):
    """A head that predicts two things, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Conv2d(4, 2, 1)
        self.distance = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"colour": self.colour(x), "distances": [self.distance(x)]}


def two_task_loss(prediction: dict[str, Any], target: dict[str, Any]) -> Tensor:
    colour = F.l1_loss(prediction["colour"], target["colour"])
    return colour + F.l1_loss(prediction["distances"][0], target["distances"][0])


def test_output_distillation_of_a_dict_of_predictions() -> None:
    net = ElasticWrapper([nn.Conv2d(4, 4, 1) for _ in range(3)], TwoTasks())
    target = {"colour": torch.rand(2, 2, 5, 6), "distances": [torch.rand(2, 1, 5, 6)]}
    first, second, deepest = net(X, taps=net.taps).predictions
    teacher = {
        "colour": deepest["colour"].detach(),
        "distances": [deepest["distances"][0].detach()],
    }
    expected = two_task_loss(first, teacher) + two_task_loss(second, teacher)
    expected_gradients = torch.autograd.grad(expected, list(net.head.parameters()))

    objective = ElasticObjective(
        net, two_task_loss, 0.0, distillations=[of_outputs(1.0, compare=two_task_loss)]
    )
    distillation = objective(X, target).distillation
    gradients = torch.autograd.grad(distillation, list(net.head.parameters()))
    torch.testing.assert_close(distillation, expected)
    torch.testing.assert_close(gradients, expected_gradients)


# --- learned weights


@given(st.lists(st.floats(0, 3), min_size=4, max_size=4), st.sampled_from([None, 1, 2]))
def test_the_gradient_of_a_learned_tap_weight_is_its_tap_s_loss(
    values: list[float], sampled_taps: int | None
) -> None:
    net = conv_net(4)
    weights = nn.Parameter(torch.tensor(values))
    objective = ElasticObjective(
        net, nn.L1Loss(), 0.1, tap_weights=weights, sampled_taps=sampled_taps
    )
    same_numbers = dict(zip(net.taps, weights.tolist(), strict=True))
    fixed = ElasticObjective(
        net, nn.L1Loss(), 0.1, tap_weights=same_numbers, sampled_taps=sampled_taps
    )
    terms = objective(X, Y, step=3)
    torch.testing.assert_close(terms.total, fixed(X, Y, step=3).total)
    terms.total.backward()

    expected = torch.zeros(4)
    for depth, loss in terms.per_depth.items():
        probability = 1.0
        if depth < 4 and sampled_taps is not None:
            probability = sampled_taps / 3
        expected[depth - 1] = loss / probability
    torch.testing.assert_close(weights.grad, expected)


def test_learned_weights_are_parameters_of_the_objective() -> None:
    objective = ElasticObjective(
        conv_net(2),
        nn.L1Loss(),
        psd_weight=nn.Parameter(torch.tensor(0.1)),
        tap_weights=nn.Parameter(torch.ones(2)),
        distillations=[of_outputs(nn.Parameter(torch.ones(1)))],
    )
    own = {name for name, _ in objective.named_parameters() if not name.startswith("net.")}
    assert own == {"psd_weight", "tap_weights", "distillations.0.weight"}
    assert own < set(objective.state_dict())


def test_the_gradient_of_a_learned_weight_is_its_term() -> None:
    net = conv_net(3)
    unit = ElasticObjective(net, nn.L1Loss(), psd_weight=1.0)(X, Y).distillation
    psd_weight = nn.Parameter(torch.tensor(0.3))
    terms = ElasticObjective(net, nn.L1Loss(), psd_weight=psd_weight)(X, Y)
    terms.total.backward()
    torch.testing.assert_close(terms.distillation, 0.3 * unit)
    torch.testing.assert_close(psd_weight.grad, unit.detach())

    unit = ElasticObjective(net, nn.L1Loss(), 0, distillations=[of_outputs(1.0)])(X, Y).distillation
    output_weight = nn.Parameter(torch.tensor([0.3]))
    terms = ElasticObjective(net, nn.L1Loss(), 0, distillations=[of_outputs(output_weight)])(X, Y)
    terms.total.backward()
    torch.testing.assert_close(terms.distillation, 0.3 * unit)
    torch.testing.assert_close(output_weight.grad, unit.detach().reshape(1))


@pytest.mark.parametrize(
    "container",
    [nn.ParameterList([torch.ones(())]), nn.ParameterDict({"1": torch.ones(())})],
    ids=["ParameterList", "ParameterDict"],
)
@pytest.mark.parametrize("name", ["psd_weight", "tap_weights", "weight"])
def test_a_container_of_parameters_is_no_learned_weight(name: str, container: Any) -> None:
    options: dict[str, Any] = {"psd_weight": 0.1, name: container}
    make = partial(ElasticObjective, conv_net(2), nn.L1Loss(), **options)
    if name == "weight":
        make = partial(of_outputs, container)
    message = f"{name} is a {type(container).__name__}: expected one nn.Parameter"
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("name", ["psd_weight", "tap_weights", "distillations[0].weight"])
def test_a_learned_weight_outside_of_what_averages_gradients_is_refused(
    name: str, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would learn a weight of its own, from its own rows."""
    parameter = nn.Parameter(torch.ones(2) if name == "tap_weights" else torch.ones(()))
    options: dict[str, Any] = {"psd_weight": 0.1}
    if name == "distillations[0].weight":
        options["distillations"] = [of_outputs(parameter)]
    else:
        options[name] = parameter
    net = conv_net(2)
    parallel = DistributedDataParallel(net)
    compiled: Any = torch.compile(parallel, backend="eager")
    ElasticObjective(parallel, nn.L1Loss(), **options)  # a single process

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    message = f"{re.escape(name)} is learned.* alone is in Distributed"
    for wrapped in (parallel, compiled):
        with pytest.raises(ValueError, match=message):
            ElasticObjective(wrapped, nn.L1Loss(), **options)
    ElasticObjective(parallel, nn.L1Loss(), psd_weight=0.1)
    ElasticObjective(net, nn.L1Loss(), **options)
    parameter.requires_grad_(False)
    ElasticObjective(parallel, nn.L1Loss(), **options)


def test_a_learned_weight_below_0_counts_as_0() -> None:
    net = conv_net(3)
    weights = nn.Parameter(torch.tensor([1.0, 0.5, 1.0]))
    psd_weight = nn.Parameter(torch.tensor(0.1))
    output_weight = nn.Parameter(torch.tensor(0.1))
    objective = ElasticObjective(
        net,
        nn.L1Loss(),
        psd_weight=psd_weight,
        tap_weights=weights,
        distillations=[of_outputs(output_weight)],
    )
    with torch.no_grad():
        for parameter in (weights[1], psd_weight, output_weight):
            parameter.fill_(-1.0)
    terms = objective(X, Y)
    terms.total.backward()
    expected = ElasticObjective(net, nn.L1Loss(), 0, tap_weights={1: 1.0, 2: 0.0, 3: 1.0})(X, Y)
    assert torch.equal(terms.total, expected.total)
    assert 2 in terms.per_depth
    assert weights.grad is not None
    assert weights.grad[1] == 0
    assert psd_weight.grad == 0
    assert output_weight.grad == 0


def test_a_parametrization_keeps_learned_weights_positive() -> None:
    objective = ElasticObjective(
        conv_net(2), nn.L1Loss(), 0.1, tap_weights=nn.Parameter(torch.zeros(2))
    )
    register_parametrization(objective, "tap_weights", nn.Softplus())
    terms = objective(X, Y)
    terms.total.backward()
    raw = objective.parametrizations["tap_weights"].original  # pyright: ignore
    losses = torch.stack(list(terms.per_depth.values()))
    torch.testing.assert_close(terms.routine, math.log(2) * losses[1])
    torch.testing.assert_close(raw.grad, 0.5 * losses)


def test_a_learned_output_weight_of_a_net_with_one_tap_has_a_gradient() -> None:
    output_weight = nn.Parameter(torch.tensor(0.3))
    net = conv_net(2, taps=[2])
    objective = ElasticObjective(net, nn.L1Loss(), 0, distillations=[of_outputs(output_weight)])
    objective(X, Y).total.backward()
    assert output_weight.grad == 0


def test_learned_weights_on_meta_are_not_asked_for_their_values() -> None:
    weights = nn.Parameter(torch.empty(2, device="meta"))
    psd_weight = nn.Parameter(torch.empty((), device="meta"))
    objective = ElasticObjective(
        conv_net(2).to("meta"),
        nn.L1Loss(),
        psd_weight,
        tap_weights=weights,
        distillations=[of_outputs(0.1)],
    )
    assert objective(X.to("meta"), Y.to("meta")).total.is_meta


# --- misuse


def test_psd_weight_has_no_default() -> None:
    assert (
        inspect.signature(ElasticObjective).parameters["psd_weight"].default
        is inspect.Parameter.empty
    )
    with pytest.raises(TypeError, match="psd_weight"):
        ElasticObjective(conv_net(2), nn.L1Loss())  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"psd_weight": -0.1},
            "psd_weight -0.1: expected a finite number, at least 0, or a function of the step",
        ),
        ({"psd_weight": math.nan}, "psd_weight nan: expected a finite number"),
        ({"psd_weight": math.inf}, "psd_weight inf: expected a finite number"),
        (
            {"tap_weights": nn.Parameter(torch.ones(2))},
            r"tap_weights is a parameter of shape \(2,\): expected \(3,\), a weight for each tap",
        ),
        ({"sampled_taps": -1}, "sampled taps -1: expected a whole number from 0 to 2"),
        ({"sampled_taps": True}, "sampled taps True: expected a whole number"),
        (
            {"tap_weights": lambda step: {1: 1.0, 2: 1.0, 3: step - 1.5}},
            "tap weight -1.5 at depth 3: expected a finite number, at least 0",
        ),
        (
            {"tap_weights": {1: 1.0, 3: 1.0}},
            r"tap weights name depths \[1, 3\]: this net has taps at \[1, 2, 3\]",
        ),
    ],
)
def test_misuse_of_the_objective(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticObjective(conv_net(3), nn.L1Loss(), **{"psd_weight": 0.1, **options})


@pytest.mark.parametrize("weights", ["normalised", 0.5, {1.0, 2.0, 3.0}])
def test_tap_weights_of_another_kind_are_named(weights: Any) -> None:
    message = re.escape(f"tap weights {weights!r}: expected a mapping by depth")
    for tap_weights in (weights, lambda step: weights):
        with pytest.raises(TypeError, match=message):
            ElasticObjective(conv_net(3), nn.L1Loss(), 0.1, tap_weights=tap_weights)


def test_an_invalid_layout_raises_before_training() -> None:
    with pytest.raises(ValueError, match="layout 'n c h w': expected an axis list"):
        ElasticObjective(conv_net(2, layout="n c h w"), nn.L1Loss(), 0.1)


def test_a_layout_without_positions_does_where_no_map_is_made() -> None:
    net = ElasticWrapper([nn.Linear(4, 4)], nn.Linear(4, 2), layout="b c")
    x = torch.randn(3, 4)
    assert ElasticObjective(net, nn.L1Loss(), psd_weight=0.0)(x, net(x)).total == 0
    for psd_weight in (0.1, lambda step: 0.1):
        with pytest.raises(ValueError, match="layout 'b c': expected an axis list"):
            ElasticObjective(net, nn.L1Loss(), psd_weight=psd_weight)


@pytest.mark.parametrize("word", ["step", "target"])
def test_a_stem_with_an_argument_that_the_objective_keeps_is_refused(word: str) -> None:
    class WithStep(nn.Module):
        def forward(self, x: Tensor, step: int = 0) -> Tensor:
            return x

    class WithTarget(nn.Module):
        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            return x

    stem = {"step": WithStep(), "target": WithTarget()}[word]
    with pytest.raises(ValueError, match=f"the stem's forward has an argument '{word}', which it"):
        ElasticObjective(conv_net(2, stem=stem), nn.L1Loss(), psd_weight=0.1)


@pytest.mark.parametrize("prefix_tokens", [-1, 1])
def test_invalid_prefix_tokens_raise_before_training(prefix_tokens: int) -> None:
    net = conv_net(2)
    net.prefix_tokens = prefix_tokens
    with pytest.raises(ValueError, match=f"prefix_tokens={prefix_tokens}"):
        ElasticObjective(net, nn.L1Loss(), 0.1)


@pytest.mark.parametrize("psd_weight", [math.nan, math.inf, -1.0])
def test_a_schedule_that_returns_an_invalid_psd_weight_raises(psd_weight: float) -> None:
    objective = ElasticObjective(conv_net(2), nn.L1Loss(), lambda _step: psd_weight)
    with pytest.raises(ValueError, match=f"at step 7 psd_weight is {psd_weight}: expected"):
        objective(X, Y, step=7)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"l1": torch.ones(())}, "returned a dict: expected a scalar tensor"),
        ((torch.ones(()), torch.ones(())), "returned a tuple: expected a scalar tensor"),
        (0.5, "returned a float: expected a scalar tensor .*do not call item"),
        (None, "returned a NoneType: expected a scalar tensor"),
        (torch.ones((), dtype=torch.int64), r"returned a tensor of torch\.int64: expected a real"),
    ],
)
def test_a_loss_that_returns_no_tensor_is_named(returned: Any, message: str) -> None:
    def loss(_prediction: Tensor, _target: Tensor) -> Any:
        return returned

    with pytest.raises(TypeError, match=f"the task loss {message}"):
        ElasticObjective(conv_net(2), loss, 0)(X, Y)
    objective = ElasticObjective(
        conv_net(2), nn.L1Loss(), 0, distillations=[of_outputs(1.0, compare=loss)]
    )
    with pytest.raises(TypeError, match=f"the comparison of a distillation {message}"):
        objective(X, Y)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda p, t: t.sub_(p).abs().mean(), "the target"),
        (lambda p, t: p.sub_(t).abs().mean(), "the prediction"),
    ],
)
def test_a_task_loss_that_overwrites_what_other_losses_read_is_named(loss: Any, what: str) -> None:
    message = f"the task loss writes in place into {what}, which is still needed"
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        ElasticObjective(conv_net(2), loss, psd_weight=0.1)(X, Y.clone())
    with torch.no_grad():
        ElasticObjective(conv_net(2, taps=[2]), loss, psd_weight=0.1)(X, Y.clone())


@pytest.mark.parametrize("has_gradients", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        lambda p, t: t.sub_(p).abs().mean(),
        lambda p, t: p.sub_(t).abs().mean(),
    ],
    ids=["teacher", "prediction"],
)
def test_a_comparison_that_overwrites_what_other_losses_read_is_named(
    loss: Any, has_gradients: bool
) -> None:
    objective = ElasticObjective(
        conv_net(3), nn.L1Loss(), 0, distillations=[of_outputs(1.0, compare=loss)]
    )
    message = (
        "the comparison of a distillation writes in place into the prediction, which is still "
        "needed: compute"
    )
    with torch.set_grad_enabled(has_gradients), pytest.raises(RuntimeError, match=message):
        objective(X, Y)


def test_a_schedule_of_tap_weights_is_called_once_a_step() -> None:
    calls: list[int] = []

    def schedule(step: int) -> dict[int, float]:
        calls.append(step)
        return normalised((1, 2, 3))

    objective = ElasticObjective(conv_net(3), nn.L1Loss(), 0.1, tap_weights=schedule)
    calls.clear()
    objective(X, Y, step=4)
    assert calls == [4]


def test_a_class_of_losses_is_no_loss() -> None:
    message = r"task_loss is the class L1Loss: expected an object of it, L1Loss\(\)"
    with pytest.raises(TypeError, match=message):
        ElasticObjective(conv_net(2), nn.L1Loss, psd_weight=0)  # pyright: ignore[reportArgumentType]


def test_a_task_loss_that_is_not_a_scalar_raises() -> None:
    with pytest.raises(
        ValueError,
        match=r"the task loss returned a tensor of shape \(2, 2, 5, 6\): expected a scalar",
    ):
        ElasticObjective(conv_net(2), nn.L1Loss(reduction="none"), 0)(X, Y)
    with pytest.raises(ValueError, match=r"shape \(3,\): expected a scalar \(reduce it\)"):
        tap_losses([X], X, lambda p, t: torch.ones(3))
    assert [float(loss) for loss in tap_losses([X, X + 1], X)] == [0, pytest.approx(1)]
