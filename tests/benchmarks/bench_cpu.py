"""ASRN's speed on a CPU at each depth: PyTorch eager and compiled, in float32 and bfloat16, and
ONNX Runtime.

    python tests/benchmarks/bench_cpu.py [--size 320x180] [--threads 2] [--repeats 9] [--json FILE]

One image of this size is enlarged. Every way runs the same folded network (head and channel shuffle
as single convolutions), and its multiply-accumulates are counted as folded, so that folding does
not flatter the rates. They are set beside the fastest matrix product that PyTorch does here in that
precision: by torch.mm, or by a 1x1 convolution, which another library computes (on AMD processors
it is twice as fast in float32). All cases take turns, round after round; times are medians over the
rounds, fractions and shares medians of the rounds' ratios. The last column is the largest
difference from the float32 network. Below stand variations of eager: the layers as written, images
in NCHW, tiles whose features fit the cache. ONNX Runtime needs elastic-depth[export].
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch._inductor import config as inductor
from tqdm import tqdm

from elasticnet.card.machine import this_machine
from elasticnet.card.measuring import count_macs
from elasticnet.export import export, plain_copy, require, runner
from elasticnet.memory import keep_freed_memory
from elasticnet.sr import asrn
from elasticnet.sr.inference.plan import plan_upscale
from elasticnet.sr.inference.tiling import upscale_array

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = ("eager", "compiled", "onnx")
# of eager, at the deepest depth
VARIATIONS = ("plain head, shuffle kept", "NCHW", "tiles of 64", "tiles of 128")
PRODUCTS = ("torch.mm", "1x1 convolution")  # ways to multiply matrices
SIDES = (256, 512, 1024)  # of the square matrix; the other has 4096 rows
ROWS = 4096
Case = tuple[str, str, int]  # way, precision, depth; or product, precision, side


def main() -> None:
    """Measure, print the table, write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="320x180", help="of the input, WIDTHxHEIGHT")
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--skip", choices=("bicubic",), help="the network with this skip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="by keep_freed_memory(), as the command",
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    require("onnx")
    if options.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    inductor.freezing = True  # weights as constants of the compiled code
    net = asrn(options.scale, skip=options.skip).eval()
    lr = torch.rand(1, 3, height, width)
    macs = {depth: count_macs(plain_copy(net, fold=True), lr, depth) for depth in net.taps}

    machine = this_machine(threads=options.threads).key
    print(f"{machine}; {options.size} enlarged {options.scale} times, {options.repeats} rounds")
    with torch.inference_mode():
        cases, differences = prepare(net, lr)
        seconds = rounds(cases, options.repeats)
    products = {
        (way, name): product_rates(seconds, way, name) for name in PRECISIONS for way in PRODUCTS
    }
    peaks = {
        name: [max(pair) for pair in zip(*(products[way, name] for way in PRODUCTS), strict=True)]
        for name in PRECISIONS
    }
    for (way, name), rates in products.items():
        print(f"{name} matrix product by {way}: {statistics.median(rates) / 1e9:.0f} GMAC/s")

    rows = []
    print(
        f"\n{'':36}{'depth':>6}{'ms':>9}{'GMAC/s':>9}{'of peak':>9}"
        f"{'of deepest':>12}{'difference':>12}"
    )
    for way, precision, depth in differences:
        case, deepest = seconds[way, precision, depth], seconds[way, precision, net.taps[-1]]
        rates = [macs[depth] / each for each in case]
        row = {
            "way": way,
            "precision": precision,
            "depth": depth,
            "ms": 1e3 * statistics.median(case),
            "gmacs_per_second": statistics.median(rates) / 1e9,
            "of_peak": ratio(rates, peaks[precision]),
            "of_deepest": ratio(case, deepest),
            "difference": differences[way, precision, depth],
        }
        rows.append(row)
        print(
            f"{way + ', ' + precision:36}{depth:6}{row['ms']:9.1f}"
            f"{row['gmacs_per_second']:9.0f}{row['of_peak']:9.1%}"
            f"{row['of_deepest']:12.1%}{row['difference']:12.1e}"
        )
    if options.json:
        medians = {
            f"{name}, {way}": statistics.median(rates) / 1e9
            for (way, name), rates in products.items()
        }
        settings = {name: str(value) for name, value in vars(options).items() if name != "json"}
        report = {
            "machine": machine,
            "settings": settings,
            "macs": macs,
            "product_gmacs_per_second": medians,
        }
        options.json.write_text(
            json.dumps({**report, "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )


def prepare(net: Any, lr: torch.Tensor) -> tuple[dict[Case, Callable[[], Any]], dict[Case, float]]:
    """Return what is timed, and of each way and depth the largest difference from the float32
    network.
    """
    cases: dict[Case, Callable[[], Any]] = {}
    for precision, dtype in PRECISIONS.items():
        for side in SIDES:
            a, b = torch.randn(ROWS, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
            image = a.view(1, 64, -1, side).permute(0, 3, 1, 2)
            cases["torch.mm", precision, side] = partial(torch.mm, a, b)
            cases["1x1 convolution", precision, side] = partial(
                F.conv2d, image, b.view(side, side, 1, 1)
            )
    differences: dict[Case, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            (way, precision, depth)
            for precision in PRECISIONS
            for way in WAYS
            for depth in net.taps
        ]
        runs += [(way, precision, net.taps[-1]) for precision in PRECISIONS for way in VARIATIONS]
        for way, precision, depth in tqdm(runs, desc="preparing", leave=False, disable=None):
            if way == "onnx" and precision == "bfloat16":
                continue  # ONNX Runtime has no such kernels for CPUs
            dtype = PRECISIONS[precision]
            cut, x = net.truncate(depth).to(dtype, memory_format=torch.channels_last), lr.to(dtype)
            if way == "onnx":
                run = runner(export(net, Path(folder) / f"{depth}.onnx", depth=depth).path)
            elif way == "plain head, shuffle kept":
                run = plain_copy(cut, fold=False)
            elif way.startswith("tiles"):
                image, tile = lr[0].permute(1, 2, 0).numpy(), int(way.split()[-1])
                plan = plan_upscale(cut, depth=depth, tile=tile)
                cases[way, precision, depth] = partial(upscale_array, image, plan)
                run = None
            else:
                run = plain_copy(cut, fold=True)
                run = torch.compile(run) if way == "compiled" else run
            if run is not None:
                x = x if way in ("onnx", "NCHW") else x.to(memory_format=torch.channels_last)
                cases[way, precision, depth] = partial(run, x)
            output = torch.as_tensor(cases[way, precision, depth]())
            output = output if run is not None else output.permute(2, 0, 1)[None]
            differences[way, precision, depth] = (
                (output.float() - net(lr, depth=depth)).abs().max().item()
            )
    return cases, differences


def rounds(cases: dict[Case, Callable[[], Any]], repeats: int) -> dict[Case, list[float]]:
    """Return the seconds of each case, round by round; the order turns round every time, the first
    two warm up.
    """
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for number in tqdm(range(2 + repeats), desc="rounds", leave=False, disable=None):
        for case in list(cases)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            cases[case]()
            if number > 1:
                seconds[case].append(time.perf_counter() - start)
    return seconds


def product_rates(seconds: dict[Case, list[float]], way: str, precision: str) -> list[float]:
    """Return the multiply-accumulates a second of the best matrix product of each round."""
    return [
        max(ROWS * side**2 / each for side, each in zip(SIDES, times, strict=True))
        for times in zip(*(seconds[way, precision, side] for side in SIDES), strict=True)
    ]


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
