"""Upscaler: every kind of image comes back as its kind, and threads at different depths do not
meet.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet.sr import Upscaler, asrn, edsr
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
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
            torch.testing.assert_close(
                enlarged, NET(image[None].float(), depth=1)[0].to(dtype), rtol=1e-5, atol=1e-5
            )
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


@pytest.mark.parametrize("mode", ["P", "CMYK", "1", "F", "I", "YCbCr"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(
        ValueError, match=rf"image of mode {mode}: expected RGB, .*convert\('RGB'\)"
    ):
        Upscaler(NET)(Image.new(mode, (4, 4)))


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
