"""Count what one depth of a net holds and computes: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from elasticnet.checkpoint.header import shallowest_depth
from elasticnet.wrapper import ElasticWrapper, evaluating


def count_parameters(net: ElasticWrapper, depth: int) -> int:
    """Return how many parameters the net cut to a depth has; a shared tensor counts once.

    Args:
        net: The whole net. Nothing of it is copied.
        depth: A depth that carries a tap.
    """
    sizes: dict[int, int] = {}  # by identity
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if shallowest_depth(name) <= depth:
            sizes[id(parameter)] = parameter.numel()
    return sum(sizes.values())


def count_macs(
    net: ElasticWrapper, example: Tensor, depth: int, context: Mapping[str, Any] | None = None
) -> int:
    """Return the multiply-accumulates of one pass, by torch's own counter.

    Args:
        net: The net.
        example: An input of it.
        depth: Where the pass ends.
        context: Keyword arguments of the net's call.
    """
    with evaluating(net), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(example, depth=depth, **(context or {}))
    return counter.get_total_flops() // 2  # one multiplication and one addition each
