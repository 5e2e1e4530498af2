"""Tiles are the whole image: at every size, tile, depth and scale, with every head; out of memory;
bounded memory.
"""

from __future__ import annotations

import itertools
import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import event, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet.memory import free_memory
from elasticnet.sr import asrn, edsr, rcan
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.tile_engine import TilePart
from elasticnet.sr.inference.tile_layout import batch_size, first_tiling, spans
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.wrapper import ElasticWrapper

PEAKS = {"uint8": 255, "uint16": 65535}


def photo(
    height: int, width: int, dtype: str = "uint8", channels: tuple[int, ...] = (3,)
) -> np.ndarray:
    image = np.random.default_rng(height * 1000 + width).random(
        (height, width, *channels), dtype=np.float32
    )
    return (image * PEAKS[dtype]).astype(dtype) if dtype in PEAKS else image.astype(dtype)


def enlarge(net: ElasticWrapper, image: np.ndarray, **options: Any) -> np.ndarray:
    """`upscale_array` with a plan of its own; `out` and `progress` go to the loop."""
    for_the_loop = {name: options.pop(name) for name in ("out", "progress") if name in options}
    return upscale_array(image, plan_upscale(net, **options), **for_the_loop)


def lively(net: ElasticWrapper) -> ElasticWrapper:
    """With weights that let every layer contribute to the output."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * (0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return net.eval()


NETS = {
    "asrn x1": lively(asrn(1, 2, 8)),
    "asrn x2": lively(asrn(2, 3, 8)),
    "asrn x3 plain": lively(asrn(3, 2, 8, fold=False)),
    "asrn x4 bicubic": lively(asrn(4, 2, 8, skip="bicubic")),
    "asrn x2 subpixel bicubic": lively(asrn(2, 1, 8, upsampler="subpixel", skip="bicubic")),
    "edsr x2": lively(edsr(2, 2, 8)),
    "edsr x4 plain": lively(edsr(4, 1, 8, fold=False)),
}


class Nearest(nn.Module):
    """Enlarges by repeating pixels."""

    def __init__(self, scale: int, factor: float = 1, shift: float = 0) -> None:
        super().__init__()
        self.scale, self.factor, self.shift = scale, factor, shift

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.factor + self.shift
        return x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def shifting(count: int) -> ElasticWrapper:
    """Each block moves the image by one pixel along the diagonal: every output shows the corner of
    what it sees.
    """
    blocks = []
    for _ in range(count):
        block = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        block.weight.data = torch.zeros(3, 1, 3, 3)
        block.weight.data[:, :, 2, 2] = 1
        blocks.append(block)
    return ElasticWrapper(blocks, Nearest(1)).eval()


# --- the plan


@given(length=st.integers(1, 300), side=st.integers(1, 80), overlap=st.integers(0, 30))
def test_spans_cover_the_length_by_equal_windows(length: int, side: int, overlap: int) -> None:
    found = spans(length, side, overlap)
    covered = [pixel for span in found for pixel in range(span.start, span.stop)]
    assert covered == list(range(length))
    assert len({span.window_stop - span.window_start for span in found}) == 1
    assert found[0].window_stop - found[0].window_start <= side + 2 * overlap
    for span in found:
        assert 0 <= span.window_start <= span.start < span.stop <= span.window_stop <= length
        assert span.window_start == 0 or span.start - span.window_start >= overlap
        assert span.window_stop == length or span.window_stop - span.stop >= overlap
    assert len(found) == max(1, -(-(length - 2 * overlap) // side)), "no more than are needed"


def test_a_tile_is_at_most_a_side_long_and_at_each_end_the_overlap_longer() -> None:
    for length in range(1, 60):
        for span in spans(length, side=8, overlap=3):
            num_ends = (span.start == 0) + (span.stop == length)
            assert span.stop - span.start <= 8 + 3 * num_ends


def test_auto_keeps_to_the_memory_and_to_the_image() -> None:
    tiling = first_tiling(plan_upscale(asrn(2, 1, 8)), (4000, 280))
    assert len(tiling.columns) == 1
    assert 144 < tiling.window_size[0] <= 288
    huge = edsr(4, 1, 64, fold=False)  # 1,024 floats a pixel in front of its last layer
    height, width = first_tiling(plan_upscale(huge), (4000, 4000)).window_size
    assert height == width
    assert height * width * footprint(huge).bytes_per_pixel < 640 * 10**6


# --- tiles and the whole


def differing(net: ElasticWrapper, image: np.ndarray, tile: int, **options: object) -> float:
    """Compare tiles with the whole image; return the fraction of samples that differ, by at most
    one level.
    """
    whole = enlarge(net, image, tile=None, **options)
    tiled = enlarge(net, image, tile=tile, **options)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    return float((whole != tiled).mean())


@given(
    name=st.sampled_from(sorted(NETS)),
    depth=st.integers(1, 3),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.integers(12, 50),
    self_ensemble=st.sampled_from([False, False, False, True]),
)
@example(name="asrn x2", depth=1, height=1, width=1, tile=1, self_ensemble=False)
@example(name="asrn x4 bicubic", depth=1, height=20, width=17, tile=1, self_ensemble=False)
# a folded ring in each tile
@example(name="edsr x2", depth=2, height=90, width=77, tile=48, self_ensemble=False)
def test_tiles_are_the_whole(
    name: str, depth: int, height: int, width: int, tile: int, self_ensemble: bool
) -> None:
    net = NETS[name]
    depth = min(depth, net.taps[-1])
    image = photo(height, width, "float32")
    whole = enlarge(net, image, depth=depth, tile=None, self_ensemble=self_ensemble)
    tiled = enlarge(net, image, depth=depth, tile=tile, self_ensemble=self_ensemble)
    assert np.abs(whole - tiled).max() <= 2e-6 * np.abs(whole).max()
    event("bit for bit" if np.array_equal(whole, tiled) else "up to rounding")
    fraction = differing(net, photo(height, width), tile, depth=depth, self_ensemble=self_ensemble)
    assert fraction <= max(1e-3, 2 / whole.size)


def test_no_pixel_less_of_overlap_would_do() -> None:
    image = photo(40, 50)
    net = shifting(5)
    expected = enlarge(net, image, tile=None)
    np.testing.assert_array_equal(expected[:35, :45], image[5:, 5:])
    np.testing.assert_array_equal(enlarge(net, image, tile=8), expected)
    one_pixel_less = replace(plan_upscale(net, tile=8), reach=4)
    assert differing(shifting(4), image, tile=8) == 0
    assert (upscale_array(image, one_pixel_less) != expected).any()


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="which kernels run is known for x86 only"
)
@pytest.mark.parametrize(
    "net", [asrn(2, 2, 16, init="default"), edsr(2, 2, 16), asrn(3, 1, 16, fold=False)]
)
def test_bit_for_bit_where_every_window_takes_the_same_kernels(net: ElasticWrapper) -> None:
    image = photo(301, 305, "float32")
    tiling = first_tiling(plan_upscale(net, tile=150), (301, 305))
    assert tiling.num_tiles == 4
    smallest = first_tiling(plan_upscale(net), (289, 289))
    assert smallest.num_tiles == 4
    for height, width in (tiling.window_size, smallest.window_size):
        assert height * width > 20480  # up to here PyTorch runs a plain kernel over one channel
    whole = enlarge(net, image, tile=None)
    for tile in (150, "auto"):
        np.testing.assert_array_equal(enlarge(net, image, tile=tile), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (2, 3), (30, 41)])
def test_the_whole_is_what_the_network_makes(size: tuple[int, int]) -> None:
    image = photo(*size)
    for net, depth in itertools.product((NETS["asrn x2"], NETS["edsr x4 plain"]), (1, -1)):
        x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            expected = net(x, depth=depth)[0].permute(1, 2, 0).numpy()
        expected = np.floor(expected.clip(0, 1) * 255 + 0.5)
        for tile in (None, "auto"):
            result = enlarge(net, image, depth=depth, tile=tile)
            assert result.dtype == np.uint8
            assert (result != expected).mean() <= 0.01
            assert np.abs(result - expected).max() <= 1


# --- kinds of images


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", ">u2"])
@pytest.mark.parametrize("channels", [(3,), ()])
def test_every_value_comes_back(dtype: str, channels: tuple[int, ...]) -> None:
    values = np.arange(65536).reshape(256, 256) / 65535
    image = np.stack([values] * 3, axis=-1) if channels else values
    kind = np.dtype(dtype)
    image = (
        np.floor(image * PEAKS.get(kind.name, 1) + 0.5).astype(dtype)
        if kind.kind == "u"
        else image.astype(dtype)
    )
    net = ElasticWrapper([nn.Identity()], Nearest(2))
    result = enlarge(net, image, tile=100)
    assert result.dtype == kind
    expected = image.repeat(2, 0).repeat(2, 1)
    if kind.kind == "u" or channels:
        np.testing.assert_array_equal(
            result, expected.astype(np.float32) if dtype == "float64" else expected
        )
    else:
        np.testing.assert_allclose(result, expected, rtol=1e-3 if dtype == "float16" else 1e-6)


class InPlanes(nn.Module):
    """Gives the image as planes, one for each channel, as a pixel shuffle does on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


