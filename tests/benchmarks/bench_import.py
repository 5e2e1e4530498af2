"""Time of `import elasticnet` beyond `import torch`, each time in a fresh interpreter.

    python tests/benchmarks/bench_import.py [--repeats 7] [--json FILE]

Prints a table of median and fastest times, and writes them as JSON where asked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

MEASURE = """
import json, sys, time
start = time.perf_counter()
import torch
torch_done = time.perf_counter()
before = len(sys.modules)
import elasticnet
done = time.perf_counter()
print(json.dumps([torch_done - start, done - torch_done, len(sys.modules) - before, torch.__version__]))
"""


def measure() -> tuple[float, float, int, str]:
    """Return the seconds of torch, those of elasticnet after it, modules added, and torch's
    version.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    torch_seconds, package_seconds, modules, version = json.loads(run.stdout)
    return torch_seconds, package_seconds, modules, version


def main() -> None:
    """Measure and print; the first interpreter only warms the disk cache and is not counted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="fresh interpreters to take the median of"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: expected at least 1")

    measure()
    runs = [measure() for _ in range(options.repeats)]
    columns = {
        "import torch": [run[0] for run in runs],
        "import elasticnet after it": [run[1] for run in runs],
    }
    print(
        f"Python {platform.python_version()}, torch {runs[0][3]}, {os.cpu_count()} CPUs, {len(runs)} runs\n"
    )
    print(f"{'':28}{'median ms':>10}{'fastest ms':>12}")
    for name, seconds in columns.items():
        print(f"{name:28}{1000 * statistics.median(seconds):10.1f}{1000 * min(seconds):12.1f}")
    print(f"\nmodules added beyond torch's: {runs[0][2]}")
    if options.json:
        numbers = {
            "python": platform.python_version(),
            "torch": runs[0][3],
            "cpus": os.cpu_count(),
            "modules_added": runs[0][2],
            "seconds": columns,
        }
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
