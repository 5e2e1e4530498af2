"""JPEG compression: Pillow's pixels, settings as they are drawn, errors that name values."""

from __future__ import annotations

import io

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from elasticnet.sr.jpeg import PHOTO_JPEG, SUBSAMPLINGS, JpegSetting, RandomJpeg, compressed


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(17, 30, 3), (9, 8)])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_pixels_are_those_of_a_file_that_pillow_writes(
    shape: tuple[int, ...], subsampling: str
) -> None:
    image = noise(*shape)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=55, subsampling=subsampling)
    expected = np.asarray(Image.open(file))

    found = compressed(image, JpegSetting(55, subsampling))

    np.testing.assert_array_equal(found, expected)
    assert found.shape == shape
    assert not np.array_equal(found, image)


def test_colour_at_half_resolution_differs_from_colour_at_full() -> None:
    image = noise(16, 16, 3)
    half = compressed(image, JpegSetting(90, "4:2:0"))
    full = compressed(image, JpegSetting(90, "4:4:4"))
    assert not np.array_equal(half, full)


def test_no_setting_leaves_the_image_as_it_is() -> None:
    image = noise(4, 5, 3)
    assert compressed(image, None) is image


@given(bits=st.integers(0, 2**64 - 1))
def test_every_draw_lies_in_its_range(bits: int) -> None:
    setting = RandomJpeg(40, 42, uncompressed_share=0.5).setting(bits)
    if setting is not None:
        assert setting.quality in (40, 41, 42)
        assert setting.subsampling in SUBSAMPLINGS


def test_all_settings_of_a_photo_are_drawn_as_often_as_they_should() -> None:
    number_of_draws = 40_000
    all_bits = np.random.default_rng(1).integers(0, 2**64, number_of_draws, dtype=np.uint64)
    settings = [PHOTO_JPEG.setting(bits) for bits in all_bits.tolist()]
    drawn = [setting for setting in settings if setting is not None]
    assert 1 - len(drawn) / number_of_draws == pytest.approx(0.2, abs=0.01)
    counts = np.bincount([setting.quality for setting in drawn], minlength=101)
    assert counts[30:96].min() > 0.7 * len(drawn) / 66
    assert counts[:30].sum() + counts[96:].sum() == 0
    of_full_colour = sum(setting.subsampling == "4:4:4" for setting in drawn)
    assert of_full_colour / len(drawn) == pytest.approx(0.5, abs=0.01)


def test_quality_and_colour_are_drawn_independently_of_one_another() -> None:
    all_bits = np.random.default_rng(2).integers(0, 2**64, 20_000, dtype=np.uint64)
    drawn = [PHOTO_JPEG.setting(bits) for bits in all_bits.tolist()]
    low = [each for each in drawn if each is not None and each.quality < 60]
    share = sum(each.subsampling == "4:4:4" for each in low) / len(low)
    assert share == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (JpegSetting(0), "JPEG quality 0: expected a number from 1 to 100"),
        (JpegSetting(101), "JPEG quality 101: expected a number from 1 to 100"),
        (JpegSetting(50, "4:1:1"), "JPEG subsampling '4:1:1': expected one of 4:2:0, 4:4:4"),
    ],
)
def test_wrong_settings_are_named(setting: JpegSetting, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compressed(noise(8, 8, 3), setting)


def test_wrong_images_are_named() -> None:
    with pytest.raises(TypeError, match="image of float64: expected uint8"):
        compressed(noise(8, 8, 3) / 255, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"image of shape \(8, 8, 2\): JPEG takes"):
        compressed(noise(8, 8, 2), None)


def test_wrong_ranges_are_named() -> None:
    with pytest.raises(ValueError, match="JPEG quality 200"):
        RandomJpeg(highest_quality=200)
    with pytest.raises(
        ValueError, match="lowest_quality 50: expected at most the highest_quality 40"
    ):
        RandomJpeg(50, 40)
    with pytest.raises(ValueError, match=r"uncompressed_share 1\.5: expected a number from 0 to 1"):
        RandomJpeg(uncompressed_share=1.5)
