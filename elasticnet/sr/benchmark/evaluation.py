"""Scores of whole data sets: every depth of one network, or of several beside bicubic."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import __version__ as pillow_version
from torch import nn
from tqdm import tqdm

from elasticnet.sr.benchmark.contestants import (
    Contestant,
    Item,
    Scoring,
    basis_of,
    bicubic_contestant,
    contestant_of,
    other_contestant,
    place_of,
    score_item,
)
from elasticnet.sr.benchmark.costs import OUTPUT_SIZE, Cost, Measured, measure_costs
from elasticnet.sr.benchmark.kept_scores import (
    Basis,
    CostPlace,
    KeptScores,
    Place,
    digest_of_images,
    survey,
)
from elasticnet.sr.benchmark.others import OtherMethod
from elasticnet.sr.benchmark.records import Benchmark, ImageScore, Row, Skipped
from elasticnet.sr.benchmark.scores import (
    BICUBIC,
    Depth,
    Scores,
    bicubic,
    mean_scores,
    predict_depths,
    score_image,
)
from elasticnet.sr.data.pair_set import MAX_LISTED, PairSet

EXACT_REASON = "it is reproduced exactly, so its PSNR is infinite: kept out of the means"
PART_BETWEEN_CALLS = 0.05  # of the images that are done, until `on_progress` is called again

logger = logging.getLogger(__name__)


def evaluate(
    net: nn.Module,
    pairs: PairSet,
    *,
    depths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    protocol: str = "matlab-y",
    ssim: bool = True,
    self_ensemble: bool = False,
    compute_dtype: torch.dtype | None = None,
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
        compute_dtype: float16 or bfloat16, in which convolutions are computed, by autocast.
            Default: the net's own dtype.
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
        predicted = predict_depths(
            net, pairs.lr(index), depths, device, self_ensemble, compute_dtype
        )
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
    for name in names[:MAX_LISTED]:
        logger.warning("%s: %s", name, EXACT_REASON)
    if len(names) > MAX_LISTED:
        logger.warning("%d images are reproduced exactly, and kept out of the means", len(names))


def benchmark(
    nets: Sequence[tuple[str, nn.Module]],
    sets: Sequence[tuple[str, PairSet]],
    *,
    others: Sequence[OtherMethod] = (),
    depths: Sequence[int] | None = None,
    protocol: str = "matlab-y",
    self_ensemble: bool = False,
    compute_dtype: torch.dtype | None = None,
    border: str = "symmetric",
    device: torch.device | str = "cpu",
    costs: bool = True,
    images_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
    kept: KeptScores | None = None,
    on_progress: Callable[[Benchmark], None] | None = None,
) -> Benchmark:
    """Score bicubic interpolation and every depth of several networks on several data sets.

    Each net is scored on the sets of its own scale. What does not fit is refused before anything
    is scored.

    Args:
        nets: (label, net) each, on `device`, as in `evaluate`; elastic or not.
        sets: (name, pairs) each, as `load_sets` gives them.
        others: Images of other methods, as `find_others` finds them; each is scored on the sets
            that it has images of, under the depth "full".
        depths: Of the elastic nets; default: all that carry a prediction.
        protocol: As in `elasticnet.sr.metrics`.
        self_ensemble: Take the mean over the eight symmetries of each image.
        compute_dtype: As in `evaluate`.
        border: What lies outside an image that is enlarged bicubically.
        device: Where the nets are.
        costs: Whether MACs and time are measured, too.
        images_dir: Where every scored image is saved, as `<set>/<image>_x<scale>_d<depth>.png`,
            `..._full.png`, `..._bicubic.png` or, at scale 1, `..._input.png`; in a folder for each
            label where nets share a scale. Default: nowhere.
        progress: Whether bars are shown.
        kept: What earlier runs have scored: it is not scored again unless something has changed,
            which is said in the log. What is scored is added. Default: nothing is kept.
        on_progress: Called with what there is so far after the first image, and again whenever a
            twentieth more is scored.

    Returns:
        Means, the scores of each image, what was left out, and the settings. An image that
        anything reproduces exactly is left out of all means of its set, and of `images`.

    Raises:
        ValueError: A depth that a net lacks, a net without a set of its scale, or two nets or two
            sets of the same name at one scale.
    """
    networks: list[Contestant] = []
    for label, net in nets:
        networks.append(contestant_of(label, net, depths, with_digest=kept is not None))
    others_by_scale = [
        other_contestant(other, scale) for other in others for scale in other.scales()
    ]
    _check(networks, others_by_scale, sets)
    contestants = [*others_by_scale, *networks]
    settings = _settings(protocol, self_ensemble, border, device, compute_dtype)
    scoring = Scoring(
        protocol=protocol,
        self_ensemble=self_ensemble,
        border=border,
        device=device,
        images_dir=None if images_dir is None else Path(images_dir),
        kept=kept,
        settings=settings,
        compute_dtype=compute_dtype,
    )
    items = [list(_items(name, pairs, contestants, scoring)) for name, pairs in sets]
    # Say what an earlier run has scored, and what is scored anew, before anything takes time.
    if kept is not None:
        for line in survey(kept, _wanted(items, scoring)):
            logger.warning("%s", line)
    costs_of = measure_costs(
        [_as_measured(each) for each in networks],
        device,
        measured=costs,
        progress=progress,
        kept=kept,
        compute_dtype=compute_dtype,
    )

    images: list[ImageScore] = []
    num_items = sum(len(pairs) for _, pairs in sets)
    done = 0
    done_at_last_call = 0  # of on_progress
    hidden = None if progress else True  # None: unless standard error is a terminal
    for (name, pairs), of_one_set in zip(sets, items, strict=True):
        bar = tqdm(of_one_set, f"{name} x{pairs.scale}", unit="image", disable=hidden)
        for item in bar:
            scored = score_item(item, scoring, show=bar.set_postfix_str)
            images += scored.images
            done += 1
            # While kept scores are read back, tables of an earlier run may hold more than there is.
            is_due = scored.is_new and done > done_at_last_call * (1 + PART_BETWEEN_CALLS)
            if on_progress is not None and is_due and done < num_items:
                remaining = num_items - done
                on_progress(_result(images, costs_of, sets, settings, remaining))
                done_at_last_call = done
    return _result(images, costs_of, sets, settings)


# --- what takes part


def _check(
    networks: Sequence[Contestant],
    others: Sequence[Contestant],
    sets: Sequence[tuple[str, PairSet]],
) -> None:
    """Refuse a net without a data set, and names that stand twice."""
    scales = sorted({pairs.scale for _, pairs in sets})
    for each in networks:
        if each.scale not in scales:
            listed = ", ".join(str(scale) for scale in scales)
            raise ValueError(
                f"network {each.label!r} enlarges by {each.scale}, and the data sets are loaded "
                f"at scale {listed}"
            )
    contestants = [*(bicubic_contestant(scale) for scale in scales), *networks, *others]
    kind = "network or method" if others else "network"
    _check_distinct(kind, [(each.label, each.scale) for each in contestants])
    _check_distinct("data set", [(name, pairs.scale) for name, pairs in sets])


def _check_distinct(kind: str, named: Sequence[tuple[str, int]]) -> None:
    for name, scale in named:
        if named.count((name, scale)) > 1:
            raise ValueError(
                f"{kind} {name!r} stands twice at scale {scale}: give each its own name"
            )


def _as_measured(contestant: Contestant) -> Measured:
    """A network as its costs are measured."""
    assert contestant.net is not None
    return Measured(
        label=contestant.label,
        net=contestant.net,
        scale=contestant.scale,
        depths=[depth for depth in contestant.depths if depth is not None],
        weights=contestant.weights,
    )


def _settings(
    protocol: str,
    self_ensemble: bool,
    border: str,
    device: torch.device | str,
    compute_dtype: torch.dtype | None,
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "protocol": protocol,
        "self_ensemble": self_ensemble,
        "border": border,
        "device": str(device),
        "output_size": list(OUTPUT_SIZE),
        "torch": str(torch.__version__),
    }
    if compute_dtype is not None:  # scores of earlier runs, without it, stay valid
        settings["dtype"] = str(compute_dtype).removeprefix("torch.")
    return settings


def _items(
    name: str, pairs: PairSet, networks_and_others: Sequence[Contestant], scoring: Scoring
) -> Iterator[Item]:
    """The images of one data set."""
    contestants = [bicubic_contestant(pairs.scale)]
    for each in networks_and_others:
        has_images = each.other is None or each.other.has(name, pairs.scale)
        if each.scale == pairs.scale and has_images:
            contestants.append(each)
    for index in range(len(pairs)):
        pixels = ""
        if scoring.kept is not None:
            pixels = digest_of_images(pairs.lr(index), pairs.hr(index))
        yield Item(name, pairs, index, contestants, pixels)


def _wanted(items: Sequence[Sequence[Item]], scoring: Scoring) -> Iterator[tuple[Place, Basis]]:
    """All scores of the benchmark, and what they depend on."""
    for of_one_set in items:
        for item in of_one_set:
            for contestant in item.contestants:
                basis = basis_of(item, contestant, scoring)
                for depth in contestant.depths:
                    yield place_of(item, contestant, depth), basis


# --- means


def _result(
    images: Sequence[ImageScore],
    costs_of: Mapping[CostPlace, Cost],
    sets: Sequence[tuple[str, PairSet]],
    settings: dict[str, Any],
    remaining: int = 0,
) -> Benchmark:
    rows, exact = _means(images, costs_of)
    settings = dict(settings)
    jpeg_qualities = {
        name: pairs.lr_jpeg.quality for name, pairs in sets if pairs.lr_jpeg is not None
    }
    if jpeg_qualities:
        settings["jpeg_quality"] = jpeg_qualities
        settings["pillow"] = pillow_version
    left_out = {(each.data, each.scale, each.image) for each in exact}
    return Benchmark(
        rows=rows,
        images=[each for each in images if (each.data, each.scale, each.image) not in left_out],
        skipped=_skipped(sets) + exact,
        settings=settings,
        remaining=remaining,
    )


def _means(
    images: Sequence[ImageScore], costs: Mapping[CostPlace, Cost]
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
            # Bicubic interpolation and the images of other methods have no costs here.
            place = None if depth is None else CostPlace(network, scale, depth)
            cost = Cost() if place is None else costs.get(place, Cost())
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
                    ms_spread=cost.ms_spread,
                )
            )
    return rows, exact


def _skipped(sets: Sequence[tuple[str, PairSet]]) -> list[Skipped]:
    found: list[Skipped] = []
    for name, pairs in sets:
        found += [Skipped(name, pairs.scale, image, reason) for image, reason in pairs.skipped]
    return found
