"""Training data that is large: many small photographs at the start, and more than memory holds.

    python tests/benchmarks/bench_large_data.py [--json FILE]

Two tables. The first is of `--images` JPEG files of `--side` pixels: how long a training waits for
them at its first start, which decodes them, and at later ones; beside what one core decodes in a
second, which bounds the first. The second is of training steps on a set of `--gigabytes` whose
files are mapped, none of them in memory when it begins, as in a set that is far larger than memory;
beside the same steps on a set that lies in memory. Photographs are parts of those that scikit-image
carries, in a temporary folder (`--folder` names another place for it) that is removed in the end.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness import machine_name, make_parser, require_at_least, write_report
from PIL import Image
from torch import nn

from elasticnet.memory import MB, peak_resident, restart_peak
from elasticnet.sr import asrn
from elasticnet.sr.data import Pair, PairSet, scikit_image_photos
from elasticnet.sr.data.alignment import LrSettings
from elasticnet.sr.data.decode_pair import decode_pair
from elasticnet.sr.data.pair_set import open_pixels
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.data.splits import training_pairs

SCALE = 4
PATCH_SIZE = 48  # LR pixels
BATCH_SIZE = 16
HEIGHT, WIDTH = 339, 510  # LR pixels of a photograph of the second part: 1356x2040, as DIV2K's
NUM_TIMED_DECODES = 500
GB = 10**9
STATUS_FILE = Path("/proc/self/status")  # of Linux


class Steps(NamedTuple):
    """Steps of a training on one set: how many a second, and the process's resident memory."""

    per_second: float
    own_mb: float
    mapped_mb: float


# --- many small photographs


def save_photographs(folder: Path, num_images: int, side: int) -> list[Path]:
    """Save parts of photographs as JPEG files."""
    folder.mkdir()
    photos = [each for each in scikit_image_photos().values() if min(each.shape[:2]) >= side]
    rng = np.random.default_rng(0)
    paths: list[Path] = []
    for index in range(num_images):
        photo = photos[index % len(photos)]
        top = rng.integers(photo.shape[0] - side + 1)
        left = rng.integers(photo.shape[1] - side + 1)
        path = folder / f"{index:06}.jpg"
        Image.fromarray(photo[top : top + side, left : left + side]).save(path, quality=92)
        paths.append(path)
    return paths


def decodes_per_second(paths: list[Path]) -> float:
    """How many pairs one core decodes in a second of its own time."""
    settings = LrSettings(scale=SCALE)
    start = time.process_time()
    for path in paths[:NUM_TIMED_DECODES]:
        decode_pair(Pair(path.stem, path, None), settings)
    return min(len(paths), NUM_TIMED_DECODES) / (time.process_time() - start)


def seconds_to_start(photographs: Path, cache: Path) -> float:
    """How long a training waits for its images."""
    start = time.perf_counter()
    training_pairs([photographs], None, SCALE, min_size=16, cache_dir=cache)
    return time.perf_counter() - start


