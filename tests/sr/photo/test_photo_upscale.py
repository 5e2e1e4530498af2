"""Photographs enlarged whole: alpha without halo, gray, 16 bits, mapped results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from elasticnet import ElasticWrapper
from elasticnet.sr import asrn
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.sr.photo import Photo
from elasticnet.sr.photo.large_array import large_array
from elasticnet.sr.photo.upscale import fill_hidden, upscale_photo
from elasticnet.sr.resize import imresize

GREEN = (0, 255, 0)


def tiny(scale: int = 2) -> ElasticWrapper:
    torch.manual_seed(0)
    return asrn(scale, num_blocks=2, channels=16).eval()


NET = tiny()
PLAN = plan_upscale(NET)


def enlarge(net: ElasticWrapper, image: np.ndarray, **options: Any) -> np.ndarray:
    """`upscale_array` with a plan of its own; `out` and `progress` go to the loop."""
    for_the_loop = {name: options.pop(name) for name in ("out", "progress") if name in options}
    return upscale_array(image, plan_upscale(net, **options), **for_the_loop)


def scene(height: int = 40, width: int = 48, dtype: type = np.uint8) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 5 + shift) * np.cos(columns / 7) for shift in (0, 1, 2)]
    return ((np.dstack(waves) * 0.3 + 0.6) * np.iinfo(dtype).max).astype(dtype)


def disc(
    height: int = 40, width: int = 48, radius: float = 14.3, dtype: type = np.uint8
) -> np.ndarray:
    """A disc with a soft edge of about one pixel."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2 + 0.5, columns - width / 2 + 0.5)
    return (np.clip(radius - distance + 0.5, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def over(photo: Photo, background: tuple[int, int, int]) -> np.ndarray:
    """The photograph laid over a plain colour, as floats 0..1."""
    assert photo.alpha is not None
    largest = np.iinfo(photo.pixels.dtype).max
    alpha = photo.alpha[..., None] / largest
    return photo.pixels / largest * alpha + np.array(background) / 255 * (1 - alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_no_halo_whatever_color_hides(dtype: type) -> None:
    colors, alpha = scene(dtype=dtype), disc(dtype=dtype)
    largest = np.iinfo(dtype).max
    results = []
    for garish in (GREEN, (255, 0, 255), (0, 0, 0)):
        hidden = colors.copy()
        hidden[alpha == 0] = np.array(garish) * (largest // 255)
        results.append(upscale_photo(Photo(hidden, alpha), PLAN))
    whole = enlarge(NET, colors)
    # Laid over its own continuation, the disc has to vanish: an edge that shows is a halo.
    alphas = imresize(alpha, 2)
    np.testing.assert_array_equal(results[0].alpha, alphas)
    for result in results:
        # nothing of what hides is left
        np.testing.assert_array_equal(result.pixels, results[0].pixels)
        seen = np.abs(result.pixels.astype(float) - whole) / largest * (alphas[..., None] / largest)
        assert seen.max() < 0.06
    naive = enlarge(
        NET, np.where(alpha[..., None] == 0, np.array(GREEN, dtype) * (largest // 255), colors)
    )
    assert (
        np.abs(naive.astype(float) - whole) / largest * (alphas[..., None] / largest)
    ).max() > 0.12  # as it would be


def test_faint_colors_beside_opaque_ones_do_not_reach_them() -> None:
    colors, alpha = scene(), np.full((40, 48), 255, np.uint8)
    alpha[:, 20:] = 1
    colors[:, 20:] = GREEN
    result = upscale_photo(Photo(colors, alpha), PLAN)
    clean = colors.copy()
    clean[:, 20:] = clean[:, 19:20]
    expected = enlarge(NET, clean)
    assert np.abs(result.pixels[:, :40].astype(int) - expected[:, :40]).max() < 16


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_even_alpha_changes_nothing(level: int) -> None:
    alpha = np.full((40, 48), level, np.uint8)
    result = upscale_photo(Photo(scene(), alpha), PLAN)
    np.testing.assert_array_equal(result.pixels, enlarge(NET, scene()))
    np.testing.assert_array_equal(result.alpha, np.full((80, 96), level))


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    color=st.booleans(),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
def test_filling_keeps_what_is_seen_and_forgets_what_is_not(
    height: int, width: int, color: bool, seed: int, share: float
) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 3) if color else (height, width), np.uint8)
    alpha = np.where(generator.random((height, width)) < share, 255, 0).astype(np.uint8)
    filled = fill_hidden(pixels, alpha)
    np.testing.assert_array_equal(filled[alpha == 255], pixels[alpha == 255])
    if alpha.any():
        other = pixels.copy()
        other[alpha == 0] = 255 - other[alpha == 0]
        np.testing.assert_array_equal(fill_hidden(other, alpha), filled)
        seen = pixels[alpha == 255].reshape(int((alpha == 255).sum()), -1)
        hidden = filled[alpha == 0].reshape(-1, seen.shape[1])
        assert (hidden >= seen.min(axis=0)).all()
        assert (hidden <= seen.max(axis=0)).all()
    assert (filled.shape, filled.dtype) == (pixels.shape, pixels.dtype)


def test_filling_takes_the_nearest_colors_also_across_bands() -> None:
    pixels, alpha = np.zeros((1100, 40, 3), np.uint8), np.zeros((1100, 40), np.uint8)
    pixels[:, :10], alpha[:, :10] = (200, 10, 60), 255
    even = np.broadcast_to(np.array((200, 10, 60), np.uint8), pixels.shape)
    np.testing.assert_array_equal(fill_hidden(pixels, alpha), even)
    alpha[512:] = 0  # the second band begins here, and sees the first one's colours only
    np.testing.assert_array_equal(fill_hidden(pixels, alpha)[:1024], even[:1024])


def test_gray_and_16_bits() -> None:
    gray = scene()[..., 0]
    result = upscale_photo(Photo(gray), PLAN)
    assert (result.pixels.shape, result.pixels.dtype) == ((80, 96), np.uint8)
    deep = upscale_photo(Photo(gray.astype(np.uint16) * 257), PLAN)
    assert deep.pixels.dtype == np.uint16
    assert len(np.unique(deep.pixels % 257)) > 100  # more than 8 bits
    assert np.abs(deep.pixels / 257 - result.pixels).max() <= 0.51


def test_metadata_stays_and_options_reach_the_network() -> None:
    photo = Photo(scene(), None, b"Exif\0\0", b"xmp", b"icc", (3.0, 4.0), "WEBP", ("note",))
    seen: list[tuple[int, int]] = []
    plan = plan_upscale(NET, depth=1, tile=16, self_ensemble=True)
    result = upscale_photo(photo, plan, progress=lambda done, total: seen.append((done, total)))
    assert (result.exif, result.xmp, result.icc, result.dpi) == (
        b"Exif\0\0",
        b"xmp",
        b"icc",
        (3.0, 4.0),
    )
    assert (result.format, result.notes) == ("WEBP", ("note",))
    np.testing.assert_array_equal(
        result.pixels, enlarge(NET, photo.pixels, depth=1, tile=16, self_ensemble=True)
    )
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 1


def test_sizes_in_metadata_are_those_of_the_result() -> None:
    photo = Photo(scene(), xmp=b'tiff:ImageWidth="1"')
    result = upscale_photo(photo, plan_upscale(NET, depth=1))
    assert result.xmp == b'tiff:ImageWidth="%d"' % result.size[1]


def test_large_results_are_mapped_to_a_file_that_leaves_nothing(tmp_path: Path) -> None:
    small, large = (
        large_array((4, 5, 3), np.uint8, tmp_path),
        large_array((40, 50, 3), np.uint16, tmp_path, limit=9999),
    )
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    large[:] = 7
    assert large.sum() == 7 * large.size
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="needs a system that can reserve room in a file"
)
def test_a_full_disk_is_an_error_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=rf"no room for the result in {tmp_path}: 4611686018.4 GB are needed \("
    ):
        large_array((2**31, 2**31), np.uint8, tmp_path)
    assert os.listdir(tmp_path) == []


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    is_gray=st.booleans(),
    has_alpha=st.booleans(),
    times=st.floats(1.01, 2.0),
)
def test_any_size_of_any_kind_of_photograph(
    height: int, width: int, dtype: type, is_gray: bool, has_alpha: bool, times: float
) -> None:
    colors = scene(height, width, dtype)
    photo = Photo(
        pixels=np.ascontiguousarray(colors[..., 0]) if is_gray else colors,
        alpha=np.full((height, width), 200, dtype) if has_alpha else None,
    )
    size = (round(height * times), round(width * times))
    result = upscale_photo(photo, PLAN, size=size)
    np.testing.assert_array_equal(result.pixels, imresize(enlarge(NET, photo.pixels), size=size))
    assert result.pixels.dtype == dtype
    assert result.num_colors == photo.num_colors
    if has_alpha:
        assert result.alpha is not None
        assert result.alpha.shape == size
        assert result.alpha.min() == result.alpha.max() == 200


def test_metadata_count_in_the_pixels_of_any_size() -> None:
    photo = Photo(scene(40, 48), xmp=b'GPano:FullPanoWidthPixels="48"')
    result = upscale_photo(photo, PLAN, size=(60, 72))
    assert result.xmp == b'GPano:FullPanoWidthPixels="72"'
