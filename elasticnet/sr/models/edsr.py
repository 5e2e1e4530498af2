"""EDSR, and the frame that it shares with RCAN: stem, blocks, conv and global skip, upsampler.

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

from elasticnet._autocast import without_autocast
from elasticnet.sr.models.folding import is_plain_conv, runs_as_built
from elasticnet.sr.models.heads import predict_taps, wide_dtype
from elasticnet.wrapper import ElasticWrapper, Origin, evaluating

STEPS = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # the upsampler's factors at each scale
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, on the scale 0..1
RANGE = 255.0  # of the authors' images
FULL_SIZE = (32, 256)  # blocks and channels of the published full size, which has its own res_scale

# LR pixels at the border whose output depends on the padding between the tail's convolutions
RING = 1
REACH = 2  # LR pixels that the tail sees to each side, at every scale


class MeanShift(nn.Conv2d):
    """A 1x1 convolution that starts as an addition of the mean colour, with a sign.

    Args:
        sign: 1 adds 255 * RGB_MEAN, -1 subtracts it.
        trained: Whether its parameters learn. EDSR's are fixed; those in RCAN's checkpoints were
            trained.
    """

    def __init__(self, sign: int, trained: bool = False) -> None:
        super().__init__(3, 3, 1)
        assert self.bias is not None
        with torch.no_grad():
            self.weight.copy_(torch.eye(3)[:, :, None, None])
            self.bias.copy_(sign * RANGE * torch.tensor(RGB_MEAN))
        self.requires_grad_(trained)


class ResidualBlock(nn.Module):
    """EDSR's block, x + res_scale * conv(relu(conv(x))).

    Args:
        channels: Of the features.
        res_scale: What the residual is multiplied by.
    """

    def __init__(self, channels: int, res_scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels)
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        return self.body(x) * self.res_scale + x

    def init_identity(self) -> None:
        """Make the block the identity: the residual path starts at zero."""
        zero(self.body[2])


class GlobalSkipNetwork(nn.Module):
    """The authors' plain frame around the blocks, with their keys: the base of `EDSR` and `RCAN`.

    sub_mean; head.0, a conv; body: the blocks and one more conv; + the output of head; tail.0, the
    upsampler; tail.1, a conv; add_mean. The attribute `arguments` holds those that build the
    network again.

    Args:
        scale: 2, 3, 4 or 8.
        channels: Of the features.
        blocks: What stands in the body.
        trained_shift: Whether the mean shifts learn.

    Raises:
        ValueError: Another scale.
    """

    def __init__(
        self, scale: int, channels: int, blocks: Iterable[nn.Module], trained_shift: bool
    ) -> None:
        super().__init__()
        if scale not in STEPS or isinstance(scale, float):
            raise ValueError(
                f"scale {scale!r}: expected one of {', '.join(str(each) for each in STEPS)}"
            )
        self.sub_mean = MeanShift(-1, trained_shift)
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(*blocks, conv3x3(channels, channels))
        upsampler = nn.Sequential()
        for step in STEPS[scale]:
            upsampler.extend([conv3x3(channels, channels * step**2), nn.PixelShuffle(step)])
        self.tail = nn.Sequential(upsampler, conv3x3(channels, 3))
        self.add_mean = MeanShift(1, trained_shift)
        self.arguments: dict[str, int | float] = {
            "scale": scale,
            "num_blocks": len(self.body) - 1,
            "channels": channels,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged image (b, 3, scale h, scale w), RGB in 0..255.

        Args:
            x: RGB in 0..255, (b, 3, h, w).
        """
        x = self.head(self.sub_mean(x))  # (b, channels, h, w)
        return self.add_mean(self.tail(self.body(x) + x))


