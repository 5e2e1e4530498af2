"""PSNR and SSIM against MATLAB's printed values, scikit-image, and loops written out here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from elasticnet.sr.metrics import PROTOCOLS, psnr_y, rgb_to_y, shave_for, ssim_y

DATA = os.environ.get("ELASTICNET_DATA")
# As MATLAB printed them for the RCAN ×2 results on Set5 that its authors published.
GOLDEN = {
    "baby": (38.979958, 0.968184),
    "bird": (43.639850, 0.990903),
    "butterfly": (36.058756, 0.980312),
    "head": (36.075233, 0.892380),
    "woman": (36.617042, 0.975444),
}


def pair(
    height: int, width: int, seed: int = 0, noise: float = 12.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth random picture and a noisy copy of it."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width, :1][:2]
    waves = np.sin(rows / 7 + generator.random(3) * 6) + np.cos(
        columns / 5 + generator.random(3) * 6
    )
    hr = np.clip(128 + 60 * waves, 0, 255).round().astype(np.uint8)
    sr = np.clip(hr + generator.normal(0, noise, hr.shape), 0, 255).round().astype(np.uint8)
    return sr, hr


def planar(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image).permute(2, 0, 1)


def luma(pixel: np.ndarray) -> float:
    red, green, blue = (int(value) for value in pixel)
    return (65.481 * red + 128.553 * green + 24.966 * blue) / 255 + 16


def naive_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean SSIM of two planes, one 11×11 window at a time, variances around their own mean."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            a = first[row : row + 11, column : column + 11]
            b = second[row : row + 11, column : column + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a = (window * (a - mean_a) ** 2).sum()
            variance_b = (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
            )
    return float(np.mean(values))


@pytest.mark.skipif(not DATA, reason="ELASTICNET_DATA is not set: the golden images are needed")
@pytest.mark.parametrize("name", GOLDEN)
def test_matlab_values(name: str) -> None:
    folder = Path(DATA or "") / "golden" / "rcan_set5_x2"
    sr = np.asarray(Image.open(folder / "SR" / f"{name}_RCAN_x2.png"))
    hr = np.asarray(Image.open(folder / "HR" / f"{name}_HR_x2.png"))
    assert psnr_y(sr, hr, shave=2) == pytest.approx(GOLDEN[name][0], rel=0, abs=1e-6)
    assert ssim_y(sr, hr, shave=2) == pytest.approx(GOLDEN[name][1], rel=0, abs=1e-6)


def test_luma_of_black_white_and_primaries() -> None:
    colours = np.array(
        [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8
    )
    np.testing.assert_allclose(
        rgb_to_y(colours), [16, 235, 81.481, 144.553, 40.966], rtol=0, atol=1e-12
    )
    tensor = torch.tensor(colours).T[:, :, None]  # (3, 5, 1)
    assert rgb_to_y(tensor).dtype == torch.float64
    np.testing.assert_allclose(rgb_to_y(tensor)[:, 0], rgb_to_y(colours), rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        rgb_to_y(tensor.float() / 255)[:, 0], rgb_to_y(colours), rtol=0, atol=1e-4
    )


def test_luma_of_floats_carries_gradients() -> None:
    image = torch.zeros(3, 2, 2, requires_grad=True)
    rgb_to_y(image).sum().backward()
    assert image.grad is not None
    torch.testing.assert_close(image.grad[:, 0, 0], torch.tensor([65.481, 128.553, 24.966]))


def test_psnr_worked_by_hand() -> None:
    hr = np.full((4, 4), 100, np.uint8)
    sr = hr.copy()
    sr[1, 1] = 104  # one of the four inner pixels: mean squared error 16 / 4
    assert psnr_y(sr, hr, shave=1) == pytest.approx(10 * math.log10(255**2 / 4), rel=1e-14)
    assert psnr_y(sr, hr, shave=0) == pytest.approx(10 * math.log10(255**2 / 1), rel=1e-14)
    colour = np.stack([hr, hr, hr], axis=2)
    changed = colour.copy()
    changed[1, 1, 2] = 110  # blue alone: luma moves by 24.966 · 10 / 255
    error = (24.966 * 10 / 255) ** 2 / 16
    assert psnr_y(changed, colour, shave=0) == pytest.approx(
        10 * math.log10(255**2 / error), rel=1e-12
    )
    rgb = 10 * math.log10(255**2 / (100 / 48))
    assert psnr_y(changed, colour, shave=0, protocol="rgb") == pytest.approx(rgb, rel=1e-12)
    # 16 + 219 · 100 / 255 = 101.88 becomes 102 and 102.86 becomes 103.
    rounded = 10 * math.log10(255**2 / (1 / 16))
    assert psnr_y(changed, colour, shave=0, protocol="rounded-y") == pytest.approx(
        rounded, rel=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 5),
    st.sampled_from(PROTOCOLS),
    st.integers(0, 99),
)
def test_psnr_equals_a_pixel_loop(
    height: int, width: int, shave: int, protocol: str, seed: int
) -> None:
    height, width = height + 2 * shave, width + 2 * shave
    generator = np.random.default_rng(seed)
    sr, hr = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    errors = []
    for row in range(shave, height - shave):
        for column in range(shave, width - shave):
            a, b = sr[row, column], hr[row, column]
            if protocol == "rgb":
                errors += [(int(x) - int(y)) ** 2 for x, y in zip(a, b, strict=True)]
            elif protocol == "rounded-y":
                errors.append((round(luma(a)) - round(luma(b))) ** 2)
            else:
                errors.append((luma(a) - luma(b)) ** 2)
    mean = sum(errors) / len(errors)
    expected = 10 * math.log10(255**2 / mean) if mean else math.inf
    assert psnr_y(sr, hr, shave, protocol) == pytest.approx(expected, rel=1e-12)


# 43 and 75 output rows end in the middle of a strip of the filter.
@pytest.mark.parametrize("shape", [(11, 11), (11, 30), (19, 14), (53, 12), (85, 11)])
def test_ssim_equals_a_window_loop(shape: tuple[int, int]) -> None:
    sr, hr = pair(*shape)
    expected = naive_ssim(rgb_to_y(sr), rgb_to_y(hr))
    assert ssim_y(sr, hr, shave=0) == pytest.approx(expected, rel=0, abs=1e-12)
    rounded = naive_ssim(rgb_to_y(sr).round(), rgb_to_y(hr).round())
    assert ssim_y(sr, hr, shave=0, protocol="rounded-y") == pytest.approx(rounded, rel=0, abs=1e-12)
    channels = np.mean(
        [naive_ssim(sr[..., c].astype(float), hr[..., c].astype(float)) for c in range(3)]
    )
    assert ssim_y(sr, hr, shave=0, protocol="rgb") == pytest.approx(channels, rel=0, abs=1e-12)


@pytest.mark.parametrize("shave", [0, 3])
@pytest.mark.parametrize("noise", [2.0, 40.0])
def test_ssim_equals_scikit_image(shave: int, noise: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    sr, hr = pair(97, 64, noise=noise)
    inner = (slice(shave, 97 - shave), slice(shave, 64 - shave))
    options = {
        "data_range": 255,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "full": True,
    }
    planes = (rgb_to_y(sr)[inner], rgb_to_y(hr)[inner])
    full = metrics.structural_similarity(*planes, **options)[1][5:-5, 5:-5]
    assert ssim_y(sr, hr, shave) == pytest.approx(float(full.mean()), rel=0, abs=1e-12)
    full = metrics.structural_similarity(sr[inner], hr[inner], channel_axis=2, **options)[1][
        5:-5, 5:-5
    ]
    assert ssim_y(sr, hr, shave, protocol="rgb") == pytest.approx(
        float(full.mean()), rel=0, abs=1e-12
    )


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_tensors_and_batches_agree(metric: Callable[..., Any], protocol: str) -> None:
    pairs = [pair(31, 40, seed) for seed in range(3)]
    expected = [metric(sr, hr, 2, protocol) for sr, hr in pairs]
    assert all(type(value) is float for value in expected)
    for dtype in (torch.uint8, torch.float32, torch.float64):
        sr, hr = (torch.stack([planar(images[i]) for images in pairs]) for i in (0, 1))
        if dtype.is_floating_point:
            sr, hr = sr.to(dtype) / 255, hr.to(dtype) / 255
        single = metric(sr[0], hr[0], 2, protocol)
        assert type(single) is float
        assert single == expected[0]
        batch = metric(sr, hr, 2, protocol)
        assert batch.dtype == torch.float64
        assert batch.device.type == "cpu"
        np.testing.assert_allclose(batch, expected, rtol=1e-13)


def test_floats_are_rounded_and_clipped_like_a_saved_image() -> None:
    hr = torch.full((1, 12, 12), 100 / 255)
    sr = hr + 0.4 / 255
    assert psnr_y(sr, hr, 0) == math.inf
    assert psnr_y(hr + 0.5 / 255, hr, 0) == pytest.approx(10 * math.log10(255**2))
    white, overshoot = torch.ones(1, 12, 12), torch.full((1, 12, 12), 1.3)
    assert psnr_y(overshoot, white, 0) == math.inf
    assert psnr_y(-overshoot, torch.zeros(1, 12, 12), 0) == math.inf
    assert ssim_y(overshoot, white, 0) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_level_survives_every_float_dtype(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert psnr_y((levels.double() / 255).to(dtype), levels, 0) == math.inf


def test_gradients_are_not_followed() -> None:
    sr = torch.rand(2, 3, 12, 12, requires_grad=True)
    value = psnr_y(sr, torch.rand(2, 3, 12, 12), 0)
    assert isinstance(value, torch.Tensor)
    assert not value.requires_grad


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_identical_images(protocol: str) -> None:
    image = pair(20, 30)[1]
    assert psnr_y(image, image, 2, protocol) == math.inf
    assert ssim_y(image, image, 2, protocol) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["sr", "hr"])
def test_a_value_that_is_not_finite_spoils_its_own_pair_only(bad: float, which: str) -> None:
    images = {name: torch.rand(3, 3, 16, 16) for name in ("sr", "hr")}
    metrics: list[Callable[..., Any]] = [psnr_y, ssim_y]
    clean = {metric: metric(images["sr"], images["hr"], 1) for metric in metrics}
    images[which][1, 0, 0, 0] = bad  # in the border that is shaved off: still not an image
    for metric, expected in clean.items():
        values = metric(images["sr"], images["hr"], 1)
        assert values[1].isnan()
        assert (values[[0, 2]] == expected[[0, 2]]).all()
        assert math.isnan(metric(images["sr"][1], images["hr"][1], 1))


def test_one_channel_is_the_luma_plane_itself() -> None:
    sr, hr = pair(20, 30)
    sr, hr = sr[..., 0], hr[..., 0]
    error = np.square(sr.astype(float) - hr.astype(float)).mean()
    for protocol in PROTOCOLS:
        expected = 10 * math.log10(255**2 / error)
        assert psnr_y(sr, hr, 0, protocol) == pytest.approx(expected, rel=1e-12)
        assert psnr_y(sr[..., None], hr[..., None], 0, protocol) == pytest.approx(
            expected, rel=1e-12
        )
        assert psnr_y(torch.tensor(sr)[None], torch.tensor(hr)[None], 0, protocol) == pytest.approx(
            expected
        )
    assert ssim_y(sr, hr, 0) == pytest.approx(
        naive_ssim(sr.astype(float), hr.astype(float)), abs=1e-12
    )


def test_shave_for_each_protocol() -> None:
    assert [shave_for(4, protocol) for protocol in PROTOCOLS] == [4, 4, 10]
    with pytest.raises(ValueError, match="protocol 'y': expected one of matlab-y, rounded-y, rgb"):
        shave_for(4, "y")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_the_cpu() -> None:
    sr, hr = (planar(image).float() / 255 for image in pair(150, 90))
    for metric in (psnr_y, ssim_y):
        assert metric(sr.cuda(), hr.cuda(), 3) == pytest.approx(metric(sr, hr, 3), rel=1e-12)


def test_read_only_and_strided_images() -> None:
    sr, hr = pair(40, 44)
    expected = ssim_y(sr[::2, ::-1].copy(), hr[::2, ::-1].copy(), 1)
    hr.flags.writeable = False
    assert ssim_y(sr[::2, ::-1], hr[::2, ::-1], 1) == expected


RGB = np.zeros((20, 20, 3), np.uint8)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
@pytest.mark.parametrize(
    ("sr", "hr", "shave", "protocol", "error", "message"),
    [
        (
            RGB,
            RGB[:-1],
            0,
            "rounded-y",
            ValueError,
            r"sr has shape \(20, 20, 3\), hr \(19, 20, 3\): crop or resize",
        ),
        (RGB, RGB[..., 0], 0, "rgb", ValueError, r"sr has shape \(20, 20, 3\), hr \(20, 20\)"),
        (
            RGB,
            torch.zeros(20, 20, 3),
            0,
            "rgb",
            TypeError,
            "sr is ndarray, hr is Tensor: give both",
        ),
        (
            RGB,
            RGB,
            0,
            "ycbcr",
            ValueError,
            "protocol 'ycbcr': expected one of matlab-y, rounded-y, rgb",
        ),
        (RGB, RGB, -1, "rgb", ValueError, "shave -1: expected a number of pixels"),
        (RGB, RGB, 1.5, "rgb", ValueError, "shave 1.5: expected a number of pixels"),
        (RGB, RGB, True, "rgb", ValueError, "shave True: expected a number of pixels"),
        (RGB, RGB, 10, "rgb", ValueError, "shave 10 leaves 0×0 of 20×20 pixels: at least"),
        (RGB, RGB, 30, "rgb", ValueError, "shave 30 leaves 0×0 of 20×20 pixels: at least"),
        (
            RGB / 255,
            RGB / 255,
            0,
            "rgb",
            TypeError,
            "sr is a NumPy array of float64: expected uint8",
        ),
        (
            RGB[None],
            RGB[None],
            0,
            "rgb",
            ValueError,
            r"sr has shape \(1, 20, 20, 3\): expected \(H, W\)",
        ),
        (
            torch.zeros(20, 20),
            torch.zeros(20, 20),
            0,
            "rgb",
            ValueError,
            r"shape \(20, 20\): expected \(3, H",
        ),
        (
            torch.zeros(2, 20, 20),
            torch.zeros(2, 20, 20),
            0,
            "rgb",
            ValueError,
            r"shape \(2, 20, 20\)",
        ),
        (
            torch.zeros(3, 20, 20).int(),
            torch.zeros(3, 20, 20).int(),
            0,
            "rgb",
            TypeError,
            "torch.int32",
        ),
        (
            torch.zeros(3, 20, 20),
            torch.full((3, 20, 20), 255.0),
            0,
            "rgb",
            ValueError,
            "from 255 to 255: float",
        ),
    ],
)
def test_misuse_is_named(
    metric: Callable[..., Any],
    sr: Any,
    hr: Any,
    shave: Any,
    protocol: str,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        metric(sr, hr, shave, protocol)


def test_ssim_needs_eleven_pixels() -> None:
    image = pair(20, 25)[1]
    assert ssim_y(image, image, 4) == 1.0
    with pytest.raises(
        ValueError, match="shave 5 leaves 10×15 of 20×25 pixels: at least 11×11 are needed"
    ):
        ssim_y(image, image, 5)
    assert psnr_y(image, image, 5) == math.inf


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"float64 array of shape \(4, 4, 3\): expected uint8"),
        (
            np.zeros((3, 4, 4), np.uint8),
            r"uint8 array of shape \(3, 4, 4\): expected uint8 \(..., 3\)",
        ),
        (torch.zeros(4, 4, 3), r"tensor of shape \(4, 4, 3\): expected \(..., 3, H, W\)"),
    ],
)
def test_luma_of_a_wrong_shape(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rgb_to_y(image)


def test_the_old_name_of_a_protocol_is_answered_with_the_new_one() -> None:
    with pytest.raises(ValueError, match="protocol 'imdn': it is called 'rounded-y' now"):
        psnr_y(RGB, RGB, shave=0, protocol="imdn")
