"""PSNR and SSIM per depth on sets of image pairs, beside bicubic interpolation: what the tables are
made of.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from elasticnet.card import depth_costs
from elasticnet.sr.data import PairSet, load_pairs
from elasticnet.sr.data.folder_layouts import find_layout
from elasticnet.sr.inference.tiling import self_ensembled
from elasticnet.sr.metrics import psnr_y, shave_for, ssim_y
from elasticnet.sr.resize import imresize
from elasticnet.taps import resolve_depths
from elasticnet.wrapper import ElasticWrapper, evaluating

BASELINES = ("bicubic", "input")  # what networks are shown beside
# width and height of the output for which MACs and latency are given, as the field does
OUTPUT_SIZE = (1280, 720)
SSIM_WINDOW = 11  # what has to be left of an image after shaving


class Scores(NamedTuple):
    """Means over a set of images: PSNR in dB and SSIM; SSIM is nan where it was not asked for."""

    psnr: float
    ssim: float


class ImageScore(NamedTuple):
    """One scored image: `network` is a net's label, or "bicubic" with `depth` None."""

    data: str
    scale: int
    network: str
    depth: int | None
    image: str
    psnr: float
    ssim: float


class Row(NamedTuple):
    """Means over one data set at one scale, with what the depth costs; None where it was not
    measured, and for bicubic.

    parameters: of the truncated net. macs, ms: of one pass to an output of `OUTPUT_SIZE`.
    """

    data: str
    scale: int
    network: str
    depth: int | None
    psnr: float
    ssim: float
    parameters: int | None
    macs: int | None
    ms: float | None


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    data: str
    scale: int
    image: str
    reason: str


class Benchmark(NamedTuple):
    """What `benchmark` measured; `settings` are those that the numbers hang on."""

    rows: list[Row]
    images: list[ImageScore]
    skipped: list[Skipped]
    settings: dict[str, Any]