class EDSR(GlobalSkipNetwork):
    """The plain EDSR, with the authors' state dict keys: RGB in 0..255, in and out.

    The default is the baseline (1,369,883 / 1,554,523 / 1,517,595 parameters at x2 / x3 / x4);
    num_blocks=32, channels=256 is the full size (40,729,627 / 43,680,027 / 43,089,947).

    Args:
        scale: 2, 3, 4 or 8.
        num_blocks: The number of residual blocks.
        channels: Of the features.
        res_scale: What each block's residual is multiplied by; it is not in the state dict. None
            means the authors' choice, 0.1 at the full size and 1 elsewhere.
    """

    def __init__(
        self, scale: int, num_blocks: int = 16, channels: int = 64, res_scale: float | None = None
    ) -> None:
        if res_scale is None:
            res_scale = 0.1 if (num_blocks, channels) == FULL_SIZE else 1.0
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
    """Build an elastic EDSR.

    It takes RGB floats (b, 3, h, w) in 0..1 and gives (b, 3, scale h, scale w), at any depth from
    1 to `num_blocks`. The default is the baseline.

    Args:
        scale: 2, 3, 4 or 8.
        num_blocks: The number of residual blocks; each is a depth. 32 at the full size.
        channels: Of the features; 256 at the full size.
        res_scale: What each block's residual is multiplied by; None means 0.1 at the full size and
            1 elsewhere.
        fold: As in `wrap`.
        taps: As in `wrap`.
        checkpoint_blocks: As in `wrap`.

    Returns:
        The network.

    Example:
        >>> net = edsr(scale=2, num_blocks=4, channels=8)
        >>> net(torch.rand(1, 3, 20, 30), depth=1).shape
        torch.Size([1, 3, 40, 60])
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
    """Return the elastic network around the very modules of a plain EDSR or RCAN.

    No weight is copied. The plain network takes and gives 0..255, the elastic one 0..1: with
    fold=False net(x) is plain(x * 255) / 255 bit for bit, and net(x, depth=d) is that of the plain
    network whose body is cut to d blocks.

    Args:
        plain: An `EDSR` or `RCAN`.
        architecture: "edsr" or "rcan", for files.
        fold: Whether the tail is computed by one folded kernel, exact up to rounding.
        taps: The depths that carry a prediction; default: all.
        checkpoint_blocks: Compute the blocks again in the backward pass instead of keeping their
            insides: less memory, more time.
    """
    *blocks, last_conv = plain.body
    head = SkipHead(last_conv, plain.tail, plain.add_mean, fold)
    stem = ShiftStem(plain.sub_mean, plain.head[0])
    net = ElasticWrapper(
        blocks,
        head,
        stem=stem,
        taps=taps,
        head_skip="stem",
        checkpoint_blocks=checkpoint_blocks,
    )
    net.origin = Origin(architecture, {**plain.arguments, "fold": fold})
    return net


class ShiftStem(nn.Module):
    """The stem of `edsr` and `rcan`: from 0..1 to 0..255, the mean subtracted, conv3x3.

    Args:
        sub_mean: The plain network's mean shift.
        conv: The plain network's first conv.
    """

    def __init__(self, sub_mean: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.sub_mean = sub_mean
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (b, channels, h, w).

        Args:
            x: RGB in 0..1, (b, 3, h, w).
        """
        return self.conv(self.sub_mean(x * RANGE))


