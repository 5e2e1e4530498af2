"""`elasticnet upscale` of a folder of small images: side by side, beside one after another.

    python tests/benchmarks/bench_small_images.py [--json FILE]

Both ways take turns in one process, so that what starts the program counts in neither. The table
has the fastest and the median time of each, and how many cores were busy: processor time over time
by the clock, of the median run. On a machine that is busy otherwise the last two say little.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from harness import machine_name, make_parser, require_at_least, write_report
from PIL import Image

from elasticnet.cli import main as elasticnet
from elasticnet.cli.upscale_networks import Networks
from elasticnet.sr.data import scikit_image_photos

ONE_BY_ONE = "one after another"
SIDE_BY_SIDE = "side by side"


class Run(NamedTuple):
    """One run of the command: seconds by the clock, and of all processors together."""

    seconds: float
    processor_seconds: float

    @property
    def busy_cores(self) -> float:
        """How many cores were busy, on average."""
        return self.processor_seconds / self.seconds


def save_images(folder: Path, num_images: int, sides: range) -> None:
    """Save parts of photographs, half of them as PNG and half as JPEG."""
    folder.mkdir()
    photos = list(scikit_image_photos().values())
    rng = np.random.default_rng(0)
    for index in range(num_images):
        photo = photos[index % len(photos)]
        height, width = rng.integers(sides.start, sides.stop, size=2)
        top = rng.integers(photo.shape[0] - height + 1)
        left = rng.integers(photo.shape[1] - width + 1)
        extension = "png" if index % 2 else "jpg"
        part = photo[top : top + height, left : left + width]
        Image.fromarray(part).save(folder / f"{index:04}.{extension}")


def run_command(images: Path, results: Path) -> Run:
    """Enlarge all images of a folder."""
    words = ["upscale", str(images), "--scale=4", "-o", str(results), "--force", "--quiet"]
    start = time.perf_counter()
    processor_start = time.process_time()
    status = elasticnet([*words, "--device=cpu"])
    run = Run(time.perf_counter() - start, time.process_time() - processor_start)
    if status != 0:
        raise SystemExit(status)
    return run


def measure(folder: Path, repeats: int) -> dict[str, list[Run]]:
    """Run the command in both ways, in turn; the first run of each warms up."""
    runs: dict[str, list[Run]] = {ONE_BY_ONE: [], SIDE_BY_SIDE: []}
    for _ in range(1 + repeats):
        with patch.object(Networks, "num_side_by_side", return_value=1):
            runs[ONE_BY_ONE].append(run_command(folder / "images", folder / "results"))
        runs[SIDE_BY_SIDE].append(run_command(folder / "images", folder / "results"))
    return {name: of_name[1:] for name, of_name in runs.items()}


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--least", type=int, default=24, help="pixels of a side, at least")
    parser.add_argument("--most", type=int, default=52, help="pixels of a side, at most")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each way that count")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "images", "least", "repeats")
    require_at_least(parser, options, options.least, "most")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "results").mkdir()
        save_images(folder / "images", options.images, range(options.least, options.most + 1))
        runs = measure(folder, options.repeats)
    machine = machine_name()
    print(f"{machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads\n")
    print(f"{'':20}{'fastest s':>10}{'median s':>10}{'busy cores':>12}")
    for way, of_way in runs.items():
        ordered = sorted(of_way, key=lambda run: run.seconds)
        seconds = [run.seconds for run in ordered]
        busy = ordered[len(ordered) // 2].busy_cores
        print(f"{way:20}{seconds[0]:10.3f}{statistics.median(seconds):10.3f}{busy:12.2f}")
    write_report(
        options,
        machine,
        runs={way: [run._asdict() for run in of_way] for way, of_way in runs.items()},
    )


if __name__ == "__main__":
    main()
