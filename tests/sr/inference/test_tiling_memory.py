"""Tiles that do not fit into the memory become smaller ones; what a process takes is bounded by the
tile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elasticnet.memory import is_out_of_memory
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.tile_layout import MIN_TILE, first_tiling
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.wrapper import ElasticWrapper


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def enlarge(net: ElasticWrapper, image: np.ndarray, **options: Any) -> np.ndarray:
    """`upscale_array` with a plan of its own; `out` and `progress` go to the loop."""
    for_the_loop = {name: options.pop(name) for name in ("out", "progress") if name in options}
    return upscale_array(image, plan_upscale(net, **options), **for_the_loop)


# --- out of memory


class Hungry(nn.Module):
    """Asks for more memory than there is when it is given more than `limit` pixels, or at call
    number `at_call`.
    """

    def __init__(self, kind: str, limit: int, at_call: int = 0) -> None:
        super().__init__()
        # The numbers are private: public ones are settings of the network, and where these change
        # its footprint is measured anew.
        self.kind, self._limit, self._at_call, self.sizes = kind, limit, at_call, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[-2:]))
        if x.shape[-1] * x.shape[-2] > self._limit or len(self.sizes) == self._at_call:
            if self.kind == "torch":
                torch.empty(2**50)
            elif self.kind == "numpy":
                np.empty(2**50)
            else:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x


def hungry(kind: str, limit: int, in_head: bool = False) -> tuple[ElasticWrapper, Hungry]:
    net, layer = (
        ElasticWrapper([nn.Conv2d(3, 3, 3, padding=1)], nn.Upsample(scale_factor=2)).eval(),
        Hungry(kind, limit=10**9),
    )
    if in_head:
        net.head = nn.Sequential(layer, net.head)
    else:
        net.blocks[0] = nn.Sequential(net.blocks[0], layer)
    footprint(net)
    layer._limit, layer.sizes = limit, []
    return net, layer


@pytest.mark.parametrize(
    ("kind", "in_head"), [("torch", False), ("torch", True), ("numpy", False), ("cuda", True)]
)
@pytest.mark.parametrize("tile", ["auto", 300])
def test_out_of_memory_halves_the_tile(kind: str, in_head: bool, tile: int | str) -> None:
    image = photo(200, 150)
    net, layer = hungry(kind, 10**9, in_head)
    expected = enlarge(net, image)
    layer._limit, layer.sizes = 60 * 60, []
    seen: list[tuple[int, int]] = []
    result = enlarge(net, image, tile=tile, progress=lambda *counts: seen.append(counts))
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert layer.sizes[0] == (200, 150), "the first try is the whole"
    assert layer.sizes[1][0] <= 102
    assert layer.sizes[-1][0] * layer.sizes[-1][1] <= 60 * 60
    assert layer.sizes.count(layer.sizes[-1]) == len(layer.sizes) - 2 == seen[-1][1]


def test_out_of_memory_on_the_way_keeps_the_rows_that_are_done() -> None:
    image = photo(200, 40)
    net, layer = hungry("torch", 10**9)
    expected = enlarge(net, image, tile=40)
    layer.sizes, layer._at_call = [], 4
    seen: list[tuple[int, int]] = []
    result = enlarge(net, image, tile=40, progress=lambda *counts: seen.append(counts))
    np.testing.assert_array_equal(result, expected)
    remaining = len(layer.sizes) - 4
    smaller = first_tiling(plan_upscale(net, tile=20), (200, 40))
    assert 0 < remaining < smaller.num_tiles
    larger = first_tiling(plan_upscale(net, tile=40), (200, 40))
    done = larger.rows[2].stop
    rows_left = [row for row in smaller.rows if row.stop > done]
    assert remaining == len(rows_left) * len(smaller.columns)
    assert seen[-1] == (smaller.num_tiles, smaller.num_tiles), "rows that are done count too"


def test_out_of_memory_first_ends_batches_and_then_halves_the_tile() -> None:
    image = photo(40, 120)
    net, layer = hungry("torch", 10**9)
    expected = enlarge(net, image, tile=40)
    layer.sizes, layer._at_call = [], 1
    result = enlarge(net, image, tile=40, tile_batch=3)
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert set(layer.sizes) == {layer.sizes[0]}, "the tiles stay as large"
    assert len(layer.sizes) == 1 + 3


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean((2, 3), keepdim=True)


def test_tiles_that_a_lack_of_memory_made_are_warned_of_once_if_they_may_show_seams() -> None:
    layer = Hungry("numpy", limit=100 * 100)
    net = ElasticWrapper([GlobalMean()], nn.Identity()).eval()
    plan = plan_upscale(net, tile=256)
    net.blocks[0] = nn.Sequential(net.blocks[0], layer)
    with pytest.warns(UserWarning, match="tile 80: .* may show seams") as warned:
        upscale_array(photo(160, 160), plan)  # a single tile, until that does not fit
    assert len(warned) == 1
    assert warned[0].filename == __file__, "the warning names the line that called upscale_array"


def test_out_of_memory_at_the_smallest_tile_is_an_error() -> None:
    net, layer = hungry("torch", 10)
    with pytest.raises(
        MemoryError,
        match=r"a tile of 16 pixels does not fit .* depth 1: free some.*allocate memory",
    ):
        enlarge(net, photo(100, 100))
    assert layer.sizes == [(100, 100), (51, 51), (27, 27), (16, 16)]
    with pytest.raises(MemoryError, match=r"the whole image does not fit .* take tile='auto'"):
        enlarge(net, photo(100, 100), tile=None)
    assert MIN_TILE == 16


def test_other_errors_pass() -> None:
    net, _ = hungry("torch", 10**9)
    plan = plan_upscale(net)
    net.blocks[0] = nn.Conv2d(4, 3, 1)  # broken once the plan is made
    with pytest.raises(RuntimeError, match="expected input"):
        upscale_array(photo(20, 20), plan)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(
        RuntimeError("could not create a primitive descriptor for a matmul")
    )
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(ValueError("out of memory"))


# --- memory, in a fresh process


CHILD = """
import sys
import numpy as np
import torch
from elasticnet.sr import asrn
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.sr.inference.tiling import upscale_array

