"""Count what one depth of a net holds and computes: parameters and multiply-accumulates."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from elasticnet.card.operators import FORMULAS, OperatorNotes
from elasticnet.checkpoint.header import first_depth_that_needs
from elasticnet.wrapper import ElasticWrapper, evaluating


class MacCount(NamedTuple):
    """The multiply-accumulates of one pass; `elasticnet.card.operators` says what counts.

    Attributes:
        macs: How many were counted.
        not_counted: The names of operators whose work is not known.
        counted_as_dense: The names of operators that had a sparse argument and were counted as if
            it were dense.
    """

    macs: int
    not_counted: tuple[str, ...]
    counted_as_dense: tuple[str, ...]


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
    """Return the multiply-accumulates of one pass; `elasticnet.card.operators` says what counts.

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
    """Return the multiply-accumulates of one pass, and which operators were not counted exactly.

    Args:
        net: The net.
        example: An input of it.
        depth: Where the pass ends.
        context: Keyword arguments of the net's call.
    """
    from torch.utils.flop_counter import (
        FlopCounterMode,
    )  # here, as it imports Triton, which is slow

    # Without gradients, but not in inference mode: the counter fails there on a module that is
    # handed a parameter, such as a learned query or the original of a parametrized weight.
    keywords = dict(context or {})
    counter: Any = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    notes = OperatorNotes(counted=counter.flop_registry)  # by torch's formulas and ours
    # The counter is the last one and so the first to see an operator: it may take it apart into
    # those that it counts, and the notes are of what it really ran.
    with evaluating(net), torch.no_grad(), _products_in_sight(net), notes, counter:
        net(example, depth=depth, **keywords)
    counted = counter.get_total_flops() // 2  # one multiplication and one addition each
    return MacCount(
        macs=counted + notes.summed_products,
        not_counted=tuple(sorted(notes.unknown)),
        counted_as_dense=tuple(sorted(notes.dense)),
    )


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
