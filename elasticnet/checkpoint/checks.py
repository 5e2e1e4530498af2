"""Checks that both `save` and `load` make: the net is an `ElasticWrapper`, and values are valid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elasticnet._modules.not_elastic import say_not_elastic
from elasticnet._modules.unwrapping import is_in_flat_shards, unwrapped
from elasticnet._net.checks import check_number_of_blocks
from elasticnet.wrapper import ElasticWrapper


def elastic_net(net: Any) -> ElasticWrapper:
    """Return a user's net, without what compilation or parallel training has put around it.

    Args:
        net: What a user passed as a net.

    Raises:
        TypeError: It is not an `ElasticWrapper`, and wraps none.
        ValueError: FSDP1 keeps its parameters in flat shards, which have lost their shapes; or
            blocks were added or removed since the net was made.
    """
    inner = unwrapped(net)
    if isinstance(inner, ElasticWrapper):
        if is_in_flat_shards(net):
            raise ValueError(
                "net is sharded by FullyShardedDataParallel: save or load inside "
                "`with FullyShardedDataParallel.summon_full_params(net):`"
            )
        check_number_of_blocks(len(inner.blocks), deepest_tap=inner.taps[-1])
        return inner
    if hasattr(net, "merge_and_unload"):
        raise TypeError(
            f"net is a {type(net).__name__}, whose adapters no file can hold: merge them first, "
            "net = net.merge_and_unload()"
        )
    raise TypeError(say_not_elastic(inner))


def describe_invalid_values(tensor: Tensor, *, is_parameter: bool) -> str | None:
    """Return what a tensor holds that a checkpoint must not; None if all values are valid.

    NaN is invalid in every tensor. Infinity is invalid in parameters only; a buffer may hold it, as
    attention masks do.

    Args:
        tensor: A tensor of any dtype.
        is_parameter: Whether it is a parameter, not a buffer.

    Returns:
        Text for a message, such as "NaN or infinity in 3 of 64 values".
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    values = tensor.detach()
    if values.element_size() == 1:  # float8 has no isnan
        values = values.float()
    if is_parameter:
        kind = "NaN or infinity"
        is_invalid = ~torch.isfinite(values)
    else:
        kind = "NaN"
        is_invalid = torch.isnan(values)
    count = int(is_invalid.sum())
    if count == 0:
        return None
    return f"{kind} in {count} of {tensor.numel()} values"
