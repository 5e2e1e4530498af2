"""PSNR and SSIM of one image: what each depth of a network makes of it, and how good that is.

Scores are those of the uint8 images that would be saved, never of floats.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elasticnet._autocast import computing_in
from elasticnet.sr.inference.channels_last import channels_last
from elasticnet.sr.inference.self_ensemble import self_ensembled
from elasticnet.sr.metrics import psnr_y, shave_for, ssim_y
from elasticnet.sr.pixels import refuse_not_finite, tensor_to_uint8, to_uint8
from elasticnet.sr.resize import imresize
from elasticnet.taps import resolve_depths
from elasticnet.wrapper import ElasticWrapper, evaluating

FULL: Literal["full"] = "full"  # stands for the depth of a network that is no ElasticWrapper
BICUBIC = "bicubic"
INPUT = "input"  # what bicubic interpolation is at scale 1
BASELINES = (BICUBIC, INPUT)

Image = NDArray[np.uint8]
Depth = int | Literal["full"]
Group = TypeVar("Group", bound=Hashable)


class Scores(NamedTuple):
    """How near an image, or the mean of a set of images, comes to the true one.

    Attributes:
        psnr: In dB; infinite where both are equal.
        ssim: At most 1; nan where it was not asked for.
    """

    psnr: float
    ssim: float


def to_tensor(image: Image, device: torch.device | str = "cpu") -> Tensor:
    """Return an image as a network takes it: float32 (1, 3, h, w) in 0..1.

    Args:
        image: RGB, uint8 (h, w, 3).
        device: Where the tensor goes.
    """
    copied = np.array(image)  # torch does not take a read-only array
    pixels = torch.from_numpy(copied).to(device)
    return pixels.permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)


def to_image(prediction: Tensor) -> Image:
    """Return what saving a network's output would give: uint8 (h, w, 3).

    Args:
        prediction: RGB floats (1, 3, h, w) in 0..1; what lies outside is clipped.
    """
    pixels = tensor_to_uint8(prediction[0].float() * 255)  # (3, h, w)
    return pixels.permute(1, 2, 0).cpu().numpy()


def scored_depths(net: nn.Module, depths: Sequence[int] | None = None) -> tuple[Depth, ...]:
    """Return the depths at which a network is scored.

    Args:
        net: An `ElasticWrapper`, or any other module, which has one depth, "full".
        depths: Depths of an `ElasticWrapper`; default: all that carry a prediction.

    Raises:
        ValueError: The net lacks one of the depths, or depths are given for another module.
    """
    if isinstance(net, ElasticWrapper):
        return resolve_depths(depths, net.taps)
    if depths is not None:
        listed = ", ".join(str(depth) for depth in depths)
        raise ValueError(
            f"depths {listed} of a {type(net).__name__}: only an ElasticWrapper has depths; leave "
            "them out"
        )
    return (FULL,)


def predict_depths(
    net: nn.Module,
    lr: Image,
    depths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    self_ensemble: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> dict[Any, Image]:
    """Return the image that each depth makes of a low-resolution one.

    It runs in eval mode, without gradients, in the net's own precision. One pass serves all depths.

    Args:
        net: On `device`: RGB floats (1, 3, h, w) in 0..1 -> (1, 3, scale h, scale w).
        lr: RGB, uint8 (h, w, 3).
        depths: As in `scored_depths`.
        device: Where the net is.
        self_ensemble: Take the mean over the eight symmetries of the input, rounded once, in eight
            passes.
        compute_dtype: float16 or bfloat16, in which convolutions are computed, by autocast.
            Default: the net's own dtype.

    Returns:
        For each depth ("full" for a net that is no `ElasticWrapper`), uint8 (scale h, scale w, 3).

    Raises:
        ValueError: As `scored_depths` does; and if the net gives NaN or infinity.
    """
    chosen = scored_depths(net, depths)

    def predict(x: Tensor) -> Sequence[Tensor]:
        if isinstance(net, ElasticWrapper):
            return net.forward_taps(channels_last(x), depths=depths).predictions
        return [net(channels_last(x))]

    parameter = next(net.parameters(), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    # Not in inference mode, because what a net keeps from such a pass cannot be trained with.
    with evaluating(net), torch.no_grad(), computing_in(compute_dtype, device), _any_size():
        x = to_tensor(lr, device).to(dtype)
        predictions = self_ensembled(predict, x) if self_ensemble else predict(x)
    images: dict[Any, Image] = {}
    for depth, prediction in zip(chosen, predictions, strict=True):
        refuse_not_finite(prediction, depth)
        images[depth] = to_image(prediction)
    return images


@contextmanager
def _any_size() -> Generator[None, None, None]:
    """Let cuDNN take kernels without timing all of them, as the images of a set differ in size.

    A training times them once, for patches of one size, by `torch.backends.cudnn.benchmark`. Here
    they would be timed anew for each image.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def bicubic(lr: Image, scale: int, border: str = "symmetric") -> Image:
    """Return an image enlarged by the exact `imresize`, rounded once as a network's output is.

    Args:
        lr: uint8 (h, w, 3).
        scale: How many times as long each side becomes.
        border: What lies outside the image: "symmetric" or "replicate".

    Returns:
        uint8 (scale h, scale w, 3).
    """
    return to_uint8(imresize(lr.astype(np.float64), scale, border=border))


