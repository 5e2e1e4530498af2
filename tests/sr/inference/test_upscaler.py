"""Upscaler: every kind of image comes back as its kind, and threads at different depths do not
meet.
"""

from __future__ import annotations

import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from torch import nn

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet.card import DepthCard, measure
from elasticnet.sr import Upscaler, asrn, edsr
from elasticnet.sr.inference import depth_choice
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import UpscalePlan, plan_upscale
from elasticnet.sr.photo import Photo
from elasticnet.sr.photo.costs import PhotoCosts
from elasticnet.sr.photo.upscale import upscale_photo
from elasticnet.sr.resize import imresize

NET = asrn(2, 3, 8, init="default").eval()


def enlarge(net: ElasticWrapper, image: np.ndarray, **options: Any) -> np.ndarray:
    """`upscale_array` with a plan of its own; `out` and `progress` go to the loop."""
    for_the_loop = {name: options.pop(name) for name in ("out", "progress") if name in options}
    return upscale_array(image, plan_upscale(net, **options), **for_the_loop)


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    return values if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    elasticnet.save(NET, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


# --- kinds of images


@pytest.mark.parametrize("depth", [None, 1, 3, -1])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(3,), ()])
def test_arrays(depth: int | None, dtype: str, channels: tuple[int, ...]) -> None:
    image = pixels(20, 30, *channels, dtype=dtype)
    result = Upscaler(NET, 2)(image, depth)
    assert result.dtype == image.dtype
    assert result.shape == (40, 60, *channels)
    np.testing.assert_array_equal(result, enlarge(NET, image, depth=2 if depth is None else depth))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 20, 30, dtype=dtype, requires_grad=True)
    result = Upscaler(NET)(images, depth=1)
    assert result.dtype == dtype
    assert not result.requires_grad
    with torch.no_grad():
        for image, enlarged in zip(images, result, strict=True):
            expected = NET(image[None].float(), depth=1)[0].to(dtype)
            # one step of a narrow dtype: the layouts' sums differ in their last bits
            rtol = max(1e-5, torch.finfo(dtype).eps)
            torch.testing.assert_close(enlarged, expected, rtol=rtol, atol=1e-5)
    assert torch.equal(Upscaler(NET)(images[1], depth=1), result[1])
    assert torch.equal(
        Upscaler(NET)(images[1].transpose(-1, -2), depth=1), Upscaler(NET)(images[1].mT.clone(), 1)
    )
    assert Upscaler(NET)(images[:0]).shape == (0, 3, 40, 60)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_pictures(mode: str) -> None:
    channels = len(Image.new(mode, (1, 1)).getbands())
    planes = pixels(12, 17, channels)
    alpha = mode in ("RGBA", "LA")
    if alpha:
        planes[..., -1] = np.linspace(250, 255, 17)  # nothing hidden: colours stay what they are
    image = Image.fromarray(planes if channels > 1 else planes[..., 0])
    image.info = {"dpi": (300, 300), "icc_profile": b"profile", "transparency": 3}
    result = Upscaler(NET, 1)(image)
    assert (result.mode, result.size) == (mode, (34, 24))
    assert result.info == {"dpi": (300, 300), "icc_profile": b"profile"}
    large = np.asarray(result).reshape(24, 34, channels)
    colours = planes[..., : channels - alpha]
    expected = enlarge(NET, colours if colours.shape[-1] == 3 else colours[..., 0], depth=1)
    difference = np.abs(large[..., : channels - alpha].astype(int) - expected.reshape(24, 34, -1))
    assert difference.max() <= (2 if alpha else 0)
    if alpha:
        np.testing.assert_array_equal(large[..., -1], imresize(planes[..., -1], 2))


def test_a_picture_of_16_bits() -> None:
    image = pixels(9, 8, dtype="uint16")
    result = Upscaler(NET)(Image.fromarray(image))
    assert result.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(result), enlarge(NET, image))


