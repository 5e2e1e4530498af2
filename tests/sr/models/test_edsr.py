"""EDSR: counts and keys, the plain network against a naive one, the elastic against the plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import elasticnet
from contract import NetworkContract
from elasticnet import ElasticWrapper
from elasticnet.sr.models.edsr import EDSR, MeanShift, ResidualBlock, SkipHead, edsr, tap_macs, wrap


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomized(module: nn.Module) -> nn.Module:
    """Random values everywhere, in the mean shifts and biases too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return module


# The published counts and keys.


@pytest.mark.parametrize(
    ("num_blocks", "channels", "counts"),
    [
        (16, 64, {2: 1_369_883, 3: 1_554_523, 4: 1_517_595}),  # published: 1.5M
        (32, 256, {2: 40_729_627, 3: 43_680_027, 4: 43_089_947}),  # published: 43M
    ],
)
def test_parameters(num_blocks: int, channels: int, counts: dict[int, int]) -> None:
    with torch.device("meta"):
        assert {scale: count(EDSR(scale, num_blocks, channels)) for scale in counts} == counts
        assert {scale: count(edsr(scale, num_blocks, channels)) for scale in counts} == counts


@pytest.mark.parametrize(("scale", "convs"), [(2, [0]), (3, [0]), (4, [0, 2]), (8, [0, 2, 4])])
def test_state_dict_has_the_authors_keys(scale: int, convs: list[int]) -> None:
    parts = [
        "sub_mean",
        "add_mean",
        "head.0",
        "body.16",
        "tail.1",
        *(f"tail.0.{index}" for index in convs),
    ]
    parts += [f"body.{block}.body.{layer}" for block in range(16) for layer in (0, 2)]
    with torch.device("meta"):
        state = EDSR(scale).state_dict()
    assert sorted(state) == sorted(
        f"{part}.{kind}" for part in parts for kind in ("weight", "bias")
    )
    assert state["tail.0.0.weight"].shape == (64 * (9 if scale == 3 else 4), 64, 3, 3)


def test_default_res_scale_is_the_authors() -> None:
    with torch.device("meta"):
        full, baseline, other = EDSR(2, 32, 256), EDSR(2), EDSR(2, 32, 64)
    for plain, expected in ((full, 0.1), (baseline, 1.0), (other, 1.0)):
        assert {block.res_scale for block in plain.body if isinstance(block, ResidualBlock)} == {
            expected
        }
        assert plain.arguments["res_scale"] == expected


# The plain network against a naive one.


@pytest.mark.parametrize("sign", [-1, 1])
@torch.no_grad()
def test_mean_shift_equals_the_naive_one(sign: int) -> None:
    x = torch.rand(2, 3, 5, 7) * 255
    expected = x.clone()
    for channel, mean in enumerate((0.4488, 0.4371, 0.4040)):
        expected[:, channel] += sign * 255 * torch.tensor(mean)
    shift = MeanShift(sign)
    assert torch.equal(shift(x), expected)
    assert not any(parameter.requires_grad for parameter in shift.parameters())


def naive_shuffle(x: Tensor, step: int) -> Tensor:
    """Channel c step^2 + i step + j becomes row i, column j of each pixel of channel c."""
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, channels // step**2, height * step, width * step)
    for i in range(step):
        for j in range(step):
            y[:, :, i::step, j::step] = x[:, i * step + j :: step**2]
    return y


def naive_edsr(state: dict[str, Tensor], x: Tensor, num_blocks: int, res_scale: float) -> Tensor:
    """EDSR written out over the authors' keys."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    x = start = conv(conv(x, "sub_mean"), "head.0")
    for block in range(num_blocks):
        x = x + res_scale * conv(
            conv(x, f"body.{block}.body.0").clamp_min(0), f"body.{block}.body.2"
        )
    x = conv(x, f"body.{num_blocks}") + start
    for index in (0, 2, 4):
        if f"tail.0.{index}.weight" in state:
            y = conv(x, f"tail.0.{index}")
            x = naive_shuffle(y, 3 if y.shape[1] == 9 * x.shape[1] else 2)
    return conv(conv(x, "tail.1"), "add_mean")


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@torch.no_grad()
def test_plain_network_equals_the_naive_one(scale: int) -> None:
    plain = randomized(EDSR(scale, 3, 6, 0.3)).double()
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64) * 255
    expected = naive_edsr(plain.state_dict(), x, 3, 0.3)
    assert expected.shape == (2, 3, 5 * scale, 4 * scale)
    torch.testing.assert_close(plain(x), expected, rtol=1e-12, atol=1e-10)


# The elastic network against the plain one.


def cut(plain: EDSR, x: Tensor, depth: int) -> Tensor:
    """The plain network's output where its body is cut to `depth` blocks and the last conv."""
    start = plain.head(plain.sub_mean(x))
    body = nn.Sequential(*plain.body[:depth], plain.body[-1])
    return plain.add_mean(plain.tail(body(start) + start))


