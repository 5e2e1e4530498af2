"""Distillation: one description of a term, attention maps, and the loss between taps.

A `Distillation` says what is compared at each tap (attention maps, features or predictions), by
which function (see `elasticnet.distillation_losses`), with which teacher, and with which weight.
The progressive self-distillation of the ASRN paper, L_PSD, is one of them: `PROGRESSIVE`.

The layout of features is an einops axis list: `b` is the batch, `c` the channels, and every other
axis a position. Examples are "b c h w" and "b h w c" (images), "b n c" (tokens), "b c t"
(sequences) and "b c t h w" (video).

A mask says which positions count, such as the tokens of a text without its padding. It is a tensor
(b, *positions) of bool, or of whole numbers that are not 0 where a position counts. The others are
left out of a map, of its norm and of its distance to another one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from elasticnet._autocast import without_autocast
from elasticnet._modules.compare import kind_of_tensor
from elasticnet.distillation_losses import (
    Comparison,
    check_is_function,
    checked_loss,
    cosine_distance,
    squared_unit_distance,
    unit_distance,
)
from elasticnet.loss_weights import Weight, checked_weight

KINDS = ("maps", "features", "predictions")
"""What a distillation can compare."""
TEACHERS = ("next", "deepest")
"""Which tap teaches a shallower one: the next deeper tap, or the deepest of all."""

Teacher = str | Callable[..., Any]
"""One of `TEACHERS`, or a function of the input that returns what is taught."""

MASK_REMEDY = (
    "If it is an argument of the network with another meaning, give the positions that count to "
    "the objective: objective(x, target, mask=...)"
)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """One distillation term of a loss: at each tap that learns, a student beside its teacher.

    The term of maps and features is weight * sum over the students of compare(student, teacher),
    over all taps in each step. That of predictions is weight * sum of factor_n * compare(student,
    teacher) over the taps that a step computes; factor_n is what multiplies the task loss there.

    Attributes:
        weight: What the term is multiplied by: a number, at least 0, a function of the step, or a
            parameter, which is learned. The number 0 leaves the term out.
        of: What is compared: "maps" (the attention maps of the features), "features", or
            "predictions".
        compare: `compare(student, teacher)` returns a scalar: a function of
            `elasticnet.distillation_losses`, a loss of PyTorch, or your own. If it is a module with
            parameters, these are learned: they stand among the objective's.
        teacher: "next": each tap learns from the next deeper one. "deepest": all learn from the
            deepest. Or a function or module, called without gradients as `teacher(x, **keywords)`
            with the input of the network. Of predictions it returns one prediction, for all
            students. Of maps and features it returns features with the axes of the net's layout:
            one tensor for all taps, or a sequence with one for each tap. The objective neither
            moves a module to a device, nor saves it, nor sets its mode.
        students: The depths of the taps that learn. None: all but the deepest. The deepest can
            learn only from a teacher that is a function or module.
        detach: Whether the gradient stays out of the teacher, if it is a tap.
        power: The power of |features| in attention maps.

    Raises:
        ValueError: A word is unknown, a number is out of range, or features or predictions have a
            power.
        TypeError: `weight`, `compare` or `teacher` is of another kind.

    Example:
        `Distillation(of="features", compare=cosine_distance, teacher="deepest", weight=0.1)`
    """

    weight: Weight
    of: str
    compare: Comparison
    teacher: Teacher = "next"
    students: Sequence[int] | None = None
    detach: bool = True
    power: float = 1

    def __post_init__(self) -> None:
        checked_weight(self.weight, name="weight")
        check_is_function(
            self.compare,
            name="compare",
            expected="a function of a student and a teacher, such as those of "
            "elasticnet.distillation_losses",
        )
        check_kind(self.of, self.power)
        check_teacher(self.teacher)

    def __deepcopy__(self, memo: dict[int, Any]) -> Distillation:
        """Return a copy that asks the same teacher, which does not train and may be large."""
        return dataclasses.replace(
            self,
            weight=copy.deepcopy(self.weight, memo),
            compare=copy.deepcopy(self.compare, memo),
        )


def progressive_distillation(
    features: Sequence[Tensor],
    layout: str = "b c h w",
    prefix_tokens: int = 0,
    *,
    of: str = "maps",
    compare: Comparison = unit_distance,
    teacher: str | Sequence[Tensor] = "next",
    students: Sequence[int] | None = None,
    detach: bool = True,
    power: float = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the sum over the taps that learn of the distance to their teacher.

    The defaults are L_PSD of the ASRN paper.

    Args:
        features: The features of every tap, shallowest first, each with the axes of `layout`.
            Resolution may differ from tap to tap, and so may channels if `compare` allows it.
        layout: What the axes of the features mean.
        prefix_tokens: How many leading positions to leave out (class and register tokens); needs a
            layout with one position axis.
        of: "maps" or "features".
        compare: A comparison of `elasticnet.distillation_losses`, or your own.
        teacher: "next": the next deeper tap teaches, as in the paper. "deepest": the deepest tap
            teaches all others, as in "Be Your Own Teacher" (Zhang et al. 2019). Or features that
            teach: one for each of `features`, or a single one for all.
        students: The positions in `features` of those that learn, from 0. None: all but the last.
        detach: Whether the gradient stays out of the teacher of a pair. The paper does not say;
            the default is our choice.
        power: The power of |features| in an attention map.
        mask: Which positions of the shallowest features count, prefix tokens included. At features
            of another resolution, a position counts if any of those that it covers does. A sample
            in which no position counts adds 0. None: all positions count.

    Returns:
        A scalar in float32, or in float64 for float64 features; 0 for a single tap.

    Raises:
        TypeError: As in `attention_map`.
        ValueError: `features` is empty, or an argument is invalid, see `attention_map` and
            `elasticnet.distillation_losses`.
    """
    if not features:
        raise ValueError("progressive_distillation: no features given, expected at least one tap's")
    check_kind(of, power)
    if of == "predictions":
        raise ValueError("of 'predictions': features have maps and features, not predictions")
    check_taught(teacher, num_taps=len(features))

    # those of the taps, and behind them those of a teacher of its own
    all_features = list(features) if isinstance(teacher, str) else [*features, *teacher]
    masks = _masks_of_taps(mask, all_features, layout, prefix_tokens)
    compared: list[_Compared] = []
    for feature, feature_mask in zip(all_features, masks, strict=True):
        if of == "features":
            values = _channels_first(feature, layout, prefix_tokens)
        else:
            values = attention_map(feature, layout, power, prefix_tokens, feature_mask)
        compared.append(_Compared(values, mask=_without_prefix(feature_mask, prefix_tokens)))

    taps = compared[: len(features)]
    taught = compared[len(features) :]
    teachers = _teacher_of_each(taps, taught, teacher)
    if students is None:
        students = range(len(taps) - 1)
    pairs: list[_Pair] = []
    for student in students:
        target = teachers[student]
        if detach:
            # A new tuple: the compiler of PyTorch 2.6 cannot look into `_replace`.
            target = _Compared(target.values.detach(), mask=target.mask)
        pairs.append(_Pair(taps[student], target))
    return _sum_over_pairs(pairs, of, compare, zero=taps[0].values.new_zeros(()))


