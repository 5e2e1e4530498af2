"""Attention maps and their distance: what progressive self-distillation compares.

The layout of features is an einops axis list such as "b c h w" (images), "b h w c", "b n c"
(tokens), "b c t" (sequences) or "b c t h w" (video): `b` is the batch, `c` the channels, every
other axis a position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

DISTANCES = ("norm", "squared")


def position_axes(layout: str) -> list[str]:
    """Return the position axes of `layout`, in order; ValueError unless it names `b`, `c` and one
    to three more.
    """
    axes = layout.split()
    positions = [axis for axis in axes if axis not in ("b", "c")]
    if (
        sorted(axes) != sorted({*axes})
        or not {"b", "c"} <= {*axes}
        or not 1 <= len(positions) <= 3
        or not all(axis.isidentifier() for axis in axes)
    ):
        raise ValueError(
            f"layout {layout!r}: expected an axis list with b (batch), c (channels) and one to three positions, "
            'for example "b c h w", "b h w c", "b n c", "b c t" or "b c t h w"'
        )
    return positions


def attention_map(
    features: Tensor, layout: str = "b c h w", power: float = 1, prefix_tokens: int = 0
) -> Tensor:
    """Return the sum over channels of |features|^power: one number for every position.

    features: a float tensor of `layout`. Returns (b, *positions) in float32, or float64 for float64
    features: in float16 the map's norm overflows near activations of 300 and vanishes near 1e-4.
    `prefix_tokens` leading positions (class and register tokens) are left out; that needs a layout
    with one position axis. Source: Zagoruyko and Komodakis, "Paying More Attention to Attention",
    F_sum^p; ASRN, eq. of Q.
    """
    positions = position_axes(layout)
    if features.ndim != len(layout.split()):
        raise ValueError(
            f"features of shape {tuple(features.shape)} do not have the axes of layout {layout!r}"
        )
    if prefix_tokens and len(positions) != 1:
        raise ValueError(
            f"prefix_tokens={prefix_tokens} needs a layout with one position axis, not {layout!r}"
        )
    with torch.autocast(features.device.type, enabled=False):
        dtype = torch.promote_types(features.dtype, torch.float32)
        channel_axis = layout.split().index("c")
        magnitude = features.to(dtype).abs()
        summed = (magnitude if power == 1 else magnitude.pow(power)).sum(channel_axis)
        rest = " ".join(axis for axis in layout.split() if axis != "c")
        summed = rearrange(summed, f"{rest} -> b {' '.join(positions)}")
    return summed[:, prefix_tokens:] if prefix_tokens else summed


def attention_distance(
    student: Tensor, teacher: Tensor, distance: str = "norm", eps: float = 1e-4
) -> Tensor:
    """Return the distance between two attention maps, each scaled to unit L2 norm, as a mean over
    the batch.

    student, teacher: (b, *positions) float32 or float64; where they differ in resolution, each axis
    is average-pooled to the smaller one. "norm" is the L2 norm of the difference, per sample (the
    ASRN paper's L_PSD); "squared" is the sum over positions of the squared difference. A map whose
    norm is below `eps` is divided by `eps` instead, which keeps a zero map finite and its gradient
    bounded. The gradient at two identical maps is 0.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance {distance!r}: expected one of {', '.join(DISTANCES)}")
    if student.ndim != teacher.ndim:
        raise ValueError(
            f"maps of shape {tuple(student.shape)} and {tuple(teacher.shape)} differ in their axes"
        )
    if student.shape != teacher.shape:
        size = [min(pair) for pair in zip(student.shape[1:], teacher.shape[1:], strict=True)]
        student, teacher = _pool(student, size), _pool(teacher, size)
    with torch.autocast(student.device.type, enabled=False):
        difference = _unit(student, eps) - _unit(teacher, eps)
        if distance == "squared":
            return difference.square().sum(1).mean()
        return torch.linalg.vector_norm(difference, dim=1).mean()


def _pool(maps: Tensor, size: list[int]) -> Tensor:
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    return pool(maps.unsqueeze(1), size).squeeze(1)  # pyright: ignore[reportArgumentType]


def _unit(maps: Tensor, eps: float) -> Tensor:
    flat = maps.flatten(1)
    return flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(eps)
