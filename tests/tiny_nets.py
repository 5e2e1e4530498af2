"""Tiny networks for the tests: a block of every kind in every layout, and random networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet import Distillation, ElasticWrapper
from elasticnet.distillation import Teacher
from elasticnet.distillation_losses import Comparison
from elasticnet.loss_weights import Weight

LAYOUTS = ("b c h w", "b h w c", "b n c", "b c t", "b c t h w")
KINDS = ("conv", "residual", "attention", "mlp", "tuple")


class TinyBlock(nn.Module):
    """One block of any kind in any layout, smooth, so that no gradient is zero by chance."""

    def __init__(
        self,
        kind: str,
        layout: str,
        channels: int,
        channels_out: int | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        channels_out = channels_out or channels
        num_positions = len(layout.split()) - 2
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[num_positions]
        size = 1 if kind in ("mlp", "attention") else 3
        self.kind = kind
        self.axis = layout.split().index("c")
        self.first = conv(channels, channels_out, size, stride, size // 2)
        self.mix = nn.Linear(channels_out, 3 * channels_out) if kind == "attention" else None
        self.last = conv(channels_out, channels_out, size, 1, size // 2)

    def forward(self, x: Tensor) -> Any:
        x = x.movedim(self.axis, 1)  # (b, c, *positions)
        y = self.first(x)
        if self.mix is not None:
            query, key, value = self.mix(y.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
            weights = (query @ key.transpose(1, 2)).softmax(-1)
            y = (weights @ value).transpose(1, 2).reshape(y.shape)
        y = self.last(torch.tanh(y))
        if self.kind in ("residual", "attention") and x.shape == y.shape:
            y = x + y
        y = y.movedim(1, self.axis)
        return (y, y.mean()) if self.kind == "tuple" else y

    def init_identity(self) -> None:
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)


class TinyHead(nn.Module):
    """A linear head on every position; adds what head_skip hands it."""

    def __init__(self, layout: str, channels: int, channels_out: int = 3) -> None:
        super().__init__()
        self.axis = layout.split().index("c")
        self.linear = nn.Linear(channels, channels_out)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.linear(x.movedim(self.axis, -1)).movedim(-1, self.axis)
        return y if skip is None else y + skip


class TogetherHead(nn.Module):
    """A TinyHead for all taps in one call: the weight of the pass is made once."""

    takes_all_taps = True

    def __init__(self, layout: str, channels: int, channels_out: int = 3) -> None:
        super().__init__()
        self.axis = layout.split().index("c")
        self.linear = nn.Linear(channels, channels_out)

    def forward(self, x: tuple[Tensor, ...], skip: Tensor | None = None) -> tuple[Tensor, ...]:
        weight = self.linear.weight * 1
        predictions: list[Tensor] = []
        for features in x:
            channels_last = features.movedim(self.axis, -1)
            y = nn.functional.linear(channels_last, weight, self.linear.bias)
            y = y.movedim(-1, self.axis)
            predictions.append(y if skip is None else y + skip)
        return tuple(predictions)


class GainStem(nn.Module):
    """A stem that hands a context to the blocks: (x, gains)."""

    def __init__(self, stem: nn.Module, num_blocks: int) -> None:
        super().__init__()
        self.stem = stem
        self.gains = nn.Parameter(torch.linspace(0.5, 1.5, num_blocks))

    def forward(self, x: Tensor, gain: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        return self.stem(x), {"gains": self.gains * gain}


def call_with_gain(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
    """A call_block that uses the block's index and changes the context on the way."""
    y = block(x)
    y = y[0] if isinstance(y, tuple) else y
    return y * context["gains"][index], {"gains": context["gains"] * 0.9}


class Case(NamedTuple):
    """A network, an input for it and the keyword arguments of the call."""

    net: ElasticWrapper
    x: Tensor
    keywords: dict[str, Any]


class Shape(NamedTuple):
    """The widths in front of and behind each block, and the stride of each block."""

    widths: list[int]
    strides: list[int]


@st.composite
def uneven_shapes(draw: st.DrawFn, num_blocks: int) -> Shape:
    """Blocks that change the number of channels and the resolution."""
    num_widths = num_blocks + 1
    widths = draw(st.lists(st.integers(1, 4), min_size=num_widths, max_size=num_widths))
    stride = st.sampled_from([1, 2])
    strides = draw(st.lists(stride, min_size=num_blocks, max_size=num_blocks))
    return Shape(widths, strides)


@st.composite
def even_shapes(draw: st.DrawFn, num_blocks: int) -> Shape:
    """Blocks whose output has the shape of their input."""
    width = draw(st.integers(1, 4), "width")
    return Shape(widths=[width] * (num_blocks + 1), strides=[1] * num_blocks)


def adapters_to_the_deepest(shape: Shape, taps: Sequence[int], layout: str) -> dict[int, nn.Module]:
    """Return an adapter for every tap whose features have another shape than the deepest's."""
    adapters: dict[int, nn.Module] = {}
    for tap in taps:
        ratio = 2 ** shape.strides[tap:].count(2)
        if shape.widths[tap] != shape.widths[-1] or ratio > 1:
            adapters[tap] = TinyBlock("mlp", layout, shape.widths[tap], shape.widths[-1], ratio)
    return adapters


