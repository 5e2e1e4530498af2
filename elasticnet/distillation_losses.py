"""Losses of distillation: pure functions that compare a student with its teacher.

A comparison is what `Distillation(compare=...)` takes. It returns a scalar, the mean over the
samples of a batch. What it is given depends on what is compared:

- maps: `compare(student, teacher)` with two attention maps (b, *positions);
- features: `compare(student, teacher)` with two features (b, c, *positions), whatever the layout
  of the net is;
- predictions: `compare(student, teacher)` with two outputs of the head as they are. Beside
  `soft_targets`, any loss of PyTorch does, such as `F.l1_loss` or `F.mse_loss`.

Maps and features are in at least float32, and have the same resolution: the finer one was pooled.
If the step has a mask of positions, `compare(student, teacher, mask=mask)` also gets the bool
tensor (b, *positions) of those that count in both. A sample in which none counts adds 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Comparison = Callable[..., Tensor]
"""`compare(student, teacher)` or `compare(student, teacher, mask=mask)` returns a scalar."""


# --- of two attention maps (b, *positions)


def unit_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, eps: float = 1e-4
) -> Tensor:
    """Return the L2 norm of the difference of two maps, each scaled to unit L2 norm.

    It is the distance in the ASRN paper's L_PSD. At two identical maps the gradient is 0, and
    second derivatives are finite.

    Args:
        student: A map (b, *positions).
        teacher: Another one of the same shape.
        mask: Which positions count, (b, *positions). None: all.
        eps: The smallest norm that a map is divided by. It keeps the scaled map finite, and its
            gradient bounded, where the map is 0.

    Returns:
        The mean of the samples' distances, from 0 to 2; 0 for an empty batch.

    Raises:
        ValueError: `eps` is invalid.
    """
    return _mean(_norm(_unit_difference(student, teacher, mask, eps)))


def squared_unit_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, eps: float = 1e-4
) -> Tensor:
    """Return the square of `unit_distance` of each sample: a sum over positions, not a mean.

    Maps of |features|^2, compared so, are the attention transfer of Zagoruyko and Komodakis,
    "Paying More Attention to Attention" (2017), in the form of their code, which takes the mean
    over the positions instead of the sum.

    Args:
        student: A map (b, *positions).
        teacher: Another one of the same shape.
        mask: Which positions count, (b, *positions). None: all.
        eps: The smallest norm that a map is divided by.

    Returns:
        The mean of the samples' squared distances, from 0 to 4; 0 for an empty batch.

    Raises:
        ValueError: `eps` is invalid.
    """
    difference = _unit_difference(student, teacher, mask, eps)
    return _mean(difference.square().sum(dim=1))


# --- of two features (b, c, *positions)


def cosine_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, eps: float = 1e-4
) -> Tensor:
    """Return 1 - the cosine similarity of two features, each one vector a sample.

    It is computed as half the squared distance of the vectors scaled to unit L2 norm, which is the
    same number, and 0 where both features are 0.

    Source: a cosine of features is a term of DistilBERT's loss (Sanh et al. 2019), there of each
    token alone. One vector of all channels and positions is our choice: it asks for no equality of
    a position's own norm.

    Args:
        student: Features (b, c, *positions).
        teacher: Others of the same shape.
        mask: Which positions count, (b, *positions). None: all.
        eps: The smallest norm that features are divided by.

    Returns:
        The mean of the samples' distances, from 0 to 2; 0 for an empty batch.

    Raises:
        ValueError: The numbers of channels differ, or `eps` is invalid.
    """
    check_eps(eps)
    _check_channels(student, teacher)
    student = _where_features_count(student, mask)
    teacher = _where_features_count(teacher, mask)
    # |u - v|^2 / 2 of the scaled vectors u and v, which is 1 - u v where both have norm 1.
    # Inner products alone are fast for features in any memory format: nothing is flattened.
    axes = list(range(1, student.ndim))  # all but the batch
    student_square = student.square().sum(axes)  # (b,)
    teacher_square = teacher.square().sum(axes)  # (b,)
    product = (student * teacher).sum(axes)  # (b,)
    student_norm = student_square.clamp_min(eps**2).sqrt()
    teacher_norm = teacher_square.clamp_min(eps**2).sqrt()
    u_square = student_square / (student_norm * student_norm)
    v_square = teacher_square / (teacher_norm * teacher_norm)
    return _mean((u_square + v_square) / 2 - product / (student_norm * teacher_norm))


def mean_squared(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over channels and positions of the squared difference of two features.

    Source: the hints of FitNets (Romero et al. 2015), there half the sum. A mean does not grow
    with the size of the features. "Be Your Own Teacher" (Zhang et al. 2019) takes the deepest
    features of a network as the hint of the others.

    Args:
        student: Features (b, c, *positions).
        teacher: Others of the same shape. For another number of channels, see `Projected`.
        mask: Which positions count, (b, *positions). None: all.

    Returns:
        The mean of the samples' means, a scalar; 0 for an empty batch.

    Raises:
        ValueError: The numbers of channels differ.
    """
    _check_channels(student, teacher)
    squares = _where_features_count(student - teacher, mask).square()
    sums = squares.flatten(1).sum(dim=1)  # (b,)
    if mask is None:
        counted = math.prod(student.shape[2:])
        return _mean(sums / (student.shape[1] * counted))
    counted_positions = mask.flatten(1).sum(dim=1).clamp_min(1)  # (b,), no division by 0
    return _mean(sums / (student.shape[1] * counted_positions))


