"""`head_skip="context"`: a head that needs what the blocks need, or what they collect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elasticnet
from contract import NetworkContract, check_contract, same
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._net.in_place_writes import OverwrittenError
from elasticnet.export import export
from tiny_nets import conv_blocks

TOKENS = torch.randint(9, (2, 6), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


class MaskedMean(nn.Module):
    """The mean over the tokens that count, then classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, context: dict[str, Tensor]) -> Tensor:
        weights = context["mask"].to(tokens.dtype).unsqueeze(-1)  # (b, n, 1)
        mean = (tokens * weights).sum(1) / weights.sum(1)  # (b, 8)
        return self.linear(mean)


def masked_net(**options: Any) -> ElasticWrapper:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    return ElasticWrapper(
        blocks, MaskedMean(), nn.Embedding(9, 8), head_skip="context", layout="b n c", **options
    ).eval()


class TestMaskedMean(NetworkContract):
    """Plain blocks: the keyword arguments are the context, and the head alone reads it."""

    keywords = {"mask": MASK}  # noqa: RUF012 (as in the base class)

    def net(self) -> ElasticWrapper:
        return masked_net()

    def example(self) -> Tensor:
        return TOKENS


def test_more_padding_changes_nothing() -> None:
    net = masked_net()
    padded = torch.cat([TOKENS, TOKENS.new_zeros(2, 3)], dim=1)
    mask = torch.cat([MASK, MASK.new_zeros(2, 3)], dim=1)
    for depth in net.taps:
        expected = net(TOKENS, depth=depth, mask=MASK)
        torch.testing.assert_close(net(padded, depth=depth, mask=mask), expected)


class Collecting(nn.Module):
    """A block that returns features and what the head sums, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        change, skip = self.conv(x).chunk(2, dim=1)
        return x + change.tanh(), skip


def add_skip(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
    x, skip = block(x)
    return x, {"total": context.get("total", 0) + skip}


def add_skip_in_own_dict(
    block: nn.Module, x: Tensor, context: Any, index: int
) -> tuple[Tensor, Any]:
    """Change the dict itself, which is one for all depths."""
    x, skip = block(x)
    context["total"] = context.get("total", 0) + skip
    return x, context


class OfTotal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, context: dict[str, Tensor]) -> Tensor:
        return self.conv(context["total"].relu())


class OfTotalTogether(OfTotal):
    takes_all_taps = True

    def forward(self, x: Any, context: Any) -> Any:
        return tuple(
            OfTotal.forward(self, features, each) for features, each in zip(x, context, strict=True)
        )


@pytest.mark.parametrize("call_block", [add_skip, add_skip_in_own_dict])
@pytest.mark.parametrize("head", [OfTotal, OfTotalTogether])
def test_the_head_gets_the_context_of_its_depth(head: type[nn.Module], call_block: Any) -> None:
    torch.manual_seed(0)
    blocks = [Collecting() for _ in range(3)]
    net = ElasticWrapper(blocks, head(), head_skip="context", call_block=call_block)
    check_contract(net, X)


def test_what_a_stem_returns_is_the_context() -> None:
    class Stem(nn.Module):
        def forward(self, x: Tensor, gain: float) -> tuple[Tensor, dict[str, Tensor]]:
            return x, {"total": x * gain}

    net = ElasticWrapper(conv_blocks(2), OfTotal(), Stem(), head_skip="context").eval()
    same(net(X, gain=2.0), net.head(X, {"total": X * 2.0}), "the head alone reads it")
    with pytest.raises(TypeError, match="unexpected keyword argument 'gian'"):
        net(X, gain=2.0, gian=3.0)


def test_without_it_such_a_stem_is_told_both_ways() -> None:
    class Stem(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x, 3

    net = ElasticWrapper(conv_blocks(2), nn.Conv2d(4, 2, 1), Stem())
    with pytest.raises(ValueError, match=r"pass call_block .*, or head_skip='context' to use"):
        net(X)


def test_the_objective_trains_it() -> None:
    net = masked_net()
    objective = ElasticObjective(net, nn.CrossEntropyLoss(), psd_weight=0.0)
    terms = objective(TOKENS, torch.tensor([1, 2]), mask=MASK)
    for depth, loss in terms.per_depth.items():
        prediction = net(TOKENS, depth=depth, mask=MASK)
        same(loss, nn.functional.cross_entropy(prediction, torch.tensor([1, 2])), f"{depth}")


def test_a_compiled_net_gives_its_head_the_context() -> None:
    torch._dynamo.reset()
    net = masked_net()
    expected = net(TOKENS, taps=net.taps, mask=MASK)
    compiled: Any = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS, taps=net.taps, mask=MASK), expected)


def test_it_is_no_plain_sequence() -> None:
    with pytest.raises(ValueError, match="a net with head_skip is not a plain sequence"):
        masked_net().to_sequential()


def test_it_is_saved_loaded_and_exported(tmp_path: Path) -> None:
    net = masked_net()
    expected = net(TOKENS, depth=2, mask=MASK)
    elasticnet.save(net, tmp_path / "net.safetensors")
    loaded = elasticnet.load(tmp_path / "net.safetensors", depth=2, build=masked_net)
    same(loaded(TOKENS, mask=MASK), expected, "loaded")
    export(net, tmp_path / "net.pt2", depth=2, example=TOKENS, keywords={"mask": MASK})
    program = torch.export.load(str(tmp_path / "net.pt2")).module()
    torch.testing.assert_close(program(TOKENS, mask=MASK), expected)


def test_a_head_that_overwrites_the_context_is_named() -> None:
    class Overwriting(OfTotal):
        def forward(self, x: Tensor, context: dict[str, Tensor]) -> Tensor:
            return self.conv(context["total"].mul_(2))

    torch.manual_seed(0)
    blocks = [Collecting() for _ in range(2)]
    net = ElasticWrapper(blocks, Overwriting(), head_skip="context", call_block=add_skip).eval()
    message = "the head at depth 1 writes in place into the features or the context at depth 1"
    with torch.no_grad(), pytest.raises(OverwrittenError, match=message):
        net(X, taps=net.taps)
    net.copy_features = True
    check_contract(net, X)