@given(
    dtype=st.sampled_from(["uint8", "uint16", "float16", "float32", "float64", ">u2"]),
    channels=st.sampled_from([(3,), ()]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_planes_and_neighbouring_channels_give_the_same_bits(
    dtype: str, channels: tuple[int, ...], height: int, width: int
) -> None:
    image = photo(height, width, np.dtype(dtype).name, channels).astype(dtype)
    neighbours = ElasticWrapper([nn.Identity()], nn.Identity())
    planes = ElasticWrapper([nn.Identity()], InPlanes())
    found = enlarge(planes, image, tile=7)
    np.testing.assert_array_equal(found, enlarge(neighbours, image, tile=7))
    assert found.dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [(3,), ()])
def test_a_tile_is_narrow_and_interleaved_before_it_leaves_the_device(
    dtype: str, channels: tuple[int, ...]
) -> None:
    """What crosses the bus from a GPU is the result, and the image takes it row by row."""
    plan = plan_upscale(ElasticWrapper([nn.Identity()], InPlanes()))
    part = TilePart(rows=slice(2, 9), columns=slice(1, 12))
    (tile,) = plan.enlarge([photo(10, 15, dtype, channels)], [part])
    assert tile.shape == (7, 11, *channels)
    assert tile.dtype == dtype
    assert tile.flags.c_contiguous


def test_integers_are_rounded_half_up_and_clipped() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    half = ElasticWrapper([nn.Identity()], Nearest(1, factor=0.5))
    # what float32 makes of the halves
    exact = image.astype(np.float32) / np.float32(255) / 2 * np.float32(255)
    result = enlarge(half, image)
    np.testing.assert_array_equal(result, np.floor(exact + 0.5))
    assert (exact % 2 == 0.5).any()
    assert (result == np.rint(exact)).mean() < 1
    wide = ElasticWrapper([nn.Identity()], Nearest(1, factor=3, shift=-1))
    np.testing.assert_array_equal(enlarge(wide, image)[[0, -1], [0, -1]], [[0] * 3, [255] * 3])
    floats = enlarge(wide, image / np.float32(255))
    assert (floats.min(), floats.max()) == (-1, 2)


def test_gray_is_the_luma_of_what_the_network_makes_of_gray() -> None:
    gray = photo(40, 30, "float32", ())
    colour = enlarge(NETS["asrn x2"], np.stack([gray] * 3, axis=-1), tile=None)
    expected = colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    np.testing.assert_allclose(enlarge(NETS["asrn x2"], gray, tile=16), expected, rtol=0, atol=1e-6)


def test_a_net_in_bfloat16_keeps_to_its_precision() -> None:
    image = photo(50, 60, "float32")
    expected = enlarge(NETS["asrn x2"], image)
    net = lively(asrn(2, 3, 8)).to(torch.bfloat16)
    assert np.abs(enlarge(net, image) - expected).max() < 0.1 * np.abs(expected).max()


def test_a_net_in_training_runs_in_eval_mode_and_goes_on() -> None:
    net = ElasticWrapper([nn.Dropout(0.9)], Nearest(1)).train()
    image = photo(8, 9)
    np.testing.assert_array_equal(enlarge(net, image), image)
    assert net.training
    assert net.blocks[0].training


def test_arrays_can_be_given_and_mapped(tmp_path: Path) -> None:
    image = photo(60, 70)
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    out = np.memmap(tmp_path / "out", np.uint8, "w+", shape=(120, 140, 3))
    assert enlarge(NETS["asrn x2"], mapped, tile=24, out=out) is out
    np.testing.assert_array_equal(out, enlarge(NETS["asrn x2"], image, tile=24))
    np.testing.assert_array_equal(
        enlarge(NETS["asrn x2"], image[::-1, ::-1][::-1, ::-1], tile=24), out
    )


def test_progress_counts_the_tiles() -> None:
    seen: list[tuple[int, int]] = []
    enlarge(
        NETS["asrn x2"],
        photo(60, 40),
        depth=1,
        tile=20,
        progress=lambda *counts: seen.append(counts),
    )
    total = first_tiling(plan_upscale(NETS["asrn x2"], depth=1, tile=20), (60, 40)).num_tiles
    assert total == 6
    assert seen == [(done, total) for done in range(total + 1)]


# --- what is refused


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"image of shape \(4, 4, 4\): expected \(h, w, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"image of shape \(0, 4, 3\)"),
        (np.zeros((1, 3, 4, 4), np.float32), r"image of shape \(1, 3, 4, 4\)"),
        (np.zeros((4, 4, 3), np.int16), "image of int16: expected uint8, uint16, or floats"),
        (np.full((4, 4, 3), 200.0), "values from 200 to 200: expected 0..1"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
    ],
)
def test_images_that_do_not_fit(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        enlarge(NETS["asrn x2"], image)


@pytest.mark.parametrize("tile", [0, -3, True, 2.5, "Auto"])
def test_tiles_that_do_not_fit(tile: int) -> None:
    with pytest.raises(ValueError, match=f"tile {tile!r}: expected 'auto', None"):
        enlarge(NETS["asrn x2"], photo(8, 8), tile=tile)


def test_other_refusals() -> None:
    net, image = NETS["asrn x2"], photo(8, 9)
    with pytest.raises(TypeError, match="image is a list: expected a NumPy array"):
        enlarge(net, [[1]])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="depth 7: this net has taps at depths 1, 2, 3"):
        enlarge(net, image, depth=7)
    with pytest.raises(ValueError, match=r"out is uint8 \(8, 9, 3\): expected uint8 \(16, 18, 3\)"):
        enlarge(net, image, out=image)
    with pytest.raises(ValueError, match=r"out is float32 \(16, 18, 3\): expected uint8"):
        enlarge(net, image, out=np.zeros((16, 18, 3), np.float32))
    broken = ElasticWrapper([nn.Identity()], Nearest(1, factor=float("inf")))
    with pytest.raises(ValueError, match="depth 1 of this net gives NaN or infinity"):
        enlarge(broken, image + 1)
    with pytest.raises(ValueError, match="depth 1 of this net gives NaN or infinity"):
        enlarge(broken, np.full((8, 9, 3), 0.5, np.float32))


