"""Multiply-accumulates against a count by hand, where torch hides products in one operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.nn.utils import parametrizations

from elasticnet import ElasticWrapper
from elasticnet.card import depth_costs, measure
from elasticnet.card.counting import count_macs, count_pass

BATCH, TOKENS, WIDTH = 2, 5, 8
X = torch.rand(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
HEAD_MACS = BATCH * TOKENS * WIDTH * 3


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cells(x)[0]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


class Fused(nn.Module):
    """Attention in one operator, which torch 2.6 does not count on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = (x + self.shift)[:, None]  # (b, 1, n, c)
        return x + nn.functional.scaled_dot_product_attention(y, y, y)[:, 0]


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.product(x, x)


class WithQuery(nn.Module):
    """Hands a parameter to a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) * self.norm(self.query)


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)


def parametrized() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))


positions = BATCH * TOKENS
linear = positions * WIDTH * WIDTH
attention = 4 * linear + 2 * BATCH * TOKENS * TOKENS * WIDTH  # projections; scores and their sums

CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "encoder layer": (encoder_layer, attention + 2 * positions * WIDTH * 16),
    "multi-head attention": (Attending, attention),
    "fused attention": (Fused, 2 * BATCH * TOKENS * TOKENS * WIDTH),
    "LSTM": (lambda: Recurrent(nn.LSTM), 4 * 2 * linear),
    "GRU": (lambda: Recurrent(nn.GRU), 3 * 2 * linear),
    "bilinear": (Bilinear, linear * WIDTH),
    "parametrized": (parametrized, linear),
    "learned query": (WithQuery, linear),
}


def net_of(block: Callable[[], nn.Module]) -> ElasticWrapper:
    torch.manual_seed(0)
    blocks = [block() for _ in range(3)]
    return ElasticWrapper(blocks, nn.Linear(WIDTH, 3), layout="b n c").eval()


@pytest.mark.parametrize("name", CASES)
def test_each_block_counts_what_a_hand_counts(name: str) -> None:
    block, macs_of_a_block = CASES[name]
    net = net_of(block)

    counts = [count_macs(net, X, depth) for depth in net.taps]

    assert counts == [HEAD_MACS + depth * macs_of_a_block for depth in (1, 2, 3)]


def test_counting_leaves_torchs_switches_and_the_net_as_they_were() -> None:
    net = net_of(encoder_layer).train()
    had_fast_path = torch.backends.mha.get_fastpath_enabled()

    count_macs(net, X, 3)

    assert torch.backends.mha.get_fastpath_enabled() == had_fast_path
    assert torch.backends.cuda.flash_sdp_enabled()
    assert net.training


def test_the_fast_path_is_switched_on_again_after_an_error() -> None:
    net = net_of(encoder_layer)

    with pytest.raises((AssertionError, RuntimeError)):
        count_macs(net, X[..., 1:], 3)

    assert torch.backends.mha.get_fastpath_enabled()


@library.custom_op("elasticnet_tests::product", mutates_args=())
def product(x: Tensor, weight: Tensor) -> Tensor:
    return (x[..., None] * weight).sum(-2)


class Foreign(nn.Module):
    """Multiplies by an operator of another library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)


def test_operators_of_other_libraries_are_named(caplog: pytest.LogCaptureFixture) -> None:
    net = net_of(Foreign)

    counted = count_pass(net, X, 2)
    card = measure(net, X, repeats=3, memory=False)
    depth_costs(net, X, repeats=1)

    warning = "macs leave out operators that torch cannot count: elasticnet_tests::product"
    assert counted.macs == HEAD_MACS
    assert counted.not_counted == ("elasticnet_tests::product",)
    assert warning in card.warnings
    assert warning in caplog.text


def test_a_budget_of_macs_is_refused_where_depth_adds_none() -> None:
    card = measure(net_of(Foreign), X, repeats=3, memory=False)

    problem = "macs does not rise with depth: 240 at depth 1, 240 at 2"
    assert problem in card.warnings
    with pytest.raises(ValueError, match=f"macs 300: {problem}, so that they do not say"):
        card.depth_for(macs=300)
    assert card.depth_for(latency_ms=1e6) == 3


class Tupled(nn.Module):
    """A stem that takes a tuple or a dict of two tensors."""

    def forward(self, x: Any) -> Tensor:
        image, shift = (x["image"], x["shift"]) if isinstance(x, dict) else x
        return image + shift


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_an_input_of_several_tensors_has_a_card(kind: type) -> None:
    net = ElasticWrapper([nn.Linear(WIDTH, WIDTH)], nn.Linear(WIDTH, 3), Tupled(), layout="b n c")
    named = {"image": X, "shift": X[:1]}
    example = named if kind is dict else kind(named.values())

    card = measure(net, example, repeats=3)

    assert card.rows[0].macs == HEAD_MACS + linear
    assert card.input_shape == tuple(X.shape)
    assert card.per_pass == {"samples": BATCH}
    weights_and_input = 4 * (WIDTH * WIDTH + WIDTH + 3 * WIDTH + 3 + X.numel() + X[:1].numel())
    memory = card.rows[0].memory_mb
    assert memory is None or memory >= weights_and_input / 1e6


def test_an_example_without_a_tensor_is_refused() -> None:
    net = net_of(WithQuery)

    with pytest.raises(ValueError, match="example: a dict without a tensor"):
        measure(net, {"image": None}, repeats=1)


class Caching(nn.Module):
    """Computes a table once and keeps it, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(WIDTH).float().cos()
        return self.linear(x) * self.table


def test_a_net_that_kept_a_table_can_be_trained_after_its_card_was_measured() -> None:
    net = net_of(Caching)

    measure(net, X, repeats=1, memory=False)

    net.train()(X).sum().backward()