def channel_wise(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 4.0
) -> Tensor:
    """Return the divergence of each channel's softmax over the positions, a mean over channels.

    A channel's own distribution says where it looks. A constant that is added to a channel changes
    nothing.

    Source: channel-wise knowledge distillation, CWD (Shu et al. 2021), with the temperature 4.

    Args:
        student: Features (b, c, *positions).
        teacher: Others of the same shape. For another number of channels, see `Projected`.
        mask: Which positions count, (b, *positions). None: all.
        temperature: What features are divided by, above 0. The result is multiplied by its square.

    Returns:
        The mean over samples and channels of KL(teacher, student), a scalar, at least 0; 0 for an
        empty batch.

    Raises:
        ValueError: The numbers of channels differ, or the temperature is invalid.
    """
    check_temperature(temperature)
    _check_channels(student, teacher)
    student_logits = student.flatten(2) / temperature  # (b, c, number of positions)
    teacher_logits = teacher.flatten(2) / temperature
    if mask is not None:
        # The smallest number, not minus infinity: a sample in which no position counts then has
        # two equal softmaxes in the place of NaN.
        smallest = torch.finfo(student.dtype).min
        counts = mask.flatten(1).unsqueeze(1)  # (b, 1, number of positions)
        student_logits = torch.where(counts, student_logits, smallest)
        teacher_logits = torch.where(counts, teacher_logits, smallest)
    divergence = _divergence(student_logits, teacher_logits, dim=2)  # (b, c)
    return temperature**2 * _mean(divergence.mean(dim=1))


class Projected(nn.Module):
    """A comparison behind a projection of the student's features to the width of the teacher's.

    The projection is a part of the objective: its parameters stand in `objective.parameters()`,
    which the optimiser must get, and are not a part of the network.

    Source: the regressor of FitNets (Romero et al. 2015).

    Args:
        projection: Maps features (b, c, *positions) of the student to those of the teacher's
            width, such as `nn.Conv2d(64, 128, 1)` for images and `nn.Conv1d(64, 128, 1)` for
            tokens. All students of a `Distillation` share it; give each width one of its own.
        compare: A comparison of features.

    Example:
        `Projected(nn.Conv2d(64, 128, 1), compare=mean_squared)`
    """

    def __init__(self, projection: nn.Module, compare: Comparison) -> None:
        super().__init__()
        self.projection = projection
        self.compare = compare

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the comparison of the projected student with its teacher.

        Args:
            student: Features (b, c, *positions).
            teacher: Others of the projection's width.
            mask: Which positions count, (b, *positions). None: all.
        """
        projected = self.projection(student)
        if mask is None:
            return self.compare(projected, teacher)
        return self.compare(projected, teacher, mask=mask)


# --- of two predictions


def soft_targets(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, dim: int = -1
) -> Tensor:
    """Return the divergence of the student's softened probabilities from the teacher's.

    A constant that is added to all logits of an example changes nothing.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015). The
    factor temperature^2 is theirs: it keeps the size of the gradient.

    Args:
        student: Logits, such as (b, classes), or (b, n, vocabulary).
        teacher: Others of the same shape.
        temperature: What logits are divided by, above 0; above 1 it softens the probabilities.
        dim: The axis of the classes.

    Returns:
        temperature^2 KL(teacher, student), the mean over all examples: over all axes but `dim`.

    Raises:
        ValueError: The temperature is invalid.
    """
    check_temperature(temperature)
    dtype = torch.promote_types(student.dtype, torch.float32)
    student_logits = student.to(dtype) / temperature
    teacher_logits = teacher.to(dtype) / temperature
    return temperature**2 * _divergence(student_logits, teacher_logits, dim).mean()


# --- what comparisons take


def check_eps(eps: float) -> None:
    """Raise unless a map can be divided by this norm.

    Args:
        eps: The smallest norm that a map is divided by.

    Raises:
        ValueError: It is not above 0, or not finite.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"eps={eps}: expected a finite number above 0")


