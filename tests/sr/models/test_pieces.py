"""Training on the LR grid: the head as pieces that overlap, against its layers one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

import elasticnet
from elasticnet import ElasticObjective
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.heads import DeconvHead
from elasticnet.sr.models.pieces import subpixels_of_image, subpixels_of_pieces

SCALES = (1, 2, 3, 4)


def heads(
    scale: int, channels: int = 6, hidden: int = 5, skip: str | None = None
) -> tuple[DeconvHead, DeconvHead]:
    """A head that trains on the LR grid and a plain one; large biases, so that borders show."""
    on_grid = DeconvHead(channels, scale, hidden, skip=skip)
    plain = DeconvHead(channels, scale, hidden, fold=False, skip=skip)
    with torch.no_grad():
        for name, parameter in on_grid.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 10)
    plain.load_state_dict(on_grid.state_dict())
    on_grid.subpixels_in_training = True
    return on_grid, plain


def double(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    scale=st.sampled_from(SCALES),
    channels=st.integers(1, 9),
    batch=st.integers(1, 3),
    skip=st.sampled_from([None, "bicubic"]),
    channels_last=st.booleans(),
)
def test_predictions_and_gradients_are_those_of_the_unshuffled_plain_head(
    height: int,
    width: int,
    scale: int,
    channels: int,
    batch: int,
    skip: str | None,
    channels_last: bool,
) -> None:
    on_grid, plain = (head.double() for head in heads(scale, channels, skip=skip))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, channels, height, width)
    features = torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    image = torch.rand(batch, 3, height, width, dtype=torch.float64).to(memory_format=layout)
    weights = torch.randn(batch, 3 * scale**2, height, width, dtype=torch.float64)

    found = on_grid(features, image)
    expected = F.pixel_unshuffle(plain(features, image), scale)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)

    found_gradients = torch.autograd.grad(
        (found * weights).sum(), [features, *on_grid.parameters()]
    )
    gradients = torch.autograd.grad((expected * weights).sum(), [features, *plain.parameters()])
    for actual, gradient in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-9)
    assert found_gradients[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("scale", SCALES)
def test_float32_predictions_differ_by_rounding(scale: int) -> None:
    on_grid, plain = heads(scale, channels=96, hidden=64)
    features = torch.randn(2, 96, 7, 5)
    expected = F.pixel_unshuffle(plain(features), scale)
    # measured at scale 1: 2.1e-6 on a processor with AVX2 alone
    tolerance = 4e-6 * expected.abs().max().item()
    torch.testing.assert_close(on_grid(features), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("skip", [None, "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_products_are_bfloat16_and_sums_float32(
    dtype: torch.dtype, skip: str | None
) -> None:
    on_grid, plain = heads(4, skip=skip)
    features = torch.randn(2, 6, 5, 4).to(dtype).requires_grad_()
    image = torch.rand(2, 3, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = on_grid(features, image)
    found.square().mean().backward()
    expected = F.pixel_unshuffle(plain(features.float(), image), 4)
    assert found.dtype == torch.float32
    assert features.grad is not None
    assert features.grad.dtype == dtype
    assert on_grid.reduce.weight.grad is not None
    assert on_grid.reduce.weight.grad.dtype == torch.float32
    tolerance = 2**-7 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_every_kind_of_derivative_reaches_through_the_pieces() -> None:
    features = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3 * 4**2, 4, dtype=torch.float64, requires_grad=True)  # scale 2
    base = torch.randn(1, 3, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (features, kernel, base)
    assert torch.autograd.gradcheck(subpixels_of_pieces, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(subpixels_of_pieces, inputs)

    def energy(sample: Tensor) -> Tensor:
        return subpixels_of_pieces(sample[None], kernel, base).square().sum()

    of_samples = torch.func.vmap(torch.func.grad(energy))(features)
    together = torch.autograd.grad(subpixels_of_pieces(*inputs).square().sum(), features)[0]
    assert torch.allclose(of_samples, together, rtol=1e-12)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_the_subpixels_of_an_image_are_pixel_unshuffle(
    scale: int, layout: torch.memory_format
) -> None:
    image = torch.rand(2, 3, 5 * scale, 4 * scale).to(memory_format=layout)
    found = subpixels_of_image(image, scale)
    assert torch.equal(found, F.pixel_unshuffle(image, scale))
    assert found.is_contiguous()


def test_in_eval_mode_the_head_makes_the_same_bits_as_without_the_switch() -> None:
    on_grid, _ = heads(4, skip="bicubic")
    features = torch.randn(2, 6, 5, 4)
    image = torch.rand(2, 3, 5, 4)
    on_grid.eval()
    found = on_grid(features, image)
    on_grid.subpixels_in_training = False
    assert torch.equal(found, on_grid(features, image))


def test_a_network_with_the_switch_is_saved_as_one_without_it(tmp_path: Path) -> None:
    net = asrn(2, num_blocks=1, channels=8)
    assert isinstance(net.head, DeconvHead)
    net.head.subpixels_in_training = True
    elasticnet.save(net, tmp_path / "net.safetensors")
    loaded = elasticnet.load(tmp_path / "net.safetensors")  # by its architecture, which is kept
    assert isinstance(loaded.head, DeconvHead)
    assert not loaded.head.subpixels_in_training


def test_a_hooked_layer_is_called_and_the_prediction_stays_on_the_grid() -> None:
    on_grid, plain = heads(2)
    for head in (on_grid, plain):
        head.output.register_forward_hook(double)
    features = torch.randn(2, 6, 5, 4)
    expected = F.pixel_unshuffle(plain(features), 2)
    torch.testing.assert_close(on_grid(features), expected)


def test_a_skip_without_its_image_is_refused() -> None:
    on_grid, _ = heads(2, skip="bicubic")
    with pytest.raises(ValueError, match="the input image is missing"):
        on_grid(torch.randn(1, 6, 3, 3))


def test_taps_of_one_call_may_differ_in_size() -> None:
    on_grid, _ = heads(2)
    features = (torch.randn(2, 6, 5, 4), torch.randn(2, 6, 3, 7))
    predictions = on_grid(features)
    for each, prediction in zip(features, predictions, strict=True):
        assert torch.equal(prediction, on_grid(each))


@pytest.mark.parametrize("scale", SCALES)
def test_a_step_on_the_grid_has_the_losses_and_gradients_of_one_on_images(scale: int) -> None:
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    target = torch.rand(2, 3, 5 * scale, 7 * scale, dtype=torch.float64)
    totals: list[Tensor] = []
    gradients: list[list[Tensor]] = []
    for on_grid in (False, True):
        torch.manual_seed(0)
        net = asrn(scale, num_blocks=3, channels=16, skip="bicubic").double()
        assert isinstance(net.head, DeconvHead)
        net.head.subpixels_in_training = on_grid
        objective = ElasticObjective(net, F.l1_loss, psd_weight=1e-3)
        loss_target = subpixels_of_image(target, scale) if on_grid else target
        total = objective(x, loss_target).total
        totals.append(total)
        gradients.append(list(torch.autograd.grad(total, list(net.parameters()))))
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-13, atol=0)
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
