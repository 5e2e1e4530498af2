"""EDSR, and the frame that it shares with RCAN: mean shift, stem, blocks, conv and global skip,
upsampler.

Source: "Enhanced Deep Residual Networks for Single Image Super-Resolution". The plain module `EDSR`
has the authors' keys and their range 0..255; `edsr` is the elastic network around the same parts,
with the range 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet.wrapper import ElasticWrapper, evaluating

STEPS = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # the upsampler's factors at each scale
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, on the scale 0..1
RANGE = 255.0
# LR pixels at the border whose output depends on the padding between the tail's convolutions
RING = 1
REACH = 2  # LR pixels that the tail sees to each side, at every scale


class MeanShift(nn.Conv2d):
    """A 1x1 convolution that starts as an addition of sign * 255 * RGB_MEAN; (b, 3, h, w) -> the
    same shape.

    trained: whether its parameters learn. EDSR's are fixed; those in RCAN's checkpoints were
    trained.
    """

    def __init__(self, sign: int, trained: bool = False) -> None:
        super().__init__(3, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3)[:, :, None, None])
            self.bias.copy_(sign * RANGE * torch.tensor(RGB_MEAN))  # pyright: ignore[reportOptionalMemberAccess]
        self.requires_grad_(trained)


class ResidualBlock(nn.Module):
    """EDSR's block, x + res_scale * conv(relu(conv(x))); (b, channels, h, w) -> the same shape."""

    def __init__(self, channels: int, res_scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels)
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.res_scale + x

    def init_identity(self) -> None:
        """Make the block the identity: the residual path starts at zero."""
        zero(self.body[2])


class GlobalSkipNetwork(nn.Module):
    """The authors' plain frame around `blocks`: RGB in 0..255, (b, 3, h, w) -> (b, 3, scale h,
    scale w), their keys.

    sub_mean; head.0, a conv; body: the blocks and one more conv; + the output of head; tail.0, the
    upsampler; tail.1, a conv; add_mean. `arguments` are those that build the network again.
    """

    def __init__(
        self, scale: int, channels: int, blocks: Iterable[nn.Module], trained_shift: bool
    ) -> None:
        super().__init__()
        if scale not in STEPS or isinstance(scale, float):
            raise ValueError(f"scale {scale!r}: expected one of {', '.join(map(str, STEPS))}")
        self.sub_mean = MeanShift(-1, trained_shift)
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(*blocks, conv3x3(channels, channels))
        upsampler = nn.Sequential()
        for step in STEPS[scale]:
            upsampler.extend([conv3x3(channels, channels * step**2), nn.PixelShuffle(step)])
        self.tail = nn.Sequential(upsampler, conv3x3(channels, 3))
        self.add_mean = MeanShift(1, trained_shift)
        self.arguments: dict[str, int | float] = {"scale": scale, "num_blocks": len(self.body) - 1}
        self.arguments["channels"] = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(x) + x))


class EDSR(GlobalSkipNetwork):
    """The plain EDSR: RGB in 0..255, (b, 3, h, w) -> (b, 3, scale h, scale w), with the authors'
    state dict keys.

    The default is the baseline (1,369,883 / 1,554,523 / 1,517,595 parameters at x2 / x3 / x4);
    num_blocks=32, channels=256 is the full size (40,729,627 / 43,680,027 / 43,089,947). res_scale:
    what each block's residual is multiplied by; None means the authors' choice, 0.1 at the full
    size and 1 elsewhere. It is not in the state dict.
    """

    def __init__(
        self, scale: int, num_blocks: int = 16, channels: int = 64, res_scale: float | None = None
    ) -> None:
        if res_scale is None:
            res_scale = 0.1 if (num_blocks, channels) == (32, 256) else 1.0
        blocks = [ResidualBlock(channels, res_scale) for _ in range(num_blocks)]
        super().__init__(scale, channels, blocks, trained_shift=False)
        self.arguments["res_scale"] = res_scale


