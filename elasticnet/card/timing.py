"""Time passes of a net to every depth, and say how much the times vary."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from elasticnet.card.example_tensors import first_tensor
from elasticnet.wrapper import ElasticWrapper, evaluating

MIN_ROUNDS = 3  # timed whatever the time limit says
MIN_TIMES_FOR_SPREAD = 3
# Part of the median above which a time is not to be relied on: neighbouring depths, whose costs
# often differ by less than a fifth, could then change places.
LARGE_SPREAD = 0.1


class Timing(NamedTuple):
    """What several passes took.

    Attributes:
        ms: The median, in milliseconds.
        spread_ms: Half the distance between the quartiles: the middle half of the times lies within
            about so many milliseconds of the median. None of fewer than three passes.
    """

    ms: float
    spread_ms: float | None


def timing_of(times: Sequence[float]) -> Timing:
    """Return the median and the spread of times.

    Args:
        times: In milliseconds, at least one.

    Example:
        >>> timing_of([10.0, 11.0, 12.0, 13.0, 99.0])
        Timing(ms=12.0, spread_ms=1.0)
    """
    median = statistics.median(times)
    if len(times) < MIN_TIMES_FOR_SPREAD:
        return Timing(median, spread_ms=None)
    lower_quartile, _, upper_quartile = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, spread_ms=(upper_quartile - lower_quartile) / 2)


def unsteady(timings: Mapping[str, Timing]) -> list[str]:
    """Return a warning if times vary so much that they are not to be relied on, or nothing.

    Args:
        timings: By what they are of, such as "depth 3".
    """
    worst = ""
    largest_part = LARGE_SPREAD
    for name, timing in timings.items():
        if timing.spread_ms is not None and timing.spread_ms > largest_part * timing.ms:
            worst = name
            largest_part = timing.spread_ms / timing.ms
    if not worst:
        return []
    return [
        f"the times vary much, most at {worst}, {timings[worst].ms:,.2f} ms ± {largest_part:.0%}: "
        "something else was running; measure again when the machine is idle"
    ]


def time_depths(
    net: ElasticWrapper,
    example: Any,
    repeats: int,
    seconds: float = math.inf,
    context: Mapping[str, Any] | None = None,
    warm_up: int = 1,
    on_pass: Callable[[], Any] | None = None,
) -> dict[int, list[float]]:
    """Return the times of single passes to every depth, in milliseconds.

    The depths take turns, so that a busy moment of the machine does not fall on one depth alone.

    Args:
        net: The net.
        example: An input of it.
        repeats: Passes timed at each depth.
        seconds: After this time no new round begins; at least three (or `repeats`) are made.
        context: Keyword arguments of the net's call.
        warm_up: Passes to every depth before.
        on_pass: Called after every pass that is timed.

    Returns:
        The times by depth, in the order in which they were taken.
    """
    keywords = dict(context or {})
    times: dict[int, list[float]] = {depth: [] for depth in net.taps}
    # Not in inference mode, because what a net keeps from such a pass cannot be trained with.
    with evaluating(net), torch.no_grad():
        for _ in range(warm_up):
            for depth in net.taps:
                _milliseconds(net, example, depth, keywords)
        start = time.perf_counter()
        for made_rounds in range(repeats):
            is_late = time.perf_counter() - start > seconds
            if is_late and made_rounds >= MIN_ROUNDS:
                break
            for depth in net.taps:
                times[depth].append(_milliseconds(net, example, depth, keywords))
                if on_pass is not None:
                    on_pass()
    return times


@contextmanager
def limited_threads(threads: int | None) -> Generator[None, None, None]:
    """Let torch use a number of CPU threads inside a `with` block.

    Args:
        threads: The number; None leaves it as it is.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _milliseconds(net: ElasticWrapper, example: Any, depth: int, context: dict[str, Any]) -> float:
    """Return how long one pass takes."""
    _synchronize(example)
    start = time.perf_counter()
    net(example, depth=depth, **context)
    _synchronize(example)
    return 1e3 * (time.perf_counter() - start)


def _synchronize(example: Any) -> None:
    """Wait until the device has done what it was given."""
    device = first_tensor(example).device
    if device.type != "cpu":
        torch.accelerator.synchronize(device.index)
