"""ASRN's block, the two that it is compared with, and the affine map before the shared head.

All blocks take and give (b, channels, h, w), have no biases, and add their input to their output.
The paper compares them "with the same backbone" and at a similar number of parameters, and does not
print how the other two were fitted in. Here both keep the layers and the activations inside their
published units, and differ from them in three ways, for which super-resolution is the reason:

- no batch normalisation, as in the MAB and in EDSR;
- no ReLU after the sum, so that the features stay of both signs on their way to the linear head,
  as behind the MAB, and a block can start as the identity;
- a width inside the unit that gives as many parameters as a MAB has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy
from elasticnet.sr.models.asrn_start import make_small
from elasticnet.sr.models.folding import is_plain_conv, own_output, runs_as_built
from elasticnet.sr.models.graph_blocks import GraphMultiScaleBlock
from elasticnet.sr.models.heads import add_to
from elasticnet.sr.models.pointwise import conv1x1, run_conv1x1

NUM_GROUPS = 4


class MultiScaleBlock(nn.Module):
    """ASRN's multi-scale aggregation block (MAB); 39,168 weights at 96 channels.

    conv1x1; split into four groups x_1 .. x_4; y_1 = K_1(x_1), y_i = K_i(x_i + y_(i-1)), each K a
    conv3x3 and ReLU; concatenate; shuffle the channels across the groups; conv1x1 (fusion); add
    the block's input. That K ends in a ReLU is our reading: the paper prints no activations.

    Args:
        channels: A multiple of 4.
        fusion: Whether there is the last conv1x1.
        residual_links: Whether there are the terms y_(i-1).
        shuffle: Whether the channels are shuffled.
        residual: Whether the block's input is added.
        fold: Whether the shuffle is done as a permutation of the last conv's input channels, which
            is exact up to rounding and saves a copy; as long as that conv is the one built here.
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
        self._fold = fold

    @property
    def fold(self) -> bool:
        """Whether the shuffle is folded now; False where that is not the block's function."""
        return self._fold and is_plain_conv(self.fusion, side=1, has_bias=False)

    @fold.setter
    def fold(self, fold: bool) -> None:
        """Set whether it is to run folded.

        Args:
            fold: False runs the layers as written.
        """
        self._fold = fold

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        outputs: list[Tensor] = []
        expanded = run_conv1x1(self.expand, x)
        groups = expanded.chunk(NUM_GROUPS, dim=1)  # each (b, channels / 4, h, w)
        for conv, group in zip(self.groups, groups, strict=True):
            # dense: adding to a slice of the channels takes longer, copy included
            group = group.clone()
            if outputs and self.residual_links:
                group += outputs[-1]
            outputs.append(F.relu(own_output(conv, conv(group)), inplace=True))
        y = self._fuse(concatenate(outputs))
        return add_to(y, x) if self.residual else y

    def _fuse(self, y: Tensor) -> Tensor:
        """Shuffle the channels across the groups and mix them, as far as both are switched on."""
        if self.fusion is not None and self.shuffle and self.fold:
            return conv1x1(y, _unshuffled(self.fusion.weight))
        if self.shuffle:
            y = F.channel_shuffle(y, NUM_GROUPS)
        return y if self.fusion is None else own_output(self.fusion, self.fusion(y))

    def folded(self) -> MultiScaleBlock:
        """Return a copy for export, whose last conv holds the shuffle if it may be folded."""
        block = detached_copy(self)
        is_plain = is_plain_conv(self.fusion, side=1, has_bias=False)
        can_fold = is_plain and runs_as_built(self, MultiScaleBlock)
        if block.fusion is not None and block.shuffle and can_fold:
            weight = _unshuffled(block.fusion.weight).detach().contiguous()
            block.fusion.weight = nn.Parameter(weight)
            block.shuffle = False
        return block

    def for_export(self) -> GraphMultiScaleBlock | MultiScaleBlock:
        """Return what stands for this block in an exported file; itself where it is hooked."""
        if not runs_as_built(self, MultiScaleBlock):
            return self
        return GraphMultiScaleBlock(
            expand=self.expand,
            groups=self.groups,
            fusion=self.fusion,
            residual_links=self.residual_links,
            shuffle=self.shuffle,
            residual=self.residual,
        )

    def init_identity(self) -> None:
        """Make the block the identity: the residual path starts at zero.

        Raises:
            ValueError: It has no fusion or no residual, and cannot be the identity.
        """
        if self.fusion is None or not self.residual:
            raise ValueError(
                "a MultiScaleBlock without fusion or without residual cannot be made the identity"
            )
        nn.init.zeros_(self.fusion.weight)

    def init_small(self) -> None:
        """Make the residual path start small beside the input, where there are both."""
        if self.fusion is not None and self.residual:
            make_small(self.fusion.weight)


