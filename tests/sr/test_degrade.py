"""BI, BD and DN against the published Set5 baselines and loops written out here."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from elasticnet.sr.degrade import KINDS, degrade, given_sigmas, modcrop
from elasticnet.sr.jpeg import PHOTO_JPEG, compressed
from elasticnet.sr.matlab_random import matlab_normals
from elasticnet.sr.metrics import psnr_y, ssim_y
from elasticnet.sr.resize import imresize

DATA = os.environ.get("ELASTICNET_DATA")
needs_data = pytest.mark.skipif(
    not DATA, reason="ELASTICNET_DATA is not set: the Set5 images are needed"
)


def bicubic_baseline(
    kind: str,
    scale: int,
    *,
    round_once: bool = False,
    protocol: str = "matlab-y",
    **options: Any,
) -> tuple[float, float]:
    """Return mean PSNR and SSIM on Set5 of the degraded images, enlarged again by imresize.

    MATLAB rounds a uint8 image after each of the two passes; `round_once` enlarges in float64 and
    rounds at the end.
    """
    files = sorted((Path(DATA or "") / "benchmark" / "Set5" / "HR").glob("*.png"))
    assert len(files) == 5
    scores = []
    for file in files:
        hr = modcrop(np.asarray(Image.open(file).convert("RGB")), scale)
        lr = degrade(hr, kind, scale, **options)
        if round_once:
            sr = np.clip(np.floor(imresize(lr.astype(np.float64), scale) + 0.5), 0, 255).astype(
                np.uint8
            )
        else:
            sr = imresize(lr, scale)
        scores.append((psnr_y(sr, hr, scale, protocol), ssim_y(sr, hr, scale, protocol)))
    return tuple(np.mean(scores, axis=0).tolist())


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@needs_data
@pytest.mark.parametrize(
    ("scale", "once", "twice"), [(2, 33.678, 33.673), (3, 30.404, 30.403), (4, 28.430, 28.429)]
)
def test_set5_bi_bicubic(scale: int, once: float, twice: float) -> None:
    # 33.68, 30.40 and 28.43 dB are the values from RGB with one rounding; two roundings cost up to
    # 0.005 dB.
    assert bicubic_baseline("BI", scale, round_once=True)[0] == pytest.approx(once, abs=0.0006)
    assert bicubic_baseline("BI", scale)[0] == pytest.approx(twice, abs=0.0006)


@needs_data
def test_set5_bd_bicubic() -> None:
    score = bicubic_baseline("BD", 3)
    assert score[0] == pytest.approx(28.79, abs=0.005)
    assert score[1] == pytest.approx(0.8319, abs=0.0001)


@needs_data
def test_set5_dn_bicubic() -> None:
    score = bicubic_baseline("DN", 3, generator=np.random.default_rng(0))
    assert score[0] == pytest.approx(24.06, abs=0.005)
    assert score[1] == pytest.approx(0.540, abs=0.0005)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bi_is_imresize_of_the_cropped_photograph(scale: int) -> None:
    image = photograph(26, 31)
    for border in ("symmetric", "replicate"):
        expected = imresize(modcrop(image, scale), 1 / scale, border=border)
        np.testing.assert_array_equal(degrade(image, "BI", scale, border=border), expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 14), st.integers(3, 14), st.integers(1, 3), st.floats(0.5, 3.0))
def test_bd_equals_a_two_dimensional_loop(
    height: int, width: int, scale: int, sigma: float
) -> None:
    image = photograph(height, width)
    height, width = height // scale * scale, width // scale * scale
    offsets = range(-3, 4)
    kernel = {(a, b): math.exp(-(a * a + b * b) / (2 * sigma**2)) for a in offsets for b in offsets}
    total = sum(kernel.values())
    result = degrade(image, "BD", scale, blur_sigma=sigma)
    assert result.dtype == np.uint8
    assert result.shape == (height // scale, width // scale, 3)
    for row, column, channel in np.ndindex(result.shape):
        y, x = row * scale + scale // 2, column * scale + scale // 2
        value = 0.0
        for (a, b), weight in kernel.items():
            pixel = image[min(max(y + a, 0), height - 1), min(max(x + b, 0), width - 1), channel]
            value += weight / total * float(pixel)
        # Half a level of rounding and nothing more.
        assert abs(int(result[row, column, channel]) - value) <= 0.5 + 1e-9


def test_bd_keeps_index_one_of_three() -> None:
    image = np.zeros((9, 9), np.uint8)
    image[4, 7] = 255
    low = degrade(image, "BD", 3, blur_sigma=0.2)  # so narrow that nothing spreads
    assert low[1, 2] == 255
    assert low.astype(int).sum() == 255


def test_dn_is_bi_plus_noise_of_the_stated_generator() -> None:
    image = photograph(30, 60)
    low = degrade(image, "BI", 3)
    noise = 30 * np.random.default_rng(7).standard_normal((10, 20, 3))
    expected = np.clip(np.floor(low + noise + 0.5), 0, 255)
    np.testing.assert_array_equal(degrade(image, "DN", 3, seed=7), expected)
    generator = np.random.default_rng(7)
    np.testing.assert_array_equal(degrade(image, "DN", 3, seed=1, generator=generator), expected)
    assert (degrade(image, "DN", 3, generator=generator) != expected).any(), "a generator moves on"


def test_dn_noise_has_the_stated_strength() -> None:
    gray = np.full((300, 300, 3), 128, np.uint8)
    for sigma in (10.0, 30.0):
        noise = degrade(gray, "DN", 3, noise_sigma=sigma).astype(float) - 128
        assert noise.std() == pytest.approx(sigma, rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=0.5)


def test_matlab_s_noise_is_added_rounded_and_clipped() -> None:
    image = photograph(30, 21)
    low = imresize(image, size=(10, 7))
    added = np.float32(30 * matlab_normals((10, 7, 3)))
    expected = np.clip(np.floor(np.float32(low) + added + 0.5), 0, 255)
    np.testing.assert_array_equal(degrade(image, "DN", 3, noise="matlab"), expected)
    np.testing.assert_array_equal(degrade(image, "DN", 3, noise="matlab", seed=5), expected)


@needs_data
@pytest.mark.parametrize(("kind", "psnr", "ssim"), [("BD", 28.78, 0.8308), ("DN", 24.01, 0.5369)])
def test_the_published_numbers_of_set5_are_met(kind: str, psnr: float, ssim: float) -> None:
    # They stand on MATLAB's noise, and on the luma rounded to integers.
    score = bicubic_baseline(kind, 3, protocol="rounded-y", noise="matlab")
    assert round(score[0], 2) == psnr
    assert round(score[1], 4) == ssim


def test_noise_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="noise 'octave': expected one of numpy, matlab"):
        degrade(photograph(9, 9), "DN", 3, noise="octave")


def test_seeds() -> None:
    image = photograph(30, 30)
    np.testing.assert_array_equal(degrade(image, "DN", 3), degrade(image, "DN", 3, seed=0))
    for kind in ("DN", "HAZE"):
        assert (degrade(image, kind, 3, seed=1) != degrade(image, kind, 3, seed=0)).any()
        again = degrade(image, kind, 3, seed=5, generator=np.random.default_rng(1))
        np.testing.assert_array_equal(again, degrade(image, kind, 3, seed=1))
    for kind in ("BI", "BD"):
        np.testing.assert_array_equal(
            degrade(image, kind, 3, seed=1), degrade(image, kind, 3, seed=0)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gray_and_read_only_photographs(kind: str) -> None:
    gray = photograph(20, 23)[..., 0]
    gray.flags.writeable = False
    assert degrade(gray, kind, 3).shape == (6, 7)
    assert degrade(gray[..., None], kind, 3).shape == (6, 7, 1)
    np.testing.assert_array_equal(degrade(gray[..., None], kind, 3)[..., 0], degrade(gray, kind, 3))
    np.testing.assert_array_equal(degrade(gray, kind, 3), degrade(modcrop(gray, 3), kind, 3))


def test_modcrop() -> None:
    image = photograph(10, 11)
    assert modcrop(image, 4).shape == (8, 8, 3)
    assert modcrop(image, 1).shape == image.shape
    assert modcrop(image[..., 0], 3).shape == (9, 9)
    assert np.shares_memory(modcrop(image, 4), image)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (photograph(9, 9), "bicubic", 3),
            ValueError,
            "kind 'bicubic': expected one of BI, BD, DN, HAZE, photo",
        ),
        ((photograph(9, 9), "BI", 0), ValueError, "scale 0: expected a positive integer"),
        ((photograph(9, 9), "BI", 1.5), ValueError, "scale 1.5: expected a positive integer"),
        ((photograph(9, 9), "BI", True), ValueError, "scale True: expected a positive integer"),
        (
            (photograph(9, 2), "BI", 3),
            ValueError,
            "image of 9×2 pixels: scale 3 needs at least 3×3",
        ),
        ((photograph(9, 9) / 255, "BD", 3), TypeError, "image of float64: expected uint8"),
        (
            (photograph(9, 9)[0, 0], "BD", 3),
            ValueError,
            r"image of shape \(3,\): expected \(H, W\)",
        ),
        (("image.png", "BI", 3), TypeError, "image of type str: expected a NumPy array"),
    ],
)
def test_misuse_is_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        degrade(*arguments)


@pytest.mark.parametrize("name", ["blur_sigma", "noise_sigma"])
@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_sigma_is_named(name: str, sigma: float) -> None:
    with pytest.raises(ValueError, match=f"{name} {sigma}: expected a positive finite number"):
        degrade(photograph(9, 9), "DN", 3, **{name: sigma})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("sigma", [5.0, 25.0])
def test_at_scale_1_dn_is_the_photograph_with_noise_of_that_sigma(sigma: float) -> None:
    image = np.full((120, 130, 3), 128, np.uint8)
    noise = degrade(image, "DN", 1, seed=3, noise_sigma=sigma).astype(float) - 128
    drawn = sigma * np.random.default_rng(3).standard_normal(image.shape)
    assert np.abs(noise - drawn).max() <= 0.5 + 1e-9
    assert np.array_equal(degrade(image, "BI", 1), image)


def test_at_scale_1_bd_is_the_whole_blurred_photograph() -> None:
    image = photograph(14, 11)
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.6**2))
    padded = np.pad(image.astype(float), ((3, 3), (3, 3), (0, 0)), mode="edge")
    for row, column in np.ndindex(14, 11):
        window = padded[row : row + 7, column : column + 7]
        expected = (window * (kernel / kernel.sum())[..., None]).sum((0, 1))
        assert np.abs(degrade(image, "BD", 1)[row, column] - expected).max() <= 0.5 + 1e-9


def test_a_sigma_that_the_kind_has_no_use_for_is_refused() -> None:
    assert given_sigmas("BD", blur_sigma=2.0, noise_sigma=None) == {"blur_sigma": 2.0}
    assert given_sigmas("BI", blur_sigma=None) == {}
    with pytest.raises(ValueError, match=r"noise_sigma 3\.0: degradation 'BD' has no such setting"):
        given_sigmas("BD", noise_sigma=3.0)


# Haze, against the scattering model I = J t + A (1 - t) pixel by pixel.


@pytest.mark.parametrize("seed", range(20))
def test_haze_is_the_scattering_model(seed: int) -> None:
    image = photograph(9, 14, seed=seed)
    generator = np.random.default_rng(seed)
    air_light = 255 * (0.7 + 0.3 * generator.random())
    thickness = 0.6 + 1.2 * generator.random()
    coarse = generator.random((4, 4))
    distance = imresize(coarse, size=(9, 14))
    hazy = degrade(image, "HAZE", 1, seed=seed)
    assert hazy.dtype == np.uint8
    for row, column, channel in np.ndindex(hazy.shape):
        transmission = math.exp(-thickness * min(max(distance[row, column], 0.0), 1.0))
        clear = float(image[row, column, channel])
        expected = clear * transmission + air_light * (1 - transmission)
        # half a level of rounding and nothing more
        assert abs(int(hazy[row, column, channel]) - expected) <= 0.5 + 1e-9


def transmission_of_haze(seed: int) -> np.ndarray:
    """How much of the photograph's light comes through, from a black and a white photograph."""
    black = degrade(np.zeros((480, 360), np.uint8), "HAZE", 1, seed=seed).astype(float)
    white = degrade(np.full((480, 360), 255, np.uint8), "HAZE", 1, seed=seed).astype(float)
    return (white - black) / 255


