"""Batches per second of PatchSampler and PatchDataset beside a Dataset that decodes PNG files.

    python tests/benchmarks/bench_patches.py [--device cuda] [--json FILE]

The plain Dataset decodes a PNG pair for every patch. The images are those of `--data`, by default
`$ELASTICNET_DATA/train`, otherwise scikit-image's photographs; they are saved as PNG in a temporary
folder first.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from harness import machine_name, make_parser, require_at_least, synchronize, write_report
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elasticnet.sr.data import PairSet, find_pairs, load_pairs, scikit_image_photos
from elasticnet.sr.data.patches import PatchDataset, PatchSampler
from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.jpeg import PHOTO_JPEG

WARM_UP_BATCHES = 3
LEAST_BATCHES = 3


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """What most training code does: decode both files, crop, flip, turn, convert."""

    def __init__(self, folder: Path, names: list[str], patch_size: int, scale: int) -> None:
        self.hr_files = [folder / "hr" / f"{name}.png" for name in names]
        self.lr_files = [folder / "lr" / f"{name}.png" for name in names]
        self.patch_size = patch_size
        self.scale = scale

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        place = index % len(self.hr_files)
        hr = np.asarray(Image.open(self.hr_files[place]))
        lr = np.asarray(Image.open(self.lr_files[place]))
        side = self.patch_size
        scale = self.scale
        top = random.randrange(lr.shape[0] - side + 1)
        left = random.randrange(lr.shape[1] - side + 1)
        lr = lr[top : top + side, left : left + side]
        hr = hr[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        if random.random() < 0.5:
            lr, hr = lr[:, ::-1], hr[:, ::-1]
        if random.random() < 0.5:
            lr, hr = lr[::-1], hr[::-1]
        if random.random() < 0.5:
            lr, hr = lr.transpose(1, 0, 2), hr.transpose(1, 0, 2)
        return to_tensor(lr), to_tensor(hr)


def to_tensor(patch: np.ndarray) -> Tensor:
    """Return uint8 (h, w, 3) as float32 (3, h, w) in 0..1."""
    return torch.from_numpy(patch.transpose(2, 0, 1).copy()).float().div_(255)


def some_images(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the HR images, evenly spread over the folder."""
    if options.data is None:
        return scikit_image_photos()
    pairs = find_pairs(options.data, options.scale)
    step = max(1, len(pairs) // options.images)
    return {pair.name: read_rgb(pair.hr) for pair in pairs[::step][: options.images]}


def save_pairs(folder: Path, options: argparse.Namespace) -> PairSet:
    """Save HR and LR as PNG files in the folders hr and lr, and return the same pairs decoded."""
    (folder / "hr").mkdir()
    (folder / "lr").mkdir()
    for name, image in some_images(options).items():
        Image.fromarray(image).save(folder / "hr" / f"{name}.png")
    pairs = load_pairs(
        folder / "hr", options.scale, min_size=options.patch_size, progress=False
    ).in_memory(limit=1.0)
    for index, name in enumerate(pairs.names):  # HR again, as it was cropped
        Image.fromarray(pairs.hr(index)).save(folder / "hr" / f"{name}.png")
        Image.fromarray(pairs.lr(index)).save(folder / "lr" / f"{name}.png")
    return pairs


def loaded_batches(
    dataset: Dataset[tuple[Tensor, Tensor]], options: argparse.Namespace
) -> Callable[[], object]:
    """Return what gets the next batch from a DataLoader and moves it to the device."""
    loader = DataLoader(
        dataset,
        options.batch_size,
        num_workers=options.workers,
        pin_memory=options.device.type == "cuda",
    )
    batches = iter(loader)

    def next_batch() -> list[Tensor]:
        return [part.to(options.device, non_blocking=True) for part in next(batches)]

    return next_batch


def batches_per_second(next_batch: Callable[[], object], options: argparse.Namespace) -> float:
    """Warm up, then count batches for at least `--seconds`."""
    for _ in range(WARM_UP_BATCHES):
        next_batch()
    synchronize(options.device)
    done = 0
    start = time.perf_counter()
    while done < LEAST_BATCHES or time.perf_counter() - start < options.seconds:
        next_batch()
        done += 1
    synchronize(options.device)
    return done / (time.perf_counter() - start)


def measure(pairs: PairSet, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the batches per second of each way, one after another."""
    rates: dict[str, float] = {}
    datasets: dict[str, Dataset[tuple[Tensor, Tensor]]] = {
        "plain PNG Dataset": PlainDataset(folder, pairs.names, options.patch_size, options.scale),
        "PatchDataset": PatchDataset(pairs, options.patch_size),
    }
    for name, dataset in datasets.items():
        rates[name] = batches_per_second(loaded_batches(dataset, options), options)

    sampler = PatchSampler(pairs, options.patch_size, options.batch_size, device=options.device)
    steps = count()
    rates["PatchSampler"] = batches_per_second(lambda: sampler.batch(next(steps)), options)

    # Nothing is trained on meanwhile, so this is what its one thread compresses.
    compressing = PatchSampler(
        pairs, options.patch_size, options.batch_size, device=options.device, jpeg=PHOTO_JPEG
    )
    steps_of_jpeg = count()
    rates["PatchSampler, JPEG"] = batches_per_second(
        lambda: compressing.batch(next(steps_of_jpeg)), options
    )
    return rates


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    data = os.environ.get("ELASTICNET_DATA")
    train_folder = Path(data) / "train" if data else None
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, default=train_folder, help="folder of images")
    parser.add_argument("--images", type=int, default=40, help="take this many, spread evenly")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--patch-size", type=int, default=48, help="in LR pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the DataLoader")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1, help="of torch in the main process")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "images", "threads")
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as temporary:
        pairs = save_pairs(Path(temporary), options)
        rates = measure(pairs, Path(temporary), options)

    machine = machine_name(options.device)
    megapixels = float(pairs.lr_sizes.prod(axis=1).mean()) * options.scale**2 / 1e6
    print(machine)
    print(
        f"{len(pairs)} images of {megapixels:.2f} megapixels, x{options.scale}, "
        f"batch {options.batch_size} of {options.patch_size}x{options.patch_size} LR, "
        f"{options.workers} workers"
    )
    plain = rates["plain PNG Dataset"]
    for name, rate in rates.items():
        print(f"{name:20} {rate:10.1f} batches/s {rate / plain:8.1f} x")
    write_report(options, machine, megapixels=megapixels, batches_per_second=rates)


if __name__ == "__main__":
    main()