# --- networks that see the whole image


def test_global_pooling_runs_whole_or_warns(recwarn: pytest.WarningsRecorder) -> None:
    net = lively(rcan(2, 1, 16, group_size=1, reduction=1))
    image = photo(130, 40, "float32")
    whole = enlarge(net, image, tile=None)
    np.testing.assert_array_equal(enlarge(net, image), whole)
    enlarge(net, image[:40], tile=64)  # one tile: nothing to warn of
    assert not recwarn.list
    with pytest.warns(UserWarning, match="tile 16: depth 1 of this net has no bounded reach"):
        tiled = enlarge(net, image, tile=16)
    assert tiled.shape == whole.shape
    assert not np.array_equal(tiled, whole)


def test_a_whole_that_cannot_fit_is_refused_before_it_starts() -> None:
    endless = np.broadcast_to(np.uint8(7), (2**20, 2**20, 3))
    if free_memory("cpu") is None:
        pytest.skip("the free memory is not known on this system")
    with pytest.raises(
        MemoryError, match=r"the whole image does not fit .* take tile='auto' .* GB are free"
    ):
        enlarge(NETS["asrn x2"], endless, tile=None)
    with pytest.raises(
        MemoryError, match="this net sees all of an image, and tiles may show seams"
    ):
        enlarge(rcan(2, 1, 8, group_size=1, reduction=4), endless)