@pytest.mark.parametrize("seed", range(5))
def test_haze_is_smooth_and_lets_light_through(seed: int) -> None:
    transmission = transmission_of_haze(seed)
    assert transmission.min() > math.exp(-1.8) - 0.01
    assert transmission.max() <= 1
    assert np.ptp(transmission) > 0.1
    for axis in (0, 1):
        assert np.abs(np.diff(transmission, axis=axis)).max() < 0.04


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_air_is_near_white_and_of_no_colour(seed: int) -> None:
    black = degrade(np.zeros((8, 8, 3), np.uint8), "HAZE", 1, seed=seed)
    assert (black == black[..., :1]).all()
    white = degrade(np.full((8, 8, 3), 255, np.uint8), "HAZE", 1, seed=seed).astype(float)
    share = (white - black) / 255  # of the photograph's light, (8, 8, 3)
    # the light of the air, where there is enough of it to be measured in whole levels
    thick = share < 0.8
    air_light = black[thick] / (1 - share[thick])
    assert (air_light > 0.7 * 255 - 6).all()
    assert (air_light < 255 + 6).all()


def test_at_larger_scales_haze_lies_on_the_small_image() -> None:
    image = photograph(31, 26)
    small = degrade(image, "BI", 3)
    np.testing.assert_array_equal(
        degrade(image, "HAZE", 3, seed=4), degrade(small, "HAZE", 1, seed=4)
    )


def test_haze_takes_no_sigma() -> None:
    with pytest.raises(
        ValueError, match=r"blur_sigma 2\.0: degradation 'HAZE' has no such setting"
    ):
        given_sigmas("HAZE", blur_sigma=2.0)


def test_a_photo_is_bicubic_and_jpeg_as_the_generator_draws_it() -> None:
    image = photograph(31, 26)
    small = degrade(image, "BI", 2)
    for seed in range(6):
        bits = int(np.random.default_rng(seed).integers(2**64, dtype=np.uint64))
        expected = compressed(small, PHOTO_JPEG.setting(bits))
        np.testing.assert_array_equal(degrade(image, "photo", 2, seed=seed), expected)
