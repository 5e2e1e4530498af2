"""PSNR and SSIM per depth on sets of image pairs, beside bicubic interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from elasticnet.sr.data import PairSet
from elasticnet.sr.metrics import psnr_y, shave_for, ssim_y
from elasticnet.sr.resize import imresize
from elasticnet.wrapper import ElasticWrapper, evaluating


class Scores(NamedTuple):
    """Means over a set of images: PSNR in dB and SSIM; SSIM is nan where it was not asked for."""

    psnr: float
    ssim: float


def to_tensor(image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Return a uint8 (H, W, 3) image as a float tensor (1, 3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float() / 255


def to_image(prediction: Tensor) -> np.ndarray:
    """Return a float tensor (1, 3, H, W) in 0..1 as the uint8 (H, W, 3) image that saving it would give."""
    return (prediction[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def predict_depths(
    net: ElasticWrapper, lr: np.ndarray, depths: Sequence[int] | None = None, device: torch.device | str = "cpu"
) -> dict[int, np.ndarray]:
    """Return the uint8 image that each depth makes of a uint8 LR image; one pass, in eval mode, float32."""
    with evaluating(net), torch.inference_mode():
        taps = net.forward_taps(to_tensor(lr, device), depths=depths)
    return {depth: to_image(image) for depth, image in zip(taps.depths, taps.predictions, strict=True)}


def evaluate(
    net: ElasticWrapper,
    pairs: PairSet,
    *,
    depths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    protocol: str = "matlab-y",
    ssim: bool = True,
    progress: bool = False,
) -> dict[int, Scores]:
    """Return each depth's mean PSNR and SSIM on `pairs`, measured on the uint8 images that would be saved."""
    results: dict[int, list[Scores]] = {}
    for index in tqdm(range(len(pairs)), desc="evaluating", unit="image", disable=not progress, leave=False):
        for depth, image in predict_depths(net, pairs.lr(index), depths, device).items():
            results.setdefault(depth, []).append(_score(image, pairs, index, protocol, ssim))
    return {depth: _mean(scores) for depth, scores in results.items()}


def bicubic(lr: np.ndarray, scale: int, border: str = "symmetric") -> np.ndarray:
    """Return a uint8 (H, W, 3) image enlarged by the exact `imresize`, rounded once as a network's output is."""
    return np.rint(imresize(lr.astype(np.float64), scale, border=border).clip(0, 255)).astype(np.uint8)


def evaluate_bicubic(pairs: PairSet, *, protocol: str = "matlab-y", border: str = "symmetric") -> Scores:
    """Return the scores of bicubic interpolation: what every network is shown beside."""
    images = (bicubic(pairs.lr(index), pairs.scale, border) for index in range(len(pairs)))
    return _mean([_score(image, pairs, index, protocol, True) for index, image in enumerate(images)])


def _score(image: np.ndarray, pairs: PairSet, index: int, protocol: str, ssim: bool) -> Scores:
    hr, shave = pairs.hr(index), shave_for(pairs.scale, protocol)
    similarity = ssim_y(image, hr, shave, protocol) if ssim else float("nan")
    return Scores(psnr_y(image, hr, shave, protocol), similarity)


def _mean(scores: Sequence[Scores]) -> Scores:
    return Scores(float(np.mean([s.psnr for s in scores])), float(np.mean([s.ssim for s in scores])))
