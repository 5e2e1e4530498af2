"""Time of an image in tiles over that of the whole image, and how far the results lie apart.

    python tests/benchmarks/bench_tiling.py [--size 720x480] [--tiles 64 128 auto] [--json FILE]

The whole and the tiles take turns, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine_name, make_parser, require_at_least, time_in_turn, write_report

from elasticnet import ElasticWrapper, load
from elasticnet.sr import asrn, edsr
from elasticnet.sr.inference.tile_layout import first_tiling
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.sr.pixels import to_uint8

CELLS = (1, 4, 16, 64)  # sides of the squares of one value in the image, in pixels
COLUMNS = (
    "depth",
    "reach",
    "tile",
    "window",
    "tiles",
    "s",
    "time over whole",
    "difference",
    "8-bit pixels that differ",
)


def smooth_noise(height: int, width: int) -> np.ndarray:
    """Return an image (h, w, 3), floats in 0..1, with edges of all sizes: noise at four scales."""
    generator = np.random.default_rng(0)
    image = np.zeros((height, width, 3), np.float32)
    for cell in CELLS:
        rows = -(-height // cell)  # rounded up
        columns = -(-width // cell)
        noise = generator.random((rows, columns, 3), dtype=np.float32)
        enlarged = noise.repeat(cell, axis=0).repeat(cell, axis=1)
        image += enlarged[:height, :width] / len(CELLS)
    return image


def the_net(options: argparse.Namespace) -> ElasticWrapper:
    """Return the network of --weights, or an untrained one."""
    if options.weights:
        return load(options.weights, device=options.device)
    torch.manual_seed(0)
    if options.model == "asrn":
        net = asrn(options.scale, init="default")
    else:
        net = edsr(options.scale)
    return net.eval().to(options.device)


def parse_tile(text: str) -> int | str:
    """Return a tile's side in pixels, or "auto"."""
    return text if text == "auto" else int(text)


def measure(
    net: ElasticWrapper, image: np.ndarray, depth: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a row for the whole image and for every tile."""
    tiles: list[int | str | None] = [None, *options.tiles]
    plans = {tile: plan_upscale(net, depth=depth, tile=tile) for tile in tiles}
    cases: dict[int | str | None, Callable[[], np.ndarray]] = {
        tile: partial(upscale_array, image, plan) for tile, plan in plans.items()
    }
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds = time_in_turn(cases, options.repeats, clock=clock)
    whole = cases[None]()
    whole_median = statistics.median(seconds[None])
    rows: list[dict[str, Any]] = []
    for tile, plan in plans.items():
        tiling = first_tiling(plan, image.shape[:2])
        result = cases[tile]()
        difference = np.abs(result - whole)
        differs_in_8_bits = (to_uint8(result * 255) != to_uint8(whole * 255)).any(axis=-1)
        median = statistics.median(seconds[tile])
        rows.append(
            {
                "depth": depth,
                "reach": plan.reach,
                "tile": "whole" if tile is None else tile,
                "window": list(tiling.window_size),
                "tiles": tiling.num_tiles,
                "seconds": median,
                "ratio": median / whole_median,
                "bit_for_bit": bool((difference == 0).all()),
                "largest_difference": float(difference.max()),
                "pixels_that_differ_in_8_bits": float(differs_in_8_bits.mean()),
            }
        )
    return rows


def table_row(row: dict[str, Any]) -> str:
    """Return a row as Markdown."""
    height, width = row["window"]
    difference = f"{row['largest_difference']:.1e}"
    if row["bit_for_bit"]:
        difference = "0 (bit for bit)"
    cells = [
        row["depth"],
        row["reach"],
        row["tile"],
        f"{width}x{height}",
        row["tiles"],
        f"{row['seconds']:.3f}",
        f"{row['ratio']:.2f}",
        difference,
        f"{row['pixels_that_differ_in_8_bits']:.1e}",
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--weights", type=Path, help="a checkpoint, not an untrained network")
    parser.add_argument("--model", choices=("asrn", "edsr"), default="asrn")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="+", help="default: shallowest and deepest")
    parser.add_argument("--size", default="720x480", help="width x height of the input")
    parser.add_argument(
        "--tiles",
        nargs="+",
        type=parse_tile,
        default=[64, 128, 192, 256, 384, 512, "auto"],
        help="sides of the tiles in pixels",
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds; one more warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time", action="store_true", help="of this process, for a machine that others use too"
    )
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "repeats", "threads")
    torch.set_num_threads(options.threads)

    net = the_net(options)
    width, height = (int(side) for side in options.size.split("x"))
    image = smooth_noise(height, width)
    machine = machine_name(options.device)
    print(f"{options.weights or options.model} on {options.size}; {machine}\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("| ---: " * len(COLUMNS) + "|")
    rows: list[dict[str, Any]] = []
    for depth in options.depths or [net.taps[0], net.taps[-1]]:
        for row in measure(net, image, depth, options):
            rows.append(row)
            print(table_row(row), flush=True)
    write_report(options, machine, rows=rows)


if __name__ == "__main__":
    main()