def status(key):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) * 1024 / 1e6  # kB in /proc are 1,024 bytes

height, width, channels, tile, limit = map(int, sys.argv[1:])
net = asrn(2, 1, channels).eval()
image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
out = np.ones((2 * height, 2 * width, 3), np.uint8)
# The first pass brings torch's own code into the memory: 85 MB of it in torch 2.6, 20 in 2.15.
upscale_array(image[:40, :40], plan_upscale(net))
before = status("VmRSS")
if limit:
    import resource
    allowed = int((status("VmSize") + limit) * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
counts = []
plan = plan_upscale(net, tile=tile or "auto")
upscale_array(image, plan, out=out, progress=lambda *seen: counts.append(seen))
print(before - out.nbytes / 1e6, status("VmHWM") - before, counts[0][1], counts[-1][1])
"""


def in_a_fresh_process(*arguments: int, timeout: float = 250) -> tuple[float, ...]:
    """Return MB of RSS before beside the output, by how much it grew at most, and the first and
    last count of tiles.
    """
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert run.returncode == 0, run.stderr
    return tuple(map(float, run.stdout.split()))


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@linux
def test_memory_is_bounded_by_the_tile() -> None:
    """The whole of this image would take 950 MB: 3 megapixels at 316 bytes."""
    _, grown, _, tiles = in_a_fresh_process(1500, 2000, 8, 256, 0)
    assert tiles == 48
    assert grown < 60


@linux
def test_what_the_allocator_refuses_becomes_smaller_tiles() -> None:
    """A tile of 1200 pixels takes 450 MB, and the process may take 300 more than it has."""
    _, _, first, last = in_a_fresh_process(1200, 1200, 8, 1200, 300)
    assert (first, last) == (1, 4)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@linux
def test_8000_by_6000_stays_under_1500_mb() -> None:
    before, grown, _, _ = in_a_fresh_process(6000, 8000, 96, 0, 0, timeout=7000)
    print(f"{before:.0f} MB with the image, {grown:.0f} MB more at the peak")
    assert before + grown < 1500