class _Compared(NamedTuple):
    """What is compared of one tap, or of a teacher.

    Attributes:
        values: A map (b, *positions), or features (b, c, *positions).
        mask: Which positions count, (b, *positions). None: all.
    """

    values: Tensor
    mask: Tensor | None


class _Pair(NamedTuple):
    """A student and its teacher."""

    student: _Compared
    teacher: _Compared


_MEANS_OF_MAPS = (unit_distance, squared_unit_distance)
"""Comparisons that are a mean over samples, each of which is compared by itself."""


def _sum_over_pairs(pairs: list[_Pair], of: str, compare: Comparison, zero: Tensor) -> Tensor:
    """Return the sum of the pairs' distances, at once where they can be joined."""
    if of == "maps" and compare in _MEANS_OF_MAPS and _can_be_joined(pairs):
        return len(pairs) * _distance(_joined(pairs), of, compare)
    total = zero
    for pair in pairs:
        total = total + _distance(pair, of, compare)
    return total


def _can_be_joined(pairs: list[_Pair]) -> bool:
    """Return whether several pairs can be compared as one batch."""
    if len(pairs) < 2:
        return False
    first = pairs[0].student.values
    for compared in chain.from_iterable(pairs):
        values = compared.values
        if compared.mask is not None or values.shape != first.shape:
            return False
        if values.dtype != first.dtype or values.device != first.device:
            return False
    return True


