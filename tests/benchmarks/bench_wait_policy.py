"""What a training step takes beside other work, with OpenMP's threads spinning and sleeping.

    python tests/benchmarks/bench_wait_policy.py [--steps 10] [--batch-size 16] [--load 1]
    [--json FILE]

It makes its own load: `--load` processes that each keep a core busy. A step of the recipe's demo
(ASRN ×2, five blocks, L1 at every tap) is timed four times: idle and under load, with
OMP_WAIT_POLICY=PASSIVE and without it. Each of the four is a process of its own, because OpenMP
reads the policy once, when torch is imported. Medians over the steps. Run it on a machine that does
nothing else.
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

POLICY = "OMP_WAIT_POLICY"
BUSY_LOOP = "while True: pass"
WARM_UP_STEPS = 2


class Row(NamedTuple):
    """Seconds of a step with one policy.

    Attributes:
        policy: Of OpenMP.
        idle: The median on the idle machine.
        loaded: The median beside the load.
    """

    policy: str
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

    rows: list[Row] = []
    for policy in ("default", "PASSIVE"):
        idle = median_of_a_process(options, policy)
        with load(options.load):
            loaded = median_of_a_process(options, policy)
        rows.append(Row(policy, idle, loaded))

    print(f"{machine_name()}; load: {options.load} busy processes\n")
    print(f"| {POLICY} | idle, s a step | under load, s a step |")
    print("| --- | ---: | ---: |")
    for row in rows:
        print(f"| {row.policy} | {row.idle:.2f} | {row.loaded:.2f} |")
    write_report(options, machine_name(), rows=[row._asdict() for row in rows])


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line; the harness's own parser would import torch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each process")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--load", type=int, default=1, help="processes that keep a core busy")
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("steps", "batch_size", "load"):
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


def median_of_a_process(options: argparse.Namespace, policy: str) -> float:
    """Return the median of a step's seconds in a new process with this policy."""
    environment = {name: value for name, value in os.environ.items() if name != POLICY}
    environment.pop("OMP_NUM_THREADS", None)  # one thread has nobody to wait for
    if policy != "default":
        environment[POLICY] = policy
    words = [sys.executable, __file__, "--child"]
    words += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
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
