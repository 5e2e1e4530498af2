"""What takes part in a benchmark: it enlarges an LR image, and the result is scored and kept."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import nn

from elasticnet import __version__
from elasticnet._files import write_atomic
from elasticnet.sr.benchmark.kept_scores import (
    Basis,
    KeptScore,
    KeptScores,
    Place,
    digest_of_images,
    digest_of_net,
    made_elsewhere,
)
from elasticnet.sr.benchmark.others import OtherImage, OtherMethod
from elasticnet.sr.benchmark.records import ImageScore
from elasticnet.sr.benchmark.scores import (
    FULL,
    Depth,
    Image,
    Scores,
    baseline_name,
    bicubic,
    predict_depths,
    score_image,
    scored_depths,
)
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.inference.scale import scale_of
from elasticnet.wrapper import ElasticWrapper

ByDepth = dict[Depth | None, Scores]


class Contestant(NamedTuple):
    """A network, bicubic interpolation, or the images of another method.

    Attributes:
        label: In the tables.
        net: Any module; None for bicubic interpolation and for another method.
        scale: How many times as long it makes each side.
        requested: The depths that were asked for; None for all, and where there are no depths.
        depths: The depths that are scored; the one depth of bicubic interpolation is None.
        weights: `digest_of_net` of it; "" without a net, and where no scores are kept.
        other: The images of another method; None for what makes its images itself.
    """

    label: str
    net: nn.Module | None
    scale: int
    requested: Sequence[int] | None
    depths: tuple[Depth | None, ...]
    weights: str
    other: OtherMethod | None = None


class Scoring(NamedTuple):
    """How images are made and scored, and what becomes of them.

    Attributes:
        protocol: As in `elasticnet.sr.metrics`.
        self_ensemble: Whether networks take the mean over the eight symmetries of each image.
        border: What lies outside an image that is enlarged bicubically.
        device: Where the networks are.
        images_dir: Where every image is saved; None for nowhere.
        kept: Where scores are kept; None for nowhere.
        settings: What scores depend on beside pixels and weights, as JSON can hold it.
        compute_dtype: In which networks compute, as in `predict_depths`; None for their own.
    """

    protocol: str
    self_ensemble: bool
    border: str
    device: torch.device | str
    images_dir: Path | None
    kept: KeptScores | None
    settings: dict[str, Any]
    compute_dtype: torch.dtype | None = None


class Item(NamedTuple):
    """One image of a data set, and what enlarges it.

    Attributes:
        data: The data set's name.
        pairs: The data set.
        position: The image's place in it, from 0.
        contestants: Bicubic interpolation, and the networks and other methods of this scale.
        pixels: `digest_of_images` of its LR and HR image; "" where no scores are kept.
    """

    data: str
    pairs: PairSet
    position: int
    contestants: Sequence[Contestant]
    pixels: str

    @property
    def name(self) -> str:
        """The image's name."""
        return self.pairs.names[self.position]


class ScoredItem(NamedTuple):
    """The scores of one image.

    Attributes:
        images: Of each contestant and depth, in their order.
        is_new: Whether anything was scored; otherwise all of them were kept by an earlier run.
    """

    images: list[ImageScore]
    is_new: bool


def contestant_of(
    label: str, net: nn.Module, depths: Sequence[int] | None, *, with_digest: bool
) -> Contestant:
    """Return a network as a contestant.

    Args:
        label: In the tables.
        net: Any module.
        depths: Of an `ElasticWrapper`; None for all. Other modules have the one depth "full".
        with_digest: Whether the digest of its weights is needed.

    Raises:
        ValueError: The net lacks one of the depths.
    """
    requested = depths if isinstance(net, ElasticWrapper) else None
    return Contestant(
        label=label,
        net=net,
        scale=scale_of(net),
        requested=requested,
        depths=scored_depths(net, requested),
        weights=digest_of_net(net) if with_digest else "",
    )


def bicubic_contestant(scale: int) -> Contestant:
    """Return bicubic interpolation as a contestant.

    Args:
        scale: How many times as long each side becomes.
    """
    return Contestant(
        label=baseline_name(scale),
        net=None,
        scale=scale,
        requested=None,
        depths=(None,),
        weights="",
    )


def other_contestant(other: OtherMethod, scale: int) -> Contestant:
    """Return the images of another method as a contestant.

    Args:
        other: The method.
        scale: How many times as long each side became.
    """
    return Contestant(
        label=other.name,
        net=None,
        scale=scale,
        requested=None,
        depths=(FULL,),
        weights="",
        other=other,
    )


def score_item(item: Item, scoring: Scoring, show: Callable[[str], object]) -> ScoredItem:
    """Score what each contestant makes of one image; what an earlier run has kept is taken over.

    Args:
        item: The image.
        scoring: How it is scored.
        show: Told in words what is done next: the image, the contestant and its depth.

    Returns:
        The scores, and whether any of them is new.
    """
    images: list[ImageScore] = []
    is_new = False
    for contestant in item.contestants:
        scores = _kept_scores(item, contestant, scoring)
        if scores is None:
            scores = _new_scores(item, contestant, scoring, show)
            is_new = True
        for depth, score in scores.items():
            images.append(_image_score(place_of(item, contestant, depth), score))
    return ScoredItem(images, is_new)


