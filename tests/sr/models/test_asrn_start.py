"""ASRN's starting point: an interpolator from the first step on, or the bicubic skip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from elasticnet.sr.models import heads as upsample
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.asrn_blocks import MultiScaleBlock
from elasticnet.sr.models.heads import DeconvHead, SubpixelHead, bicubic_upsample
from elasticnet.sr.resize import imresize

LUMA = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 219
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")  # these come with scikit-image itself


# The interpolating start.


def quadratic(height: int, width: int, scale: int) -> Tensor:
    """A quadratic grey image at the centres of `scale` pixels to each pixel of (height, width)."""
    y, x = (
        (torch.arange(n * scale, dtype=torch.float64) + 0.5) / scale - 0.5 for n in (height, width)
    )
    y, x = (y / height)[:, None], (x / width)[None]
    value = 0.3 + 0.4 * x - 0.2 * y + 0.25 * x * x - 0.15 * y * y + 0.35 * x * y
    return value.expand(1, 3, -1, -1)


@pytest.mark.parametrize("upsampler", ["deconv", "subpixel"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@torch.no_grad()
def test_a_quadratic_image_starts_exact(scale: int, upsampler: str) -> None:
    """Central differences of a quadratic are exact, and its Taylor polynomial is the image itself.

    With everything off that starts small: the blocks' residual paths and the output's weights for
    other channels. The outermost LR pixels see the padding. What is left is the rounding of the
    weights to float32.
    """
    net = asrn(scale, 3, 16, upsampler=upsampler)
    for block in net.blocks:
        block.init_identity()  # pyright: ignore[reportCallIssue]
    assert isinstance(net.head, DeconvHead | SubpixelHead)
    net.head.output.weight[:, 8:] = 0
    net.double()
    inside = slice(scale, -scale)
    # Each channel its own constant: the differences are the luma's, whatever the color.
    color = torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64)[:, None, None]
    lr, hr = quadratic(7, 9, 1), quadratic(7, 9, scale)
    for offset in (0, color):
        for prediction in net.forward_taps(lr + offset).predictions:
            expected = (hr + offset)[..., inside, inside]
            torch.testing.assert_close(prediction[..., inside, inside], expected, rtol=0, atol=2e-7)


def psnr_of_luma(actual: Tensor, expected: Tensor, shave: int) -> float:
    inside = slice(shave, -shave)
    difference = torch.einsum("bchw,c->bhw", (actual.clamp(0, 1) - expected).double(), LUMA)[
        ..., inside, inside
    ]
    return -10 * math.log10(difference.square().mean().item())


@pytest.mark.parametrize("upsampler", ["deconv", "subpixel"])
@pytest.mark.parametrize("skip", [None, "bicubic"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_every_depth_starts_near_an_interpolator(
    scale: int, skip: str | None, upsampler: str
) -> None:
    """Photographs: at most 0.2 dB below bicubic enlargement; PyTorch's start lies 14 dB below."""
    for number, name in enumerate(PHOTOGRAPHS):
        photograph = np.ascontiguousarray(getattr(skimage.data, name)()[64:208, 64:208])
        hr = torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255
        lr = imresize(hr, 1 / scale)
        bicubic = psnr_of_luma(imresize(lr, scale), hr, scale)
        torch.manual_seed(number)
        net = asrn(scale, 2, upsampler=upsampler, skip=skip).eval()
        for prediction in net.forward_taps(lr).predictions:
            assert psnr_of_luma(prediction, hr, scale) > bicubic - 0.2
        if skip is None:
            net = asrn(scale, 2, upsampler=upsampler, init="default").eval()
            assert psnr_of_luma(net(lr), hr, scale) < bicubic - 14


@pytest.mark.parametrize("skip", [None, "bicubic"])
def test_the_start_leaves_nothing_without_gradient(skip: str | None) -> None:
    net = asrn(2, 2, 16, skip=skip)
    x, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    (net(x) - target).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


def test_default_start_is_pytorchs_own() -> None:
    torch.manual_seed(3)
    net = asrn(2, 1, 16, init="default")
    torch.manual_seed(3)
    block = MultiScaleBlock(16)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1))
    assert net.stem is not None
    for module, expected in (
        (net.blocks[0], block),
        (net.stem, stem),
        (net.head, DeconvHead(16, 2)),
    ):
        for actual, wanted in zip(module.parameters(), expected.parameters(), strict=True):
            assert torch.equal(actual, wanted)


# The bicubic skip.


@pytest.mark.parametrize("upsampler", ["deconv", "subpixel"])
@pytest.mark.parametrize("fold", [True, False])
@torch.no_grad()
def test_skip_is_the_plain_network_plus_bicubic(upsampler: str, fold: bool) -> None:
    with_skip = asrn(3, 2, 16, upsampler=upsampler, skip="bicubic", fold=fold).eval()
    plain = asrn(3, 2, 16, upsampler=upsampler, fold=fold).eval()
    assert with_skip.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(with_skip.state_dict())
    x = torch.rand(2, 3, 7, 6)
    for depth in (1, 2):
        assert torch.equal(
            with_skip(x, depth=depth), plain(x, depth=depth) + bicubic_upsample(x, 3)
        )


@pytest.mark.parametrize("upsampler", ["deconv", "subpixel"])
@pytest.mark.parametrize("fold", [True, False])
def test_one_pass_enlarges_the_image_once(
    upsampler: str, fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = asrn(2, 3, 16, upsampler=upsampler, skip="bicubic", fold=fold).eval()
    seen: list[torch.Tensor] = []

    def counted(image: torch.Tensor, scale: int) -> torch.Tensor:
        seen.append(image)
        return bicubic_upsample(image, scale)

    monkeypatch.setattr(upsample, "bicubic_upsample", counted)
    first, second = torch.rand(2, 1, 3, 6, 5)
    predictions = net.forward_taps(first).predictions
    assert len(seen) == 1
    for depth, prediction in enumerate(predictions, start=1):
        assert torch.equal(prediction, net(first, depth=depth))
    features = torch.rand(1, 16, 6, 5)
    difference = net.head(features, first) - net.head(features, second)
    assert torch.allclose(difference, bicubic_upsample(first - second, 2), atol=1e-5)


@pytest.mark.parametrize("upsampler", ["deconv", "subpixel"])
def test_the_skip_starts_with_the_same_carried_channels_and_an_output_that_takes_nothing_of_them(
    upsampler: str,
) -> None:
    """If the output took what the interpolator takes, the training would sit on a plateau."""
    states = []
    for skip in (None, "bicubic"):
        torch.manual_seed(3)
        states.append(asrn(4, 2, 16, upsampler=upsampler, skip=skip).state_dict())
    plain, with_skip = states
    name = "head.output.weight"
    assert all(torch.equal(plain[key], with_skip[key]) for key in plain if key != name)
    identity = torch.zeros_like(plain[name])
    identity[range(3), range(3), 1, 1] = 1
    assert torch.equal(plain[name] - with_skip[name], identity)
    assert not with_skip[name][:, :8].any()
