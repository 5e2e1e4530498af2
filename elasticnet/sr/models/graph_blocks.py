"""What stands for ASRN's block in exported files: the same layers, without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy

if TYPE_CHECKING:
    from elasticnet.sr.models.asrn_blocks import MultiScaleBlock


class GraphMultiScaleBlock(nn.Module):
    """What stands for a `MultiScaleBlock`: nothing is copied, and nothing is changed in place.

    Both make a training faster. A file does not have them, and PyTorch's exporter takes a third
    longer to remove them.

    Args:
        block: It is not changed.
    """

    def __init__(self, block: MultiScaleBlock) -> None:
        super().__init__()
        self.expand = detached_copy(block.expand)
        self.groups = detached_copy(block.groups)
        self.fusion = detached_copy(block.fusion)
        self.residual_links = block.residual_links
        self.shuffle = block.shuffle
        self.residual = block.residual

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