def _joined(pairs: list[_Pair]) -> _Pair:
    """Return the maps of several pairs (b, *positions) as one pair (pairs b, *positions).

    Maps are small, so that what comparing them costs is the number of operations. The mean over
    this batch, times the number of pairs, is the sum of the pairs' means.
    """
    students = torch.cat([pair.student.values for pair in pairs])
    teachers = torch.cat([pair.teacher.values for pair in pairs])
    return _Pair(_Compared(students, mask=None), _Compared(teachers, mask=None))


def _teacher_of_each(
    taps: list[_Compared], taught: list[_Compared], teacher: str | Sequence[Tensor]
) -> list[_Compared]:
    """Return the teacher of each tap. That of the deepest has no meaning if the taps teach."""
    deepest = taps[-1]
    if teacher == "next":
        return [*taps[1:], deepest]
    if teacher == "deepest":
        return [deepest] * len(taps)
    if len(taught) == 1:
        return taught * len(taps)
    return taught


def attention_map(
    features: Tensor,
    layout: str = "b c h w",
    power: float = 1,
    prefix_tokens: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the sum over channels of |features|^power: one number for every position.

    It is computed in at least float32, with autocast off. In float16 the map's norm would overflow
    for activations of about 300, and become 0 for activations of about 1e-4.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", where it is F_sum^p. The
    ASRN paper calls it Q.

    Args:
        features: A float tensor with the axes of `layout`.
        layout: What the axes of the features mean.
        power: The power of |features|.
        prefix_tokens: How many leading positions to leave out (class and register tokens); needs a
            layout with one position axis.
        mask: Which positions count, (b, *positions), prefix tokens included. None: all.

    Returns:
        The map (b, *positions), in float32, or in float64 for float64 features. It is 0 where a
        position does not count.

    Raises:
        TypeError: The features are not a dense tensor, or the mask is not of bool or whole numbers.
        ValueError: The power or the layout is invalid, the features do not have its axes, the
            prefix tokens are invalid (there are several position axes, or no position is left), or
            the mask has another shape than the features' positions.
    """
    check_power(power)
    _check_features(features, layout, prefix_tokens)
    axes = layout.split()
    positions = position_axes(layout)
    if mask is not None:
        counts = _as_bool(mask, features, layout)  # (b, *positions)
        axes_of_mask = " ".join("1" if axis == "c" else axis for axis in axes)
        counts = rearrange(counts, f"b {' '.join(positions)} -> {axes_of_mask}")
        # Before the sum, so that the gradient is 0 at a position that does not count.
        features = torch.where(counts, features, 0)
    with without_autocast(features.device):
        dtype = torch.promote_types(features.dtype, torch.float32)
        if power == 1:
            summed = _sum_of_magnitudes(features, dim=axes.index("c"), dtype=dtype)
        else:
            magnitude = _power(features.to(dtype).abs(), power)
            summed = magnitude.sum(dim=axes.index("c"))  # the layout's axes without c
        axes_left = " ".join(axis for axis in axes if axis != "c")
        attention = rearrange(summed, f"{axes_left} -> b {' '.join(positions)}")  # (b, *positions)
    if prefix_tokens:
        return attention[:, prefix_tokens:]  # (b, n - prefix_tokens)
    return attention


def _sum_of_magnitudes(features: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return features.to(dtype).abs().sum(dim), to the same bits."""
    # torch.compile fuses the three; without another dtype nothing is copied.
    if torch.compiler.is_compiling() or features.dtype == dtype:
        return features.to(dtype).abs().sum(dim=dim)
    return _SumOfMagnitudes.apply(features, dim, dtype)  # pyright: ignore[reportReturnType]


class _SumOfMagnitudes(torch.autograd.Function):
    """The sum of |features|, whose gradient is made in the features' own dtype and memory format.

    A magnitude is exact in every dtype, and so is a product with a sign: what is left out are the
    copies in a wider dtype, which take longer than the sum.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        return features.abs().sum(dim=dim, dtype=dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, torch.dtype], output: Tensor) -> None:
        features, ctx.dim, ctx.dtype = inputs
        ctx.save_for_backward(features)
        ctx.save_for_forward(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (features,) = ctx.saved_tensors
        of_sums = gradient.to(features.dtype).unsqueeze(ctx.dim)
        return features.sgn() * of_sums, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (features,) = ctx.saved_tensors
        return (features.sgn() * tangents[0]).sum(dim=ctx.dim, dtype=ctx.dtype)


def attention_distance(
    student: Tensor,
    teacher: Tensor,
    compare: Comparison = unit_distance,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """Return the distance between two attention maps.

    If the maps differ in resolution, both are average-pooled to the smaller size along each axis.

    Args:
        student: A map (b, *positions), in float32 or float64.
        teacher: Another map, with the same batch and number of axes.
        compare: `unit_distance` (the ASRN paper's L_PSD), `squared_unit_distance`, or another
            comparison of maps.
        student_mask: Which positions of the student's map count, a bool tensor of its shape. None:
            all. Pooling takes the mean over those positions of a window that count.
        teacher_mask: Which positions of the teacher's map count. The distance is taken over the
            positions that count in both maps.

    Returns:
        The mean of the samples' distances, a scalar; 0 for an empty batch. The distance of a sample
        in which no position counts is 0.

    Raises:
        ValueError: The maps differ in their number of axes, or a mask is no bool tensor of its
            map's shape.
    """
    if student.ndim != teacher.ndim:
        raise ValueError(
            f"maps of shape {tuple(student.shape)} and {tuple(teacher.shape)} differ in their axes"
        )
    _check_mask_of_map(student_mask, student)
    _check_mask_of_map(teacher_mask, teacher)
    pair = _Pair(_Compared(student, student_mask), _Compared(teacher, teacher_mask))
    return _distance(pair, of="maps", compare=compare)


def feature_distance(
    student: Tensor,
    teacher: Tensor,
    layout: str = "b c h w",
    prefix_tokens: int = 0,
    compare: Comparison = cosine_distance,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the distance of the features of two taps, which have no map in between.

    If the resolutions differ, both features are average-pooled to the smaller size along each axis.
    It is computed in at least float32, with autocast off.

    Args:
        student: Features with the axes of `layout`.
        teacher: Other features of the same batch.
        layout: What the axes of the features mean.
        prefix_tokens: How many leading positions to leave out; needs a layout with one position
            axis.
        compare: A comparison of features.
        mask: Which positions of the student count, (b, *positions), prefix tokens included. None:
            all.

    Returns:
        The mean of the samples' distances, a scalar; 0 for an empty batch. The distance of a sample
        in which no position counts is 0.

    Raises:
        TypeError: As in `attention_map`.
        ValueError: An argument is invalid as in `attention_map`.
    """
    return progressive_distillation(
        [student, teacher],
        layout=layout,
        prefix_tokens=prefix_tokens,
        of="features",
        compare=compare,
        detach=False,
        mask=mask,
    )


def check_kind(of: str, power: float) -> None:
    """Raise unless a distillation can compare this.

    Args:
        of: One of `KINDS`.
        power: The power of |features| in an attention map; 1 for all else.

    Raises:
        ValueError: The word is unknown, the power is invalid, or it belongs to no map.
    """
    if of not in KINDS:
        raise ValueError(f"of {of!r}: expected one of {', '.join(KINDS)}")
    check_power(power)
    if of != "maps" and power != 1:
        raise ValueError(
            f"power={power} of {of}: a power belongs to attention maps: leave it out, or compare "
            "maps"
        )


def check_teacher(teacher: Any) -> None:
    """Raise unless this can teach.

    Args:
        teacher: One of `TEACHERS`, or a function.

    Raises:
        ValueError: The word is unknown.
        TypeError: It is neither a word nor a function.
    """
    if isinstance(teacher, str):
        if teacher not in TEACHERS:
            raise ValueError(f"teacher {teacher!r}: expected one of {', '.join(TEACHERS)}")
        return
    if not callable(teacher) or isinstance(teacher, type):
        raise TypeError(
            f"teacher {teacher!r}: expected one of {', '.join(TEACHERS)}, or a function or module "
            "that is called with the input"
        )


def check_taught(teacher: str | Sequence[Tensor], num_taps: int) -> None:
    """Raise unless these features, or this word, can teach so many taps.

    Args:
        teacher: One of `TEACHERS`, or features.
        num_taps: The number of taps.

    Raises:
        ValueError: The word is unknown, or the number of features is wrong.
    """
    if isinstance(teacher, str):
        check_teacher(teacher)
    elif len(teacher) not in (1, num_taps):
        raise ValueError(
            f"the teacher gives {len(teacher)} features: expected one tensor, or one for each of "
            f"the {num_taps} taps"
        )


def position_axes(layout: str) -> list[str]:
    """Return the position axes of a layout, in order; raise if the layout is invalid.

    Args:
        layout: An axis list with `b`, `c` and one to three other names, separated by spaces.

    Returns:
        All names but `b` and `c`.

    Raises:
        ValueError: The layout is not an axis list of this kind.

    Example:
        `position_axes("b c h w") == ["h", "w"]`
    """
    axes = layout.split()
    positions = [axis for axis in axes if axis not in ("b", "c")]
    valid = (
        "b" in axes
        and "c" in axes
        and len(set(axes)) == len(axes)  # torch 2.6 cannot compile list.count
        and 1 <= len(positions) <= 3
        and all(axis.isidentifier() for axis in positions)
    )
    if not valid:
        raise ValueError(
            f"layout {layout!r}: expected an axis list with b (batch), c (channels) and one to "
            'three positions, for example "b c h w", "b h w c", "b n c", "b c t" or "b c t h w"'
        )
    return positions


def check_power(power: float) -> None:
    """Raise unless |features| can be taken to this power.

    Args:
        power: The power of |features| in an attention map.

    Raises:
        ValueError: It is not above 0, or not finite.
    """
    if not 0 < power < math.inf:
        raise ValueError(f"power={power}: expected a finite number above 0")


def check_prefix_tokens(prefix_tokens: int, layout: str) -> None:
    """Raise unless a layout can have so many prefix tokens.

    Args:
        prefix_tokens: How many leading positions attention maps leave out.
        layout: A valid layout.

    Raises:
        ValueError: The number is negative, or there is more than one position axis.
    """
    if prefix_tokens < 0:
        raise ValueError(f"prefix_tokens={prefix_tokens}: expected a whole number, at least 0")
    if prefix_tokens and len(position_axes(layout)) != 1:
        raise ValueError(
            f"prefix_tokens={prefix_tokens} needs a layout with one position axis, not {layout!r}"
        )


PROGRESSIVE = Distillation(weight=1.0, of="maps", compare=unit_distance)
"""L_PSD of the ASRN paper, with the weight 1: `psd_weight` of an objective multiplies it."""


def _check_features(features: Tensor, layout: str, prefix_tokens: int) -> None:
    """Raise unless features have an attention map with this layout and number of prefix tokens."""
    if not isinstance(features, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"the self-distillation needs one tensor at each tap, and the features are a "
            f"{type(features).__name__}: leave it out with psd_weight=0"
        )
    kind = kind_of_tensor(features)
    if kind != "dense":
        raise TypeError(
            "the self-distillation needs a dense tensor at each tap, and the features are a "
            f"{kind} one: leave it out with psd_weight=0, or let the blocks return dense tensors"
        )
    position_axes(layout)  # raises if the layout is invalid
    check_prefix_tokens(prefix_tokens, layout)
    if features.ndim != len(layout.split()):
        raise ValueError(
            f"features of shape {tuple(features.shape)} do not have the axes of layout {layout!r}: "
            "give the net its layout, or leave the self-distillation out with psd_weight=0"
        )
    if prefix_tokens and prefix_tokens >= _sides(features, layout)[0]:
        raise ValueError(
            f"prefix_tokens={prefix_tokens} leaves no position of features of shape "
            f"{tuple(features.shape)} with layout {layout!r}"
        )


def _sides(features: Tensor, layout: str) -> list[int]:
    """Return the size of features along each position axis."""
    axes = layout.split()
    return [features.shape[axes.index(axis)] for axis in position_axes(layout)]


def _as_bool(mask: Tensor, features: Tensor, layout: str) -> Tensor:
    """Return a mask of these features as a bool tensor on their device."""
    if not isinstance(mask, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"the mask of positions is a {type(mask).__name__}: expected a tensor. {MASK_REMEDY}"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(
            f"the mask of positions is a tensor of {mask.dtype}: expected bool or whole numbers, "
            f"True where a position counts. {MASK_REMEDY}"
        )
    batch_size = features.shape[layout.split().index("b")]
    expected = (batch_size, *_sides(features, layout))
    if mask.shape != expected:
        names = ", ".join(["b", *position_axes(layout)])
        raise ValueError(
            f"the mask of positions has shape {tuple(mask.shape)}: expected ({names}) = {expected} "
            f"for features of shape {tuple(features.shape)} with layout {layout!r}. {MASK_REMEDY}"
        )
    return (mask != 0).to(features.device)


def _check_mask_of_map(mask: Tensor | None, attention: Tensor) -> None:
    """Raise unless a mask says of each position of a map whether it counts."""
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != attention.shape:
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} and {mask.dtype}: expected torch.bool and the "
            f"shape of its map, {tuple(attention.shape)}"
        )


def _masks_of_taps(
    mask: Tensor | None, features: Sequence[Tensor], layout: str, prefix_tokens: int
) -> list[Tensor | None]:
    """Return the mask of the shallowest features in the resolution of each tap's features."""
    if mask is None:
        return [None for _ in features]
    for feature in features:
        _check_features(feature, layout, prefix_tokens)
    counts = _as_bool(mask, features[0], layout)  # (b, *positions)
    # Only a layout with one position axis has prefix tokens. For others `prefix` is empty.
    prefix = counts[:, :prefix_tokens]
    grid = counts[:, prefix_tokens:]
    masks: list[Tensor | None] = []
    for feature in features:
        sides = _sides(feature, layout)
        if sides == list(counts.shape[1:]):
            masks.append(counts)
            continue
        grid_sides = [sides[0] - prefix_tokens, *sides[1:]]
        pooled = _window_share(grid, grid_sides) > 0
        masks.append(torch.cat([prefix, pooled], dim=1) if prefix_tokens else pooled)
    return masks


def _without_prefix(mask: Tensor | None, prefix_tokens: int) -> Tensor | None:
    """Return the mask of a map, which leaves out prefix tokens."""
    return None if mask is None else mask[:, prefix_tokens:]


def _channels_first(features: Tensor, layout: str, prefix_tokens: int) -> Tensor:
    """Return features as (b, c, *positions) without prefix tokens, in at least float32."""
    _check_features(features, layout, prefix_tokens)
    dtype = torch.promote_types(features.dtype, torch.float32)
    order = f"{layout} -> b c {' '.join(position_axes(layout))}"
    channels_first = rearrange(features.to(dtype), order)  # (b, c, *positions)
    if prefix_tokens:
        return channels_first[:, :, prefix_tokens:]  # (b, c, n - prefix_tokens)
    return channels_first


def _distance(pair: _Pair, of: str, compare: Comparison) -> Tensor:
    """Return what a comparison says; the finer one is pooled to the other's resolution first."""
    student, teacher = pair
    first_position = 1 if of == "maps" else 2  # the axis
    student_sides = student.values.shape[first_position:]
    teacher_sides = teacher.values.shape[first_position:]
    if student_sides != teacher_sides:
        side_pairs = zip(student_sides, teacher_sides, strict=True)
        smaller_sides = [min(sides) for sides in side_pairs]
        student = _pooled(student, of, smaller_sides)
        teacher = _pooled(teacher, of, smaller_sides)
    mask = _in_both(student.mask, teacher.mask)
    with without_autocast(student.values.device):
        if mask is None:
            distance = compare(student.values, teacher.values)
        else:
            distance = compare(student.values, teacher.values, mask=mask)
    return checked_loss(distance, name="comparison of a distillation")


def _pooled(compared: _Compared, of: str, sides: list[int]) -> _Compared:
    """Average-pool a map or features to the given sides, and their mask."""
    pool = _pool if of == "maps" else _pool_channels
    values = pool(compared.values, sides, compared.mask)
    return _Compared(values, mask=_pool_mask(compared.mask, sides))


def _in_both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the mask of the positions that count in both; None: all do."""
    if first is None:
        return second
    if second is None:
        return first
    return first & second


def _pool_channels(features: Tensor, sides: list[int], mask: Tensor | None) -> Tensor:
    """Average-pool features (b, c, *positions), each channel as a map of its own."""
    batch_size, channels = features.shape[:2]
    if mask is not None:
        mask = mask.repeat_interleave(channels, dim=0)  # (b c, *positions)
    pooled = _pool(features.flatten(0, 1), sides, mask)  # (b c, *sides)
    return pooled.reshape(batch_size, channels, *sides)  # (b, c, *sides)


def _power(magnitude: Tensor, power: float) -> Tensor:
    """Return magnitude^power, with derivatives of 0 at 0.

    Below a power of 2 a derivative of `pow` is infinite at 0, where ReLU has many features, and
    the chain rule would multiply it by 0 to NaN.
    """
    is_zero = magnitude == 0
    nonzero = torch.where(is_zero, 1, magnitude)
    return torch.where(is_zero, 0, nonzero.pow(power))


def _pool(maps: Tensor, sides: list[int], mask: Tensor | None) -> Tensor:
    """Average-pool maps (b, *positions) to the given sides, over the positions that count."""
    if mask is None:
        return _average_pool(maps, sides)
    share = _window_share(mask, sides, maps.dtype)
    total = _average_pool(torch.where(mask, maps, 0), sides)
    return total / torch.where(share > 0, share, 1)  # no division by 0 in an empty window


def _pool_mask(mask: Tensor | None, sides: list[int]) -> Tensor | None:
    """Return a mask in which a position counts if any one in its window does."""
    return None if mask is None else _window_share(mask, sides) > 0


def _window_share(mask: Tensor, sides: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return which share of the positions in each window of a pooling count, from 0 to 1."""
    return _average_pool(mask.to(dtype), sides)


def _average_pool(maps: Tensor, sides: list[int]) -> Tensor:
    pools = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    pool = pools[len(sides)]
    return pool(maps.unsqueeze(1), sides).squeeze(1)  # pyright: ignore[reportArgumentType]
