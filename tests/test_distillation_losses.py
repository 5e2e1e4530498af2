"""The comparisons of a student with its teacher, against loops and other libraries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

from elasticnet.distillation_losses import (
    Comparison,
    Projected,
    channel_wise,
    cosine_distance,
    mean_squared,
    soft_targets,
    squared_unit_distance,
    unit_distance,
)

OF_MAPS = [unit_distance, squared_unit_distance]
OF_FEATURES = [cosine_distance, mean_squared, channel_wise]
EVERY_COMPARISON = [*OF_MAPS, *OF_FEATURES, soft_targets]


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


# --- of features


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_mean_squared_is_that_of_a_loop(
    batch: int, channels: int, height: int, width: int, masked: bool
) -> None:
    student, teacher = pair(batch, channels, height, width)
    mask = torch.rand(batch, height, width) < 0.6 if masked else None

    actual = mean_squared(student, teacher, mask)

    total = 0.0
    for sample in range(batch):
        squares: list[float] = []
        for c, y, x in np.ndindex(channels, height, width):
            if mask is None or mask[sample, y, x]:
                squares.append(float(student[sample, c, y, x] - teacher[sample, c, y, x]) ** 2)
        total += sum(squares) / len(squares) if squares else 0.0
    assert actual.item() == pytest.approx(total / batch, rel=1e-9)
    if mask is None:
        torch.testing.assert_close(actual, F.mse_loss(student, teacher))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.floats(0.5, 8), st.booleans())
def test_channel_wise_is_scipy_s_divergence_of_each_channel(
    batch: int, channels: int, length: int, temperature: float, masked: bool
) -> None:
    student, teacher = pair(batch, channels, length)
    mask = torch.rand(batch, length) < 0.6 if masked else None

    actual = channel_wise(student, teacher, mask, temperature=temperature)

    total = 0.0
    for sample in range(batch):
        counts = np.ones(length, dtype=bool) if mask is None else mask[sample].numpy()
        if not counts.any():
            continue  # adds 0
        for channel in range(channels):
            taught = softmax(teacher[sample, channel].numpy()[counts] / temperature)
            learnt = softmax(student[sample, channel].numpy()[counts] / temperature)
            total += float(rel_entr(taught, learnt).sum())
    expected = temperature**2 * total / (batch * channels)
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_channel_wise_is_finite_at_low_temperatures_where_no_position_counts() -> None:
    student, teacher = pair(1, 2, 3)
    no_position = torch.zeros(1, 3, dtype=torch.bool)
    assert channel_wise(student, teacher, no_position, temperature=0.5) == 0


@given(st.floats(-50, 50))
def test_channel_wise_does_not_see_a_constant_added_to_a_channel(constant: float) -> None:
    student, teacher = pair(2, 3, 4, 4)
    shifted = student.clone()
    shifted[:, 1] += constant
    torch.testing.assert_close(channel_wise(shifted, teacher), channel_wise(student, teacher))


@pytest.mark.parametrize("compare", OF_FEATURES)
def test_features_of_other_channels_need_a_projection(compare: Comparison) -> None:
    message = "features of 3 and 5 channels: .* or give a projection"
    with pytest.raises(ValueError, match=message):
        compare(torch.rand(2, 3, 4), torch.rand(2, 5, 4))
    projected = Projected(nn.Conv1d(3, 5, 1), compare)
    assert projected(torch.rand(2, 3, 4), torch.rand(2, 5, 4)).isfinite()


@pytest.mark.parametrize("masked", [False, True])
def test_a_projection_stands_in_front_of_its_comparison_and_learns(masked: bool) -> None:
    student, teacher = torch.rand(2, 3, 4), torch.rand(2, 5, 4)
    projection = nn.Conv1d(3, 5, 1)
    mask = torch.tensor([[True, True, False, False]] * 2) if masked else None
    loss = Projected(projection, mean_squared)(student, teacher, mask=mask)
    torch.testing.assert_close(loss, mean_squared(projection(student), teacher, mask))
    loss.backward()
    assert projection.weight.grad is not None
    assert projection.weight.grad.any()


@pytest.mark.parametrize("compare", OF_FEATURES)
def test_features_at_positions_that_do_not_count_change_nothing(compare: Comparison) -> None:
    student, teacher = pair(2, 3, 5)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    expected = compare(student, teacher, mask=mask)
    student[:, :, 2] = 1e6
    teacher[1] = math.nan
    torch.testing.assert_close(compare(student, teacher, mask=mask), expected)
    of_first = compare(student[:1], teacher[:1], mask=mask[:1])
    torch.testing.assert_close(expected, of_first / 2)  # the second sample adds 0


# --- of predictions


@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.5, 8))
def test_soft_targets_are_scipy_s_divergence(batch: int, classes: int, temperature: float) -> None:
    student, teacher = pair(batch, classes)
    actual = soft_targets(student, teacher, temperature=temperature)
    taught = softmax(teacher.numpy() / temperature, axis=1)
    learnt = softmax(student.numpy() / temperature, axis=1)
    expected = temperature**2 * rel_entr(taught, learnt).sum() / batch
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_soft_targets_take_the_mean_over_tokens_and_any_axis_of_classes() -> None:
    student, teacher = pair(2, 5, 7)
    of_tokens = soft_targets(student, teacher)
    flat = soft_targets(student.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(of_tokens, flat)
    moved = soft_targets(student.movedim(2, 1), teacher.movedim(2, 1), dim=1)
    torch.testing.assert_close(of_tokens, moved)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_soft_targets_do_not_see_a_constant_added_to_all_logits(a: float, b: float) -> None:
    student, teacher = pair(3, 4)
    torch.testing.assert_close(
        soft_targets(student + a, teacher + b), soft_targets(student, teacher)
    )


def test_the_gradient_of_soft_targets_keeps_its_size_as_the_temperature_rises() -> None:
    """Hinton et al.: at high temperatures it is (z - v) / classes for centred logits z and v."""
    student, teacher = pair(1, 4)
    student = (student - student.mean()).requires_grad_()
    teacher = teacher - teacher.mean()
    (gradient,) = torch.autograd.grad(soft_targets(student, teacher, temperature=1e4), student)
    torch.testing.assert_close(gradient, (student - teacher) / 4, rtol=1e-3, atol=1e-5)


def test_classes_that_are_ruled_out_add_nothing() -> None:
    student, teacher = pair(2, 4)
    student[:, 3] = -math.inf
    teacher[:, 3] = -math.inf
    student.requires_grad_()
    loss = soft_targets(student, teacher)
    loss.backward()
    torch.testing.assert_close(loss, soft_targets(student[:, :3], teacher[:, :3]))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_soft_targets_of_half_precision_are_float32() -> None:
    student, teacher = torch.randn(2, 4).half(), torch.randn(2, 4).half()
    loss = soft_targets(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_targets(student.float(), teacher.float()))


# --- of all


def inputs_of(compare: Comparison) -> tuple[int, ...]:
    """Return the shape of what a comparison is given."""
    return (2, 6) if compare is soft_targets or compare in OF_MAPS else (2, 3, 4)


@pytest.mark.parametrize("compare", EVERY_COMPARISON)
def test_equals_have_the_distance_0_and_no_gradient(compare: Comparison) -> None:
    student = torch.randn(inputs_of(compare), dtype=torch.float64, requires_grad=True)
    loss = compare(student, student.detach().clone())
    loss.backward()
    assert loss.abs() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("compare", EVERY_COMPARISON)
@pytest.mark.parametrize("other", ["zeros", "random"])
def test_the_gradient_at_0_is_finite(compare: Comparison, other: str) -> None:
    student = torch.zeros(inputs_of(compare), requires_grad=True)
    teacher = torch.zeros_like(student) if other == "zeros" else torch.randn(student.shape)
    loss = compare(student, teacher.detach())
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("compare", EVERY_COMPARISON)
def test_gradients_against_finite_differences(compare: Comparison) -> None:
    student, teacher = pair(*inputs_of(compare))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: compare(x, teacher), student)


@pytest.mark.parametrize("compare", [*OF_MAPS, *OF_FEATURES])
def test_an_empty_batch_has_the_distance_0(compare: Comparison) -> None:
    empty = torch.rand(0, 3, 4)
    assert compare(empty, empty) == 0


@pytest.mark.parametrize("compare", [channel_wise, soft_targets])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_above_0(compare: Any, temperature: float) -> None:
    message = f"temperature={temperature}: expected a finite number above 0"
    with pytest.raises(ValueError, match=message):
        compare(torch.rand(2, 3, 4), torch.rand(2, 3, 4), temperature=temperature)
