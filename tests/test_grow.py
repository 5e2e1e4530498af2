"""grow: deeper, and exactly the same function; what cannot be the identity is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from contract import check_contract, same
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.wrapper import Origin
from tiny_nets import Case, TinyBlock, TinyHead, conv_blocks, conv_net, tiny_cases

IMAGE = "b c h w"
X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@given(tiny_cases(), st.lists(st.sampled_from(["residual", "attention"]), min_size=1, max_size=3))
def test_a_grown_network_is_the_same_function(case: Case, kinds: list[str]) -> None:
    """At every old depth and every new one, bit for bit; the new blocks are trained from there."""
    if case.net.call_block is not None:  # its gains make no block the identity: tested below
        return
    deepest = case.net.taps[-1]
    width = case.net.blocks[-1].get_parameter("last.weight").shape[0]
    new_blocks = [TinyBlock(kind, case.net.layout, width).to(case.x.dtype) for kind in kinds]
    grown = case.net.grow(new_blocks, case.x)
    assert grown.taps == (*case.net.taps, *range(deepest + 1, deepest + len(kinds) + 1))
    with torch.no_grad():
        expected = case.net(case.x)
        for depth in grown.taps:
            wanted = case.net(case.x, depth=depth) if depth <= deepest else expected
            same(grown(case.x, depth=depth), wanted, f"depth {depth}")
    check_contract(grown, case.x)


def test_a_grown_network_is_independent_and_learns() -> None:
    net, extra = conv_net(2), conv_blocks(1)
    before, given_block = net(X), [p.clone() for p in extra[0].parameters()]
    grown = net.grow(extra, X)
    same(list(extra[0].parameters()), given_block, "the block that was handed over")
    objective = ElasticObjective(grown, nn.MSELoss(), 0.1)
    optimiser = torch.optim.SGD(grown.parameters(), lr=0.1)
    terms = objective(X, torch.zeros(2, 2, 5, 6))
    terms.total.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in grown.parameters())
    gradient = grown.get_parameter("blocks.2.last.weight").grad
    assert gradient is not None
    assert gradient.count_nonzero()
    optimiser.step()
    assert not torch.equal(grown(X), before)
    same(net(X), before, "the net that was grown")


def test_init_replaces_init_identity() -> None:
    def zero_last(block: nn.Module) -> None:
        nn.init.zeros_(block.get_parameter("1.weight"))

    class Residual(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return input + super().forward(input)

    block = Residual(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False))
    net = conv_net(2)
    with pytest.raises(
        ValueError, match=r"new block 0 \(Residual\) has no init_identity\(\); pass init="
    ):
        net.grow([block], X)
    with pytest.raises(
        ValueError, match=r"new block 0 \(Residual\) is not the identity: on the example its output"
    ):
        net.grow([block], X, init=lambda block: None)
    same(net.grow([block], X, init=zero_last)(X), net(X), "grown")


def test_the_block_that_is_not_an_identity_is_named() -> None:
    net = conv_net(2)
    good, wrong = TinyBlock("residual", IMAGE, 4), TinyBlock("conv", IMAGE, 4)
    with pytest.raises(
        ValueError,
        match=r"new block 1 \(TinyBlock\) is not the identity: .* differs from its input by",
    ):
        net.grow([good, wrong], X)
    wider = TinyBlock("conv", IMAGE, 4, 6)
    with pytest.raises(ValueError, match=r"it turns shape \(2, 4, 5, 6\) into \(2, 6, 5, 6\)"):
        net.grow([wider], X)
    with pytest.raises(ValueError, match="grow: no blocks given"):
        net.grow([], X)


def test_a_post_norm_block_cannot_be_an_identity() -> None:
    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.linear(x))

        def init_identity(self) -> None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    net = ElasticWrapper([nn.Linear(4, 4)], nn.Linear(4, 2), layout="b n c")
    with pytest.raises(
        ValueError, match=r"new block 0 \(PostNorm\) is not the identity.*post-norm"
    ):
        net.grow([PostNorm()], torch.randn(2, 3, 4))


def test_a_block_that_works_in_place_is_not_compared_with_itself() -> None:
    class AddsOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

        def init_identity(self) -> None:
            pass

    net = ElasticWrapper(conv_blocks(1), nn.Identity())
    with pytest.raises(
        ValueError, match=r"new block 0 \(AddsOne\) is not the identity: .* by up to 1\b"
    ):
        net.grow([AddsOne()], X)


def test_an_example_that_gives_nan_proves_nothing() -> None:
    net = conv_net(1)
    nn.init.constant_(net.get_parameter("blocks.0.last.bias"), float("nan"))
    message = r"new block 0 \(TinyBlock\) is not the identity: its input has NaN on this example"
    with pytest.raises(ValueError, match=message):
        net.grow(conv_blocks(1), X)


def test_a_grown_or_cut_network_keeps_its_origin() -> None:
    net = conv_net(2)
    net.origin = Origin("conv", {"num_blocks": 2})
    grown = net.grow(conv_blocks(1), X)
    assert grown.origin == net.truncate(1).origin == Origin("conv", {"num_blocks": 2})
    assert grown.origin is not None
    assert grown.origin.architecture == "conv"
    assert grown.origin.arguments == {"num_blocks": 2}


def test_a_call_block_that_is_no_identity_is_found() -> None:
    def call_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
        return block(x) * context["gains"][index], context

    net = conv_net(1, call_block=call_block)
    same(
        net.grow(conv_blocks(1), X, gains=[0.5, 1.0])(X, gains=[0.5, 1.0]),
        net(X, gains=[0.5]),
        "gain 1",
    )
    with pytest.raises(ValueError, match=r"new block 0 .* is not the identity"):
        net.grow(conv_blocks(1), X, gains=[0.5, 0.9])


def test_the_deepest_adapter_is_copied_to_the_new_taps() -> None:
    net = ElasticWrapper(
        conv_blocks(2), TinyHead(IMAGE, 6), adapters={2: nn.Conv2d(4, 6, 1)}, taps=[2]
    ).eval()
    grown = net.grow(conv_blocks(2), X)
    assert sorted(grown.adapters) == ["2", "3", "4"]
    weights = [grown.get_parameter(f"adapters.{depth}.weight") for depth in (2, 3, 4)]
    assert len({weight.data_ptr() for weight in weights}) == 3
    for weight in weights:
        same(weight, net.get_parameter("adapters.2.weight"), "adapter")
    same(grown(X), net(X), "grown")


def test_the_mode_is_kept() -> None:
    net = conv_net(2)
    net.blocks[0].eval()
    grown = net.grow(conv_blocks(1), X)
    assert [block.training for block in grown.blocks] == [False, True, True]
    assert not any(module.training for module in net.eval().grow(conv_blocks(1), X).modules())


class InOtherType(nn.Module):
    """A stem that computes in bfloat16, in front of blocks in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.bfloat16()).float()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_new_blocks_keep_the_types_that_they_were_given(dtype: torch.dtype) -> None:
    net = conv_net(2).to(dtype)
    grown = net.grow([block.to(dtype) for block in conv_blocks(1)], X.to(dtype))
    assert {parameter.dtype for parameter in grown.parameters()} == {dtype}


