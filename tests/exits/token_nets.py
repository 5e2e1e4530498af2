"""A tiny net that classifies inputs of a few tokens, or each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elasticnet import ElasticWrapper


class Residual(nn.Module):
    """A block that keeps the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class MeanHead(nn.Module):
    """Classifies the mean over tokens, or each token."""

    def __init__(self, width: int, by_token: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)
        self.by_token = by_token

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x if self.by_token else x.mean(dim=1))


def token_net(
    num_blocks: int, taps: Sequence[int] | None = None, by_token: bool = False, seed: int = 0
) -> ElasticWrapper:
    torch.manual_seed(seed)
    blocks = [Residual(6) for _ in range(num_blocks)]
    return ElasticWrapper(blocks, MeanHead(6, by_token), taps=taps).eval()


def inputs(count: int, tokens: int = 4, seed: int = 1) -> Tensor:
    return 3 * torch.randn(count, tokens, 6, generator=torch.Generator().manual_seed(seed))
