"""Attention maps and their distance: by hand, by a loop, layouts, half precision, gradients."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.distillation import (
    attention_distance,
    attention_map,
    position_axes,
    progressive_distillation,
)
from elasticnet.distillation_losses import Comparison, squared_unit_distance, unit_distance

POSITIONS = {"b c h w": "h w", "b h w c": "h w", "b n c": "n", "b c t": "t", "b c t h w": "t h w"}
MAP_COMPARISONS = [unit_distance, squared_unit_distance]


def naive_map(features: Tensor, layout: str, power: float) -> np.ndarray:
    """Sum |features|^power over channels, one number at a time."""
    channels_last = rearrange(features, f"{layout} -> b {POSITIONS[layout]} c").double().numpy()
    result = np.zeros(channels_last.shape[:-1])
    for position in np.ndindex(*result.shape):
        for value in channels_last[position]:
            result[position] += abs(float(value)) ** power
    return result


def naive_distance(student: np.ndarray, teacher: np.ndarray, squared: bool = False) -> float:
    """The distance of two maps of equal shape, one sample and one position at a time."""
    total = 0.0
    for first, second in zip(student, teacher, strict=True):
        first, second = first.ravel(), second.ravel()
        first_norm = math.sqrt(sum(value**2 for value in first))
        second_norm = math.sqrt(sum(value**2 for value in second))
        square = sum(
            (a / first_norm - b / second_norm) ** 2 for a, b in zip(first, second, strict=True)
        )
        total += square if squared else math.sqrt(square)
    return total / len(student)


# --- maps


def test_map_by_hand() -> None:
    """Two channels on 1x2 positions: |1| + |-2| = 3 and |3| + |4| = 7; with power 2, 5 and 25."""
    features = torch.tensor([[[[1.0, 3.0]], [[-2.0, 4.0]]]])
    assert attention_map(features).tolist() == [[[3.0, 7.0]]]
    assert attention_map(features, power=2).tolist() == [[[5.0, 25.0]]]


@given(
    st.sampled_from(sorted(POSITIONS)),
    st.sampled_from([1, 2, 3, 0.5]),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    st.data(),
)
def test_map_against_a_loop(
    layout: str, power: float, dtype: torch.dtype, data: st.DataObject
) -> None:
    shape = [data.draw(st.integers(1, 4), axis) for axis in layout.split()]
    features = torch.randn(shape).to(dtype)
    result = attention_map(features, layout, power)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(
        result.numpy(), naive_map(features, layout, power), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("layout", POSITIONS)
@pytest.mark.parametrize("power", [1, 2])
def test_layouts_agree_after_permutation(layout: str, power: float) -> None:
    """The map of any layout is that of the features put into (b, c, positions)."""
    features = torch.randn([2, 3, 4, 5, 2][: len(layout.split())], dtype=torch.float64)
    positions = POSITIONS[layout]
    channels_first = rearrange(features, f"{layout} -> b c {positions}")
    expected = channels_first.abs().pow(power).sum(1)
    torch.testing.assert_close(attention_map(features, layout, power), expected)
    strange = rearrange(features, f"{layout} -> c {positions} b")  # any order will do
    torch.testing.assert_close(attention_map(strange, f"c {positions} b", power), expected)


def test_prefix_tokens_are_left_out() -> None:
    tokens = torch.randn(2, 7, 3)
    torch.testing.assert_close(
        attention_map(tokens, "b n c", prefix_tokens=2), attention_map(tokens[:, 2:], "b n c")
    )
    sequence = torch.randn(2, 3, 7)
    torch.testing.assert_close(
        attention_map(sequence, "b c t", prefix_tokens=1), attention_map(sequence[..., 1:], "b c t")
    )
    with pytest.raises(
        ValueError, match="prefix_tokens=1 needs a layout with one position axis, not 'b c h w'"
    ):
        attention_map(torch.randn(1, 2, 3, 3), "b c h w", prefix_tokens=1)


def test_position_axes() -> None:
    for layout, positions in POSITIONS.items():
        assert position_axes(layout) == positions.split()


@pytest.mark.parametrize(
    "layout",
    ["", "b c", "c h w", "b h w", "b c h h", "b c t d h w", "bchw", "b c (h w)", "b c 1 w"],
)
def test_a_wrong_layout_is_named(layout: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"layout {layout!r}: expected an axis list with b")
    ):
        attention_map(torch.randn(1, 2, 3, 3), layout)


def test_features_that_do_not_have_the_axes_of_the_layout() -> None:
    with pytest.raises(
        ValueError,
        match=r"features of shape \(1, 2, 3\) do not have .* layout 'b c h w': give the net",
    ):
        attention_map(torch.randn(1, 2, 3))


# --- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("level", "channels"), [(300.0, 64), (1e-4, 1)])
def test_half_precision_maps_are_finite_and_right(
    dtype: torch.dtype, level: float, channels: int
) -> None:
    """48x48 positions at levels where float16 arithmetic gives infinity, or zero."""
    features, other = (torch.randn(2, 2, channels, 48, 48) * level).to(dtype)
    maps = [attention_map(x) for x in (features, other)]
    wide = [attention_map(x.double()) for x in (features, other)]
    for result, expected in zip(maps, wide, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=0)
    distance = attention_distance(maps[0], maps[1])
    torch.testing.assert_close(
        distance.double(), attention_distance(wide[0], wide[1]), rtol=1e-4, atol=0
    )

    # the level is one that matters: the norm taken in float16 is infinite, or far off
    if dtype == torch.float16:
        summed = features.abs().sum(1)
        naive = (summed * summed).sum((1, 2)).sqrt().double()
        assert not torch.isclose(naive, wide[0].flatten(1).norm(dim=1), rtol=0.05).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_maps_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    features, other = torch.randn(2, 2, 8, 6, 6)
    with torch.autocast("cpu", dtype=dtype):
        student, teacher = attention_map(features), attention_map(other, power=2)
        distance = attention_distance(student, teacher)
    assert {tensor.dtype for tensor in (student, teacher, distance)} == {torch.float32}
    assert distance == attention_distance(attention_map(features), attention_map(other, power=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradient_of_half_precision_features_is_finite(dtype: torch.dtype) -> None:
    for level in (300.0, 1e-4, 0.0):
        features = (torch.randn(1, 16, 12, 12) * level).to(dtype).requires_grad_()
        attention_distance(attention_map(features), torch.rand(1, 12, 12)).backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()


# --- distance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["b c h w", "b h w c", "b n c"])
def test_a_map_and_its_gradient_have_the_bits_of_a_sum_in_the_wide_dtype(
    layout: str, dtype: torch.dtype
) -> None:
    axes = layout.split()
    sizes = {"b": 2, "c": 37, "h": 5, "w": 6, "n": 30}
    features = torch.randn([sizes[axis] for axis in axes]).to(dtype)
    features[0, 0] = 0  # the gradient of a magnitude is 0 there
    features.requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)

    found = attention_map(features, layout)
    expected = features.to(wide).abs().sum(dim=axes.index("c"))
    weights = torch.randn_like(expected)
    assert torch.equal(found, expected)
    found_gradient = torch.autograd.grad(found, features, weights)[0]
    assert torch.equal(found_gradient, torch.autograd.grad(expected, features, weights)[0])
    assert not found_gradient[0, 0].any()


def test_every_kind_of_derivative_reaches_through_a_map() -> None:
    features = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention_map, features, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attention_map, features)

    def energy(sample: Tensor) -> Tensor:
        return attention_map(sample[None]).square().sum()

    of_samples = torch.func.vmap(torch.func.grad(energy))(features)
    together = torch.autograd.grad(attention_map(features).square().sum(), features)[0]
    assert torch.allclose(of_samples, together, rtol=1e-12)


def test_distance_by_hand() -> None:
    """(3, 4) and (8, 6) point to (0.6, 0.8) and (0.8, 0.6), whose squared distance is 0.08.

    The mean with a sample of distance 0 is half of it.
    """
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[8.0, 6.0]])
    assert attention_distance(first, second).item() == pytest.approx(math.sqrt(0.08))
    assert attention_distance(first, second, squared_unit_distance).item() == pytest.approx(0.08)
    batch = torch.cat([first, second]), torch.cat([second, second])
    assert attention_distance(*batch).item() == pytest.approx(math.sqrt(0.08) / 2)
    assert attention_distance(*batch, squared_unit_distance).item() == pytest.approx(0.04)


@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from(MAP_COMPARISONS),
)
def test_distance_against_a_loop(batch: int, positions: list[int], compare: Comparison) -> None:
    student, teacher = torch.rand(2, batch, *positions, dtype=torch.float64) + 0.01
    expected = naive_distance(student.numpy(), teacher.numpy(), compare is squared_unit_distance)
    assert attention_distance(student, teacher, compare).item() == pytest.approx(
        expected, abs=1e-12
    )


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4))
def test_distance_sees_only_the_direction(first: float, second: float) -> None:
    student, teacher = torch.rand(2, 2, 3, 4, dtype=torch.float64) + 0.01
    scaled = attention_distance(student * first, teacher * second)
    torch.testing.assert_close(scaled, attention_distance(student, teacher))
    assert 0 <= scaled <= math.sqrt(2)
    torch.testing.assert_close(
        attention_distance(teacher, student), attention_distance(student, teacher)
    )


def test_the_weight_of_a_squared_distance_does_not_die_with_the_patch() -> None:
    """It is summed over positions, not averaged: of the same order at 8x8 and at 96x96."""
    small, large = (
        attention_distance(torch.rand(4, n, n), torch.rand(4, n, n), squared_unit_distance)
        for n in (8, 96)
    )
    assert 0.5 < small / large < 2


def test_different_resolutions_are_pooled_to_the_smaller_one() -> None:
    """(1, 3), (5, 7) in rows pools to (2, 6); each axis goes to its own minimum."""
    fine, coarse = torch.tensor([[1.0, 3.0, 5.0, 7.0]]), torch.tensor([[6.0, 2.0]])
    expected = attention_distance(torch.tensor([[2.0, 6.0]]), coarse)
    torch.testing.assert_close(attention_distance(fine, coarse), expected)
    torch.testing.assert_close(attention_distance(coarse, fine), expected)
    tall, wide = torch.rand(2, 4, 2), torch.rand(2, 2, 6)
    pooled = tall.unflatten(1, (2, 2)).mean(2), wide.unflatten(2, (2, 3)).mean(3)
    torch.testing.assert_close(attention_distance(tall, wide), attention_distance(*pooled))
    video = torch.rand(1, 4, 4, 4), torch.rand(1, 2, 4, 2)
    pooled = video[0].unflatten(1, (2, 2)).mean(2).unflatten(3, (2, 2)).mean(4), video[1]
    torch.testing.assert_close(attention_distance(*video), attention_distance(*pooled))


@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=2),
    st.lists(st.integers(1, 7), min_size=2, max_size=2),
)
def test_any_two_resolutions_have_a_distance(first: list[int], second: list[int]) -> None:
    distance = attention_distance(torch.rand(2, *first) + 0.01, torch.rand(2, *second) + 0.01)
    assert 0 <= distance <= math.sqrt(2) + 1e-6


def test_maps_with_different_axes_raise() -> None:
    with pytest.raises(
        ValueError, match=r"maps of shape \(1, 4\) and \(1, 2, 2\) differ in their axes"
    ):
        attention_distance(torch.rand(1, 4), torch.rand(1, 2, 2))


# --- gradients


@pytest.mark.parametrize("compare", MAP_COMPARISONS)
def test_gradient_against_finite_differences(compare: Comparison) -> None:
    features = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(2, 3, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return attention_distance(attention_map(x), teacher, compare)

    assert torch.autograd.gradcheck(loss, features)


@pytest.mark.parametrize("compare", MAP_COMPARISONS)
def test_gradient_at_identical_maps_is_zero(compare: Comparison) -> None:
    """A grown block starts there; the square root of a sum of squares would give NaN."""
    student = torch.rand(2, 3, 4, requires_grad=True)
    attention_distance(student, student.detach().clone(), compare).backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("level", [0.0, 1e-12, 1e-6])
@pytest.mark.parametrize("compare", MAP_COMPARISONS)
def test_a_zero_map_is_finite_and_its_gradient_is_bounded(
    level: float, compare: Comparison
) -> None:
    eps = 1e-3
    compare = partial(compare, eps=eps)
    student = torch.full((2, 3, 4), level, requires_grad=True)
    loss = attention_distance(student, torch.rand(2, 3, 4), compare)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.norm() <= 2 / eps
    assert attention_distance(torch.zeros(1, 4), torch.zeros(1, 4), compare) == 0


@pytest.mark.parametrize("compare", MAP_COMPARISONS)
@pytest.mark.parametrize("level", [1.0, 0.0])
def test_second_derivatives_at_identical_maps_are_finite(compare: Comparison, level: float) -> None:
    """A gradient penalty on a net that has just grown, whose neighbouring maps are identical."""
    student = (level * torch.rand(2, 3, 4)).requires_grad_()
    teacher = student.detach().clone()
    loss = attention_distance(student, teacher, compare)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), student)
    assert second.isfinite().all()


def test_second_derivatives_against_finite_differences() -> None:
    features = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(2, 3, 4, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return attention_distance(attention_map(x), teacher)

    assert torch.autograd.gradgradcheck(loss, features)


@pytest.mark.parametrize("power", [0.5, 1, 1.5, 2, 3])
def test_features_of_zero_have_finite_derivatives_at_any_power(power: float) -> None:
    """ReLU makes many of them, and the derivative of a root is infinite there."""
    features = torch.randn(2, 3, 3, 4).relu().requires_grad_()
    map_ = attention_map(features, power=power)
    torch.testing.assert_close(map_, features.abs().pow(power).sum(dim=1))
    (gradient,) = torch.autograd.grad(map_.sum(), features, create_graph=True)
    assert gradient.isfinite().all()
    (second,) = torch.autograd.grad(gradient.sum() + 0 * features.sum(), features)
    assert second.isfinite().all()


# --- values that would switch the distillation off, or make it NaN


@pytest.mark.parametrize("compare", MAP_COMPARISONS)
def test_an_empty_batch_has_the_distance_0(compare: Comparison) -> None:
    features = [torch.rand(0, 4, 6, 6), torch.rand(0, 8, 3, 3)]
    for feature in features:
        feature.requires_grad_()
    loss = progressive_distillation(features, compare=compare)
    loss.backward()
    assert loss == 0
    assert features[0].grad is not None
    assert features[0].grad.shape == (0, 4, 6, 6)


@pytest.mark.parametrize(
    ("prefix_tokens", "message"),
    [
        (-1, "prefix_tokens=-1: expected a whole number, at least 0"),
        (5, r"prefix_tokens=5 leaves no position of features of shape \(2, 5, 8\)"),
        (9, "prefix_tokens=9 leaves no position"),
    ],
)
def test_prefix_tokens_that_switch_the_distillation_off(prefix_tokens: int, message: str) -> None:
    tokens = torch.rand(2, 5, 8)
    with pytest.raises(ValueError, match=message):
        progressive_distillation([tokens, tokens + 1], "b n c", prefix_tokens)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_powers_and_eps_without_a_finite_map(value: float) -> None:
    features = [torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)]
    with pytest.raises(ValueError, match=f"power={value}: expected a finite number above 0"):
        progressive_distillation(features, power=value)
    with pytest.raises(ValueError, match=f"eps={value}: expected a finite number above 0"):
        progressive_distillation(features, compare=partial(unit_distance, eps=value))


# --- features that are no dense tensors


def jagged_tokens() -> Tensor:
    tokens = [torch.randn(3, 4), torch.randn(5, 4)]
    return torch.nested.nested_tensor(tokens, layout=torch.jagged)


class MeanOfTokens(nn.Module):
    """A head for tokens of any kind: the mean of each sample's tokens."""

    def forward(self, x: Tensor) -> Tensor:
        samples = x.to_dense() if x.is_sparse else x
        return torch.stack([tokens.mean(dim=0) for tokens in samples.unbind()])


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("jagged", jagged_tokens()), ("sparse", torch.ones(2, 3, 4).to_sparse())],
)
def test_features_that_are_no_dense_tensor_are_named(kind: str, tokens: Tensor) -> None:
    net = ElasticWrapper([nn.Identity(), nn.Identity()], MeanOfTokens(), layout="b n c")
    target = torch.zeros(2, 4)
    message = f"needs a dense tensor at each tap, and the features are a {kind} one: leave it out"
    with pytest.raises(TypeError, match=message):
        ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)(tokens, target)
    with pytest.raises(TypeError, match=f"dense tensors, and the input is a {kind} one"):
        net.check(tokens)
    terms = ElasticObjective(net, nn.L1Loss(), psd_weight=0)(tokens, target)
    assert terms.total.isfinite()


