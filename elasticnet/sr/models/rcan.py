"""RCAN: residual groups of blocks with channel attention, in the frame of EDSR.

Source: "Image Super-Resolution Using Very Deep Residual Channel Attention Networks". The plain
module `RCAN` has the authors' keys and their range 0..255; `rcan` is the elastic network around the
same parts, with the range 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from elasticnet.sr.models.edsr import GlobalSkipNetwork, conv3x3, wrap, zero
from elasticnet.wrapper import ElasticWrapper


class ChannelAttention(nn.Module):
    """x * sigmoid(conv1x1(relu(conv1x1(mean of x over the image)))).

    Args:
        channels: Of the features.
        reduction: By how much fewer channels lie between the two convs.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted features (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        weights = self.conv_du(self.pool(x))  # (b, channels, 1, 1)
        return x * weights


class AttentionBlock(nn.Module):
    """RCAN's block (RCAB), x + attention(conv(relu(conv(x)))).

    Args:
        channels: Of the features.
        reduction: Of the attention.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels),
            nn.ReLU(inplace=True),
            conv3x3(channels, channels),
            ChannelAttention(channels, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        return self.body(x) + x

    def init_identity(self) -> None:
        """Make the block the identity: what the attention weighs starts at zero."""
        zero(self.body[2])


class ResidualGroup(nn.Module):
    """Some RCABs and a conv, with a skip around them: one depth of `rcan`.

    Args:
        channels: Of the features.
        group_size: The number of RCABs.
        reduction: Of their attention.
    """

    def __init__(self, channels: int, group_size: int, reduction: int) -> None:
        super().__init__()
        blocks = [AttentionBlock(channels, reduction) for _ in range(group_size)]
        self.body = nn.Sequential(*blocks, conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the group's output (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        return self.body(x) + x

    def init_identity(self) -> None:
        """Make the group the identity: its last conv starts at zero."""
        zero(self.body[-1])


class RCAN(GlobalSkipNetwork):
    """The plain RCAN, with the authors' state dict keys: RGB in 0..255, in and out.

    The default is the published network: 15,444,667 / 15,629,307 / 15,592,379 parameters at x2 /
    x3 / x4. Its mean shifts learn, as the authors' did.

    Args:
        scale: 2, 3, 4 or 8.
        num_blocks: The number of residual groups.
        channels: Of the features.
        group_size: The number of RCABs in each group.
        reduction: By how much fewer channels the attention has inside.

    Raises:
        ValueError: A reduction that leaves no channel, or a scale that there is not.
    """

    def __init__(
        self,
        scale: int,
        num_blocks: int = 10,
        channels: int = 64,
        group_size: int = 20,
        reduction: int = 16,
    ) -> None:
        if not 1 <= reduction <= channels:
            raise ValueError(
                f"reduction {reduction}: expected 1 to {channels}, the number of channels"
            )
        groups = [ResidualGroup(channels, group_size, reduction) for _ in range(num_blocks)]
        super().__init__(scale, channels, groups, trained_shift=True)
        self.arguments["group_size"] = group_size
        self.arguments["reduction"] = reduction


def rcan(
    scale: int,
    num_blocks: int = 10,
    channels: int = 64,
    *,
    group_size: int = 20,
    reduction: int = 16,
    fold: bool = True,
    taps: Iterable[int] | None = None,
    checkpoint_blocks: bool = False,
) -> ElasticWrapper:
    """Build an elastic RCAN.

    It takes RGB floats (b, 3, h, w) in 0..1 and gives (b, 3, scale h, scale w), at any depth from
    1 to `num_blocks`. Its attention averages over the whole image, so that tiles of an image do
    not give what the image gives.

    Args:
        scale: 2, 3, 4 or 8.
        num_blocks: The number of residual groups; each is a depth.
        channels: Of the features.
        group_size: The number of RCABs in each group.
        reduction: By how much fewer channels the attention has inside.
        fold: As in `edsr.wrap`.
        taps: As in `edsr.wrap`.
        checkpoint_blocks: As in `edsr.wrap`.

    Returns:
        The network.

    Example:
        >>> net = rcan(scale=2, num_blocks=2, channels=8, group_size=2, reduction=4)
        >>> net(torch.rand(1, 3, 20, 30), depth=1).shape
        torch.Size([1, 3, 40, 60])
    """
    plain = RCAN(scale, num_blocks, channels, group_size, reduction)
    return wrap(plain, "rcan", fold=fold, taps=taps, checkpoint_blocks=checkpoint_blocks)
