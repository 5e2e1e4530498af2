"""The fast training path against the plain one: the same loss curves.

The plain path has a loader that decodes PNG files, the plain head, and Adam as it comes. The fast
path cuts patches from memory, folds the head, and has channels-last, fused Adam and LossMeter; on
the LR grid (`on_grid`) it has the head's pieces, too.

Tolerances are measured, on seeds 0 to 7. In float64 the two differ by 8e-15 after 50 steps: they
are one function. In float32 they part by up to 5e-5, for Adam divides tiny gradients by their own
size, which shows their rounding; the smallest real change tried here makes 3e-3. In bfloat16 single
losses differ by up to 8e-2 and a term's mean over the curve by 2.5e-2; twice the learning rate
makes 0.3 and 0.12.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from elasticnet import ElasticObjective, ElasticWrapper, LossTerms
from elasticnet.loss_weights import normalised
from elasticnet.sr.data import PairSet, pairs_from_arrays, scikit_image_photos
from elasticnet.sr.data.patches import PatchDataset, PatchSampler
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.heads import DeconvHead
from elasticnet.sr.models.pieces import subpixels_of_image
from elasticnet.training.loss_meter import LossMeter

SCALE, CHANNELS, BATCH, PATCH, STEPS, LINE, SEED = 4, 32, 4, 12, 50, 10, 0
LEARNING_RATE = 1e-4
FLOAT32 = 4e-4  # relative tolerance of every loss
TERMS = LossTerms._fields[:4]
Curve = Tensor  # (step, term): total, routine, deep_supervision, distillation, depths 1 to 5


class PngPairs(PairSet):
    """The same pairs as a plain loader has them: the file is decoded for every patch."""

    def __init__(self, pairs: PairSet, folder: Path) -> None:
        super().__init__(
            pairs.names, pairs.scale, pairs.lr_sizes, pairs.lr_pixels[:0], pairs.hr_pixels[:0]
        )
        self.folder = folder
        for index, name in enumerate(pairs.names):
            Image.fromarray(pairs.lr(index)).save(folder / f"{name}x{pairs.scale}.png")
            Image.fromarray(pairs.hr(index)).save(folder / f"{name}.png")

    def lr(self, index: int) -> np.ndarray:
        return np.asarray(Image.open(self.folder / f"{self.names[index]}x{self.scale}.png"))

    def hr(self, index: int) -> np.ndarray:
        return np.asarray(Image.open(self.folder / f"{self.names[index]}.png"))


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    photos = scikit_image_photos()
    return pairs_from_arrays(
        {name: photos[name][:160, :192] for name in ("astronaut", "chelsea", "coffee")}, SCALE
    )


@pytest.fixture(scope="module")
def png_pairs(pairs: PairSet, tmp_path_factory: pytest.TempPathFactory) -> PngPairs:
    return PngPairs(pairs, tmp_path_factory.mktemp("png"))


@pytest.fixture(scope="module")
def plain(png_pairs: PngPairs) -> Curve:
    return plain_curve(png_pairs, STEPS, torch.float32)


def build(fold: bool, dtype: torch.dtype) -> ElasticWrapper:
    torch.manual_seed(SEED)
    net = asrn(SCALE, channels=CHANNELS, fold=fold)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # they start at zero, where one that is folded wrongly would hardly show
            if name.endswith("bias"):
                parameter.uniform_(-0.05, 0.05)
    return net.to(dtype)


def plain_curve(pairs: PngPairs, steps: int, dtype: torch.dtype) -> Curve:
    """Train the plain way: decode PNG files, run every layer as written, read every loss."""
    net = build(False, dtype)
    objective = ElasticObjective(net, F.l1_loss, psd_weight=4e-4, tap_weights=normalised(net.taps))
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    curve = []
    for lr, hr in DataLoader(
        PatchDataset(pairs, PATCH, seed=SEED, num_samples=steps * BATCH), BATCH
    ):
        terms = objective(lr.to(dtype), hr.to(dtype))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        curve.append([loss.item() for loss in (*terms[:4], *terms.per_depth.values())])
    return torch.tensor(curve, dtype=torch.float64)


def fast_curve(
    pairs: PairSet,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float32,
    bfloat16: bool = False,
    augment: str = "flips+rotations",
    on_grid: bool = False,
    **adam: Any,
) -> tuple[Curve, list[dict[str, Any]]]:
    """Train the fast way; return the curve and the meter's line of every LINE steps."""
    net = build(True, dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert isinstance(net.head, DeconvHead)
    net.head.subpixels_in_training = on_grid
    objective = ElasticObjective(net, F.l1_loss, psd_weight=4e-4, tap_weights=normalised(net.taps))
    optimizer = torch.optim.Adam(net.parameters(), **{"lr": LEARNING_RATE, "fused": True, **adam})
    sampler = PatchSampler(
        pairs, PATCH, BATCH, seed=SEED, augment=augment, memory_format=torch.channels_last
    )
    meter, curve, lines = LossMeter(), [], []
    for step in range(steps):
        lr, hr = (patches.to(dtype) for patches in sampler.batch(step))
        if on_grid:
            hr = subpixels_of_image(hr, SCALE)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            terms = objective(lr, hr, step=step)
        terms.total.backward()
        optimizer.step()
        meter.add(terms)
        curve.append(torch.stack([*terms[:4], *terms.per_depth.values()]).detach())
        if len(meter) == LINE:
            lines.append(meter.means())
    return torch.stack(curve).double(), lines


def assert_same_curve(actual: Curve, expected: Curve, rtol: float) -> None:
    assert actual.shape == expected.shape == (len(expected), len(TERMS) + 5)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


def assert_near_curve(actual: Curve, expected: Curve) -> None:
    """The tolerance of bfloat16: of every loss, and of each term's mean over the curve."""
    assert_same_curve(actual, expected, 0.2)
    assert (actual / expected - 1).mean(0).abs().max() < 0.06


# --- the same samples


def test_decoded_files_and_patches_from_memory_are_the_same_samples(
    pairs: PairSet, png_pairs: PngPairs
) -> None:
    sampler = PatchSampler(pairs, PATCH, BATCH, seed=SEED, memory_format=torch.channels_last)
    loader = DataLoader(PatchDataset(png_pairs, PATCH, seed=SEED, num_samples=STEPS * BATCH), BATCH)
    for step, (lr, hr) in enumerate(loader):
        fast = sampler.batch(step)
        assert torch.equal(lr, fast[0])
        assert torch.equal(hr, fast[1])
    assert len(loader) == STEPS


# --- the same curve


@pytest.mark.parametrize("on_grid", [False, True])
def test_the_fast_path_follows_the_plain_path_in_float32(
    pairs: PairSet, plain: Curve, on_grid: bool
) -> None:
    """Every loss at each of the 50 steps, and the means that the log gets."""
    fast, lines = fast_curve(pairs, on_grid=on_grid)
    assert_same_curve(fast, plain, FLOAT32)
    assert plain[-LINE:, 0].mean() < 0.9 * plain[:LINE, 0].mean(), (
        "nothing was learnt: this curve compares little"
    )
    assert len(lines) == STEPS // LINE
    for line, rows in zip(lines, plain.split(LINE), strict=True):
        means = dict(zip([*TERMS, 1, 2, 3, 4, 5], rows.mean(0).tolist(), strict=True))
        assert {name: line[name] for name in TERMS} == pytest.approx(
            {name: means[name] for name in TERMS}, rel=FLOAT32
        )
        assert line["per_depth"] == pytest.approx(
            {depth: means[depth] for depth in (1, 2, 3, 4, 5)}, rel=FLOAT32
        )


def test_the_fast_path_is_the_plain_path_in_float64(pairs: PairSet, png_pairs: PngPairs) -> None:
    """What separates the two in float32 is rounding and nothing else."""
    steps = 8  # the plain head is slow in float64
    plain = plain_curve(png_pairs, steps, torch.float64)
    for on_grid in (False, True):
        fast, _ = fast_curve(pairs, steps, torch.float64, on_grid=on_grid)
        assert_same_curve(fast, plain, 1e-12)


@pytest.mark.parametrize("on_grid", [False, True])
def test_the_bfloat16_path_stays_near_the_plain_path(
    pairs: PairSet, plain: Curve, on_grid: bool
) -> None:
    fast, _ = fast_curve(pairs, bfloat16=True, on_grid=on_grid)
    assert_near_curve(fast, plain)
    another, _ = fast_curve(pairs, bfloat16=True, on_grid=on_grid, lr=2 * LEARNING_RATE)
    with pytest.raises(AssertionError):
        assert_near_curve(another, plain)


@pytest.mark.parametrize(
    "change",
    [{"augment": "flips"}, {"eps": 1e-7}, {"lr": 1.01 * LEARNING_RATE}, {"betas": (0.9, 0.99)}],
    ids=lambda change: ", ".join(change),
)
def test_the_tolerance_shows_a_training_that_is_another(
    pairs: PairSet, plain: Curve, change: dict[str, Any]
) -> None:
    fast, _ = fast_curve(pairs, **change)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_curve(fast, plain, FLOAT32)


def test_the_tolerance_shows_a_folded_head_without_its_inner_biases(
    pairs: PairSet, plain: Curve, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded_kernels = DeconvHead.folded_kernels

    def without_inner_biases(head: DeconvHead) -> tuple[Tensor, Tensor]:
        kernel, bias_kernel = folded_kernels(head)
        return kernel, torch.zeros_like(bias_kernel)

    monkeypatch.setattr(DeconvHead, "folded_kernels", without_inner_biases)
    fast, _ = fast_curve(pairs)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_curve(fast, plain, FLOAT32)


# --- the meter


def losses() -> st.SearchStrategy[dict[int, float]]:
    """A step's loss per depth: the deepest, and any of the shallower."""
    finite = st.floats(2**-10, 1e3, width=32)
    shallow = st.dictionaries(st.integers(1, 4), finite)
    return st.tuples(shallow, finite).map(
        lambda parts: {**dict(sorted(parts[0].items())), 5: parts[1]}
    )


@st.composite
def steps_of_terms(draw: st.DrawFn) -> list[LossTerms]:
    number = st.floats(2**-10, 1e3, width=32)
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        parts = [torch.tensor(draw(number), requires_grad=True) for _ in range(4)]
        per_depth = {depth: torch.tensor(loss) for depth, loss in draw(losses()).items()}
        steps.append(LossTerms(*parts, per_depth=per_depth))
    return steps


@given(st.lists(steps_of_terms(), min_size=1, max_size=3))
def test_the_meters_means_are_those_of_a_plain_loop(lines: list[list[LossTerms]]) -> None:
    """Line after line with one meter, whatever depths each step computed."""
    meter = LossMeter()
    for steps in lines:
        expected: dict[Any, list[float]] = {}
        for number, terms in enumerate(steps):
            for name in TERMS:
                expected.setdefault(name, []).append(getattr(terms, name).item())
            for depth, loss in terms.per_depth.items():
                expected.setdefault(depth, []).append(loss.item())
            meter.add(terms)
            assert len(meter) == number + 1
            with torch.no_grad():  # as the next replay of a CUDA graph does
                for loss in (*terms[:4], *terms.per_depth.values()):
                    loss.fill_(math.nan)
        assert meter.first_not_finite() is None
        means = meter.means()
        assert len(meter) == 0
        plain = {name: math.fsum(values) / len(values) for name, values in expected.items()}
        assert list(means["per_depth"]) == sorted(
            depth for depth in plain if isinstance(depth, int)
        )
        assert {**{name: means[name] for name in TERMS}, **means["per_depth"]} == pytest.approx(
            plain, rel=1e-5
        )


@given(steps_of_terms(), st.integers(0, 11), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_the_meter_names_the_first_step_that_is_not_finite(
    steps: list[LossTerms], place: int, value: float
) -> None:
    meter, place = LossMeter(), min(place, len(steps) - 1)
    for number, terms in enumerate(steps):
        meter.add(terms._replace(total=torch.tensor(value)) if number >= place else terms)
    assert meter.first_not_finite() == place
