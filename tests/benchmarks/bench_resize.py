"""Time of imresize beside Pillow's bicubic and a plain NumPy loop, at six factors.

    python tests/benchmarks/bench_resize.py [--repeats 7] [--json FILE]

Times are medians in milliseconds. The loop is timed on a band of output rows and scaled to the
whole image. The aims are imresize / Pillow <= 5 and loop / imresize >= 20.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import (
    machine_name,
    make_parser,
    medians_ms,
    require_at_least,
    time_in_turn,
    write_report,
)
from PIL import Image

from elasticnet.sr.resize import contributions, imresize

HEIGHT, WIDTH = 1356, 2040
FACTORS = (1 / 2, 1 / 3, 1 / 4, 2.0, 3.0, 4.0)
BAND_ROWS = 4  # output rows that the plain loop computes


def loop_over_pixels(image: np.ndarray, scale: float, rows: int) -> np.ndarray:
    """Return the first `rows` output rows, one output pixel at a time."""
    height, width = image.shape[:2]
    out_height = math.ceil(scale * height)
    out_width = math.ceil(scale * width)
    row_indices, row_weights = contributions(height, out_height, scale, "symmetric", True)
    column_indices, column_weights = contributions(width, out_width, scale, "symmetric", True)
    result = np.empty((rows, out_width, image.shape[2]))
    for i in range(rows):
        for j in range(out_width):
            window = image[
                row_indices[:, i, None], column_indices[:, j]
            ]  # (neighbours, neighbours, 3)
            weights = row_weights[:, i, None] * column_weights[:, j]  # (neighbours, neighbours)
            result[i, j] = (window * weights[..., None]).sum(axis=(0, 1))
    return result


def measure(large: np.ndarray, factor: float, repeats: int) -> dict[str, Any]:
    """Return the row of one factor."""
    image = large
    if factor > 1:
        # Enlarging ends at about the large size, so that every row makes a like number of pixels.
        image = large[: int(HEIGHT / factor), : int(WIDTH / factor)].copy()
    height = math.ceil(factor * image.shape[0])
    width = math.ceil(factor * image.shape[1])
    tensor = torch.tensor(image).permute(2, 0, 1).float() / 255
    picture = Image.fromarray(image)
    cases: dict[str, Callable[[], object]] = {
        "imresize": partial(imresize, image, factor),
        "torch float32": partial(imresize, tensor, factor),
        "Pillow": partial(picture.resize, (width, height), Image.Resampling.BICUBIC),
    }
    ms = medians_ms(time_in_turn(cases, repeats))
    start = time.perf_counter()
    loop_over_pixels(image, factor, BAND_ROWS)
    ms["loop"] = 1000 * (time.perf_counter() - start) * height / BAND_ROWS
    return {
        "image": f"{image.shape[1]}×{image.shape[0]}",
        "factor": factor,
        "ms": ms,
        "imresize / Pillow": ms["imresize"] / ms["Pillow"],
        "loop / imresize": ms["loop"] / ms["imresize"],
    }


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="rounds; one more warms up")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "repeats")

    machine = machine_name()
    large = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rows = [measure(large, factor, options.repeats) for factor in FACTORS]
    print(f"{machine}; RGB uint8, median milliseconds")
    print("image      factor  imresize  torch f32  Pillow     loop  imresize/Pillow  loop/imresize")
    for row in rows:
        ms = row["ms"]
        print(
            f"{row['image']:<10} {row['factor']:>6.4f}  {ms['imresize']:>8.1f}  "
            f"{ms['torch float32']:>9.1f}  {ms['Pillow']:>6.1f}  {ms['loop']:>7.0f}  "
            f"{row['imresize / Pillow']:>15.2f}  {row['loop / imresize']:>13.1f}"
        )
    write_report(options, machine, rows=rows)


if __name__ == "__main__":
    main()
