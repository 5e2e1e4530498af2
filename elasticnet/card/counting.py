"""Count what one depth of a net holds and computes: parameters and multiply-accumulates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from elasticnet.checkpoint.header import first_depth_that_needs
from elasticnet.wrapper import ElasticWrapper, evaluating

aten: Any = torch.ops.aten

# Operators of these namespaces are torch's own, which the counter knows or which multiply little.
KNOWN_NAMESPACES = ("aten", "prim", "prims")


class MacCount(NamedTuple):
    """The multiply-accumulates of one pass.

    Attributes:
        macs: How many were counted.
        not_counted: The names of operators of other libraries, whose work is not known.
    """

    macs: int
    not_counted: tuple[str, ...]


def count_parameters(net: ElasticWrapper, depth: int) -> int:
    """Return how many parameters the net cut to a depth has; a shared tensor counts once.

    Args:
        net: The whole net. Nothing of it is copied.
        depth: A depth that carries a tap.
    """
    sizes: dict[int, int] = {}  # by identity
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if first_depth_that_needs(name) <= depth:
            sizes[id(parameter)] = parameter.numel()
    return sum(sizes.values())


def count_macs(
    net: ElasticWrapper, example: Any, depth: int, context: Mapping[str, Any] | None = None
) -> int:
    """Return the multiply-accumulates of one pass, by torch's own counter.

    Args:
        net: The net.
        example: An input of it.
        depth: Where the pass ends.
        context: Keyword arguments of the net's call.
    """
    return count_pass(net, example, depth, context).macs


def count_pass(
    net: ElasticWrapper, example: Any, depth: int, context: Mapping[str, Any] | None = None
) -> MacCount:
    """Return the multiply-accumulates of one pass, and which operators could not be counted.

    Args:
        net: The net.
        example: An input of it.
        depth: Where the pass ends.
        context: Keyword arguments of the net's call.
    """
    # Without gradients, but not in inference mode: the counter fails there on a module that is
    # handed a parameter, such as a learned query or the original of a parametrized weight.
    keywords = dict(context or {})
    foreign = _ForeignOperators()
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with evaluating(net), torch.no_grad(), _products_in_sight(net), foreign, counter:
        net(example, depth=depth, **keywords)
    macs = counter.get_total_flops() // 2  # one multiplication and one addition each
    return MacCount(macs=macs, not_counted=tuple(sorted(foreign.names)))


@contextmanager
def _products_in_sight(net: nn.Module) -> Generator[None, None, None]:
    """Switch off what computes many products in one operator that the counter does not know.

    That is the fast path of `nn.TransformerEncoderLayer` and `nn.MultiheadAttention`, and what
    recurrent layers have.
    """
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _recurrent_layers_in_steps(net):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)


@contextmanager
def _recurrent_layers_in_steps(net: nn.Module) -> Generator[None, None, None]:
    """Let recurrent layers compute step by step, not in one operator of oneDNN or cuDNN.

    Only for nets that have such layers, because convolutions take several times as long meanwhile.
    """
    if not any(isinstance(module, nn.RNNBase) for module in net.modules()):
        yield
        return
    with warnings.catch_warnings():
        # Switching oneDNN says that there is no graphics processor of Intel's.
        warnings.filterwarnings("ignore", message="TF32 acceleration")
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


class _ForeignOperators(TorchDispatchMode):
    """Notes the operators of other libraries that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.namespace not in KNOWN_NAMESPACES:
            self.names.add(str(func.name()))
        return func(*args, **(kwargs or {}))


# --- operators that torch's counter leaves out; a formula gets the shapes of the arguments


def _matrix_times_vector(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _sum_and_matrix_times_vector(_: Any, matrix: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(matrix)


def _dot(vector: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(vector)


def _sum_and_batched_product(
    _: Any, first: Sequence[int], second: Sequence[int], *__: Any, **___: Any
) -> int:
    return 2 * math.prod(first) * second[-1]  # (b, n, k) times (b, k, m)


def _bilinear(
    first: Sequence[int], weight: Sequence[int], second: Sequence[int], *_: Any, **__: Any
) -> int:
    batch = first[0]
    return 2 * batch * math.prod(weight)  # weight: (out, in of the first, in of the second)


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    scores = math.prod(query) * key[-2]  # (b, heads, n, c) times (b, heads, c, m)
    sums = math.prod(query[:-1]) * math.prod(value[-2:])  # (b, heads, n, m) times (b, heads, m, c)
    return 2 * (scores + sums)


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mv: _matrix_times_vector,
    aten.addmv: _sum_and_matrix_times_vector,
    aten.dot: _dot,
    aten.addbmm: _sum_and_batched_product,
    aten._trilinear: _bilinear,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # torch 2.6 leaves it out
}