def test_auto_takes_an_image_whole_that_has_no_more_pixels_than_the_fastest_window() -> None:
    plan = plan_upscale(NETS["asrn x2"])
    assert first_tiling(plan, (200, 400)).num_tiles == 1
    assert first_tiling(plan, (200, 420)).num_tiles > 1, "more than 288 * 288 pixels"


# --- several tiles in one batch


class Batches(nn.Module):
    """Keeps how many windows come at once."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: list[int] = []  # private: it is no setting of the network

    @property
    def sizes(self) -> list[int]:
        return self._sizes

    def forward(self, x: Tensor) -> Tensor:
        self._sizes.append(len(x))
        return x


@pytest.mark.parametrize("kind", ["uint8", "float32", "gray"])
@pytest.mark.parametrize("name", ["asrn x2", "asrn x4 bicubic", "edsr x2"])
def test_tiles_in_a_batch_are_the_single_tiles(name: str, kind: str) -> None:
    image = photo(50, 90) if kind == "uint8" else photo(50, 90, "float32")
    if kind == "gray":
        image = image[..., 0]
    single = enlarge(NETS[name], image, tile=16)
    batched = enlarge(NETS[name], image, tile=16, tile_batch=3)
    tolerance = 1 if kind == "uint8" else 1e-5  # a sum may be rounded otherwise in a batch
    np.testing.assert_allclose(batched.astype(float), single.astype(float), rtol=0, atol=tolerance)


def test_a_batch_holds_neighbours_of_one_row_and_the_last_one_what_is_left() -> None:
    counted = Batches()
    net = ElasticWrapper([counted], Nearest(2)).eval()
    plan = plan_upscale(net, tile=10, tile_batch=2)
    counted.sizes.clear()
    seen: list[tuple[int, int]] = []
    upscale_array(photo(20, 50), plan, progress=lambda *counts: seen.append(counts))
    assert counted.sizes == [2, 2, 1, 2, 2, 1]
    assert [done for done, _ in seen] == [0, 2, 4, 5, 7, 9, 10]


def test_auto_runs_one_tile_at_once_on_a_cpu_and_on_a_gpu_those_of_a_large_window() -> None:
    plan = plan_upscale(NETS["asrn x2"], tile=64)
    tiling = first_tiling(plan, (1000, 1000))
    assert batch_size(plan, tiling) == 1
    on_gpu = SimpleNamespace(tile_batch="auto", device_name="mps", bytes_per_pixel=1.0)
    side = tiling.window_size[0]
    assert batch_size(cast(Any, on_gpu), tiling) == 288 * 288 // side**2 > 1


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "all"])
def test_a_batch_of_tiles_is_a_whole_number_or_auto(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"tile_batch {wrong!r}: expected 'auto'"):
        plan_upscale(NETS["asrn x2"], tile_batch=wrong)


# --- a tap's own convolution


def net_with_fusion() -> ElasticWrapper:
    net = asrn(2, num_blocks=2, channels=8, tap_fusion=True).double().eval()
    for adapter in net.adapters.values():
        nn.init.orthogonal_(adapter.get_parameter("weight"))
    return net


def assert_is_what_the_net_makes(net: ElasticWrapper, depth: int) -> None:
    image = np.random.default_rng(0).random((12, 14, 3))
    found = upscale_array(image, plan_upscale(net, depth=depth))
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = net(x, depth=depth)[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_head_takes_a_taps_convolution_in(depth: int) -> None:
    net = net_with_fusion()
    with plan_upscale(net, depth=depth).running() as plan:
        assert str(depth) not in plan.net.adapters
        assert plan.net.blocks[0] is net.blocks[0]
    assert_is_what_the_net_makes(net, depth)
    assert set(net.adapters) == {"1", "2"}


def test_weights_that_change_between_two_images_count() -> None:
    net = net_with_fusion()
    plan = plan_upscale(net, depth=1)
    image = np.random.default_rng(0).random((12, 14, 3))
    before = upscale_array(image, plan)
    with torch.no_grad():
        net.adapters["1"].get_parameter("weight").mul_(-1)
    assert np.abs(upscale_array(image, plan) - before).max() > 1e-3
    assert_is_what_the_net_makes(net, 1)


def test_a_hooked_convolution_of_a_tap_is_called() -> None:
    net = net_with_fusion()
    calls: list[nn.Module] = []
    net.adapters["1"].register_forward_hook(lambda module, inputs, output: calls.append(module))
    image = np.random.default_rng(0).random((12, 14, 3))
    upscale_array(image, plan_upscale(net, depth=1))
    assert net.adapters["1"] in calls