@st.composite
def tiny_cases(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
) -> Case:
    """Networks of random blocks, widths, layouts, dtypes, taps, adapters, skips and stems.

    Some have a context that a stem hands to the blocks. All are in eval mode.
    """
    layout = draw(st.sampled_from(LAYOUTS), "layout")
    num_blocks = draw(st.integers(1, 4), "num_blocks")
    kind = st.sampled_from(KINDS)
    kinds = draw(st.lists(kind, min_size=num_blocks, max_size=num_blocks), "kinds")
    taps = sorted({*draw(st.sets(st.integers(1, num_blocks)), "taps"), num_blocks})
    head_skip = draw(st.sampled_from([None, "stem", "input"]), "head_skip")
    # A skip is added to the head's output, which fits it only if no block changes the shape.
    uneven = head_skip is None and draw(st.booleans(), "uneven")
    shapes = uneven_shapes if uneven else even_shapes
    shape = draw(shapes(num_blocks), "shape")
    width_in, width_out = shape.widths[0], shape.widths[-1]
    contextual = draw(st.booleans(), "contextual")
    with_stem = contextual or draw(st.booleans(), "with_stem")
    channels_in = draw(st.integers(1, 4), "channels_in") if with_stem else width_in
    has_prefix = layout in ("b n c", "b c t") and not uneven
    prefix_tokens = draw(st.integers(0, 2), "prefix_tokens") if has_prefix else 0
    torch.manual_seed(draw(st.integers(0, 9), "seed"))

    widths = zip(shape.widths[:-1], shape.widths[1:], strict=True)
    blocks = [
        TinyBlock(kind, layout, channels, channels_out, stride)
        for kind, (channels, channels_out), stride in zip(kinds, widths, shape.strides, strict=True)
    ]
    stem: nn.Module | None = None
    if with_stem:
        stem = TinyBlock("mlp", layout, channels_in, width_in)
    if contextual and stem is not None:
        stem = GainStem(stem, num_blocks)
    head_type = draw(st.sampled_from([TinyHead, TogetherHead]), "head")
    channels_out = {"stem": width_in, "input": channels_in, None: 3}[head_skip]
    net = ElasticWrapper(
        blocks,
        head_type(layout, width_out, channels_out),
        stem,
        taps=taps,
        adapters=adapters_to_the_deepest(shape, taps, layout),
        head_skip=head_skip,
        layout=layout,
        prefix_tokens=prefix_tokens,
        call_block=call_with_gain if contextual else None,
    )

    dtype = draw(st.sampled_from(dtypes), "dtype")
    sizes = {"b": draw(st.integers(1, 3), "batch"), "c": channels_in}
    side = st.integers(3, 5)
    lengths = [sizes[axis] if axis in sizes else draw(side, axis) for axis in layout.split()]
    x = torch.randn(lengths, dtype=dtype)
    keywords: dict[str, Any] = {}
    if contextual and draw(st.booleans(), "keyword"):
        keywords["gain"] = 0.75
    return Case(net.to(dtype).eval(), x, keywords)


def conv_blocks(num_blocks: int, channels: int = 4) -> list[nn.Module]:
    """Return residual blocks on images, each with init_identity()."""
    return [TinyBlock("residual", "b c h w", channels) for _ in range(num_blocks)]


def of_outputs(
    weight: Weight, compare: Comparison = F.l1_loss, teacher: Teacher = "deepest"
) -> Distillation:
    """A distillation of predictions, from the deepest unless there is another teacher."""
    return Distillation(of="predictions", compare=compare, teacher=teacher, weight=weight)


def conv_net(num_blocks: int = 3, channels: int = 4, **options: Any) -> ElasticWrapper:
    """Return a small image network with 2 output channels, (b, channels, h, w) -> (b, 2, h, w)."""
    return ElasticWrapper(
        conv_blocks(num_blocks, channels), TinyHead("b c h w", channels, 2), **options
    )


class RotaryBlock(nn.Module):
    """A pre-norm transformer block that takes a mask and a rotary embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.last = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = self.mix(self.norm(x)).chunk(3, dim=-1)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        scores = (query @ key.transpose(1, 2)).masked_fill(~mask[:, None, :], float("-inf"))
        return x + self.dropout(self.last(scores.softmax(-1) @ value))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_embedding(length: int, width: int, base: float) -> tuple[Tensor, Tensor]:
    angles = torch.arange(length)[:, None] / base ** torch.linspace(0, 1, width // 2)
    return angles.cos(), angles.sin()


class TokenStem(nn.Module):
    """Embeds tokens; its context is a mask and a rotary embedding for each block."""

    def __init__(self, width: int, bases: tuple[float, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.bases = bases

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        x = self.embedding(tokens)
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        rotary = [
            [part.to(x) for part in rotary_embedding(x.shape[1], x.shape[2], base)]
            for base in self.bases
        ]
        return x, {"mask": mask, "rotary": rotary}


def call_rotary(
    block: nn.Module, x: Tensor, context: dict[str, Any], index: int
) -> tuple[Tensor, dict[str, Any]]:
    return block(x, mask=context["mask"], rotary=context["rotary"][index]), context


BASES = (10.0, 100.0, 1000.0)
TOKENS = torch.tensor([[1, 5, 3, 0], [7, 2, 9, 4]])
MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])


def rotary_net(**options: Any) -> ElasticWrapper:
    """Return a transformer of three blocks: tokens below 11, (b, n), and `mask=`, -> (b, n, 11)."""
    blocks = [RotaryBlock(6) for _ in BASES]
    stem = TokenStem(6, BASES)
    return ElasticWrapper(
        blocks, nn.Linear(6, 11), stem, layout="b n c", call_block=call_rotary, **options
    )
