"""Times imresize beside Pillow's bicubic and a plain NumPy loop: python
tests/benchmarks/bench_resize.py [--json PATH]

The loop is timed on a band of output rows and scaled to the whole image.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from elasticnet.sr.resize import imresize, resize_taps

HEIGHT, WIDTH = 1356, 2040
BAND = 4  # output rows that the plain loop computes


def loop_over_pixels(image: np.ndarray, scale: float, rows: int) -> np.ndarray:
    """Return the first `rows` output rows, one output pixel at a time."""
    height, width = image.shape[:2]
    row_indices, row_weights = resize_taps(
        height, math.ceil(scale * height), scale, "symmetric", True
    )
    column_indices, column_weights = resize_taps(
        width, math.ceil(scale * width), scale, "symmetric", True
    )
    result = np.empty((rows, column_indices.shape[1], image.shape[2]))
    for i in range(rows):
        for j in range(result.shape[1]):
            window = image[row_indices[:, i, None], column_indices[:, j]]
            weights = row_weights[:, i, None] * column_weights[:, j]
            result[i, j] = (window * weights[..., None]).sum(axis=(0, 1))
    return result


def milliseconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median time of each function; they take turns, so that a busy machine slows all
    alike.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:  # the first turn warms up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    large = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rows = []
    for factor in (1 / 2, 1 / 3, 1 / 4, 2.0, 3.0, 4.0):
        # Enlarging ends at about the large size, so that every row handles a like number of pixels.
        image = large if factor < 1 else large[: int(HEIGHT / factor), : int(WIDTH / factor)].copy()
        height, width = (math.ceil(factor * length) for length in image.shape[:2])
        picture, tensor = Image.fromarray(image), torch.tensor(image).permute(2, 0, 1).float() / 255
        times = milliseconds(
            {
                "imresize": lambda image=image, factor=factor: imresize(image, factor),
                "torch float32": lambda tensor=tensor, factor=factor: imresize(tensor, factor),
                "Pillow": lambda picture=picture, height=height, width=width: picture.resize(
                    (width, height), Image.Resampling.BICUBIC
                ),
            },
            options.repeats,
        )
        start = time.perf_counter()
        loop_over_pixels(image, factor, BAND)
        times["loop"] = 1000 * (time.perf_counter() - start) * height / BAND
        rows.append(
            {
                "image": f"{image.shape[1]}×{image.shape[0]}",
                "factor": round(factor, 4),
                "ms": {name: round(value, 2) for name, value in times.items()},
                "imresize / Pillow": round(times["imresize"] / times["Pillow"], 2),
                "loop / imresize": round(times["loop"] / times["imresize"], 1),
            }
        )

    print(
        "RGB uint8, median milliseconds; the aims are imresize / Pillow <= 5 and loop / imresize >= 20"
    )
    print("image      factor  imresize  torch f32  Pillow     loop  imresize/Pillow  loop/imresize")
    for row in rows:
        ms = row["ms"]
        print(
            f"{row['image']:<10} {row['factor']:>6}  {ms['imresize']:>8}  {ms['torch float32']:>9}  {ms['Pillow']:>6}"
            f"  {ms['loop']:>7.0f}  {row['imresize / Pillow']:>15}  {row['loop / imresize']:>13}"
        )
    if options.json:
        versions = {"numpy": np.__version__, "pillow": PIL.__version__, "torch": torch.__version__}
        report = {
            "machine": platform.machine(),
            "torch_threads": torch.get_num_threads(),
            "repeats": options.repeats,
            "versions": versions,
            "rows": rows,
        }
        options.json.write_text(
            json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
