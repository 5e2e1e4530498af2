"""Measure what each depth of a net costs on this machine: parameters, MACs, time, memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from elasticnet._autocast import computing_in
from elasticnet.card.counting import MacCount, count_parameters, count_pass
from elasticnet.card.depth_card import DepthCard, DepthRow, Metric, not_rising
from elasticnet.card.example_tensors import first_tensor
from elasticnet.card.machine import this_machine
from elasticnet.card.memory_of_passes import NotMeasured, peak_memory
from elasticnet.card.timing import limited_threads, time_depths, timing_of, unsteady
from elasticnet.wrapper import ElasticWrapper

logger = logging.getLogger(__name__)

MIN_PASSES_FOR_P95 = 20  # with fewer the 95th percentile is the slowest of them
Context = Mapping[str, Any]  # keyword arguments of the net's call


class DepthCost(NamedTuple):
    """What one depth costs.

    Attributes:
        depth: The depth.
        parameters: Of the truncated net.
        macs: Multiply-accumulates of one pass; `elasticnet.card.operators` says what counts.
        ms: Milliseconds of one pass; the median.
        ms_spread: Half the distance between the quartiles of the times; None of fewer than three.
    """

    depth: int
    parameters: int
    macs: int
    ms: float
    ms_spread: float | None = None


def measure(
    net: ElasticWrapper,
    example: Any,
    *,
    repeats: int = 40,
    seconds: float = 60.0,
    threads: int | None = None,
    memory: bool = True,
    quality: Mapping[int, Mapping[str, float]] | None = None,
    metrics: Iterable[Metric] = (),
    data: str | None = None,
    per_pass: Mapping[str, float] | None = None,
    compute_dtype: torch.dtype | None = None,
    progress: bool = False,
    **context: Any,
) -> DepthCard:
    """Measure every depth of a net on this machine, in eval mode without gradients.

    Args:
        net: The net.
        example: An input of it, with its batch, on the device that shall be measured: a tensor, or
            a tuple, list or dict of tensors, of which the first one stands in the card.
        repeats: Passes timed at each depth, the depths taking turns.
        seconds: After this time no new round of passes begins; at least three are made.
        threads: Of the CPU; by default torch's present number.
        memory: Whether peak memory is measured; on a CPU it takes a fresh process, some seconds.
        quality: How good every depth is, measured by the caller: `{1: {"accuracy": 0.52}, ...}`.
        metrics: How metrics of `quality` are shown, and which are better when lower; one that is
            not listed has its name for a title, and higher is better.
        data: On what the quality was measured.
        per_pass: What one pass takes in, by unit, for the throughput; by default the length of the
            example's first axis, `{"samples": 16}`.
        compute_dtype: float16 or bfloat16, in which convolutions and matrix products are computed,
            by autocast, while weights and example stay as they are. Default: the net's own dtype.
        progress: Whether a bar shows how far it is.
        **context: Keyword arguments of the net's call.

    Returns:
        The card; what could not be measured stands in its warnings.

    Raises:
        ValueError: An argument is out of range, `quality` is not of every depth, or `example` holds
            no tensor.

    Example:
        `measure(net, images, quality={1: {"accuracy": 0.5}, 2: {"accuracy": 0.6}})`
    """
    _check_options(repeats, seconds, threads)
    shown_input = first_tensor(example)
    used_metrics = _metrics_of(quality, metrics, net.taps)
    warnings: list[str] = []
    num_passes = len(net.taps) * (1 + repeats)
    hidden = None if progress else True  # None: unless standard error is a terminal
    bar = tqdm(total=num_passes, unit="pass", disable=hidden, leave=False)
    computing = computing_in(compute_dtype, shown_input.device)
    with limited_threads(threads), bar, computing:
        machine = this_machine(shown_input.device, compute_dtype or dtype_of(net, shown_input))
        counts: dict[int, MacCount] = {}
        bar.set_description("counting")
        for depth in net.taps:
            counts[depth] = count_pass(net, example, depth, context)
            bar.update()
        bar.set_description("timing")
        times = time_depths(net, example, repeats, seconds, context, on_pass=bar.update)
        bar.set_description("memory")
        peaks: dict[int, float] = {}
        if memory:
            try:
                peaks = peak_memory(net, example, context, compute_dtype)
            except NotMeasured as error:
                warnings.append(f"peak memory was not measured: {error}")

    timings = {depth: timing_of(times[depth]) for depth in net.taps}
    rows: list[DepthRow] = []
    for depth in net.taps:
        row = DepthRow(
            depth=depth,
            parameters=count_parameters(net, depth),
            macs=counts[depth].macs,
            latency_ms=timings[depth].ms,
            latency_spread_ms=timings[depth].spread_ms,
            latency_p95_ms=_percentile_95(times[depth]),
            memory_mb=peaks.get(depth),
            quality=_as_floats(quality[depth]) if quality else {},
        )
        rows.append(row)
    warnings += _inexact_counts(counts.values())
    made_repeats = len(times[net.taps[0]])
    if made_repeats < MIN_PASSES_FOR_P95:
        warnings.append(
            f"p95 is of only {made_repeats} passes: give more repeats, and more seconds for them"
        )
    warnings += unsteady({f"depth {depth}": timing for depth, timing in timings.items()})
    return DepthCard(
        machine=machine,
        input_shape=tuple(shown_input.shape),
        repeats=made_repeats,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        rows=tuple(rows),
        per_pass=dict(per_pass or _samples_in(shown_input)),
        metrics=used_metrics,
        data=data,
        warnings=(*warnings, *not_rising(rows, used_metrics)),
    )


def depth_costs(net: ElasticWrapper, example: Any, repeats: int = 5) -> list[DepthCost]:
    """Return what every depth of a net costs, shallowest first, in eval mode without gradients.

    The depths take turns, so that a busy moment of the machine does not fall on one depth alone.

    Args:
        net: The net.
        example: An input of it: a tensor, or a tuple, list or dict of tensors.
        repeats: Passes timed at each depth, after one to warm up.
    """
    counts = {depth: count_pass(net, example, depth) for depth in net.taps}  # also the warm-up
    for warning in _inexact_counts(counts.values()):
        logger.warning(warning)
    times = time_depths(net, example, repeats, warm_up=0)
    costs: list[DepthCost] = []
    for depth in net.taps:
        timing = timing_of(times[depth])
        cost = DepthCost(
            depth=depth,
            parameters=count_parameters(net, depth),
            macs=counts[depth].macs,
            ms=timing.ms,
            ms_spread=timing.spread_ms,
        )
        costs.append(cost)
    return costs


def dtype_of(net: nn.Module, example: Tensor) -> torch.dtype:
    """Return the type in which a net computes: that of its first floating parameter.

    Args:
        net: Any module.
        example: An input of it, whose type it is for a net without such a parameter.
    """
    for parameter in net.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return example.dtype


def _samples_in(example: Tensor) -> dict[str, float]:
    """Return the length of a batch as the unit of a pass; a single number is no batch."""
    if example.ndim == 0:
        return {}
    return {"samples": example.shape[0]}


def _inexact_counts(counts: Iterable[MacCount]) -> list[str]:
    """Return a warning for each reason why the multiply-accumulates are not exact."""
    not_counted: set[str] = set()
    dense: set[str] = set()
    for count in counts:
        not_counted.update(count.not_counted)
        dense.update(count.counted_as_dense)
    warnings: list[str] = []
    if not_counted:
        warnings.append(f"macs are too low: not counted are {', '.join(sorted(not_counted))}")
    if dense:
        warnings.append(
            f"macs count sparse tensors as if they were dense, in {', '.join(sorted(dense))}"
        )
    return warnings


def _percentile_95(times: list[float]) -> float:
    """Return the smallest time that 95 % of all do not exceed."""
    rank = math.ceil(0.95 * len(times))  # counted from 1
    return sorted(times)[rank - 1]


def _check_options(repeats: Any, seconds: float, threads: Any) -> None:
    """Refuse numbers that `measure` cannot use."""
    for name, value in (("repeats", repeats), ("threads", threads)):
        if name == "threads" and value is None:
            continue
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} {value!r}: expected a whole number above 0")
    if not seconds > 0:
        raise ValueError(f"seconds {seconds!r}: expected a number above 0")


def _metrics_of(
    quality: Mapping[int, Mapping[str, float]] | None,
    metrics: Iterable[Metric],
    taps: tuple[int, ...],
) -> tuple[Metric, ...]:
    """Return the metrics that `quality` holds, the listed ones first, in their order."""
    if quality is None:
        return ()
    if sorted(quality) != list(taps):
        raise ValueError(
            f"quality at depths {sorted(quality)}: expected one at each of {list(taps)}"
        )
    measured = quality[taps[0]]
    listed = [metric for metric in metrics if metric.name in measured]
    names = [metric.name for metric in listed]
    others = [Metric(name) for name in measured if name not in names]
    return (*listed, *others)


def _as_floats(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return numbers as plain floats, which JSON can hold; they may be NumPy's or torch's."""
    return {name: float(number) for name, number in numbers.items()}
