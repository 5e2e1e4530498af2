"""What a training step takes beside other work, by how OpenMP's threads wait for each other.

    python tests/benchmarks/bench_wait_policy.py [--steps 10] [--batch-size 16] [--load 1]
    [--rounds 3] [--json FILE]

It makes its own load: `--load` processes that each keep a core busy. A step of the recipe's demo
(ASRN ×2, five blocks, L1 at every tap) is timed idle and under load with each of the settings:
threads that spin while they wait (libgomp's default), that sleep at once (OMP_WAIT_POLICY=PASSIVE),
and that spin briefly and then sleep (what commands and recipes set). Each measurement is a process
of its own, because OpenMP reads its settings once, when torch is imported. The settings take turns
within a round; medians over steps, then over rounds. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SPIN_COUNTS = (1_000, 10_000, 100_000)
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
BUSY_LOOP = "while True: pass"
WARM_UP_STEPS = 2


class Row(NamedTuple):
    """Seconds of a step with one setting.

    Attributes:
        setting: The environment variables that differ from the default.
        idle: The median on the idle machine.
        loaded: The median beside the load.
    """

    setting: str
    idle: float
    loaded: float


def main() -> None:
    """Print the table, and write it to --json."""
    options = parse_arguments()
    if options.child:
        print(json.dumps(step_seconds(options)))
        return

    # torch is imported by these; the processes that are measured are others
    from harness import machine_name, write_report

    settings = all_settings()
    idle: dict[str, list[float]] = {name: [] for name in settings}
    loaded: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(options.rounds):
        for name, variables in settings.items():
            idle[name].append(median_of_a_process(options, variables))
        with load(options.load):
            for name, variables in settings.items():
                loaded[name].append(median_of_a_process(options, variables))
    rows = [
        Row(name, statistics.median(idle[name]), statistics.median(loaded[name]))
        for name in settings
    ]

    print(f"{machine_name()}; load: {options.load} busy processes; {options.rounds} rounds\n")
    print("| setting | idle, s a step | under load, s a step |")
    print("| --- | ---: | ---: |")
    for row in rows:
        print(f"| {row.setting} | {row.idle:.3f} | {row.loaded:.3f} |")
    write_report(options, machine_name(), rows=[row._asdict() for row in rows])


def all_settings() -> dict[str, dict[str, str]]:
    """Return the environment variables of each setting, by the name in the table."""
    settings = {"default": {}, "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}}
    for count in SPIN_COUNTS:
        settings[f"GOMP_SPINCOUNT={count}"] = {"GOMP_SPINCOUNT": str(count)}
    settings["commands and recipes"] = what_commands_set()
    return settings


def what_commands_set() -> dict[str, str]:
    """Return the variables that `elasticnet.before_torch` sets in an environment without them."""
    code = "import json, os, elasticnet.before_torch; print(json.dumps(dict(os.environ)))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment_with({}), stdout=subprocess.PIPE, check=True)
    after = json.loads(done.stdout)
    return {name: after[name] for name in VARIABLES if name in after}


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line; the harness's own parser would import torch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each process")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--load", type=int, default=1, help="processes that keep a core busy")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row is measured")
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("steps", "batch_size", "load", "rounds"):
        if getattr(options, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1"
            )
    return options


@contextmanager
def load(num_processes: int) -> Generator[None, None, None]:
    """Keep so many cores busy within the block."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def environment_with(variables: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings of OpenMP and no others."""
    # OMP_NUM_THREADS goes, too: one thread has nobody to wait for
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**others, **variables}


def median_of_a_process(options: argparse.Namespace, variables: dict[str, str]) -> float:
    """Return the median of a step's seconds in a new process with these variables."""
    words = [sys.executable, __file__, "--child"]
    words += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
    environment = environment_with(variables)
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
    return statistics.median(json.loads(done.stdout))


def step_seconds(options: argparse.Namespace) -> list[float]:
    """Return the seconds of each step, measured in this process."""
    import torch
    from torch import nn

    from elasticnet import ElasticObjective
    from elasticnet.loss_weights import normalised
    from elasticnet.memory import keep_freed_memory
    from elasticnet.sr import asrn
    from elasticnet.training.step import TrainingStep

    keep_freed_memory()
    torch.manual_seed(0)
    net: Any = asrn(2, skip="bicubic").to(memory_format=torch.channels_last)
    objective = ElasticObjective(
        net, nn.L1Loss(), psd_weight=8e-5, tap_weights=normalised(net.taps)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    training_step = TrainingStep(objective, net, optimizer)
    x = torch.rand(options.batch_size, 3, 32, 32)
    target = torch.rand(options.batch_size, 3, 64, 64)

    def batch(part: int, num_parts: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x.chunk(num_parts)[part], target.chunk(num_parts)[part]

    seconds: list[float] = []
    for step in range(WARM_UP_STEPS + options.steps):
        start = time.perf_counter()
        training_step(batch, step)
        if step >= WARM_UP_STEPS:
            seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