def test_a_stem_in_another_type_does_not_change_the_new_blocks() -> None:
    net = conv_net(2, stem=InOtherType())
    grown = net.grow(conv_blocks(1), X)
    assert {parameter.dtype for parameter in grown.blocks.parameters()} == {torch.float32}
    same(grown(X), net(X), "grown")


class TwoScales(nn.Module):
    """A block that hands on a nest of two maps, as multi-scale networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(4, 4, 1)
        self.coarse = nn.Conv2d(4, 4, 1)

    def forward(self, maps: dict[str, Any]) -> dict[str, Any]:
        fine = maps["fine"] + self.fine(maps["fine"])
        (coarse,) = maps["coarse"]
        return {"fine": fine, "coarse": [coarse + self.coarse(coarse)]}

    def init_identity(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class TwoScaleStem(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"fine": x, "coarse": [nn.functional.avg_pool2d(x, 2)]}


class CoarseHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, maps: dict[str, Any]) -> Tensor:
        return self.linear(maps["coarse"][0].mean((2, 3)))


def two_scale_net() -> ElasticWrapper:
    return ElasticWrapper([TwoScales(), TwoScales()], CoarseHead(), TwoScaleStem()).eval()


def test_a_net_whose_features_are_a_nest_grows() -> None:
    net = two_scale_net()
    same(net.grow([TwoScales()], X)(X), net(X), "grown")
    message = r"new block 0 \(TwoScales\) is not the identity: .*differs from its input by up to"
    with pytest.raises(ValueError, match=message):
        net.grow([TwoScales()], X, init=lambda block: None)


def test_check_reports_each_tensor_of_a_nest() -> None:
    net = two_scale_net()
    height, width = X.shape[-2:]
    fine = (len(X), 4, height, width)
    coarse = (len(X), 4, height // 2, width // 2)
    for report in net.check(X):
        assert report.shape == (fine, coarse)
        assert report.output_shape == (len(X), 3)
        assert report.problem is None
    with torch.no_grad():
        net.get_parameter("blocks.1.coarse.bias")[0] = torch.nan
    problem = net.check(X)[1].problem
    assert problem is not None
    assert "features are not finite" in problem


def test_the_self_distillation_names_features_that_are_no_tensor() -> None:
    objective = ElasticObjective(two_scale_net(), nn.CrossEntropyLoss(), psd_weight=0.1)
    with pytest.raises(
        TypeError, match="needs one tensor at each tap, and the features are a dict"
    ):
        objective(X, torch.zeros(len(X), dtype=torch.int64))
    objective.psd_weight = 0.0
    assert objective(X, torch.zeros(len(X), dtype=torch.int64)).total.isfinite()


def test_the_proof_runs_in_eval_mode_and_moves_no_statistics() -> None:
    class NormedResidual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.last = nn.Conv2d(4, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(self.norm(x))

        def init_identity(self) -> None:
            nn.init.zeros_(self.last.weight)

    grown = conv_net(1).grow([NormedResidual()], X)
    assert grown.training
    assert grown.get_buffer("blocks.1.norm.num_batches_tracked") == 0
