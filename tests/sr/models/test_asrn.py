"""ASRN: the published counts, the blocks against plain loops, the switches."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_asrn import naive_mab, naive_res2net, naive_shufflenet
from torch import Tensor, nn

from contract import check_contract
from elasticnet.sr.models import asrn_blocks
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.asrn_blocks import MultiScaleBlock, Res2NetBlock, ShuffleNetBlock

LUMA = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 219
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")  # these come with scikit-image itself


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The published counts.


@pytest.mark.parametrize(("scale", "parameters"), [(2, 227_459), (3, 247_939), (4, 243_907)])
def test_parameters_at_five_blocks(scale: int, parameters: int) -> None:
    """Published: 227K, 248K, 244K."""
    assert count(asrn(scale)) == parameters


@pytest.mark.parametrize(
    ("scale", "by_depth"),
    [
        (2, {4: 188_291, 3: 149_123, 2: 109_955, 1: 70_787}),
        (3, {4: 208_771, 3: 169_603, 2: 130_435, 1: 91_267}),  # published: 84%, 170K, 131K, 92K
        (4, {4: 204_739, 3: 165_571, 2: 126_403, 1: 87_235}),  # published: 205K, 166K, -, 88K
    ],
)
def test_parameters_when_cut(scale: int, by_depth: dict[int, int]) -> None:
    net = asrn(scale)
    assert {depth: count(net.truncate(depth)) for depth in by_depth} == by_depth


@pytest.mark.parametrize(
    ("num_blocks", "parameters"), [(15, 635_587), (25, 1_027_267), (35, 1_418_947), (45, 1_810_627)]
)
def test_parameters_of_the_deep_networks(num_blocks: int, parameters: int) -> None:
    """Published, x4: 1.0M with 25 blocks, 1.8M with 45; 15 and 35 blocks are not printed."""
    net = asrn(4, num_blocks)
    assert count(net) == parameters
    assert len(net.taps) == num_blocks


def test_parameters_of_the_parts() -> None:
    net = asrn(2)
    assert count(net.head) == 24_387  # published: 24K
    assert net.stem is not None
    assert count(net.stem) == 224 + 7_008
    assert [count(block) for block in net.blocks] == [39_168] * 5
    assert count(asrn(2, upsampler="subpixel").head) == 334_755  # published: 334K
    assert count(asrn(1).head) == count(net.head) - (64 * 64 * 4 + 64)


# The blocks against plain loops.


SWITCHES = ("fusion", "residual_links", "shuffle", "residual")


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("values", [*itertools.product([True, False], repeat=4)])
@torch.no_grad()
def test_block_equals_the_naive_one(values: tuple[bool, ...], fold: bool) -> None:
    block = MultiScaleBlock(12, **dict(zip(SWITCHES, values, strict=True)), fold=fold).double()
    for shape in ((2, 12, 6, 5), (1, 12, 1, 1)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(block(x), naive_mab(block, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@torch.no_grad()
def test_unfolded_block_is_its_layers_bit_for_bit(layout: torch.memory_format) -> None:
    block = MultiScaleBlock(16, fold=False)
    x = torch.randn(2, 16, 7, 9).to(memory_format=layout)
    x1, x2, x3, x4 = block.expand(x).chunk(4, dim=1)
    k1, k2, k3, k4 = block.groups
    y1 = F.relu(k1(x1))
    y2 = F.relu(k2(x2 + y1))
    y3 = F.relu(k3(x3 + y2))
    y4 = F.relu(k4(x4 + y3))
    assert block.fusion is not None
    expected = x + block.fusion(F.channel_shuffle(torch.cat([y1, y2, y3, y4], dim=1), 4))
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_the_block_equal_the_naive_ones(layout: torch.memory_format) -> None:
    block = MultiScaleBlock(8).double()
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weights = torch.randn_like(x)
    inputs = [x, *block.parameters()]
    actual = torch.autograd.grad((block(x) * weights).sum(), inputs)
    expected = torch.autograd.grad((naive_mab(block, x) * weights).sum(), inputs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_gradients_are_those_of_the_plain_concatenation(monkeypatch, layout, dtype) -> None:
    block = MultiScaleBlock(24).to(dtype)
    x = torch.randn(2, 24, 5, 7).to(dtype, memory_format=layout).requires_grad_()

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()]))

    found = gradients()
    monkeypatch.setattr(asrn_blocks, "concatenate", lambda groups: torch.cat(groups, dim=1))
    assert all(map(torch.equal, found, gradients()))


def test_every_kind_of_derivative_reaches_through_a_block() -> None:
    block = MultiScaleBlock(8).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(block, x)

    def energy(image: Tensor) -> Tensor:
        return block(image[None]).square().sum()

    batched = torch.func.vmap(torch.func.grad(energy))(x)
    assert torch.allclose(batched, torch.autograd.grad(block(x).square().sum(), x)[0], rtol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 12, 5, 6), (1, 12, 1, 1)], ids=str)
def test_shufflenet_block_equals_the_naive_one(shape: tuple[int, ...]) -> None:
    block = ShuffleNetBlock(12).double()
    assert block.expand.out_channels == 84
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(block(x), naive_shufflenet(block, x), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 12, 5, 6), (1, 12, 1, 1)], ids=str)
def test_res2net_block_equals_the_naive_one(shape: tuple[int, ...]) -> None:
    block = Res2NetBlock(12).double()
    assert block.expand.out_channels == 12
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(block(x), naive_res2net(block, x), rtol=0, atol=1e-12)


# The switches of the ablation.


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_reaches_the_blocks_and_nothing_else(name: str) -> None:
    switched_off: Any = {name: False}
    full, without = asrn(2, 2, 16), asrn(2, 2, 16, **switched_off)
    assert count(full) - count(without) == (2 * 16 * 16 if name == "fusion" else 0)
    without.load_state_dict(full.state_dict(), strict=name != "fusion")
    for block in without.blocks:
        assert {switch for switch in SWITCHES if not getattr(block, switch)} == {name}
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(full(x), without(x), atol=1e-5)
        assert without.forward_taps(x).predictions[0].shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("block", "kind", "parameters"),
    [
        ("mab", MultiScaleBlock, 39_168),
        ("shufflenet", ShuffleNetBlock, 39_216),
        ("res2net", Res2NetBlock, 38_220),
    ],
)
def test_kinds_of_block(block: str, kind: type[nn.Module], parameters: int) -> None:
    """Units of like size: within 3 % of the MAB."""
    net = asrn(2, block=block)
    assert {type(module) for module in net.blocks} == {kind}
    assert {count(module) for module in net.blocks} == {parameters}
    assert abs(parameters - 39_168) < 0.03 * 39_168


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_folded_network_equals_the_plain_one(scale: int) -> None:
    folded, plain = asrn(scale, 3, 16), asrn(scale, 3, 16, fold=False)
    plain.load_state_dict(folded.state_dict())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for size in ((1, 1), (1, 7), (6, 5)):
            x = torch.rand(2, 3, *size, dtype=dtype)
            with torch.no_grad():
                actual, expected = (net.to(dtype).forward_taps(x) for net in (folded, plain))
            torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_the_ordinary_network_has_one_tap() -> None:
    """The variant SS: trained alone at one depth."""
    net = asrn(2, 3, 16, taps=(3,))
    assert net.taps == (3,)
    assert count(net) == count(asrn(2, 3, 16))
    taps = net.forward_taps(torch.rand(1, 3, 6, 6))
    assert taps.depths == (3,)
    assert len(taps.predictions) == len(taps.features) == 1
    with pytest.raises(ValueError, match="depth 2: this net has taps at depths 3"):
        net(torch.rand(1, 3, 6, 6), depth=2)


def test_a_scale_and_a_bias_for_each_tap() -> None:
    """192 parameters a tap; at first the same function, later that of scaled, shifted features."""
    torch.manual_seed(0)
    plain = asrn(2, 3, taps=(1, 3)).eval()
    net = asrn(2, 3, taps=(1, 3), tap_affine=True).eval()
    assert net.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    assert sum(parameter.numel() for parameter in net.adapters.parameters()) == 2 * 192
    x = torch.rand(1, 3, 5, 6)
    for depth in (1, 3):
        assert torch.equal(net(x, depth=depth), plain(x, depth=depth))
    for parameter in net.adapters.parameters():
        nn.init.normal_(parameter)
    taps = net.forward_taps(x)
    for depth, prediction, features in zip(*taps, strict=True):
        affine = net.adapters[str(depth)].state_dict()
        torch.testing.assert_close(
            prediction, plain.head(features * affine["weight"] + affine["bias"])
        )


@pytest.mark.parametrize("block", ["mab", "shufflenet", "res2net"])
def test_recomputed_blocks_give_the_same_gradients(block: str) -> None:
    plain = asrn(2, 2, 16, block=block)
    recomputing = asrn(2, 2, 16, block=block, checkpoint_blocks=True)
    recomputing.load_state_dict(plain.state_dict())
    gradients, calls = [], []
    x = torch.rand(1, 3, 6, 6)
    for net in (plain, recomputing):
        for recomputed in net.blocks:
            recomputed.register_forward_pre_hook(lambda *_: calls.append(1))
        loss = torch.stack(
            [prediction.square().sum() for prediction in net.forward_taps(x).predictions]
        ).sum()
        gradients.append(torch.autograd.grad(loss, [*net.parameters()]))
    assert len(calls) == 2 + 4
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("tap_affine", [False, True])
def test_origin_builds_the_same_network_again(tap_affine: bool) -> None:
    net = asrn(
        3, 2, 16, residual_links=False, skip="bicubic", fold=False, tap_affine=tap_affine
    ).eval()
    assert net.origin is not None
    architecture, arguments = net.origin
    assert architecture == "asrn"
    again = asrn(**arguments, init="default").eval()
    again.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


# Growing.


@pytest.mark.parametrize("kind", [MultiScaleBlock, ShuffleNetBlock, Res2NetBlock])
@pytest.mark.parametrize("fold", [True, False])
def test_grown_network_is_the_same_function_and_learns(kind: type[nn.Module], fold: bool) -> None:
    net = asrn(2, 2, 16, fold=fold).eval()
    x = torch.rand(1, 3, 6, 7)
    grown = net.grow([kind(16), kind(16)], x)
    assert grown.taps == (1, 2, 3, 4)
    with torch.no_grad():
        for depth in grown.taps:
            assert torch.equal(grown(x, depth=depth), net(x, depth=min(depth, 2)))
    grown(x).square().sum().backward()
    for block in grown.blocks[2:]:
        gradient = block.get_parameter("fusion.weight").grad
        assert gradient is not None
        assert gradient.any()


@pytest.mark.parametrize("name", ["fusion", "residual"])
def test_a_block_that_cannot_be_the_identity_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="MultiScaleBlock without fusion or without residual"):
        asrn(2, 1, 16).grow([MultiScaleBlock(16, **{name: False})], torch.rand(1, 3, 6, 6))


# Wrong arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5}, "scale 5: expected one of 1, 2, 3, 4"),
        (
            {"upsampler": "pixelshuffle"},
            "upsampler 'pixelshuffle': expected one of deconv, subpixel",
        ),
        ({"block": "resnet"}, "block 'resnet': expected one of mab, shufflenet, res2net"),
        ({"init": "zeros"}, "init 'zeros': expected one of interpolate, default"),
        ({"skip": "nearest"}, "skip 'nearest': expected one of None, bicubic"),
        ({"channels": 18}, "channels 18: expected a multiple of 4, at least 8"),
        ({"channels": 4}, "channels 4: expected a multiple of 4, at least 8"),
        ({"fusion": "no"}, "fusion 'no': expected True or False"),
        ({"residual_links": None}, "residual_links None: expected True or False"),
        ({"shuffle": 0}, "shuffle 0: expected True or False"),
        ({"residual": "False"}, "residual 'False': expected True or False"),
        ({"fold": 1}, "fold 1: expected True or False"),
        ({"tap_affine": "yes"}, "tap_affine 'yes': expected True or False"),
        ({"tap_fusion": 2}, "tap_fusion 2: expected True or False"),
        ({"checkpoint_blocks": 1.0}, "checkpoint_blocks 1.0: expected True or False"),
        (
            {"block": "res2net", "shuffle": False, "fusion": False},
            "block 'res2net' with fusion=False, shuffle=False: only block 'mab' has parts to leave",
        ),
        ({"num_blocks": 0}, "body_blocks is empty"),
        ({"taps": (1, 7)}, "tap 7: taps are whole numbers from 1 to 5"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asrn(**{"scale": 2, "channels": 16, **arguments})


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="num_block"):
        asrn(2, num_block=3)  # pyright: ignore[reportCallIssue]


# What every elastic network must satisfy.


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"fold": False, "scale": 3},
        {"upsampler": "subpixel"},
        {"skip": "bicubic", "scale": 4, "taps": (1, 3)},
        {"upsampler": "subpixel", "skip": "bicubic", "fold": False},
        {"block": "shufflenet"},
        {"block": "res2net", "scale": 1},
        {"fusion": False},
        {"residual_links": False},
        {"shuffle": False},
        {"residual": False},
        {"fusion": False, "residual_links": False, "shuffle": False, "residual": False},
        {"tap_affine": True, "skip": "bicubic", "taps": (1, 3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_keeps_the_contract(arguments: dict[str, Any], dtype: torch.dtype) -> None:
    net = asrn(**{"scale": 2, "num_blocks": 3, "channels": 16, **arguments})
    check_contract(net.to(dtype), torch.rand(2, 3, 5, 6, dtype=dtype))
