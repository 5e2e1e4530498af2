"""What stands for ASRN's block in exported files: the same layers, without copies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy


class GraphMultiScaleBlock(nn.Module):
    """What stands for a `MultiScaleBlock`: nothing is copied, and nothing is changed in place.

    Both make a training faster. A file does not have them, and PyTorch's exporter takes a third
    longer to remove them.

    Args:
        expand: The block's first convolution; of all layers copies are taken.
        groups: Its convolutions of a group each.
        fusion: Its last convolution; None: it has none.
        residual_links: Whether a group is added to the one before.
        shuffle: Whether channels are shuffled before the fusion.
        residual: Whether the input is added to the output.
    """

    def __init__(
        self,
        *,
        expand: nn.Module,
        groups: nn.ModuleList,
        fusion: nn.Module | None,
        residual_links: bool,
        shuffle: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.expand = detached_copy(expand)
        self.groups = detached_copy(groups)
        self.fusion = None if fusion is None else detached_copy(fusion)
        self.residual_links = residual_links
        self.shuffle = shuffle
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (b, channels, h, w).

        Args:
            x: (b, channels, h, w).
        """
        outputs: list[Tensor] = []
        groups = self.expand(x).chunk(len(self.groups), dim=1)  # each (b, channels / 4, h, w)
        for conv, group in zip(self.groups, groups, strict=True):
            if outputs and self.residual_links:
                group = group + outputs[-1]
            outputs.append(F.relu(conv(group)))
        y = torch.cat(outputs, dim=1)  # (b, channels, h, w)
        if self.shuffle:
            y = F.channel_shuffle(y, len(self.groups))
        if self.fusion is not None:
            y = self.fusion(y)
        return y + x if self.residual else y
