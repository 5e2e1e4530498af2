"""Scores of whole data sets: every depth of one network, or of several beside bicubic."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm

from elasticnet.card.counting import count_parameters
from elasticnet.card.measuring import depth_costs
from elasticnet.sr.benchmark.scores import (
    BICUBIC,
    FULL,
    Depth,
    Scores,
    baseline_name,
    bicubic,
    mean_scores,
    predict_depths,
    score_image,
    scored_depths,
)
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.sr.inference.scale import scale_of
from elasticnet.wrapper import ElasticWrapper

# Width and height of the output for which MACs and latency are given, as the field does.
OUTPUT_SIZE = (1280, 720)
EXACT_REASON = "it is reproduced exactly, so its PSNR is infinite: kept out of the means"

logger = logging.getLogger(__name__)


class ImageScore(NamedTuple):
    """The scores of one image.

    Attributes:
        data: The data set's name.
        scale: How many times as long each side became.
        network: The network's label, or "bicubic" ("input" at scale 1).
        depth: Of the network; None for bicubic.
        image: The image's name.
        psnr: In dB.
        ssim: At most 1.
    """

    data: str
    scale: int
    network: str
    depth: Depth | None
    image: str
    psnr: float
    ssim: float


class Row(NamedTuple):
    """Mean scores over one data set at one scale, with what the depth costs.

    Attributes:
        data: The data set's name.
        scale: How many times as long each side became.
        network: The network's label, or "bicubic" ("input" at scale 1).
        depth: Of the network; None for bicubic.
        psnr: Mean, in dB.
        ssim: Mean, at most 1.
        parameters: Of the net cut to this depth; None for bicubic.
        macs: Multiply-adds of one pass to an output of `OUTPUT_SIZE`; None where not measured.
        ms: Time of that pass in milliseconds; None where not measured.
    """

    data: str
    scale: int
    network: str
    depth: Depth | None
    psnr: float
    ssim: float
    parameters: int | None
    macs: int | None
    ms: float | None


class Skipped(NamedTuple):
    """An image that was left out.

    Attributes:
        data: The data set's name.
        scale: At which it was loaded.
        image: The image's name.
        reason: Why.
    """

    data: str
    scale: int
    image: str
    reason: str


class Benchmark(NamedTuple):
    """What `benchmark` measured.

    Attributes:
        rows: The means.
        images: The scores that they are means of.
        skipped: Images that were left out.
        settings: What the numbers depend on, as JSON can hold it.
    """

    rows: list[Row]
    images: list[ImageScore]
    skipped: list[Skipped]
    settings: dict[str, Any]


class _Entry(NamedTuple):
    """A network that takes part: `requested` are the depths asked for, `depths` what is scored."""

    label: str
    net: nn.Module
    scale: int
    requested: Sequence[int] | None
    depths: tuple[Depth, ...]


class _MadeImage(NamedTuple):
    """What one depth of a network, or bicubic interpolation (depth None), made of an image."""

    label: str
    depth: Depth | None
    image: NDArray[np.uint8]


class _Cost(NamedTuple):
    """What one depth costs; None is what was not measured."""

    parameters: int | None = None
    macs: int | None = None
    ms: float | None = None


def evaluate(
    net: nn.Module,
    pairs: PairSet,
    *,
    depths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    protocol: str = "matlab-y",
    ssim: bool = True,
    self_ensemble: bool = False,
    progress: bool = False,
) -> dict[Any, Scores]:
    """Return each depth's mean PSNR and SSIM on a data set.

    Args:
        net: On `device`: RGB floats (1, 3, h, w) in 0..1 -> (1, 3, scale h, scale w). Any module;
            one that is no `ElasticWrapper` has the one depth "full".
        pairs: Images at the net's scale.
        depths: Of an `ElasticWrapper`; default: all that carry a prediction.
        device: Where the net is.
        protocol: As in `elasticnet.sr.metrics`.
        ssim: Whether SSIM is computed; it takes most of the time. Without it, it is nan.
        self_ensemble: Take the mean over the eight symmetries of each image.
        progress: Whether a bar is shown.

    Returns:
        The means by depth, shallowest first. An image that one of the depths reproduces exactly is
        left out of all of them, and named in the log (see `mean_scores`).

    Raises:
        ValueError: A depth that the net lacks.
    """
    by_depth: dict[Any, dict[str, Scores]] = {}
    hidden = None if progress else True  # None: unless standard error is a terminal
    indices = tqdm(range(len(pairs)), desc="evaluating", unit="image", disable=hidden, leave=False)
    for index in indices:
        predicted = predict_depths(net, pairs.lr(index), depths, device, self_ensemble)
        hr = pairs.hr(index)
        for depth, image in predicted.items():
            score = score_image(image, hr, pairs.scale, protocol=protocol, ssim=ssim)
            by_depth.setdefault(depth, {})[pairs.names[index]] = score
    means = mean_scores(by_depth)
    _name_exact_images(means.exact)
    return means.by_group


def evaluate_bicubic(
    pairs: PairSet, *, protocol: str = "matlab-y", border: str = "symmetric"
) -> Scores:
    """Return the mean scores of bicubic interpolation, what every network is shown beside.

    Args:
        pairs: A data set.
        protocol: As in `elasticnet.sr.metrics`.
        border: What lies outside an image: "symmetric" or "replicate".
    """
    scores: dict[str, Scores] = {}
    for index in range(len(pairs)):
        image = bicubic(pairs.lr(index), pairs.scale, border)
        score = score_image(image, pairs.hr(index), pairs.scale, protocol=protocol)
        scores[pairs.names[index]] = score
    means = mean_scores({BICUBIC: scores})
    _name_exact_images(means.exact)
    return means.by_group[BICUBIC]


def _name_exact_images(names: Sequence[str]) -> None:
    """Name the images that were left out of the means."""
    for name in names:
        logger.warning("%s: %s", name, EXACT_REASON)


def benchmark(
    nets: Sequence[tuple[str, nn.Module]],
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
    """Score bicubic interpolation and every depth of several networks on several data sets.

    Each net is scored on the sets of its own scale. What does not fit is refused before anything
    is scored.

    Args:
        nets: (label, net) each, on `device`, as in `evaluate`; elastic or not.
        sets: (name, pairs) each, as `load_sets` gives them.
        depths: Of the elastic nets; default: all that carry a prediction.
        protocol: As in `elasticnet.sr.metrics`.
        self_ensemble: Take the mean over the eight symmetries of each image.
        border: What lies outside an image that is enlarged bicubically.
        device: Where the nets are.
        costs: Whether MACs and time are measured, too.
        images_dir: Where every scored image is saved, as `<set>/<image>_x<scale>_d<depth>.png`,
            `..._full.png`, `..._bicubic.png` or, at scale 1, `..._input.png`; in a folder for each
            label where nets share a scale. Default: nowhere.
        progress: Whether bars are shown.

    Returns:
        Means, the scores of each image, what was left out, and the settings. An image that
        anything reproduces exactly is left out of all means of its set, and of `images`.

    Raises:
        ValueError: A depth that a net lacks, a net without a set of its scale, or two nets or two
            sets of the same name at one scale.
    """
    entries = [_entry(label, net, depths) for label, net in nets]
    _check(entries, sets)
    costs_of = _measure_costs(entries, device, measured=costs, progress=progress)

    images: list[ImageScore] = []
    for name, pairs in sets:
        taking_part = [entry for entry in entries if entry.scale == pairs.scale]
        hidden = None if progress else True  # None: unless standard error is a terminal
        bar = tqdm(range(len(pairs)), f"{name} x{pairs.scale}", unit="image", disable=hidden)
        for index in bar:
            made = _make_images(pairs, index, taking_part, border, device, self_ensemble)
            images += _score_images(made, name, pairs, index, protocol)
            if images_dir is not None:
                stem = f"{pairs.names[index]}_x{pairs.scale}"
                _save_images(made, Path(images_dir, name), stem)

    settings = {
        "protocol": protocol,
        "self_ensemble": self_ensemble,
        "border": border,
        "device": str(device),
        "output_size": list(OUTPUT_SIZE),
        "torch": torch.__version__,
    }
    rows, exact = _means(images, costs_of)
    left_out = {(each.data, each.scale, each.image) for each in exact}
    return Benchmark(
        rows=rows,
        images=[each for each in images if (each.data, each.scale, each.image) not in left_out],
        skipped=_skipped(sets) + exact,
        settings=settings,
    )


# --- what takes part


def _entry(label: str, net: nn.Module, depths: Sequence[int] | None) -> _Entry:
    requested = depths if isinstance(net, ElasticWrapper) else None
    return _Entry(
        label=label,
        net=net,
        scale=scale_of(net),
        requested=requested,
        depths=scored_depths(net, requested),
    )


def _check(entries: Sequence[_Entry], sets: Sequence[tuple[str, PairSet]]) -> None:
    """Refuse a net without a data set, and names that stand twice."""
    scales = sorted({pairs.scale for _, pairs in sets})
    for entry in entries:
        if entry.scale not in scales:
            listed = ", ".join(str(scale) for scale in scales)
            raise ValueError(
                f"network {entry.label!r} enlarges by {entry.scale}, and the data sets are loaded "
                f"at scale {listed}"
            )
    networks = [(baseline_name(scale), scale) for scale in scales]
    networks += [(entry.label, entry.scale) for entry in entries]
    _check_distinct("network", networks)
    _check_distinct("data set", [(name, pairs.scale) for name, pairs in sets])


def _check_distinct(kind: str, named: Sequence[tuple[str, int]]) -> None:
    for name, scale in named:
        if named.count((name, scale)) > 1:
            raise ValueError(
                f"{kind} {name!r} stands twice at scale {scale}: give each its own name"
            )


# --- what it costs


def _measure_costs(
    entries: Sequence[_Entry], device: torch.device | str, *, measured: bool, progress: bool
) -> dict[tuple[str, int, Depth], _Cost]:
    """The cost by label, scale and depth; without `measured`, parameters alone."""
    costs: dict[tuple[str, int, Depth], _Cost] = {}
    shows_bar = progress and measured and bool(entries)
    hidden = None if shows_bar else True  # None: unless standard error is a terminal
    for entry in tqdm(entries, "measuring", disable=hidden):
        elastic = _as_elastic(entry.net)
        by_depth = _measured(elastic, entry, device) if measured else _counted(elastic, entry)
        for depth, cost in by_depth.items():
            costs[entry.label, entry.scale, depth] = cost
    return costs


def _as_elastic(net: nn.Module) -> ElasticWrapper:
    """The net itself, or around any other module one that has it as its only block."""
    if isinstance(net, ElasticWrapper):
        return net
    return ElasticWrapper([net], nn.Identity())


def _measured(net: ElasticWrapper, entry: _Entry, device: torch.device | str) -> dict[Depth, _Cost]:
    width, height = (side // entry.scale for side in OUTPUT_SIZE)
    example = torch.rand(1, 3, height, width, device=device)
    deepest = net.truncate(_block_count(entry.depths[-1]))  # what lies deeper is not measured
    by_count = {cost.depth: cost for cost in depth_costs(deepest, example)}
    costs: dict[Depth, _Cost] = {}
    for depth in entry.depths:
        cost = by_count[_block_count(depth)]
        costs[depth] = _Cost(parameters=cost.parameters, macs=cost.macs, ms=cost.ms)
    return costs


def _counted(net: ElasticWrapper, entry: _Entry) -> dict[Depth, _Cost]:
    costs: dict[Depth, _Cost] = {}
    for depth in entry.depths:
        costs[depth] = _Cost(parameters=count_parameters(net, _block_count(depth)))
    return costs


def _block_count(depth: Depth) -> int:
    """The depth in `_as_elastic` of the net."""
    return 1 if depth == FULL else depth


# --- images and their means


def _make_images(
    pairs: PairSet,
    index: int,
    entries: Sequence[_Entry],
    border: str,
    device: torch.device | str,
    self_ensemble: bool,
) -> list[_MadeImage]:
    """What bicubic interpolation and every depth of the nets make of one LR image."""
    lr = pairs.lr(index)
    baseline = bicubic(lr, pairs.scale, border)
    made = [_MadeImage(baseline_name(pairs.scale), None, baseline)]
    for entry in entries:
        predicted = predict_depths(entry.net, lr, entry.requested, device, self_ensemble)
        made += [_MadeImage(entry.label, depth, image) for depth, image in predicted.items()]
    return made


def _score_images(
    made: Sequence[_MadeImage], data: str, pairs: PairSet, index: int, protocol: str
) -> list[ImageScore]:
    hr = pairs.hr(index)
    found: list[ImageScore] = []
    for each in made:
        scores = score_image(each.image, hr, pairs.scale, protocol=protocol)
        found.append(
            ImageScore(
                data=data,
                scale=pairs.scale,
                network=each.label,
                depth=each.depth,
                image=pairs.names[index],
                psnr=scores.psnr,
                ssim=scores.ssim,
            )
        )
    return found


def _save_images(made: Sequence[_MadeImage], folder: Path, stem: str) -> None:
    """Save what was made of one image; of several networks each has a folder of its own."""
    networks = {each.label for each in made if each.depth is not None}
    for each in made:
        if each.depth is None:
            target = folder / f"{stem}_{each.label}.png"
        else:
            ending = FULL if each.depth == FULL else f"d{each.depth}"
            inside = folder / each.label if len(networks) > 1 else folder
            target = inside / f"{stem}_{ending}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each.image).save(target)


def _means(
    images: Sequence[ImageScore], costs: Mapping[tuple[str, int, Depth], _Cost]
) -> tuple[list[Row], list[Skipped]]:
    """One row for each data set, scale, network and depth, in the order of the images.

    Beside them, the images that are kept out of the means since their PSNR is infinite.
    """
    # Of one set at one scale, all networks and depths are compared over the same images.
    sets: dict[tuple[str, int], dict[tuple[str, Depth | None], dict[str, Scores]]] = {}
    for each in images:
        groups = sets.setdefault((each.data, each.scale), {})
        by_image = groups.setdefault((each.network, each.depth), {})
        by_image[each.image] = Scores(each.psnr, each.ssim)
    rows: list[Row] = []
    exact: list[Skipped] = []
    for (data, scale), groups in sets.items():
        means = mean_scores(groups)
        exact += [Skipped(data, scale, image, EXACT_REASON) for image in means.exact]
        for (network, depth), mean in means.by_group.items():
            cost = _Cost() if depth is None else costs[network, scale, depth]
            rows.append(
                Row(
                    data=data,
                    scale=scale,
                    network=network,
                    depth=depth,
                    psnr=mean.psnr,
                    ssim=mean.ssim,
                    parameters=cost.parameters,
                    macs=cost.macs,
                    ms=cost.ms,
                )
            )
    return rows, exact


def _skipped(sets: Sequence[tuple[str, PairSet]]) -> list[Skipped]:
    found: list[Skipped] = []
    for name, pairs in sets:
        found += [Skipped(name, pairs.scale, image, reason) for image, reason in pairs.skipped]
    return found