class SkipHead(nn.Module):
    """The shared head of `edsr` and `rcan`: conv3x3, + the stem's output, tail, mean, to 0..1.

    The tail, upsampler and last conv, is linear. Folded, it is computed inside the image as one
    5x5 convolution on the LR grid and a pixel shuffle. In the outermost ring of LR pixels the zeros
    between its convolutions count, and the layers themselves run, on strips three pixels wide; so
    they do on the whole image where the strips would cover it.

    Args:
        conv: The plain network's conv behind the blocks.
        tail: Its upsampler and last conv.
        add_mean: Its second mean shift.
        fold: Whether the tail runs folded, as long as its layers are plain convolutions and pixel
            shuffles; False runs every layer as written.
    """

    takes_all_taps = True  # see ElasticWrapper

    def __init__(
        self, conv: nn.Module, tail: nn.Module, add_mean: nn.Module, fold: bool = True
    ) -> None:
        super().__init__()
        self.conv = conv
        self.tail = tail
        self.add_mean = add_mean
        self._fold = fold
        self.steps = [
            layer.upscale_factor for layer in tail.modules() if isinstance(layer, nn.PixelShuffle)
        ]
        self.scale = math.prod(self.steps)

    @property
    def fold(self) -> bool:
        """Whether the tail runs folded now; False where that is not its function."""
        return self._fold and self.tail_is_plain()

    @fold.setter
    def fold(self, fold: bool) -> None:
        """Set whether it is to run folded.

        Args:
            fold: False runs the layers as written.
        """
        self._fold = fold

    def tail_is_plain(self) -> bool:
        """Return whether the tail is conv, shuffle, ..., conv, so that the fold is its function."""
        found: list[int | str] = []  # for each layer its factor, or "conv"
        for layer in self.tail.modules():
            if is_plain_conv(layer, side=3):
                found.append("conv")
            elif isinstance(layer, nn.PixelShuffle) and runs_as_built(layer, nn.PixelShuffle):
                found.append(layer.upscale_factor)
            elif not runs_as_built(layer, nn.Sequential):
                return False
        expected: list[int | str] = []
        for step in self.steps:
            expected += ["conv", step]
        return found == [*expected, "conv"]

    def forward(
        self, features: Tensor | tuple[Tensor, ...], stem_output: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the prediction (b, 3, scale h, scale w), RGB in 0..1, or one for each tap.

        Args:
            features: (b, channels, h, w), or a tuple of those of several taps.
            stem_output: Of the shape of one tap's features.
        """
        return predict_taps(self._tap_predictor(), features, stem_output)

    def _tap_predictor(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function of one tap's features and the stem's output, for all taps of one pass.

        All taps share one folded kernel.
        """
        folded: tuple[Tensor, Tensor] | None = None  # made when the first tap needs it

        def head(features: Tensor, stem_output: Tensor) -> Tensor:
            nonlocal folded
            x = self.conv(features) + stem_output  # (b, channels, h, w)
            height, width = x.shape[-2:]
            if self.fold and _strips_pay(height, width):
                if folded is None:
                    folded = self.folded_tail()
                kernel, bias = folded
                x = self._ring_around(x, kernel, bias)
            else:
                x = self.tail(x)
            return self.add_mean(x) / RANGE

        return head

    def folded_tail(self) -> tuple[Tensor, Tensor]:
        """Return the tail as one conv on the LR grid, up to its border.

        The kernel is what each sub-pixel of one LR pixel takes from the features around it: the
        adjoint of the tail, which handles 3 scale^2 images instead of one for each input channel.

        Returns:
            Kernel (3 scale^2, channels, 5, 5) and bias (3 scale^2), in at least float32, computed
            outside autocast.
        """
        weights = [layer.weight for layer in self.tail.modules() if isinstance(layer, nn.Conv2d)]
        *step_weights, last_weight = weights
        device = last_weight.device
        wide = wide_dtype(last_weight.dtype)
        with without_autocast(device):
            # one image for each sub-pixel and colour: (3 scale^2, 3 scale^2, 1, 1)
            pixels = torch.eye(3 * self.scale**2, dtype=wide, device=device)[:, :, None, None]
            images = F.pixel_shuffle(pixels, self.scale)  # (3 scale^2, 3, scale, scale)
            kernel = F.conv_transpose2d(images, last_weight.to(wide))
            margin = 1  # how far the kernel reaches beyond the LR pixel, in pixels of its grid
            for weight, step in zip(reversed(step_weights), reversed(self.steps), strict=True):
                to_whole_steps = -margin % step
                padded = F.pad(kernel, (to_whole_steps,) * 4)
                coarser = F.pixel_unshuffle(padded, step)  # (3 scale^2, channels step^2, h, w)
                kernel = F.conv_transpose2d(coarser, weight.to(wide))
                margin = math.ceil(margin / step) + 1
            # The bias is what the tail makes of zeros, in a pixel whose neighbours are all inside.
            zeros = torch.zeros_like(weights[0][:1, :, :1, :1]).expand(-1, -1, 3, 3)
            enlarged = self.tail(zeros)  # (1, 3, 3 scale, 3 scale)
            middle = slice(self.scale, 2 * self.scale)
            bias = F.pixel_unshuffle(enlarged[:, :, middle, middle], self.scale)
            return kernel, bias.flatten().to(wide)

    def _ring_around(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """The tail of the features: folded inside, the layers themselves in the outermost ring."""
        strip = RING + REACH  # LR pixels that the ring's output depends on
        ring = RING * self.scale  # HR pixels
        inner = F.conv2d(x, kernel.to(x.dtype), bias.to(x.dtype), padding=REACH - RING)
        inner = F.pixel_shuffle(inner, self.scale)  # without the ring
        # Two strips a call. At their inner side they see a border that is none, beyond what is
        # kept of them.
        top_and_bottom = torch.cat([x[:, :, :strip], x[:, :, -strip:]])
        left_and_right = torch.cat([x[:, :, :, :strip], x[:, :, :, -strip:]])
        top, bottom = self.tail(top_and_bottom).chunk(2)
        left, right = self.tail(left_and_right).chunk(2)
        left = left[:, :, ring:-ring, :ring]
        right = right[:, :, ring:-ring, -ring:]
        rows = torch.cat([left, inner, right], dim=3)
        return torch.cat([top[:, :, :ring], rows, bottom[:, :, -ring:]], dim=2)


def _strips_pay(height: int, width: int) -> bool:
    """Whether the four strips of the ring have fewer pixels than the image."""
    return 2 * (RING + REACH) * (height + width) < height * width


class TapMacs(NamedTuple):
    """Multiply-adds of one forward pass with a prediction at every tap.

    Attributes:
        trunk: Of stem and blocks.
        heads: Of everything behind them, at all taps together.
    """

    trunk: int
    heads: int

    @property
    def ratio(self) -> float:
        """What the heads cost for each multiply-add of the trunk.

        Above 1, sampling the taps pays in training.
        """
        return self.heads / self.trunk


def tap_macs(net: ElasticWrapper, example: Tensor) -> TapMacs:
    """Count the multiply-adds of `net(example, taps=net.taps)`, by PyTorch's own counter.

    Args:
        net: Any elastic network.
        example: An input of it.

    Returns:
        Those of the trunk, and those of the heads.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with evaluating(net), torch.no_grad():
        # The counter tells modules apart only inside a call of the net itself, so the trunk is
        # counted in a pass of its own.
        with FlopCounterMode(display=False) as one_prediction:
            net(example, depth=-1)
        with FlopCounterMode(display=False) as all_predictions:
            net(example, taps=net.taps)
    flops_by_module = one_prediction.get_flop_counts()
    name = type(net).__name__
    trunk_parts = [f"{name}.stem"]
    trunk_parts += [f"{name}.blocks.{index}" for index in range(len(net.blocks))]
    trunk_flops = 0
    for part in trunk_parts:
        if part in flops_by_module:  # a part that multiplies nothing is not
            trunk_flops += sum(flops_by_module[part].values())
    trunk = trunk_flops // 2  # two operations are one multiply-add
    every = all_predictions.get_total_flops() // 2
    return TapMacs(trunk=trunk, heads=every - trunk)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a zero-padded 3x3 convolution with bias.

    Args:
        channels_in: Of what it takes.
        channels_out: Of what it gives.
    """
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


@torch.no_grad()
def zero(conv: nn.Module) -> None:
    """Set every parameter of a layer to zero.

    Args:
        conv: Changed in place.
    """
    for parameter in conv.parameters():
        parameter.zero_()