def test_modes_of_32_bits() -> None:
    deep = pixels(9, 8, dtype="uint16")
    integers = Upscaler(NET)(Image.fromarray(deep.astype(np.int32)))
    assert integers.mode == "I"
    np.testing.assert_array_equal(np.asarray(integers), enlarge(NET, deep))
    values = pixels(9, 8, dtype="float32")
    floats = Upscaler(NET)(Image.fromarray(values))
    assert floats.mode == "F"
    np.testing.assert_array_equal(np.asarray(floats), enlarge(NET, values))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4), 65536, np.int32), "mode I with values from 65536 to 65536: expected 0..6"),
        (np.full((4, 4), -1, np.int32), "mode I with values from -1 to -1: expected 0..65535"),
        (np.full((4, 4), 255, np.float32), "values from 255 to 255: expected 0..1: divide it by"),
    ],
)
def test_modes_of_32_bits_in_another_range_are_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Upscaler(NET)(Image.fromarray(image))


@pytest.mark.parametrize("mode", ["P", "CMYK", "1", "YCbCr"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(
        ValueError, match=rf"image of mode {mode}: expected RGB, .*convert\('RGB'\)"
    ):
        Upscaler(NET)(Image.new(mode, (4, 4)))


def test_a_palette_with_transparency_is_refused_with_the_mode_that_keeps_it() -> None:
    image = Image.new("P", (4, 4))
    image.info["transparency"] = 0
    with pytest.raises(ValueError, match=r"image of mode P: .*convert\('RGBA'\)"):
        Upscaler(NET)(image)


# --- pictures of phones


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "TIFF", "PNG"])
def test_the_orientation_is_applied_and_reset(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "a phone"
    file = io.BytesIO()
    Image.fromarray(pixels(12, 17, 3)).save(file, format, exif=exif, dpi=(300, 200))
    upright = ImageOps.exif_transpose(Image.open(file))
    result = Upscaler(NET)(Image.open(file))
    np.testing.assert_array_equal(np.asarray(result), enlarge(NET, np.asarray(upright)))
    kept = result.getexif()
    assert kept.get(ExifTags.Base.Orientation, 1) == 1
    assert kept[ExifTags.Base.Make] == "a phone"
    if format == "JPEG":
        assert result.info["dpi"] == ((200, 300) if orientation >= 5 else (300, 200))


@settings(deadline=None, max_examples=40)
@given(
    mode=st.sampled_from(["L", "RGB", "LA", "RGBA", "I;16", "I", "F"]),
    width=st.integers(1, 20),
    height=st.integers(1, 20),
    orientation=st.integers(1, 8),
)
def test_any_mode_size_and_orientation(
    mode: str, width: int, height: int, orientation: int
) -> None:
    num_bands = len(Image.new(mode, (1, 1)).getbands())
    dtypes = {"I;16": "uint16", "I": "uint16", "F": "float32"}
    samples = pixels(height, width, num_bands, dtype=dtypes.get(mode, "uint8"))
    if mode == "I":
        samples = samples.astype(np.int32)
    image = Image.fromarray(samples if num_bands > 1 else samples[..., 0])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()
    result = Upscaler(NET, 1)(image)
    upright = ImageOps.exif_transpose(image)
    assert result.mode == mode
    assert result.size == (2 * upright.width, 2 * upright.height)
    if mode not in ("LA", "RGBA"):  # whose colours depend on alpha
        known = np.asarray(upright)
        expected = enlarge(NET, known.astype(np.uint16) if mode == "I" else known, depth=1)
        np.testing.assert_array_equal(np.asarray(result), expected)


def test_the_size_in_exif_is_that_of_the_result() -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 17
    image = Image.fromarray(pixels(12, 17, 3))
    image.info["exif"] = exif.tobytes()
    details = Upscaler(NET)(image).getexif().get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.ExifImageWidth] == 34


