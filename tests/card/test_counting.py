"""Multiply-accumulates against a count by hand, where torch hides products in one operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.nn.utils import parametrizations

import warm_python
from elasticnet import ElasticWrapper
from elasticnet.card import depth_costs, measure, memory_of_passes
from elasticnet.card.counting import count_macs, count_pass
from elasticnet.card.operators import FORMULAS

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

    warning = "macs are too low: not counted are elasticnet_tests::product"
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


class Applies(nn.Module):
    """Adds what a function makes of the features and of a square matrix of its own."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(WIDTH))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x, self.matrix)


def times_in_place(x: Tensor, matrix: Tensor) -> Tensor:
    rows = x.reshape(-1, WIDTH)
    return torch.zeros_like(rows).addmm_(rows, matrix).view_as(x)


def distances(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.cdist(x, matrix[None])


def distances_of_many(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.cdist(x, matrix[None], compute_mode="use_mm_for_euclid_dist")


def times_sparse(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.sparse.mm(matrix.to_sparse(), x.reshape(-1, WIDTH).t()).t().reshape(x.shape)


def written_out(x: Tensor, matrix: Tensor) -> Tensor:
    return (x[..., None] * matrix).sum(-2)


def written_out_and_viewed(x: Tensor, matrix: Tensor) -> Tensor:
    products = x[..., None, :] * matrix  # (b, n, out, in)
    return products.view(BATCH, TOKENS, WIDTH, 2, -1).sum((-2, -1))


def copied_and_summed(x: Tensor, matrix: Tensor) -> Tensor:
    products = x[..., None] * matrix  # (b, n, in, out)
    copied = products.transpose(1, 2).reshape(BATCH, WIDTH, -1).double()  # (b, in, n * out)
    return copied.sum(1).view(BATCH, TOKENS, WIDTH).float()


def summed_by_index(x: Tensor, matrix: Tensor) -> Tensor:
    """Sums messages over the edges of a graph in which every node has itself for a neighbour."""
    nodes = torch.arange(TOKENS)
    weights = matrix[0].expand(TOKENS, WIDTH)
    return torch.zeros_like(x).index_add(1, nodes, x * weights)


def every_value_once(x: Tensor, matrix: Tensor) -> int:
    del matrix
    return x.numel()


def summed_twice(x: Tensor, matrix: Tensor) -> Tensor:
    products = x[..., None] * matrix
    return products.sum(-1) + products.sum(-2)


def by_row(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.linalg.vecdot(x, matrix[0])[..., None]


def by_vector(x: Tensor, matrix: Tensor) -> Tensor:
    return (x.reshape(-1, WIDTH) @ matrix[0]).view(BATCH, TOKENS, 1)


def by_dot(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.dot(matrix[0], matrix[1])


def by_einsum(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("bni,io->bno", x, matrix)


def scaled(x: Tensor, matrix: Tensor) -> Tensor:
    return x * matrix[0] + (x * 0.5).sum(-1, keepdim=True)


def light(x: Tensor, matrix: Tensor) -> Tensor:
    """Many operators that take a fixed number of steps for each value."""
    y = nn.functional.layer_norm(x, (WIDTH,)).softmax(-1).cumsum(-1).sort(-1).values
    y = torch.cat([y, x], dim=-1)[..., ::2].abs_().tril()
    return nn.functional.interpolate(y, scale_factor=1.0, mode="linear") * matrix[0]


def naive_product(x: Tensor, matrix: Tensor) -> int:
    """Count the multiplications of x times the matrix one by one."""
    num_products = 0
    for sample in x:
        for row in sample:
            for column in matrix.t():
                for _pair in zip(row, column, strict=True):
                    num_products += 1
    return num_products


def one_row(x: Tensor, matrix: Tensor) -> int:
    return naive_product(x, matrix[:, :1])


def of_one_vector(x: Tensor, matrix: Tensor) -> int:
    del x
    return naive_product(matrix[:1, None], matrix[:, :1])


def no_product(x: Tensor, matrix: Tensor) -> int:
    del x, matrix
    return 0


COUNTED: list[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], int]]] = [
    (times_in_place, naive_product),
    (distances, naive_product),
    (distances_of_many, naive_product),
    (times_sparse, naive_product),
    (written_out, naive_product),
    (written_out_and_viewed, naive_product),
    (summed_twice, naive_product),
    (copied_and_summed, naive_product),
    (summed_by_index, every_value_once),
    (by_einsum, naive_product),
    (by_row, one_row),
    (by_vector, one_row),
    (by_dot, of_one_vector),
    (scaled, no_product),
    (light, no_product),
]


@pytest.mark.parametrize(("function", "naive_count"), COUNTED)
def test_a_product_counts_what_a_loop_counts(
    function: Callable[[Tensor, Tensor], Tensor], naive_count: Callable[[Tensor, Tensor], int]
) -> None:
    net = net_of(lambda: Applies(function))

    counted = count_pass(net, X, 2)

    assert counted.macs == HEAD_MACS + 2 * naive_count(X, torch.eye(WIDTH))
    assert counted.not_counted == ()


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_grouped_mm"), reason="torch 2.6 has none")
@pytest.mark.parametrize(
    ("first", "second"),
    [((12, 8), (3, 8, 16)), ((3, 4, 8), (8, 48)), ((16, 24), (24, 8)), ((3, 4, 8), (3, 8, 16))],
)
def test_products_of_groups_count_what_each_group_multiplies(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    rows, inner = first[-2:]
    columns = second[-1]
    if len(first) == len(second) == 3:
        rows *= 3  # each group has rows of its own

    counted = FORMULAS[torch.ops.aten._grouped_mm](first, second)

    assert counted == 2 * rows * inner * columns


def transformed(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.fft.fft2(x).real * matrix[0]


def solved(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, x.mT).mT


def inverted(x: Tensor, matrix: Tensor) -> Tensor:
    return x @ torch.linalg.inv(matrix)


def sampled(x: Tensor, matrix: Tensor) -> Tensor:
    places = matrix[None, :TOKENS, None, :2].expand(BATCH, -1, -1, -1)  # (b, n, 1, 2)
    return nn.functional.grid_sample(x[:, None], places, align_corners=False)[:, 0]


UNKNOWN = [
    (transformed, "aten::_fft_c2c"),
    (solved, "aten::_linalg_solve_ex"),
    (inverted, "aten::linalg_inv_ex"),
    (sampled, "aten::grid_sampler_2d"),
]


@pytest.mark.parametrize(("function", "name"), UNKNOWN)
def test_an_operator_of_unknown_work_is_named_in_the_card(
    function: Callable[[Tensor, Tensor], Tensor], name: str
) -> None:
    net = net_of(lambda: Applies(function))

    card = measure(net, X, repeats=1, memory=False)

    assert f"macs are too low: not counted are {name}" in card.warnings


def test_a_sparse_matrix_counts_as_a_dense_one_and_the_card_says_so() -> None:
    net = net_of(lambda: Applies(times_sparse))

    card = measure(net, X, repeats=1, memory=False)

    assert (
        "macs count sparse tensors as if they were dense, in aten::_sparse_addmm" in card.warnings
    )
    assert not any("macs are too low" in warning for warning in card.warnings)


class Tupled(nn.Module):
    """A stem that takes a tuple or a dict of two tensors."""

    def forward(self, x: Any) -> Tensor:
        image, shift = (x["image"], x["shift"]) if isinstance(x, dict) else x
        return image + shift


@pytest.fixture
def warm_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory be measured in a process that is forked; test_measuring.py starts fresh ones."""
    monkeypatch.setattr(memory_of_passes, "subprocess", warm_python)


@pytest.mark.usefixtures("warm_process")
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
