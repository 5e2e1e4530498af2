"""1x1 convolutions: the same values, whichever library computes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet.sr.models.pointwise import conv1x1, run_conv1x1


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 17),
    height=st.integers(1, 20),
    width=st.integers(1, 5),
    channels_last=st.booleans(),
    with_gradient=st.booleans(),
)
def test_it_is_the_convolution_for_every_size_and_layout(
    batch: int, height: int, width: int, channels_last: bool, with_gradient: bool
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(batch, 8, height, width), torch.randn(6, 8, 1, 1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    expected = torch.einsum("bihw, oi -> bohw", x, weight[:, :, 0, 0])
    with torch.set_grad_enabled(with_gradient):
        torch.testing.assert_close(conv1x1(x, weight), expected)


def test_with_one_thread_an_image_goes_to_onednn_as_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[int] = []
    convolution = F.conv2d

    def recorded(x: Tensor, weight: Tensor) -> Tensor:
        batches.append(len(x))
        return convolution(x, weight)

    monkeypatch.setattr(F, "conv2d", recorded)
    x = torch.randn(2, 8, 9, 4).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        large = conv1x1(x, torch.randn(6, 8, 1, 1))
        conv1x1(x[:, :, :7], torch.randn(6, 8, 1, 1))
    assert batches == [18, 2], "two images of seven rows are fewer than 16 rows"
    assert large.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_that_is_more_than_its_weight_is_called() -> None:
    x = torch.randn(1, 8, 20, 4).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(8, 8, 1, bias=False)
    with torch.inference_mode():
        plain = run_conv1x1(conv, x)
        conv.register_forward_hook(doubled)
        assert torch.equal(run_conv1x1(conv, x), 2 * conv.forward(x))
    torch.testing.assert_close(plain, conv.forward(x))


def doubled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook that changes what the module returns."""
    return 2 * output


def test_it_runs_inside_vmap() -> None:
    images = torch.randn(3, 2, 20, 4, 8).permute(0, 1, 4, 2, 3)  # (3, 2, 8, 20, 4), channels last
    weight = torch.randn(6, 8, 1, 1)
    with torch.no_grad():
        together = torch.vmap(conv1x1, in_dims=(0, None))(images, weight)
        torch.testing.assert_close(together[1], conv1x1(images[1], weight))
