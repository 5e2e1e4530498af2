"""Time from a network's output to the pixels of an image, in two ways.

    python tests/benchmarks/bench_pixels.py [--side 1152] [--rounds 15] [--device cuda]

Now a tile is rounded, narrowed to the image's type and joined to pixels where the network ran, and
then copied to the host. Before, int32 was copied, and NumPy narrowed and joined it while it wrote
the tile into the image. A network's output may have its channels as neighbours, or as planes, as a
pixel shuffle makes them on a GPU. The ways take turns, and the ratio is the median of the rounds'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from harness import (
    machine_name,
    make_parser,
    median_ratio,
    medians_ms,
    require_at_least,
    time_in_turn,
    write_report,
)
from torch import Tensor

from elasticnet.memory import keep_freed_memory
from elasticnet.sr.pixels import tensor_to_integers

WHITE = {"uint8": 255, "uint16": 65535}
LAYOUTS = ("neighbours", "planes")
COLUMNS = ("type", "channels", "before, ms", "now, ms", "now / before")


def main() -> None:
    """Measure every type and layout, print the table, write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--side", type=int, default=1152, help="of a tile, in HR pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    require_at_least(parser, options, 1, "side", "rounds")
    keep_freed_memory()

    rows: list[dict[str, str | float]] = []
    print(" | ".join(COLUMNS))
    for dtype in WHITE:
        for layout in LAYOUTS:
            row = measured(options, dtype, layout)
            rows.append(row)
            print(" | ".join(f"{row[name]}" for name in COLUMNS), flush=True)
    write_report(options, machine_name(options.device), rows=rows)


def measured(options: argparse.Namespace, dtype: str, layout: str) -> dict[str, str | float]:
    """Return what both ways take for one type and layout."""
    side: int = options.side
    values = torch.rand(side, side, 3, device=options.device) * WHITE[dtype]  # (h, w, 3)
    if layout == "planes":
        values = values.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # (h, w, 3), as (3, h, w)
    image = np.zeros((side, 2 * side, 3), dtype=dtype)
    left_half = image[:, :side]
    cases: dict[str, Callable[[], None]] = {
        "before": lambda: write_int32(left_half, values, WHITE[dtype]),
        "now": lambda: write_narrow(left_half, values, WHITE[dtype]),
    }
    seconds = time_in_turn(cases, options.rounds, device=options.device)
    milliseconds = medians_ms(seconds)
    return {
        "type": dtype,
        "channels": layout,
        "before, ms": round(milliseconds["before"], 1),
        "now, ms": round(milliseconds["now"], 1),
        "now / before": round(median_ratio(seconds["now"], seconds["before"]), 2),
    }


def write_int32(out: np.ndarray, values: Tensor, white: int) -> None:
    """Write a tile as before: NumPy narrows it, and joins planes."""
    below_half = float(np.nextafter(np.float32(0.5), np.float32(0)))
    out[:] = values.clamp(0, white).add_(below_half).int().cpu().numpy()


def write_narrow(out: np.ndarray, values: Tensor, white: int) -> None:
    """Write a tile as `upscale_array` does."""
    out[:] = tensor_to_integers(values, white).contiguous().cpu().numpy()


if __name__ == "__main__":
    main()