@settings(max_examples=20)
@given(st.data())
@torch.no_grad()
def test_every_depth_is_the_plain_network_cut(data: st.DataObject) -> None:
    """Bit for bit with fold=False: net(x) is plain(x * 255) / 255."""
    scale = data.draw(st.sampled_from([2, 3, 4, 8]), "scale")
    num_blocks, channels = (
        data.draw(st.integers(1, 4), "num_blocks"),
        data.draw(st.integers(1, 9), "channels"),
    )
    res_scale = data.draw(st.sampled_from([0.1, 0.3, 1.0]), "res_scale")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    shape = (
        data.draw(st.integers(1, 2)),
        3,
        data.draw(st.integers(1, 16)),
        data.draw(st.integers(1, 16)),
    )
    plain = EDSR(scale, num_blocks, channels, res_scale)
    randomized(plain).to(dtype)
    net = wrap(plain, "edsr", fold=False)
    x = torch.rand(shape, dtype=dtype)
    assert torch.equal(net(x), plain(x * 255) / 255)
    for depth in net.taps:
        assert torch.equal(net(x, depth=depth), cut(plain, x * 255, depth) / 255)


def test_images_of_bytes_reach_the_network_as_whole_numbers() -> None:
    """x / 255 * 255 gives back every byte: a net on 0..1 sees what the authors' saw on 0..255."""
    values = torch.arange(256, dtype=torch.float32)
    assert torch.equal(values / 255 * 255, values)


# The folded tail.


def recorded(net: ElasticWrapper) -> list[int]:
    """Count the calls of folded_tail in the list that is returned."""
    calls: list[int] = []
    head = net.head
    assert isinstance(head, SkipHead)
    original = head.folded_tail
    object.__setattr__(head, "folded_tail", lambda: (calls.append(1), original())[1])
    return calls


@settings(max_examples=20)
@given(st.data())
@torch.no_grad()
def test_folded_network_equals_the_plain_one(data: st.DataObject) -> None:
    scale = data.draw(st.sampled_from([2, 3, 4, 8]), "scale")
    shape = (2, 3, data.draw(st.integers(1, 30), "height"), data.draw(st.integers(1, 30), "width"))
    folded, plain = (edsr(scale, 2, 4, fold=fold).double() for fold in (True, False))
    plain.load_state_dict(randomized(folded).state_dict())
    x = torch.rand(shape, dtype=torch.float64)
    calls = recorded(folded)
    expected = plain.forward_taps(x)
    torch.testing.assert_close(folded.forward_taps(x), expected, rtol=1e-11, atol=1e-13)
    pays = 6 * (shape[2] + shape[3]) < shape[2] * shape[3]
    assert len(calls) == pays, (
        "one kernel for all taps, and none where the strips would cover the image"
    )


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@torch.no_grad()
def test_inside_the_ring_the_fold_is_exact_and_outside_it_is_not(scale: int) -> None:
    """The ring is one LR pixel wide: this is what the strips have to put right."""
    net = edsr(scale, 1, 4).double()
    head = net.head
    assert isinstance(head, SkipHead)
    kernel, bias = head.folded_tail()
    x = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    alone, expected = F.pixel_shuffle(F.conv2d(x, kernel, bias, padding=2), scale), head.tail(x)
    inside = (slice(None), slice(None), slice(scale, -scale), slice(scale, -scale))
    torch.testing.assert_close(alone[inside], expected[inside], rtol=1e-12, atol=1e-13)
    for edge in ((..., slice(None, scale), slice(None)), (..., slice(-scale, None))):
        assert (alone - expected)[edge].abs().max() > 1e-3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_gradients_of_the_folded_network_equal_the_plain_ones(scale: int) -> None:
    gradients = []
    folded, plain = (edsr(scale, 2, 4, fold=fold).double() for fold in (True, False))
    plain.load_state_dict(folded.state_dict())
    x = torch.rand(2, 3, 14, 13, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 14 * scale, 13 * scale, dtype=torch.float64)
    for net in (folded, plain):
        loss = torch.stack(
            [(weights * prediction).sum() for prediction in net.forward_taps(x).predictions]
        ).sum()
        learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
        assert len(learned) == len([*net.parameters()]) - 4, "the mean shifts are fixed"
        gradients.append(torch.autograd.grad(loss, [x, *learned]))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@torch.no_grad()