def measure_start(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Start a training three times on many small photographs."""
    paths = save_photographs(folder / "photographs", options.images, options.side)
    rate = decodes_per_second(paths)
    restart_peak()
    first = seconds_to_start(paths[0].parent, folder / "cache")
    peak = (peak_resident() or 0) / MB
    later = min(seconds_to_start(paths[0].parent, folder / "cache") for _ in range(2))
    cores = os.cpu_count() or 1
    return {
        "images one core decodes in a second": rate,
        f"seconds {cores} cores need to decode all": options.images / rate / cores,
        "seconds of the first start": first,
        "seconds of a later start": later,
        "MB resident at most, first start": peak,
    }


# --- more than memory holds


def mapped_set(folder: Path, num_bytes: int) -> PairSet:
    """Write a set as the cache of decoded images holds it, and map it; none of it is in memory."""
    folder.mkdir()
    photo = scikit_image_photos()["astronaut"]
    hr = np.tile(photo, (3, 4, 1))[: HEIGHT * SCALE, : WIDTH * SCALE]
    lr = np.ascontiguousarray(hr[::SCALE, ::SCALE])
    num_images = max(1, num_bytes // (hr.nbytes + lr.nbytes))
    for name, image in (("hr.bin", hr), ("lr.bin", lr)):
        data = np.ascontiguousarray(image).tobytes()
        with open(folder / name, "wb") as file:
            for _ in range(num_images):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # let the system forget the file
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return PairSet(
        [f"{index:06}" for index in range(num_images)],
        SCALE,
        lr_sizes=np.array([[HEIGHT, WIDTH]] * num_images),
        lr_pixels=open_pixels(folder / "lr.bin"),
        hr_pixels=open_pixels(folder / "hr.bin"),
    )


def small_set(folder: Path) -> PairSet:
    """Return a set of ten photographs in memory."""
    pairs = mapped_set(folder, num_bytes=10 * HEIGHT * WIDTH * 3 * (1 + SCALE**2))
    return pairs.in_memory(limit=1.0)


def run_steps(pairs: PairSet, num_steps: int) -> Steps:
    """Train a shallow network for some steps."""
    torch.manual_seed(0)
    net = asrn(SCALE, num_blocks=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    loss_of = nn.L1Loss()
    sampler = PatchSampler(pairs, PATCH_SIZE, BATCH_SIZE)

    def step(number: int) -> None:
        lr, hr = sampler.batch(number)
        loss = loss_of(net(lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(num_steps)  # warms up, and reads nothing that is read below
    start = time.perf_counter()
    for number in range(num_steps):
        step(number)
    seconds = time.perf_counter() - start
    resident = dict(resident_megabytes())
    return Steps(
        per_second=num_steps / seconds,
        own_mb=resident.get("RssAnon", 0.0),
        mapped_mb=resident.get("RssFile", 0.0),
    )


def resident_megabytes() -> Iterator[tuple[str, float]]:
    """Yield this process's resident memory by kind: its own, and that of mapped files (Linux)."""
    if not STATUS_FILE.is_file():
        return
    for line in STATUS_FILE.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            yield name, int(value.split()[0]) * 1024 / MB


def measure_steps(folder: Path, options: argparse.Namespace) -> dict[str, Steps]:
    """Train on a set in memory and on a mapped one."""
    of_small = run_steps(small_set(folder / "small"), options.steps)
    pairs = mapped_set(folder / "large", int(options.gigabytes * GB))
    return {
        "10 photographs in memory": of_small,
        f"{len(pairs)} photographs, mapped": run_steps(pairs, options.steps),
    }


def main() -> None:
    """Measure, print the tables, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=20_000, help="small photographs")
    parser.add_argument("--side", type=int, default=128, help="of them, in pixels")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of the mapped set")
    parser.add_argument("--steps", type=int, default=100, help="of the training")
    parser.add_argument("--folder", type=Path, help="where the data lies; default: a temporary one")
    options = parser.parse_args()
    require_at_least(parser, options, 32, "images", "side")
    require_at_least(parser, options, 1, "steps")

    machine = machine_name()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="elasticnet-bench-") as name:
        start = measure_start(Path(name), options)
        steps = measure_steps(Path(name), options)
    print(f"{machine}, {os.cpu_count()} cores\n")
    print(f"{options.images} photographs of {options.side}x{options.side}")
    for what, number in start.items():
        print(f"{what:42}{number:10.1f}")
    print(f"\n{'':32}{'steps/s':>10}{'own MB':>10}{'mapped MB':>12}")
    for what, numbers in steps.items():
        cells = f"{numbers.per_second:10.2f}{numbers.own_mb:10.0f}{numbers.mapped_mb:12.0f}"
        print(f"{what:32}{cells}")
    write_report(
        options,
        machine,
        start=start,
        steps={what: numbers._asdict() for what, numbers in steps.items()},
    )


if __name__ == "__main__":
    main()
