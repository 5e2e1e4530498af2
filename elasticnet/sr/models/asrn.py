"""ASRN, the adjustable super-resolution network, as its published parameter counts pin it down.

Source: Li et al., "Adjustable Super-Resolution Network via Deep Supervised Learning and Progressive
Self-Distillation", Neurocomputing 500, 2022. The paper prints neither code nor activations; ReLU,
kernel = stride in the deconvolutions and two of them at scale 4 are our reading of its counts.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet.sr.models.heads import SKIPS, DeconvHead, SubpixelHead, add_to
from elasticnet.sr.models.pretrained import pretrained_asrn
from elasticnet.taps import resolve_taps
from elasticnet.wrapper import ElasticWrapper

SCALES = (1, 2, 3, 4)
NUM_GROUPS = 4
BLOCKS = ("mab", "shufflenet", "res2net")
UPSAMPLERS = ("deconv", "subpixel")
INITS = ("interpolate", "default")
STEM_CHANNELS = 8
SMALL = 0.1  # what the paths that the interpolating start does not use are scaled by


class MultiScaleBlock(nn.Module):
    """ASRN's multi-scale aggregation block (MAB), (b, channels, h, w) -> the same shape; 39,168
    weights at 96 channels, no biases.

    conv1x1; split into four groups; y_1 = K_1(x_1), y_i = K_i(x_i + y_(i-1)), each K a conv3x3 and
    ReLU; concatenate; shuffle the channels across the groups; conv1x1 (fusion); add the block's
    input. `residual_links` are the y_(i-1) terms; each part can be switched off. fold: the shuffle
    becomes a permutation of the last conv's input channels.
    """

    def __init__(
        self,
        channels: int = 96,
        fusion: bool = True,
        residual_links: bool = True,
        shuffle: bool = True,
        residual: bool = True,
        fold: bool = True,
    ) -> None:
        super().__init__()
        width = channels // NUM_GROUPS
        self.expand = nn.Conv2d(channels, channels, 1, bias=False)
        self.groups = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(NUM_GROUPS)
        )
        self.fusion = nn.Conv2d(channels, channels, 1, bias=False) if fusion else None
        self.residual_links = residual_links
        self.shuffle = shuffle
        self.residual = residual
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        previous, outputs = None, []
        for conv, group in zip(self.groups, self.expand(x).chunk(NUM_GROUPS, dim=1), strict=True):
            # dense: adding to a slice of the channels takes longer, copy included
            group = group.clone()
            if previous is not None and self.residual_links:
                group += previous
            previous = F.relu(conv(group), inplace=True)
            outputs.append(previous)
        y = _concatenate(outputs)
        if self.fusion is None:
            y = F.channel_shuffle(y, NUM_GROUPS) if self.shuffle else y
        elif self.shuffle and self.fold:
            y = F.conv2d(y, _unshuffled(self.fusion.weight))
        else:
            y = self.fusion(F.channel_shuffle(y, NUM_GROUPS) if self.shuffle else y)
        return add_to(y, x) if self.residual else y

    def folded(self) -> MultiScaleBlock:
        """Return a copy whose last conv holds the shuffle, for inference and export."""
        block = copy.deepcopy(self)
        if block.fusion is not None and block.shuffle:
            block.fusion.weight = nn.Parameter(
                _unshuffled(block.fusion.weight).detach().contiguous()
            )
            block.shuffle = False
        return block

    def init_identity(self) -> None:
        """Make the block the identity: the residual path starts at zero."""
        if self.fusion is None or not self.residual:
            raise ValueError(
                "a MultiScaleBlock without fusion or without residual cannot be made the identity"
            )
        nn.init.zeros_(self.fusion.weight)

    def init_small(self) -> None:
        """Make the residual path start small beside the input."""
        if self.fusion is not None and self.residual:
            _scale(self.fusion.weight)


class ShuffleNetBlock(nn.Module):
    """A ShuffleNet unit of like size (ablation): grouped conv1x1, shuffle, depthwise conv3x3,
    grouped conv1x1, residual.
    """

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        hidden = channels * 43 // 6 // NUM_GROUPS * NUM_GROUPS  # 688 at 96 channels: 39,216 weights
        self.expand = nn.Conv2d(channels, hidden, 1, groups=NUM_GROUPS, bias=False)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.fusion = nn.Conv2d(hidden, channels, 1, groups=NUM_GROUPS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.expand(x)), NUM_GROUPS)
        return add_to(self.fusion(self.depthwise(y)), x)

    def init_identity(self) -> None:
        nn.init.zeros_(self.fusion.weight)

    def init_small(self) -> None:
        _scale(self.fusion.weight)


class Res2NetBlock(nn.Module):
    """A Res2Net unit of like size (ablation): as the MAB, but its first group passes through and
    nothing is shuffled.
    """

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        width = channels * 13 // 12 // NUM_GROUPS  # 26 at 96 channels: 38,220 weights
        self.expand = nn.Conv2d(channels, width * NUM_GROUPS, 1, bias=False)
        self.groups = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(NUM_GROUPS - 1)
        )
        self.fusion = nn.Conv2d(width * NUM_GROUPS, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = F.relu(self.expand(x)).chunk(NUM_GROUPS, dim=1)
        outputs, previous = [first], torch.zeros_like(first)
        for conv, group in zip(self.groups, rest, strict=True):
            previous = F.relu(conv(group + previous))
            outputs.append(previous)
        return add_to(self.fusion(torch.cat(outputs, dim=1)), x)

    def init_identity(self) -> None:
        nn.init.zeros_(self.fusion.weight)

    def init_small(self) -> None:
        _scale(self.fusion.weight)


class ChannelAffine(nn.Module):
    """A scale and a bias for each channel, (b, channels, h, w) -> the same shape; 2 channels
    parameters, at first the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias.to(x.dtype), x, self.weight.to(x.dtype))


