"""Crops of every depth's prediction, to look at while a training runs."""

from __future__ import annotations

import numpy as np
import torch

from elasticnet.sr.benchmark.scores import predict_depths
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.wrapper import ElasticWrapper


def validation_crops(
    net: ElasticWrapper,
    pairs: PairSet,
    device: torch.device | str = "cpu",
    *,
    num_images: int = 3,
    side: int = 32,
) -> dict[str, np.ndarray]:
    """Return crops of HR and of every depth's prediction: the middle of the first images.

    They are cheap enough for every validation.

    Args:
        net: The network; it keeps its mode, training or eval.
        pairs: The validation images.
        device: Where the network is.
        num_images: How many images, from the first one on.
        side: Of the crop, in LR pixels; an image that is smaller is taken whole.

    Returns:
        "image/HR" and "image/depth N" -> uint8 of shape (side * scale, side * scale, 3), RGB.
    """
    scale = pairs.scale
    crops: dict[str, np.ndarray] = {}
    for index in range(min(num_images, len(pairs))):
        name = pairs.names[index]
        lr = pairs.lr(index)
        height, width = lr.shape[:2]
        top = max(0, (height - side) // 2)
        left = max(0, (width - side) // 2)
        crops[f"{name}/HR"] = _square(pairs.hr(index), top * scale, left * scale, side * scale)
        predictions = predict_depths(net, _square(lr, top, left, side), device=device)
        for depth, image in predictions.items():
            crops[f"{name}/depth {depth}"] = image
    return crops


def _square(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return image[top : top + side, left : left + side]
