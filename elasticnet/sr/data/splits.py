"""What a super-resolution recipe needs before and beside its loop: training and validation pairs,
crops to look at.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from elasticnet.sr.benchmark import predict_depths
from elasticnet.sr.data import PairSet, load_pairs, pairs_from_arrays, scikit_image_photos
from elasticnet.sr.data.folder_layouts import find_layout
from elasticnet.wrapper import ElasticWrapper

HELD_OUT_PHOTOS = ("chelsea", "coffee", "rocket")
AnyPath = str | os.PathLike[str]


def training_pairs(
    data: AnyPath | None,
    valid: AnyPath | None,
    scale: int,
    degradation: str = "BI",
    *,
    seed: int = 0,
    num_valid: int = 10,
    min_size: int = 0,
    progress: bool = True,
    **sigmas: float | None,
) -> tuple[PairSet, PairSet]:
    """Return the training and the validation pairs, in memory where they fit, so that their disk
    may go away.

    data: DIV2K, another known layout or a flat folder of HR images; None takes the photographs that
        scikit-image carries, of which `HELD_OUT_PHOTOS` are validated on.
    valid: images for validation; None holds `num_valid` of the training images out, evenly spread
    over them. min_size: smallest side of an LR training image (the patch size). The rest,
    blur_sigma and noise_sigma among it: see
        `load_pairs`.
    """
    make: dict[str, Any] = {"degradation": degradation, "seed": seed, **sigmas}
    if data is None and valid is None:
        pairs = pairs_from_arrays(scikit_image_photos(), scale, **make)
        training = [name for name in pairs.names if name not in HELD_OUT_PHOTOS]
        return pairs.subset(training), pairs.subset(HELD_OUT_PHOTOS)

    def load(root: AnyPath, split: str, smallest: int) -> PairSet:
        known = split if find_layout(root) == "div2k" else None
        pairs = load_pairs(root, scale, split=known, min_size=smallest, progress=progress, **make)
        # each process of this host takes one
        return pairs.in_memory(0.5 / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))

    if data is None:
        training = pairs_from_arrays(scikit_image_photos(), scale, **make)
    else:
        training = load(data, "train", min_size)
    if valid is not None:
        return training, load(valid, "valid", 0)
    if not 0 < num_valid < len(training):
        raise ValueError(
            f"--num-valid {num_valid}: expected at least 1 and fewer than the {len(training)} training images; or give "
            "images of their own by --valid"
        )
    held_out = {training.names[index * len(training) // num_valid] for index in range(num_valid)}
    return training.subset(
        [name for name in training.names if name not in held_out]
    ), training.subset([name for name in training.names if name in held_out])


def validation_crops(
    net: ElasticWrapper,
    pairs: PairSet,
    device: torch.device | str = "cpu",
    *,
    num_images: int = 3,
    side: int = 32,
) -> dict[str, np.ndarray]:
    """Return uint8 crops of HR and of every depth's prediction, named image/HR and image/depth N.

    The middle `side` LR pixels of the first `num_images` images: cheap enough for every validation.
    """
    crops: dict[str, np.ndarray] = {}
    for index in range(min(num_images, len(pairs))):
        lr, scale, name = pairs.lr(index), pairs.scale, pairs.names[index]
        top, left = (max(0, (size - side) // 2) for size in lr.shape[:2])
        hr = pairs.hr(index)[
            top * scale : (top + side) * scale, left * scale : (left + side) * scale
        ]
        crops[f"{name}/HR"] = hr
        for depth, image in predict_depths(
            net, lr[top : top + side, left : left + side], device=device
        ).items():
            crops[f"{name}/depth {depth}"] = image
    return crops