def to_tensor(image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Return a uint8 (H, W, 3) image as a float tensor (1, 3, H, W) in 0..1."""
    return torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 255


def to_image(prediction: Tensor) -> np.ndarray:
    """Return a float tensor (1, 3, H, W) in 0..1 as the uint8 (H, W, 3) image that saving it would
    give.
    """
    return (prediction[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def predict_depths(
    net: ElasticWrapper,
    lr: np.ndarray,
    depths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    self_ensemble: bool = False,
) -> dict[int, np.ndarray]:
    """Return the uint8 image that each depth makes of a uint8 LR image, in eval mode and the net's
    own precision.

    One pass serves all depths; `self_ensemble` takes eight and rounds their mean.
    """
    depths = resolve_depths(depths, net.taps)

    def predict(x: Tensor) -> Sequence[Tensor]:
        return net.forward_taps(x, depths=depths).predictions

    with evaluating(net), torch.inference_mode():
        x = to_tensor(lr, device).to(next((p.dtype for p in net.parameters()), torch.float32))
        predictions = self_ensembled(predict, x) if self_ensemble else predict(x)
    return {
        depth: to_image(prediction) for depth, prediction in zip(depths, predictions, strict=True)
    }


def evaluate(
    net: ElasticWrapper,
    pairs: PairSet,
    *,
    depths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    protocol: str = "matlab-y",
    ssim: bool = True,
    self_ensemble: bool = False,
    progress: bool = False,
) -> dict[int, Scores]:
    """Return each depth's mean PSNR and SSIM on `pairs`, measured on the uint8 images that would be
    saved.
    """
    results: dict[int, list[Scores]] = {}
    for index in tqdm(
        range(len(pairs)), desc="evaluating", unit="image", disable=not progress, leave=False
    ):
        for depth, image in predict_depths(
            net, pairs.lr(index), depths, device, self_ensemble
        ).items():
            results.setdefault(depth, []).append(_score(image, pairs, index, protocol, ssim))
    return {depth: _mean(scores) for depth, scores in results.items()}


def bicubic(lr: np.ndarray, scale: int, border: str = "symmetric") -> np.ndarray:
    """Return a uint8 (H, W, 3) image enlarged by the exact `imresize`, rounded once as a network's
    output is.
    """
    return np.rint(imresize(lr.astype(np.float64), scale, border=border).clip(0, 255)).astype(
        np.uint8
    )


def baseline_name(scale: int) -> str:
    """Return the name of what networks are shown beside: bicubic interpolation, which at scale 1 is
    the input.
    """
    return BASELINES[scale == 1]


def evaluate_bicubic(
    pairs: PairSet, *, protocol: str = "matlab-y", border: str = "symmetric"
) -> Scores:
    """Return the scores of bicubic interpolation: what every network is shown beside."""
    images = (bicubic(pairs.lr(index), pairs.scale, border) for index in range(len(pairs)))
    return _mean(
        [_score(image, pairs, index, protocol, True) for index, image in enumerate(images)]
    )


def load_sets(
    folders: Sequence[str | os.PathLike[str]],
    scales: Sequence[int],
    *,
    degradation: str = "BI",
    protocol: str = "matlab-y",
    border: str = "symmetric",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **sigmas: float | None,
) -> list[tuple[str, PairSet]]:
    """Load each data set at each scale by `load_pairs`, named after its folder; of DIV2K, the
    validation images.

    sigmas: `blur_sigma` and `noise_sigma`, as there. Images that cannot be read, or are too small
    for SSIM after shaving, are left out: see `.skipped` of each set.
    """
    options: Any = {
        "degradation": degradation,
        "border": border,
        "cache_dir": cache_dir,
        "progress": progress,
        **sigmas,
    }
    sets = []
    for name, folder in zip(distinct_names(folders), folders, strict=True):
        split = "valid" if find_layout(folder) == "div2k" else None
        for scale in scales:
            # load_pairs refuses 0
            smallest = -(-(SSIM_WINDOW + 2 * shave_for(scale, protocol)) // max(scale, 1))
            with warnings.catch_warnings():
                # the caller reports them, once and at the end
                warnings.filterwarnings("ignore", message="left out")
                pairs = load_pairs(folder, scale, split=split, min_size=smallest, **options)
            sets.append((name, pairs))
    return sets


def distinct_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the last part of each path without .safetensors, with its folder's name in front where
    two are equal.
    """
    parts = [
        (path.parent.name, path.name.removesuffix(".safetensors"))
        for path in map(Path.resolve, map(Path, paths))
    ]
    last = [name for _, name in parts]
    names = [f"{parent}-{name}" if last.count(name) > 1 else name for parent, name in parts]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"{path}: another of the paths given is also called {name!r}; rename one, or drop it"
            )
    return names


def scale_of(net: ElasticWrapper) -> int:
    """Return by how much a net enlarges its input, found by running its shallowest depth on 16x16
    pixels.
    """
    image = torch.zeros(1, 3, 16, 16).to(next(net.parameters(), torch.zeros(())))
    with evaluating(net), torch.inference_mode():
        shape = tuple(net(image, depth=net.taps[0]).shape)
    scale = shape[-1] // 16
    if shape != (1, 3, 16 * scale, 16 * scale):
        raise ValueError(
            f"a network that makes {shape} of (1, 3, 16, 16): expected an image a whole number larger"
        )
    return scale