class ShuffleNetBlock(nn.Module):
    """A ShuffleNet unit of like size, for the comparison; 39,216 weights at 96 channels.

    Grouped conv1x1 and ReLU, shuffle, depthwise conv3x3, grouped conv1x1; add the block's input.
    Zhang et al., "ShuffleNet: an extremely efficient convolutional neural network for mobile
    devices", CVPR 2018, Fig. 2 (b). Grouped and depthwise convolutions have so few weights that the
    unit is 7 times as wide inside as outside; the published one is a quarter as wide.

    Args:
        channels: A multiple of 4.
    """

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        # 43/6 of the channels (688 of 96) give as many weights as a MAB; whole groups
        hidden = channels * 43 // 6 // NUM_GROUPS * NUM_GROUPS
        self.expand = nn.Conv2d(channels, hidden, 1, groups=NUM_GROUPS, bias=False)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.fusion = nn.Conv2d(hidden, channels, 1, groups=NUM_GROUPS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        y = F.relu(self.expand(x))  # (b, hidden, h, w)
        y = F.channel_shuffle(y, NUM_GROUPS)
        y = self.fusion(self.depthwise(y))  # (b, channels, h, w)
        return add_to(own_output(self.fusion, y), x)

    def init_identity(self) -> None:
        """Make the block the identity: the residual path starts at zero."""
        nn.init.zeros_(self.fusion.weight)

    def init_small(self) -> None:
        """Make the residual path start small beside the input."""
        make_small(self.fusion.weight)


class Res2NetBlock(nn.Module):
    """A Res2Net module of like size, for the comparison; 38,220 weights at 96 channels.

    conv1x1 and ReLU; split into four groups x_1 .. x_4; y_1 = x_1, y_2 = K_2(x_2),
    y_i = K_i(x_i + y_(i-1)), each K a conv3x3 and ReLU; concatenate; conv1x1; add the block's
    input. Gao et al., "Res2Net: a new multi-scale backbone architecture", IEEE TPAMI 43, 2021,
    Fig. 2 (b) and Equation 1. Beside the MAB its first group passes through, a ReLU follows the
    first conv, and nothing is shuffled.

    Args:
        channels: A multiple of 4.
    """

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        # 13/12 of the channels (4 x 26 of 96) give nearly as many weights as a MAB
        width = channels * 13 // 12 // NUM_GROUPS
        self.expand = nn.Conv2d(channels, width * NUM_GROUPS, 1, bias=False)
        self.groups = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(NUM_GROUPS - 1)
        )
        self.fusion = nn.Conv2d(width * NUM_GROUPS, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        groups = F.relu(self.expand(x)).chunk(NUM_GROUPS, dim=1)  # each (b, width, h, w)
        outputs = [groups[0]]  # the first group passes through
        previous = torch.zeros_like(groups[0])
        for conv, group in zip(self.groups, groups[1:], strict=True):
            previous = F.relu(conv(group + previous))
            outputs.append(previous)
        y = self.fusion(torch.cat(outputs, dim=1))  # (b, channels, h, w)
        return add_to(own_output(self.fusion, y), x)

    def init_identity(self) -> None:
        """Make the block the identity: the residual path starts at zero."""
        nn.init.zeros_(self.fusion.weight)

    def init_small(self) -> None:
        """Make the residual path start small beside the input."""
        make_small(self.fusion.weight)


class ChannelAffine(nn.Module):
    """A scale and a bias for each channel, at first the identity; 2 channels parameters.

    Args:
        channels: Of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x * weight + bias, (b, channels, h, w), in the dtype of x.

        Args:
            x: (b, channels, h, w).
        """
        return torch.addcmul(self.bias.to(x.dtype), x, self.weight.to(x.dtype))


def identity_conv(channels: int) -> nn.Conv2d:
    """Return a conv1x1 without bias that gives back its input; channels * channels parameters.

    Args:
        channels: Of the features.
    """
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.dirac_(conv.weight)
    return conv


class _DenseConcatenation(torch.autograd.Function):
    """Concatenation of NUM_GROUPS tensors along the channels with dense gradients, not slices."""

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


def concatenate(groups: list[Tensor]) -> Tensor:
    """Return the groups as one tensor (b, channels, h, w), by a way that is fast in training.

    Args:
        groups: `NUM_GROUPS` tensors (b, channels / 4, h, w).
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # what follows in the backward pass, the ReLU's and a sum, is slow on slices
        return _DenseConcatenation.apply(*groups)  # pyright: ignore[reportReturnType]
    return torch.cat(groups, dim=1)


def _unshuffled(weight: Tensor) -> Tensor:
    """The 1x1 weight (out, in, 1, 1) that takes channels which were not shuffled.

    The channel shuffle is moved into its input axis.
    """
    grouped = weight.reshape(weight.shape[0], -1, NUM_GROUPS, 1, 1)  # (out, in / 4, 4, 1, 1)
    return grouped.transpose(1, 2).flatten(1, 2)
