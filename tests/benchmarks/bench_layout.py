"""ASRN by engine, layout and dtype, and `Upscaler` beside the bare network.

    python tests/benchmarks/bench_layout.py [--size 320x180] [--depth 5] [--threads 2] [--rounds 5]
    [--dtypes float32 bfloat16] [--json FILE]

The packaged ×4 network enlarges one image. Every measurement is a process of its own, because the
idle threads of several engines in one process spin and disturb each other; the cases take turns,
round after round. A process makes two passes to warm up and then times `--passes`; its median
counts. Times are medians over the rounds, ratios medians of the rounds' ratios to the bare network
of the same dtype in its faster layout.

`bare` is the network alone, called with a tensor; in bfloat16 by autocast. `Upscaler` is called
with an array of 8 bits and gives one. `onnx` is ONNX Runtime alone, `onnx upscale` the tile loop
around it, from and to 8 bits; they need elastic-depth[export].
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WEIGHTS = "asrn-x4"
WARM_UP_PASSES = 2
LAYOUTS = ("bare NCHW", "bare channels-last")
UPSCALER = "Upscaler"
ONNX_WAYS = ("onnx", "onnx upscale")


class Case(NamedTuple):
    """What is timed.

    Attributes:
        way: One of the names above.
        dtype: In which convolutions are computed.
    """

    way: str
    dtype: str


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    options = parse_arguments()
    if options.child is not None:
        print(json.dumps(times_of(Case(*options.child), options)))
        return
    # torch is imported by these; the processes that are measured are others
    from harness import machine_name, median_ratio, write_report

    from elasticnet import load
    from elasticnet.export import export

    cases = [Case(way, dtype) for dtype in options.dtypes for way in (*LAYOUTS, UPSCALER)]
    cases += [Case(way, "float32") for way in ONNX_WAYS]
    times: dict[Case, list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        if options.onnx is None and not options.skip_onnx:
            options.onnx = str(Path(folder, "net.onnx"))
            export(load(WEIGHTS), options.onnx, depth=options.depth)
        for number in range(options.rounds):
            order = cases if number % 2 else list(reversed(cases))
            for case in order:
                if options.skip_onnx and case.way in ONNX_WAYS:
                    continue
                times[case].append(median_in_own_process(case, options))
                print(f"{case.way}, {case.dtype}: {times[case][-1]:.0f} ms", file=sys.stderr)

    machine = machine_name()
    print(f"{machine}; depth {options.depth}, {options.size}, {options.threads} threads\n")
    print("| way | dtype | ms | of the bare network |\n| --- | --- | ---: | ---: |")
    rows: list[dict[str, Any]] = []
    for case in cases:
        if not times[case]:
            continue
        layouts = [times[Case(layout, case.dtype)] for layout in LAYOUTS]
        fastest = min(layouts, key=statistics.median)
        row = {
            "way": case.way,
            "dtype": case.dtype,
            "ms": statistics.median(times[case]),
            "of_bare": median_ratio(times[case], fastest),
            "rounds": times[case],
        }
        rows.append(row)
        print(f"| {case.way} | {case.dtype} | {row['ms']:.0f} | {row['of_bare']:.2f} |")
    write_report(options, machine, rows=rows)


def parse_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="320x180", help="of the input, WIDTHxHEIGHT")
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=7, help="timed in each process")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--skip-onnx", action="store_true")
    parser.add_argument(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="call keep_freed_memory() first, as the command does",
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the process, for a machine that others use too"
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--onnx", help="an exported file of this depth; default: exported first")
    return parser.parse_args()


def median_in_own_process(case: Case, options: argparse.Namespace) -> float:
    """Return the median milliseconds of a pass in a fresh process."""
    command = [sys.executable, __file__, "--child", *case]
    if options.onnx is not None:
        command += ["--onnx", options.onnx]
    for name in ("size", "depth", "threads", "passes"):
        command += [f"--{name}", str(getattr(options, name))]
    command.append("--keep-memory" if options.keep_memory else "--no-keep-memory")
    if options.cpu_time:
        command.append("--cpu-time")
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


# --- in the process that is measured


def times_of(case: Case, options: argparse.Namespace) -> list[float]:
    """Return the milliseconds of passes."""
    from elasticnet.memory import keep_freed_memory

    if options.keep_memory:
        keep_freed_memory()
    width, height = (int(side) for side in options.size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    run = (
        onnx_run(case, image, options) if case.way in ONNX_WAYS else torch_run(case, image, options)
    )
    clock = time.process_time if options.cpu_time else time.perf_counter
    times: list[float] = []
    for number in range(WARM_UP_PASSES + options.passes):
        start = clock()
        run()
        if number >= WARM_UP_PASSES:
            times.append(1e3 * (clock() - start))
    return times


def onnx_run(
    case: Case, image: NDArray[np.uint8], options: argparse.Namespace
) -> Callable[[], object]:
    """Return what runs the exported file once."""
    from elasticnet.sr.inference.onnx_plan import plan_onnx
    from elasticnet.sr.inference.tiling import upscale_array

    plan = plan_onnx(options.onnx, threads=options.threads)
    if case.way == "onnx upscale":
        return lambda: upscale_array(image, plan)
    x = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / 255
    name = plan.session.get_inputs()[0].name
    return lambda: plan.session.run(None, {name: x})


def torch_run(
    case: Case, image: NDArray[np.uint8], options: argparse.Namespace
) -> Callable[[], object]:
    """Return what runs the network once in PyTorch."""
    import torch

    from elasticnet.sr import Upscaler

    torch.set_num_threads(options.threads)
    upscaler = Upscaler(WEIGHTS, options.depth, dtype=case.dtype)
    if case.way == UPSCALER:
        return lambda: upscaler(image)
    compute_dtype = upscaler.plan().compute_dtype
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float().contiguous() / 255
    if case.way == "bare channels-last":
        x = x.to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.no_grad(), torch.autocast("cpu", compute_dtype, enabled=bool(compute_dtype)):
            upscaler.net(x)

    return run


if __name__ == "__main__":
    main()
