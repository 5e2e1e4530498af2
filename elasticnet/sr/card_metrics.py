"""How a depth card shows networks that upscale images: its metrics and its throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from elasticnet.card.depth_card import DepthCard, Metric

PSNR = Metric("psnr", title="PSNR", unit="dB", decimals=2)
SSIM = Metric("ssim", title="SSIM", decimals=4)
METRICS = (PSNR, SSIM)
IMAGES = "images"
INPUT_MPIX = "input MPix"
# The units of cards that were measured before metrics and units had titles of their own.
OLD_UNITS = {"mpix": INPUT_MPIX}


def images_per_pass(shape: Sequence[int]) -> dict[str, float]:
    """Return what one pass takes in: images, and 10**6 pixels of the input.

    Args:
        shape: Of the input, (b, channels, h, w).
    """
    num_images, _, height, width = shape
    return {IMAGES: num_images, INPUT_MPIX: num_images * height * width / 1e6}


def as_quality(
    scores: Mapping[int, tuple[float, float]],
) -> dict[int, dict[str, float]]:
    """Return the scores of all depths as `measure(..., quality=)` takes them.

    Args:
        scores: (PSNR in dB, SSIM) by depth, as `elasticnet.sr.benchmark.evaluate` gives them.
    """
    quality: dict[int, dict[str, float]] = {}
    for depth, (psnr, ssim) in scores.items():
        quality[depth] = {PSNR.name: psnr, SSIM.name: ssim}
    return quality


def with_titles(card: DepthCard) -> DepthCard:
    """Return a card that shows its PSNR, SSIM and pixels under their titles.

    Cards of the first format have the names of their metrics alone.

    Args:
        card: Any card; what is not of images stays as it is.
    """
    titled = {metric.name: metric for metric in METRICS}
    metrics = tuple(titled.get(metric.name, metric) for metric in card.metrics)
    per_pass = {OLD_UNITS.get(unit, unit): amount for unit, amount in card.per_pass.items()}
    return replace(card, metrics=metrics, per_pass=per_pass)
