"""What all benchmarks share: options, timing in turn, ratios, and the JSON report.

Each benchmark is a script of its own, run by hand from the root of the repository:

    python tests/benchmarks/bench_resize.py --help
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from elasticnet.card.machine import this_machine

Case = TypeVar("Case")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a script's docstring, with the option --json."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    return parser


def require_at_least(
    parser: argparse.ArgumentParser, options: argparse.Namespace, least: int, *names: str
) -> None:
    """End the program with a message if one of these options is smaller than `least`."""
    for name in names:
        value = getattr(options, name)
        if value < least:
            parser.error(f"--{name} {value}: expected at least {least}")


def machine_name(device: torch.device | str = "cpu") -> str:
    """Return the processor or GPU, torch's threads, the system and torch's version, in one line."""
    return this_machine(device).key


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the options that have a value, without the file that the script writes."""
    return {
        name: str(value)
        for name, value in vars(options).items()
        if name != "json" and value is not None
    }


def write_report(options: argparse.Namespace, machine: str, **numbers: Any) -> None:
    """Write the machine, the settings and the numbers to --json, if it was given."""
    if options.json is None:
        return
    report = {"machine": machine, "settings": settings_of(options), **numbers}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    options.json.write_text(text + "\n", encoding="utf-8")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turn(
    cases: Mapping[Case, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 1,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device | None = None,
) -> dict[Case, list[float]]:
    """Return the seconds of each case, round by round.

    In each round every case runs once, so that a busy machine slows all of them alike. Every other
    round goes through the cases backwards, so that none always follows the same one.

    Args:
        cases: What to time.
        repeats: How many rounds count.
        warm_up: How many rounds are run before and do not count.
        calls: How often to call a case for one measurement: more than once if a single call is too
            short for the clock.
        clock: Returns seconds.
        device: Where the work is done; None for the CPU.
    """
    device = device or torch.device("cpu")
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for number in tqdm(range(warm_up + repeats), desc="rounds", leave=False, disable=None):
        order = list(cases) if number % 2 else list(reversed(list(cases)))
        for case in order:
            synchronize(device)
            start = clock()
            for _ in range(calls):
                cases[case]()
            synchronize(device)
            if number >= warm_up:
                seconds[case].append((clock() - start) / calls)
    return seconds


def medians_ms(seconds: Mapping[Case, list[float]]) -> dict[Case, float]:
    """Return the median of each case's rounds, in milliseconds."""
    return {case: 1000 * statistics.median(times) for case, times in seconds.items()}


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the rounds' ratios, which varies less than the ratio of the medians."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
