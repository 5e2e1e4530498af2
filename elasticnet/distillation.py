"""Progressive self-distillation: attention maps, their distance, and the loss between taps.

A loss has a form, which is made of three choices. What is compared, and how: the attention maps, by
their L2 distance ("norm", the ASRN paper's) or its square ("squared"), or the features themselves,
by their cosine ("cosine"). The power of |features| in a map. And which tap is the teacher of the
others: the next deeper one ("next", the paper's) or the deepest ("deepest").

The layout of features is an einops axis list: `b` is the batch, `c` the channels, and every other
axis a position. Examples are "b c h w" and "b h w c" (images), "b n c" (tokens), "b c t"
(sequences) and "b c t h w" (video).

A mask says which positions count, such as the tokens of a text without its padding. It is a tensor
(b, *positions) of bool, or of whole numbers that are not 0 where a position counts. The others are
left out of a map, of its norm and of its distance to another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from elasticnet._autocast import without_autocast
from elasticnet._modules.compare import kind_of_tensor

MAP_DISTANCES = ("norm", "squared")
"""The distances of two attention maps."""
DISTANCES = (*MAP_DISTANCES, "cosine")
"""The distances that the self-distillation takes; "cosine" is that of features without a map."""
TEACHERS = ("next", "deepest")
"""Which tap teaches a shallower one: the next deeper tap, or the deepest of all."""

MASK_REMEDY = (
    "If it is an argument of the network with another meaning, give the positions that count to "
    "the objective: objective(x, target, mask=...)"
)


def progressive_distillation(
    features: Sequence[Tensor],
    layout: str = "b c h w",
    prefix_tokens: int = 0,
    power: float = 1,
    distance: str = "norm",
    detach_teacher: bool = True,
    eps: float = 1e-4,
    mask: Tensor | None = None,
    teacher: str = "next",
) -> Tensor:
    """Return the sum over all taps but the deepest of the distance to their teacher (L_PSD).

    Args:
        features: The features of every tap, shallowest first, each with the axes of `layout`.
            Resolution may differ from tap to tap, and so may channels, except for "cosine".
        layout: What the axes of the features mean.
        prefix_tokens: How many leading positions to leave out (class and register tokens); needs a
            layout with one position axis.
        power: The power of |features| in an attention map; 1 for "cosine", which has no map.
        distance: "norm" or "squared", see `attention_distance`, or "cosine", see
            `feature_distance`.
        detach_teacher: Whether the gradient stays out of the teacher of a pair. The paper does not
            say; the default is our choice.
        eps: The smallest norm that a map is divided by; for "cosine" that of the features.
        mask: Which positions of the shallowest features count, prefix tokens included. At features
            of another resolution, a position counts if any of those that it covers does. A sample
            in which no position counts adds 0. None: all positions count.
        teacher: "next": the next deeper tap teaches, as in the paper. "deepest": the deepest tap
            teaches all others, as in "Be Your Own Teacher" (Zhang et al. 2019).

    Returns:
        A scalar in float32, or in float64 for float64 features; 0 for a single tap.

    Raises:
        TypeError: As in `attention_map`.
        ValueError: `features` is empty, or an argument is invalid, see `check_form`,
            `attention_map`, `attention_distance` and `feature_distance`.
    """
    if not features:
        raise ValueError("progressive_distillation: no features given, expected at least one tap's")
    check_form(distance, power, teacher)
    masks = _masks_of_taps(mask, features, layout, prefix_tokens)
    # What is compared at each tap: (b, *positions), or for "cosine" (b, c, *positions).
    compared: list[Tensor] = []
    for feature, feature_mask in zip(features, masks, strict=True):
        if distance == "cosine":
            compared.append(_channels_first(feature, layout, prefix_tokens))
        else:
            compared.append(attention_map(feature, layout, power, prefix_tokens, feature_mask))

    map_masks = [_without_prefix(each, prefix_tokens) for each in masks]
    deepest = len(compared) - 1
    loss = compared[0].new_zeros(())
    for student in range(deepest):
        teaching = student + 1 if teacher == "next" else deepest
        target = compared[teaching]
        if detach_teacher:
            target = target.detach()
        loss = loss + _distance(
            compared[student],
            target,
            distance,
            eps,
            student_mask=map_masks[student],
            teacher_mask=map_masks[teaching],
        )
    return loss


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
    if torch.compiler.is_compiling():  # which fuses the three
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
    distance: str = "norm",
    eps: float = 1e-4,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """Return the distance between two attention maps, each scaled to unit L2 norm.

    If the maps differ in resolution, both are average-pooled to the smaller size along each axis.
    At two identical maps the gradient is 0, and second derivatives are finite.

    Args:
        student: A map (b, *positions), in float32 or float64.
        teacher: Another map, with the same batch and number of axes.
        distance: "norm" is the L2 norm of a sample's difference (the ASRN paper's L_PSD); "squared"
            is the sum over positions of the squared difference.
        eps: The smallest norm that a map is divided by. It keeps the scaled map finite, and its
            gradient bounded, where the map is 0.
        student_mask: Which positions of the student's map count, a bool tensor of its shape. None:
            all. Pooling takes the mean over those positions of a window that count.
        teacher_mask: Which positions of the teacher's map count. The distance is taken over the
            positions that count in both maps.

    Returns:
        The mean of the samples' distances, a scalar; 0 for an empty batch. The distance of a sample
        in which no position counts is 0.

    Raises:
        ValueError: `distance` is not "norm" or "squared", `eps` is invalid, the maps differ in
            their number of axes, or a mask is no bool tensor of its map's shape.
    """
    if distance not in MAP_DISTANCES:
        raise ValueError(
            f"distance {distance!r}: expected one of {', '.join(MAP_DISTANCES)} for two maps"
        )
    check_eps(eps)
    if student.ndim != teacher.ndim:
        raise ValueError(
            f"maps of shape {tuple(student.shape)} and {tuple(teacher.shape)} differ in their axes"
        )
    _check_mask_of_map(student_mask, student)
    _check_mask_of_map(teacher_mask, teacher)
    if student.shape != teacher.shape:
        side_pairs = zip(student.shape[1:], teacher.shape[1:], strict=True)
        smaller_sides = [min(pair) for pair in side_pairs]
        student = _pool(student, smaller_sides, student_mask)  # (b, *smaller_sides)
        teacher = _pool(teacher, smaller_sides, teacher_mask)  # (b, *smaller_sides)
        student_mask = _pool_mask(student_mask, smaller_sides)
        teacher_mask = _pool_mask(teacher_mask, smaller_sides)
    for mask in (student_mask, teacher_mask):
        if mask is not None:
            student = torch.where(mask, student, 0)
            teacher = torch.where(mask, teacher, 0)
    with without_autocast(student.device):
        difference = _unit(student, eps) - _unit(teacher, eps)  # (b, number of positions)
        if distance == "squared":
            return _mean(difference.square().sum(dim=1))
        return _mean(_norm(difference))


def feature_distance(
    student: Tensor,
    teacher: Tensor,
    layout: str = "b c h w",
    prefix_tokens: int = 0,
    eps: float = 1e-4,
    mask: Tensor | None = None,
) -> Tensor:
    """Return 1 - the cosine similarity of the features of two taps, which have no map in between.

    A sample's features are one vector of all channels and positions. If the resolutions differ,
    both features are average-pooled to the smaller size along each axis. It is computed in at least
    float32, with autocast off, as half the squared distance of the vectors scaled to unit L2 norm,
    which is the same number, and 0 where both features are 0.

    Sources: features of a teacher's layers as the target are the hints of FitNets (Romero et al.
    2015); their cosine is a term of DistilBERT's loss (Sanh et al. 2019), there of each token
    alone. One vector a sample is our choice: it asks for no equality of a position's own norm.

    Args:
        student: Features with the axes of `layout`.
        teacher: Other features of the same batch and number of channels.
        layout: What the axes of the features mean.
        prefix_tokens: How many leading positions to leave out; needs a layout with one position
            axis.
        eps: The smallest norm that features are divided by.
        mask: Which positions of the student count, (b, *positions), prefix tokens included. None:
            all.

    Returns:
        The mean of the samples' distances, a scalar from 0 to 2; 0 for an empty batch. The distance
        of a sample in which no position counts is 0.

    Raises:
        TypeError: As in `attention_map`.
        ValueError: The numbers of channels differ, or an argument is invalid as in `attention_map`.
    """
    return progressive_distillation(
        [student, teacher],
        layout=layout,
        prefix_tokens=prefix_tokens,
        distance="cosine",
        detach_teacher=False,
        eps=eps,
        mask=mask,
    )


def check_form(distance: str, power: float, teacher: str) -> None:
    """Raise unless the self-distillation has this form.

    Args:
        distance: One of `DISTANCES`.
        power: The power of |features| in an attention map; 1 for "cosine".
        teacher: One of `TEACHERS`.

    Raises:
        ValueError: A word is unknown, the power is invalid, or "cosine" has a power.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance {distance!r}: expected one of {', '.join(DISTANCES)}")
    if teacher not in TEACHERS:
        raise ValueError(f"teacher {teacher!r}: expected one of {', '.join(TEACHERS)}")
    check_power(power)
    if distance == "cosine" and power != 1:
        raise ValueError(
            f"power={power} with distance 'cosine': it compares the features themselves, and a "
            f"power belongs to attention maps: leave it out, or take {' or '.join(MAP_DISTANCES)}"
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


def check_eps(eps: float) -> None:
    """Raise unless a map can be divided by this norm.

    Args:
        eps: The smallest norm that a map is divided by.

    Raises:
        ValueError: It is not above 0, or not finite.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"eps={eps}: expected a finite number above 0")


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


def _distance(
    student: Tensor,
    teacher: Tensor,
    distance: str,
    eps: float,
    student_mask: Tensor | None,
    teacher_mask: Tensor | None,
) -> Tensor:
    """Return the distance of two maps, or for "cosine" of two features (b, c, *positions)."""
    if distance == "cosine":
        return _cosine_distance(student, teacher, eps, student_mask, teacher_mask)
    return attention_distance(student, teacher, distance, eps, student_mask, teacher_mask)


def _cosine_distance(
    student: Tensor,
    teacher: Tensor,
    eps: float,
    student_mask: Tensor | None,
    teacher_mask: Tensor | None,
) -> Tensor:
    """Return `feature_distance` of features (b, c, *positions), with the masks (b, *positions)."""
    check_eps(eps)
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"features of {student.shape[1]} and {teacher.shape[1]} channels have no cosine: take "
            f"the distance {' or '.join(MAP_DISTANCES)}, whose attention maps have no channels"
        )
    if student.shape != teacher.shape:
        side_pairs = zip(student.shape[2:], teacher.shape[2:], strict=True)
        smaller_sides = [min(sides) for sides in side_pairs]
        student = _pool_channels(student, smaller_sides, student_mask)  # (b, c, *smaller_sides)
        teacher = _pool_channels(teacher, smaller_sides, teacher_mask)  # (b, c, *smaller_sides)
        student_mask = _pool_mask(student_mask, smaller_sides)
        teacher_mask = _pool_mask(teacher_mask, smaller_sides)
    for mask in (student_mask, teacher_mask):
        if mask is not None:
            student = torch.where(mask.unsqueeze(1), student, 0)
            teacher = torch.where(mask.unsqueeze(1), teacher, 0)
    with without_autocast(student.device):
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


def _mean(distances: Tensor) -> Tensor:
    """Return the mean of the samples' distances, (b,) -> (); 0 for an empty batch."""
    return distances.mean() if len(distances) else distances.sum()


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


def _unit(maps: Tensor, eps: float) -> Tensor:
    """Flatten maps to (b, number of positions), each divided by its L2 norm."""
    flat = maps.flatten(start_dim=1)
    return flat / _norm(flat).clamp_min(eps).unsqueeze(1)


def _norm(flat: Tensor) -> Tensor:
    """Return each sample's L2 norm, (b, n) -> (b,), with derivatives of 0 where it is 0.

    The gradient of `flat.square().sum(dim=1).sqrt()` at 0 would be NaN, and so would be the second
    derivative of `vector_norm`.
    """
    is_zero = _vector_norm(flat.detach()) == 0  # (b,)
    nonzero = torch.where(is_zero.unsqueeze(1), 1, flat)  # (b, n)
    return torch.where(is_zero, 0, _vector_norm(nonzero))  # (b,)


def _vector_norm(flat: Tensor) -> Tensor:
    return torch.linalg.vector_norm(flat, dim=1)  # pyright: ignore[reportUnknownVariableType]