def benchmark(
    nets: Sequence[tuple[str, ElasticWrapper]],
    sets: Sequence[tuple[str, PairSet]],
    *,
    depths: Sequence[int] | None = None,
    protocol: str = "matlab-y",
    self_ensemble: bool = False,
    border: str = "symmetric",
    device: torch.device | str = "cpu",
    costs: bool = True,
    images_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Benchmark:
    """Score bicubic interpolation and every depth of `nets` on `sets`, each net on the sets of its
    own scale.

    nets: (label, net on `device`); sets: (name, pairs), as `load_sets` gives them. border: what
    lies outside the image when it is enlarged bicubically. costs: measure MACs and ms too.
    images_dir: where every scored image is saved, as `<set>/<image>_x<scale>_d<depth>.png`
    (`..._bicubic.png`, at scale 1 `..._input.png`), in a folder for each label where nets share a
    scale. A depth that a net lacks, or a net without a set of its scale, is a ValueError before
    anything is scored.
    """
    chosen = [(label, net, scale_of(net), resolve_depths(depths, net.taps)) for label, net in nets]
    _check(chosen, sets)
    costs_of: dict[tuple[str, int], dict[int, tuple[int, int | None, float | None]]] = {}
    for label, net, scale, used in tqdm(
        chosen, "measuring", disable=not (progress and costs and chosen)
    ):
        costs_of[label, scale] = _costs(net, scale, used, device, costs)
    scored: list[ImageScore] = []
    for name, pairs in sets:
        mine = [entry for entry in chosen if entry[2] == pairs.scale]
        for index in tqdm(
            range(len(pairs)), f"{name} x{pairs.scale}", unit="image", disable=not progress
        ):
            lr, image_name = pairs.lr(index), pairs.names[index]
            images = {(baseline_name(pairs.scale), None): bicubic(lr, pairs.scale, border)}
            for label, net, _, used in mine:
                predicted = predict_depths(net, lr, used, device, self_ensemble)
                images |= {(label, depth): image for depth, image in predicted.items()}
            for (label, depth), image in images.items():
                score = _score(image, pairs, index, protocol, True)
                scored.append(ImageScore(name, pairs.scale, label, depth, image_name, *score))
                if images_dir is not None:
                    folder = Path(images_dir, name, label if depth and len(mine) > 1 else "")
                    folder.mkdir(parents=True, exist_ok=True)
                    ending = f"d{depth}" if depth else label
                    Image.fromarray(image).save(
                        folder / f"{image_name}_x{pairs.scale}_{ending}.png"
                    )

    grouped: dict[tuple[str, int, str, int | None], list[Scores]] = {}
    for score in scored:
        grouped.setdefault(score[:4], []).append(Scores(score.psnr, score.ssim))
    rows = []
    for key, scores in grouped.items():
        _, scale, label, depth = key
        costs_here = costs_of[label, scale][depth] if depth else (None, None, None)
        rows.append(Row(*key, *_mean(scores), *costs_here))
    skipped = [
        Skipped(name, pairs.scale, *entry) for name, pairs in sets for entry in pairs.skipped
    ]
    settings = {
        "protocol": protocol,
        "self_ensemble": self_ensemble,
        "border": border,
        "device": str(device),
    }
    settings |= {"output_size": list(OUTPUT_SIZE), "torch": torch.__version__}
    return Benchmark(rows, scored, skipped, settings)


def _check(
    chosen: Sequence[tuple[str, ElasticWrapper, int, Any]], sets: Sequence[tuple[str, PairSet]]
) -> None:
    scales = sorted({pairs.scale for _, pairs in sets})
    for label, _, scale, _ in chosen:
        if scale not in scales:
            listed = ", ".join(map(str, scales))
            raise ValueError(
                f"network {label!r} enlarges by {scale}, and the data sets are loaded at scale {listed}"
            )
    labels = [
        *((baseline_name(scale), scale) for scale in scales),
        *((label, scale) for label, _, scale, _ in chosen),
    ]
    for kind, keys in (
        ("network", labels),
        ("data set", [(name, pairs.scale) for name, pairs in sets]),
    ):
        for name, scale in keys:
            if keys.count((name, scale)) > 1:
                raise ValueError(
                    f"{kind} {name!r} stands twice at scale {scale}: give each its own name"
                )


def _costs(
    net: ElasticWrapper,
    scale: int,
    depths: Sequence[int],
    device: torch.device | str,
    measure: bool,
) -> dict[int, tuple[int, int | None, float | None]]:
    """Return (parameters, macs, ms) of each depth."""
    if measure:
        width, height = (side // scale for side in OUTPUT_SIZE)
        net = net.truncate(depths[-1])
        costs = depth_costs(net, torch.rand(1, 3, height, width, device=device))
        return {cost.depth: cost[1:] for cost in costs if cost.depth in depths}
    return {
        depth: (sum(p.numel() for p in net.truncate(depth).parameters()), None, None)
        for depth in depths
    }


def _score(image: np.ndarray, pairs: PairSet, index: int, protocol: str, ssim: bool) -> Scores:
    hr, shave = pairs.hr(index), shave_for(pairs.scale, protocol)
    similarity = ssim_y(image, hr, shave, protocol) if ssim else float("nan")
    return Scores(psnr_y(image, hr, shave, protocol), similarity)


def _mean(scores: Sequence[Scores]) -> Scores:
    return Scores(
        float(np.mean([s.psnr for s in scores])), float(np.mean([s.ssim for s in scores]))
    )
