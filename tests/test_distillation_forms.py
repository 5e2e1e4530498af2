"""The forms of the self-distillation: the cosine of features, and which tap is the teacher."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from elasticnet.distillation import (
    TEACHERS,
    attention_distance,
    attention_map,
    feature_distance,
    progressive_distillation,
)
from elasticnet.distillation_losses import (
    Comparison,
    cosine_distance,
    squared_unit_distance,
    unit_distance,
)

POSITIONS = {"b c h w": "h w", "b h w c": "h w", "b n c": "n", "b c t": "t", "b c t h w": "t h w"}
FORMS = [("maps", unit_distance), ("maps", squared_unit_distance), ("features", cosine_distance)]


def naive_cosine_distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """The mean over samples (the first axis) of 1 - cosine, one number at a time."""
    total = 0.0
    for first, second in zip(student, teacher, strict=True):
        product = 0.0
        first_square = 0.0
        second_square = 0.0
        for a, b in zip(first.ravel(), second.ravel(), strict=True):
            product += a * b
            first_square += a * a
            second_square += b * b
        total += 1 - product / math.sqrt(first_square * second_square)
    return total / len(student)


# --- the cosine of features


def test_a_cosine_by_hand() -> None:
    """(3, 4) and (4, 3) have the cosine 24 / 25, (3, 4) and (-3, -4) have -1."""
    student = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])  # (2, 1, 2)
    teacher = torch.tensor([[[4.0, 3.0]], [[-3.0, -4.0]]])
    first = feature_distance(student[:1], teacher[:1], "b c t")
    both = feature_distance(student, teacher, "b c t")
    assert first.item() == pytest.approx(1 / 25)
    assert both.item() == pytest.approx((1 / 25 + 2) / 2)


@given(st.sampled_from(sorted(POSITIONS)), st.data())
def test_a_cosine_distance_is_that_of_a_loop_in_any_layout(
    layout: str, data: st.DataObject
) -> None:
    shape = [data.draw(st.integers(1, 3), axis) for axis in layout.split()]
    student = torch.randn(shape, dtype=torch.float64)
    teacher = torch.randn(shape, dtype=torch.float64)

    actual = feature_distance(student, teacher, layout)

    order = f"{layout} -> b {POSITIONS[layout]} c"
    flat_student = rearrange(student, order).numpy()
    flat_teacher = rearrange(teacher, order).numpy()
    expected = naive_cosine_distance(flat_student, flat_teacher)
    assert actual.item() == pytest.approx(expected, abs=1e-12)


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4))
def test_a_cosine_does_not_see_the_size_of_features(first: float, second: float) -> None:
    student = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    scaled = feature_distance(first * student, second * teacher)
    torch.testing.assert_close(scaled, feature_distance(student, teacher))


def test_features_of_other_resolution_are_pooled_to_the_smaller_one() -> None:
    fine = torch.randn(2, 3, 4, 6)
    coarse = torch.randn(2, 3, 2, 3)
    pooled = fine.unflatten(2, (2, 2)).mean(3).unflatten(3, (3, 2)).mean(4)
    expected = feature_distance(pooled, coarse)
    torch.testing.assert_close(feature_distance(fine, coarse), expected)
    torch.testing.assert_close(feature_distance(coarse, fine), expected)


def test_a_cosine_leaves_out_prefix_tokens_and_positions_that_do_not_count() -> None:
    student = torch.randn(2, 6, 3)
    teacher = torch.randn(2, 6, 3)
    mask = torch.tensor([[True, True, True, True, False, False], [True] * 6])
    actual = feature_distance(student, teacher, "b n c", prefix_tokens=1, mask=mask)
    first = naive_cosine_distance(student[:1, 1:4].numpy(), teacher[:1, 1:4].numpy())
    second = naive_cosine_distance(student[1:, 1:].numpy(), teacher[1:, 1:].numpy())
    assert actual.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_a_masked_cosine_of_other_resolution_takes_the_mean_of_what_counts() -> None:
    """Windows of two: (1, 2), of which the second does not count, and (3, 5)."""
    student = torch.tensor([[[1.0, 2.0, 3.0, 5.0], [0.0, 9.0, 1.0, 1.0]]])  # (1, 2, 4)
    teacher = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])  # (1, 2, 2)
    mask = torch.tensor([[True, False, True, True]])
    pooled = torch.tensor([[[1.0, 4.0], [0.0, 1.0]]])
    actual = progressive_distillation(
        [student, teacher], "b c t", of="features", compare=cosine_distance, mask=mask
    )
    torch.testing.assert_close(actual, feature_distance(pooled, teacher, "b c t"))


def test_a_sample_in_which_no_position_counts_adds_0() -> None:
    features = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(2)]
    mask = torch.tensor([[False, False, False], [True, True, False]])
    loss = feature_distance(features[0], features[1], "b n c", mask=mask)
    of_second = feature_distance(features[0][1:], features[1][1:], "b n c", mask=mask[1:])
    torch.testing.assert_close(loss, of_second / 2)


def test_the_gradient_of_a_cosine_against_finite_differences() -> None:
    features = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 4, dtype=torch.float64)

    def loss(student: Tensor) -> Tensor:
        return feature_distance(student, teacher)

    assert torch.autograd.gradcheck(loss, features)
    assert torch.autograd.gradgradcheck(loss, features)


def test_equal_features_have_a_distance_of_0_and_no_gradient_but_rounding() -> None:
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = feature_distance(student, student.detach().clone())
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-8


@pytest.mark.parametrize("level", [300.0, 1e-4])
def test_a_cosine_of_half_precision_features_is_finite_and_right(level: float) -> None:
    """In float16 arithmetic the norm of such features is infinite, or 0."""
    student = (level * torch.randn(2, 16, 12, 12)).half()
    teacher = (level * torch.randn(2, 16, 12, 12)).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = feature_distance(student, teacher)
    expected = feature_distance(student.double(), teacher.double())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=0)


def test_features_of_0_are_finite() -> None:
    student = torch.zeros(1, 2, 3, 3, requires_grad=True)
    loss = feature_distance(student, torch.randn(1, 2, 3, 3))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 6, 6), (0, 4, 3, 3)])
def test_the_cosine_of_an_empty_batch_is_0(shape: tuple[int, ...]) -> None:
    assert feature_distance(torch.rand(0, 4, 6, 6), torch.rand(shape)) == 0


def test_features_that_differ_in_channels_have_no_cosine() -> None:
    message = "features of 64 and 96 channels: compare attention maps, which have no channels"
    with pytest.raises(ValueError, match=message):
        feature_distance(torch.rand(1, 64, 2, 2), torch.rand(1, 96, 2, 2))


def test_features_have_no_power() -> None:
    features = [torch.rand(1, 2, 3, 3) for _ in range(2)]
    message = "power=2 of features: a power belongs to attention maps"
    with pytest.raises(ValueError, match=message):
        progressive_distillation(features, of="features", compare=cosine_distance, power=2)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf])
def test_a_cosine_refuses_an_eps_that_is_no_norm(eps: float) -> None:
    features = torch.rand(1, 2, 3)
    with pytest.raises(ValueError, match=f"eps={eps}: expected a finite number above 0"):
        cosine_distance(features, features, eps=eps)


# --- the teacher


@given(
    st.integers(1, 5),
    st.sampled_from(FORMS),
    st.sampled_from(TEACHERS),
    st.booleans(),
)
def test_a_loss_is_the_sum_of_the_distances_to_each_tap_s_teacher(
    num_taps: int, form: tuple[str, Comparison], teacher: str, masked: bool
) -> None:
    of, compare = form
    features = [torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(num_taps)]
    mask = torch.rand(2, 4, 4) < 0.6 if masked else None

    actual = progressive_distillation(features, of=of, compare=compare, teacher=teacher, mask=mask)

    expected = 0.0
    for student in range(num_taps - 1):
        teaching = student + 1
        if teacher == "deepest":
            teaching = num_taps - 1
        if of == "features":
            of_pair = feature_distance(features[student], features[teaching], mask=mask)
        else:
            of_pair = attention_distance(
                attention_map(features[student], mask=mask),
                attention_map(features[teaching], mask=mask),
                compare,
                student_mask=mask,
                teacher_mask=mask,
            )
        expected += of_pair.item()
    assert actual.item() == pytest.approx(expected, abs=1e-12)


@given(
    st.lists(st.sampled_from([4, 6]), min_size=2, max_size=5),
    st.sampled_from([unit_distance, squared_unit_distance]),
    st.sampled_from(TEACHERS),
    st.booleans(),
)
def test_gradients_are_those_of_one_distance_after_the_other(
    sides: list[int], compare: Comparison, teacher: str, detach: bool
) -> None:
    def gradients(join: bool) -> list[Tensor]:
        torch.manual_seed(0)
        features = [torch.randn(2, 3, side, side, dtype=torch.float64) for side in sides]
        for each in features:
            each.requires_grad_()
        own = compare if join else partial(compare, eps=1e-4)  # as a function of a user's
        loss = progressive_distillation(features, compare=own, teacher=teacher, detach=detach)
        loss.backward()
        return [torch.zeros(()) if each.grad is None else each.grad for each in features]

    for joined, one_by_one in zip(gradients(join=True), gradients(join=False), strict=True):
        torch.testing.assert_close(joined, one_by_one, rtol=1e-12, atol=1e-14)


def test_a_comparison_of_ones_own_is_given_one_pair_at_a_time() -> None:
    shapes: list[tuple[int, ...]] = []

    def largest(student: Tensor, teacher: Tensor) -> Tensor:  # no mean over the samples
        shapes.append(tuple(student.shape))
        return (student - teacher).abs().max()

    features = [torch.full((2, 1, 3, 3), value) for value in (1.0, 2.0, 5.0)]
    loss = progressive_distillation(features, compare=largest)
    assert loss.item() == 1 + 3
    assert shapes == [(2, 3, 3), (2, 3, 3)]


@pytest.mark.parametrize(("of", "compare"), FORMS)
def test_no_gradient_reaches_the_deepest_tap_where_it_teaches_all(
    of: str, compare: Comparison
) -> None:
    features = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3)]
    loss = progressive_distillation(features, of=of, compare=compare, teacher="deepest")
    loss.backward()
    first, second, deepest = features
    assert first.grad is not None
    assert first.grad.any()
    assert second.grad is not None
    assert second.grad.any()
    assert deepest.grad is None


def test_unknown_forms_are_named() -> None:
    features = [torch.rand(1, 2, 3, 3) for _ in range(2)]
    with pytest.raises(ValueError, match="of 'map': expected one of maps, features, predictions"):
        progressive_distillation(features, of="map")
    with pytest.raises(ValueError, match="of 'predictions': features have maps and features"):
        progressive_distillation(features, of="predictions")
    with pytest.raises(ValueError, match="teacher 'last': expected one of next, deepest"):
        progressive_distillation(features, teacher="last")
