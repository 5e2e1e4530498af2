"""What a depth of its own for each tile could save: measured, before it is built.

    python tests/benchmarks/bench_adaptive_tiles.py --calibrate DIR --data DIR [DIR ...]
        [--weights asrn-x4] [--tiles 32 64 128 256] [--max-loss 0.02] [--json FILE]

Each photograph is enlarged at every depth, and the squared error of each tile is known at each. A
choice of depths then has a loss (the mean over photographs of the PSNR-Y of the deepest depth minus
that of the choice) and a cost. The best choice that loses at most --max-loss decibels is found by a
multiplier: each tile takes the depth with the smallest cost + multiplier * error. Two rules choose:

- "oracle" sees each tile's own errors, which nobody has: no rule can save more.
- "calibrated" sees how strong the fine structure of the LR tile is (mean of |Laplacian|). What
  errors a strength means at each depth, and the multiplier, come from the photographs of
  --calibrate.

Ways to run are costed, by the milliseconds of each depth measured here, one pixel as any other:

- "tiles": each tile runs at its depth by itself, with as much overlap as that depth sees;
- "on top": the whole image runs at depth 1, and deeper tiles go on from its features, with as much
  overlap as the further blocks see, and call the head again;
- "free": overlaps cost nothing, which no way to run has: the bound of what depths could save.

The saving is the time of the whole image at the deepest depth over that of the way. Batches and
seams are taken to be free.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import machine_name, make_parser, time_in_turn, write_report
from numpy.typing import NDArray
from tqdm import tqdm

from elasticnet import ElasticWrapper, load
from elasticnet.sr.data import PairSet, load_pairs
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.scale import scale_of
from elasticnet.sr.metrics import rgb_to_y
from elasticnet.sr.pixels import to_uint8

TIMED_SIDE = 160  # LR pixels of the image that is timed
WAYS = ("tiles", "on top", "free")
NUM_BINS = 24  # of strengths, in the calibrated rule
NUM_HALVINGS = 40  # of the interval that holds the multiplier
LARGEST_MULTIPLIER = 1e6

Costs = NDArray[np.float64]  # (depths,): of one tile, in units of one LR pixel at full depth


class Tiles(NamedTuple):
    """All tiles of several photographs.

    Attributes:
        errors: Squared errors of Y, summed over each tile: (tiles, depths).
        strength: Mean |Laplacian| of the LR tile: (tiles,).
        photo: The photograph of each tile: (tiles,).
        num_photos: How many photographs they are of.
        lr_pixels: LR pixels of all tiles together.
    """

    errors: NDArray[np.float64]
    strength: NDArray[np.float64]
    photo: NDArray[np.int64]
    num_photos: int
    lr_pixels: int


def laplacian(gray: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return |4 center - neighbours| of an image (h, w)."""
    padded = np.pad(gray, 1, mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return np.abs(4 * gray - around)


class Maps(NamedTuple):
    """What a photograph shows everywhere.

    Attributes:
        squares: Squared errors of Y at each depth: (depths, scale h, scale w).
        edges: |Laplacian| of the LR image: (h, w).
    """

    squares: NDArray[np.float32]
    edges: NDArray[np.float64]


@torch.inference_mode()
def maps_of(net: ElasticWrapper, pairs: PairSet, largest: int) -> list[Maps]:
    """Enlarge the middle of each photograph at every depth."""
    scale = scale_of(net)
    found: list[Maps] = []
    for index in tqdm(range(len(pairs)), desc="photographs", leave=False):
        lr, hr = pairs.lr(index), pairs.hr(index)
        height, width = (min(length, largest) for length in lr.shape[:2])
        top, left = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
        lr = lr[top : top + height, left : left + width]
        rows = slice(top * scale, (top + height) * scale)
        columns = slice(left * scale, (left + width) * scale)
        truth = rgb_to_y(hr[rows, columns])
        x = torch.from_numpy(lr.copy()).permute(2, 0, 1)[None].float() / 255
        outputs = net(x.contiguous(memory_format=torch.channels_last), taps=net.taps)
        squares: list[NDArray[np.float32]] = []
        for prediction in outputs.predictions:
            image = to_uint8(255 * prediction[0].permute(1, 2, 0).numpy())
            squares.append(((rgb_to_y(image) - truth) ** 2).astype(np.float32))
        edges = laplacian(lr.astype(np.float64).mean(axis=2) / 255)
        found.append(Maps(squares=np.stack(squares), edges=edges))
    return found


def tiles_of(photographs: Sequence[Maps], side: int, scale: int) -> Tiles:
    """Return the tiles of `side` LR pixels; what lies beside whole tiles is left out."""
    errors: list[NDArray[np.float64]] = []
    strength: list[float] = []
    photo: list[int] = []
    num_pixels: list[int] = []
    for squares, edges in photographs:
        height, width = (length // side * side for length in edges.shape)
        if height == 0 or width == 0:
            continue
        for y in range(0, height, side):
            for x in range(0, width, side):
                tile = (slice(y, y + side), slice(x, x + side))
                rows, columns = (slice(each.start * scale, each.stop * scale) for each in tile)
                errors.append(squares[:, rows, columns].sum(axis=(1, 2), dtype=np.float64))
                strength.append(float(edges[tile].mean()))
                photo.append(len(num_pixels))
        num_pixels.append(height * width)
    return Tiles(
        errors=np.array(errors),
        strength=np.array(strength),
        photo=np.array(photo),
        num_photos=len(num_pixels),
        lr_pixels=sum(num_pixels),
    )


def loss_of(choice: NDArray[np.int64], tiles: Tiles) -> float:
    """Return the mean over photographs of the PSNR that a choice of depths loses, in dB."""
    chosen = np.take_along_axis(tiles.errors, choice[:, None], axis=1)[:, 0]
    of_choice = np.bincount(tiles.photo, chosen, tiles.num_photos)
    of_deepest = np.bincount(tiles.photo, tiles.errors[:, -1], tiles.num_photos)
    return float(np.mean(10 * np.log10(of_choice / of_deepest)))


def best_choice(
    expected: NDArray[np.float64],
    costs: Costs,
    loss: Callable[[NDArray[np.int64]], float],
    most: float,
) -> tuple[NDArray[np.int64], float]:
    """Return the depths that cost least at a loss of at most `most`, and the multiplier.

    Args:
        expected: The errors that the rule expects, (tiles, depths).
        costs: Of each depth.
        loss: The loss of a choice.
        most: In dB.
    """
    low, high = 0.0, LARGEST_MULTIPLIER
    for _ in range(NUM_HALVINGS):
        middle = np.sqrt(max(low, 1e-6) * high)
        choice = np.argmin(costs + middle * expected, axis=1)
        if loss(choice) <= most:
            high = middle
        else:
            low = middle
    return np.argmin(costs + high * expected, axis=1), high


class Bins(NamedTuple):
    """What errors a strength means: the mean over the tiles of a bin, at each depth."""

    edges: NDArray[np.float64]
    errors: NDArray[np.float64]  # (bins, depths)

    def expected(self, strength: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the errors that tiles of these strengths are expected to have."""
        return self.errors[np.searchsorted(self.edges, strength)]


def calibrated_bins(tiles: Tiles) -> Bins:
    """Return the bins of the calibration's tiles."""
    quantiles = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    edges = np.quantile(tiles.strength, quantiles)
    places = np.searchsorted(edges, tiles.strength)
    overall = tiles.errors.mean(axis=0)
    errors = [
        tiles.errors[places == index].mean(axis=0) if np.any(places == index) else overall
        for index in range(NUM_BINS)
    ]
    return Bins(edges=edges, errors=np.array(errors))


def relative_times(net: ElasticWrapper, repeats: int) -> NDArray[np.float64]:
    """Return the time of each depth as a fraction of that of the deepest, (depths,)."""
    x = torch.rand(1, 3, TIMED_SIDE, TIMED_SIDE).contiguous(memory_format=torch.channels_last)
    cases = {depth: lambda depth=depth: net(x, depth=depth) for depth in net.taps}
    with torch.inference_mode():
        times = time_in_turn(cases, repeats)
    medians = np.array([statistics.median(times[depth]) for depth in net.taps])
    return medians / medians[-1]


def costs_of(way: str, side: int, times: NDArray[np.float64], reaches: Sequence[int]) -> Costs:
    """Return what a tile costs at each depth, with its overlap, in LR pixels at full depth."""
    if way == "free":
        return times * side**2
    reach = np.array(reaches, dtype=np.float64)
    if way == "tiles":
        return times * (side + 2 * reach) ** 2
    shallowest = times[0] * side**2
    head = times[0] - (times[1] - times[0])  # stem and head: depth 1 without its block
    further = (times - times[0]) * (side + 2 * (reach - reach[0])) ** 2 + head * side**2
    further[0] = 0.0
    return shallowest + further


def main(options: argparse.Namespace) -> None:
    """Measure, print the table, and write the report."""
    net = load(options.weights).eval()
    net.to(memory_format=torch.channels_last)
    scale = scale_of(net)
    times = relative_times(net, options.repeats)
    reaches: list[int] = []
    for depth in net.taps:
        reach = footprint(net, depth).reach
        assert reach is not None
        reaches.append(reach)
    machine = machine_name()
    print(machine)
    print("time of each depth:", " ".join(f"{each:.2f}" for each in times))
    titles = ("data", "tile", "way", "rule", "saving", "loss, dB", "depth")
    print("{:18} {:>4} {:7} {:10} {:>6} {:>8} {:>5}".format(*titles))
    calibration = maps_of(net, load_pairs(options.calibrate, scale, cache=False), options.largest)
    rows: list[dict[str, object]] = []
    for folder in options.data:
        name = Path(folder).name
        photographs = maps_of(net, load_pairs(folder, scale, cache=False), options.largest)
        for side in options.tiles:
            known = tiles_of(calibration, side, scale)
            tiles = tiles_of(photographs, side, scale)
            if known.num_photos == 0 or tiles.num_photos == 0:
                continue  # no photograph is as large as a tile
            bins = calibrated_bins(known)
            for way in WAYS:
                costs = costs_of(way, side, times, reaches)
                oracle, _ = best_choice(
                    tiles.errors, costs, partial(loss_of, tiles=tiles), options.max_loss
                )
                _, multiplier = best_choice(
                    bins.expected(known.strength),
                    costs,
                    partial(loss_of, tiles=known),
                    options.max_loss,
                )
                expected = bins.expected(tiles.strength)
                calibrated = np.argmin(costs + multiplier * expected, axis=1)
                for rule, choice in (("oracle", oracle), ("calibrated", calibrated)):
                    row: dict[str, Any] = {
                        "data": name,
                        "tile": side,
                        "way": way,
                        "rule": rule,
                        "saving": float(tiles.lr_pixels / costs[choice].sum()),
                        "loss": loss_of(choice, tiles),
                        "mean_depth": float(np.mean(np.array(net.taps)[choice])),
                    }
                    rows.append(row)
                    print(
                        f"{name:18} {side:4} {way:7} {rule:10} {row['saving']:6.2f} "
                        f"{row['loss']:8.3f} {row['mean_depth']:5.2f}",
                        flush=True,
                    )
    write_report(options, machine, times=times.tolist(), reaches=reaches, rows=rows)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--weights", default="asrn-x4", help="a network (default: asrn-x4)")
    parser.add_argument("--calibrate", required=True, help="photographs that the rule is made of")
    parser.add_argument("--data", nargs="+", required=True, help="photographs that are measured")
    parser.add_argument("--tiles", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--largest", type=int, default=512, help="LR pixels a side (default: 512)")
    parser.add_argument("--max-loss", type=float, default=0.02, help="in dB (default: 0.02)")
    parser.add_argument("--repeats", type=int, default=7)
    main(parser.parse_args())