def edsr(
    scale: int,
    num_blocks: int = 16,
    channels: int = 64,
    *,
    res_scale: float | None = None,
    fold: bool = True,
    taps: Iterable[int] | None = None,
    checkpoint_blocks: bool = False,
) -> ElasticWrapper:
    """Build an elastic EDSR: RGB floats in 0..1, (b, 3, h, w) -> (b, 3, scale h, scale w), at any
    depth from 1 to `num_blocks`.

    scale: 2, 3, 4 or 8. The default is the baseline; num_blocks=32, channels=256 is the full size.
    res_scale: None means 0.1 at the full size and 1 elsewhere. fold, taps, checkpoint_blocks: as in
    `wrap`.
    """
    plain = EDSR(scale, num_blocks, channels, res_scale)
    return wrap(plain, "edsr", fold=fold, taps=taps, checkpoint_blocks=checkpoint_blocks)


def wrap(
    plain: GlobalSkipNetwork,
    architecture: str,
    *,
    fold: bool = True,
    taps: Iterable[int] | None = None,
    checkpoint_blocks: bool = False,
) -> ElasticWrapper:
    """Return the elastic network around the very modules of a plain EDSR or RCAN; no weight is
    copied.

    The plain network takes and gives 0..255, the elastic one 0..1: with fold=False net(x) is
    plain(x * 255) / 255 bit for bit, and net(x, depth=d) is that of the plain network whose body is
    cut to d blocks. fold: compute the tail by one folded kernel (exact up to rounding). taps: the
    depths that carry a prediction, default all.
    """
    *blocks, last = plain.body
    head = SkipHead(last, plain.tail, plain.add_mean, fold)
    stem = ShiftStem(plain.sub_mean, plain.head[0])
    net = ElasticWrapper(
        blocks, head, stem, taps, head_skip="stem", checkpoint_blocks=checkpoint_blocks
    )
    net.origin = (architecture, {**plain.arguments, "fold": fold})
    return net


class ShiftStem(nn.Module):
    """The stem of `edsr` and `rcan`: 0..1 to 0..255, the mean subtracted, conv3x3; (b, 3, h, w) ->
    (b, c, h, w).
    """

    def __init__(self, sub_mean: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.sub_mean = sub_mean
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.sub_mean(x * RANGE))


