"""ASRN, the adjustable super-resolution network, as its published parameter counts pin it down.

Source: Li et al., "Adjustable Super-Resolution Network via Deep Supervised Learning and Progressive
Self-Distillation" (Neurocomputing 500, 2022; source in docs/asrn.md). The paper prints neither code
nor activations; ReLU, kernel = stride in the deconvolutions and two of them at scale 4 are our
reading of its counts.

Stem: conv3x3 3 -> 8, conv3x3 8 -> channels. Body: the blocks of `asrn_blocks`. Shared head: those
of `heads`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from elasticnet.sr.models.asrn_blocks import (
    NUM_GROUPS,
    ChannelAffine,
    MultiScaleBlock,
    Res2NetBlock,
    ShuffleNetBlock,
    identity_conv,
)
from elasticnet.sr.models.asrn_start import STEM_CHANNELS, init_interpolating
from elasticnet.sr.models.heads import SKIPS, DeconvHead, SubpixelHead
from elasticnet.sr.models.pretrained import DEFAULT_NAME, load_pretrained
from elasticnet.taps import resolve_taps
from elasticnet.wrapper import ElasticWrapper, Origin

SCALES = (1, 2, 3, 4)
BLOCKS = ("mab", "shufflenet", "res2net")
UPSAMPLERS = ("deconv", "subpixel")
INITS = ("interpolate", "default")
ON_OFF_ARGUMENTS = (
    "fusion",
    "residual_links",
    "shuffle",
    "residual",
    "fold",
    "tap_affine",
    "tap_fusion",
    "checkpoint_blocks",
)

Block = MultiScaleBlock | ShuffleNetBlock | Res2NetBlock
Head = DeconvHead | SubpixelHead


@dataclass(frozen=True)
class AsrnDesign:
    """The arguments of `asrn` that say which network is built; they are described there.

    Attributes:
        scale: How many times as long each side becomes.
        num_blocks: The number of blocks.
        channels: Of the features.
        upsampler: "deconv" or "subpixel".
        block: "mab", "shufflenet" or "res2net".
        fusion: Whether the MAB has its last conv1x1.
        residual_links: Whether the MAB has the links between its groups.
        shuffle: Whether the MAB shuffles its channels.
        residual: Whether the MAB adds its input to its output.
        init: "interpolate" or "default".
        skip: None or "bicubic".
        fold: Whether head and shuffle run folded.
        tap_affine: Whether there is an affine map before the head.
        tap_fusion: Whether there is a conv1x1 of each tap's own before the head.
        taps: The depths that carry a prediction; None is all.
        checkpoint_blocks: Whether blocks are computed again in the backward pass.
    """

    scale: int
    num_blocks: int = 5
    channels: int = 96
    upsampler: str = "deconv"
    block: str = "mab"
    fusion: bool = True
    residual_links: bool = True
    shuffle: bool = True
    residual: bool = True
    init: str = "interpolate"
    skip: str | None = None
    fold: bool = True
    tap_affine: bool = False
    tap_fusion: bool = False
    taps: Iterable[int] | None = None
    checkpoint_blocks: bool = False

    def changed(self) -> dict[str, Any]:
        """Return the arguments that are not the default ones, without the scale."""
        default = AsrnDesign(self.scale)
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != getattr(default, field.name):
                values[field.name] = value
        return values


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
    tap_fusion: bool = False,
    taps: Iterable[int] | None = None,
    checkpoint_blocks: bool = False,
    pretrained: bool | str | None = False,
    depth: int | None = None,
) -> ElasticWrapper:
    """Build an elastic ASRN, or load one that comes with the package.

    It takes RGB floats (b, 3, h, w) in 0..1 and gives (b, 3, scale h, scale w), at any depth from
    1 to `num_blocks`.

    Args:
        scale: 2, 3 or 4; 1 is for restoration at equal size.
        num_blocks: The number of blocks; each is a depth.
        channels: Of the features; a multiple of 4, at least 8.
        upsampler: "deconv", the published head (227,459 / 247,939 / 243,907 parameters at x2 / x3 /
            x4 with 5 blocks), or "subpixel", the paper's module A.
        block: "mab", the published block, or "shufflenet" or "res2net", those that the paper
            compares it with (Fig. 12).
        fusion: False leaves the MAB's last conv1x1 out. This switch and the next three are those of
            the paper's ablation (Table 3); they belong to block "mab".
        residual_links: False leaves the links between the MAB's groups out.
        shuffle: False leaves the MAB's channel shuffle out.
        residual: False leaves the MAB's skip out.
        init: "interpolate" starts near an interpolator of the input, "default" is PyTorch's own.
        skip: "bicubic" adds the enlarged input to the output: no parameters; not in the paper.
        fold: Run head and shuffle folded into single convs, exact up to rounding; False runs every
            layer as written.
        tap_affine: A scale and a bias per channel and tap in front of the shared head, 2 channels
            parameters a tap; not in the paper.
        tap_fusion: A conv1x1 of each tap's own in front of the shared head, at first the identity:
            channels * channels parameters a tap, 9,216 at 96; not in the paper.
        taps: The depths that carry a prediction, default all; `(num_blocks,)` is the ordinary
            network with a single tap.
        checkpoint_blocks: Compute the blocks again in the backward pass instead of keeping their
            insides: less memory, more time.
        pretrained: True loads the weights that come with the package, a string those of this name
            in `pretrained.NAMES`. The file decides on the architecture, so that of the other
            arguments only `depth` may be given.
        depth: With pretrained weights: how many blocks are loaded; default all.

    Returns:
        The network; in eval mode where it is pretrained.

    Raises:
        ValueError: An argument out of range, or one that does not fit the others; no weights are
            packaged for the scale.

    Example:
        >>> net = asrn(scale=2, num_blocks=3)
        >>> net(torch.rand(1, 3, 20, 30), depth=1).shape
        torch.Size([1, 3, 40, 60])
    """
    design = AsrnDesign(
        scale=scale,
        num_blocks=num_blocks,
        channels=channels,
        upsampler=upsampler,
        block=block,
        fusion=fusion,
        residual_links=residual_links,
        shuffle=shuffle,
        residual=residual,
        init=init,
        skip=skip,
        fold=fold,
        tap_affine=tap_affine,
        tap_fusion=tap_fusion,
        taps=taps,
        checkpoint_blocks=checkpoint_blocks,
    )
    if pretrained:
        _refuse_changes(design, pretrained)
        name = pretrained if isinstance(pretrained, str) else DEFAULT_NAME
        return load_pretrained(scale, name=name, depth=depth)
    if depth is not None:
        raise ValueError(
            f"depth {depth}: only with pretrained=True; a net that is built runs at any depth by "
            f"net(x, depth={depth})"
        )
    _check(design)
    return _build(design)


def _refuse_changes(design: AsrnDesign, pretrained: bool | str) -> None:
    """Refuse arguments that the file of packaged weights decides."""
    changed = design.changed()
    if changed:
        named = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        raise ValueError(
            f"asrn(pretrained={pretrained!r}, {named}): leave out what the file decides on"
        )


def _check(design: AsrnDesign) -> None:
    _check_choice("scale", design.scale, SCALES)
    _check_choice("upsampler", design.upsampler, UPSAMPLERS)
    _check_choice("block", design.block, BLOCKS)
    _check_choice("init", design.init, INITS)
    _check_choice("skip", design.skip, SKIPS)
    for name in ON_OFF_ARGUMENTS:
        _check_on_off(name, getattr(design, name))
    if design.channels % NUM_GROUPS or design.channels < STEM_CHANNELS:
        raise ValueError(
            f"channels {design.channels}: expected a multiple of {NUM_GROUPS}, at least "
            f"{STEM_CHANNELS}"
        )
    if design.tap_affine and design.tap_fusion:
        raise ValueError("tap_affine with tap_fusion: a tap has one adapter; give one of the two")
    switched_off = [name for name, is_on in _switches(design).items() if not is_on]
    if design.block != "mab" and switched_off:
        named = ", ".join(f"{name}=False" for name in switched_off)
        raise ValueError(
            f"block {design.block!r} with {named}: only block 'mab' has parts to leave out"
        )


def _check_choice(name: str, value: Any, valid: tuple[Any, ...]) -> None:
    # 2.0 == 2, but layers take no floats
    if value not in valid or isinstance(value, float):
        raise ValueError(
            f"{name} {value!r}: expected one of {', '.join(str(each) for each in valid)}"
        )


def _check_on_off(name: str, value: Any) -> None:
    # any string would count as True: a file might say "no"
    if not isinstance(value, bool):
        raise ValueError(f"{name} {value!r}: expected True or False")


def _build(design: AsrnDesign) -> ElasticWrapper:
    # the order of these three decides which random numbers each layer draws
    blocks = _build_blocks(design)
    stem = nn.Sequential(
        nn.Conv2d(3, STEM_CHANNELS, 3, padding=1),
        nn.Conv2d(STEM_CHANNELS, design.channels, 3, padding=1),
    )
    head = _build_head(design)
    if design.init == "interpolate":
        init_interpolating(stem, blocks, head)

    taps = resolve_taps(design.taps, design.num_blocks)
    net = ElasticWrapper(
        blocks,
        head,
        stem=stem,
        taps=taps,
        adapters=_build_adapters(design, taps),
        head_skip=None if design.skip is None else "input",
        checkpoint_blocks=design.checkpoint_blocks,
    )
    net.origin = Origin("asrn", _recorded(design))
    return net


def _build_adapters(design: AsrnDesign, taps: Iterable[int]) -> dict[int, nn.Module]:
    """What each tap has of its own in front of the shared head; at first the identity."""
    adapters: dict[int, nn.Module] = {}
    for tap in taps:
        if design.tap_affine:
            adapters[tap] = ChannelAffine(design.channels)
        if design.tap_fusion:
            adapters[tap] = identity_conv(design.channels)
    return adapters


def _build_blocks(design: AsrnDesign) -> list[Block]:
    blocks: list[Block] = []
    for _ in range(design.num_blocks):
        if design.block == "mab":
            switches = _switches(design)
            blocks.append(MultiScaleBlock(design.channels, **switches, fold=design.fold))
        elif design.block == "shufflenet":
            blocks.append(ShuffleNetBlock(design.channels))
        else:
            blocks.append(Res2NetBlock(design.channels))
    return blocks


def _build_head(design: AsrnDesign) -> Head:
    if design.upsampler == "deconv":
        return DeconvHead(design.channels, design.scale, fold=design.fold, skip=design.skip)
    return SubpixelHead(design.channels, design.scale, skip=design.skip)


def _switches(design: AsrnDesign) -> dict[str, bool]:
    """The parts of the MAB that can be left out."""
    return {
        "fusion": design.fusion,
        "residual_links": design.residual_links,
        "shuffle": design.shuffle,
        "residual": design.residual,
    }


def _recorded(design: AsrnDesign) -> dict[str, Any]:
    """The arguments that a file stores; how the weights began is not among them."""
    arguments = {
        "scale": design.scale,
        "num_blocks": design.num_blocks,
        "channels": design.channels,
        "upsampler": design.upsampler,
        "block": design.block,
        **_switches(design),
        "skip": design.skip,
        "fold": design.fold,
    }
    if design.tap_affine:
        arguments["tap_affine"] = True  # files of networks without it do not name it
    if design.tap_fusion:
        arguments["tap_fusion"] = True
    return arguments