# --- masks of positions


def naive_masked_loss(maps: list[np.ndarray], masks: list[np.ndarray], squared: bool) -> float:
    """The mean over samples of the distances of neighbours, from the counting positions alone."""
    total = 0.0
    for sample in range(len(maps[0])):
        for shallower in range(len(maps) - 1):
            counts = masks[shallower][sample] & masks[shallower + 1][sample]
            if counts.any():
                student = maps[shallower][sample][counts]
                teacher = maps[shallower + 1][sample][counts]
                total += naive_distance(student[None], teacher[None], squared)
    return total / len(maps[0])


def naive_pool(grid: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps (b, n) as means over the counting positions of `side` windows, and their mask."""
    pooled = np.zeros((len(grid), side))
    pooled_mask = np.zeros((len(grid), side), dtype=bool)
    for sample in range(len(grid)):
        for window in range(side):
            start = window * grid.shape[1] // side
            stop = -(-(window + 1) * grid.shape[1] // side)
            counts = mask[sample, start:stop]
            if counts.any():
                pooled[sample, window] = grid[sample, start:stop][counts].mean()
                pooled_mask[sample, window] = True
    return pooled, pooled_mask


@given(st.sampled_from(list(POSITIONS)), st.sampled_from(MAP_COMPARISONS), st.integers(0, 10**6))
def test_a_masked_loss_is_that_of_a_loop_over_the_positions_that_count(
    layout: str, compare: Comparison, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"b": 3, "c": 2}
    shape = [sizes.get(axis, 3) for axis in layout.split()]
    features = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    num_positions = len(POSITIONS[layout].split())
    mask = torch.rand(3, *[3] * num_positions, generator=generator) < 0.4

    actual = progressive_distillation(features, layout, compare=compare, mask=mask)
    maps = [naive_map(each, layout, power=1) for each in features]
    expected = naive_masked_loss(maps, [mask.numpy()] * 3, squared=compare is squared_unit_distance)
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 3), st.integers(0, 10**6))
def test_masks_of_maps_that_differ_in_resolution_and_have_prefix_tokens(
    first_side: int, second_side: int, prefix_tokens: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = [
        torch.randn(2, prefix_tokens + side, 3, generator=generator, dtype=torch.float64)
        for side in (first_side, second_side)
    ]
    mask = torch.rand(2, prefix_tokens + first_side, generator=generator) < 0.5

    actual = progressive_distillation(features, "b n c", prefix_tokens=prefix_tokens, mask=mask)
    first, second = (naive_map(each[:, prefix_tokens:], "b n c", power=1) for each in features)
    first_mask = mask[:, prefix_tokens:].numpy()
    _, second_mask = naive_pool(np.zeros_like(first), first_mask, second_side)
    side = min(first_side, second_side)
    first, first_mask = naive_pool(first, first_mask, side)
    second, second_mask = naive_pool(second, second_mask, side)
    expected = naive_masked_loss([first, second], [first_mask, second_mask], squared=False)
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("layout", POSITIONS)
def test_a_map_is_0_where_a_position_does_not_count(layout: str) -> None:
    features = torch.randn([2 if axis == "b" else 3 for axis in layout.split()])
    whole = attention_map(features, layout)
    mask = torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(attention_map(features, layout, mask=mask), whole * mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_more_padding_changes_the_loss_by_rounding_alone(dtype: torch.dtype) -> None:
    features = [torch.randn(2, 6, 4) for _ in range(3)]
    mask = torch.ones(2, 6, dtype=dtype)
    mask[1, 4:] = 0
    padded = [torch.cat([each, torch.randn(2, 18, 4)], dim=1) for each in features]
    padded_mask = torch.cat([mask, torch.zeros(2, 18, dtype=dtype)], dim=1)
    torch.testing.assert_close(
        progressive_distillation(padded, "b n c", mask=padded_mask),
        progressive_distillation(features, "b n c", mask=mask),
    )


def test_a_position_that_does_not_count_gets_no_gradient() -> None:
    features = [torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2)]
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    loss = progressive_distillation(features, mask=mask, detach=False, power=1.5)
    for gradient in torch.autograd.grad(loss, features):
        assert (gradient != 0).any(dim=1).equal(mask)


def test_values_at_positions_that_do_not_count_spoil_nothing() -> None:
    values = torch.randn(2, 4, 3)
    values[0, 2:] = math.nan
    student = values.requires_grad_()
    mask = ~values.isnan().any(dim=2)
    loss = progressive_distillation([student, 2 * values.detach() + 1], "b n c", mask=mask)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad[mask].isfinite().all()


def test_an_image_in_which_no_position_counts_adds_0() -> None:
    mask = torch.tensor([[False, False, False], [True, True, False]])
    features = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss_of(*each: Tensor) -> Tensor:
        return progressive_distillation(each, "b n c", mask=mask, detach=False)

    second = progressive_distillation([each[1:] for each in features], "b n c", mask=mask[1:])
    torch.testing.assert_close(loss_of(*features), second / 2)
    assert torch.autograd.gradcheck(loss_of, features)
    assert torch.autograd.gradgradcheck(loss_of, features)


def test_a_mask_of_no_position_gives_0_with_second_derivatives() -> None:
    student, teacher = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss = progressive_distillation([student, teacher], "b n c", mask=mask)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum() + gradient.sum(), student)
    assert loss == 0
    assert not gradient.any()
    assert not second.any()


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[True]], TypeError, "the mask of positions is a list: expected a tensor"),
        (
            torch.ones(2, 3),
            TypeError,
            r"a tensor of torch\.float32: expected bool or whole numbers",
        ),
        (
            torch.ones(2, 5, dtype=torch.bool),
            ValueError,
            r"shape \(2, 5\): expected \(b, n\) = \(2, 3\) for features of shape \(2, 3, 4\)",
        ),
        (torch.ones(2, 1, 3, 3, dtype=torch.bool), ValueError, r"has shape \(2, 1, 3, 3\)"),
    ],
)
def test_a_wrong_mask_is_named(mask: Any, error: type[Exception], message: str) -> None:
    features = [torch.randn(2, 3, 4) for _ in range(2)]
    with pytest.raises(error, match=message):
        progressive_distillation(features, "b n c", mask=mask)
    with pytest.raises(error, match=message):
        attention_map(features[0], "b n c", mask=mask)


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 3, dtype=torch.int64)]
)
def test_a_wrong_mask_of_a_map_is_named(mask: Tensor) -> None:
    student = torch.rand(2, 3)
    teacher = torch.rand(2, 3)
    message = re.escape(
        f"a mask of shape {tuple(mask.shape)} and {mask.dtype}: expected torch.bool"
    )
    with pytest.raises(ValueError, match=message):
        attention_distance(student, teacher, student_mask=mask)
    with pytest.raises(ValueError, match=message):
        attention_distance(student, teacher, teacher_mask=mask)


def test_a_position_counts_if_it_counts_in_both_maps() -> None:
    student = torch.tensor([[3.0, 4.0, 9.0, 9.0]])
    teacher = torch.tensor([[8.0, 6.0, 1.0, 2.0]])
    distance = attention_distance(
        student,
        teacher,
        student_mask=torch.tensor([[True, True, True, False]]),
        teacher_mask=torch.tensor([[True, True, False, True]]),
    )
    assert distance.item() == pytest.approx(math.sqrt(0.08))