def asrn(
    scale: int,
    num_blocks: int = 5,
    channels: int = 96,
    *,
    upsampler: str = "deconv",
    block: str = "mab",
    fusion: bool = True,
    residual_links: bool = True,
    shuffle: bool = True,
    residual: bool = True,
    init: str = "interpolate",
    skip: str | None = None,
    fold: bool = True,
    tap_affine: bool = False,
    taps: Iterable[int] | None = None,
    checkpoint_blocks: bool = False,
    pretrained: bool | str | None = False,
    depth: int | None = None,
) -> ElasticWrapper:
    """Build an elastic ASRN: RGB floats in 0..1, (b, 3, h, w) -> (b, 3, scale h, scale w), at any
    depth from 1 to `num_blocks`.

    scale: 2, 3 or 4 (1 for restoration at equal size). upsampler: "deconv", the published head
    (227,459 / 247,939 / 243,907 parameters at 5 blocks), or "subpixel", the paper's module A.
    block: "mab", or "shufflenet" / "res2net" for the ablation; fusion, residual_links, shuffle,
    residual: parts of the MAB to switch off. init: "interpolate" starts near an interpolator of the
    input, "default" is PyTorch's own. skip: "bicubic" adds the enlarged input to the output (no
    parameters; not in the paper). fold: run head and shuffle folded into single convs (exact up to
    rounding); False runs every layer as written. tap_affine: a scale and a bias per channel and tap
    in front of the shared head, 2 channels parameters a tap (not in the paper). taps: the depths
    that carry a prediction, default all; `(num_blocks,)` is the ordinary, single-exit network.

    pretrained: True for the weights that come with the package, or their name in
    `pretrained.NAMES`; ValueError where there are none for the scale. The file decides on the
    architecture, so that of the other arguments only depth may be given: how many blocks are loaded
    (default all). The net comes in eval mode.
    """
    given = dict(locals())
    if pretrained:
        return pretrained_asrn(**_not_default(given))
    if depth is not None:
        raise ValueError(
            f"depth {depth}: only with pretrained=True; a net that is built runs at any depth by net(x, depth={depth})"
        )
    for name, value, valid in (
        ("scale", scale, SCALES),
        ("upsampler", upsampler, UPSAMPLERS),
        ("block", block, BLOCKS),
        ("init", init, INITS),
        ("skip", skip, SKIPS),
    ):
        if value not in valid or isinstance(value, float):
            raise ValueError(f"{name} {value!r}: expected one of {', '.join(map(str, valid))}")
    if channels % NUM_GROUPS or channels < STEM_CHANNELS:
        raise ValueError(
            f"channels {channels}: expected a multiple of {NUM_GROUPS}, at least {STEM_CHANNELS}"
        )
    switches = {
        "fusion": fusion,
        "residual_links": residual_links,
        "shuffle": shuffle,
        "residual": residual,
    }
    if block != "mab" and not all(switches.values()):
        raise ValueError(
            f"block {block!r}: the switches {', '.join(switches)} belong to block 'mab'"
        )

    if block == "mab":
        blocks = [MultiScaleBlock(channels, **switches, fold=fold) for _ in range(num_blocks)]
    else:
        blocks = [
            {"shufflenet": ShuffleNetBlock, "res2net": Res2NetBlock}[block](channels)
            for _ in range(num_blocks)
        ]
    stem = nn.Sequential(
        nn.Conv2d(3, STEM_CHANNELS, 3, padding=1), nn.Conv2d(STEM_CHANNELS, channels, 3, padding=1)
    )
    if upsampler == "deconv":
        head = DeconvHead(channels, scale, fold=fold, skip=skip)
    else:
        head = SubpixelHead(channels, scale, skip=skip)
    if init == "interpolate":
        init_interpolating(stem, blocks, head)
    depths = resolve_taps(taps, num_blocks)
    affines = {depth: ChannelAffine(channels) for depth in depths} if tap_affine else None
    head_skip = "input" if skip else None
    net = ElasticWrapper(
        blocks, head, stem, depths, affines, head_skip, checkpoint_blocks=checkpoint_blocks
    )
    arguments = {
        "scale": scale,
        "num_blocks": num_blocks,
        "channels": channels,
        "upsampler": upsampler,
        "block": block,
    }
    arguments |= {**switches, "skip": skip, "fold": fold}
    # older files do not have it
    net.origin = ("asrn", arguments | {"tap_affine": True} if tap_affine else arguments)
    return net


