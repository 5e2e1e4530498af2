"""Which of PyTorch's operators multiply and add, and how often.

The rule. What multiplies pairs of values and sums the products is counted: products of matrices and
vectors, convolutions, attention, distances between all pairs, and a `mul` whose result is summed,
as it is, copied or seen through a view.
What takes a fixed number of steps for each value that it reads or writes is left out, as published
tables do: activations, sums, normalisation, pooling, copies, sorting, resizing by fixed weights.
An operator of neither kind is named, because its work is not known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from elasticnet.card.light_operators import LIGHT_NAMES

aten: Any = torch.ops.aten

# Operators of these namespaces are torch's own.
OWN_NAMESPACES = ("aten", "prim", "prims")
PRODUCTS = (aten.mul, aten.mul_)
COPIES = (aten._to_copy, aten._unsafe_view, aten.clone)
# Which argument of an operator it sums; the later ones are what graph networks sum messages by.
SUMMED_ARGUMENT: dict[Any, int] = {
    aten.mean: 0,
    aten.nansum: 0,
    aten.sum: 0,
    aten.index_add: 3,
    aten.index_add_: 3,
    aten.scatter_add: 3,
    aten.scatter_add_: 3,
}


@dataclass
class _Product:
    """A tensor that `mul` gave, and whose values count if they are summed.

    Attributes:
        macs: The number of products.
        is_counted: Whether they were summed, and so counted, once.
    """

    macs: int
    is_counted: bool = False


class OperatorNotes(TorchDispatchMode):
    """Notes, while it is active, what torch's own counter does not count.

    Args:
        counted: The operators that the counter counts.

    Attributes:
        summed_products: Multiply-accumulates of the `mul` whose results were summed.
        unknown: The names of the operators whose work is not known.
        dense: The names of the operators that were counted as if a sparse argument were dense.
    """

    supports_higher_order_operators = True  # such as flex_attention

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()
        self.summed_products = 0
        self.unknown: set[str] = set()
        self.dense: set[str] = set()
        self._counted = counted
        # The products that may yet be summed. Weak, so that none lives longer than in the pass.
        self._products: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        result = func(*args, **keywords)
        arguments = (*args, *keywords.values())
        if func in self._counted or _packet_of(func) in self._counted:
            if any(_is_sparse(value) for value in tree_leaves(arguments)):
                self.dense.add(_name_of(func))
        elif not isinstance(func, OpOverload) or func.namespace not in OWN_NAMESPACES:
            self.unknown.add(str(func.name()))
        elif not _is_light(func):
            self.unknown.add(_name_of(func))
        elif _packet_of(func) in PRODUCTS:
            self._note_product(arguments, result)
        else:
            self._note_sum_or_copy(func, arguments, result)
        return result

    def _note_product(self, arguments: Sequence[Any], result: Any) -> None:
        """Keep a product in mind until it is summed."""
        first, second = arguments[:2]
        # A number times a tensor only scales it.
        if _has_many_values(first) and _has_many_values(second):
            self._products[result] = _Product(macs=result.numel())

    def _note_sum_or_copy(self, func: Any, arguments: Sequence[Any], result: Any) -> None:
        """Count a product if this sums it; follow it into a view or a copy."""
        packet = _packet_of(func)
        position = SUMMED_ARGUMENT.get(packet, 0)
        source = arguments[position] if position < len(arguments) else None
        if not isinstance(source, Tensor) or source not in self._products:
            return
        product = self._products[source]
        if packet in SUMMED_ARGUMENT and not product.is_counted:
            product.is_counted = True
            self.summed_products += product.macs
        elif (func.is_view or packet in COPIES) and isinstance(result, Tensor):
            self._products[result] = product


def _is_light(func: Any) -> bool:
    """Return whether an operator takes a fixed number of steps for each value."""
    if func.is_view:
        return True
    name = func.overloadpacket.__name__.rstrip("_")
    return name in LIGHT_NAMES or _is_elementwise(name)


@functools.cache
def _is_elementwise(name: str) -> bool:
    """Return whether torch marks an operator of this name as elementwise.

    Not all operators in place are marked, so the name stands for the one that is not.
    """
    packet = getattr(aten, name, None)
    if packet is None:
        return False
    return any(torch.Tag.pointwise in overload.tags for overload in _overloads(packet))


def _overloads(packet: Any) -> Iterator[Any]:
    for name in packet.overloads():
        yield getattr(packet, name)


def _packet_of(func: Any) -> Any:
    """Return the operator without its overload: `aten.mm` of `aten.mm.out`."""
    return getattr(func, "overloadpacket", func)


def _name_of(func: Any) -> str:
    """Return what a card calls an operator: `aten::mm`."""
    return f"{func.namespace}::{_packet_of(func).__name__}"


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def _has_many_values(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_nested:
        return False
    return value.numel() > 1


# --- operators that torch's counter leaves out; a formula gets the shapes of the arguments, and
# returns two operations for each multiply-accumulate, as torch's own formulas do


def _matrix_times_vector(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _sum_and_matrix_times_vector(_: Any, matrix: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(matrix)


def _dot(vector: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(vector)


def _matrix_product(first: Sequence[int], second: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(first) * second[-1]  # (..., n, k) times (..., k, m)


def _sum_and_product(
    _: Any, first: Sequence[int], second: Sequence[int], *__: Any, **___: Any
) -> int:
    return 2 * math.prod(first) * second[-1]  # (..., n, k) times (..., k, m)


def _product_with_transposed(
    first: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    return 2 * math.prod(out_shape) * first[-1]  # (..., n, k) and (..., m, k) give (..., n, m)


def _grouped_product(first: Sequence[int], second: Sequence[int], *_: Any, **__: Any) -> int:
    if len(first) == 3 and len(second) == 2:
        first = first[1:]  # each group multiplies its part of the columns of the second one
    return 2 * math.prod(first) * second[-1]


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


def _distances_within(points: Sequence[int], *_: Any, **__: Any) -> int:
    num_points, num_values = points
    num_pairs = num_points * (num_points - 1) // 2
    return 2 * num_pairs * num_values


def _convolution_over_time(
    x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    del x
    time, batch, _channels = out_shape
    return 2 * time * batch * math.prod(weight)  # weight: (kernel, channels in, channels out)


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mv: _matrix_times_vector,
    aten.addmv: _sum_and_matrix_times_vector,
    aten.addmv_: _sum_and_matrix_times_vector,
    aten.dot: _dot,
    aten.vdot: _dot,
    aten.addbmm: _sum_and_product,
    aten.addbmm_: _sum_and_product,
    aten.addmm_: _sum_and_product,  # torch knows addmm and baddbmm, but not in place
    aten.baddbmm_: _sum_and_product,
    aten._addmm_activation: _sum_and_product,
    aten._int_mm: _matrix_product,
    aten._weight_int8pack_mm: _product_with_transposed,
    aten._sparse_addmm: _sum_and_product,
    aten._sparse_sparse_matmul: _matrix_product,
    aten.sparse_sampled_addmm: _sum_and_product,
    aten._cdist_forward: _product_with_transposed,
    aten._euclidean_dist: _product_with_transposed,
    aten._pdist_forward: _distances_within,
    aten._trilinear: _bilinear,
    aten.conv_tbc: _convolution_over_time,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # torch 2.6 leaves it out
}
if hasattr(aten, "_grouped_mm"):  # of mixtures of experts; torch 2.6 has none
    FORMULAS[aten._grouped_mm] = _grouped_product
