"""Training steps a second and peak memory on a GPU, one feature after the other switched on.

    python tests/benchmarks/bench_gpu_steps.py [--data DIR] [--json FILE] [--quick]

ASRN x4 by the recipe's preset best: batch 16 of 48x48, five taps, EMA and clipping. Each row has a
process of its own, so that none inherits another one's memory, and one that fails leaves the
others. It times rounds of steps, waits for the GPU at the end of each, and gives the median. The
report is written after each row, and rows that it holds already are not measured again, so that
--rows can measure some now and the others later. With --quick nothing is compiled, as that takes
longer than all the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from gpu_training import (
    FULL,
    QUICK,
    Features,
    add_data_options,
    make_gpu_parser,
    make_training,
    peak_megabytes,
    some_pairs,
    write_checked,
)
from harness import machine_name, synchronize, write_report

ROWS: dict[str, Features] = {
    "plain": Features(),
    "channels-last": Features(channels_last=True),
    "bfloat16": Features(channels_last=True, bfloat16=True),
    "compiled": Features(channels_last=True, bfloat16=True, compiled=True),
    "graph": Features(channels_last=True, bfloat16=True, graph=True),
    "graph, compiled": Features(channels_last=True, bfloat16=True, compiled=True, graph=True),
}
WARM_UP_STEPS = 20
ROUND_STEPS = 50
ROUNDS = 5
QUICK_STEPS = 2  # of the warm-up, and of each round
QUICK_ROUNDS = 2
MAX_ERROR_LENGTH = 2000


def main() -> None:
    """Measure every row in a process of its own, print the table, write JSON."""
    parser = make_gpu_parser(__doc__)
    add_data_options(parser)
    parser.add_argument(
        "--row-seconds", type=float, default=100, help="a row that takes longer ends"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="some rows")
    # be the process of this row
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measured(options, ROWS[options.row])))
        return

    rows = earlier_rows(options)
    for name in options.rows:
        if name not in rows:
            rows[name] = row_of_process(name, options)
            write_report(options, machine_name(options.device), ok=False, rows=rows)
        print_row(name, rows[name])
    are_well = not any("error" in row for row in rows.values())
    if are_well and len(rows) < len(ROWS):
        return  # the report goes on to say that it is not whole
    write_checked(options, ok=are_well, rows=rows)


def earlier_rows(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the rows without errors that the report holds already."""
    if options.json is None or not options.json.exists():
        return {}
    rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    return {name: row for name, row in rows.items() if "error" not in row}


def row_of_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run this script again for one row; return its numbers, or how it failed."""
    command = [sys.executable, *sys.argv, "--row", name]
    environment = dict(os.environ)
    if options.quick:
        environment["TORCH_COMPILE_DISABLE"] = "1"  # torch.compile returns what it is given
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=options.row_seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {options.row_seconds:g} s"}
    if done.returncode != 0:
        return {"error": done.stderr[-MAX_ERROR_LENGTH:]}
    return json.loads(done.stdout.splitlines()[-1])


def measured(options: argparse.Namespace, features: Features) -> dict[str, Any]:
    """Return what one row's training takes."""
    torch.backends.cudnn.benchmark = True  # as in the recipe
    sizes = QUICK if options.quick else FULL
    warm_up = QUICK_STEPS if options.quick else WARM_UP_STEPS
    round_steps = QUICK_STEPS if options.quick else ROUND_STEPS
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    max_unread = warm_up + rounds * round_steps
    start = time.perf_counter()
    training = make_training(some_pairs(options), sizes, options.device, features, max_unread)
    step = 0
    for _ in range(warm_up):
        training.steps.do(step)
        step += 1
    synchronize(options.device)
    warm_up_seconds = time.perf_counter() - start

    seconds: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(round_steps):
            training.steps.do(step)
            step += 1
        synchronize(options.device)
        seconds.append((time.perf_counter() - start) / round_steps)
    return {
        "steps_a_second": 1 / statistics.median(seconds),
        "seconds_a_step": seconds,
        "warm_up_seconds": warm_up_seconds,
        "peak_mb": peak_megabytes(options.device),
        "last_loss": training.read_losses()[-1],
    }


def print_row(name: str, row: dict[str, Any]) -> None:
    """Print one line of the table."""
    if "error" in row:
        print(f"{name}: failed: {row['error']}")
        return
    print(
        f"{name}: {row['steps_a_second']:.1f} steps a second, peak {row['peak_mb']} MB, last loss "
        f"{row['last_loss']:.5f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