class SkipHead(nn.Module):
    """The shared head of `edsr` and `rcan`: conv3x3, + the stem's output, upsampler, conv3x3, the
    mean added, to 0..1.

    head(features, stem_output): (b, c, h, w) twice -> (b, 3, scale h, scale w). The tail, upsampler
    and last conv, is linear. fold: inside the image it is computed as one 5x5 convolution on the LR
    grid and a pixel shuffle. In the outermost ring of LR pixels the zeros between its convolutions
    count, and the layers themselves run, on strips three pixels wide; so they do where the strips
    would cover the image. False runs every layer as written.
    """

    def __init__(
        self, conv: nn.Module, tail: nn.Module, add_mean: nn.Module, fold: bool = True
    ) -> None:
        super().__init__()
        self.conv = conv
        self.tail = tail
        self.add_mean = add_mean
        self.fold = fold
        self.steps = [
            layer.upscale_factor for layer in tail.modules() if isinstance(layer, nn.PixelShuffle)
        ]
        self.scale = math.prod(self.steps)

    def forward(self, features: Tensor, stem_output: Tensor) -> Tensor:
        return self.prepare()(features, stem_output)

    def prepare(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a callable that serves every tap of one pass; all of them share one folded
        kernel.
        """
        kernels: list[tuple[Tensor, Tensor]] = []  # made where the first tap needs them

        def head(features: Tensor, stem_output: Tensor) -> Tensor:
            x = self.conv(features) + stem_output
            height, width = x.shape[-2:]
            if self.fold and 2 * (RING + REACH) * (height + width) < height * width:
                if not kernels:
                    kernels.append(self.folded_tail())
                x = self._ring_around(x, *kernels[0])
            else:
                x = self.tail(x)
            return self.add_mean(x) / RANGE

        return head

    def folded_tail(self) -> tuple[Tensor, Tensor]:
        """Return the tail as one conv on the LR grid, up to its border: kernel (3 scale^2, c, 5, 5)
        and bias.

        In at least float32, outside autocast. The kernel is what each sub-pixel of one LR pixel
        takes from the features around it: the adjoint of the tail, which handles 3 scale^2 images
        instead of one for each input channel.
        """
        weights = [layer.weight for layer in self.tail.modules() if isinstance(layer, nn.Conv2d)]
        wide = torch.promote_types(weights[0].dtype, torch.float32)
        with torch.autocast(weights[0].device.type, enabled=False):
            pixels = torch.eye(3 * self.scale**2, dtype=wide, device=weights[0].device)[
                :, :, None, None
            ]
            x = F.conv_transpose2d(F.pixel_shuffle(pixels, self.scale), weights[-1].to(wide))
            margin = 1  # how far x reaches beyond the LR pixel, in pixels of its grid
            for weight, step in zip(weights[-2::-1], self.steps[::-1], strict=True):
                x = F.pixel_unshuffle(F.pad(x, (-margin % step,) * 4), step)
                x = F.conv_transpose2d(x, weight.to(wide))
                margin = -(-margin // step) + 1
            # The bias is what the tail makes of zeros, in a pixel whose neighbours are all inside.
            zeros = torch.zeros_like(weights[0][:1, :, :1, :1]).expand(-1, -1, 3, 3)
            middle = self.tail(zeros)[
                :, :, self.scale : 2 * self.scale, self.scale : 2 * self.scale
            ]
            return x, F.pixel_unshuffle(middle, self.scale).flatten().to(wide)

    def _ring_around(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        strip, ring = RING + REACH, RING * self.scale
        inner = F.conv2d(x, kernel.to(x.dtype), bias.to(x.dtype), padding=REACH - RING)
        inner = F.pixel_shuffle(inner, self.scale)
        # Two strips a call; at their inner side they see a border that is none, beyond what is kept
        # of them.
        top, bottom = self.tail(torch.cat([x[:, :, :strip], x[:, :, -strip:]])).chunk(2)
        left, right = self.tail(torch.cat([x[:, :, :, :strip], x[:, :, :, -strip:]])).chunk(2)
        left, right = left[:, :, ring:-ring, :ring], right[:, :, ring:-ring, -ring:]
        rows = torch.cat([left, inner, right], dim=3)
        return torch.cat([top[:, :, :ring], rows, bottom[:, :, -ring:]], dim=2)


class TapMacs(NamedTuple):
    """Multiply-adds of one forward pass with a prediction at every tap: stem and blocks, and
    everything behind them.
    """

    trunk: int
    heads: int

    @property
    def ratio(self) -> float:
        """What the heads cost for each multiply-add of the trunk: above 1, sampling the taps pays
        in training.
        """
        return self.heads / self.trunk


def tap_macs(net: ElasticWrapper, example: Tensor) -> TapMacs:
    """Count the multiply-adds of `net.forward_taps(example)` by PyTorch's own counter, in trunk and
    heads.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with evaluating(net), torch.no_grad():
        # which tells modules apart only inside a call of the net itself
        with FlopCounterMode(display=False) as one:
            net(example, depth=-1)
        with FlopCounterMode(display=False) as every:
            net.forward_taps(example)
    flops, name = one.get_flop_counts(), type(net).__name__
    parts = [f"{name}.stem", *(f"{name}.blocks.{index}" for index in range(len(net.blocks)))]
    trunk = sum(sum(flops[part].values()) for part in parts if part in flops) // 2
    return TapMacs(trunk, every.get_total_flops() // 2 - trunk)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a zero-padded 3x3 convolution with bias."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


@torch.no_grad()
def zero(conv: nn.Module) -> None:
    """Set every parameter of a layer to zero."""
    for parameter in conv.parameters():
        parameter.zero_()
