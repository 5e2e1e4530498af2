"""Time of `import elasticnet` beyond `import torch`, each time in a fresh interpreter.

    python tests/benchmarks/bench_import.py [--repeats 7] [--json FILE]

Prints a table of median and fastest times. The first interpreter only warms the disk cache.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import NamedTuple

from harness import machine_name, make_parser, require_at_least, write_report

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


class Import(NamedTuple):
    """One measurement: seconds of torch, those of elasticnet after it, and modules it added."""

    torch_seconds: float
    package_seconds: float
    modules_added: int


def measure() -> Import:
    """Import both in a fresh interpreter."""
    command = [sys.executable, "-c", MEASURE]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return Import(*json.loads(run.stdout))


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="fresh interpreters that count")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "repeats")

    measure()
    imports = [measure() for _ in range(options.repeats)]
    seconds = {
        "import torch": [each.torch_seconds for each in imports],
        "import elasticnet after it": [each.package_seconds for each in imports],
    }
    machine = machine_name()
    print(f"{machine}, {len(imports)} runs\n")
    print(f"{'':28}{'median ms':>10}{'fastest ms':>12}")
    for name, times in seconds.items():
        print(f"{name:28}{1000 * statistics.median(times):10.1f}{1000 * min(times):12.1f}")
    modules_added = imports[0].modules_added
    print(f"\nmodules added beyond torch's: {modules_added}")
    write_report(options, machine, modules_added=modules_added, seconds=seconds)


if __name__ == "__main__":
    main()
