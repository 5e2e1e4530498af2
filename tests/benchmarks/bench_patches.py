"""Batches per second of `PatchSampler` and `PatchDataset` beside a plain Dataset that decodes a PNG
pair per patch.

Run as `python tests/benchmarks/bench_patches.py [--device cuda] [--json FILE]`. The images are
those of `--data`, by default `$ELASTICNET_DATA/train`, otherwise scikit-image's photographs; they
are saved as PNG in a temporary folder first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elasticnet.sr.data import PairSet, find_pairs, load_pairs, scikit_image_photos
from elasticnet.sr.data.images import read_rgb
from elasticnet.sr.data.patches import PatchDataset, PatchSampler


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """What most training code does: decode both files, crop, flip, turn, convert."""

    def __init__(self, folder: Path, names: list[str], patch_size: int, scale: int) -> None:
        self.files = [
            (folder / "hr" / f"{name}.png", folder / "lr" / f"{name}.png") for name in names
        ]
        self.patch_size, self.scale = patch_size, scale

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        hr, lr = (np.asarray(Image.open(path)) for path in self.files[index % len(self.files)])
        side, scale = self.patch_size, self.scale
        top, left = (
            random.randrange(lr.shape[0] - side + 1),
            random.randrange(lr.shape[1] - side + 1),
        )
        lr = lr[top : top + side, left : left + side]
        hr = hr[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        if random.random() < 0.5:
            lr, hr = lr[:, ::-1], hr[:, ::-1]
        if random.random() < 0.5:
            lr, hr = lr[::-1], hr[::-1]
        if random.random() < 0.5:
            lr, hr = lr.transpose(1, 0, 2), hr.transpose(1, 0, 2)
        lr, hr = (
            torch.from_numpy(patch.transpose(2, 0, 1).copy()).float().div_(255)
            for patch in (lr, hr)
        )
        return lr, hr


def some_images(options: argparse.Namespace) -> dict[str, np.ndarray]:
    if options.data is None:
        return scikit_image_photos()
    pairs = find_pairs(options.data, options.scale)
    chosen = pairs[:: max(1, len(pairs) // options.images)][: options.images]
    return {pair.name: read_rgb(pair.hr) for pair in chosen}


def batches_per_second(
    next_batch: Callable[[], object], seconds: float, synchronize: Callable[[], None]
) -> float:
    """Warm up with three batches, then count for at least `seconds` and at least three batches."""
    for _ in range(3):
        next_batch()
    synchronize()
    count, start = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - start < seconds:
        next_batch()
        count += 1
    synchronize()
    return count / (time.perf_counter() - start)


def moved(loader: Iterator[list[Tensor]], device: torch.device) -> Callable[[], object]:
    return lambda: [part.to(device, non_blocking=True) for part in next(loader)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Patches per second, by three ways to cut them.")
    data = os.environ.get("ELASTICNET_DATA")
    parser.add_argument(
        "--data", type=Path, default=Path(data) / "train" if data else None, help="folder of images"
    )
    parser.add_argument(
        "--images", type=int, default=40, help="take this many of them, spread evenly"
    )
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--patch-size", type=int, default=48, help="in LR pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the DataLoader")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1, help="of torch in the main process")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "hr").mkdir()
        (folder / "lr").mkdir()
        for name, image in some_images(options).items():
            Image.fromarray(image).save(folder / "hr" / f"{name}.png")
        pairs = load_pairs(folder / "hr", options.scale, min_size=options.patch_size)
        for index, name in enumerate(pairs.names):
            Image.fromarray(pairs.hr(index)).save(folder / "hr" / f"{name}.png")
            Image.fromarray(pairs.lr(index)).save(folder / "lr" / f"{name}.png")
        results = measure(pairs, folder, options)

    pixels = pairs.lr_sizes.prod(axis=1).mean() * options.scale**2
    print(
        f"{len(pairs)} images of {pixels / 1e6:.2f} megapixels, x{options.scale}, batch {options.batch_size} of "
        f"{options.patch_size}x{options.patch_size} LR, {options.workers} workers, {options.threads} threads, "
        f"{options.device}"
    )
    plain = results["plain PNG Dataset"]
    for name, rate in results.items():
        print(f"{name:20} {rate:10.1f} batches/s {rate / plain:8.1f} x")
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        report = {"settings": settings, "megapixels": pixels / 1e6, "batches_per_second": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(pairs: PairSet, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    device, patch_size = options.device, options.patch_size
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def loader(dataset: Dataset) -> Callable[[], object]:
        pinned = device.type == "cuda"
        return moved(
            iter(
                DataLoader(
                    dataset, options.batch_size, num_workers=options.workers, pin_memory=pinned
                )
            ),
            device,
        )

    plain = loader(PlainDataset(folder, pairs.names, patch_size, options.scale))
    results = {"plain PNG Dataset": batches_per_second(plain, options.seconds, synchronize)}
    del plain
    cached = loader(PatchDataset(pairs, patch_size))
    results["PatchDataset"] = batches_per_second(cached, options.seconds, synchronize)
    del cached
    sampler = PatchSampler(pairs, patch_size, options.batch_size, device=device)
    steps = iter(range(10**9))
    results["PatchSampler"] = batches_per_second(
        lambda: sampler.batch(next(steps)), options.seconds, synchronize
    )
    return results


if __name__ == "__main__":
    main()
