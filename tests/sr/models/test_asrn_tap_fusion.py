"""A fusion of each tap's own: what it computes, and that cutting, growing and saving keep it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import elasticnet
from contract import check_contract
from elasticnet import ElasticWrapper
from elasticnet.sr import asrn
from elasticnet.sr.models.asrn_blocks import MultiScaleBlock


def trained_net(channels: int = 16) -> ElasticWrapper:
    """A net whose fusions are no identities any more."""
    torch.manual_seed(0)
    net = asrn(2, num_blocks=3, channels=channels, skip="bicubic", tap_fusion=True).eval()
    for parameter in net.adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def number_of_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns; what its parts share counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_fusion_has_9216_numbers_a_tap_and_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    plain = asrn(4, num_blocks=2).eval()
    torch.manual_seed(0)
    net = asrn(4, num_blocks=2, tap_fusion=True).eval()
    first, second = net.adapters.values()
    assert number_of_parameters(first) == number_of_parameters(second) == 9216
    assert number_of_parameters(net.adapters) == 2 * 9216, "they share none"
    x = torch.rand(1, 3, 6, 5)
    for depth in (1, 2):
        torch.testing.assert_close(net(x, depth=depth), plain(x, depth=depth))


def test_a_fusion_mixes_the_channels_of_its_tap_in_front_of_the_head() -> None:
    net = asrn(2, num_blocks=2, channels=8, tap_fusion=True).eval()
    for parameter in net.adapters.parameters():
        nn.init.normal_(parameter)
    taps = net.forward_taps(torch.rand(1, 3, 4, 5))
    for depth, prediction, features in zip(*taps, strict=True):
        weight = net.adapters[str(depth)].get_parameter("weight")  # (8, 8, 1, 1)
        mixed = torch.einsum("oi, bihw -> bohw", weight[:, :, 0, 0], features)
        torch.testing.assert_close(prediction, net.head(mixed))


def test_a_cut_net_keeps_the_fusions_of_its_taps() -> None:
    net = trained_net()
    small = net.truncate(2)
    x = torch.rand(1, 3, 5, 5)
    assert list(small.adapters) == ["1", "2"]
    assert torch.equal(small(x), net(x, depth=2))


def test_a_grown_net_is_the_same_function() -> None:
    net = trained_net()
    grown = net.grow([MultiScaleBlock(16)], torch.rand(1, 3, 6, 6))
    x = torch.rand(1, 3, 5, 5)
    assert torch.equal(grown(x), net(x))
    assert grown.adapters["4"] is not grown.adapters["3"]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_saved_net_is_loaded_at_any_depth(tmp_path: Path, depth: int) -> None:
    net = trained_net()
    path = tmp_path / "net.safetensors"
    elasticnet.save(net, path)
    x = torch.rand(1, 3, 5, 5)
    loaded = elasticnet.load(path, depth=depth)
    assert torch.equal(loaded(x), net(x, depth=depth))


def test_a_fusion_keeps_the_contract() -> None:
    check_contract(trained_net(), torch.rand(2, 3, 5, 6))


def test_a_net_without_it_does_not_name_it_in_its_file() -> None:
    plain = asrn(2, num_blocks=1, channels=8)
    net = asrn(2, num_blocks=1, channels=8, tap_fusion=True)
    assert plain.origin is not None
    assert net.origin is not None
    assert "tap_fusion" not in plain.origin.arguments
    assert net.origin.arguments["tap_fusion"] is True


def test_a_fusion_beside_an_affine_map_is_refused() -> None:
    with pytest.raises(ValueError, match="tap_affine with tap_fusion"):
        asrn(2, tap_affine=True, tap_fusion=True)


def test_a_gradient_reaches_the_fusion_of_each_tap() -> None:
    net = asrn(2, num_blocks=2, channels=8, tap_fusion=True)
    predictions: tuple[Tensor, ...] = net.forward_taps(torch.rand(1, 3, 4, 4)).predictions
    sum(each.square().sum() for each in predictions).backward()  # pyright: ignore
    for parameter in net.adapters.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


@settings(max_examples=20)
@given(
    scale=st.sampled_from([1, 2, 3, 4]),
    upsampler=st.sampled_from(["deconv", "subpixel"]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_a_head_after_a_fusion_is_both_in_one(
    scale: int, upsampler: str, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    net = asrn(scale, num_blocks=1, channels=8, upsampler=upsampler, tap_fusion=True).double()
    fusion, head = net.adapters["1"], net.head
    nn.init.normal_(fusion.get_parameter("weight"))
    features = torch.randn(2, 8, height, width, dtype=torch.float64)

    merged = head.after(fusion)  # pyright: ignore[reportCallIssue]

    torch.testing.assert_close(merged(features), head(fusion(features)))
    assert number_of_parameters(merged) == number_of_parameters(head)
    assert merged is not head


def doubled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook that changes what the module returns."""
    return 2 * output


@pytest.mark.parametrize("upsampler", ["deconv", "subpixel"])
def test_a_fusion_that_is_more_than_a_product_stays_in_front_of_the_head(upsampler: str) -> None:
    head = asrn(2, num_blocks=1, channels=8, upsampler=upsampler).head
    hooked = nn.Conv2d(8, 8, 1, bias=False)
    hooked.register_forward_hook(doubled)
    for adapter in (hooked, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, bias=False)):
        assert head.after(adapter) is None  # pyright: ignore[reportCallIssue]
