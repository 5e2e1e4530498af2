"""A pass to one depth keeps no features: each block's are freed when the next one has read them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet import ElasticWrapper


class Watched(nn.Module):
    """Counts, when it is called, how many features of earlier blocks are still in memory."""

    def __init__(self, alive: list[weakref.ref[Tensor]]) -> None:
        super().__init__()
        self.alive = alive
        self.num_alive = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_alive = sum(reference() is not None for reference in self.alive)
        output = x + 1
        self.alive.append(weakref.ref(output))
        return output


def test_features_are_freed_behind_each_block() -> None:
    alive: list[weakref.ref[Tensor]] = []
    stem, head = Watched(alive), Watched(alive)
    blocks = [Watched(alive) for _ in range(4)]
    net = ElasticWrapper(blocks, head, stem).eval()
    with torch.no_grad():
        net(torch.zeros(2))
    parts: list[Any] = [*blocks, head]
    # Its own input alone.
    assert [part.num_alive for part in parts] == [1, 1, 1, 1, 1]
