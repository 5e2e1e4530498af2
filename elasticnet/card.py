"""What each depth of a net costs on this machine: parameters, multiply-accumulates, latency."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor

from elasticnet.wrapper import ElasticWrapper, evaluating


class DepthCost(NamedTuple):
    """Cost of one depth: parameters of the truncated net, MACs by torch's own counter, latency in milliseconds."""

    depth: int
    parameters: int
    macs: int
    ms: float


def depth_costs(net: ElasticWrapper, example: Tensor, repeats: int = 5) -> list[DepthCost]:
    """Measure every depth of `net` on `example`, in eval mode without gradients; shallowest first.

    ms is the median of `repeats` runs after one to warm up, with the depths taking turns, so that a busy moment of the
    machine does not fall on one depth alone.
    """
    from torch.utils.flop_counter import FlopCounterMode

    costs: dict[int, tuple[int, int]] = {}
    times: dict[int, list[float]] = {depth: [] for depth in net.taps}
    with evaluating(net), torch.inference_mode():
        for depth in net.taps:
            with FlopCounterMode(display=False) as counter:  # also the warm-up
                net(example, depth=depth)
            parameters = sum(parameter.numel() for parameter in net.truncate(depth).parameters())
            costs[depth] = parameters, counter.get_total_flops() // 2
        for _ in range(repeats):
            for depth in net.taps:
                times[depth].append(_timed(net, example, depth))
    return [DepthCost(depth, *costs[depth], 1e3 * statistics.median(times[depth])) for depth in net.taps]


def _timed(net: ElasticWrapper, example: Tensor, depth: int) -> float:
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    start = time.perf_counter()
    net(example, depth=depth)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return time.perf_counter() - start
