"""How long the command takes to start, each time in a fresh interpreter.

    python tests/benchmarks/bench_import.py [--repeats 7] [--json FILE]

Prints two tables of median and fastest times: `import elasticnet` beyond `import torch`, and whole
commands: help, and an image of 16x16 pixels enlarged, beside an interpreter that only imports
torch. A command's processor time is what it takes on a core of its own; on a busy machine the
clock says more. The first interpreter of each kind only warms the disk cache.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness import machine_name, make_parser, require_at_least, write_report
from PIL import Image

ROOT = Path(__file__).parents[2]
MEASURE = """
import json, sys, time
start = time.perf_counter()
import torch
torch_done = time.perf_counter()
before = len(sys.modules)
import elasticnet
done = time.perf_counter()
print(json.dumps([torch_done - start, done - torch_done, len(sys.modules) - before]))
"""
SMALL_IMAGE = (16, 16)  # pixels
COMMAND = ("-m", "elasticnet")


class Import(NamedTuple):
    """One measurement: seconds of torch, those of elasticnet after it, and modules it added."""

    torch_seconds: float
    package_seconds: float
    modules_added: int


class Run(NamedTuple):
    """One run of a program: seconds by the clock, and of the processors."""

    seconds: float
    processor_seconds: float


def environment() -> dict[str, str]:
    """Return the environment of the programs: this source tree is what they import."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def measure_import() -> Import:
    """Import both in a fresh interpreter."""
    command = [sys.executable, "-c", MEASURE]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return Import(*json.loads(run.stdout))


def run_program(arguments: Sequence[str]) -> Run:
    """Run Python with these arguments until it ends."""
    before = os.times()
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    subprocess.run(command, capture_output=True, check=True, env=environment())
    seconds = time.perf_counter() - start
    after = os.times()
    user = after.children_user - before.children_user
    system = after.children_system - before.children_system
    return Run(seconds=seconds, processor_seconds=user + system)


def programs(folder: Path) -> dict[str, list[str]]:
    """Return what is run, by its name in the table; images lie in the folder."""
    image = folder / "small.png"
    Image.new("RGB", SMALL_IMAGE).save(image)
    enlarge = ["upscale", str(image), "--scale=4", "-o", str(folder / "large.png"), "--force"]
    return {
        "python -c 'import torch'": ["-c", "import torch"],
        "elasticnet --help": [*COMMAND, "--help"],
        "elasticnet upscale, 16x16": [*COMMAND, *enlarge],
    }


def print_table(title: str, milliseconds: Mapping[str, Sequence[float]]) -> None:
    """Print the median and the fastest of each case."""
    print(f"\n{title:28}{'median ms':>10}{'fastest ms':>12}")
    for name, times in milliseconds.items():
        print(f"{name:28}{statistics.median(times):10.1f}{min(times):12.1f}")


def main() -> None:
    """Measure, print the tables, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="fresh interpreters that count")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "repeats")

    measure_import()
    imports = [measure_import() for _ in range(options.repeats)]
    seconds = {
        "import torch": [each.torch_seconds for each in imports],
        "import elasticnet after it": [each.package_seconds for each in imports],
    }
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in programs(Path(folder)).items():
            run_program(arguments)
            runs[name] = [run_program(arguments) for _ in range(options.repeats)]

    machine = machine_name()
    print(f"{machine}, {options.repeats} runs")
    print_table(
        "imports", {name: [1000 * each for each in times] for name, times in seconds.items()}
    )
    modules_added = imports[0].modules_added
    print(f"modules added beyond torch's: {modules_added}")
    by_clock = {name: [1000 * run.seconds for run in each] for name, each in runs.items()}
    print_table("programs, by the clock", by_clock)
    by_processor = {
        name: [1000 * run.processor_seconds for run in each] for name, each in runs.items()
    }
    print_table("programs, processor time", by_processor)
    write_report(
        options,
        machine,
        modules_added=modules_added,
        seconds=seconds,
        programs={name: [run._asdict() for run in each] for name, each in runs.items()},
    )


if __name__ == "__main__":
    main()