# --- photographs with all that belongs to them


def test_upscale_photo_takes_an_upscaler() -> None:
    photo = Photo(pixels=pixels(12, 17, 3), dpi=(300, 300), icc=b"profile")
    large = upscale_photo(photo, Upscaler(NET, 2))
    np.testing.assert_array_equal(large.pixels, enlarge(NET, photo.pixels, depth=2))
    assert (large.dpi, large.icc) == (photo.dpi, photo.icc)
    with pytest.raises(
        TypeError, match=r"photo is of type Upscaler: expected first a Photo, .* then the plan"
    ):
        upscale_photo(Upscaler(NET), photo)  # pyright: ignore[reportArgumentType]


def test_a_size_that_is_not_enlarged_to() -> None:
    photo = Photo(pixels=pixels(12, 17, 3))
    assert upscale_photo(photo, Upscaler(NET), size=(20, 30)).size == (20, 30)
    with pytest.raises(ValueError, match=r"size \(25, 34\): of an image of \(12, 17\)"):
        upscale_photo(photo, Upscaler(NET), size=(25, 34))


# --- a budget


@pytest.fixture
def known_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 ms a block for 640x360, nothing for what is beside the network; all of it is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(PhotoCosts, "converting", lambda *_: 0.0)

    def made_card(plan: UpscalePlan, with_memory: bool) -> DepthCard:
        card = measure(plan.net, torch.rand(1, 3, 8, 8), repeats=1, memory=False)
        rows = [
            replace(row, latency_ms=100.0 * row.depth, latency_p95_ms=100.0 * row.depth)
            for row in card.rows
        ]
        return replace(card, rows=tuple(rows), input_shape=(1, 3, 360, 640))

    monkeypatch.setattr(depth_choice, "measured_card", made_card)


@pytest.mark.usefixtures("known_costs")
@pytest.mark.parametrize(("max_ms", "depth"), [(350, 3), (299, 2), (100, 1)])
def test_max_ms_chooses_the_depth_by_the_size(weights: Path, max_ms: float, depth: int) -> None:
    upscaler = Upscaler(weights, max_ms=max_ms, tile=None)
    assert upscaler.plan(size=(360, 640)).depth == depth
    assert upscaler.plan(size=(36, 64)).depth == 3  # a hundredth of the pixels
    assert upscaler.plan(2, size=(360, 640)).depth == 2  # a call's own depth wins
    assert Upscaler(weights, 1, max_ms=max_ms).plan(size=(36, 64)).depth == 1  # never deeper


@pytest.mark.usefixtures("known_costs")
def test_calls_within_max_ms(weights: Path) -> None:
    image = pixels(90, 160, 3)  # a sixteenth of the pixels
    upscaler = Upscaler(weights, max_ms=15, tile=None)
    expected = enlarge(NET, image, depth=2, tile=None)
    np.testing.assert_array_equal(upscaler(image), expected)
    np.testing.assert_array_equal(np.asarray(upscaler(Image.fromarray(image))), expected)
    with pytest.raises(ValueError, match=r"no depth fits latency_ms <= 3 ms: depth 1 comes near"):
        Upscaler(weights, max_ms=3)(image)


@pytest.mark.parametrize("max_ms", [0, -1, float("nan"), float("inf")])
def test_a_budget_out_of_range_is_refused(weights: Path, max_ms: float) -> None:
    with pytest.raises(ValueError, match=f"max_ms {max_ms!r}: expected a number of milliseconds"):
        Upscaler(weights, max_ms=max_ms)


# --- other kinds


