"""Time of an image in tiles over that of the whole image, for several tiles, and how far the two
results lie apart.

Run as `python tests/benchmarks/bench_tiling.py [--size 720x480] [--tiles 64 128 256 auto] [--json
FILE]`. The whole and the tiles take turns, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elasticnet import ElasticWrapper, load
from elasticnet.sr import asrn, edsr
from elasticnet.sr.inference.plan import first_tiling, plan_upscale
from elasticnet.sr.inference.tiling import upscale_array


def smooth_noise(height: int, width: int) -> np.ndarray:
    """Return an image (h, w, 3), floats in 0..1, with edges of all sizes: sums of noise at several
    scales.
    """
    generator, image = np.random.default_rng(0), np.zeros((height, width, 3), np.float32)
    for cell in (1, 4, 16, 64):
        noise = generator.random((-(-height // cell), -(-width // cell), 3), dtype=np.float32)
        image += noise.repeat(cell, 0).repeat(cell, 1)[:height, :width] / 4
    return image


def the_net(options: argparse.Namespace) -> ElasticWrapper:
    if options.weights:
        return load(options.weights, device=options.device)
    build = {"asrn": asrn, "edsr": edsr}[options.model]
    settings = {"init": "default"} if options.model == "asrn" else {}
    torch.manual_seed(0)
    return build(options.scale, **settings).eval().to(options.device)


def measure(
    net: ElasticWrapper, image: np.ndarray, depth: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    tiles: list[int | str | None] = [
        None,
        *(tile if tile == "auto" else int(tile) for tile in options.tiles),
    ]
    clock = time.process_time if options.cpu_time else time.perf_counter
    plans = {tile: plan_upscale(net, depth=depth, tile=tile) for tile in tiles}
    seconds: dict[int | str | None, list[float]] = {tile: [] for tile in tiles}
    results: dict[int | str | None, np.ndarray] = {}
    for repeat in range(options.repeats + 1):  # the first one warms up
        for tile in tiles:
            start = clock()
            results[tile] = upscale_array(image, plans[tile])
            if repeat:
                seconds[tile].append(clock() - start)
    rows, whole = [], results[None]
    for tile in tiles:
        tiling = first_tiling(plans[tile], image.shape[:2])
        difference = np.abs(results[tile] - whole)
        levels = [np.floor(result.clip(0, 1) * 255 + 0.5) for result in (results[tile], whole)]
        rows.append(
            {
                "depth": depth,
                "reach": plans[tile].reach,
                "tile": "whole" if tile is None else tile,
                "window": list(tiling.window),
                "tiles": tiling.num_tiles,
                "seconds": statistics.median(seconds[tile]),
                "ratio": statistics.median(seconds[tile]) / statistics.median(seconds[None]),
                "bit_for_bit": bool((difference == 0).all()),
                "largest_difference": float(difference.max()),
                "pixels_that_differ_in_8_bits": float((levels[0] != levels[1]).any(-1).mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Tiles beside the whole image: time and difference."
    )
    parser.add_argument(
        "--weights", type=Path, help="a checkpoint, instead of an untrained network"
    )
    parser.add_argument("--model", choices=("asrn", "edsr"), default="asrn")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument(
        "--depths", type=int, nargs="+", help="default: the shallowest and the deepest"
    )
    parser.add_argument("--size", default="720x480", help="width x height of the input")
    parser.add_argument(
        "--tiles", nargs="+", default=["64", "128", "192", "256", "384", "512", "auto"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time", action="store_true", help="of this process, for a machine that others use too"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    net = the_net(options)
    width, height = map(int, options.size.split("x"))
    image = smooth_noise(height, width)
    rows = []
    print(
        f"{options.weights or options.model} on {options.size}, {options.threads} threads, "
        f"{options.device}"
    )
    print(
        "| depth | reach | tile | window | tiles | s | time over whole | difference "
        "| 8-bit pixels that differ |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for depth in options.depths or [net.taps[0], net.taps[-1]]:
        for row in measure(net, image, depth, options):
            rows.append(row)
            window = "x".join(map(str, reversed(row["window"])))
            difference = (
                "0 (bit for bit)" if row["bit_for_bit"] else f"{row['largest_difference']:.1e}"
            )
            print(
                f"| {depth} | {row['reach']} | {row['tile']} | {window} | {row['tiles']} "
                f"| {row['seconds']:.3f} | "
                f"{row['ratio']:.2f} | {difference} | {row['pixels_that_differ_in_8_bits']:.1e} |"
            )
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()} | {
            "torch": torch.__version__
        }
        options.json.write_text(
            json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