def test_folded_network_in_lower_precision(layout: torch.memory_format) -> None:
    net = edsr(4, 2, 8).eval().to(memory_format=layout)
    x = torch.rand(1, 3, 14, 15).to(memory_format=layout)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = net(x)
    half = net.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert automatic.dtype == half.dtype == torch.bfloat16
    for actual in (automatic, half):
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.02)


# Saving, growing, the cost of the taps.


@torch.no_grad()
def test_saved_and_loaded_by_name_at_every_depth(tmp_path: Path) -> None:
    net = edsr(3, 3, 8, res_scale=0.3, fold=False, taps=(1, 3)).eval()
    assert net.origin == (
        "edsr",
        {"scale": 3, "num_blocks": 3, "channels": 8, "res_scale": 0.3, "fold": False},
    )
    x = torch.rand(1, 3, 6, 7)
    elasticnet.save(net, tmp_path / "whole.safetensors")
    elasticnet.save(net.truncate(1), tmp_path / "cut.safetensors")
    for name, depth in (("whole", 3), ("whole", 1), ("cut", 1)):
        loaded = elasticnet.load(tmp_path / f"{name}.safetensors", depth)
        assert len(loaded.blocks) == depth
        assert torch.equal(loaded(x), net(x, depth=depth))


def test_grown_network_is_the_same_function_and_learns() -> None:
    net = edsr(2, 2, 8, res_scale=0.1).eval()
    x = torch.rand(1, 3, 14, 15)
    grown = net.grow([ResidualBlock(8, 0.1), ResidualBlock(8)], x)
    assert torch.equal(grown(x), net(x))
    grown(x).square().sum().backward()
    assert all(block.get_parameter("body.2.weight").grad.any() for block in grown.blocks[2:])  # pyright: ignore


def multiply_adds(channels: int) -> tuple[int, int, int]:
    """Of a conv, of the tail and of an add_mean at scale 4, by hand, for each LR pixel."""
    conv = 9 * channels**2
    return conv, 4 * conv + 4 * 4 * conv + 16 * 9 * channels * 3, 16 * 9


def test_cost_of_the_taps() -> None:
    conv, tail, shift = multiply_adds(64)
    with torch.device("meta"):
        costs = tap_macs(edsr(4, fold=False), torch.empty(1, 3, 48, 48))
    assert costs.trunk == (9 + 9 * 3 * 64 + 16 * 2 * conv) * 48**2
    assert costs.heads == 16 * (conv + tail + shift) * 48**2
    assert costs.ratio == pytest.approx(10.86, abs=0.01)


def test_cost_of_the_folded_taps() -> None:
    conv, tail, shift = multiply_adds(16)
    size = 40
    costs = tap_macs(edsr(4, 8, 16), torch.rand(1, 3, size, size))
    strips, folded = 4 * 3 * size * tail, 25 * 16 * 48 * (size - 2) ** 2
    kernel = costs.heads - 8 * ((conv + shift) * size**2 + strips + folded)
    assert 0 < kernel < 0.1 * costs.heads, "made once for all taps"


# Wrong arguments.


@pytest.mark.parametrize("scale", [1, 5, 2.0, "2"])
def test_wrong_scales_are_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match=rf"scale {scale!r}: expected one of 2, 3, 4, 8"):
        edsr(scale, 2, 8)


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="body_blocks is empty"):
        edsr(2, 0, 8)
    with pytest.raises(ValueError, match="tap 7: taps are whole numbers from 1 to 2"):
        edsr(2, 2, 8, taps=(1, 7))
    with pytest.raises(TypeError, match="group_size"):
        edsr(2, group_size=3)  # pyright: ignore[reportCallIssue]


# What every elastic network must satisfy.


class TestFolded(NetworkContract):
    def net(self) -> ElasticWrapper:
        return edsr(2, 3, 8)

    def example(self) -> Tensor:
        return torch.rand(1, 3, 13, 14)


class TestPlain(NetworkContract):
    def net(self) -> ElasticWrapper:
        return edsr(4, 3, 8, res_scale=0.1, fold=False, taps=(1, 3))

    def example(self) -> Tensor:
        return torch.rand(2, 3, 6, 5)