def test_other_kinds_are_refused() -> None:
    upscaler = Upscaler(NET)
    with pytest.raises(
        TypeError, match="image is a str: expected a PIL image, a NumPy array or a tensor"
    ):
        upscaler("photo.png")  # pyright: ignore[reportArgumentType]
    for wrong in (torch.zeros(4, 4), torch.zeros(1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(
            ValueError,
            match=rf"image is a tensor {wrong.dtype} of shape .*: expected floats in 0..1",
        ):
            upscaler(wrong)
    with pytest.raises(ValueError, match=r"image of shape \(4, 4, 2\)"):
        upscaler(np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(ValueError, match="values from 0 to 255: expected"):
        upscaler(torch.tensor([0.0, 255.0]).expand(3, 4, 2))


# --- weights, depth, settings


def test_a_file_gives_only_what_its_depth_needs(weights: Path) -> None:
    image = pixels(20, 30, 3)
    cut, whole = Upscaler(weights, 2), Upscaler(str(weights))
    assert (cut.depth, cut.depths, cut.scale) == (2, (1, 2), 2)
    assert (whole.depth, whole.depths) == (3, (1, 2, 3))
    assert len(cut.net.blocks) == 2
    for depth in (1, 2):
        np.testing.assert_array_equal(cut(image, depth), whole(image, depth))
    with pytest.raises(ValueError, match="depth 3: this net has taps at depths 1, 2"):
        cut(image, 3)
    with pytest.raises(ValueError, match="depth 9"):
        Upscaler(weights, 9)
    with pytest.raises(ValueError, match="depth 0"):
        Upscaler(NET, 0)
    with pytest.raises(OSError, match=r"none\.safetensors"):
        Upscaler(weights.with_name("none.safetensors"))


def test_a_net_is_kept_and_runs_in_eval_mode() -> None:
    for device in (None, "cpu"):
        net = ElasticWrapper([nn.Dropout(0.5)], nn.Upsample(scale_factor=3)).train()
        upscaler = Upscaler(net, device=device)
        assert upscaler.net is net
        assert not net.blocks[0].training
    image = pixels(5, 6, 3)
    np.testing.assert_array_equal(upscaler(image), image.repeat(3, 0).repeat(3, 1))
    assert upscaler.scale == 3


def test_settings_reach_every_call() -> None:
    image = pixels(40, 50, 3, dtype="float32")
    expected = enlarge(NET, image, self_ensemble=True)
    result = Upscaler(NET, tile=16, self_ensemble=True)(image)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    assert np.abs(result - Upscaler(NET)(image)).max() > 1e-3
    with pytest.raises(ValueError, match="tile -1"):
        Upscaler(NET, tile=-1)(image)


# --- threads


@pytest.mark.parametrize("fresh", [False, True])
def test_threads_at_different_depths_do_not_meet(fresh: bool) -> None:
    """Each of eight threads changes depth at every call; `fresh`: they also meet at the first
    measuring of the net.
    """
    images = [pixels(50, 40 + 8 * index, 3) for index in range(3)]
    jobs = list(itertools.product(range(3), range(len(images)), (1, 2, 3, 4)))
    net = edsr(2, 4, 8).eval()
    reference = {
        job: enlarge(net, images[job[0]], depth=job[1], tile=30)
        for job in {job[1:] for job in jobs}
    }
    upscaler = Upscaler(edsr(2, 4, 8) if fresh else net, tile=30)
    upscaler.net.load_state_dict(net.state_dict())
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: upscaler(images[job[1]], depth=job[2]), jobs))
    for job, result in zip(jobs, results, strict=True):
        np.testing.assert_array_equal(result, reference[job[1:]])
    assert upscaler.depth == upscaler.net.default_depth == 4


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_wrapped_net_enlarges_as_the_net_inside(wrap: Any) -> None:
    image = np.full((5, 6, 3), 0.5, np.float32)
    assert np.array_equal(Upscaler(wrap(NET))(image), Upscaler(NET)(image))


def test_a_module_that_is_not_elastic_is_refused() -> None:
    with pytest.raises(TypeError, match="net is a Linear: expected an ElasticWrapper"):
        Upscaler(nn.Linear(1, 1))
