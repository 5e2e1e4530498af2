"""What the options of asrn_div2k.py cost: processor time of a training step beside the plain one.

    python tests/benchmarks/bench_switches.py [--rounds 10] [--batch 16] [--patch 48] [--json FILE]

ASRN x4 is trained by preset best on the CPU, on random images, as neither the images nor the scores
change the time. The plain step is that of `--variant dsl`; each row has the options beside it. All
rows take turns, a step each. Ten rounds hold whole cycles of the curricula; the ratio is that of
the sums over the rounds.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported # noqa: F401

# isort: split
import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from harness import machine_name, make_parser, require_at_least, time_in_turn, write_report
from torch import Tensor

from elasticnet._tables import table
from elasticnet.sr.models.pieces import subpixels_of_image
from elasticnet.training.processes import Processes

RECIPES = Path(__file__).parents[2] / "recipes"
SCALE = 4
PLAIN = "none"
ROWS = {
    PLAIN: ["--variant", "dsl"],
    "--variant full": ["--variant", "full"],
    "--variant full --psd-distance cosine": ["--variant", "full", "--psd-distance", "cosine"],
    "--variant ss (the deepest tap alone)": ["--variant", "ss"],
    "--curriculum alternating": ["--variant", "dsl", "--curriculum", "alternating"],
    "--curriculum rotating": ["--variant", "dsl", "--curriculum", "rotating"],
    "--curriculum sandwich": ["--variant", "dsl", "--curriculum", "sandwich"],
    "--sampled-taps 1": ["--variant", "dsl", "--sampled-taps", "1"],
    "--tap-gradients balanced": ["--variant", "dsl", "--tap-gradients", "balanced"],
    "--tap-gradients projected": ["--variant", "dsl", "--tap-gradients", "projected"],
    "--output-weight": ["--variant", "dsl", "--output-weight", "0.1"],
    "--output-weight --output-teacher self-ensemble": [
        "--variant",
        "dsl",
        "--output-weight",
        "0.1",
        "--output-teacher",
        "self-ensemble",
    ],
    "--tap-fusion": ["--variant", "dsl", "--tap-fusion"],
    "--accumulate 4": ["--variant", "dsl", "--accumulate", "4"],
}


def make_step(recipe: ModuleType, words: list[str], patch: int, batch: int) -> Callable[[], object]:
    """Return a function that does the next step of a training by these options."""
    fixed = ["--preset", "best", "--scale", str(SCALE), "--device", "cpu"]
    fixed += ["--precision", "bfloat16", "--no-tensorboard"]
    options = recipe.parse([*fixed, *words])
    processes = Processes()
    net = recipe.build(options, processes)
    recipe.set_order_of_pixels(options, net, processes.device)
    objective = recipe.make_objective(options, net)
    step = recipe.make_training_step(options, net, objective, processes)
    x = torch.rand(batch, 3, patch, patch)
    target = torch.rand(batch, 3, SCALE * patch, SCALE * patch)
    if net.head.subpixels_in_training:
        target = subpixels_of_image(target, SCALE)  # (b, 3 scale^2, h, w)
    steps_done = 0

    def cut_part(part: int, num_parts: int) -> tuple[Tensor, Tensor]:
        return x.chunk(num_parts)[part], target.chunk(num_parts)[part]

    def next_step() -> None:
        nonlocal steps_done
        step(cut_part, steps_done)
        steps_done += 1

    return next_step


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="steps of each row")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=48, help="side of the LR patches")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "rounds", "batch", "patch")
    return options


def main() -> None:
    """Print the table."""
    options = parse()
    sys.path.append(str(RECIPES))
    recipe = importlib.import_module("asrn_div2k")
    torch.manual_seed(0)
    steps = {
        name: make_step(recipe, words, options.patch, options.batch) for name, words in ROWS.items()
    }
    seconds = time_in_turn(steps, options.rounds, clock=time.process_time)
    totals = {name: sum(each) for name, each in seconds.items()}
    rows = [["options", "processor seconds a step", "of the plain step"]]
    for name, total in totals.items():
        mean = total / options.rounds
        rows.append([name, f"{mean:.2f}", f"{total / totals[PLAIN]:.2f}"])
    machine = machine_name()
    print(f"{machine}; the steps run in bfloat16\n")
    print(table(rows))
    write_report(options, machine, seconds=seconds)


if __name__ == "__main__":
    main()