def baseline_name(scale: int) -> str:
    """Return the name of what networks are shown beside.

    Args:
        scale: Of the data set.

    Returns:
        "bicubic", or "input" at scale 1, where bicubic interpolation changes nothing.
    """
    return INPUT if scale == 1 else BICUBIC


def score_image(
    image: Image, hr: Image, scale: int, *, protocol: str = "matlab-y", ssim: bool = True
) -> Scores:
    """Return the scores of one image.

    Args:
        image: The prediction, uint8 (h, w, 3).
        hr: The true image, of the same shape.
        scale: By how much the image was enlarged: it decides how much of the border is left out.
        protocol: As in `elasticnet.sr.metrics`.
        ssim: Whether SSIM is computed; it takes most of the time.
    """
    shave = shave_for(scale, protocol)
    similarity = ssim_y(image, hr, shave, protocol) if ssim else float("nan")
    return Scores(psnr=psnr_y(image, hr, shave, protocol), ssim=similarity)


@dataclass(frozen=True)
class Means(Generic[Group]):
    """The means of several groups of scores, all over the same images.

    Attributes:
        by_group: The mean PSNR and the mean SSIM of each group.
        exact: The images that are left out of all means, since a group reproduces them exactly.
    """

    by_group: dict[Group, Scores]
    exact: list[str]


def mean_scores(groups: Mapping[Group, Mapping[str, Scores]]) -> Means[Group]:
    """Return the means of groups that are to be compared, such as the depths of one network.

    The PSNR of an image that is reproduced exactly is infinite, and so would be every mean that
    it enters. Such an image is left out of the means of all groups, so that they stay comparable.

    Args:
        groups: The scores by image, at least one, of each group.

    Returns:
        The means, and the images that were left out. Where no image is left for all groups, each
        group has the mean of those that it does not reproduce exactly; if there is none, its PSNR
        is infinite.
    """
    exact: dict[str, None] = {}  # names, each once and in order
    for scores in groups.values():
        for image, score in scores.items():
            if math.isinf(score.psnr):
                exact[image] = None
    by_group: dict[Group, Scores] = {}
    for group, scores in groups.items():
        kept = [score for image, score in scores.items() if image not in exact]
        if not kept:
            kept = [score for score in scores.values() if math.isfinite(score.psnr)]
        by_group[group] = _plain_mean(kept or list(scores.values()))
    return Means(by_group, list(exact))


def _plain_mean(scores: Sequence[Scores]) -> Scores:
    return Scores(
        psnr=float(np.mean([each.psnr for each in scores])),
        ssim=float(np.mean([each.ssim for each in scores])),
    )
