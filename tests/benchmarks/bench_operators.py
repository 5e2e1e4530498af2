"""Where the processor time of a training step goes on a CPU, operator by operator.

    python tests/benchmarks/bench_operators.py [--images] [--scale 4] [--precision bfloat16]
        [--threads 1] [--steps 8] [--rows 40] [--json FILE]

ASRN is trained as preset best of asrn_div2k.py does it: on the LR grid, as the recipe does on a
CPU, or with `--images` on predictions that are images. Time is that of the processor, so that other
work on the machine hardly counts. An operator's time is the lower quartile of its calls times their
number in a step. What Python and autograd take between the operators is the difference to the whole
step, which is measured without looking inside. With several threads only the whole step counts.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported # noqa: F401

# isort: split
import argparse
import importlib
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine_name, make_parser, require_at_least, write_report
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from elasticnet._tables import table
from elasticnet.memory import keep_freed_memory
from elasticnet.sr.models.pieces import subpixels_of_image
from elasticnet.training.processes import Processes

RECIPES = Path(__file__).parents[2] / "recipes"
BATCH = 16
PATCH = 48
WARM_UP_STEPS = 3


class OperatorTimes(TorchDispatchMode):
    """Notes the processor time of every operator, by its name and the tensors that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.milliseconds: dict[tuple[str, str], list[float]] = defaultdict(list)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tensors = [describe(each) for each in args if isinstance(each, Tensor)]
        start = time.thread_time_ns()
        result = func(*args, **(kwargs or {}))
        milliseconds = (time.thread_time_ns() - start) / 1e6
        self.milliseconds[str(func), ", ".join(tensors)].append(milliseconds)
        return result


def describe(tensor: Tensor) -> str:
    """Return the shape and the dtype of a tensor, such as "16x96x48x48 bfloat16"."""
    sides = "x".join(str(side) for side in tensor.shape)
    return f"{sides} {str(tensor.dtype).removeprefix('torch.')}".strip()


def make_step(scale: int, precision: str, on_grid: bool) -> Callable[[], object]:
    """Return a function that does the next step of a training."""
    sys.path.append(str(RECIPES))
    recipe = importlib.import_module("asrn_div2k")
    words = ["--preset", "best", "--scale", str(scale), "--device", "cpu"]
    options = recipe.parse([*words, "--precision", precision])
    processes = Processes()
    net = recipe.build(options, processes)
    if on_grid:
        recipe.set_order_of_pixels(options, net, processes.device)
    objective = recipe.make_objective(options, net)
    training_step = recipe.make_training_step(options, net, objective, processes)
    channels_last = torch.channels_last
    x = torch.rand(BATCH, 3, PATCH, PATCH).to(memory_format=channels_last)
    images = torch.rand(BATCH, 3, scale * PATCH, scale * PATCH).to(memory_format=channels_last)

    def whole_batch(part: int, num_parts: int) -> tuple[Tensor, Tensor]:
        target = subpixels_of_image(images, scale) if on_grid else images
        return x, target

    return lambda: training_step(whole_batch, step=0)


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", action="store_true", help="predict images, not subpixels")
    parser.add_argument("--scale", type=int, choices=(1, 2, 3, 4), default=4)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=40, help="how many operators are shown")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "threads", "steps", "rows")
    return options


def main() -> None:
    """Print the table."""
    options = parse()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step = make_step(options.scale, options.precision, on_grid=not options.images)
    for _ in range(WARM_UP_STEPS):
        step()

    # the whole step, without looking inside
    whole: list[float] = []
    by_the_clock: list[float] = []
    for _ in range(options.steps):
        start, start_of_clock = time.process_time_ns(), time.perf_counter_ns()
        step()
        whole.append((time.process_time_ns() - start) / 1e6)
        by_the_clock.append((time.perf_counter_ns() - start_of_clock) / 1e6)

    # its operators
    times = OperatorTimes()
    with times:
        for _ in range(options.steps):
            step()
    costs: list[tuple[float, float, str, str]] = []
    for (name, tensors), milliseconds in times.milliseconds.items():
        quartile = sorted(milliseconds)[len(milliseconds) // 4]
        calls = len(milliseconds) / options.steps
        costs.append((quartile * calls, calls, name, tensors))
    costs.sort(reverse=True)

    machine = machine_name()
    print(f"{machine}; a step in {options.precision}, ms of processor time\n")
    rows = [["ms", "calls", "operator", "tensors"]]
    for milliseconds, calls, name, tensors in costs[: options.rows]:
        rows.append([f"{milliseconds:.2f}", f"{calls:g}", name, tensors])
    print(table(rows))
    in_operators = sum(cost[0] for cost in costs)
    print(
        f"\nall operators {in_operators:.0f} ms; whole step {statistics.median(whole):.0f} ms, by "
        f"the clock {statistics.median(by_the_clock):.0f} ms"
    )
    write_report(options, machine, whole=whole, by_the_clock=by_the_clock, operators=costs)


if __name__ == "__main__":
    main()
