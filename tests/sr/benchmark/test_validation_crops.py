"""Crops of every depth's prediction: of the right place, size and number."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from elasticnet.sr.benchmark import predict_depths
from elasticnet.sr.benchmark.validation_crops import validation_crops
from elasticnet.sr.data import pairs_from_arrays
from elasticnet.sr.models.asrn import asrn


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_of_every_depth(scale: int) -> None:
    """Two images larger than the crop, one smaller, and a fourth beyond num_images."""
    sizes = {"large": (11, 14), "flat": (5, 13), "small": (3, 4), "left out": (9, 9)}
    images = {name: noise(height * scale, width * scale) for name, (height, width) in sizes.items()}
    pairs, net = pairs_from_arrays(images, scale), asrn(scale, 3, 8).train()
    crops = validation_crops(net, pairs, num_images=3, side=6)
    shapes = {"large": (6, 6), "flat": (5, 6), "small": (3, 4)}
    kinds = ["HR", "depth 1", "depth 2", "depth 3"]
    assert list(crops) == [f"{name}/{kind}" for name in shapes for kind in kinds]
    for name, (height, width) in shapes.items():
        for kind in kinds:
            assert crops[f"{name}/{kind}"].shape == (height * scale, width * scale, 3)
            assert crops[f"{name}/{kind}"].dtype == np.uint8
    assert np.array_equal(
        crops["large/HR"], images["large"][2 * scale : 8 * scale, 4 * scale : 10 * scale]
    )
    for depth, image in predict_depths(net, pairs.lr(0)[2:8, 4:10]).items():
        assert np.array_equal(crops[f"large/depth {depth}"], image), "of the same place as HR"
    assert np.array_equal(crops["small/HR"], images["small"])
    assert net.training


def test_crops_of_fewer_images_and_other_nets() -> None:
    """One image, taps at two depths, float64, as a float64 training validates."""
    pairs = pairs_from_arrays({"only": noise(40, 40)}, 2)
    net = asrn(2, 3, 8, taps=(1, 3)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crops = validation_crops(net, pairs, torch.device("cpu"))
    assert list(crops) == ["only/HR", "only/depth 1", "only/depth 3"]
    assert crops["only/HR"].shape == (40, 40, 3)