def _not_default(arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(asrn).parameters
    return {name: value for name, value in arguments.items() if value != parameters[name].default}


@torch.no_grad()
def init_interpolating(
    stem: nn.Sequential, blocks: Iterable[nn.Module], head: DeconvHead | SubpixelHead
) -> None:
    """Make the network start near an interpolator of its input; every other path starts small or at
    PyTorch's default.

    Stem and head are linear and the blocks residual. The stem's eight inner channels carry R, G, B
    and five central differences of the luma (x, y, xx, yy, xy), unchanged through stem and blocks;
    each deconvolution then evaluates their second-order Taylor polynomial at the centres of its
    sub-pixels, so that two in a row compose exactly. With a bicubic skip the output takes nothing
    of them at first; that they are there spares the training a plateau.
    """
    for block in blocks:
        block.init_small()  # pyright: ignore[reportCallIssue]
    first, second = (layer for layer in stem if isinstance(layer, nn.Conv2d))
    _zero(first.bias)
    first.weight.copy_(_taylor_filters())
    second.weight[:STEM_CHANNELS] = 0
    second.weight[range(STEM_CHANNELS), range(STEM_CHANNELS), 1, 1] = 1
    _zero(second.bias)

    carried = slice(None, STEM_CHANNELS)
    if isinstance(head, DeconvHead):
        head.reduce.weight[carried] = 0
        head.reduce.weight[range(STEM_CHANNELS), range(STEM_CHANNELS)] = 1
        _zero(head.reduce.bias)
        pixel = 1.0
        for deconv in head.deconv_layers():  # weight: (in, out, row, column)
            step = deconv.kernel_size[0]
            deconv.weight[:, carried] = 0
            deconv.weight[carried, carried] = _taylor_shifts(step, pixel).permute(3, 2, 0, 1)
            _zero(deconv.bias)
            pixel /= step
    else:  # weight: (out row column, in, 3, 3)
        size = head.scale
        expand = head.expand.weight.unflatten(0, (-1, size, size))
        expand[carried] = 0
        expand[carried, :, :, carried, 1, 1] = _taylor_shifts(size, 1.0).permute(2, 0, 1, 3)
        _zero(head.expand.bias)
    _scale(head.output.weight)
    head.output.weight[:, :STEM_CHANNELS] = 0
    if head.skip is None:
        head.output.weight[range(3), range(3), 1, 1] = 1
    _zero(head.output.bias)


def _taylor_filters() -> Tensor:
    """(8, 3, 3, 3): R, G, B, and the luma's differences x, y, xx, yy, xy, one unit being one LR
    pixel.
    """
    identity, difference, second = torch.tensor([[0, 1, 0], [-0.5, 0, 0.5], [1, -2, 1]])
    luma = torch.tensor([65.481, 128.553, 24.966]) / 219
    filters = torch.zeros(STEM_CHANNELS, 3, 3, 3)
    filters[range(3), range(3)] = torch.outer(identity, identity)
    pairs = (
        (identity, difference),
        (difference, identity),
        (identity, second),
        (second, identity),
        (difference, difference),
    )
    for index, (vertical, horizontal) in enumerate(pairs, start=3):
        filters[index] = luma[:, None, None] * torch.outer(vertical, horizontal)
    return filters


def _taylor_shifts(step: int, pixel: float) -> Tensor:
    """(step, step, 8, 8): the matrix that moves the carried channels to each sub-pixel's centre.

    `pixel` is the side of the pixel before, in LR pixels.
    """
    shifts = torch.eye(STEM_CHANNELS).repeat(step, step, 1, 1)
    offsets = [pixel * ((i + 0.5) / step - 0.5) for i in range(step)]
    for row, dy in enumerate(offsets):
        for column, dx in enumerate(offsets):
            matrix = shifts[row, column]
            matrix[:3, 3:] = torch.tensor([dx, dy, dx * dx / 2, dy * dy / 2, dx * dy])
            matrix[3, [5, 7]] = torch.tensor([dx, dy])
            matrix[4, [6, 7]] = torch.tensor([dy, dx])
    return shifts


class _DenseConcatenation(torch.autograd.Function):
    """Concatenation of NUM_GROUPS tensors along the channels, whose gradients are dense instead of
    slices.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*groups: Tensor) -> Tensor:
        return torch.cat(groups, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Nothing of the forward is needed."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(part.clone() for part in gradient.chunk(NUM_GROUPS, dim=1))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return torch.cat(tangents, dim=1)


def _concatenate(groups: list[Tensor]) -> Tensor:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # what follows in the backward pass, the ReLU's and a sum, is slow on slices
        return _DenseConcatenation.apply(*groups)  # pyright: ignore[reportReturnType]
    return torch.cat(groups, dim=1)


def _unshuffled(weight: Tensor) -> Tensor:
    """The 1x1 weight (out, in, 1, 1) that takes unshuffled channels: channel_shuffle moved into its
    input axis.
    """
    return weight.unflatten(1, (-1, NUM_GROUPS)).transpose(1, 2).flatten(1, 2)


@torch.no_grad()
def _zero(weight: Tensor | None) -> None:
    if weight is not None:
        weight.zero_()


@torch.no_grad()
def _scale(weight: Tensor) -> None:
    weight.mul_(SMALL)