def place_of(item: Item, contestant: Contestant, depth: Depth | None) -> Place:
    """Return where a score stands in the tables.

    Args:
        item: The image.
        contestant: What enlarged it.
        depth: Of the contestant.
    """
    return Place(
        data=item.data,
        scale=contestant.scale,
        image=item.name,
        network=contestant.label,
        depth=depth,
    )


def basis_of(item: Item, contestant: Contestant, scoring: Scoring) -> Basis:
    """Return what a score depends on.

    Args:
        item: The image.
        contestant: What enlarges it.
        scoring: How it is scored.
    """
    settings = {**scoring.settings, "elasticnet": __version__}
    made_by = contestant.weights
    if contestant.other is not None:
        made_by = made_elsewhere(_other_image(item, contestant.other).digest)
    return Basis(pixels=item.pixels, weights=made_by, settings=settings)


def _kept_scores(item: Item, contestant: Contestant, scoring: Scoring) -> ByDepth | None:
    """What an earlier run has scored at all depths; None if anything is missing."""
    if scoring.kept is None:
        return None
    basis = basis_of(item, contestant, scoring)
    found: ByDepth = {}
    for depth in contestant.depths:
        kept = scoring.kept.find(place_of(item, contestant, depth), basis)
        if kept is None:
            return None
        if scoring.images_dir is not None and contestant.other is None:
            saved = _image_path(scoring.images_dir, item, contestant, depth)
            if not _shows(saved, kept.made):
                return None
        found[depth] = kept.scores
    return found


def _new_scores(
    item: Item, contestant: Contestant, scoring: Scoring, show: Callable[[str], object]
) -> ByDepth:
    """Make the images of all depths, and score, save and keep them."""
    pairs = item.pairs
    hr = pairs.hr(item.position)
    show(f"{item.name}: {contestant.label}")
    made = _make_images(item, contestant, scoring)
    found: ByDepth = {}
    for depth, image in made.items():
        if isinstance(depth, int):
            show(f"{item.name}: {contestant.label} depth {depth}")
        found[depth] = score_image(image, hr, pairs.scale, protocol=scoring.protocol)
        if scoring.images_dir is not None and contestant.other is None:
            _save_image(image, _image_path(scoring.images_dir, item, contestant, depth))
    # The images come first: a score that is kept promises that its image is saved.
    if scoring.kept is not None:
        basis = basis_of(item, contestant, scoring)
        for depth, scores in found.items():
            kept = KeptScore(scores, made=digest_of_images(made[depth]))
            scoring.kept.add(place_of(item, contestant, depth), basis, kept)
    return found


def _make_images(item: Item, contestant: Contestant, scoring: Scoring) -> dict[Depth | None, Image]:
    """What a contestant makes of an LR image, or what another method has made of it, by depth."""
    if contestant.other is not None:
        return {FULL: read_rgb(_other_image(item, contestant.other).path)}
    lr = item.pairs.lr(item.position)
    if contestant.net is None:
        return {None: bicubic(lr, contestant.scale, scoring.border)}
    return predict_depths(
        contestant.net,
        lr,
        contestant.requested,
        scoring.device,
        scoring.self_ensemble,
        scoring.compute_dtype,
    )


def _other_image(item: Item, other: OtherMethod) -> OtherImage:
    """What another method has made of an image."""
    return other.images[item.data, item.pairs.scale, item.name]


def _image_score(place: Place, scores: Scores) -> ImageScore:
    return ImageScore(
        data=place.data,
        scale=place.scale,
        network=place.network,
        depth=place.depth,
        image=place.image,
        psnr=scores.psnr,
        ssim=scores.ssim,
    )


# --- images as files


def _image_path(images_dir: Path, item: Item, contestant: Contestant, depth: Depth | None) -> Path:
    """Where an image is saved; of several networks each has a folder of its own."""
    folder = images_dir / item.data
    stem = f"{item.name}_x{contestant.scale}"
    if depth is None:
        return folder / f"{stem}_{contestant.label}.png"
    num_networks = sum(each.net is not None for each in item.contestants)
    if num_networks > 1:
        folder = folder / contestant.label
    ending = FULL if depth == FULL else f"d{depth}"
    return folder / f"{stem}_{ending}.png"


def _save_image(image: Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    PillowImage.fromarray(image).save(encoded, "PNG")
    write_atomic(path, encoded.getvalue())


def _shows(path: Path, digest: str) -> bool:
    """Whether a file holds the image of this digest."""
    try:
        image: Image = np.asarray(PillowImage.open(path))
    except OSError:  # it is not there, or it is no image
        return False
    return digest_of_images(image) == digest
