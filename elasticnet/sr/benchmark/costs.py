"""What each depth of the networks in a benchmark costs: parameters, multiply-adds, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from elasticnet._autocast import computing_in
from elasticnet.card.counting import count_parameters
from elasticnet.card.machine import machine_key
from elasticnet.card.measuring import depth_costs, dtype_of
from elasticnet.card.timing import Timing, unsteady
from elasticnet.sr.benchmark.kept_scores import CostPlace, KeptScores
from elasticnet.sr.benchmark.scores import FULL, Depth
from elasticnet.sr.inference.channels_last import channels_last
from elasticnet.wrapper import ElasticWrapper

# Width and height of the output for which MACs and latency are given, as the field does.
OUTPUT_SIZE = (1280, 720)


class Cost(NamedTuple):
    """What one depth costs; None is what was not measured.

    Attributes:
        parameters: Of the net cut to this depth.
        macs: Multiply-adds of one pass to an output of `OUTPUT_SIZE`.
        ms: Time of that pass in milliseconds; the median of several.
        ms_spread: Half of the times lie within so many milliseconds of the median or nearer; half
            the distance between the quartiles.
    """

    parameters: int | None = None
    macs: int | None = None
    ms: float | None = None
    ms_spread: float | None = None


class Measured(NamedTuple):
    """A network whose depths are measured.

    Attributes:
        label: Its label in the tables.
        net: Any module.
        scale: How many times as long it makes each side.
        depths: Those that are scored.
        weights: `digest_of_net` of it; "" where nothing is kept.
    """

    label: str
    net: nn.Module
    scale: int
    depths: Sequence[Depth]
    weights: str


def measure_costs(
    networks: Sequence[Measured],
    device: torch.device | str,
    *,
    measured: bool,
    progress: bool,
    kept: KeptScores | None = None,
    compute_dtype: torch.dtype | None = None,
) -> dict[CostPlace, Cost]:
    """Return what each depth of the networks costs.

    Args:
        networks: On `device`.
        device: Where they are.
        measured: Whether MACs and time are measured; parameters are always counted.
        progress: Whether a bar is shown.
        kept: What earlier runs have measured on this machine, and where the rest is added. Times
            that varied much are measured again.
        compute_dtype: As in `evaluate`.
    """
    costs: dict[CostPlace, Cost] = {}
    shows_bar = progress and measured and bool(networks)
    hidden = None if shows_bar else True  # None: unless standard error is a terminal
    bar = tqdm(networks, "measuring", disable=hidden)
    for network in bar:
        bar.set_postfix_str(network.label)
        if not measured:
            by_depth = _counted(network)
        elif kept is None:
            by_depth = _measured(network, device, compute_dtype)
        else:
            by_depth = _kept_or_measured(network, device, kept, compute_dtype)
        for depth, cost in by_depth.items():
            costs[CostPlace(network.label, network.scale, depth)] = cost
    return costs


def _kept_or_measured(
    network: Measured,
    device: torch.device | str,
    kept: KeptScores,
    compute_dtype: torch.dtype | None,
) -> dict[Depth, Cost]:
    """What an earlier run has measured of all depths, so that they compare, or a measurement.

    Times that varied much are measured again: the machine may be idle by now.
    """
    basis = _basis(network, device, compute_dtype)
    earlier: dict[Depth, Cost] = {}
    for depth in network.depths:
        numbers = kept.find_cost(_place(network, depth), basis)
        if numbers is not None:
            earlier[depth] = Cost(**numbers)
    if len(earlier) == len(network.depths) and not unsteady(_timings(earlier)):
        return earlier
    costs = _measured(network, device, compute_dtype)
    for depth, cost in costs.items():
        kept.add_cost(_place(network, depth), basis, cost._asdict())
    return costs


def _timings(costs: Mapping[Depth, Cost]) -> dict[str, Timing]:
    timings: dict[str, Timing] = {}
    for depth, cost in costs.items():
        if cost.ms is not None:
            timings[str(depth)] = Timing(cost.ms, cost.ms_spread)
    return timings


def _place(network: Measured, depth: Depth) -> CostPlace:
    return CostPlace(network.label, network.scale, depth)


def _basis(
    network: Measured, device: torch.device | str, compute_dtype: torch.dtype | None
) -> dict[str, Any]:
    """What a measured cost depends on."""
    dtype = compute_dtype or dtype_of(network.net, torch.empty(0))
    return {
        "weights": network.weights,
        "machine": machine_key(device, dtype),
        "output_size": list(OUTPUT_SIZE),
        "depths": list(network.depths),  # they were measured together, taking turns
    }


def _measured(
    network: Measured, device: torch.device | str, compute_dtype: torch.dtype | None
) -> dict[Depth, Cost]:
    net = _as_elastic(network.net)
    width, height = (side // network.scale for side in OUTPUT_SIZE)
    example = channels_last(torch.rand(1, 3, height, width, device=device))
    deepest = net.truncate(_block_count(network.depths[-1]))  # what lies deeper is not measured
    with computing_in(compute_dtype, device):
        by_count = {cost.depth: cost for cost in depth_costs(deepest, example)}
    costs: dict[Depth, Cost] = {}
    for depth in network.depths:
        cost = by_count[_block_count(depth)]
        costs[depth] = Cost(
            parameters=cost.parameters, macs=cost.macs, ms=cost.ms, ms_spread=cost.ms_spread
        )
    return costs


def _counted(network: Measured) -> dict[Depth, Cost]:
    net = _as_elastic(network.net)
    costs: dict[Depth, Cost] = {}
    for depth in network.depths:
        costs[depth] = Cost(parameters=count_parameters(net, _block_count(depth)))
    return costs


def _as_elastic(net: nn.Module) -> ElasticWrapper:
    """The net itself, or around any other module one that has it as its only block."""
    if isinstance(net, ElasticWrapper):
        return net
    return ElasticWrapper([net], nn.Identity())


def _block_count(depth: Depth) -> int:
    """The depth in `_as_elastic` of the net."""
    return 1 if depth == FULL else depth