def check_temperature(temperature: float) -> None:
    """Raise unless logits can be divided by this temperature.

    Args:
        temperature: What logits are divided by.

    Raises:
        ValueError: It is not above 0, or not finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: expected a finite number above 0")


def check_is_function(function: Any, name: str, expected: str) -> None:
    """Raise unless something can be called with two arguments, as losses and comparisons are.

    Args:
        function: What the user passed.
        name: The argument's name.
        expected: What messages call the right kind, such as "a function of a student and a teacher,
            such as F.mse_loss".

    Raises:
        TypeError: It is a class of modules, or nothing that can be called.
    """
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}: expected {expected}")
    if isinstance(function, type) and issubclass(function, nn.Module):
        raise TypeError(
            f"{name} is the class {function.__name__}: expected an object of it, "
            f"{function.__name__}()"
        )


def checked_loss(loss: Any, name: str) -> Tensor:
    """Return what a loss function returned; raise unless it is a scalar tensor of real numbers.

    Args:
        loss: What it returned.
        name: What messages call the function.

    Raises:
        TypeError: It is no tensor of real numbers.
        ValueError: It is no scalar.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the {name} returned a {type(loss).__name__}: "
            "expected a scalar tensor (add up its parts, and do not call item())"
        )
    if not loss.is_floating_point():
        raise TypeError(f"the {name} returned a tensor of {loss.dtype}: expected a real number")
    if loss.ndim:
        raise ValueError(
            f"the {name} returned a tensor of shape {tuple(loss.shape)}: "
            "expected a scalar (reduce it)"
        )
    return loss


def _check_channels(student: Tensor, teacher: Tensor) -> None:
    """Raise unless two features have the same number of channels."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"features of {student.shape[1]} and {teacher.shape[1]} channels: compare attention "
            "maps, which have no channels, or give a projection, Projected(...)"
        )


def _divergence(student_logits: Tensor, teacher_logits: Tensor, dim: int) -> Tensor:
    """Return KL(teacher, student) of two softmaxes along an axis, which is summed up."""
    student_log = F.log_softmax(student_logits, dim=dim)
    teacher_log = F.log_softmax(teacher_logits, dim=dim)
    probability = teacher_log.exp()
    # 0 log 0 is 0: where the teacher says never, both logarithms may be minus infinity.
    difference = torch.where(probability > 0, teacher_log - student_log, 0)
    return (probability * difference).sum(dim=dim)


def _where_features_count(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return features (b, c, *positions) with 0 at positions that do not count."""
    if mask is None:
        return features
    return torch.where(mask.unsqueeze(1), features, 0)


def _unit_difference(student: Tensor, teacher: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """Return the difference of two maps scaled to unit norm, (b, number of positions)."""
    check_eps(eps)
    if mask is not None:
        student = torch.where(mask, student, 0)
        teacher = torch.where(mask, teacher, 0)
    return _unit(student, eps) - _unit(teacher, eps)


def _unit(maps: Tensor, eps: float) -> Tensor:
    """Flatten maps to (b, number of positions), each divided by its L2 norm, or eps if larger."""
    flat = maps.flatten(start_dim=1)
    if not flat.requires_grad:  # A teacher: the same values, in fewer operations.
        return F.normalize(flat, dim=1, eps=eps)
    is_small = _vector_norm(flat.detach()) < eps  # (b, 1)
    return flat / _norm_unless(is_small, flat, otherwise=eps)


def _norm(flat: Tensor) -> Tensor:
    """Return each sample's L2 norm, (b, n) -> (b, 1), with derivatives of 0 where it is 0."""
    is_zero = _vector_norm(flat.detach()) == 0  # (b, 1)
    return _norm_unless(is_zero, flat, otherwise=0)


def _norm_unless(excluded: Tensor, flat: Tensor, otherwise: float) -> Tensor:
    """Return each sample's L2 norm, (b, n) -> (b, 1), and a constant for excluded samples (b, 1).

    Samples of zeros must be excluded before their norm is taken: the gradient of
    `flat.square().sum(dim=1).sqrt()` would be NaN, and so would be the second derivative of
    `vector_norm`.
    """
    without_zeros = flat.masked_fill(excluded, 1)  # (b, n)
    return _vector_norm(without_zeros).masked_fill(excluded, otherwise)


def _vector_norm(flat: Tensor) -> Tensor:
    return torch.linalg.vector_norm(flat, dim=1, keepdim=True)  # pyright: ignore[reportUnknownVariableType]


def _mean(distances: Tensor) -> Tensor:
    """Return the mean of the samples' distances, one each; 0 for an empty batch."""
    return distances.mean() if len(distances) else distances.sum()
